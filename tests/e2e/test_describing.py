"""Voice and pictures in words: each client's own speech-to-text, and a vision model on loopback."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import napcat
import pytest
from daemon import Daemon, settings
from napcat import NapCat

VOICE = [{"type": "record", "data": {"file": "a.amr", "path": "/tmp/a.amr", "file_size": "9"}}]


class Vision(ThreadingHTTPServer):
    """Pictures under /…, and a model that says what it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Vision

    def do_GET(self) -> None:
        self.send_response(404 if self.path == "/gone" else 200)
        self.end_headers()
        self.wfile.write(b"picture")

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers.get("Authorization"))
        said = self.server.says.pop(0)
        self.send_response(said if isinstance(said, int) else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def vision() -> Iterator[Vision]:
    server = Vision()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def recording(vision: Vision, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without a base: it records, and asks the vision model."""
    folder = tmp_path_factory.mktemp("describing")
    engine = {"caption_model": "eyes", "remote_url": f"{vision.url}/v1"}
    scenes = [f"private:{40_000 + n}" for n in (111, 112, 113, 211, 212, 213)]
    with Daemon(folder, settings(folder / "none.gguf", engine=engine, chat={"scenes": scenes})) as found:
        yield found
        found.end()


async def text_of(daemon: Daemon, scene: str, text: str) -> None:
    """Until a scene's newest message reads so; the client answers meanwhile."""
    await asyncio.to_thread(daemon.wait, lambda: [m.text for m in daemon.stored(scene)][-1:] == [text])


@pytest.mark.parametrize(
    ("app", "account", "text"),
    [("NapCat.Onebot", "40011", "[语音]到哪了 快点"), ("LLOneBot", "40012", "[语音]到哪了 快点"),
     ("Lagrange.OneBot", "40013", "[语音]")],
)  # fmt: skip
async def test_a_voice_message_has_the_words_its_client_heard(
    recording: Daemon, app: str, account: str, text: str
) -> None:
    async with NapCat(recording.url, recording.token, account=account, app_name=app) as client:
        for _ in range(2):
            voice = await client.say(VOICE, user=int(account) + 100, deliver=False)
            client.spoken[voice] = " 到哪了\n快点 "
            await client.deliver(voice)
            await text_of(recording, f"private:{int(account) + 100}", text)
            await asyncio.sleep(0.2)
        unheard = await client.say(VOICE, user=int(account) + 200)
        await text_of(recording, f"private:{int(account) + 200}", "[语音]")
        await asyncio.sleep(0.2)
    asked = [c["action"] for c in client.calls if c["params"].get("message_id") in (*client.spoken, unheard)]
    if app.startswith("Lagrange"):
        assert asked.count("fetch_ptt_text") == asked.count("voice_msg_to_text") == 1, "what it has not is asked once"


@pytest.mark.parametrize(
    ("says", "segments", "text"),
    [
        (["一只[橘]猫\n在睡觉"], [napcat.image()], "[图片:一只 橘 猫 在睡觉]"),
        (["猫", "狗"], [napcat.text("看"), napcat.image(), napcat.image()], "看[图片:猫][图片:狗]"),
        (["x" * 500], [napcat.image()], f"[图片:{'x' * 40}]"),
        ([500], [napcat.image()], "[图片]"),
        ([None], [napcat.image()], "[图片]"),
        ([], [napcat.image(sub_type=1)], "[动画表情]"),
        ([], [napcat.text("打字[图片]"), napcat.image()], "打字[图片][图片]"),
        ([], [{"type": "image", "data": {"file": "A.jpg", "sub_type": 0, "url": "/gone"}}], "[图片]"),
    ],
)
async def test_a_picture_has_the_words_of_the_vision_model(
    recording: Daemon, vision: Vision, says: list[Any], segments: list[dict[str, Any]], text: str
) -> None:
    vision.says, asked = list(says), len(vision.asked)
    linked = [
        s if s["type"] != "image" else
        {"type": "image", "data": s["data"] | {"url": vision.url + ("/gone" if s["data"]["url"] == "/gone" else "/a")}}
        for s in segments
    ]  # fmt: skip
    async with NapCat(recording.url, recording.token, account="40014") as client:
        await client.say(linked, user=551)
        await text_of(recording, "private:551", text)
        await asyncio.sleep(0.1)
        await text_of(recording, "private:551", text)
    assert len(vision.asked) - asked == len(says)
    for body in vision.asked[asked:]:
        assert body["model"] == "eyes"
        assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert "橘" not in recording.log()


async def test_by_default_no_picture_leaves_the_machine(tmp_path: Path, vision: Vision) -> None:
    asked = len(vision.asked)
    with Daemon(tmp_path, settings(tmp_path / "none.gguf")) as daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            data = napcat.image()["data"] | {"url": f"{vision.url}/a"}
            await client.say([{"type": "image", "data": data}], user=552)
            await text_of(daemon, "private:552", "[图片]")
            await asyncio.sleep(0.3)
        daemon.end()
    assert len(vision.asked) == asked
