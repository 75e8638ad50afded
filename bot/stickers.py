"""Image stickers the imitated people sent, kept to be sent again: files by hash, a name for each.

In: a sticker's file and what the client calls it. Out: `[动画表情:name]` in place of `[动画表情]` wherever messages are
read for the model, live and in training (bot/shown.py), and the segment that sends it. The archive keeps `[动画表情]`:
what is in the library today decides, so a sticker that went, or a switched-off library, is a plain one again.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from loguru import logger

from bot import config
from bot.errors import ArchiveError
from bot.message import Message, Segment
from bot.segments import STICKER, to_text

INDEX = "index.json"
_MD5 = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{32}(?![0-9A-Fa-f])")
_SAID = re.compile(r"\[动画表情:([^\[\]]+)\]")
_NO_NAMES = {"", "动画表情", "图片", "表情", "动画", "image"}
_NAME_MAX, _HASH_LEAST = 12, 4
_MAGIC = ((b"GIF8", "gif"), (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"))


@dataclass(frozen=True, slots=True)
class Sticker:
    """One sticker.

    Args:
        sha256: of its file, lower-case hex.
        name: what it is called in `[动画表情:name]`; never changes, for the model learns it.
        keys: MD5s in lower-case hex under which clients name the file.
        senders: QQ numbers of the imitated people who sent it.
        suffix: gif, png, jpg or webp.
        size_bytes: of the file.
        used_ms: when one of them sent it last (Unix milliseconds).
    """

    sha256: str
    name: str
    keys: tuple[str, ...]
    senders: tuple[str, ...]
    suffix: str
    size_bytes: int
    used_ms: int

    @property
    def file(self) -> str:
        """Name of its file in the library."""
        return f"{self.sha256}.{self.suffix}"


class Stickers:
    """The library.

    Args:
        folder: where files and index lie, `data/stickers`; made when the first sticker comes.
        rules: `[stickers]` of bot.toml.
    """

    def __init__(self, folder: Path, rules: config.Stickers) -> None:
        self._folder = folder
        self._rules = rules
        self._read: object = None
        self._all: dict[str, Sticker] = {}
        self._names: Mapping[str, str] = {}
        self._refresh()

    @property
    def enabled(self) -> bool:
        """Whether stickers are collected and sent."""
        return self._rules.enabled

    @property
    def names(self) -> Mapping[str, str]:
        """Names by key: what `named` needs."""
        self._refresh()
        return self._names

    @property
    def max_file_bytes(self) -> int:
        """Size of a sticker's file at most."""
        return self._rules.max_file_kb * 1024

    def seen(self, key: str, sender_id: str, when: datetime) -> bool:
        """Note that somebody sent a sticker; False if the library lacks it."""
        self._refresh()
        for sticker in self._all.values():
            if key in sticker.keys:
                self._keep(_used(sticker, key, sender_id, when))
                return True
        return False

    def add(self, content: bytes, key: str, summary: str, sender_id: str, when: datetime) -> Sticker | None:
        """Keep a sticker; those unused longest go where the library grows too large.

        Args:
            content: its file.
            key: what the client calls it (`key_of`).
            summary: what QQ calls it, `[贴贴]`; where that says nothing it is named by its hash.
            sender_id: which of the imitated people sent it.
            when: aware UTC.

        Returns:
            The sticker; None where the file is no picture, or larger than allowed.
        """
        suffix = _suffix(content)
        if suffix is None or len(content) > min(self.max_file_bytes, self._max_bytes):
            logger.info("a sticker of {} bytes is not kept: {}", len(content), "too large" if suffix else "no picture")
            return None
        self._refresh()
        digest = hashlib.sha256(content).hexdigest()
        known = self._all.get(digest)
        if known is None:
            name = _name(summary, digest, {s.name for s in self._all.values()})
            known = Sticker(digest, name, (), (), suffix, len(content), 0)
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._folder / known.file, content)
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self._keep(_used(_used(known, md5, sender_id, when), key, sender_id, when))
        return known

    def segment(self, text: str, people: Collection[str]) -> dict[str, Any] | None:
        """The segment of `[动画表情:name]` as one of these people sends it; None if the library has none of theirs."""
        self._refresh()
        said = _SAID.fullmatch(text)
        found = next((s for s in self._all.values() if said and s.name == said[1] and set(s.senders) & {*people}), None)
        if found is None:
            return None
        try:
            content = (self._folder / found.file).read_bytes()
        except OSError as e:
            logger.warning("a sticker's file cannot be read: {}", type(e).__name__)
            return None
        data = {"file": f"base64://{base64.b64encode(content).decode()}", "summary": STICKER}
        look = {"sub_type": 1, "subType": 1}  # NapCat reads the one, LLBot and Lagrange the other
        return {"type": "image", "data": data | look | {"name": f"{found.keys[0].upper()}.{found.suffix}"}}

    def forget(self, person: str) -> int:
        """Drop what somebody sent, but for what another of the imitated people sent, too; gives how many files went.

        Raises:
            ArchiveError: a file cannot be removed, or the index not be written; doing it again later is the same.
        """
        library = {s.sha256: s for s in _listed(self._folder)}
        theirs = [s for s in library.values() if person in s.senders]
        held: OSError | None = None
        try:
            for sticker in theirs:
                left = tuple(sender for sender in sticker.senders if sender != person)
                if left:
                    library[sticker.sha256] = replace(sticker, senders=left)
                    continue
                try:
                    (self._folder / sticker.file).unlink(missing_ok=True)
                    del library[sticker.sha256]
                except OSError as e:  # it stays in the index, to be found when this is done again
                    held = e
            if theirs:
                self._write_index(library)
            if held is not None:
                raise held
        except OSError as e:
            raise ArchiveError(
                f"a sticker of theirs cannot be removed from {str(self._folder)!r} ({e.strerror}); give the twin the "
                "right to write there, or free disk space"
            ) from e
        return sum(s.sha256 not in library for s in theirs)

    @property
    def _max_bytes(self) -> int:
        return self._rules.max_mb * 1024 * 1024

    def _keep(self, sticker: Sticker) -> None:
        self._all[sticker.sha256] = sticker
        while sum(s.size_bytes for s in self._all.values()) > self._max_bytes:
            oldest = min(self._all.values(), key=lambda s: s.used_ms)
            del self._all[oldest.sha256]
            (self._folder / oldest.file).unlink(missing_ok=True)
        self._write_index(self._all)

    def _write_index(self, library: Mapping[str, Sticker]) -> None:
        index = json.dumps([asdict(s) for s in library.values()], ensure_ascii=False, indent=1)
        _write(self._folder / INDEX, index.encode())
        self._refresh()

    def _refresh(self) -> None:
        """Read the index where it is not as it was read last: `twin forget` writes it beside a running daemon."""
        if not self.enabled:
            return
        stamp = _stamp(self._folder / INDEX)
        if stamp != self._read:
            self._read, self._all = stamp, {s.sha256: s for s in _stored(self._folder)}
            self._names = {key: s.name for s in self._all.values() for key in s.keys}


def names(settings: config.Settings) -> Mapping[str, str]:
    """The library's names by key, for `bot.shown`; none while it is off."""
    return Stickers(folder(settings), settings.stickers).names


def folder(settings: config.Settings) -> Path:
    """Where the library lies."""
    return settings.data / "stickers"


def key_of(segment: Segment) -> str | None:
    """What a client calls the file of an image sticker (an MD5, lower-case hex); None for any other segment.

    NapCat and LLBot name it in `file`, Lagrange in `filename`; all of them put it into older links.
    """
    if to_text([segment], lambda _: None).text != STICKER:
        return None
    data = segment.get("data")
    fields = [data.get(k) for k in ("file", "filename", "name", "url")] if isinstance(data, Mapping) else []
    found = (match for f in fields if isinstance(f, str) and (match := _MD5.search(f)) is not None)
    return next((match[0].lower() for match in found), None)


def named(message: Message, known: Mapping[str, str]) -> Message:
    """A message in which the stickers of the library have their names.

    Args:
        message: with its raw segments; without, nothing is known of its stickers.
        known: names by key.
    """
    if not known or STICKER not in message.text:
        return message
    marks: list[str | None] = []
    for segment in message.segments:
        key = key_of(segment)
        # Somebody may have typed it, too.
        marks += [known.get(key)] if key else [None] * to_text([segment], lambda _: None).text.count(STICKER)
    if not any(marks):
        return message
    following = iter(marks)

    def name(plain: re.Match[str]) -> str:
        found = next(following, None)
        return f"[动画表情:{found}]" if found else plain[0]

    return replace(message, text=re.sub(re.escape(STICKER), name, message.text))


def kept(segment: Mapping[str, Any]) -> Mapping[str, Any]:
    """A sent segment as the archive keeps it: a sticker by its name, not with its file."""
    data = segment["data"]
    if segment["type"] != "image" or not str(data.get("file", "")).startswith("base64://"):
        return segment
    return {"type": "image", "data": {**data, "file": data["name"]}}


def _used(sticker: Sticker, key: str, sender_id: str, when: datetime) -> Sticker:
    return replace(
        sticker, keys=tuple(dict.fromkeys((*sticker.keys, key))), senders=tuple({*sticker.senders, sender_id}),
        used_ms=max(sticker.used_ms, round(when.timestamp() * 1000)),
    )  # fmt: skip


def _name(summary: str, digest: str, taken: Collection[str]) -> str:
    """QQ's own word for it, else the beginning of its hash; longer where another sticker has that name."""
    said = re.sub(r"[\s\[\]:：]", "", "".join(c for c in summary if c.isprintable()))[:_NAME_MAX]
    stem = "" if said in _NO_NAMES else said
    length = 0 if stem else _HASH_LEAST
    while not (name := stem + digest[:length]) or name in taken:
        length += 1
    return name


def _suffix(content: bytes) -> str | None:
    """What kind of picture it is, by its first bytes; None if it is none."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), None)


def _stored(folder: Path) -> list[Sticker]:
    """What the index lists and lies there whole."""
    return [s for s in _listed(folder) if _size(folder / s.file) == s.size_bytes]


def _listed(folder: Path) -> list[Sticker]:
    """What the index lists."""
    try:
        rows = json.loads((folder / INDEX).read_text("utf-8"))
        return [Sticker(**(row | {k: tuple(row[k]) for k in ("keys", "senders")})) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as e:
        logger.error("the sticker library {} cannot be read: {}; it begins anew", str(folder / INDEX), type(e).__name__)
        return []


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all; readable by the owner alone, for it is what people sent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
        f.write(content)
    os.replace(beside, path)
