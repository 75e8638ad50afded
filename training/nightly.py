"""The night: snapshot → corpus → train → export → parity → evaluate → gate → publish → report.

Each step leaves its result in the run folder beside the next one's input, so a killed night goes on where it stopped.
Refused by the gate or failed: the current version stays, and the owner is told why. Runs in a process of its own.
"""

import hashlib
import math
import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from loguru import logger
from pydantic import ValidationError

from bot import corrections
from bot.archive import Archive
from bot.checksum import digest, sha256
from bot.config import Training
from bot.errors import ExportError, TrainingError, TwinError
from bot.llama import Model
from bot.persona import BY_HAND, LORA_FILE, MANIFEST_FILE, Calibration, Manifest, Version, deciding
from bot.prompt import FORMATS, ChatFormat, Piece
from bot.scorer import Scorer
from export import lora, merged, parity, proof, reference
from training import (
    aligning,
    answers,
    base,
    corpus,
    device,
    dryrun,
    evaluate,
    gate,
    general,
    precision,
    preferences,
    qlora,
    report,
    runs,
    samples,
    selection,
    targets,
    watch,
    world,
)
from training.groundwork import DONE_FILE, Groundwork
from training.hf import HFTokenizer
from training.likeness import assessment, silence, use
from training.likeness.assessment import Likeness
from training.likeness.places import Stage, Voice
from training.likeness.voices import Voices
from training.lock import one_at_a_time, sigterm_raises
from training.state import read_state, write_state

SAMPLES = 3
"""Answers shown side by side."""
VOCABULARY_PIECES = 500
"""Pieces of text that must have the same tokens in checkpoint and GGUF before anything is trained; parity reads all."""
GREEDY_PROMPTS = 5
"""Answers that trained and served model write greedily, to be shown side by side."""
REPORT_FILE = "report.md"
SAMPLES_FILE = "samples.md"
"""Sample answers beside the person's: chat text, so it stays in the run and is no part of the version, which may be
given away."""
_EXPORT_FILE, _PROOF_FILE = "export.json", "parity.json"
_PROVEN_BY = ("llama-cpp-python", "transformers", "torch", "peft")
"""Libraries that a kept proof is of."""
ATTEMPTS_FILE = "attempts.json"
"""What ended each attempt of a night, and whether one is under way: one that a start finds so was killed."""
ATTEMPTS_MAX = 3
"""A night that failed or was killed this often is given up, so that a broken step does not run for ever."""
_KILLED = "killed"
PARITY_WINDOWS = 64
"""Held-out windows that parity reads at most: transformers reads them in float32 on the processor, and the noise that
its limits allow for is small by then (2,000 heard tokens and as many labels). The gate reads all of them."""
HEARD_TOKENS = 32
"""Tokens of others' words a window on which single probabilities are compared, too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a night ended.

    Args:
        kind: `published`, `refused` (by the gate), `skipped` (too little new) or `failed`.
        version: the version made, None when none was.
        summary: what the owner is told, in Chinese.
    """

    kind: str
    version: str | None
    summary: str


class Night(Groundwork):
    """One persona's night, or single steps of it, over its `Groundwork`."""

    deepspeed: Path | None = None
    """A DeepSpeed configuration to train with."""

    # -- the whole night --------------------------------------------------------------------------

    def run(self, *, force: bool = False) -> Outcome:
        """All steps; what an earlier attempt finished is not done again.

        An attempt that ends without a word (SIGKILL, power) counts as a failed one. SIGTERM, as /train cancel sends it,
        does not, unless the process is killed before it can write that down (10 s in plugins/retrain, at once on
        Windows).

        Args:
            force: also with too few new messages.

        Raises:
            TrainingError: another night runs.
        """
        with one_at_a_time(self.settings.data / "runs" / "night.lock"):
            self._whole = True
            try:
                new = self._new_messages()
                if not force and self._unfinished() is None and new < self.settings.retrain.min_new_messages:
                    return Outcome("skipped", None, report.skipped(self.persona.spec, new, self.settings.retrain))
                with sigterm_raises():
                    return self._steps()
            except (KeyboardInterrupt, SystemExit):
                self._stopped()
                raise
            except TwinError as e:
                logger.error("the night failed: {}", e)
                return self._failed(e)
            except Exception as e:  # noqa: BLE001 - the night's edge: a failed attempt is counted, whatever failed
                reason = _reason(e)
                logger.error("the night failed: {}\n{}", reason, "".join(traceback.format_tb(e.__traceback__)))
                return self._failed(TrainingError(reason))

    def _steps(self) -> Outcome:
        published = self._published()
        if published is not None:
            return self._done(published)
        given_up = self._begin()
        if given_up is not None:
            return self._done(given_up)
        self._refuse_what_cannot_serve()
        self.train()
        if self._learned_nothing:
            return self._done(Outcome("skipped", None, report.no_better(self.persona.spec)))
        self.export()
        proof = self.prove()
        figures = self.measure()
        likeness = self.likeness(figures)
        verdict = gate.verdict(
            figures.new, figures.serving, figures.bare, proof.passed, self._answers(), likeness, self.settings.gate,
            went_back=self._went_back(), behind=self._behind,
        )  # fmt: skip
        manifest = self._manifest(proof, figures, verdict)
        serving = self.persona.version.manifest if self.persona.version else None
        text = report.markdown(manifest, verdict, serving, self._arrived)
        (self.folder / REPORT_FILE).write_text(text, "utf-8")
        (self.folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1), "utf-8")
        kind = "published" if verdict.passed else "refused"
        result = self._result()
        shown = answers.spread(self._voices.samples(self._voice), SAMPLES)
        (self.folder / SAMPLES_FILE).write_text(report.samples(shown), "utf-8")
        outcome = Outcome(kind, manifest.version, report.summary(manifest, verdict, serving, self._arrived))
        if verdict.passed:
            self.progress("publish", 0, 0, "")
            write_state(self.folder / "verdict.json", {"summary": outcome.summary})
            self.personas.publish(self.persona.name, result)
        return self._done(outcome)

    @property
    def _behind(self) -> float:
        """What the serving version's own verdict said of its distance to the best before it."""
        version = self.persona.version
        return 0.0 if version is None else float(version.manifest.gate.get("behind", 0.0))

    def _went_back(self) -> gate.Fault | None:
        """Whether it is what was rolled back before, and by whom."""
        name = self.persona.name
        same = self.personas.gone_back(name, self.folder.name, sha256(self.export()))
        if same is None:
            return None
        by_hand = self.personas.withdrawn(name)[same].get("why") == BY_HAND
        return gate.Fault.TAKEN_BACK if by_hand else gate.Fault.WENT_BACK

    @property
    def _learned_nothing(self) -> bool:
        """Whether the LoRA is the serving version's own: no step of going on made it better, nor did a correction."""
        record = read_state(self.folder / runs.RECORD_FILE) or {}
        preferred = read_state(self.folder / aligning.RECORD_FILE) or {}
        return record.get("best_step") == 0 and preferred.get("outcome") != "kept"

    def _refuse_what_cannot_serve(self) -> None:
        """Tell before hours of training what would be refused after them."""
        if self.persona.version is not None:
            self._weights(self.persona.version)  # what cannot be compared
        if (why := targets.cannot_serve(self.settings.training)) is not None:
            raise TrainingError(why)

    def _published(self) -> Outcome | None:
        """The end of a night that was killed after its version became current: it is not judged against itself."""
        name = self.folder.name
        if self.persona.version is None or self.persona.version.name != name:
            return None
        kept = read_state(self.folder / "verdict.json") or {}
        return Outcome("published", name, str(kept.get("summary", f"版本 {name} 训练好了，已经换上")))

    def _begin(self) -> Outcome | None:
        """Write down that an attempt is under way; the end of the night instead when too many were killed."""
        attempts = self._attempts()
        if (read_state(self.folder / ATTEMPTS_FILE) or {}).get("under_way"):
            attempts = [*attempts, _KILLED]
            logger.error("attempt {} of the night was killed (out of memory, or the machine went down)", len(attempts))
        self._note_attempts(attempts, under_way=len(attempts) < ATTEMPTS_MAX)
        if len(attempts) < ATTEMPTS_MAX:
            return None
        return Outcome("failed", None, report.killed(self.persona.spec, len(attempts)))

    def _stopped(self) -> None:
        """Somebody stopped the night: no attempt failed."""
        if "folder" in self.__dict__:
            with suppress(OSError):
                self._note_attempts(self._attempts(), under_way=False)

    def _attempts(self) -> list[str]:
        """What ended the attempts before this one."""
        return [str(e) for e in (read_state(self.folder / ATTEMPTS_FILE) or {}).get("errors", [])]

    def _note_attempts(self, errors: list[str], *, under_way: bool) -> None:
        write_state(self.folder / ATTEMPTS_FILE, {"errors": errors, "under_way": under_way})

    # -- steps ------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Train; gives the run folder."""
        self.progress("snapshot", 0, 0, self.told)
        settings = self.settings.training
        windows = self.windows
        self._refuse_another_vocabulary()
        if self._whole and self.architecture not in lora.ARCHITECTURES:
            raise TrainingError(
                f"base {self.base_path.name!r} is of architecture {self.architecture!r}, of which no LoRA can be "
                f"served; choose one of {', '.join(lora.ARCHITECTURES)}"
            )
        options = self._options()
        if self._whole:
            reference.require_memory(self.checkpoint)

        def told(p: watch.Progress) -> None:
            words = f"loss {p.loss:.3f}, {p.tokens_per_s:.1f} tokens/s, {p.eta_s / 60:.0f} min left"
            self.progress("train", p.step, p.steps, words)

        qlora.train(windows, self.checkpoint, self.folder, settings, told, options)
        if world.size() == 1:
            self.prefer()
        elif world.is_first():
            self.progress("prefer", 0, 0, "not done: corrections are learned by a run of one process alone")
        if settings.merge_and_save and world.is_first() and not self._learned_nothing:
            self._merge_and_save()
        return self.folder

    def _merge_and_save(self) -> None:
        """A checkpoint to take away: where there is none to be had, the LoRA serves all the same."""
        try:
            merged.checkpoint(self.trained, self.folder / "merged", self.held_out, self.progress, force=True)
        except ExportError as e:
            logger.warning("no merged checkpoint: {}", e)
            self.progress("merge", 0, 0, f"not saved: {e}")

    def prefer(self) -> dict[str, Any]:
        """Let the trained LoRA prefer what the owner's corrections wanted; gives what was done."""
        self.progress("prefer", 0, 0, "")
        until = datetime.fromisoformat(self.snapshot["until"])
        archive = Archive(self.settings.archive_url)
        try:
            made = [c for c in corrections.current(archive, until=until) if c.persona == self.persona.name]
            pairs = preferences.pairs(
                archive, made, self.learned, HFTokenizer(self.checkpoint), self.format, self.persona.spec.system_prompt,
                self._window_max, until, self.settings.corpus, newest=self._newest,
                stickers=self.snapshot.get("stickers", {}),
            )  # fmt: skip
        finally:
            archive.close()
        rows = selection.select(self.windows, self.settings.training, self._extra)
        peft = self.folder / runs.LORA_FOLDER
        return aligning.align(pairs, rows.train, rows.tune, self.checkpoint, self.folder, peft, self._as_trained)

    def targets(self) -> list[str]:
        """What would be trained, a line each; no weight is read."""
        told = dryrun.lines(self.checkpoint, self.settings.training)
        if self.settings.training.base is not None:
            self.snapshot = self._take_snapshot(datetime.now(UTC))
            self._refuse_another_vocabulary()
        return told

    def _refuse_another_vocabulary(self) -> None:
        """Windows hold the GGUF's ids: a checkpoint of other ones would learn other words, or none.

        Raises:
            TrainingError: [training] base has another vocabulary than [engine] base.
        """
        if self.settings.training.base is None:
            return
        tokenizer, model = HFTokenizer(self.checkpoint), Model(self.base_path, 0, vocab_only=True)
        try:
            read = (p for part in self.learned.scenes for p in self._pieces(part, model.format))
            same = all(
                model.tokens(p.text, p.control) == tokenizer.tokens(p.text, p.control)
                for p in islice(read, VOCABULARY_PIECES)
            )
        finally:
            model.close()
        if not same:
            raise TrainingError(
                f"[training] base {self.settings.training.base!r} has another vocabulary than [engine] base "
                f"{self.base_path.name!r}; set [training] base to the checkpoint that the GGUF was made from, or leave "
                "it unset"
            )

    @cached_property
    def checkpoint(self) -> Path:
        """The checkpoint that is trained: the base's own weights, or what [training] base names."""
        models = self.settings.data / "models"
        return world.first(
            lambda: base.of(
                self.settings.training, self.base_path, models, lambda words: self.progress("snapshot", 0, 0, words)
            )
        )

    @cached_property
    def _extra(self) -> selection.Extra:
        """What the run reads besides the history."""
        settings, tokenizer = self.settings.training, HFTokenizer(self.checkpoint)
        zone, rules = self.settings.conversation, self.settings.corpus

        def read(files: Sequence[Path], prompt: str) -> list[samples.Window]:
            return general.windows(files, tokenizer, prompt, self._window_max, zone, rules)

        held_out = None
        if settings.eval_data_path is not None:
            held_out = read([settings.eval_data_path], self.persona.spec.system_prompt)
        since = None if self._goes_on_from is None else self._learned_until  # to an imported LoRA everything is new
        return selection.Extra(read(settings.general_chat, ""), held_out, since)

    @property
    def _goes_on_from(self) -> Version | None:
        """The version whose LoRA the run goes on with; None: a fresh one."""
        return self.persona.version if self.settings.training.start == "continue" else None

    def _options(self) -> qlora.Options:
        """What the run is given, and the LoRA it goes on with."""
        version = self._goes_on_from
        return qlora.Options(
            extra=self._extra, going_on=None if version is None else self._peft_of(version), deepspeed=self.deepspeed,
            tell=lambda line: self.progress("train", 0, 0, line),
        )  # fmt: skip

    def _peft_of(self, version: Version) -> Path:
        """The LoRA of a version, as it was trained."""
        name, manifest = version.name, version.manifest
        folder = self.personas.root / self.persona.name / "versions" / name / runs.LORA_FOLDER
        if manifest.base.sha256 != self.base_sha256:
            raise TrainingError(
                f"version {name!r} was trained on another base ({manifest.base.file}), and its LoRA cannot go on on "
                f"{self.base_path.name!r}; set [training] start = 'fresh', or [engine] base to that base"
            )
        if not folder.is_dir():
            raise TrainingError(
                f"version {name!r} has no {runs.LORA_FOLDER}/ to go on with; set [training] start = 'fresh' once"
            )
        return folder

    def export(self) -> Path:
        """PEFT LoRA → GGUF; gives the file, and makes it once; another that lies there is replaced."""
        if (known := self.exported) is not None:
            return known
        out, peft, checkpoint = self.folder / LORA_FILE, self.folder / runs.LORA_FOLDER, self.checkpoint
        self.progress("export", 0, 0, "")
        lora.export(peft, checkpoint, self.gguf_base, out)
        self._note_exported(out)
        return out

    def export_proven(self, *, force: bool = False) -> proof.Proof:
        """The same file by itself: it gets to its place when it is proven, and stays only if it is.

        Raises:
            ExportError: it is not what was trained.
            TwinError: another LoRA lies there, or one of before the run went on, and it is not forced.
        """
        if self.exported is None:
            made = proof.prove_lora(
                self.trained, self.base_path, self.gguf_base, self.folder / LORA_FILE, "f16", self.held_out, force=force
            )
            self._note_exported(self.folder / LORA_FILE)
            self._note_proof(made)
            return made
        found = self.prove()
        if not found.passed:
            self.exported.unlink()
        proof.require_passed(found, f"the LoRA of run {self.folder.name!r}")
        return proof.Proof(found, tuple(self.texts))

    def _note_exported(self, out: Path) -> None:
        write_state(self.folder / _EXPORT_FILE, {"made_of": self._lora_made_of, "sha256": sha256(out)})

    @property
    def exported(self) -> Path | None:
        """The LoRA GGUF, where one lies there that this run's LoRA gave."""
        out, kept = self.folder / LORA_FILE, read_state(self.folder / _EXPORT_FILE) or {}
        ours = out.is_file() and kept.get("sha256") == sha256(out)
        return out if ours and kept.get("made_of") == self._lora_made_of else None

    @property
    def _lora_made_of(self) -> str:
        peft = self.folder / runs.LORA_FOLDER
        return _digest([self.base_sha256, base.fingerprint(self.checkpoint), *_hashes(peft)])

    def prove(self) -> parity.Parity:
        """Compare what was trained with what will be served."""
        exported, kept = self.export(), read_state(self.folder / _PROOF_FILE) or {}
        if kept.get("made_of") == self._proof_made_of:
            with suppress(ValidationError):
                return parity.Parity.model_validate(kept["parity"])
        self.progress("parity", 0, 0, "")
        found = proof.prove(self.trained, self.base_path, exported, self.held_out)
        self._note_proof(found)
        return found.parity

    def _note_proof(self, found: proof.Proof) -> None:
        figures = found.parity.model_dump(mode="json")
        write_state(
            self.folder / _PROOF_FILE, {"made_of": self._proof_made_of, "parity": figures, "greedy": found.texts}
        )

    @property
    def _proof_made_of(self) -> str:
        trained = self.trained
        return _digest([
            self.base_sha256, base.fingerprint(trained.checkpoint), sha256(self.folder / LORA_FILE),
            *_hashes(trained.peft), repr(trained.nf4), repr(self.held_out.passages), repr(self.settings.engine),
            *map(version, _PROVEN_BY),
        ])  # fmt: skip

    @cached_property
    def trained(self) -> proof.Trained:
        """The run's result, as exports need it.

        Raises:
            TrainingError: the run did not finish, or the checkpoint is no longer what it was trained on.
        """
        if not (self.folder / runs.RECORD_FILE).is_file():
            raise TrainingError(
                f"run {self.folder.name!r} did not finish (it has no {runs.RECORD_FILE}); `twin train` goes on with it"
            )
        was = (read_state(self.folder / runs.RECORD_FILE) or {}).get("checkpoint")
        if was is not None and was != base.fingerprint(self.checkpoint):
            raise TrainingError(
                f"run {self.folder.name!r} was trained on other weights than {self.checkpoint.name!r} holds now; put "
                "those back ([training] base), or train again"
            )
        tokenizer = HFTokenizer(self.checkpoint)
        how = precision.chosen(self._as_trained, device.here())
        peft = self.folder / runs.LORA_FOLDER
        return proof.Trained(self.checkpoint, peft, tokenizer.format, tokenizer, how.quantization)

    @property
    def _as_trained(self) -> Training:
        """bot.toml's [training] with how the run held the base and what it computed in, which it may have changed."""
        record = read_state(self.folder / runs.RECORD_FILE) or {}
        found: dict[str, Any] = {name: record[name] for name in ("precision", "compute_dtype") if name in record}
        return self.settings.training.model_copy(update=found)

    @cached_property
    def held_out(self) -> proof.HeldOut:
        """What exports are asked: the held-out moments, every text ever encoded, a few prompts to answer greedily."""
        held_out = [(w, x) for w in self.windows for x in _held_out(w)]
        spoken = answers.spread([w.ids[: x.start] for w, x in held_out if not x.silence], GREEDY_PROMPTS)
        return proof.HeldOut(
            [_passage(w) for w in answers.spread([w for w in self.windows if _held_out(w)], PARITY_WINDOWS)],
            [p for part in self.learned.scenes for p in self._pieces(part, self.format)],
            spoken, self._window_max, self.settings.training.threads, self.settings.engine,
        )  # fmt: skip

    @property
    def texts(self) -> list[tuple[str, str]]:
        """What trained and served model answered greedily in the last proof."""
        kept = read_state(self.folder / _PROOF_FILE) or {}
        return [(str(ours), str(theirs)) for ours, theirs in kept.get("greedy", [])]

    @property
    def tune_texts(self) -> list[tuple[int, ...]]:
        """Conversations of the tune split alone, spread over the history: what an importance matrix is made of.

        Raises:
            TrainingError: there is none.
        """
        prompt, tune = self.persona.spec.system_prompt, samples.Split.TUNE
        found = samples.texts(self.learned, tune, HFTokenizer(self.checkpoint), self.format, prompt, self._window_max)
        if not found:
            raise TrainingError(
                "no conversation is in the tune split yet to make an importance matrix of; import more history, or "
                "export without --imatrix"
            )
        tokens = sum(map(len, found))
        return answers.spread(found, math.ceil(len(found) * merged.IMATRIX_TOKENS_MAX / tokens))

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of a run that a whole night has judged; None of any other."""
        try:
            return Manifest.model_validate_json((self.folder / MANIFEST_FILE).read_text("utf-8"))
        except (OSError, ValidationError):
            return None

    def measure(self) -> "_Figures":
        """Score the held-out moments with the new version, the serving one and the bare base."""
        keep = self.settings.training.silence_keep
        new = evaluate.undone(self._scored_once("new", self.base_path, self.export(), self.windows), keep)
        calibration = evaluate.fit_calibration(new, keep)
        served = deciding(calibration, self.learned.counts["silences"], keep)
        serving = None
        if self.persona.version is not None:
            manifest = self.persona.version.manifest
            windows = self.windows_for(manifest.system_prompt)
            kept = float(manifest.settings.get("silence_keep", 1.0))
            scored = evaluate.undone(self._scored_once("serving", *self._weights(self.persona.version), windows), kept)
            decides = self.persona.version.calibration
            figures = evaluate.metrics(scored, decides, fitted=manifest.calibration is not None)
            serving = gate.Candidate(scored, figures, decides)
        bare = self._scored_once("base", self.base_path, None, self.windows)
        return _Figures(
            gate.Candidate(new, evaluate.metrics(new, served, fitted=calibration is not None), served), serving,
            gate.Candidate(bare, evaluate.metrics(bare, None)), calibration,
        )  # fmt: skip

    def evaluate_version(self, version: str | None = None) -> dict[str, Any]:
        """Held-out figures of a version (None: the serving one, else the bare base) now; leaves no run folder."""
        self.snapshot = self._take_snapshot(datetime.now(UTC))
        name = version or self.personas.current(self.persona.name)
        if name is None:
            scored = self._scored("base", self.base_path, None, self.windows)
            return {"version": None, **evaluate.metrics(scored, None).model_dump()}
        chosen = self.personas.verify(self.persona.name, name)
        windows = self.windows_for(chosen.manifest.system_prompt)
        scored = self._scored("serving", *self._weights(chosen), windows)
        figures = evaluate.metrics(scored, chosen.calibration, fitted=chosen.manifest.calibration is not None)
        decided = evaluate.points(scored, chosen.calibration)
        return {"version": name, **figures.model_dump(), "silence": _decisions(decided)}

    def _weights(self, version: Version) -> tuple[Path, Path | None]:
        """The GGUF and LoRA a version answers with.

        Raises:
            TrainingError: it was merged from another base: loss per token compares within one vocabulary only.
        """
        if version.model is None:
            return self.base_path, version.lora
        if version.manifest.base.sha256 != self.base_sha256:
            raise TrainingError(
                f"version {version.name!r} of persona {self.persona.name!r} was merged from another base "
                f"({version.manifest.base.file}): it cannot be compared with what is trained on "
                f"{self.base_path.name!r}; set [engine] base to that base, or learn under a persona of another name"
            )
        return version.model, None

    def _scored_once(
        self, whose: str, model: Path, lora: Path | None, windows: Sequence[samples.Window]
    ) -> list[evaluate.Scored]:
        """Scores; of a window that the same files scored before, in this night or an earlier one, those of then."""
        of_model = self.base_sha256 if model == self.base_path else digest(model)
        made_of = _digest([of_model, sha256(lora) if lora else ""])
        asked = {_scored_as(w): w for w in windows if evaluate.held_out([w])}
        kept = self._kept_scores(made_of)
        missing = {name: w for name, w in asked.items() if name not in kept}
        if missing:
            found = iter(self._scored(whose, model, lora, list(missing.values())))
            for name, window in missing.items():
                kept[name] = [(x.nll, x.p_silent) for x in islice(found, len(evaluate.held_out([window])))]
        scored = {name: kept[name] for name in asked}
        write_state(self.folder / f"scored-{whose}.json", {"made_of": made_of, "scored": scored})
        return evaluate.scored(windows, (values for w in windows for values in scored.get(_scored_as(w), ())))

    def _kept_scores(self, made_of: str) -> dict[str, list[evaluate.Values]]:
        """Scores by window that the same files gave before: in this run, else in the newest in which they were asked.

        What serves was new in the run it was made in, and the base stays for years.
        """
        for folder in (self.folder, *sorted(self._runs.glob("*/"), reverse=True)):
            for file in sorted(folder.glob("scored-*.json")):
                kept = read_state(file) or {}
                if kept.get("made_of") == made_of and isinstance(kept.get("scored"), dict):
                    return {name: [(nll, p) for nll, p in values] for name, values in kept["scored"].items()}
        return {}

    def _scored(
        self, whose: str, model: Path, lora: Path | None, windows: Sequence[samples.Window]
    ) -> list[evaluate.Scored]:
        self.progress("evaluate", 0, len(windows), whose)
        scorer = Scorer(model, lora, self._window_max, self.settings.training.threads, self.settings.engine)
        try:
            return evaluate.score(
                windows, scorer, scorer.model.end_id,
                progress=lambda done, total: self.progress("evaluate", done, total, whose) if done % 20 == 0 else None,
            )  # fmt: skip
        finally:
            scorer.close()

    def likeness(self, figures: "_Figures") -> Likeness | None:
        """Answers of the new version, the serving one and the baselines at held-out places, measured."""
        scores = {
            assessment.NEW: figures.new.scored, assessment.PROMPTED: figures.bare.scored,
            **({assessment.SERVING: figures.serving.scored} if figures.serving else {}),
        }  # fmt: skip
        by_key = {name: {x.key: (x.nll, x.tokens) for x in scored} for name, scored in scores.items()}
        return self._voices.likeness(self._voice, self._serving_voice, by_key)

    def _answers(self) -> list[use.Answer]:
        """Answers at held-out moments of the test split where the person spoke."""
        return self._voices.answers(self._voice)

    @property
    def _voice(self) -> Voice:
        return Voice(self.export(), None, self.format, self.persona.spec.system_prompt)

    @property
    def _serving_voice(self) -> Voice | None:
        if self.persona.version is None:
            return None
        manifest = self.persona.version.manifest
        model, adapter = self._weights(self.persona.version)
        own = None if model == self.base_path else model
        return Voice(adapter, own, FORMATS[manifest.format], manifest.system_prompt)

    @cached_property
    def _voices(self) -> Voices:
        # As live: no window is longer than those trained.
        n_ctx = min(self.settings.engine.n_ctx, max(512, self._window_max))
        engine = self.settings.engine.model_copy(update={"n_ctx": n_ctx})
        stage = Stage(
            self.base_path, self.base_sha256, engine, self.persona.spec.sampling, self._window_max,
            self.settings.training.threads, self.progress,
        )  # fmt: skip
        known = {(x.scene, x.message_id): x.split for w in self.windows for x in w.labels if x.trained}
        return Voices(self.folder, self.learned, known, stage, self.settings.gate)

    # -- the result -------------------------------------------------------------------------------

    def _manifest(self, proof: parity.Parity, figures: "_Figures", verdict: gate.Verdict) -> Manifest:
        record = read_state(self.folder / runs.RECORD_FILE)
        if record is None:
            raise TrainingError(f"run {self.folder.name!r} has no readable {runs.RECORD_FILE}; train it again")
        files = {LORA_FILE: sha256(self.folder / LORA_FILE)}
        peft = self.folder / runs.LORA_FOLDER
        files |= {f"{peft.name}/{p.name}": sha256(p) for p in sorted(peft.iterdir()) if p.is_file()}
        span = [t.isoformat() for t in self.learned.span or ()]
        return Manifest(
            version=self.folder.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            base=self.gguf_base,
            format=self.format.name,
            system_prompt=self.persona.spec.system_prompt,
            files=files,
            corpus={
                "fingerprint": self.learned.fingerprint, "until": self.snapshot["until"], "span": span,
                "new_messages": self.snapshot["new_messages"], "own_messages": self.snapshot.get("own_messages"),
                "set_names": self.snapshot.get("sets", []), **self.learned.counts,
                **({"learned_until": newest} if (newest := self.snapshot.get("newest")) else {}),
            },
            contributors=self.learned.contributors,
            settings=record["settings"],
            libraries={**record["libraries"], "llama_cpp_python": version("llama-cpp-python")},
            seed=self.settings.training.seed,
            metrics={
                **figures.new.metrics.model_dump(mode="json"),
                "loss_base": figures.bare.metrics.loss.value if figures.bare.metrics.loss else None,
                "trained_tokens_per_s": record["trained_tokens_per_s"], "seconds": record["seconds"],
                "peak_rss_bytes": record["peak_rss_bytes"],
                "preferences": read_state(self.folder / aligning.RECORD_FILE),
                "likeness": verdict.likeness.model_dump(mode="json") if verdict.likeness else None,
                "silence": _decisions(evaluate.points(figures.new.scored, figures.new.calibration)),
            },
            parity=proof.model_dump(mode="json"),
            gate={
                "passed": verdict.passed, "reasons": [r.fault.name.lower() for r in verdict.reasons],
                "behind": verdict.behind,
            },
            calibration=figures.calibration,
            pacing=evaluate.pacing(self.learned),
        )  # fmt: skip

    @property
    def _arrived(self) -> dict[str, int]:
        """Messages since the serving version's snapshot, by scene."""
        until = self.persona.version.manifest.corpus.get("until") if self.persona.version else None
        since = datetime.fromisoformat(until) if until else None
        found: dict[str, int] = {}
        for part in self.learned.scenes:
            messages = [m for e in part.exchanges for m in (*e.heard, *e.said)]
            found[str(part.scene)] = sum(since is None or m.time > since for m in messages)
        return {scene: n for scene, n in found.items() if n}

    def _result(self) -> Path:
        """The version's files alone, as `Personas.publish` copies them."""
        result = self.folder / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        for name in (LORA_FILE, MANIFEST_FILE, REPORT_FILE):
            shutil.copy2(self.folder / name, result / name)
        shutil.copytree(self.folder / runs.LORA_FOLDER, result / runs.LORA_FOLDER)
        if (plot := self.folder / "loss.png").exists():
            shutil.copy2(plot, result / plot.name)
        return result

    def _failed(self, error: TwinError) -> Outcome:
        """A step failed: the next start tries again, at most `ATTEMPTS_MAX` times."""
        folder: Path | None = self.__dict__.get("folder")
        if folder is None:  # it failed before there was a run to go on with
            return Outcome("failed", None, report.failed(self.persona.spec, error, 1, ATTEMPTS_MAX))
        attempts = [*self._attempts(), str(error)]
        outcome = Outcome("failed", None, report.failed(self.persona.spec, error, len(attempts), ATTEMPTS_MAX))
        try:
            self._note_attempts(attempts, under_way=False)
            return self._done(outcome) if len(attempts) >= ATTEMPTS_MAX else outcome
        except OSError as e:
            logger.error("the failed attempt cannot be written down ({})", e.strerror)
            return outcome

    def _done(self, outcome: Outcome) -> Outcome:
        write_state(self.folder / DONE_FILE, {"outcome": outcome.kind, "summary": outcome.summary})
        return outcome

    def _pieces(self, part: corpus.SceneCorpus, chat_format: ChatFormat) -> Iterator[Piece]:
        """Everything of a scene that is ever encoded, to compare both vocabularies on."""
        renderer = samples.renderer_for(part, self.learned, chat_format, self.persona.spec.system_prompt)
        yield from renderer.opening()
        for number, exchange in enumerate(part.exchanges):
            yield from renderer.heard(exchange, part.quoted, first=number == 0)
            yield from renderer.said(exchange, trained=False)


@dataclass(frozen=True, slots=True)
class _Figures:
    """What evaluation found: the new version, the serving one, the bare base, and the new calibration."""

    new: gate.Candidate
    serving: gate.Candidate | None
    bare: gate.Candidate
    calibration: Calibration | None


def _decisions(points: Sequence[silence.Point]) -> dict[str, Any]:
    """Figures of the decisions as served, and reply rates by group; scenes are not named where others may read it."""
    rates = {name: rate for name, rate in silence.rates(points).items() if not name.startswith("scene ")}
    return {
        **{name: figure.model_dump(mode="json") for name, figure in silence.figures(points).items()},
        "rates": {
            name: {side: getattr(rate, side).model_dump(mode="json") for side in ("person", "twin", "gap")}
            for name, rate in rates.items()
        },
    }


def _held_out(window: samples.Window) -> list[samples.Label]:
    return [x for x in window.labels if x.split is not samples.Split.TRAIN]


def _scored_as(window: samples.Window) -> str:
    """Names a window by what scoring reads of it."""
    return _digest([repr((window.ids, [(x.start, x.trained) for x in evaluate.held_out([window])]))])


def _passage(window: samples.Window) -> parity.Passage:
    labels = _held_out(window)
    wanted = tuple(i for x in labels for i in x.trained)
    known = {i for x in window.labels for i in x.trained}
    heard = answers.spread([i for i in range(1, len(window.ids)) if i not in known], HEARD_TOKENS)
    return parity.Passage(window.ids, wanted, tuple(x.start for x in labels if x.decision), tuple(heard))


def _hashes(folder: Path) -> list[str]:
    """Names and hashes of a folder's files."""
    return [f"{p.name} {sha256(p)}" for p in sorted(folder.iterdir()) if p.is_file()] if folder.is_dir() else []


def _digest(parts: Sequence[str]) -> str:
    """One hash of everything a result was made of."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _reason(error: Exception) -> str:
    """One line on an error nobody raised on purpose; its own words only where they cannot hold chat text."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
    if isinstance(error, OSError):
        return f"{place} ({error.strerror})"
    if isinstance(error, RuntimeError | MemoryError):  # torch and the allocator: sizes and shapes
        return f"{place} ({next(iter(str(error).splitlines()), '')[:160]})"
    return place
