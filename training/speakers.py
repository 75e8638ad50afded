"""Who speaks in histories, looked up before anything of them is imported."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bot.errors import ImportFault
from bot.message import Message
from training.importers.source import Reading, Source, Told

TOLD = 5
"""People named to choose from."""


def require(histories: Iterable[tuple[Path, Source]], told: Told) -> None:
    """Make sure that the owner is somebody there. Reads up to the first of the owner's messages.

    Args:
        histories: paths with their formats.
        told: with `me`.

    Raises:
        ImportFault: nobody of that id speaks in any of them; it says who does.
    """
    counted, names = Counter[str](), dict[str, str]()
    for path, source in histories:
        reading = Reading(told)
        with suppress(ImportFault):  # which is told when it is imported
            for item in source.read(path, reading):
                if not isinstance(item, Message):
                    continue
                if item.sender_id == told.me:
                    return
                counted[item.sender_id] += 1
                if item.sender_name:
                    names[item.sender_id] = item.sender_name
        if told.me in reading.owners:
            return
    if counted:
        there = in_words((who, names.get(who, ""), n) for who, n in counted.most_common(TOLD))
        raise ImportFault(f"--me {told.me!r}: nobody of that id speaks there; these do: {there}")


def in_words(people: Iterable[tuple[str, str, int]]) -> str:
    """People as (id, name, messages), with the ids that `--people` and `--me` take; a name that is the id once."""
    return ", ".join(f"{' '.join(filter(None, dict.fromkeys((who, name))))} ({n})" for who, name, n in people)


def many(count: int, what: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
