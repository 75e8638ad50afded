"""The gate: what passes, what is refused, and by which reason."""

import math
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from bot.config import Gate
from bot.decision import Moment
from training.evaluate import Scored, metrics
from training.gate import Candidate, Fault, Verdict, verdict
from training.likeness.use import Answer, copies, holds_markers, loops
from training.samples import Label, Split

MOMENT = Moment(None, 60.0, True, False, False, False, 1, 12.0)
GOOD = tuple(Answer(f"在干嘛{i}", f"刚吃完饭{i}") for i in range(20))


def candidate(
    loss: float, *, n: int = 200, noise: float = 0.0, seed: int = 0, silent_if_silence: float = 0.8
) -> Candidate:
    """A model's scores: hardness of the labels is the same for all models; noise is its own."""
    hardness, own = np.random.default_rng(99).normal(0, 1, n), np.random.default_rng(seed).normal(0, 1, n)
    scored = []
    for i in range(n):
        silence = i % 3 == 0
        p_silent = silent_if_silence if silence else 1 - silent_if_silence
        label = Label(1, 2, (1,), silence, True, Split.TEST, "private:1", str(i), MOMENT)
        nll = loss + float(hardness[i]) + noise * float(own[i])
        scored.append(Scored(label, nll, 1, min(max(p_silent + 0.1 * float(own[i]), 0.01), 0.99), i // 4))
    return Candidate(scored, metrics(scored, None))


BASE = candidate(6.0)
FAULTY = MappingProxyType({"empty": "  \n", "marker": "好的<end_of_turn>", "loop": "我也要去" * 6})


def judged(new: Candidate, serving: Candidate | None = None, *, parity: bool = True, answers=GOOD) -> Verdict:
    return verdict(new, serving, BASE, parity, answers)


def faults(found: Verdict) -> set[Fault]:
    return {reason.fault for reason in found.reasons}


def test_a_first_version_better_than_the_base_passes_with_its_figures_shown() -> None:
    found = judged(candidate(4.0, noise=0.3))
    assert found.passed
    assert found.reasons == ()
    loss = next(row for row in found.rows if row.name == "loss")
    assert loss.new is not None
    assert loss.base is not None
    assert loss.serving is None
    assert loss.new.value < loss.base.value
    assert found.against_base is not None
    assert found.against_base.high < 0
    assert found.against_serving is None


@pytest.mark.parametrize(
    ("better_by", "noise", "passes"),
    [
        (0.3, 0.3, True),
        (0.0, 0.0, True),
        (-0.01, 0.3, True),  # worse by less than the noise of 200 labels
        (-0.05, 0.0, False),  # small, and surely worse
        (-0.5, 0.3, False),
        (-0.08, 2.0, False),  # nobody can tell: it may be far worse than words_worse_max
    ],
)
def test_a_version_is_compared_with_the_serving_one_beyond_noise(better_by: float, noise: float, passes: bool) -> None:
    found = judged(candidate(4.0 - better_by, noise=noise, seed=12), candidate(4.0))
    assert found.passed is passes, found.against_serving
    assert passes or faults(found) == {Fault.WORSE_THAN_SERVING}
    assert Gate().words_worse_max == 0.1


def test_equal_versions_pass_nearly_always_and_clearly_worse_ones_nearly_never() -> None:
    serving = candidate(4.0)
    equal = sum(judged(candidate(4.0, noise=0.3, seed=s), serving).passed for s in range(12))
    worse = sum(judged(candidate(4.15, noise=0.3, seed=s), serving).passed for s in range(12))
    assert equal >= 11
    assert worse == 0


@pytest.mark.parametrize(("loss", "noise"), [(6.0, 0.0), (6.5, 0.1), (5.95, 1.5)])
def test_a_version_not_surely_better_than_the_bare_base_is_refused(loss: float, noise: float) -> None:
    assert Fault.NOT_BETTER_THAN_BASE in faults(judged(candidate(loss, noise=noise, seed=5)))


def test_an_export_without_parity_is_refused() -> None:
    assert faults(judged(candidate(4.0), parity=False)) == {Fault.PARITY}


def test_silence_the_wrong_way_round_is_refused_and_chance_is_not() -> None:
    assert faults(judged(candidate(4.0, silent_if_silence=0.4))) == {Fault.SILENCE_COLLAPSED}
    assert judged(candidate(4.0, silent_if_silence=0.5)).passed


@pytest.mark.parametrize("what", ["nll", "p_silent"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_refused(what: str, value: float) -> None:
    new = candidate(4.0)
    broken = [replace(new.scored[0], **{what: value}), *new.scored[1:]]
    found = judged(Candidate(broken, new.metrics))
    assert not found.passed
    assert Fault.NOT_A_NUMBER in faults(found)


def test_a_serving_version_of_nans_is_no_reason_to_pass_unseen() -> None:
    broken = candidate(math.nan)
    assert Fault.NOT_COMPARABLE in faults(judged(candidate(4.0), broken))


def test_nothing_held_out_is_refused() -> None:
    nothing = Candidate([], metrics([], None))
    found = verdict(nothing, None, nothing, True, GOOD)
    assert faults(found) == {Fault.NOTHING_HELD_OUT}


def test_models_scored_on_different_labels_are_not_compared() -> None:
    assert faults(judged(candidate(4.0), candidate(4.0, n=150))) == {Fault.NOT_COMPARABLE}


def test_the_tune_split_is_not_judged() -> None:
    new = candidate(4.0)
    tune = [
        replace(x, nll=50.0, label=replace(x.label, split=Split.TUNE, message_id=f"t{i}"))
        for i, x in enumerate(new.scored)
    ]
    assert judged(Candidate([*new.scored, *tune], new.metrics)).passed


ANSWERS = [
    ((), {Fault.NO_ANSWERS}),
    ((*GOOD[:18], *[Answer("在吗", FAULTY["empty"])] * 2), set()),
    ((*GOOD[:16], *[Answer("在吗", FAULTY["empty"])] * 4), {Fault.EMPTY_ANSWERS}),
    ((*GOOD[:19], Answer("在吗", FAULTY["marker"])), {Fault.CONTROL_TOKENS}),
    ((*GOOD[:18], *[Answer("在吗", FAULTY["loop"])] * 2), set()),
    ((*GOOD[:16], *[Answer("在吗", FAULTY["loop"])] * 4), {Fault.BAD_ANSWERS}),
    ((*GOOD[:16], *[Answer("明天一起去爬山吧", "明天一起去爬山吧！")] * 4), {Fault.BAD_ANSWERS}),
]


@pytest.mark.parametrize(("answers", "expected"), ANSWERS)
def test_sample_answers_are_looked_at(answers: tuple[Answer, ...], expected: set[Fault]) -> None:
    assert faults(judged(candidate(4.0), answers=answers)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("哈哈哈哈哈哈哈哈哈哈哈哈", False),
        ("好好好", False),
        ("呜呜呜呜呜呜", False),
        ("哈哈\n笑死\n哈哈", False),
        ("[微笑][微笑][微笑]", False),
        ("", False),
        ("好耶！", False),
        ("2333333", False),
        ("我也要去我也要去我也要去我也要去我也要去", True),
        ("啊" * 40, True),
        ("好的\n好的\n好的\n好的", True),
        ("\n".join(["今天吃什么"] * 5), True),
        ("[图片]" * 6, True),
    ],
)
def test_loops_are_told_from_laughter(text: str, expected: bool) -> None:
    assert loops(text) is expected


@pytest.mark.parametrize(
    ("heard", "said", "expected"),
    [
        ("晚安", "晚安", False),
        ("哈哈哈", "哈哈哈", False),
        ("明天去爬山吗？", "明天去爬山吗", True),
        ("ＡＢＣＤＥ", "abcde", True),
        ("明天去爬山吗？", "去！", False),
        ("", "", False),
    ],
)
def test_copies_are_told_from_manners(heard: str, said: str, expected: bool) -> None:
    assert copies(Answer(heard, said)) is expected


@pytest.mark.parametrize("text", ["<|im_end|>", "a<start_of_turn>b", "<eos>", "<think>", "<|eot_id|>", "<|endoftext|>"])
def test_every_templates_markers_are_known(text: str) -> None:
    assert holds_markers(text)
    assert not holds_markers("我 <3 你 a<b>c")
