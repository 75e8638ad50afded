"""What the records of every export have in common: times, ids, and the message made of them, or why there is none."""

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, tzinfo
from typing import Any, TypeVar

from bot.message import Message, Scene, Segment
from bot.segments import whole
from training.importers.source import Reading, Skipped

EARLIEST, LATEST = datetime(1999, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
"""QQ began in February 1999."""
RECALLED, SYSTEM, CALL, EMPTY = "a recalled message", "a system row", "a call", "an empty message"
_SECONDS_MAX, _FINER = 10**11, 3
_DIGITS_MAX = 18
SECONDS_REMEMBERED = 1000
"""Seconds of scenes in which messages that read alike are told apart."""
_WRITTEN = re.compile(
    r"\s*(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?(?:[T\s]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?)?"
    r"\s*(Z|[+-]\d{2}:?\d{2})?\s*"
)
_Record = TypeVar("_Record")


def each(records: Iterable[_Record], reading: Reading, make: Callable[[_Record], Message | None]) -> Iterator[Message]:
    """The messages of a file's records; what cannot be one is counted by its reason where the reader is.

    Args:
        records: as the file holds them.
        reading: where they come from.
        make: the message of one, None for what is neither a message nor a loss (a header); raises Skipped, or what
            values of an unexpected type raise.
    """
    for record in records:
        try:
            message = make(record)
        except Skipped as why:
            reading.skip(str(why))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
            reading.skip("a record of another shape")
        except RecursionError:
            reading.skip("nested too deeply")
        else:
            if message is not None:
                yield message


def moment(value: Any, zone: tzinfo) -> datetime:
    """A time as exports have it, aware UTC.

    Args:
        value: unix seconds, milliseconds, micro- or nanoseconds (told by their size), as a number or its digits; or a
            date and time as people and ISO 8601 write it.
        zone: of a time written without one.

    Raises:
        Skipped: there is none, or it lies outside 1999–2100.
    """
    if isinstance(value, str) and (written := _WRITTEN.fullmatch(value[:64])):
        year, month, day, hour, minute, second = (int(x or 0) for x in written.groups()[:6])
        offset = {None: "", "Z": "+00:00"}.get(written[7], written[7])
        try:
            naive = datetime(year, month, day, hour, minute, second)
            aware = naive.replace(tzinfo=zone) if not offset else datetime.fromisoformat(f"{naive}{offset}")
            time = aware.astimezone(UTC)
        except (ValueError, OverflowError) as e:
            raise Skipped("a time that is none") from e
    else:
        time = _unix(value)
    if not EARLIEST <= time < LATEST:
        raise Skipped("a time before 1999 or after 2100")
    return time


def _unix(value: Any) -> datetime:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
        for _ in range(_FINER):
            if abs(number) >= _SECONDS_MAX:
                number /= 1000
        return datetime.fromtimestamp(number, UTC)
    except (TypeError, ValueError, OverflowError, OSError) as e:
        raise Skipped("a time that is none") from e


def named(value: Any) -> str:
    """An id or a name as text; empty for what is neither text nor a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    if isinstance(value, int):
        return "" if value == 0 or abs(value) >= 10**40 else str(value)
    return whole(value).strip()


def number(value: Any) -> str:
    """A QQ number as text; empty for 0, which stands for one that is not known."""
    return named(value).lstrip("0")


def message(
    message_id: str, scene: Scene, sender_id: str, sender_name: str, time: datetime, text: str, *,
    reply_to: str | None = None, mentions: Iterable[str] = (), seq: Any = None, segments: Iterable[Segment] = (),
    scene_name: str = "",
) -> Message:  # fmt: skip
    """A message of an export: `text` is canonical, `seq` the running number in its scene where it is one.

    Raises:
        Skipped: it has no sender or no text.
    """
    if not sender_id:
        raise Skipped("a message without a sender")
    if not text:
        raise Skipped(EMPTY)
    digits = str(seq)
    running = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX else 0
    return Message(
        id=message_id, scene=scene, sender_id=sender_id, sender_name=sender_name, time=time, text=text,
        reply_to=reply_to or None, mentions=tuple(m for m in mentions if m), seq=running or None,
        segments=tuple(segments), scene_name=scene_name,
    )  # fmt: skip


class Ids:
    """Ids for messages whose file has none: a hash of scene, second, sender, text, and how many such came before.

    Exports that overlap give the same message the same id, whichever of the id-less formats they are of. A file's
    seconds may be out of order: those that were written to last are remembered.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[Scene, int], Counter[tuple[str, str]]] = OrderedDict()

    def of(self, scene: Scene, time: datetime, sender_id: str, text: str) -> str:
        """The id of the next message, in the file's order."""
        second = int(time.timestamp())
        seen = self._seen.setdefault((scene, second), Counter())
        self._seen.move_to_end((scene, second))
        if len(self._seen) > SECONDS_REMEMBERED:
            self._seen.popitem(last=False)
        seen[sender_id, text] += 1
        parts = (str(scene), str(second), sender_id, str(seen[sender_id, text]), text)
        digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=10)
        return f"x{digest.hexdigest()}"
