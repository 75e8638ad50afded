"""What a run stands on: its folder, and what was learned at its snapshot, as corpus and as windows of tokens."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from bot.archive import Archive
from bot.config import Settings
from bot.errors import TrainingError
from bot.llama import Model
from bot.persona import Base, Personas
from bot.prompt import FORMATS, ChatFormat
from bot.stickers import names as sticker_names
from training import choices, corpus, device, modelclean, runs, samples, sets
from training.state import read_state, write_state

SNAPSHOT_FILE = "snapshot.json"
"""What a run learns from; only a whole night's says `night`, and nothing else is gone on with as one."""
DONE_FILE = "done.json"
"""How a night ended; without it the night is unfinished. plugins/retrain/schedule.py looks for both."""
Progress = Callable[[str, int, int, str], None]
"""(step, done, total, words)."""


class Groundwork:
    """One persona's run, before anything is trained.

    Args:
        settings: bot.toml.
        persona: whose.
        base_path: the base GGUF.
        base_sha256: its hash.
        progress: told of every step.
        run: a run folder to work in; None: the unfinished one of the same kind (night or training), else a new one.

    Raises:
        PersonaError: there is no such persona.
    """

    def __init__(
        self, settings: Settings, persona: str, base_path: Path, base_sha256: str, progress: Progress, run: Path | None
    ) -> None:
        self.settings = settings
        self.personas = Personas(settings.data / "personas", base_sha256)
        self.persona = self.personas.find(persona)
        self.base_path, self.base_sha256 = base_path, base_sha256
        self.progress = progress
        self._run = run
        self._whole = False
        self._goes_on = False

    @cached_property
    def folder(self) -> Path:
        """The run folder, its snapshot taken."""
        if self._run is not None:
            return self._given(self._run)
        unfinished = self._unfinished()
        if unfinished is not None:
            self._goes_on = True
            return unfinished
        return self.new_folder()

    def new_folder(self) -> Path:
        """A fresh run folder, its snapshot taken."""
        now = datetime.now(UTC)
        while (folder := self._runs / now.strftime("%Y%m%d-%H%M%S")).exists():
            now += timedelta(seconds=1)
        snapshot = self._take_snapshot(now)
        folder.mkdir(parents=True)
        write_state(folder / SNAPSHOT_FILE, snapshot)
        return folder

    def _given(self, folder: Path) -> Path:
        """A run folder given by hand, if it is one, of our persona and of our base."""
        snapshot = read_state(folder / SNAPSHOT_FILE)
        if snapshot is None:
            raise TrainingError(f"{str(folder)!r} is no run folder (it has no readable {SNAPSHOT_FILE})")
        if (whose := snapshot.get("persona", self.persona.name)) != self.persona.name:
            raise TrainingError(f"run {folder.name!r} is of persona {whose!r}, not of {self.persona.name!r}")
        if (theirs := str(snapshot.get("base_sha256"))) != self.base_sha256:
            raise TrainingError(
                f"run {folder.name!r} was trained on the base {theirs[:12]}…, and [engine] base is "
                f"{self.base_path.name!r} ({self.base_sha256[:12]}…); set that base, or train again"
            )
        return folder

    @cached_property
    def snapshot(self) -> dict[str, Any]:
        """What is learned, and when that was settled."""
        found = read_state(self.folder / SNAPSHOT_FILE)
        if found is None:
            raise TrainingError(f"run {self.folder.name!r} has no readable {SNAPSHOT_FILE}; remove the folder")
        return found

    @property
    def told(self) -> str:
        """Which run this is, and what it learns, in a line."""
        until = datetime.fromisoformat(self.snapshot["until"])
        anew = "; it was broken off and goes on" if self._goes_on else ""
        return f"run {self.folder.name} learns what came in until {until.astimezone():%Y-%m-%d %H:%M}{anew}"

    def _take_snapshot(self, now: datetime) -> dict[str, Any]:
        newest = self._newest_since(now)
        waiting = self._own_messages(newest) if newest else 0
        return {
            "until": now.isoformat(), "newest": newest.isoformat() if newest else None,
            "new_messages": self._new_messages(), "own_messages": self._own_messages() - waiting,
            "persona": self.persona.name, "base_sha256": self.base_sha256, "night": self._whole,
            "sets": sets.stored(self._sets),
            "stickers": dict(sticker_names(self.settings)),
        }  # fmt: skip

    @cached_property
    def learned(self) -> corpus.Corpus:
        """What the archive and the persona's training sets taught at the snapshot."""
        until = datetime.fromisoformat(self.snapshot["until"])
        archive = Archive(self.settings.archive_url)
        try:
            spec = self.persona.spec
            built = corpus.build(
                archive, spec.people, spec.names, self.settings.conversation, until, self.settings.corpus,
                self.snapshot.get("stickers", {}),
            )  # fmt: skip
        finally:
            archive.close()
        built = modelclean.cleaned(built, self.settings)
        there = set(sets.stored(self._sets))
        names = [name for name in self.snapshot.get("sets", []) if name in there]
        return sets.joined(built, self._sets, names, self.settings.training.max_set_dialogues, self.settings.corpus)

    def _newest_since(self, now: datetime) -> datetime | None:
        hours = self.settings.gate.newest_h
        if not hours or self.persona.version is None:
            return None
        since = now - timedelta(hours=hours)
        return max(since, self._learned_until or since)

    @property
    def _newest(self) -> datetime | None:
        """Since when conversations wait for the next night; None where nothing serves to compare on them."""
        since = self.snapshot.get("newest")
        return datetime.fromisoformat(since) if since else None

    @cached_property
    def windows(self) -> list[samples.Window]:
        """The corpus as windows of the base's tokens, with persona.toml's system prompt."""
        return self._rendered(self.persona.spec.system_prompt)

    def windows_for(self, system_prompt: str) -> list[samples.Window]:
        """The corpus as a version reads it that was trained, and answers, with another system prompt."""
        same = system_prompt == self.persona.spec.system_prompt
        return self.windows if same else self._rendered(system_prompt)

    def _rendered(self, system_prompt: str) -> list[samples.Window]:
        model = Model(self.base_path, 0, vocab_only=True)
        try:
            self.__dict__["format"], self.__dict__["architecture"] = model.format, model.architecture
            return samples.windows(self.learned, model, model.format, system_prompt, self._window_max, self._newest)
        finally:
            model.close()

    @cached_property
    def format(self) -> ChatFormat:
        """The base's chat format."""
        _ = self.windows
        return FORMATS[self.__dict__["format"].name]

    @cached_property
    def architecture(self) -> str:
        """GGUF's `general.architecture`."""
        _ = self.windows
        return str(self.__dict__["architecture"])

    @property
    def _window_max(self) -> int:
        return choices.window(self.settings.training, device.here())

    @property
    def _sets(self) -> Path:
        return self.persona.folder / sets.FOLDER

    @property
    def _runs(self) -> Path:
        return self.settings.data / "runs" / self.persona.name

    def _unfinished(self) -> Path | None:
        """The newest run of this kind (night or training), if it was broken off and its base is still ours.

        A training without a checkpoint is removed: it would begin anew on what is no longer all.
        """
        end = DONE_FILE if self._whole else runs.RECORD_FILE
        for folder in sorted(self._runs.glob("*/"), reverse=True):
            snapshot = read_state(folder / SNAPSHOT_FILE)
            if snapshot is None or snapshot.get("night", False) != self._whole:
                continue
            if (folder / end).exists():
                return None
            if snapshot.get("base_sha256") == self.base_sha256:
                if self._whole or runs.last_checkpoint(folder) is not None:
                    return folder
                shutil.rmtree(folder)  # nothing is lost with it, and its snapshot would hide what came in since
                return None
            if self._whole:  # nothing will ever go on with it
                write_state(folder / DONE_FILE, {"outcome": "abandoned", "summary": "the base was changed"})
            return None
        return None

    def _new_messages(self) -> int:
        """The person's messages and training sets' answers that the serving version has not learned from."""
        learned = self.persona.version.manifest.corpus if self.persona.version else {}
        known_sets = learned.get("set_names", [])
        in_sets = sets.answers_in(self._sets, [name for name in sets.stored(self._sets) if name not in known_sets])
        known = learned.get("own_messages")
        newest = self._newest_since(datetime.now(UTC))
        waiting = self._own_messages(newest) if newest else 0
        later = max(0, self._own_messages(self._learned_until) - waiting)
        # Imports of older history add to the total alone; recalls take from it, but not from what was said since.
        return in_sets + (later if known is None else max(later, self._own_messages() - waiting - int(known)))

    @property
    def _learned_until(self) -> datetime | None:
        """The moment the serving version learned up to: its newest day waited; None of an imported one, or of none."""
        learned = self.persona.version.manifest.corpus if self.persona.version else {}
        until = learned.get("learned_until") or learned.get("until")
        return datetime.fromisoformat(until) if until else None

    def _own_messages(self, after: datetime | None = None) -> int:
        archive = Archive(self.settings.archive_url)
        try:
            return archive.count(self.persona.spec.people, after)
        finally:
            archive.close()

    @property
    def gguf_base(self) -> Base:
        """The base, as manifests and LoRAs name it."""
        return Base(file=self.base_path.name, sha256=self.base_sha256, architecture=self.architecture)
