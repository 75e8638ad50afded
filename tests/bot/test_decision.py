"""bot/decision.py: every term in the open."""

import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME, PRIVATE, at, say
from hypothesis import given
from hypothesis import strategies as st

from bot.decision import (
    FEATURES,
    Moment,
    decide,
    features,
    in_words,
    local_hour,
    loop_shift,
    moment_of,
    sigmoid,
    speak_log_odds,
)
from bot.message import Message, Origin
from bot.persona import Base, Calibration, Manifest, Version
from bot.prompt import Exchange

SHANGHAI = ZoneInfo("Asia/Shanghai")
QUIET = Moment(
    p_silent=None, since_spoke_s=None, private=False, mentioned=False, quoted=False, named=False, burst=1, hour=12.0
)
LEARNED = Calibration(intercept=0.5, weights={"log_odds": 1.0, "mentioned": 2.0, "burst": -0.5}, silence_keep=1.0)


def moment(*heard: Message, p_silent: float | None = None) -> Moment:
    own = {"own": say(0, ME, "我说的", id="own"), "theirs": say(0, FRIEND, "他说的", id="theirs")}
    return moment_of(
        Exchange(heard=list(heard)), last_spoke=at(-90), ids={ME, ACCOUNT}, names=("小满", "满满"),
        quoted=lambda m: own.get(m.reply_to or ""), ours=lambda m: m.sender_id == ME, zone=SHANGHAI, p_silent=p_silent,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n", "gap_s", "third", "origin", "shift"),
    [
        (16, 3, False, Origin.TWIN, -1.5), (13, 3, False, Origin.TWIN, 0.0), (16, 30, False, Origin.TWIN, 0.0),
        (16, 3, True, Origin.TWIN, 0.0), (16, 3, False, Origin.HUMAN, 0.0),
        # At a person's pace, and with whomever, it takes longer.
        (26, 60, False, Origin.TWIN, -0.5), (25, 60, False, Origin.TWIN, 0.0), (30, 60, True, Origin.TWIN, -2.5),
        (30, 3, True, Origin.TWIN, -2.5), (60, 120, False, Origin.TWIN, 0.0), (60, 60, False, Origin.HUMAN, 0.0),
    ],
)  # fmt: skip
def test_only_exchanges_that_go_on_without_a_pause_look_like_a_loop(
    n: int, gap_s: int, third: bool, origin: Origin, shift: float
) -> None:
    history = []
    for i in range(n):
        start = i * (gap_s + 2)
        heard = say(start, "10002" if third and i == n - 2 else FRIEND, "好")
        said = [say(start + 2, ACCOUNT, "好", origin=origin)] if i < n - 1 else []
        history.append(Exchange(heard=[heard], said=said))
    assert loop_shift(history) == shift


def test_a_silence_of_ours_ends_what_looks_like_a_loop() -> None:
    history = [Exchange(heard=[say(9 * i, FRIEND, "好")], said=[say(9 * i + 2, ACCOUNT, "好")]) for i in range(40)]
    last = Exchange(heard=[say(400, FRIEND, "好")])
    assert loop_shift([*history, last]) == -8.0
    history[-3] = Exchange(heard=history[-3].heard)
    assert loop_shift([*history, last]) == 0


def test_a_moment_tells_what_the_burst_was() -> None:
    found = moment(say(0, FRIEND, "嗨"), say(10, FRIEND, "在吗"), p_silent=0.25)
    assert found == Moment(0.25, 100.0, False, False, False, False, 2, 23 + 10 / 60)


@pytest.mark.parametrize(
    ("message", "flags"),
    [
        (say(0, FRIEND, "嗨", mentions=(ME,)), (True, False, False)),
        (say(0, FRIEND, "嗨", mentions=(ACCOUNT,)), (True, False, False)),
        (say(0, FRIEND, "嗨", mentions=("10002", "all")), (False, False, False)),
        (say(0, FRIEND, "嗨", reply_to="own"), (False, True, False)),
        (say(0, FRIEND, "嗨", reply_to="theirs"), (False, False, False)),
        (say(0, FRIEND, "嗨", reply_to="gone"), (False, False, False)),
        (say(0, FRIEND, "满满在吗"), (False, False, True)),
    ],
)
def test_mention_quote_and_name_are_told_apart(message: Message, flags: tuple[bool, bool, bool]) -> None:
    found = moment(message)
    assert (found.mentioned, found.quoted, found.named) == flags


def test_a_private_chat_is_known_as_one() -> None:
    assert moment(say(0, FRIEND, "嗨", PRIVATE)).private
    assert not moment(say(0, FRIEND, "嗨", GROUP)).private


def test_every_feature_has_a_value_and_the_model_is_left_out_where_there_is_none() -> None:
    assert set(features(QUIET)) == set(FEATURES) - {"log_odds"}
    known = Moment(0.5, 10, True, True, True, True, 3, 18.0)
    values = features(known)
    assert set(values) == set(FEATURES)
    assert values["log_odds"] == 0.0
    assert values["since_spoke"] == pytest.approx(math.log(11))
    assert (values["hour_sin"], values["hour_cos"]) == (pytest.approx(-1), pytest.approx(0))


def test_never_having_spoken_counts_as_three_days() -> None:
    three_days = Moment(None, 3 * 86400.0, False, False, False, False, 1, 12.0)
    ages_ago = Moment(None, 1e9, False, False, False, False, 1, 12.0)
    assert features(QUIET) == features(three_days) == features(ages_ago)


def test_subsampled_silences_are_corrected_for_once() -> None:
    # A tenth of the silences trained: odds of 1 seen are odds of 10 to be silent.
    assert speak_log_odds(0.5, 0.1) == pytest.approx(-math.log(10))
    plain = Calibration(intercept=0.0, weights={"log_odds": 1.0}, silence_keep=0.1)
    known = Moment(0.5, None, False, False, False, False, 1, 12.0)
    assert decide(known, plain, {}, 0.5).terms["log_odds"] == pytest.approx(-math.log(10))


@pytest.mark.parametrize(("p", "odds"), [(0.0, 12.0), (1.0, -12.0), (1e-30, 12.0), (0.5, 0.0)])
def test_certainty_is_clipped(p: float, odds: float) -> None:
    assert speak_log_odds(p) == pytest.approx(odds)


probabilities = st.floats(0, 1)
moments = st.builds(
    Moment, probabilities | st.none(), st.floats(0, 1e7) | st.none(), st.booleans(), st.booleans(), st.booleans(),
    st.booleans(), st.integers(1, 12), st.floats(0, 24),
)  # fmt: skip
shifts = st.dictionaries(st.sampled_from(["mention", "quote", "name", "bias"]), st.floats(-50, 50))


@given(moments, st.sampled_from([None, LEARNED]), shifts, st.floats(0, 1, exclude_max=True))
def test_the_terms_add_up_to_the_decision(
    found: Moment, calibration: Calibration | None, shift: dict[str, float], draw: float
) -> None:
    verdict = decide(found, calibration, shift, draw)
    assert verdict.p_speak == pytest.approx(sigmoid(sum(verdict.terms.values())))
    assert verdict.speaks == (draw < verdict.p_speak)
    assert 0 <= verdict.p_speak <= 1
    assert {name for name in verdict.terms if name.startswith("shift:")} == {
        f"shift:{k}" for k, v in shift.items() if v
    }


@given(moments, st.floats(0, 0.99))
def test_a_more_silent_model_never_speaks_more(found: Moment, p: float) -> None:
    calm = Moment(p, *(getattr(found, f) for f in Moment.__slots__[1:]))
    calmer = Moment(p + 0.01, *(getattr(found, f) for f in Moment.__slots__[1:]))
    assert decide(calm, LEARNED, {}, 0.5).p_speak >= decide(calmer, LEARNED, {}, 0.5).p_speak


def test_uncalibrated_it_answers_when_addressed_and_seldom_otherwise() -> None:
    def p_speak(**changes: bool) -> float:
        values = {f: getattr(QUIET, f) for f in Moment.__slots__} | changes
        return decide(Moment(**values), None, {}, 0.5).p_speak

    assert p_speak() < 0.05
    assert p_speak(private=True) > 0.5
    assert p_speak(mentioned=True) > p_speak()
    assert p_speak(quoted=True) > p_speak()
    assert p_speak(named=True) > p_speak()


def test_the_hour_is_where_the_person_lives() -> None:
    assert local_hour(at(0), SHANGHAI) == pytest.approx(23 + 10 / 60)
    assert local_hour(at(0) + timedelta(hours=1), SHANGHAI) == pytest.approx(10 / 60)


@pytest.mark.parametrize("x", [-1e4, -5.0, 0.0, 5.0, 1e4])
def test_sigmoid_does_not_overflow(x: float) -> None:
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1)


def test_a_trained_version_without_a_fit_decides_by_the_models_own_probability() -> None:
    manifest = Manifest(
        version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
        format="gemma", system_prompt="", files={}, settings={"silence_keep": 0.5}, corpus={"silences": 40},
    )  # fmt: skip
    unfitted = Version(Path(), manifest).calibration
    p_speak = decide(replace(QUIET, p_silent=0.2), unfitted, {}, 0.0).p_speak
    # Half of the silences were trained: odds of speaking 4:1 as seen, 2:1 in truth.
    assert p_speak == pytest.approx(2 / 3)
    assert decide(replace(QUIET, p_silent=0.999), unfitted, {}, 0.5).speaks is False


@pytest.mark.parametrize("corpus", [{}, {"silences": 0}])
def test_a_version_that_never_learned_a_silence_speaks_by_hand_set_features(corpus: dict[str, Any]) -> None:
    manifest = Manifest(
        version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
        format="gemma", system_prompt="", files={}, corpus=corpus,
    )  # fmt: skip
    unfitted = Version(Path(), manifest).calibration
    speaks = [decide(replace(QUIET, p_silent=p), unfitted, {}, 0.0).p_speak for p in (1e-5, 0.999)]
    assert speaks[0] == speaks[1] < 0.2


def test_terms_are_told_largest_first_the_hour_as_one_and_none_that_does_not_show() -> None:
    terms = {"private": 0.6, "hour_sin": -1.0, "log_odds": 5.5, "hour_cos": 0.2, "quoted": 0.04, "x": -2}
    assert in_words(terms) == "模型 +5.5，x -2.0，钟点 -0.8，私聊 +0.6"
    assert in_words({}) == ""
