"""What the owner says of the twin's answers: not like me, should have stayed silent, taken back within a minute.

A correction is a row of the scene's log, so that it lies beside the words it is about: which message was decided on,
the answer as it was sent, and what should have been said. The newest row of a message counts; `training.preferences`
makes training pairs of them, `bot.drift` counts them.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from bot.archive import Archive
from bot.message import Message, Origin, Scene

KIND = "correction"
"""Scene-log kind of a correction."""
RECALL_S = 60.0
"""Seconds after an answer in which taking it back means it was wrong; QQ itself lets nobody take back after 120."""
_RECENT = 200


class How(StrEnum):
    """How an answer was corrected."""

    UNLIKE = "unlike"
    HUSH = "hush"
    RECALLED = "recalled"


@dataclass(frozen=True, slots=True)
class Correction:
    """One corrected answer.

    Args:
        scene: where.
        on: id of the message that was decided on: the last one of the burst.
        to: QQ number of who sent that.
        said: ids of the answer's bubbles.
        rejected: their words as sent.
        wanted: the bubbles that should have been said; empty: silence; None: nobody said what.
        how: how it was corrected.
        by: QQ number of who corrected it.
        told: id of the command that did; None for a recall.
        persona: who had answered.
        version: its version, None for the bare base.
        time: when, aware UTC.
    """

    scene: Scene
    on: str
    to: str
    said: tuple[str, ...]
    rejected: tuple[str, ...]
    wanted: tuple[str, ...] | None
    how: How
    by: str
    told: str | None
    persona: str
    version: str | None
    time: datetime


def answered(archive: Archive, scene: Scene, quoted: str | None) -> Message | None:
    """The bubble of the twin's that a correction is about: the quoted one, else the newest there; None without any.

    Raises:
        ArchiveError: the store cannot be read.
    """
    if quoted is not None:
        found = archive.get(scene, quoted)
        return found if found is not None and found.origin is Origin.TWIN else None
    newest = reversed(archive.window(scene, _RECENT))
    return next((m for m in newest if m.origin is Origin.TWIN), None)


def correct(
    archive: Archive, bubble: Message, how: How, wanted: tuple[str, ...] | None, *, by: str, told: str | None,
    persona: str, now: datetime,
) -> Correction | None:  # fmt: skip
    """Keep a correction of an answer, in place of an earlier one of the same answer.

    Args:
        archive: the message store.
        bubble: any bubble of the answer.
        how: how it is corrected.
        wanted: what should have been said; of a recall it is worked out from what was left.
        by: QQ number of who corrects.
        told: id of the command, None for a recall.
        persona: who answers in that scene, where the decision itself is not stored yet.
        now: when, aware UTC.

    Returns:
        None where nothing is left of the answer, or of what it was to.

    Raises:
        ArchiveError: the store cannot be read.
    """
    scene = bubble.scene
    decision = archive.decision_on(scene, bubble.id)
    on = archive.get(scene, decision.message_id) if decision is not None else None
    if decision is None or on is None or on.time > bubble.time:  # its own decision is stored when the answer ends
        decision, on = None, _before(archive, bubble)
    if on is None:
        return None
    before = next((c for c in current(archive, scene) if c.on == on.id), None)
    words = dict(zip(before.said, before.rejected, strict=True)) if before else {}
    words |= {m.id: m.text for m in archive.answer(bubble) if m.text}
    if not words:
        return None
    if how is How.RECALLED:
        if before is not None and before.how is not How.RECALLED:
            return before  # it was said already what should have been
        left = [m.text for m in archive.answer(bubble) if m.text and m.id != bubble.id]
        wanted = tuple(left) or None
    correction = Correction(
        scene, on.id, on.sender_id, tuple(words), tuple(words.values()), wanted, how, by, told,
        decision.persona if decision else persona, decision.version if decision else None, now,
    )  # fmt: skip
    archive.note(scene, KIND, _written(correction), now)
    return correction


def recalled(archive: Archive, scene: Scene, message_id: str, *, by: str, persona: str, now: datetime) -> None:
    """A message is being taken back by the account or an owner; to be called before its words are forgotten.

    An answer taken back soon after it was sent is a correction; a command taken back takes its correction with it.

    Raises:
        ArchiveError: the store cannot be read.
    """
    message = archive.get(scene, message_id)
    if message is None or message.recalled:
        return
    if message.origin is Origin.SYSTEM:
        for correction in current(archive, scene):
            if correction.told == message_id:
                archive.note(scene, KIND, json.dumps({"on": correction.on, "withdrawn": True}), now)
    elif message.origin is Origin.TWIN:
        decision = archive.decision_on(scene, message_id)
        # All bubbles bear the time of the first; the decision is stored when the last was sent.
        ended = max(message.time, decision.time) if decision is not None else message.time
        if now - ended <= timedelta(seconds=RECALL_S + 1):  # OneBot's seconds are cut
            correct(archive, message, How.RECALLED, None, by=by, told=None, persona=persona, now=now)


def current(archive: Archive, scene: Scene | None = None, until: datetime | None = None) -> list[Correction]:
    """Every correction that counts, oldest first.

    Args:
        archive: the message store.
        scene: only there; None: everywhere.
        until: as it was at that moment; None: now.

    Raises:
        ArchiveError: the store cannot be read.
    """
    newest: dict[tuple[Scene, str], Correction | None] = {}
    for place, time, value in archive.noted(KIND, scene):
        if until is not None and time > until:
            continue
        row = json.loads(value)
        newest.pop((place, row["on"]), None)
        newest[place, row["on"]] = None if row.get("withdrawn") else _read(place, time, row)
    return [correction for correction in newest.values() if correction is not None]


def forget(archive: Archive, person: str) -> int:
    """Remove for good what corrections hold of somebody: those they made, and those of answers to them.

    Args:
        archive: the message store.
        person: QQ number.

    Returns:
        How many rows were removed.

    Raises:
        ArchiveError: the store cannot be written.
    """
    rows = [(scene, value, json.loads(value)) for scene, _, value in archive.noted(KIND)]
    theirs = {
        (scene, row["on"])
        for scene, _, row in rows
        if person in (row.get("by"), row.get("to")) or (scene.private and scene.id == person)
    }
    return archive.unnote(KIND, [(scene, value) for scene, value, row in rows if (scene, row["on"]) in theirs])


def _before(archive: Archive, bubble: Message) -> Message | None:
    """The last message of others before an answer."""
    stored = archive.window(bubble.scene, _RECENT)
    place = next((n for n, m in enumerate(stored) if m.id == bubble.id), 0)
    return next((m for m in reversed(stored[:place]) if m.origin is not Origin.TWIN), None)


def _written(correction: Correction) -> str:
    c = correction
    row: dict[str, Any] = {
        "on": c.on, "to": c.to, "said": c.said, "rejected": c.rejected, "wanted": c.wanted, "how": c.how.value,
        "by": c.by, "told": c.told, "persona": c.persona, "version": c.version,
    }  # fmt: skip
    return json.dumps(row, ensure_ascii=False)


def _read(scene: Scene, time: datetime, row: dict[str, Any]) -> Correction:
    wanted = row["wanted"]
    return Correction(
        scene, row["on"], row["to"], tuple(row["said"]), tuple(row["rejected"]),
        None if wanted is None else tuple(wanted), How(row["how"]), row["by"], row["told"], row["persona"],
        row["version"], time,
    )  # fmt: skip


def bubbles_of(words: str) -> tuple[str, ...]:
    """What was typed behind a command as bubbles: a line each."""
    return tuple(line for line in (part.strip() for part in words.split("↵")) if line)
