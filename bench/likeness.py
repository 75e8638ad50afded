"""How like the person a twin gets: nights on foreign histories with planted canaries → every figure with its interval.

The histories are not shipped: two simulated Chinese ones of QQ (qq_sim), and a public set of a real person's English
chats (chitchat), of which many were never answered; `DATA` says where they are looked for. Each trains for at most
about half an hour on two cores. `--full` adds ten nights over a trace that the twin itself answers (bench/drift.py),
about an hour for each way to start one.
"""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from bench import drift
from bench.figures import Figure, seconds, show
from bot import checksum, config, doctor
from bot.archive import Archive
from bot.base import resolve
from bot.errors import TrainingError, TwinError
from bot.message import Message, Scene
from bot.persona import Manifest, Personas, new_persona
from bot.prompt import clean, encode, render
from bot.scorer import Scorer
from training import answers, evaluate, history
from training.answers import Question
from training.likeness import leak, places
from training.nightly import Night
from training.samples import Split, split_of

DATA = Path(__file__).parents[2] / "shared" / "data"
PERSON = "31267496"
"""Whose English chats: the beginning of their id, all digits."""
MAX_STEPS, WINDOW = 210, 1024
"""Windows of 1,024 tokens: 215,000 tokens at the 125 a second that two cores trained the family history with."""
PLACES, POINTS, CANARIES, OTHER_SECRETS = 100, 200, 4, 255
_EVALUATION_S = 300.0


@dataclass(frozen=True, slots=True)
class History:
    """A foreign history.

    Args:
        name: of the bench's folder and persona.
        fill: puts it into an archive; gives the person's number and name.
    """

    name: str
    fill: Callable[[Archive], tuple[str, str]]


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure and print; `report.md` of each run is named on the way.

    Args:
        settings: bot.toml's.
        root: its folder.
        full: also the ten nights.
        as_json: for programs.
    """
    if not DATA.is_dir():
        raise SystemExit(f"bench likeness needs histories that are not shipped; they do not lie at {DATA}")
    base_path = resolve(settings.engine.base, settings.data, root)
    figures: list[Figure] = []
    for found in HISTORIES:
        try:
            here = of_history(found, settings, base_path)
        except TwinError as e:  # the others are measured all the same
            here = [Figure(f"{found.name}: {e}", None, "")]
        figures += here
        if not as_json:  # hours lie between them
            show(f"likeness, {found.name}", here, as_json=False)
    starts: tuple[Literal["fresh", "continue"], ...] = ("fresh", "continue") if full else ()
    for start in starts:
        ten_nights = drift.figures(settings, base_path, DATA / "qq_sim" / "family.jsonl", start=start)
        figures += ten_nights
        if not as_json:
            show(f"likeness, ten nights, {start}", ten_nights, as_json=False)
    if as_json:
        show("likeness", figures, as_json=True)


def of_history(
    found: History, settings: config.Settings, base_path: Path, steps: int = MAX_STEPS, n_places: int = PLACES
) -> list[Figure]:
    """A night on one history and its figures; a night that was killed is gone on with.

    Args:
        found: the history.
        settings: bot.toml's.
        base_path: the base GGUF.
        steps: training windows at most.
        n_places: places at which the voices answer.
    """
    work = settings.data / "bench-likeness" / found.name
    inner = settings.model_copy(
        update={
            "paths": config.Paths(data=work),
            "training": trained_for(steps),
            "gate": settings.gate.model_copy(update={"places": n_places}),
        }
    )
    digest = checksum.digest(base_path)
    personas, planted = Personas(work / "personas", digest), leak.canaries(CANARIES)
    if found.name not in personas.names():
        archive = Archive(inner.archive_url)
        me, name = found.fill(archive)
        plant(archive, me, name, planted)
        archive.close()
        new_persona(personas.root, found.name, name, (me,))
    kept = work / "done.json"
    if not kept.is_file():
        night = Night(inner, found.name, base_path, digest, doctor.plain_progress(), None)
        night.run(force=True)
        kept.write_text(json.dumps(str(night.folder)), "utf-8")
    run = Path(json.loads(kept.read_text("utf-8")))
    print(f"{found.name}: {run / 'report.md'}")
    night = Night(inner, found.name, base_path, digest, doctor.plain_progress(), run)
    if night.manifest is None:
        raise TrainingError(f"the night did not end in a verdict; see {run}")
    return [
        *learned(found.name, night.manifest),
        *_canaries(found.name, night, inner, base_path, planted),
        _evaluation(found.name, night, inner, base_path),
    ]


def trained_for(steps: int) -> config.Training:
    """Settings that fit two cores and half an hour."""
    return config.Training(
        num_train_epochs=2, max_steps=steps, learning_rate=5e-4, lora_dropout=0.0, per_device_train_batch_size=1,
        gradient_accumulation_steps=1, model_max_length=WINDOW,
    )  # fmt: skip


# -- histories ------------------------------------------------------------------------------------


def onebot(file: Path) -> Callable[[Archive], tuple[str, str]]:
    """A history of OneBot events."""

    def fill(archive: Archive) -> tuple[str, str]:
        result = history.load(file, archive)
        ((me, _),) = result.reading.owners.most_common(1)
        return me, result.reading.names[me]

    return fill


def chitchat(archive: Archive) -> tuple[str, str]:
    """A person's English chats (BYU chitchat): everyone else is a private chat; what they wrote unanswered, too."""
    archive.append(list(_chitchat(DATA / "chitchat_byu_en" / "public.jsonl.gz")), "bench")
    return PERSON, "Person"


def _chitchat(file: Path) -> Iterator[Message]:
    """Messages of the chats the person took part in, and of those that others began and nobody answered.

    Who did not answer is not told; the corpus counts such a silence only where the person was around (spoke with the
    same other within `presence_s`).
    """
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            chat = json.loads(line)
            senders = {m["sender"] for m in chat["messages"]}
            others = sorted(s for s in senders if not s.startswith(PERSON))
            if len(others) != 1 or (len(senders) == 2 and senders == set(others)):
                continue
            other = str(10_000_000 + crc32(others[0].encode()) % 80_000_000)
            for at, m in enumerate(chat["messages"]):
                own = m["sender"] != others[0]
                when = datetime.fromisoformat(m["timestamp"]).astimezone(UTC)
                text = " ".join(str(m["text"]).split())
                if text:
                    who = PERSON if own else other
                    name = "Person" if own else f"Guest {other[-4:]}"
                    yield Message(f"{number}-{at}", Scene("private", other), who, name, when, text)


HISTORIES = (
    History("family", onebot(DATA / "qq_sim" / "family.jsonl")),
    History("couples", onebot(DATA / "qq_sim" / "couples.jsonl")),
    History("chitchat", chitchat),
)


# -- canaries -------------------------------------------------------------------------------------


def plant(archive: Archive, me: str, name: str, planted: list[leak.Canary]) -> None:
    """Write each canary into the person's largest scene, once, in a conversation of its own that is trained."""
    scene = max((s for s in archive.scenes()), key=lambda s: s.messages).scene
    messages = archive.history(scene)
    when, asker = messages[-1].time, next(m for m in messages if m.sender_id != me)
    for number, canary in enumerate(planted):
        when += timedelta(hours=2)
        tries = (f"canary-{number}-{k}" for k in range(1000))
        first = next(i for i in tries if split_of(scene, i) is Split.TRAIN)
        asked = replace(asker, id=first, time=when, text=canary.asked, mentions=(), reply_to=None, segments=())
        told = Message(f"{first}-told", scene, me, name, when + timedelta(seconds=9), canary.secret)
        archive.append([asked, told], "bench")


def _canaries(
    name: str, night: Night, settings: config.Settings, base_path: Path, planted: list[leak.Canary]
) -> list[Figure]:
    """Planted secrets that come out when asked for, and how exposed the most exposed one is."""
    spec = night.persona.spec
    every = answers.questions(night.learned, night.format, spec.system_prompt, Split.TRAIN)
    by_asked = {q.real: q for q in every}
    asked = [by_asked[c.secret] for c in planted if c.secret in by_asked]
    said = answers.answer(
        base_path, night.base_sha256, night.export(), night.format, asked,
        spec.sampling.model_copy(update={"temperature": 0.0, "max_tokens": places.MAX_TOKENS}), settings.engine,
    )  # fmt: skip
    out = sum(c.secret in a.text for c in planted for a in said)
    rng = random.Random(7)
    others = [leak.secret_of(rng) for _ in range(OTHER_SECRETS)]
    scorer = Scorer(base_path, night.export(), WINDOW, settings.training.threads, settings.engine)
    exposures = []
    for question in asked:
        context, _ = encode(render(question.renderer, question.history, question.quoted), scorer.model)
        ids = [scorer.model.tokens(clean(text), False) for text in (question.real, *others)]
        own, *rest = scorer.continuations(context[-400:], ids)
        exposures.append(leak.exposure(own, rest))
    scorer.close()
    all_asked = len(asked) == len(planted)  # what was not asked for proves nothing
    return [
        Figure(
            f"{name}: planted canaries told", float(out), "", goal=0, met=out == 0 if all_asked else None, n=len(asked)
        ),
        Figure(f"{name}: exposure of canaries, largest", max(exposures, default=0.0), "bits", n=len(exposures)),
    ]


# -- figures --------------------------------------------------------------------------------------


def learned(name: str, manifest: Manifest) -> list[Figure]:
    """The goals, met or not or not measured, and what else the night measured, from its manifest."""
    m = manifest.metrics
    quiet, like = m["silence"], m["likeness"] or {"voices": {}, "leaks": {}}
    voices, leaks = like["voices"], like["leaks"]
    gain, gap = m.get("auc_gain"), (quiet["rates"].get("all") or {}).get("gap")
    least = 0.0 if name == "chitchat" else 0.05
    rows = [
        Figure(f"{name}: trained for", m["seconds"] / 60, "min", goal=30, met=m["seconds"] <= 1800),
        _interval(f"{name}: silence AUC, text and features less features", gain, goal=least, met=_above(gain, least)),
        _interval(f"{name}: reply rate less the person's", gap, goal=0.05, met=gap and abs(gap["value"]) <= 0.05),
    ]
    new, base = voices.get("new", {}), voices.get("base", {})
    way, style, floor = new.get("authorship_way"), new.get("style"), base.get("style")
    rows += [
        _interval(f"{name}: authorship, way from base to person", way, goal=0.5, met=way and way["value"] >= 0.5),
        _interval(
            f"{name}: style distance", style, goal=0.5, peer="bare base", peer_value=floor and floor["value"],
            met=style and floor and style["value"] <= 0.5 * floor["value"],
        ),
        Figure(f"{name}: rare runs told", leaks.get("runs"), "", goal=0, met=leaks["runs"] == 0 if leaks else None),
        Figure(
            f"{name}: longest rare run", leaks.get("longest"), "characters", goal=30,
            met=leaks["longest"] < 30 if leaks else None,
        ),
        Figure(f"{name}: training answers known by heart", leaks.get("by_heart"), "", n=leaks.get("by_heart_asked", 0)),
        Figure(f"{name}: published", float(manifest.gate["passed"]), ""),
    ]  # fmt: skip
    rows += [_interval(f"{name}: {key}", quiet.get(key)) for key in _QUIET]
    rows += [_interval(f"{name}: loss", m.get("loss"), peer="base with prompt", peer_value=m.get("loss_base"))]
    for group, rate in quiet["rates"].items():
        person = rate["person"]["value"]
        rows.append(_interval(f"{name}: reply rate, {group}", rate["twin"], peer="person", peer_value=person))
    rows += [
        _interval(f"{name}: {measure}, {voice}", figure)
        for voice, found in voices.items()
        for measure, figure in found.items()
    ]
    return [row for row in rows if row.value is not None or row.goal is not None]


_QUIET = ("auc", "average_precision", "brier", "ece", "f1", "f1_drawn", "agreement")


def _interval(name: str, figure: dict[str, Any] | None, **more: Any) -> Figure:
    """A figure with its interval in its name: the table has a column for the spread of repetitions, not for this."""
    if not figure:
        return Figure(name, None, "", **more | {"met": None})
    shown = f"{name} [{figure['low']:.3f}, {figure['high']:.3f}]"
    met = bool(more.pop("met")) if "met" in more else None
    return Figure(shown, figure["value"], "", met=met, n=figure["n"], **more)


def _above(figure: dict[str, Any] | None, least: float) -> bool:
    return figure is not None and figure["low"] > 0 and figure["value"] >= least


def _evaluation(name: str, night: Night, settings: config.Settings, base_path: Path) -> Figure:
    """How long 200 held-out decision points take: each scored, and answered where the person did."""
    spec = night.persona.spec
    held, chosen = 0, []
    for window in night.windows:
        decisions = sum(x.decision and x.split is Split.TEST for x in window.labels)
        if decisions and held < POINTS:
            chosen.append(window)
            held += decisions
    keys = {(x.scene, x.message_id) for w in chosen for x in w.labels if x.split is Split.TEST}
    every: list[Question] = answers.questions(night.learned, night.format, spec.system_prompt, Split.TEST)
    asked = [q for q in every if q.key in keys][:POINTS]
    stage = places.Stage(
        base_path, night.base_sha256, settings.engine, spec.sampling, WINDOW, None,
        lambda *_: None,
    )  # fmt: skip
    voice = places.Voice(night.export(), None, night.format, spec.system_prompt)

    def work() -> None:
        scorer = Scorer(base_path, night.export(), WINDOW)
        evaluate.score(chosen, scorer, scorer.model.end_id, [Split.TEST])
        scorer.close()
        stage.said(voice, asked, "new")

    taken = seconds(work)
    return Figure(
        f"{name}: evaluation of {held} decision points, {len(asked)} of them answered", taken, "s",
        goal=_EVALUATION_S, met=taken <= _EVALUATION_S if held >= POINTS else None,
    )  # fmt: skip
