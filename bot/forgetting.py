"""Somebody asked to be forgotten: what goes from the archive, from the files beside it, and what cannot.

In the archive their messages become rows that say neither who nor what, so that the conversations of the others stay
cut where they were (and with them what is trained and what is held out); commands they typed, pokes, and the whole
private chat with them are deleted. In others' messages `@昵称` becomes `@某人`, and raw segments lose what bears their
number or quotes their words. Their number stands nowhere any more, but for its hash in `optouts`.

What people wrote about them, and what the twin said to them in a group, is not theirs and stays. So do versions that
were trained before: no weight can be told to be theirs; the next night, from scratch, makes one without them.
"""

import contextlib
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from loguru import logger
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from bot import blind
from bot.archive import Archive, short
from bot.config import Settings
from bot.errors import ArchiveBusy, ArchiveError
from bot.events import POKE_ID
from bot.intake import imports_table, same_table, without_file_name, without_people
from bot.message import Message, Origin
from bot.optouts import RELOAD_S, without_mention, without_quoted_words
from bot.rows import decisions_table, message_of, messages_table, scene_log_table

_EXCERPTS = ("samples.md", "said-*.json")
"""Answers beside the person's, and what every voice said, made to tell (training/likeness/voices.py): of a run."""
_NAMES_MAX = 100
PATIENCE_S = 5.0
"""Seconds to wait for an archive that others read: a daemon does for milliseconds, a night for minutes."""
UNTIL_READ_S = RELOAD_S + 0.5
"""Seconds after which a daemon that runs beside `twin forget` knows of it: until then it goes on storing."""
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What went.

    Args:
        messages: messages of theirs whose words went, commands with them.
        scenes: groups and private chats in which anything changed.
        private: messages of the private chat with them, both sides'.
        mentions: messages of others that mentioned or quoted them, and do no more.
        corrections: rows of corrections.
        stickers: files of the sticker library.
        files: files with excerpts of chats: blind tests, sample answers of runs.
        written: questions a language model wrote, of everybody.
        compacted: whether the archive's file was written anew.
    """

    messages: int = 0
    scenes: tuple[str, ...] = ()
    private: int = 0
    mentions: int = 0
    corrections: int = 0
    stickers: int = 0
    files: int = 0
    written: int = 0
    compacted: bool = False


def from_archive(archive: Archive, person: str, moment: datetime, by: str = "self") -> Forgotten:
    """Remove somebody from the archive; `compacted` then makes sure of the bytes. Doing it again is the same.

    May run in a thread beside the daemon: what waits in the archive's memory is not touched (`Archive.reconsider`), nor
    what of it was written but for this (`bot.corrections.forget`).

    Args:
        archive: the message store.
        person: QQ number.
        moment: what they said until then is never taken in again.
        by: who wished it, `self` or `owner`.

    Raises:
        ArchiveBusy: the archive cannot be written just now; nothing is removed then.
        ArchiveError: it cannot be read or written.
    """
    try:
        with archive.engine.begin() as connection:
            found = _Removal(connection, person).everything()
            archive.optouts.forget(connection, person, by, moment)
    except OperationalError as e:
        raise ArchiveBusy(f"the archive {archive.shown} is busy: {short(e)}") from e
    except SQLAlchemyError as e:
        raise ArchiveError(f"the archive {archive.shown} cannot be written: {short(e)}") from e
    archive.optouts.reload()
    return found


def compacted(archive: Archive, patience_s: float = PATIENCE_S) -> bool:
    """Write the archive's file anew, as soon as nobody else holds it; False if somebody did all the time."""
    give_up = time.monotonic() + patience_s
    while True:
        try:
            archive.compact()
            return True
        except ArchiveBusy as e:
            if time.monotonic() >= give_up:
                logger.info("{}", e)
                return False
            time.sleep(_POLL_S)


def from_files(settings: Settings) -> Forgotten:
    """Remove every excerpt of chats beside the archive that may hold somebody's words.

    Blind tests, sample answers and questions a language model wrote say no numbers, so all of them go; each is made
    anew by one command.

    Raises:
        ArchiveError: a file cannot be removed, or what the model wrote not be cleared; all the others are.
    """
    runs = settings.data / "runs"
    excerpts = [
        *(settings.data / blind.FOLDER).glob("*.json"), *(f for name in _EXCERPTS for f in runs.glob(f"*/*/{name}")),
    ]  # fmt: skip
    held: OSError | None = None
    for file in excerpts:
        try:
            file.unlink(missing_ok=True)
        except OSError as e:
            held = e
    written = _without_questions(settings.data / "cleaning.db")
    if held is not None:
        raise ArchiveError(
            f"{held.filename!r} cannot be removed ({held.strerror}); close what reads it, or give the twin the right to"
        ) from held
    return Forgotten(files=len(excerpts), written=written)


def _without_questions(file: Path) -> int:
    """Drop what a language model wrote by itself from what was said (training/verdicts.py); gives how many texts."""
    if not file.is_file():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as opened:
            opened.execute("PRAGMA secure_delete=ON")
            gone = opened.execute("DELETE FROM verdicts WHERE value LIKE '\"%'").rowcount
            opened.execute("VACUUM")
    except sqlite3.Error as e:
        raise ArchiveError(f"{str(file)!r} cannot be cleared of written questions ({e}); delete the file") from e
    return gone


def left(settings: Settings) -> dict[str, list[Path]]:
    """What may still hold something of somebody, for the owner: `versions` that were trained, and unfinished `runs`."""
    versions = sorted(p for p in (settings.data / "personas").glob("*/versions/*") if p.is_dir())
    return {"versions": versions, "runs": sorted(p for p in (settings.data / "runs").glob("*/*") if p.is_dir())}


class _Removal:
    """One person's removal, within a transaction."""

    def __init__(self, connection: sa.Connection, person: str) -> None:
        self._connection, self._person = connection, person
        self._private = f"private:{person}"
        self._touched: set[str] = set()
        c = messages_table.c
        self._theirs = sa.and_(c.sender_id == person, c.origin == Origin.HUMAN.value)
        self._whole = re.compile(rf"(?<!\w){re.escape(person)}(?!\w)")

    def everything(self) -> Forgotten:
        """Remove all of it. First everything is read: the first change locks the others out until the last one."""
        c = messages_table.c
        scenes = set(self._connection.scalars(sa.select(c.scene).where(c.sender_id == self._person).distinct()))
        own, names = self._count(self._theirs), self._names()
        others = self._others(scenes, names)
        # The account may be theirs: then its rows without a name are the program's own lines.
        account = self._count(sa.and_(c.sender_id == self._person, c.origin == Origin.TWIN.value)) > 0
        self._update(others, "text", "mentions", "segments")
        private = self._private_chat()
        commands = self._system_rows(account=account)
        self._own_rows()
        self._elsewhere()
        self._file_names(names)
        return Forgotten(own + commands, tuple(sorted({*scenes, *self._touched})), private, len(others))

    def _names(self) -> list[str]:
        """What they were called, newest first."""
        c = messages_table.c
        query = (
            sa.select(c.sender_name)
            .where(c.sender_id == self._person, c.sender_name != "", c.origin != Origin.TWIN.value)
            .group_by(c.sender_name).order_by(sa.func.max(c.time_ms).desc()).limit(_NAMES_MAX)
        )  # fmt: skip
        return list(self._connection.scalars(query))

    def _count(self, where: sa.ColumnElement[bool]) -> int:
        return int(
            self._connection.execute(sa.select(sa.func.count()).select_from(messages_table).where(where)).scalar_one()
        )

    def _private_chat(self) -> int:
        """The private chat with them, both sides, and everything noted of it."""
        for table in (decisions_table, scene_log_table, same_table):
            self._connection.execute(sa.delete(table).where(table.c.scene == self._private))
        return self._connection.execute(
            sa.delete(messages_table).where(messages_table.c.scene == self._private)
        ).rowcount

    def _system_rows(self, *, account: bool) -> int:
        """Commands they typed go; the program's own and others' rows lose the words where they say their number."""
        c = messages_table.c
        system = c.origin == Origin.SYSTEM.value
        typed = [c.sender_id == self._person, system, *([c.sender_name != ""] if account else [])]
        gone = self._connection.execute(sa.delete(messages_table).where(*typed)).rowcount
        rows = self._connection.execute(
            sa.select(c.pk, c.text).where(system, c.text.contains(self._person, autoescape=True))
        ).all()
        self._update(
            [{"of": pk, "text": "", "segments": []} for pk, text in map(tuple, rows) if self._whole.search(text)],
            "text", "segments",
        )  # fmt: skip
        return gone

    def _own_rows(self) -> None:
        """Their messages without words and without them; pokes, whose ids say who poked whom, not at all."""
        c = messages_table.c
        self._connection.execute(sa.delete(messages_table).where(self._poked(c.message_id)))
        blank: dict[str, Any] = {
            "sender_id": "", "sender_name": "", "text": "", "reply_to": None, "mentions": [], "segments": [],
            "recalled": True,
        }  # fmt: skip
        self._connection.execute(sa.update(messages_table).where(self._theirs).values(blank))

    def _others(self, scenes: set[str], names: list[str]) -> list[dict[str, Any]]:
        """Others' messages that mention or quote them, as they are to be.

        They say `@某人`: by number anywhere, by name alone where nobody else there bears it. A quote names the message
        alone: some clients put its words into it.
        """
        alone = self._names_alone(scenes, names)
        changed = []
        for pk, message, quotes in self._candidates(scenes, names):
            bare = replace(message, segments=without_quoted_words(message.segments)) if quotes else message
            called = names if self._person in message.mentions else alone[str(message.scene)]
            after = without_mention(bare, self._person, called)
            if quotes or after != message:
                self._touched.add(str(message.scene))  # a quote's words were shown to the model
            if after != message:
                cells = {"text": after.text, "mentions": list(after.mentions), "segments": list(after.segments)}
                changed.append({"of": pk, **cells})
        return changed

    def _candidates(self, scenes: set[str], names: list[str]) -> Iterator[tuple[int, Message, bool]]:
        """Messages that may mention or quote them, and whether they do quote."""
        c, own = messages_table.c, messages_table.alias()
        quoted = sa.exists().where(
            own.c.scene == c.scene, own.c.message_id == c.reply_to, own.c.sender_id == self._person,
            own.c.origin == Origin.HUMAN.value,
        )  # fmt: skip
        number = [
            sa.cast(column, sa.Text).contains(self._person, autoescape=True) for column in (c.mentions, c.segments)
        ]
        named = [c.text.contains(f"@{name}", autoescape=True) for name in (self._person, *names)]
        by_name = sa.and_(c.scene.in_(sorted(scenes)), sa.or_(*named))
        elses = (sa.not_(self._theirs), c.scene != self._private)
        query = sa.select(messages_table, quoted.label("quotes")).where(*elses, sa.or_(quoted, *number, by_name))
        for row in self._connection.execute(query).all():
            yield row.pk, message_of(row), bool(row.quotes)

    def _names_alone(self, scenes: set[str], names: list[str]) -> dict[str, list[str]]:
        """Of each scene, the names that nobody but them has borne there."""
        c = messages_table.c
        others = self._connection.execute(
            sa.select(c.scene, c.sender_name).where(
                c.scene.in_(sorted(scenes)), c.sender_name.in_(names), c.sender_id != self._person
            ).distinct()
        )  # fmt: skip
        borne = {tuple(row) for row in others}
        found: dict[str, list[str]] = defaultdict(list)
        return found | {scene: [name for name in names if (scene, name) not in borne] for scene in scenes}

    def _elsewhere(self) -> None:
        """Their number in ids of pokes, in what was noted of windows and of imports."""
        pokes = self._poked(decisions_table.c.message_id)
        self._connection.execute(sa.update(decisions_table).where(pokes).values(message_id=""))
        of_same = sa.or_(self._poked(same_table.c.message_id), self._poked(same_table.c.stored_as))
        self._connection.execute(sa.delete(same_table).where(of_same))
        self._connection.execute(sa.delete(scene_log_table).where(self._poked(scene_log_table.c.value)))
        t = imports_table.c
        for pk, summary in map(tuple, self._connection.execute(sa.select(t.pk, t.summary)).all()):
            bare = without_people(summary, lambda who: who == self._person)
            if bare != summary:
                self._connection.execute(sa.update(imports_table).where(t.pk == pk).values(summary=bare))

    def _file_names(self, names: list[str]) -> None:
        """Their number and names in those of imported files."""
        said = re.compile("|".join([rf"(?<!\d){re.escape(self._person)}(?!\d)", *map(re.escape, names)]))
        for table in (messages_table, same_table, imports_table):
            c = table.c.source
            for source in list(self._connection.scalars(sa.select(c).where(c.like("import:%")).distinct())):
                if said.search(source.split(":", 2)[2]):
                    bare = without_file_name(source)
                    self._connection.execute(sa.update(table).where(c == source).values(source=bare))

    def _poked(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Whether an id is of a poke by or at them: it says who poked whom."""
        who = _escaped(self._person)
        return sa.or_(*(column.like(f"{POKE_ID}%-{who}{end}", escape="\\") for end in ("", "-%")))

    def _update(self, rows: list[dict[str, Any]], *columns: str) -> None:
        if rows:
            statement = sa.update(messages_table).where(messages_table.c.pk == sa.bindparam("of"))
            self._connection.execute(statement.values({n: sa.bindparam(n) for n in columns}), rows)


def _escaped(text: str) -> str:
    """A text as itself within a LIKE pattern."""
    return re.sub(r"([\\%_])", r"\\\1", text)
