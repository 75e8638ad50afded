"""A checkpoint comes from a hub in parallel, goes on where it was broken off, and is checked; tried on loopback."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from bot.errors import TrainingError
from training import hub

MODEL = "owner/tiny"
FILES = {
    "config.json": b'{"model_type": "qwen3"}', "tokenizer.json": b"{}" * 500,
    "model-00001.safetensors": bytes(range(256)) * 20_000, "model-00002.safetensors": b"weights" * 100_000,
    "README.md": b"# not needed", "../evil.json": b"{}", "original/consolidated.pth": b"x",
}  # fmt: skip
WANTED = {"config.json", "tokenizer.json", "model-00001.safetensors", "model-00002.safetensors"}


class Hub(BaseHTTPRequestHandler):
    """What both hubs do alike."""

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""


class ModelScope(Hub):
    """Answers as modelscope.cn does; some files are cut off once, or arrive broken."""

    asked: ClassVar[list[tuple[str, str | None]]] = []
    cut_once: ClassVar[set[str]] = set()
    broken: ClassVar[set[str]] = set()
    claimed: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if not url.path.startswith(f"/api/v1/models/{MODEL}/repo"):
            self._send(404, b"{}")
        elif url.path.endswith("/files"):
            listed: list[dict[str, Any]] = [
                {"Path": p, "Size": self.claimed.get(p, len(b)), "Sha256": hashlib.sha256(b).hexdigest(),
                 "Type": "blob"}
                for p, b in FILES.items()
            ]  # fmt: skip
            self._send(200, json.dumps({"Code": 200, "Data": {"Files": [*listed, {"Path": "original", "Size": 0,
                       "Type": "tree"}]}}).encode())  # fmt: skip
        else:
            self._file(query["FilePath"][0])

    def _file(self, path: str) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((path, wanted))
        body = FILES[path]
        if path in self.broken:
            body = b"?" + body[1:]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if path in self.cut_once:
            self.cut_once.discard(path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self._send(206 if wanted else 200, body[start:])


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub on loopback."""
    ModelScope.asked.clear()
    ModelScope.cut_once.clear()
    ModelScope.broken.clear()
    ModelScope.claimed.clear()
    made = ThreadingHTTPServer(("127.0.0.1", 0), ModelScope)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{made.server_address[1]}"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)
    yield address
    made.shutdown()
    made.server_close()


def there(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_a_checkpoint_needs_is_fetched_once(tmp_path: Path) -> None:
    folder = hub.fetch(MODEL, "modelscope", tmp_path)
    assert folder == tmp_path / "owner--tiny"
    assert there(folder) == {name: FILES[name] for name in WANTED}
    assert sorted(p for p, _ in ModelScope.asked) == sorted(WANTED)
    assert not (tmp_path / "evil.json").exists()
    ModelScope.asked.clear()
    assert hub.fetch(MODEL, "modelscope", tmp_path) == folder
    assert ModelScope.asked == []


def test_what_was_broken_off_goes_on_where_it_was(tmp_path: Path) -> None:
    big = "model-00001.safetensors"
    ModelScope.cut_once.add(big)
    folder = hub.fetch(MODEL, "modelscope", tmp_path)
    assert there(folder)[big] == FILES[big]
    ranges = [wanted for path, wanted in ModelScope.asked if path == big]
    assert ranges == [None, f"bytes={len(FILES[big]) // 2}-"]
    # The same from one start to the next.
    (folder / big).unlink()
    (folder / f".{big}.part").write_bytes(FILES[big][:1000])
    ModelScope.asked.clear()
    hub.fetch(MODEL, "modelscope", tmp_path)
    assert ModelScope.asked == [(big, "bytes=1000-")]
    assert there(folder)[big] == FILES[big]


def test_what_came_whole_needs_no_hub_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.fetch(MODEL, "modelscope", tmp_path)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch(MODEL, "modelscope", tmp_path) == folder
    (folder / "model-00001.safetensors").unlink()
    with pytest.raises(TrainingError, match="ConnectError"):
        hub.fetch(MODEL, "modelscope", tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "owner--tiny"
    folder.mkdir()
    (folder / ".model-00001.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"'model-00001\.safetensors' of model .*No space left.*goes on from there"):
        hub.fetch(MODEL, "modelscope", tmp_path)


def test_what_arrives_broken_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    ModelScope.broken.add("model-00002.safetensors")
    with pytest.raises(TrainingError, match=r"'model-00002\.safetensors' of model .* sha256 is not as listed"):
        hub.fetch(MODEL, "modelscope", tmp_path)
    assert not list(tmp_path.rglob("*model-00002*"))


def test_no_such_model_and_no_such_server_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("..", "../../etc", "owner/..", "a/b/c"):
        with pytest.raises(TrainingError, match=r"no id on a hub"):
            hub.fetch(name, "modelscope", tmp_path)
    with pytest.raises(TrainingError, match=r"no list of model 'no/such' \(HTTP 404\)"):
        hub.fetch("no/such", "modelscope", tmp_path)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TrainingError, match=r"\(ConnectError\).*MODELSCOPE_ENDPOINT"):
        hub.fetch(MODEL, "modelscope", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_fetched_before_is_at_hand_without_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "cache" / "models--owner--tiny" / "snapshots" / "abc"
    mirrored = tmp_path / "models" / "owner--tiny"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def at_hand() -> list[Path | None]:
        models = tmp_path / "models"
        return [hub.at_hand(MODEL, "huggingface", models), hub.at_hand(MODEL, "modelscope", models)]

    assert at_hand() == [None, None]
    for folder in (snapshot, mirrored):
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert at_hand() == [snapshot, mirrored]
    assert hub.at_hand(str(snapshot), "modelscope", tmp_path) == snapshot
    assert hub.at_hand(str(tmp_path / "gone"), "huggingface", tmp_path) is None


def test_what_will_not_fit_is_not_begun(tmp_path: Path) -> None:
    ModelScope.claimed["model-00001.safetensors"] = 10**18
    words = r"'owner/tiny' takes 1,000,000,000,.* MB more in '.*owner--tiny', and [\d,]+ MB are free; .* \[paths\] data"
    with pytest.raises(TrainingError, match=words):
        hub.fetch(MODEL, "modelscope", tmp_path)
    assert [path for path, _ in ModelScope.asked] == []
    assert there(tmp_path) == {}


# -- Hugging Face ---------------------------------------------------------------------------------

COMMIT = "0" * 40


class HuggingFace(Hub):
    """Answers as huggingface.co does; a file may be said to be larger than any disk, or be cut off each time."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str]] = []
    claimed: ClassVar[dict[str, int]] = {}
    cut: ClassVar[set[str]] = set()

    def do_HEAD(self) -> None:
        self._file(with_body=False)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        sizes = {name: self.claimed.get(name, len(FILES[name])) for name in WANTED}
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            self._json([{"type": "file", "path": n, "size": size, "oid": _oid(n)} for n, size in sizes.items()])
        elif path.startswith(f"/api/models/{MODEL}"):
            siblings = [{"rfilename": n, "size": size, "blobId": _oid(n)} for n, size in sizes.items()]
            self._json({"id": MODEL, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/{MODEL}/resolve/"):
            self.asked.append(path.rpartition("/")[2])
            self._file(with_body=True)
        else:  # huggingface_hub looks up names of its own
            self._send(404, b"{}")

    def _file(self, *, with_body: bool) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        body = FILES[name]
        self.send_response(200)
        for header, value in (
            ("ETag", f'"{_oid(name)}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(body))),
        ):  # fmt: skip
            self.send_header(header, value)
        self.end_headers()
        if with_body and name in self.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif with_body:
            self.wfile.write(body)

    def _json(self, answer: Any) -> None:
        self._send(200, json.dumps(answer).encode())


def _oid(name: str) -> str:
    return hashlib.sha1(FILES[name]).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of huggingface_hub, which asks a hub on loopback."""
    for seen in (HuggingFace.asked, HuggingFace.claimed, HuggingFace.cut):
        seen.clear()
    made = ThreadingHTTPServer(("127.0.0.1", 0), HuggingFace)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{made.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield tmp_path / "cache"
    made.shutdown()
    made.server_close()


def test_huggingface_gives_what_a_checkpoint_needs_once(cache: Path) -> None:
    folder = hub.fetch(MODEL, "huggingface")
    assert there(folder) == {name: FILES[name] for name in WANTED}
    HuggingFace.asked.clear()
    assert hub.fetch(MODEL, "huggingface") == folder
    assert HuggingFace.asked == []
    HuggingFace.claimed["model-00001.safetensors"] = 10**18
    assert hub.fetch(MODEL, "huggingface") == folder, "what is here needs no room"


def test_what_will_not_fit_is_not_asked_of_huggingface(cache: Path) -> None:
    HuggingFace.claimed["model-00001.safetensors"] = 10**18
    words = rf"'owner/tiny' takes 1,000,000,000,.* MB more in '{cache}', and [\d,]+ MB are free; .* set HF_HOME"
    with pytest.raises(TrainingError, match=words):
        hub.fetch(MODEL, "huggingface")
    assert HuggingFace.asked == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_nothing_half_written_is_taken_for_whole(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    words = rf"cannot be written to '{cache}' \(File too large\), where [\d,]+ MB are free; make room, or set HF_HOME"
    try:
        with pytest.raises(TrainingError, match=words):
            hub.fetch(MODEL, "huggingface")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(FILES["model-00001.safetensors"].startswith(p.read_bytes()) for p in cache.rglob("*/blobs/*"))
    with monkeypatch.context() as alone:
        alone.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(TrainingError, match="the hub gives no such model"):
            hub.fetch(MODEL, "huggingface")
    assert there(hub.fetch(MODEL, "huggingface")) == {name: FILES[name] for name in WANTED}


def test_a_connection_that_breaks_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as nobody:
        nobody.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(TrainingError, match=r"the hub gives no such model \(LocalEntryNotFoundError\)"):
            hub.fetch(MODEL, "huggingface")
    HuggingFace.cut.add("model-00001.safetensors")
    with pytest.raises(TrainingError, match=r"the hub gives no such model \(RemoteProtocolError\)"):
        hub.fetch(MODEL, "huggingface")
