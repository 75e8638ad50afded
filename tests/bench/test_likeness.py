"""bench/likeness.py: where canaries are planted, and which goals a night's manifest meets."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench import likeness
from bot.archive import Archive
from bot.config import Conversation
from bot.message import Message, Scene
from bot.persona import Base, Manifest
from bot.prompt import FORMATS
from training import answers, corpus
from training.likeness import leak
from training.samples import Split

ME, FRIEND = "10001", "20001"
LARGE, SMALL = Scene("group", "30001"), Scene("private", FRIEND)
START = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)


def figure(value: float, low: float) -> dict[str, float | int]:
    return {"value": value, "low": low, "high": value + 0.1, "n": 40}


def manifest(like: dict[str, object] | None) -> Manifest:
    rate = {"person": figure(0.3, 0.2), "twin": figure(0.34, 0.2), "gap": figure(0.04, -0.1)}
    return Manifest(
        version="v1", created="2026-12-01T00:00:00Z", format="gemma", system_prompt="", files={},
        base=Base(file="b", sha256="0", architecture="gemma3"), gate={"passed": True},
        metrics={
            "seconds": 1900, "auc_gain": figure(0.06, 0.01), "likeness": like, "loss": figure(4.2, 4.1),
            "silence": {"rates": {"all": rate}, "auc": figure(0.8, 0.7)},
        },
    )  # fmt: skip


def test_canaries_are_each_said_once_in_the_largest_scene_and_trained(tmp_path: Path) -> None:
    archive = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    for scene, n in ((LARGE, 4), (SMALL, 2)):
        archive.append([
            Message(f"{scene}-{i}", scene, (FRIEND, ME)[i % 2], "某人", START + timedelta(seconds=5 * i), f"在吗{i}")
            for i in range(n)
        ])  # fmt: skip
    planted = leak.canaries(likeness.CANARIES)
    likeness.plant(archive, ME, "小满", planted)
    learned = corpus.build(archive, [ME], ["小满"], Conversation())
    archive.close()
    asked = answers.questions(learned, FORMATS["gemma"], "", Split.TRAIN)
    told = [(q.scene, q.heard, q.real) for q in asked if q.real in {c.secret for c in planted}]
    assert told == [(str(LARGE), c.asked, c.secret) for c in planted]


@pytest.mark.parametrize(("floor", "runs", "longest"), [(0.5, 0, 12), (0.3, 1, 30)])
def test_goals_are_met_or_not(floor: float, runs: int, longest: int) -> None:
    voices = {
        "new": {"style": figure(0.2, 0.1), "authorship_way": figure(0.6, 0.4)},
        "base": {"style": figure(floor, 0.1)},
    }
    found = manifest({"voices": voices, "leaks": {"runs": runs, "longest": longest}})
    met = {f.name.split(" [")[0]: f.met for f in likeness.learned("family", found) if f.goal is not None}
    assert met == {
        "family: trained for": False,
        "family: silence AUC, text and features less features": True,
        "family: reply rate less the person's": True,
        "family: authorship, way from base to person": True,
        "family: style distance": floor == 0.5,
        "family: rare runs told": runs == 0,
        "family: longest rare run": longest < 30,
    }


def test_what_was_not_measured_is_told_and_is_no_goal_met() -> None:
    found = {f.name: f for f in likeness.learned("family", manifest(None))}
    for name in ("authorship, way from base to person", "style distance", "rare runs told", "longest rare run"):
        assert (found[f"family: {name}"].value, found[f"family: {name}"].met) == (None, None)
