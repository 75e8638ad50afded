"""Persona folders: load, verify, publish, roll back.

`data/personas/<name>/` holds `persona.toml` (who is imitated and how), `versions/<version>/` (one trained LoRA, or a
model that one was merged into, with its manifest) and `current`, one line naming the version that serves, replaced by
rename. A reader sees the old version or the new one, never half of one.
"""

import contextlib
import json
import os
import re
import shutil
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bot import staging
from bot.checksum import digest, sha256
from bot.errors import PersonaError
from bot.prompt import FORMATS

LORA_FILE, MODEL_FILE = "lora.gguf", "model.gguf"
MANIFEST_FILE = "manifest.json"
WITHDRAWN_FILE = "withdrawn.json"
"""Versions that were rolled back, by themselves or by hand: why, when, and the hash of their weights."""
BY_HAND = "by hand"
"""Why, of a version that somebody went back from."""
NAME = re.compile(r"\w[\w-]*")
"""A persona's folder name: letters of any script, digits, - and _."""
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Part(BaseModel):
    """A table of persona.toml or of a manifest: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Who(Part):
    """Who it is, and its limits."""

    identity: str = ""
    """Name, age, work, the people around: one or two sentences."""
    limits: str = ""
    """What it never says or does."""


class Speech(Part):
    """How it speaks."""

    style: str = ""
    """Length, particles, laughter, punctuation: what the model should lean on."""


class Leaning(Part):
    """What it leans to."""

    likes: str = ""
    """What it warms to."""
    ignores: str = ""
    """What it does not answer."""


class Sampling(Part):
    """How words are drawn."""

    temperature: float = Field(0.7, ge=0, le=2)
    """Below 1 the usual words win more often; a small model babbles above 0.8. 0 is greedy."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Words outside the most likely 90 % are never drawn: they are where a small model derails."""
    top_k: int = Field(40, ge=0)
    """Words considered at most; 0 is all."""
    min_p: float = Field(0.05, ge=0, le=1)
    """Words less likely than this part of the likeliest are dropped."""
    repeat_penalty: float = Field(1.05, ge=1)
    """Divides the logits of words of the last 64 tokens; 1 is off."""
    dry_multiplier: float = Field(0.0, ge=0, le=5)
    """Weight of DRY, which makes going on as earlier in the same answer unlikely, the more so the longer; 0 is off."""
    logit_bias: dict[Annotated[str, Field(min_length=1)], Annotated[float, Field(ge=-100, le=100)]] = {}
    """Words made likelier or less likely, `{ "哈哈" = -2.0 }`: added to the log-odds of the word's first token before
    all else, at every token of an answer. -100 bans it. So it is exact for words of one token, and of longer ones all
    that begins alike is meant; a word whose first token is but a part of a character is left as it is."""
    max_tokens: int = Field(512, ge=1)
    """Tokens of one answer at most; a chat turn is rarely over 60, the rest is a guard."""


class ReplyPolicy(Part):
    """When it answers, beyond what was learned."""

    bias: float = 0.0
    """Added to the log-odds of speaking everywhere; above 0 is more talkative."""


class Spec(Part):
    """persona.toml."""

    display_name: str = Field(min_length=1)
    """The name people see, and one it listens to."""
    nicknames: tuple[str, ...] = ()
    """Further names it listens to."""
    people: tuple[str, ...] = ()
    """QQ numbers of the imitated person: their messages are what is learned. None: from training sets alone."""
    who: Who = Who()
    speech: Speech = Speech()
    leaning: Leaning = Leaning()
    sampling: Sampling = Sampling()
    reply: ReplyPolicy = ReplyPolicy()

    @property
    def system_prompt(self) -> str:
        """The three parts as the system prompt; empty parts are left out."""
        parts = [f"你是{self.display_name}。{self.who.identity}"]
        if self.speech.style:
            parts.append(f"说话：{self.speech.style}")
        leaning = [f"喜欢{self.leaning.likes}" if self.leaning.likes else "", self.leaning.ignores]
        if any(leaning):
            parts.append("；".join(x for x in leaning if x))
        if self.who.limits:
            parts.append(self.who.limits)
        return "\n".join(parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it listens to."""
        return (self.display_name, *self.nicknames)


class Calibration(Part):
    """The logistic model of speaking (bot/decision.py): log-odds = intercept + Σ weight · feature."""

    intercept: float
    weights: dict[str, float]
    """By feature name; a feature that is missing here counts nothing."""
    silence_keep: float = 1.0
    """Part of the silences that was trained; P(silent) is corrected by it before it becomes a feature."""


class Tempo(Part):
    """How long the person takes by situation, with reading and typing taken apart (training/tempo.py)."""

    answer_s: dict[str, tuple[float, ...]]
    """Situation (`bot.pacing.situations`) → quantiles 0, 0.1, … 1 of the time before an answer, less what follows."""
    gap_s: tuple[float, ...]
    """Quantiles of the time between two bubbles, less the typing of the second."""
    read_s_per_char: float = 0.0
    """Seconds that a character of the last bubble heard adds."""
    type_s_per_char: float = 0.0
    """Seconds that a character of the bubble to be said adds."""


class Pacing(Part):
    """How long the person takes, as quantiles 0, 0.1, … 1 of what was measured (seconds)."""

    private_delay_s: tuple[float, ...] = ()
    group_delay_s: tuple[float, ...] = ()
    bubble_gap_s: tuple[float, ...] = ()
    repeat_share: float = 0.0
    """Part of the bubbles behind another one of theirs that say the very same again."""
    tempo: Tempo | None = None
    """What answers are paced by; None in versions of before it was learned: then the three above are."""


class Base(Part):
    """The base a version was trained on."""

    file: str
    sha256: str
    architecture: str
    """GGUF's `general.architecture`."""


class Manifest(Part):
    """What a version is and where it comes from."""

    version: str
    created: str
    """ISO 8601, UTC."""
    base: Base
    format: str
    """Name of the chat format (bot/prompt.py) it was trained with."""
    system_prompt: str
    """As trained; the one used to answer."""
    files: dict[str, str]
    """File name → sha256; `lora.gguf` or `model.gguf` is one of them."""
    corpus: dict[str, Any] = {}
    """Fingerprint, counts, time span."""
    contributors: tuple[str, ...] = ()
    """QQ numbers whose words were labels."""
    settings: dict[str, Any] = {}
    """The training settings, as used."""
    libraries: dict[str, str] = {}
    seed: int = 0
    metrics: dict[str, Any] = {}
    """Held-out figures (training/evaluate.py)."""
    parity: dict[str, Any] = {}
    """What the export measured (export/parity.py)."""
    gate: dict[str, Any] = {}
    """The verdict (training/gate.py): `passed`, `reasons`, `behind` (nats per token above the best version before), and
    `forced`, when it was published in spite of it."""
    calibration: Calibration | None = None
    pacing: Pacing = Pacing()

    @property
    def merged(self) -> bool:
        """Whether it is a model of its own, and not a LoRA on the base."""
        return MODEL_FILE in self.files

    @property
    def kind(self) -> str:
        """`merged` or `lora`, for programs."""
        return "merged" if self.merged else "lora"


def deciding(fitted: Calibration | None, silences: int, silence_keep: float) -> Calibration | None:
    """What decides for a version: its fit, else P(silent) as the model gives it; None: the built-in rule.

    None where no silence was learned at all, as of training sets alone or by another program's trainer: what the model
    makes of saying nothing means nothing then.

    Args:
        fitted: None where there was too little history to fit one.
        silences: that were labels.
        silence_keep: part of them that was trained.
    """
    if fitted is not None or not silences:
        return fitted
    return Calibration(intercept=0.0, weights={"log_odds": 1.0}, silence_keep=silence_keep)


@dataclass(frozen=True, slots=True)
class Version:
    """A verified version: its folder and manifest."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """Its name, such as `20261122-0400`."""
        return self.manifest.version

    @property
    def lora(self) -> Path | None:
        """The LoRA's path; None of a merged version."""
        return None if self.manifest.merged else self.folder / LORA_FILE

    @property
    def model(self) -> Path | None:
        """The merged GGUF's path; None of a LoRA on the base."""
        return self.folder / MODEL_FILE if self.manifest.merged else None

    @property
    def window_tokens(self) -> int | None:
        """Length of the windows it was trained on, or None where the manifest does not say."""
        length = self.manifest.settings.get("model_max_length")
        return length if isinstance(length, int) else None

    @property
    def calibration(self) -> Calibration | None:
        """What decides for it, as the gate judged it."""
        keep = float(self.manifest.settings.get("silence_keep", 1.0))
        return deciding(self.manifest.calibration, self.manifest.corpus.get("silences") or 0, keep)


@dataclass(frozen=True, slots=True)
class Persona:
    """A persona folder that was read.

    Args:
        name: the folder's name.
        folder: where it lies.
        spec: persona.toml.
        version: the version that serves; None answers from the bare base.
        refused: why the version named by `current` is not the one serving, or None.
        prompt: a system prompt given by hand, in place of both; or None.
    """

    name: str
    folder: Path
    spec: Spec
    version: Version | None
    refused: str | None = None
    prompt: str | None = None

    @property
    def system_prompt(self) -> str:
        """The trained version's system prompt, else persona.toml's."""
        if self.prompt is not None:
            return self.prompt
        return self.version.manifest.system_prompt if self.version else self.spec.system_prompt


class Personas:
    """The persona folders under a root.

    Args:
        root: `data/personas`.
        base_sha256: hash of the base that serves; LoRAs of another base are refused. None: not checked.
    """

    def __init__(self, root: Path, base_sha256: str | None = None) -> None:
        self.root = root
        self.base_sha256 = base_sha256

    def names(self) -> list[str]:
        """Folder names of all personas, sorted."""
        found = (p.parent.name for p in self.root.glob("*/persona.toml"))
        return sorted(name for name in found if not name.startswith("."))

    def find(self, wanted: str) -> Persona:
        """The persona with this folder name or display name.

        Raises:
            PersonaError: there is none, or its persona.toml is wrong.
        """
        if wanted in self.names():
            return self.load(wanted)
        for name in self.names():
            # Another persona's broken file is no reason to refuse this one.
            with contextlib.suppress(PersonaError):
                if self.spec(name).display_name == wanted:
                    return self.load(name)
        known = "、".join(self.names()) or "none yet; make one with `twin persona new`"
        raise PersonaError(f"no persona {wanted!r} in {str(self.root)!r} (there are: {known})")

    def spec(self, name: str) -> Spec:
        """persona.toml, read and checked.

        Raises:
            PersonaError: every fault of the file, one a line.
        """
        file = self.root / name / "persona.toml"
        try:
            return Spec.model_validate(tomllib.loads(file.read_text("utf-8-sig")))
        except FileNotFoundError as e:
            raise PersonaError(f"persona {name!r} has no persona.toml; make one with `twin persona new {name}`") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise PersonaError(f"persona {name!r}: persona.toml is not readable as TOML ({e})") from e
        except ValidationError as e:
            faults = (f"persona {name!r}: persona.toml {'.'.join(map(str, x['loc']))}: {x['msg']}" for x in e.errors())
            raise PersonaError("\n".join(faults)) from e

    def load(self, name: str) -> Persona:
        """A persona with the version `current` names; if that does not verify, the newest older one that does."""
        spec, folder = self.spec(name), self.root / name
        wanted = self.current(name)
        refused = None
        if wanted is not None:
            for candidate in [wanted, *reversed(self._older(name, wanted))]:
                try:
                    return Persona(name, folder, spec, self.verify(name, candidate), refused)
                except PersonaError as e:
                    refused = refused or str(e)
        return Persona(name, folder, spec, None, refused)

    def current(self, name: str) -> str | None:
        """The version name `current` holds, or None."""
        try:
            # After a power cut it may hold anything: a name that no version has, and that sorts behind all of them.
            held = (self.root / name / "current").read_text("utf-8", "replace")
            return held.replace("\0", "\ufffd").strip() or None
        except FileNotFoundError:
            return None

    def versions(self, name: str) -> list[str]:
        """Names of all complete versions, oldest first."""
        found = (p.parent.name for p in (self.root / name / "versions").glob(f"*/{MANIFEST_FILE}"))
        return sorted(v for v in found if not v.startswith("."))

    def verify(self, name: str, version: str, *, anew: bool = False) -> Version:
        """A version whose manifest parses, whose files have the recorded hashes, and, of a LoRA, whose base is ours.

        Args:
            name: the persona.
            version: the version.
            anew: read a merged model's gigabytes again even where its hash is remembered.

        Raises:
            PersonaError: names the version and what is wrong with it.
        """
        folder = self.root / name / "versions" / version
        manifest, label = self.manifest(name, version), _label(name, version)
        self._check(folder, manifest, label, anew=anew)
        return Version(folder, manifest)

    def manifest(self, name: str, version: str) -> Manifest:
        """What a version says of itself; its files are not looked at.

        Raises:
            PersonaError: there is no manifest, or it is not valid.
        """
        return _manifest(self.root / name / "versions" / version, version, _label(name, version))

    def _check(self, folder: Path, manifest: Manifest, label: str, *, anew: bool) -> None:
        for file, expected in manifest.files.items():
            path = folder / file
            if not path.is_file():
                raise PersonaError(f"{label}: {file} is missing; choose another with `twin persona rollback`")
            # The daemon verifies between two messages: it must not read gigabytes there.
            found = digest(path) if file == MODEL_FILE and not anew else sha256(path)
            if found != expected:
                raise PersonaError(
                    f"{label}: {file} does not have the sha256 of its manifest (truncated or changed); publish it "
                    "again, or choose another with `twin persona rollback`"
                )
        if len({LORA_FILE, MODEL_FILE} & set(manifest.files)) != 1:
            raise PersonaError(f"{label}: its manifest must list either {LORA_FILE} or {MODEL_FILE}; export it again")
        if manifest.format not in FORMATS:
            known = ", ".join(FORMATS)
            raise PersonaError(f"{label}: manifest.json names the chat format {manifest.format!r}; known are {known}")
        if not manifest.merged and self.base_sha256 is not None and manifest.base.sha256 != self.base_sha256:
            other = manifest.base.file
            raise PersonaError(f"{label} was trained on another base ({other}); retrain or change the base")

    def publish(self, name: str, result: Path, *, by_hand: bool = False, force: bool = False) -> Version:
        """Copy a finished version in, verify it, and make it current; atomic at every step.

        Args:
            name: the persona.
            result: a folder with manifest.json and the files it lists.
            by_hand: also what was rolled back before, since somebody wants it so.
            force: also what the gate refused; the manifest then says when it was forced.

        Raises:
            PersonaError: the result does not verify, was withdrawn, or the gate refused it; it cannot be copied, or
                another version of its name is there; nothing changed.
        """
        try:
            version = json.loads((result / MANIFEST_FILE).read_text("utf-8"))["version"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise PersonaError(f"{result.name!r} holds no readable manifest.json") from e
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise PersonaError(f"{result.name!r}: version {version!r} is no folder name such as '20261122-0400'")
        if not by_hand and self.withdrawn(name):
            self._refuse_withdrawn(name, version, _manifest(result, version, _label(name, version)))
        final = self.root / name / "versions" / version
        if not final.exists():
            label = _label(name, version)
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                with staging.scratch(final.parent, "publish", mode=0o777) as made:
                    # A remembered hash that came with the result proves nothing of the copy.
                    copy = made / version
                    shutil.copytree(result, copy, ignore=shutil.ignore_patterns(f"{MODEL_FILE}.*"))
                    manifest = _manifest(copy, version, label)
                    self._check(copy, manifest, label, anew=False)
                    _judged(copy, manifest, label, force)
                    if not final.exists():  # nor has another process been faster
                        staging.put(copy, final)
            except OSError as e:
                raise PersonaError(f"{label} cannot be copied in ({_reason(e)}); is there room?") from e
        verified = self.verify(name, version)
        # By the files: a night that was killed on the way to `current` judges them again, with other times.
        if verified.manifest.files != _manifest(result, version, _label(name, version)).files:
            raise PersonaError(
                f"persona {name!r} has another version {version!r} already; what is published is never replaced, so "
                "give the new one a name of its own"
            )
        self._restore(name, version)
        self._point(name, version)
        return verified

    def rollback(self, name: str, version: str | None = None) -> Version:
        """Make an older version current: the one named, else the one before the current.

        A newer one that serves until then was not wanted: it does not come back by itself.

        Raises:
            PersonaError: there is none, or it does not verify.
        """
        left = self.current(name)
        if version is None:
            older = self._older(name, left)
            if not older:
                raise PersonaError(f"persona {name!r} has no version before {left!r}")
            version = older[-1]
        verified = self.verify(name, version)
        self._restore(name, version)
        if left in self.versions(name) and left > version:
            self._take_back(name, left)
        self._point(name, version)
        return verified

    # -- withdrawn versions -----------------------------------------------------------------------

    def withdraw(self, name: str, why: str, now: datetime) -> Version | None:
        """Roll the serving version back by itself, and see to it that it does not come back by itself.

        Args:
            name: the persona.
            why: for whoever reads the file.
            now: aware UTC.

        Returns:
            The version that serves from now on; None, and nothing changed, where no older one is left.

        Raises:
            PersonaError: no version serves, or the older one does not verify.
        """
        bad = self.current(name)
        if bad is None:
            raise PersonaError(f"persona {name!r} has no version to withdraw")
        older = self._older(name, bad)
        if not older:
            return None
        verified = self.verify(name, older[-1])
        entry = {"why": why, "time": now.isoformat(timespec="seconds"), "weights": _weights(self.manifest(name, bad))}
        self._write_withdrawn(name, self.withdrawn(name) | {bad: entry})
        self._point(name, verified.name)
        return verified

    def withdrawn(self, name: str) -> dict[str, dict[str, Any]]:
        """Versions that were rolled back; `restored` of those that went by themselves and were brought back by hand."""
        try:
            found = json.loads((self.root / name / WITHDRAWN_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def gone_back(self, name: str, version: str, weights: str) -> str | None:
        """The version that was rolled back, and not brought back since, which a new one is.

        Args:
            name: the persona.
            version: the new one's name.
            weights: sha256 of its `lora.gguf` or `model.gguf`: the same weights under another name are the same twin.
        """
        found = self.withdrawn(name).items()
        same = (v for v, x in found if not x.get("restored") and (v == version or x.get("weights") == weights))
        return next(same, None)

    def _refuse_withdrawn(self, name: str, version: str, manifest: Manifest) -> None:
        bad = self.gone_back(name, version, _weights(manifest))
        if bad is not None:
            entry = self.withdrawn(name)[bad]
            raise PersonaError(
                f"{_label(name, version)} was rolled back on {entry.get('time')} ({entry.get('why')}) and is not "
                f"published again by itself; `twin persona rollback {name} {bad}` brings it back by hand"
            )

    def _restore(self, name: str, version: str) -> None:
        """Somebody chose a withdrawn version: it is not rolled back by itself a second time."""
        found = self.withdrawn(name)
        if version not in found:
            return
        kept = found[version]
        # What only ever went back by hand was never judged, and still may be.
        by_itself = kept.get("by_itself") if kept.get("why") == BY_HAND else kept
        others = {v: entry for v, entry in found.items() if v != version}
        self._write_withdrawn(name, others | ({version: {**by_itself, "restored": True}} if by_itself else {}))

    def _take_back(self, name: str, version: str) -> None:
        """Somebody went back from a version: note it, beside what an earlier roll-back by itself noted."""
        found = self.withdrawn(name)
        entry: dict[str, Any] = {"why": BY_HAND, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        with contextlib.suppress(PersonaError):  # one whose manifest is damaged is left all the same
            entry["weights"] = _weights(self.manifest(name, version))
        if version in found:
            entry["by_itself"] = found[version]
        self._write_withdrawn(name, found | {version: entry})

    def _older(self, name: str, version: str | None) -> list[str]:
        """Versions before one that may serve, oldest first."""
        gone = {v for v, entry in self.withdrawn(name).items() if not entry.get("restored")}
        return [v for v in self.versions(name) if (version is None or v < version) and v not in gone]

    def _write_withdrawn(self, name: str, found: dict[str, dict[str, Any]]) -> None:
        _replace(self.root / name / WITHDRAWN_FILE, json.dumps(found, ensure_ascii=False, indent=1) + "\n")

    def _point(self, name: str, version: str) -> None:
        _replace(self.root / name / "current", version + "\n")


def _replace(file: Path, text: str) -> None:
    """Write a file at once or not at all, also when the machine dies."""
    beside = file.with_name(f".{file.name}.tmp")
    with beside.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, file)


def _weights(manifest: Manifest) -> str:
    """Hash of what a version speaks with."""
    return manifest.files.get(MODEL_FILE if manifest.merged else LORA_FILE, "")


def _reason(error: OSError) -> str:
    """The first reason: shutil collects those of all files in a list of (source, target, reason)."""
    first = error.args[0] if isinstance(error, shutil.Error) and error.args else None
    return str(first[0][2]) if first else str(error.strerror)


def _label(name: str, version: str) -> str:
    return f"version {version!r} of persona {name!r}"


def _manifest(folder: Path, version: str, label: str) -> Manifest:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_text("utf-8"))
    except FileNotFoundError as e:
        raise PersonaError(f"{label} has no manifest.json; choose another with `twin persona rollback`") from e
    except (ValidationError, UnicodeDecodeError) as e:
        raise PersonaError(f"{label}: manifest.json is not valid ({str(e).splitlines()[0]})") from e
    if manifest.version != version:
        raise PersonaError(f"{label}: manifest.json is of version {manifest.version!r}; was the folder renamed?")
    return manifest


def _judged(folder: Path, manifest: Manifest, label: str, force: bool) -> None:
    """Refuse what is not what was trained, and what the gate refused; or write down that it was forced."""
    if manifest.parity.get("passed") is False:
        raise PersonaError(f"{label} is not what was trained (its proof failed): export it again; nothing publishes it")
    if manifest.gate.get("passed", True) or "forced" in manifest.gate:
        return
    if not force:
        why = ", ".join(map(str, manifest.gate.get("reasons", []))) or "no reason is noted"
        raise PersonaError(f"{label} was refused by the gate ({why}); --force publishes it all the same, on record")
    forced = {**manifest.gate, "forced": datetime.now(UTC).isoformat(timespec="seconds")}
    text = manifest.model_copy(update={"gate": forced}).model_dump_json(indent=1)
    (folder / MANIFEST_FILE).write_text(text, "utf-8")


TEMPLATE = """\
# Who is imitated and how they answer. Texts in 【】 are examples: write your own, short sentences are best.

# The name people see, and one the twin listens to.
display_name = {display_name}
# Further names it listens to.
nicknames = []
# QQ numbers of the person, or ids as `twin import` told them: their messages are what is learned.
people = {people}

[who]
# Who it is: one or two sentences.【在读研究生，住在学校旁边，养一只猫】
identity = {identity}
# What it never says or does.【不透露住址和单位，不谈借钱】
limits = ""

[speech]
# How it speaks.【短句，一次发两三条，句尾不加句号，爱用[捂脸]】
style = ""

[leaning]
# What it warms to.【猫、奶茶、下雨天】
likes = ""
# What it does not answer.【广告和链接不理】
ignores = ""

[sampling]
# 0.7 and 0.9: the unlikely words, where a small model derails, are hardly ever drawn.
temperature = 0.7
top_p = 0.9
# A chat turn is rarely over 60 tokens; the rest is a guard.
max_tokens = 512

[reply]
# Added to the log-odds of speaking everywhere; above 0 is more talkative.
bias = 0.0
"""


def new_persona(root: Path, name: str, display_name: str, people: tuple[str, ...], identity: str = "") -> Path:
    """Make a persona folder with a commented persona.toml; gives the file.

    Args:
        root: `data/personas`.
        name: of the folder.
        display_name: the name people see.
        people: the imitated person's QQ numbers, or ids of another messenger (`wxid_…`, a name where a format has
            nothing else); none: it learns from training sets alone.
        identity: who it is, where that is known.

    Raises:
        PersonaError: the name is no folder name or is taken.
    """
    if not NAME.fullmatch(name):
        raise PersonaError(f"persona name {name!r} must be letters, digits, - or _")
    file = root / name / "persona.toml"
    if file.exists():
        raise PersonaError(f"persona {name!r} exists already: {file}")
    file.parent.mkdir(parents=True, exist_ok=True)
    quoted, who = (json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f") for text in (display_name, identity))
    file.write_text(TEMPLATE.format(display_name=quoted, people=json.dumps(list(people)), identity=who), "utf-8")
    return file
