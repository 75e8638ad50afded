"""bot/probation.py over a real archive: which new version must go back."""

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from chats import ACCOUNT, FRIEND, ME, at, say

from bot import corrections, drift, probation
from bot.archive import Archive, Decision
from bot.config import Cleaning, Paths, Retrain, Settings
from bot.corrections import How
from bot.drift import MIN_BLOCKS, Answer, Outside
from bot.message import Scene
from bot.persona import Spec
from bot.probation import Corrected, Live, Person

SETTINGS = Settings(retrain=Retrain(watch_answers=10))
SPEC = Spec(display_name="小满", people=(ME,))
CHAT = Scene("private", "777")
DAY = 86400.0
SWAP = 100 * DAY
"""When version v2 gave its first decision, seconds after START."""


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """The person answered two of three moments for weeks, in short words."""
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    rng = random.Random(0)
    messages = []
    for n in range(700):
        messages.append(say(n * 300, "777", f"话{n}", CHAT, seq=n))
        if rng.random() < 2 / 3:
            messages.append(say(n * 300 + 5, ME, words(rng), CHAT, seq=n))
    opened.append(messages)
    opened.note(CHAT, "state", "on", at(90 * DAY))
    yield opened
    opened.close()


def words(rng: random.Random, longer: int = 0) -> str:
    return "".join(rng.choice("今天我们去哪里吃饭呢好不好呀") for _ in range(rng.randrange(2, 9) + longer))


def lives(
    archive: Archive, version: str, start: float, n: int, *, longer: int = 0, p: float = 2 / 3, corrected: int = 0,
    bias: float = 0.0,
) -> None:  # fmt: skip
    """A version answers n messages a minute apart; the first `corrected` answers are corrected."""
    rng = random.Random(start)
    logit = 0.6931 if p == 2 / 3 else (4.0 if p > 2 / 3 else -4.0)
    for k in range(n):
        when = start + k * 60
        heard = say(when, "777", f"新话{when:g}", CHAT, seq=int(when))
        said = say(when + 3, ACCOUNT, words(rng, longer), CHAT, id=f"s{when:g}", seq=int(when))
        archive.append([heard, said])
        why = {"terms": {"intercept": logit, "shift:bias": bias}}
        archive.decide(Decision(CHAT, heard.id, at(when + 4), "xiaoman", version, "spoke", why))
        if k < corrected:
            corrections.correct(archive, said, How.HUSH, (), by=FRIEND, told=None, persona="xiaoman", now=at(when + 5))


def judged(
    archive: Archive, after: float = DAY, settings: Settings = SETTINGS
) -> Corrected | list[Outside] | None:  # fmt: skip
    def person(until: object) -> probation.Person:
        return probation.person(archive, SPEC, settings, until)  # type: ignore[arg-type]

    return probation.judge(archive, "xiaoman", SPEC, "v2", settings, at(SWAP + after), person)


def test_a_version_like_the_person_stays(archive: Archive) -> None:
    lives(archive, "v2", SWAP, 100)
    assert judged(archive) is None


@pytest.mark.parametrize(
    ("corrected", "back"), [(3, False), (4, False), (10, True)]  # 4 of 20: as low as 8 %; 10 of 20: 30 %
)  # fmt: skip
def test_it_goes_back_when_more_than_a_tenth_was_surely_corrected(archive: Archive, corrected: int, back: bool) -> None:
    lives(archive, "v2", SWAP, 20, corrected=corrected)
    assert judged(archive) == (Corrected(corrected, 20, (0, 0)) if back else None)


def test_few_corrections_are_an_evenings_mood(archive: Archive) -> None:
    lives(archive, "v2", SWAP, 3, corrected=3)
    assert judged(archive) is None


def test_what_the_version_before_did_no_better_is_no_reason(archive: Archive) -> None:
    lives(archive, "v1", SWAP - 10 * DAY, 20, corrected=14, longer=30)
    lives(archive, "v2", SWAP, 20, corrected=10, longer=30)
    assert judged(archive) is None


def test_answers_unlike_the_persons_are_named(archive: Archive) -> None:
    lives(archive, "v1", SWAP - 10 * DAY, 20)
    lives(archive, "v2", SWAP, 21, longer=30)  # two blocks, and the one said before the first decision
    found = judged(archive)
    assert isinstance(found, list)
    assert [o.measure for o in found] == ["log_chars"]
    assert found[0].value > found[0].band.high


@pytest.mark.parametrize(("as_ever", "unlike"), [(0, 20), (11, 10)])
def test_one_block_unlike_the_person_is_an_evenings_mood(archive: Archive, as_ever: int, unlike: int) -> None:
    lives(archive, "v2", SWAP, as_ever)
    lives(archive, "v2", SWAP + 3600, unlike, longer=30)
    assert judged(archive) is None
    lives(archive, "v2", SWAP + 7200, 21 - unlike, longer=30)  # now two blocks are
    assert isinstance(judged(archive), list)


def test_of_the_version_before_one_block_outside_is_doubt_enough(archive: Archive) -> None:
    lives(archive, "v1", SWAP - 10 * DAY, 11, longer=30)
    lives(archive, "v2", SWAP, 21, longer=30)
    assert judged(archive) is None


def voice(rng: random.Random, n: int) -> list[Answer]:
    """Answers of one person: lengths log-normal, short words again and again, a face or laughter at times."""
    found: list[Answer] = []
    for _ in range(n):
        bubbles: list[str] = []
        while not bubbles or (rng.random() < 0.35 and len(bubbles) < 5):
            length = max(1, round(rng.lognormvariate(1.8, 0.6)))
            long = "".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(length))
            text = rng.choice(["嗯", "好", "哈哈哈", "行", "好的", "哦哦", "来了"]) if rng.random() < 0.25 else long
            bubbles.append(text + rng.choice(["。", "[捂脸]", "哈哈", *[""] * 15]))
        found.append(tuple(bubbles))
    return found


def withdrawn(history: list[Answer], live: list[Answer], block: int) -> bool:
    """Whether a week of answers, looked at every five of them, ever lies outside the bands of a history."""
    bands = Person(drift.style_bands(history, block, SETTINGS.retrain.drift_sigmas), {})
    looks = range(block, len(live) + 1, 5)
    return any(probation.outside(Live((), live[:end]), bands, block) for end in looks)


def test_of_versions_that_are_the_person_next_to_none_goes_back_in_a_week() -> None:
    """With the least history. One block outside four standard deviations withdrew two of five."""
    block, weeks = 30, 100
    rng = random.Random(0)
    histories = [voice(rng, block * MIN_BLOCKS) for _ in range(weeks)]
    assert sum(withdrawn(history, voice(rng, 210), block) for history in histories) <= weeks // 50
    # And another's voice goes back, from as little history.
    other: list[Answer] = [tuple(f"{bubble}，{bubble}，{bubble}。" for bubble in answer) for answer in voice(rng, 60)]
    assert all(withdrawn(history, other, block) for history in histories)


@pytest.mark.parametrize("drop", [True, False])
def test_pictures_that_are_not_trained_are_no_part_of_the_persons_band(tmp_path: Path, drop: bool) -> None:
    """A third of the person's bubbles are pictures, some answers nothing else; the twin says just their words."""
    settings = Settings(
        retrain=Retrain(watch_answers=30), corpus=Cleaning(drop_media=drop), paths=Paths(data=tmp_path / "data")
    )
    archive = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    rng = random.Random(3)
    said, messages = [], []
    for n in range(900):
        bubbles = [words(rng) + rng.choice(["", "", "[捂脸]"]) for _ in range(rng.randrange(1, 3))]
        said.append(bubbles)
        for k, text in enumerate(["[图片]", *bubbles] if n % 2 else [bubbles[0], "[图片]", *bubbles[1:]]):
            messages.append(say(n * 300 + k, ME, text, CHAT, seq=n))
        messages.append(say(n * 300 + 100, "777", f"话{n}", CHAT, seq=n))
        if n % 5 == 0:
            messages.append(say(n * 300 + 150, ME, "[图片][语音]", CHAT, seq=n))
            messages.append(say(n * 300 + 200, "777", "哇", CHAT, seq=n))
    archive.append(messages)
    bands = probation.person(archive, SPEC, settings, at(SWAP))
    archive.close()
    found = probation.outside(Live((), said[-60:]), bands, 30)
    assert [o.measure for o in found] == ([] if drop else ["bubbles", "distinct"])


def test_both_sides_are_read_as_the_model_sees_them(tmp_path: Path) -> None:
    """The person mentions somebody in every line, the twin in every second; a model that is shown none reads none."""
    mention = f"@{'阿强' * 10} "
    settings = SETTINGS.model_copy(update={"corpus": Cleaning(strip_mentions=True), "paths": Paths(data=tmp_path)})
    archive = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    rng = random.Random(4)
    for n in range(200):
        line = words(rng)
        archive.append([say(n * 300, ME, f"{mention}{line}", CHAT, seq=n), say(n * 300 + 9, "777", "嗯", CHAT, seq=n)])
    for n in range(22):
        when = SWAP + n * 60
        twins = (mention if n % 2 else "") + words(rng)
        archive.append([say(when, "777", "在", CHAT, seq=n), say(when + 3, ACCOUNT, twins, CHAT, seq=n)])
        archive.decide(Decision(CHAT, f"777-{when:g}", at(when + 3), "xiaoman", "v2", "spoke"))
    assert judged(archive, settings=settings) is None
    assert isinstance(judged(archive), list), "with mentions in sight they differ"
    archive.close()


def test_a_rate_the_person_never_had_is_named_and_the_owners_bias_is_none(archive: Archive) -> None:
    lives(archive, "v2", SWAP, 79, p=0.98)
    assert judged(archive) is None, "two blocks of 40 moments are needed"
    lives(archive, "v2", SWAP + 2 * 3600, 1, p=0.98)
    found = judged(archive)
    assert isinstance(found, list)
    assert [o.measure for o in found] == ["rate_private"]
    assert 0.5 < found[0].band.mean < 0.8


def test_the_owners_bias_is_no_drift(archive: Archive) -> None:
    lives(archive, "v2", SWAP, 100, bias=30.0)
    assert judged(archive) is None


@pytest.mark.parametrize(("days", "looked_at"), [(6.9, True), (7.1, False)])
def test_it_is_looked_at_for_a_week(archive: Archive, days: float, looked_at: bool) -> None:
    lives(archive, "v2", SWAP, 20, corrected=10)
    assert (judged(archive, days * DAY) is not None) == looked_at


def test_a_version_that_decided_nothing_yet_is_not_judged(archive: Archive) -> None:
    lives(archive, "v1", SWAP - DAY, 20, corrected=10)
    assert judged(archive) is None
    assert timedelta(days=SETTINGS.retrain.watch_days) == timedelta(days=7)


def test_a_bad_version_takes_no_good_one_before_it_along(archive: Archive) -> None:
    lives(archive, "v0", SWAP - 2 * DAY, 21)
    lives(archive, "v1", SWAP - DAY, 21)
    lives(archive, "v2", SWAP, 21, longer=30)
    found = judged(archive)
    assert isinstance(found, list)
    assert "log_chars" in {o.measure for o in found}

    def person(until: object) -> probation.Person:
        return probation.person(archive, SPEC, SETTINGS, until)  # type: ignore[arg-type]

    # v2 is withdrawn, and v1 serves again: it is looked at before it says anything new.
    for version in ("v1", "v0"):
        assert probation.judge(archive, "xiaoman", SPEC, version, SETTINGS, at(SWAP + DAY), person) is None


@pytest.mark.parametrize(("before", "back"), [(21, True), (5, False)])
def test_nothing_goes_back_to_a_version_that_hardly_said_anything(archive: Archive, before: int, back: bool) -> None:
    lives(archive, "v1", SWAP - DAY, before)
    lives(archive, "v2", SWAP, 21, longer=30)
    assert bool(judged(archive)) is back
