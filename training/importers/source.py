"""What every source of history is: a test of a file's content, and a reading of it as messages and recalls.

A reader never raises for what is broken in a file: it counts it with its reason and place, and goes on. It streams:
what it holds does not grow with the file.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from pydantic import SecretStr

from bot.errors import ImportFault
from bot.events import Recall
from bot.message import Message, Scene

PLACES_KEPT = 3
"""Places named for each reason."""
HEAD_BYTES = 65_536
"""What a source is first recognised by."""
DAMAGED = "damaged pages"
"""How a reason begins of which places are counted: how many messages were there nobody knows."""
Item = Message | Recall


class Skipped(ValueError):
    """A record that is left out; says why."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the owner says of a history that the files may not.

    Args:
        me: the owner's number or id in that history; None: found out where it can be.
        key: the key of an encrypted database.
        zone: of times written without one.
        scene: which chat the history is of; None: as its files say, or are called.
    """

    me: str | None = None
    key: SecretStr | None = None
    zone: tzinfo = field(default_factory=lambda: ZoneInfo("Asia/Shanghai"))
    scene: Scene | None = None


@dataclass(slots=True)
class Reading:
    """One file being read: where the reader is, and what it left out.

    Args:
        told: what the owner said.
        size: bytes (or rows) to read in all; 0 where it is not known.
        done: of them, read.
        place: where the reader is, as `file:line`, `table row id` or `file message n`.
        skipped: left out, by reason.
        places: first places of every reason.
        owners: accounts the history names as its owner's, by how often.
        names: newest name by sender id.
    """

    told: Told = Told()
    size: int = 0
    done: int = 0
    place: str = ""
    skipped: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    owners: Counter[str] = field(default_factory=Counter)
    names: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, place: str = "") -> None:
        """Count something left out at `place`, else where the reader is."""
        self.skipped[reason] += 1
        kept = self.places.setdefault(reason, [])
        if len(kept) < PLACES_KEPT:
            kept.append(place or self.place)


@dataclass(frozen=True, slots=True)
class Source:
    """A format.

    Args:
        name: as `--format` takes it.
        title: as people call it.
        sniff: whether a path is of this format, from its first `HEAD_BYTES` (empty for a folder) and, where these do
            not tell, from the path; raises ImportFault when it cannot be read.
        read: messages and recalls in the file's order; `Reading` is kept up to date. Raises ImportFault only when
            nothing can be read at all: with what, where and the remedy.
    """

    name: str
    title: str
    sniff: Callable[[Path, bytes], bool]
    read: Callable[[Path, Reading], Iterator[Item]]


def unreadable(path: Path, error: OSError) -> ImportFault:
    """The fault of a file the system does not give."""
    return ImportFault(f"history file {str(path)!r} cannot be read: {error.strerror or error}")


def head(path: Path) -> bytes:
    """The first bytes of a file; none of a folder.

    Raises:
        ImportFault: it does not exist or cannot be read.
    """
    if not path.exists():
        raise ImportFault(f"history file {str(path)!r} does not exist")
    if path.is_dir():
        return b""
    try:
        with path.open("rb") as f:
            return f.read(HEAD_BYTES)
    except OSError as e:
        raise unreadable(path, e) from e
