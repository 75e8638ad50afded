"""The sticker library filled by a running daemon: real links on loopback, a client that names files as NapCat does."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import napcat
import pytest
from daemon import Daemon, persona, settings
from napcat import ACCOUNT, NapCat

GIF = b"GIF89a" + b"x" * 500
MD5 = hashlib.md5(GIF, usedforsecurity=False).hexdigest().upper()


class Files(ThreadingHTTPServer):
    """QQ's file server: one sticker, one file that never ends, and nothing else."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Files)
        self.server.asked.append(self.path[1:])
        self.send_response(200 if self.path in ("/one", "/endless") else 404)
        self.end_headers()
        try:
            self.wfile.write(GIF if self.path == "/one" else b"")
            while self.path == "/endless":
                self.wfile.write(b"GIF89a" + b"y" * 65536)
        except OSError:
            return

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def files() -> Iterator[Files]:
    server = Files()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def sticker(url: str, md5: str = MD5, **data: Any) -> dict[str, Any]:
    made = napcat.image(sub_type=1)
    return {"type": "image", "data": made["data"] | {"file": f"{md5}.gif", "url": url} | data}


def index(daemon: Daemon) -> list[dict[str, Any]]:
    file = daemon.data / "stickers" / "index.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else []


def started(tmp_path: Path, **stickers: Any) -> Daemon:
    """A daemon without a model: it records, and that is all this needs."""
    found = Daemon(tmp_path, settings(tmp_path / "none.gguf", stickers={"enabled": True} | stickers))
    persona(found.data / "personas" / "xiaoman", "小满", [ACCOUNT])
    return found


async def test_what_the_person_sends_is_kept_once_and_what_others_send_is_not(tmp_path: Path, files: Files) -> None:
    with started(tmp_path) as daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            await client.say([sticker(files.url("one"), "B" * 32)], user=101)
            await client.say_myself([sticker(files.url("gone"), "C" * 32)], to=101)
            await client.say_myself([sticker(files.url("one"), summary="[贴贴]")], to=101)
            daemon.wait(lambda: len(index(daemon)) == 1)
            await client.say_myself([sticker(files.url("one"))], to=102)
            await client.say_myself([sticker(files.url("endless"), "D" * 32)], to=102)
            daemon.wait(lambda: len(daemon.stored("private:102")) == 2)
            daemon.wait(lambda: "endless" in files.asked)
        daemon.end()
        (row,) = index(daemon)
        assert (row["name"], row["senders"], row["size_bytes"]) == ("贴贴", [ACCOUNT], len(GIF))
        assert (daemon.data / "stickers" / f"{row['sha256']}.gif").read_bytes() == GIF
        assert sorted(files.asked) == ["endless", "gone", "one"], "nobody else's, and no file twice"
        assert [m.text for m in daemon.stored("private:101")] == ["[动画表情]"] * 3, "the archive keeps what was seen"


async def test_a_file_whose_link_is_dead_is_asked_of_the_client(tmp_path: Path, files: Files) -> None:
    kept = tmp_path / "cache.gif"
    kept.write_bytes(GIF)
    with started(tmp_path) as daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            client.images[f"{MD5}.gif"] = str(kept)
            await client.say_myself([sticker(files.url("gone"))], to=101)
            # Not `daemon.wait`: the client has to answer meanwhile.
            await asyncio.to_thread(daemon.wait, lambda: len(index(daemon)) == 1)
        daemon.end()


async def test_nothing_is_fetched_unless_asked_for(tmp_path: Path, files: Files) -> None:
    with started(tmp_path, enabled=False) as daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            await client.say_myself([sticker(files.url("one"))], to=101)
            daemon.wait(lambda: len(daemon.stored("private:101")) == 1)
            await asyncio.sleep(0.5)
        daemon.end()
        assert (files.asked, (daemon.data / "stickers").exists()) == ([], False)
