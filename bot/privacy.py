"""/optout, /optin and /forgetme as the running twin does them: the archive, what is at hand, what is being said."""

import asyncio
import contextlib
from dataclasses import replace
from datetime import datetime

from loguru import logger

from bot import corrections, forgetting
from bot.errors import ArchiveBusy
from bot.forgetting import Forgotten
from bot.message import Scene
from bot.optouts import Why
from bot.threads import in_thread
from bot.twin import Twin


class Privacy:
    """What people wish of what is kept of them.

    Args:
        twin: the assembled twin.
        patience_s: seconds to wait for an archive that somebody else holds, to write it anew.
        later_s: seconds between later attempts.
    """

    def __init__(self, twin: Twin, patience_s: float = forgetting.PATIENCE_S, later_s: float = 60.0) -> None:
        self._twin = twin
        self._patience_s, self._later_s = patience_s, later_s
        self._compacting: asyncio.Task[None] | None = None

    def opt_out(self, person: str, by: str, moment: datetime) -> bool:
        """Learn nothing more from somebody, show the model none of their words, answer them no more.

        Args:
            person: QQ number.
            by: `self` or `owner`.
            moment: since when, by QQ's clock.

        Returns:
            False if they were out already.

        Raises:
            ArchiveBusy: it cannot be written down just now.
        """
        wishes = self._twin.archive.optouts
        out_by = wishes.out_by(person)
        if out_by is not None and (by == "owner" or out_by == "self"):
            return False
        if wishes.why(person) is not Why.FORGOTTEN:
            # First the words: a wish written down would not be asked for again where they could not be taken off.
            self._twin.archive.withhold(person, moment, wishes.back(person, moment))
            wishes.note(person, "out", by, moment)
        self._twin.presence.ignore(person)
        return out_by is None

    def opt_in(self, person: str, moment: datetime) -> bool:
        """Take an opt-out back; False if there is none. What was forgotten does not come back.

        Raises:
            ArchiveBusy: it cannot be written down just now.
        """
        if not self._twin.archive.optouts.is_out(person):
            return False
        self._twin.archive.optouts.note(person, "in", "self", moment)
        return True

    async def forget(self, person: str, by: str, moment: datetime) -> Forgotten:
        """Remove somebody from everything but trained weights; they are out from then on.

        Args:
            person: QQ number.
            by: `self` or `owner`.
            moment: what they said until then is never taken in again.

        Raises:
            ArchiveBusy: the archive cannot be written just now; doing it again later is the same.
            ArchiveError: it, or a file beside it, cannot be read or written.
        """
        archive, private = self._twin.archive, Scene("private", person)
        self.opt_out(person, by, moment)
        archive.flush()
        if archive.behind:
            raise ArchiveBusy("the archive cannot be written just now")
        corrected = corrections.forget(archive, person)
        found = await in_thread(forgetting.from_archive, archive, person, moment, by)
        # What came meanwhile waited in memory, or was written behind the removal: without words, but with the number.
        archive.reconsider()
        await in_thread(forgetting.from_archive, archive, person, moment, by)
        self._twin.presence.forget(private)
        for scene in map(Scene.parse, found.scenes):
            self._twin.memory.forget(scene)
            self._twin.presence.decide_anew(scene)  # what is prepared there was made of words that are gone
        await self._twin.engine.forget(lambda seat: seat.partition("|")[0] in found.scenes)
        try:
            try:
                files = await in_thread(forgetting.from_files, self._twin.settings)
            finally:
                stickers = self._twin.stickers.forget(person)
        finally:  # whatever stood in the way beside it, the archive's own file must not keep what was deleted
            compacted = await in_thread(forgetting.compacted, self._twin.archive, self._patience_s)
            if not compacted and self._compacting is None:
                self._compacting = asyncio.create_task(self._compact_later())
        logger.info("somebody was forgotten: {} messages, {} mentions", found.messages, found.mentions)
        return replace(
            found,
            corrections=corrected,
            stickers=stickers,
            files=files.files,
            written=files.written,
            compacted=compacted,
        )

    async def close(self) -> None:
        """Stop waiting for the archive; SQLite's log is written back when it is closed."""
        if self._compacting is not None:
            self._compacting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._compacting

    async def _compact_later(self) -> None:
        """Somebody reads or writes the archive, a night perhaps: until it can be written anew."""
        logger.warning("the archive is held; deleted words are zeros, its file is written anew as soon as it is free")
        done = False
        while not done:
            await asyncio.sleep(self._later_s)
            done = await in_thread(forgetting.compacted, self._twin.archive, self._patience_s)
        self._compacting = None
