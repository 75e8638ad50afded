"""The night: snapshot → corpus → train → export → parity → evaluate → gate → publish → report.

Each step leaves its result in the run folder beside the next one's input, so a killed night goes on where it stopped.
Refused by the gate or failed: the current version stays, and the owner is told why. Runs in a process of its own.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from loguru import logger

from bot.archive import Archive
from bot.config import Settings
from bot.errors import TrainingError, TwinError
from bot.llama import Model, Scorer
from bot.persona import LORA_FILE, MANIFEST_FILE, Base, Calibration, Manifest, Personas, sha256
from bot.prompt import FORMATS, ChatFormat, Piece
from export import lora, parity
from training import answers, base, corpus, evaluate, gate, qlora, report, samples, watch
from training.hf import HFTokenizer

ANSWERS_MAX = 20
"""Answers the gate looks at."""
ATTEMPTS_MAX = 3
"""A night that failed this often is given up, so that a broken step does not run for ever."""
Progress = Callable[[str, int, int, str], None]
"""(step, done, total, words)."""


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


class Night:
    """One persona's night, or single steps of it.

    Args:
        settings: bot.toml.
        persona: whose.
        base_path: the base GGUF.
        base_sha256: its hash.
        progress: told of every step.
        run: a run folder to work in; None: the unfinished one, else a new one.

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

    # -- the whole night --------------------------------------------------------------------------

    def run(self, *, force: bool = False) -> Outcome:
        """All steps; what an earlier attempt finished is not done again.

        Args:
            force: also with too few new messages.
        """
        with _one_at_a_time(self.settings.data / "runs" / "night.lock"):
            new = self._new_messages()
            if not force and self._unfinished() is None and new < self.settings.retrain.min_new_messages:
                return Outcome("skipped", None, report.skipped(self.persona.spec, new, self.settings.retrain))
            try:
                return self._steps()
            except TwinError as e:
                logger.error("the night failed: {}", e)
                return self._failed(e)

    def _steps(self) -> Outcome:
        self.train()
        self.export()
        proof = self.prove()
        figures = self.measure()
        verdict = gate.verdict(figures.new, figures.serving, figures.bare, proof.passed, self._answers())
        manifest = self._manifest(proof, figures)
        serving = self.persona.version.manifest if self.persona.version else None
        text = report.markdown(manifest, verdict, serving)
        (self.folder / "report.md").write_text(text, "utf-8")
        (self.folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1), "utf-8")
        if verdict.passed:
            self.progress("publish", 0, 0, "")
            self.personas.publish(self.persona.name, self._result())
        kind = "published" if verdict.passed else "refused"
        return self._done(Outcome(kind, manifest.version, report.summary(manifest, verdict, serving)))

    # -- steps ------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Train; gives the run folder."""
        self.progress("snapshot", 0, 0, "")
        windows = self.windows
        checkpoint = base.checkpoint(self.base_path, self.settings.data / "models")

        def told(p: watch.Progress) -> None:
            words = f"loss {p.loss:.3f}, {p.tokens_per_s:.1f} tokens/s, {p.eta_s / 60:.0f} min left"
            self.progress("train", p.step, p.steps, words)

        qlora.train(windows, checkpoint, self.folder, self.settings.training, told)
        return self.folder

    def export(self) -> Path:
        """PEFT LoRA → GGUF; gives the file."""
        out = self.folder / LORA_FILE
        if not out.exists():
            self.progress("export", 0, 0, "")
            checkpoint = base.checkpoint(self.base_path, self.settings.data / "models")
            lora.export(self.folder / qlora.LORA_FOLDER, checkpoint, self._base(), out)
        return out

    def prove(self) -> parity.Parity:
        """Compare what was trained with what will be served."""
        file = self.folder / "parity.json"
        if file.exists():
            return parity.Parity.model_validate_json(file.read_text("utf-8"))
        self.progress("parity", 0, 0, "")
        checkpoint = base.checkpoint(self.base_path, self.settings.data / "models")
        passages = [_passage(w) for w in self.windows if _held_out(w)]
        trained, peft = HFTokenizer(checkpoint), self.folder / qlora.LORA_FOLDER
        scorer = Scorer(self.base_path, self.export(), self._window_max, self.settings.training.threads)
        try:
            end = scorer.model.end_id
            served = parity.served_scores(scorer, passages, end)
            pieces = [p for part in self.learned.scenes for p in self._pieces(part)]
            ids = parity.differing_pieces(pieces, trained, scorer.model)
            same_end = parity.same_end(self.format, trained, scorer.model)
        finally:
            scorer.close()
        reference = parity.trained_scores(checkpoint, peft, passages, end)
        nf4 = None
        if base.precision_of(self.settings.training.precision) == "nf4":
            nf4 = parity.trained_scores(checkpoint, peft, passages, end, base.nf4()).loss
        found = parity.compare(reference, served, ids, same_end, nf4)
        file.write_text(found.model_dump_json(indent=1), "utf-8")
        return found

    def measure(self) -> "_Figures":
        """Score the held-out moments with the new version, the serving one and the bare base."""
        keep = self.settings.training.silence_keep
        new = self._scored("new", self.export())
        calibration = evaluate.fit_calibration(new, keep)
        serving = None
        if self.persona.version is not None:
            scored = self._scored("serving", self.persona.version.lora)
            fitted = self.persona.version.manifest.calibration
            serving = gate.Candidate(scored, evaluate.metrics(scored, fitted, fitted.silence_keep if fitted else 1.0))
        bare = self._scored("base", None)
        return _Figures(
            gate.Candidate(new, evaluate.metrics(new, calibration, keep)), serving,
            gate.Candidate(bare, evaluate.metrics(bare, None)), calibration,
        )  # fmt: skip

    def evaluate_version(self, version: str | None = None) -> dict[str, Any]:
        """Held-out figures of a version (None: the serving one, else the bare base), as plain values."""
        name = version or self.personas.current(self.persona.name)
        if name is None:
            scored = self._scored("base", None)
            return {"version": None, **evaluate.metrics(scored, None).model_dump()}
        chosen = self.personas.verify(self.persona.name, name)
        fitted = chosen.manifest.calibration
        scored = self._scored("serving", chosen.lora)
        figures = evaluate.metrics(scored, fitted, fitted.silence_keep if fitted else 1.0)
        return {"version": name, **figures.model_dump()}

    def _scored(self, whose: str, path: Path | None) -> list[evaluate.Scored]:
        scorer = Scorer(self.base_path, path, self._window_max, self.settings.training.threads)
        try:
            return evaluate.score(
                self.windows, scorer, scorer.model.end_id,
                progress=lambda done, total: self.progress("evaluate", done, total, whose) if done % 20 == 0 else None,
            )  # fmt: skip
        finally:
            scorer.close()

    def _answers(self) -> list[gate.Answer]:
        """Answers at held-out moments of the test split where the person spoke."""
        self.progress("gate", 0, 0, "")
        spec = self.persona.spec
        every = answers.questions(self.learned, self.format, spec.system_prompt, samples.Split.TEST)
        asked = answers.spread(every, ANSWERS_MAX)
        said = answers.answer(
            self.base_path, self.base_sha256, self.export(), self.format, asked, spec.sampling, self.settings.engine
        )
        return [gate.Answer(q.heard.split("\n")[-1], a.text) for q, a in zip(asked, said, strict=True)]

    # -- what the steps share ---------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """The run folder, its snapshot taken."""
        if self._run is not None:
            if not (self._run / "snapshot.json").is_file():
                raise TrainingError(f"{str(self._run)!r} is no run folder (it has no snapshot.json)")
            return self._run
        unfinished = self._unfinished()
        if unfinished is not None:
            logger.info("going on with the unfinished run {}", unfinished.name)
            return unfinished
        now = datetime.now(UTC)
        folder = self._runs / now.strftime("%Y%m%d-%H%M%S")
        folder.mkdir(parents=True)
        snapshot = {"until": now.isoformat(), "new_messages": self._new_messages(), "base_sha256": self.base_sha256}
        _write(folder / "snapshot.json", snapshot)
        return folder

    @cached_property
    def learned(self) -> corpus.Corpus:
        """What the archive taught at the snapshot."""
        until = datetime.fromisoformat(_read(self.folder / "snapshot.json")["until"])
        archive = Archive(self.settings.archive_url)
        try:
            spec = self.persona.spec
            return corpus.build(archive, spec.people, spec.names, self.settings.conversation, until)
        finally:
            archive.close()

    @cached_property
    def windows(self) -> list[samples.Window]:
        """The corpus as windows of the base's tokens."""
        model = Model(self.base_path)
        try:
            self.__dict__["format"], self.__dict__["architecture"] = model.format, model.architecture
            return samples.windows(self.learned, model, model.format, self.persona.spec.system_prompt, self._window_max)
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
        return self.settings.training.model_max_length

    @property
    def _runs(self) -> Path:
        return self.settings.data / "runs" / self.persona.name

    def _unfinished(self) -> Path | None:
        """The newest run that was broken off, if its base is still ours."""
        for folder in sorted(self._runs.glob("*/"), reverse=True):
            if (folder / "done.json").exists() or not (folder / "snapshot.json").exists():
                return None
            return folder if _read(folder / "snapshot.json")["base_sha256"] == self.base_sha256 else None
        return None

    def _new_messages(self) -> int:
        version = self.persona.version
        until = version.manifest.corpus.get("until") if version else None
        archive = Archive(self.settings.archive_url)
        try:
            after = datetime.fromisoformat(until) if until else None
            return archive.count(self.persona.spec.people, after)
        finally:
            archive.close()

    def _base(self) -> Base:
        return Base(file=self.base_path.name, sha256=self.base_sha256, architecture=self.architecture)

    # -- the result -------------------------------------------------------------------------------

    def _manifest(self, proof: parity.Parity, figures: "_Figures") -> Manifest:
        record = _read(self.folder / qlora.RECORD_FILE)
        snapshot = _read(self.folder / "snapshot.json")
        files = {LORA_FILE: sha256(self.folder / LORA_FILE)}
        peft = self.folder / qlora.LORA_FOLDER
        files |= {f"{peft.name}/{p.name}": sha256(p) for p in sorted(peft.iterdir()) if p.is_file()}
        span = [t.isoformat() for t in self.learned.span or ()]
        return Manifest(
            version=self.folder.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            base=self._base(),
            format=self.format.name,
            system_prompt=self.persona.spec.system_prompt,
            files=files,
            corpus={
                "fingerprint": self.learned.fingerprint, "until": snapshot["until"], "span": span,
                "new_messages": snapshot["new_messages"], **self.learned.counts,
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
            },
            parity=proof.model_dump(mode="json"),
            calibration=figures.calibration,
            pacing=evaluate.pacing(self.learned),
        )  # fmt: skip

    def _result(self) -> Path:
        """The version's files alone, as `Personas.publish` copies them."""
        result = self.folder / "result"
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        for name in (LORA_FILE, MANIFEST_FILE, "report.md"):
            shutil.copy2(self.folder / name, result / name)
        shutil.copytree(self.folder / qlora.LORA_FOLDER, result / qlora.LORA_FOLDER)
        if (plot := self.folder / "loss.png").exists():
            shutil.copy2(plot, result / plot.name)
        return result

    def _failed(self, error: TwinError) -> Outcome:
        """A step failed: the next start tries again, at most `ATTEMPTS_MAX` times."""
        file = self.folder / "attempts.json"
        attempts = [*(_read(file)["errors"] if file.exists() else []), str(error)]
        _write(file, {"errors": attempts})
        outcome = Outcome("failed", None, report.failed(self.persona.spec, error, len(attempts), ATTEMPTS_MAX))
        return self._done(outcome) if len(attempts) >= ATTEMPTS_MAX else outcome

    def _done(self, outcome: Outcome) -> Outcome:
        _write(self.folder / "done.json", {"outcome": outcome.kind, "summary": outcome.summary})
        return outcome

    def _pieces(self, part: corpus.SceneCorpus) -> Iterator[Piece]:
        """Everything of a scene that is ever encoded, to compare both vocabularies on."""
        renderer = samples.renderer_for(part, self.learned, self.format, self.persona.spec.system_prompt)
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


def _held_out(window: samples.Window) -> list[samples.Label]:
    return [x for x in window.labels if x.split is not samples.Split.TRAIN]


def _passage(window: samples.Window) -> parity.Passage:
    labels = _held_out(window)
    wanted = tuple(i for x in labels for i in x.trained)
    return parity.Passage(window.ids, wanted, tuple(x.start for x in labels if x.decision))


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Hold the lock of nights; a lock whose process is gone is taken over.

    Raises:
        TrainingError: another night runs.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            break
        except FileExistsError:
            owner = file.read_text("utf-8").strip()
            if owner.isdigit() and psutil.pid_exists(int(owner)):
                raise TrainingError(f"another night runs (process {owner}); wait for it or /train cancel") from None
            file.unlink(missing_ok=True)
    try:
        with os.fdopen(descriptor, "w") as f:
            f.write(str(os.getpid()))
        yield
    finally:
        file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return value


def _write(file: Path, value: dict[str, Any]) -> None:
    beside = file.with_name(f".{file.name}.tmp")
    beside.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")
    os.replace(beside, file)
