"""training/tempo.py on hand-made archives whose tempo is known, and the daemon's draws from what was learned."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from chats import FRIEND, GROUP, ME, PRIVATE

from bot.archive import Archive
from bot.config import Chat, Conversation
from bot.message import Message, Origin, Scene
from bot.pacing import DEFAULT_DELAY_S, DEFAULT_GAP_S, Pace, situations
from bot.persona import Pacing, Tempo
from training import tempo
from training.corpus import build

DAY = datetime(2026, 1, 1, tzinfo=UTC)
ANY = Chat(delay_cap_s=1e6)


class Life:
    """An archive written day by day."""

    def __init__(self, folder: Path) -> None:
        self.archive = Archive(f"sqlite:///{folder / 'archive.db'}")
        self._n = 0

    def say(self, time: datetime, sender: str, text: str, scene: Scene, origin: Origin = Origin.HUMAN) -> None:
        self._n += 1
        # Milliseconds and never backwards: what is asked for is what is stored.
        self.archive.append([Message(f"m{self._n}", scene, sender, "", time, text, origin)])

    def talk(
        self, day: int, hour: float, scene: Scene, cold_s: float, mid_s: float, heard: str = "在吗", answer: str = "嗯"
    ) -> None:
        """A conversation at a Shanghai hour: words answered after `cold_s`, and more words answered after `mid_s`."""
        start = DAY + timedelta(days=day, hours=hour - 8)
        self.say(start, FRIEND, heard, scene)
        self.say(start + timedelta(seconds=cold_s), ME, answer, scene)
        again = start + timedelta(seconds=cold_s + 60)
        self.say(again, FRIEND, heard, scene)
        self.say(again + timedelta(seconds=mid_s), ME, answer, scene)

    def learned(self) -> Tempo | None:
        return tempo.learn(build(self.archive, [ME], [], Conversation()))


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    found = Life(tmp_path)
    yield found
    found.archive.close()


def drawn(
    learned: Tempo, *, private: bool, cold: bool, hour: float, heard: str = "在吗", bubble: str = "嗯"
) -> list[float]:
    of = situations(private=private, cold=cold, hour=hour)
    pacing = Pacing(tempo=learned)
    return [Pace(pacing, ANY, random.Random(n), of, heard).first_s(bubble) for n in range(400)]


def test_every_situation_is_answered_as_fast_as_the_person_does_there(life: Life) -> None:
    rng = random.Random(1)
    laws: dict[tuple[Scene, float], tuple[float, float]] = {
        (PRIVATE, 13.0): (200, 4), (PRIVATE, 20.0): (200, 12), (GROUP, 13.0): (400, 30),
    }  # fmt: skip
    for day in range(300):
        for (scene, hour), (cold, mid) in laws.items():
            life.talk(day, hour, scene, cold * rng.uniform(0.5, 1.5), mid * rng.uniform(0.5, 1.5))
    learned = life.learned()
    assert learned is not None
    for (scene, hour), (cold, mid) in laws.items():
        for is_cold, median in ((True, cold), (False, mid)):
            found = np.quantile(drawn(learned, private=scene.private, cold=is_cold, hour=hour), [0.1, 0.5, 0.9])
            # A uniform law: 0.6, 1.0 and 1.4 of the median; a twentieth of it is what others take.
            assert found == pytest.approx(np.array([0.6, 1.0, 1.4]) * median, rel=0.25), (scene, hour, is_cold)
    unseen_hour = drawn(learned, private=True, cold=False, hour=3.0)
    assert 4 <= np.median(unseen_hour) <= 12, "never awake at that hour: as in any such conversation"


@pytest.mark.parametrize(("n", "low", "high"), [(1, 8.5, 10), (5, 13, 19), (20, 32, 40), (400, 57, 61)])
def test_what_was_seen_counts_the_more_the_more_there_is(life: Life, n: int, low: float, high: float) -> None:
    for day in range(n):
        life.talk(day, 13.0, PRIVATE, 60, 60)
    learned = life.learned()
    assert learned is not None
    assert low <= np.median(drawn(learned, private=True, cold=False, hour=13.0)) <= high, DEFAULT_DELAY_S[5]


def test_typing_is_learned_by_characters(life: Life) -> None:
    rng = random.Random(2)
    start = DAY
    for number in range(300):
        start += timedelta(hours=2)
        life.say(start, FRIEND, "在吗", PRIVATE)
        when = start + timedelta(seconds=5)
        for _ in range(3):
            text = "字" * rng.randint(1, 30)
            when += timedelta(seconds=1.0 + 0.4 * len(text) + rng.uniform(-0.3, 0.3))
            life.say(when, ME, text, PRIVATE)
        if number % 10 == 0:  # somebody came to the door
            life.say(when + timedelta(seconds=rng.uniform(100, 900)), ME, "回来了", PRIVATE)
    learned = life.learned()
    assert learned is not None
    assert learned.type_s_per_char == pytest.approx(0.4, abs=0.03)
    pace = Pace(Pacing(tempo=learned), ANY, random.Random(0), situations(private=True, cold=False, hour=13))
    short, long = (float(np.median([pace.next_s("字" * n) for _ in range(200)])) for n in (2, 20))
    assert short == pytest.approx(1.8, abs=0.4)
    assert long == pytest.approx(9.0, abs=0.6)


def test_reading_is_learned_by_characters(life: Life) -> None:
    rng = random.Random(3)
    for day in range(400):
        heard = "字" * rng.randint(1, 100)
        life.talk(day, 13.0, PRIVATE, 30, 3 + 0.2 * len(heard) + rng.uniform(-0.5, 0.5), heard=heard)
    learned = life.learned()
    assert learned is not None
    assert learned.read_s_per_char == pytest.approx(0.2, abs=0.02)
    short, long = (
        float(np.median(drawn(learned, private=True, cold=False, hour=13.0, heard="字" * n))) for n in (5, 80)
    )
    assert long - short == pytest.approx(15, abs=2)


def test_nothing_is_learned_from_the_twin_or_from_silence(life: Life) -> None:
    life.say(DAY, ME, "早", GROUP)
    for day in range(30):
        start = DAY + timedelta(days=day + 1)
        life.say(start, FRIEND, "在吗", GROUP)
        life.say(start + timedelta(seconds=300), "40001", "在", GROUP, Origin.TWIN)
        life.say(start + timedelta(seconds=301), "40001", "在", GROUP, Origin.TWIN)
    assert life.learned() is None


@pytest.mark.parametrize("make", [lambda n: [], lambda n: [1.0] * n])
def test_deciles_rise_and_lie_between_what_was_seen_and_what_is_usual(make: Callable[[int], list[float]]) -> None:
    for n in (0, 1, 50):
        found = tempo.leaning(make(n), DEFAULT_GAP_S)
        assert list(found) == sorted(found)
        assert all(min(1.0, q) - 0.01 <= x <= max(1.0, q) + 0.01 for x, q in zip(found, DEFAULT_GAP_S, strict=True))
    assert tempo.leaning([], DEFAULT_GAP_S) == DEFAULT_GAP_S


def test_a_slope_is_not_moved_by_outliers() -> None:
    x = np.arange(200.0)
    y = 0.3 * x + 1
    y[::7] += 5000
    assert tempo.slope(x, y) == pytest.approx(0.3, abs=0.02)
    assert tempo.slope(x[:1], y[:1]) is None
    assert tempo.slope(np.ones(9), y[:9]) is None
