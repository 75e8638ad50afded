"""An id on a hub → a folder with the checkpoint, from Hugging Face or from ModelScope, its mirror in China.

Hugging Face through huggingface_hub: parallel, resumable, with progress; HF_ENDPOINT names a mirror. ModelScope's two
 calls are made here: `/repo/files` lists a model's files with sizes and sha256, `/repo?FilePath=` gives one and takes
ranges (redirected to its storage); what was broken off goes on, and every file is checked.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, Literal

import httpx
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bot.errors import TrainingError
from training.state import read_state, write_state

Hub = Literal["huggingface", "modelscope"]
_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")
_MODELSCOPE = "https://modelscope.cn"
_AT_ONCE, _TRIES = 4, 4
_ANOTHER_CACHE = "set HF_HOME to a folder with more of it"


def fetch(model: str, source: Hub, models: Path | None = None) -> Path:
    """The folder of a checkpoint on a hub; what was fetched before is not fetched again.

    Args:
        model: `owner/name`.
        source: which hub.
        models: where ModelScope's are kept; None: the working folder's `models/`.

    Raises:
        TrainingError: the hub cannot be reached, has no such model, a file arrives broken, or there is no room.
    """
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*", model):
        raise TrainingError(f"model {model!r} is no folder here, and no id on a hub such as 'Qwen/Qwen3-0.6B'")
    if source == "huggingface":
        return _from_huggingface(model)
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT", _MODELSCOPE)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(model, total=None)
        return _ModelScope(endpoint, model, models or Path("models"), lambda done, size: bar.update(
            task, completed=done, total=size)).fetch()  # fmt: skip


def at_hand(model: str, source: Hub, models: Path) -> Path | None:
    """The folder of a checkpoint, or of what `fetch` brought of it before; None: it is not here."""
    if Path(model).is_dir():
        return Path(model)
    if source == "modelscope":
        return found if (found := _kept(model, models)).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # a folder that is gone is no id
        file = try_to_load_from_cache(model, "config.json")
        return Path(file).parent if isinstance(file, str) else None
    return None


def _kept(model: str, models: Path) -> Path:
    """Where a checkpoint from ModelScope is kept."""
    return models / model.replace("/", "--")


def _from_huggingface(model: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    cache = Path(constants.HF_HUB_CACHE)
    # Of the client that huggingface_hub brings: httpx, or since 2.0 httpx2.
    # Its downloads in chunks (hf_xet) raise RuntimeErrors.
    faults: tuple[type[Exception], ...] = (HFValidationError, OSError, RuntimeError, HfHubHTTPError.__mro__[1])
    with suppress(*faults):  # without the network: what is at hand is told below
        info = HfApi().model_info(model, files_metadata=True)
        files = [f for f in info.siblings or () if any(fnmatch(f.rfilename, pattern) for pattern in _FILES)]
        lacking = (
            f for f in files if not isinstance(try_to_load_from_cache(model, f.rfilename, revision=info.sha), str)
        )
        _require_room(model, sum(f.size or 0 for f in lacking), cache, _ANOTHER_CACHE)
    try:
        return Path(snapshot_download(model, allow_patterns=list(_FILES), max_workers=_AT_ONCE))
    except faults as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise TrainingError(
                f"model {model!r} cannot be written to {str(cache)!r} ({e.strerror}), where {_free(cache) / 1e6:,.0f} "
                f"MB are free; make room, or {_ANOTHER_CACHE}, and start it again: what came whole is kept"
            ) from e
        raise TrainingError(
            f"model {model!r} is no folder, and the hub gives no such model ({type(e).__name__}); give a checkpoint's "
            "folder, or a hub id while the hub can be reached (HF_ENDPOINT names a mirror; [training] hub = "
            "'modelscope' is another hub)"
        ) from e


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    size: int
    sha256: str


class _ModelScope:
    """A model on ModelScope, or on a server that answers as it does."""

    def __init__(self, endpoint: str, model: str, models: Path, progress: Callable[[int, int], None]) -> None:
        self.model, self.folder = model, _kept(model, models)
        self._list = self.folder.with_name(f"{self.folder.name}.json")
        self._url = f"{endpoint}/api/v1/models/{model}/repo"
        self._progress, self._lock = progress, Lock()
        self._sizes: dict[str, int] = {}
        self._size = 0

    def fetch(self) -> Path:
        # Also without the network: what came whole is known by the list that it came by.
        if (known := (read_state(self._list) or {}).get("files")) and all(map(self._is_there, known, known.values())):
            return self.folder
        with httpx.Client(timeout=60, follow_redirects=True) as client:
            files = self._listed(client)
            self._size = sum(f.size for f in files)
            lacking = sum(f.size - self._arrived(f) for f in files)
            _require_room(self.model, lacking, self.folder, "give [paths] data another place")
            self.folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda file: self._get(client, file), files))
        write_state(self._list, {"files": {f.path: f.size for f in files}})
        return self.folder

    def _is_there(self, path: str, size: int) -> bool:
        final = self.folder / PurePosixPath(path)
        return final.is_file() and final.stat().st_size == size

    def _arrived(self, file: _File) -> int:
        """Bytes of a file that are here."""
        if self._is_there(file.path, file.size):
            return file.size
        part = _part(self.folder / PurePosixPath(file.path))
        return min(part.stat().st_size, file.size) if part.is_file() else 0

    def _listed(self, client: httpx.Client) -> list[_File]:
        try:
            answer = client.get(f"{self._url}/files", params={"Revision": "master", "Recursive": "true"})
            answer.raise_for_status()
            listed = answer.json()["Data"]["Files"]
            files = [_File(str(f["Path"]), int(f["Size"]), str(f.get("Sha256", ""))) for f in listed if _wanted(f)]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as e:
            raise TrainingError(
                f"ModelScope gives no list of model {self.model!r} ({_words(e)}); is the id right, and is it reachable "
                "(MODELSCOPE_ENDPOINT names another server)?"
            ) from e
        if not any(f.path == "config.json" for f in files):
            raise TrainingError(f"model {self.model!r} on ModelScope has no config.json: it is no checkpoint to train")
        return files

    def _get(self, client: httpx.Client, file: _File) -> None:
        final = self.folder / PurePosixPath(file.path)
        if self._is_there(file.path, file.size):
            self._count(file, file.size)
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        part = _part(final)
        error: Exception | None = None
        for _ in range(_TRIES):
            try:
                self._stream(client, file, part)
            except httpx.HTTPError as e:
                error = e
                continue
            except OSError as e:
                raise TrainingError(
                    f"{file.path!r} of model {self.model!r} cannot be written to {str(self.folder)!r} ({e.strerror}); "
                    "mend that and start it again, it goes on from there"
                ) from e
            if _whole(part, file):
                os.replace(part, final)
                return
            error = None
            part.unlink()
        why = f"{_words(error)}; start it again, it goes on from there" if error else "its sha256 is not as listed"
        raise TrainingError(f"{file.path!r} of model {self.model!r} did not arrive from ModelScope ({why})")

    def _stream(self, client: httpx.Client, file: _File, part: Path) -> None:
        there = part.stat().st_size if part.is_file() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if 0 < there < file.size else {})
        params = {"Revision": "master", "FilePath": file.path}
        with client.stream("GET", self._url, params=params, headers=headers) as answer:
            answer.raise_for_status()
            goes_on = answer.status_code == httpx.codes.PARTIAL_CONTENT
            with part.open("ab" if goes_on else "wb") as f:
                for piece in answer.iter_bytes():
                    f.write(piece)
                    self._count(file, f.tell())

    def _count(self, file: _File, size: int) -> None:
        with self._lock:
            self._sizes[file.path] = size
            self._progress(sum(self._sizes.values()), self._size)


def _require_room(model: str, needed: int, folder: Path, remedy: str) -> None:
    """Refuse to begin what will not fit.

    Raises:
        TrainingError: more bytes are needed than are free.
    """
    if needed > (free := _free(folder)):
        raise TrainingError(
            f"model {model!r} takes {needed / 1e6:,.0f} MB more in {str(folder)!r}, and {free / 1e6:,.0f} MB are free; "
            f"make room, or {remedy}, and start it again"
        )


def _free(folder: Path) -> int:
    """Free bytes where a folder is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def _part(final: Path) -> Path:
    """A file that has not come whole."""
    return final.with_name(f".{final.name}.part")


def _wanted(file: dict[str, Any]) -> bool:
    path = PurePosixPath(str(file["Path"]))
    plain = not path.is_absolute() and ".." not in path.parts
    return file.get("Type", "blob") == "blob" and plain and any(fnmatch(path.name, pattern) for pattern in _FILES)


def _whole(part: Path, file: _File) -> bool:
    if part.stat().st_size != file.size:
        return False
    if not file.sha256:
        return True
    with part.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() == file.sha256


def _words(error: Exception | None) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return type(error).__name__
