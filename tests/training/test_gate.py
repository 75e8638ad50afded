"""The gate: what passes, what is refused, and by which reason."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from bot.config import Gate
from bot.decision import Moment
from bot.persona import Calibration
from training.evaluate import Scored, metrics
from training.gate import Candidate, Fault, Verdict, verdict
from training.likeness.assessment import (
    BASE,
    NEW,
    PERSON,
    PROMPTED,
    RETRIEVAL,
    SERVING,
    Assessment,
    Leaks,
    Likeness,
    Place,
    Spoken,
)
from training.likeness.figure import Figure
from training.likeness.material import Material
from training.likeness.style import difference
from training.likeness.use import Answer, copies, holds_markers, loops
from training.samples import Label, Split

MOMENT = Moment(None, 60.0, True, False, False, False, 1, 12.0)
GOOD = tuple(Answer(f"在干嘛{i}", f"刚吃完饭{i}") for i in range(20))


def candidate(loss: float, **how: float) -> Candidate:
    """A model's scores with their figures."""
    found = scores(loss, **how)
    return Candidate(found, metrics(found, None))


def scores(
    loss: float, *, n: int = 200, noise: float = 0.0, seed: int = 0, silent_if_silence: float = 0.8
) -> list[Scored]:
    """A model's scores: hardness of the labels is the same for all models; noise is its own."""
    hardness, own = np.random.default_rng(99).normal(0, 1, n), np.random.default_rng(seed).normal(0, 1, n)
    scored = []
    for i in range(n):
        silence = i % 3 == 0
        p_silent = silent_if_silence if silence else 1 - silent_if_silence
        label = Label(1, 2, (1,), silence, True, Split.TEST, "private:1", str(i), MOMENT)
        nll = loss + float(hardness[i]) + noise * float(own[i])
        scored.append(Scored(label, nll, 1, min(max(p_silent + 0.1 * float(own[i]), 0.01), 0.99), i // 4))
    return scored


BASE_MODEL = candidate(6.0)
FAULTY = MappingProxyType({"empty": "  \n", "marker": "好的<end_of_turn>", "loop": "我也要去" * 6})


def judged(new: Candidate, serving: Candidate | None = None, *, parity: bool = True, answers=GOOD) -> Verdict:
    return verdict(new, serving, BASE_MODEL, parity, answers)


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


def test_a_slow_decline_ends_where_the_best_version_is_surely_better() -> None:
    behind, passed = 0.0, []
    for _ in range(6):  # each worse than the one before by what a verdict of its own lets through
        new, serving = candidate(4.037, noise=0.33, seed=12), candidate(4.0)
        found = verdict(new, serving, BASE_MODEL, True, GOOD, behind=behind)
        assert found.against_serving is not None
        assert 0.034 < found.against_serving.value < 0.049
        passed.append(found.passed)
        assert found.passed or faults(found) == {Fault.DECLINED}
        behind = found.behind
    assert passed == [True, True, False, False, False, False]
    assert behind > Gate().words_worse_max
    assert verdict(candidate(3.9), candidate(4.0), BASE_MODEL, True, GOOD, behind=0.09).behind == 0
    nearer = verdict(candidate(3.9), candidate(4.0), BASE_MODEL, True, GOOD, behind=0.5)  # the owner had forced it
    assert nearer.passed
    assert nearer.behind == pytest.approx(0.4)


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


@pytest.mark.parametrize("how", [Fault.WENT_BACK, Fault.TAKEN_BACK])
def test_what_was_rolled_back_is_refused_however_good_it_is(how: Fault) -> None:
    new = candidate(4.0)
    assert verdict(new, None, BASE_MODEL, True, GOOD).passed
    assert faults(verdict(new, None, BASE_MODEL, True, GOOD, went_back=how)) == {how}


def test_silence_the_wrong_way_round_is_refused_and_chance_is_not() -> None:
    assert faults(judged(candidate(4.0, silent_if_silence=0.4))) == {Fault.SILENCE_COLLAPSED}
    assert judged(candidate(4.0, silent_if_silence=0.5)).passed


@pytest.mark.parametrize(("low", "high", "passes"), [(0.3, 0.49, False), (0.3, 0.51, True)])
def test_silence_is_the_wrong_way_round_where_chance_lies_outside_the_interval(
    low: float, high: float, passes: bool
) -> None:
    model = candidate(4.0)
    auc = Figure(value=0.4, low=low, high=high, n=200, resampled="conversation")
    found = judged(replace(model, metrics=model.metrics.model_copy(update={"auc_text": auc})))
    assert faults(found) == (set() if passes else {Fault.SILENCE_COLLAPSED})


def test_a_mute_version_is_refused_and_a_quieter_one_is_not() -> None:
    def served(p_silent: float) -> Candidate:
        new = candidate(4.0)
        scored = [replace(x, p_silent=p_silent if x.label.silence else min(p_silent, 0.999)) for x in new.scored]
        return Candidate(scored, new.metrics, Calibration(intercept=0.0, weights={"log_odds": 1.0}))

    assert faults(judged(served(0.95), served(0.95))) == {Fault.MUTE}
    assert judged(served(0.5)).passed, "three quarters of the person's replies"


ON_ITS_OWN = Calibration(intercept=0.0, weights={"log_odds": 1.0})
"""P(speak) as the model has it."""


def speaking(at_answers: float, at_silences: float, n: int = 200) -> Candidate:
    """A version that speaks with these probabilities where the person did, and where they were silent."""
    new = candidate(4.0, n=n)
    scored = [replace(x, p_silent=1 - (at_silences if x.label.silence else at_answers)) for x in new.scored]
    return Candidate(scored, new.metrics, ON_ITS_OWN)


def seldom(p_speak: float) -> Candidate:
    """One that speaks everywhere with the same probability, of a person who answers one time in six."""
    new = speaking(p_speak, p_speak)
    quiet = [replace(x, label=replace(x.label, silence=i % 6 > 0)) for i, x in enumerate(new.scored)]
    return replace(new, scored=quiet)


def test_a_version_that_answers_everything_is_refused_also_where_nothing_serves() -> None:
    everything = speaking(0.999, 0.999)
    first, later = judged(everything), judged(everything, everything)
    assert faults(first) == {Fault.TALKATIVE, Fault.WORSE_SILENCE_THAN_BASE}
    assert faults(later) == {Fault.TALKATIVE}
    assert [marks(found)["reply_rate"] for found in (first, later)] == [False, False]
    assert marks(first)["brier"] is False
    assert next(r for r in first.reasons if r.fault is Fault.TALKATIVE).figure is not None


@pytest.mark.parametrize(("p_speak", "passes"), [(0.30, True), (0.42, False)])
def test_of_one_who_seldom_answers_half_as_often_again_and_a_little_is_too_often(p_speak: float, passes: bool) -> None:
    found = judged(seldom(p_speak), seldom(p_speak))
    assert faults(found) == (set() if passes else {Fault.TALKATIVE})


def test_a_first_version_that_decides_worse_than_the_rule_of_today_is_refused() -> None:
    found = judged(speaking(0.55, 0.7))
    assert faults(found) == {Fault.WORSE_SILENCE_THAN_BASE}
    row = next(r for r in found.rows if r.name == "brier")
    assert row.difference is not None
    assert row.difference.low > 0
    assert marks(found)["reply_rate"] is True
    assert marks(judged(speaking(0.8, 0.2)))["brier"] is True


def test_one_label_is_too_little_to_judge_by() -> None:
    assert faults(verdict(candidate(4.0, n=1), None, candidate(6.0, n=1), True, GOOD)) == {Fault.NOTHING_HELD_OUT}
    assert verdict(candidate(4.0, n=2), None, candidate(6.0, n=2), True, GOOD).passed


def test_a_handful_of_decisions_or_of_new_words_refuses_nothing() -> None:
    """Moments are few where most was learned from training sets, and where nearly nobody spoke on the newest day."""
    new, serving = (candidate(4.0, **how) for how in ({"noise": 0.3, "seed": 1}, {}))

    def few(model: Candidate, p_silent: float) -> Candidate:
        labels = [replace(x.label, decision=i < 5) for i, x in enumerate(model.scored)]
        scored = [replace(x, p_silent=p_silent, label=label) for x, label in zip(model.scored, labels, strict=True)]
        return Candidate([*scored, *newest(2 + p_silent * 2, 5)], model.metrics, ON_ITS_OWN)

    quick = few(new, 0.01)
    assert judged(few(new, 0.99), few(serving, 0.2)).passed, "neither mute nor worse"
    assert verdict(quick, None, few(BASE_MODEL, 0.2), True, GOOD).passed, "nor talkative"


def test_a_version_that_decides_worse_than_the_serving_one_is_refused_beyond_noise() -> None:
    fit = Calibration(intercept=0.0, weights={"log_odds": 1.0})
    models = [candidate(4.0, silent_if_silence=x) for x in (0.6, 0.8)]
    worse, better = (Candidate(m.scored, m.metrics, fit) for m in models)
    assert faults(judged(worse, better)) == {Fault.WORSE_SILENCE}
    assert judged(better, worse).passed
    row = next(r for r in judged(worse, better).rows if r.name == "brier")
    assert row.passed is False
    assert row.difference is not None
    assert row.difference.low > 0


def marks(found: Verdict) -> dict[str, bool | None]:
    """What the table says of each row."""
    return {row.name: row.passed for row in found.rows}


def test_what_was_not_compared_is_not_said_to_be_kept() -> None:
    model = candidate(4.0)
    alone = verdict(model, None, BASE_MODEL, True, GOOD, alike(REAL))
    assert alone.passed
    assert marks(alone)["style"] is None, "there is none to compare with"
    beside = marks(verdict(model, model, BASE_MODEL, True, GOOD, alike(REAL, REAL)))
    assert [beside[name] for name in ("brier", "style", "parity", "leaks")] == [True] * 4
    mute = replace(model, metrics=model.metrics.model_copy(update={"auc_text": None}))
    assert marks(judged(mute))["auc_text"] is None
    lost = [replace(x, nll=math.nan) for x in model.scored]
    assert marks(judged(replace(model, scored=lost)))["loss"] is False


def test_parity_and_leaks_stand_in_the_table() -> None:
    leaking = alike(REAL).model_copy(update={"leaks": Leaks(answers=60, runs=9)})
    found = verdict(candidate(4.0), None, BASE_MODEL, False, GOOD, leaking)
    assert faults(found) == {Fault.PARITY, Fault.LEAKS}
    assert (marks(found)["parity"], marks(found)["leaks"]) == (False, False)
    assert "leaks" not in marks(judged(candidate(4.0))), "nobody looked"


def newest(loss: float, n: int = 40, *, noise: float = 0.0) -> list[Scored]:
    own = np.random.default_rng(3).normal(0, noise, n)
    return [
        replace(x, nll=loss + float(own[i]), label=replace(x.label, split=Split.NEWEST, message_id=f"new{i}"))
        for i, x in enumerate(candidate(4.0).scored[:n])
    ]


@pytest.mark.parametrize(
    ("new_loss", "noise", "passes"),
    [(3.0, 0.0, True), (4.0, 0.0, True), (4.05, 0.0, False), (4.2, 1.0, True), (4.5, 0.0, False)],
)
def test_the_newest_day_is_scored_by_both_before_it_joins(new_loss: float, noise: float, passes: bool) -> None:
    """Little and surely is worse; more, and for all we know by chance, is not."""
    serving = candidate(4.0)
    new = Candidate([*serving.scored, *newest(new_loss, noise=noise)], serving.metrics)
    found = judged(new, Candidate([*serving.scored, *newest(4.0)], serving.metrics))
    assert found.passed is passes
    assert passes or faults(found) == {Fault.WORSE_ON_NEWEST}
    assert next(r for r in found.rows if r.name == "newest").new is not None


def test_a_few_talks_of_the_newest_day_refuse_nothing() -> None:
    serving = candidate(4.0)
    few = [replace(x, cluster=i % 3) for i, x in enumerate(newest(4.5))]
    new = Candidate([*serving.scored, *few], serving.metrics)
    found = judged(new, Candidate([*serving.scored, *newest(4.0)], serving.metrics))
    assert found.passed
    row = next(r for r in found.rows if r.name == "newest")
    assert row.difference is not None
    assert (row.difference.value, row.difference.resampled) == (pytest.approx(0.5), "label")


PLACES = [Place(f"在干嘛{i}", f"在吃饭呢{i % 7}～", f"在干嘛{i}", i // 2) for i in range(60)]
REAL = [p.real for p in PLACES]
SECRET = "周三下午去北站二楼接外婆然后把钥匙交给楼下理发店的老周别忘了带伞"
TOLD = Material(
    own=(*REAL, SECRET), others=tuple(f"收到，第{i}项已提交。" for i in range(60)), tune=tuple(REAL), past=(),
    phrases=(), names=frozenset(),
)  # fmt: skip
FAR = [f"您好，第{i}份文件请查收。" for i in range(60)]


def test_words_of_other_tokens_are_not_compared_and_it_is_said() -> None:
    new, same, other = (Spoken(REAL, [1.0] * 60, [n] * 60) for n in (4, 4, 5))
    beside, apart = (Assessment(PLACES, TOLD).likeness({NEW: new, SERVING: x}) for x in (same, other))
    assert "words" in beside.against_serving
    assert "words" not in apart.against_serving
    assert (len(beside.notes), len(apart.notes)) == (0, 1)


def alike(new: Sequence[str], serving: Sequence[str] | None = None, base: Sequence[str] = FAR) -> Likeness:
    voices = {NEW: Spoken(new), BASE: Spoken(base), PROMPTED: Spoken(base), RETRIEVAL: Spoken(REAL)}
    return Assessment(PLACES, TOLD).likeness({**voices, **({SERVING: Spoken(serving)} if serving else {})})


@pytest.mark.parametrize("tune", [10, 60])
def test_the_persons_own_distance_is_of_answers_spread_over_both_splits(tune: int) -> None:
    """Of two scenes the first would stand for both: here each says half, and the other half is as far as can be."""
    first, second = "在吃饭呢～", "您好，文件请查收。"
    told = replace(TOLD, tune=(first,) * tune + (second,) * tune)
    places = [Place("在干嘛", first if i < 30 else second, "在干嘛", i) for i in range(60)]
    assert Assessment(places, told).likeness({}).voices[PERSON]["style"].value == pytest.approx(0.0)


def test_a_copy_of_the_person_scores_one_and_the_base_is_the_floor() -> None:
    found = alike(REAL).voices
    for voice in (PERSON, NEW):
        assert found[voice]["authorship"].value == 1.0
        assert found[voice]["authorship_way"].value == pytest.approx(1.0)
        assert found[voice]["rouge_l"].value == 1.0
    assert found[NEW]["style"].value == 0.0
    assert found[BASE]["authorship"].value == 0.0
    assert found[BASE]["style"].value > 0.4
    assert found[BASE]["authorship_way"].value == pytest.approx(0.0)


def test_a_style_further_from_the_person_than_the_serving_ones_is_refused() -> None:
    base = candidate(6.0)
    new = candidate(4.0)
    found = verdict(new, new, base, True, GOOD, alike(FAR, REAL))
    assert faults(found) == {Fault.WORSE_STYLE}
    assert verdict(new, new, base, True, GOOD, alike(REAL, FAR)).passed
    assert next(r for r in found.rows if r.name == "style").passed is False


def test_a_twin_that_does_not_beat_retrieval_says_so_and_passes() -> None:
    new = candidate(4.0)
    found = verdict(new, None, BASE_MODEL, True, GOOD, alike(FAR))
    assert found.passed
    assert found.likeness is not None
    assert found.likeness.behind_retrieval == ("style",)


def test_an_overtrained_version_that_tells_training_answers_is_refused() -> None:
    said = [*REAL[:59], f"哦对，{SECRET}"]
    found = verdict(candidate(4.0), None, BASE_MODEL, True, GOOD, alike(said))
    assert faults(found) == {Fault.LEAKS}
    assert found.likeness is not None
    assert (found.likeness.leaks.runs, found.likeness.leaks.longest) == (1, len(SECRET))
    allowed = verdict(candidate(4.0), None, BASE_MODEL, True, GOOD, alike(said), Gate(leaks_max=1))
    assert allowed.passed


def test_a_told_number_is_a_leak() -> None:
    told = alike(REAL).model_copy(update={"leaks": Leaks(answers=60, numbers=1)})
    found = verdict(candidate(4.0), None, BASE_MODEL, True, GOOD, told)
    assert faults(found) == {Fault.LEAKS}
    assert found.reasons[0].count == 1
    assert verdict(candidate(4.0), None, BASE_MODEL, True, GOOD, told, Gate(leaks_max=1)).passed


def reasons_under(rules: Gate, new: Candidate, serving: Candidate, answers: Sequence[Answer] = GOOD) -> set[Fault]:
    """What refuses a version whose style is a little further from the person's than the serving one's."""
    further = Figure(value=0.05, low=-0.01, high=0.11, n=60, resampled="conversation")
    likeness = Likeness(places=60, voices={}, against_serving={"style": further})
    return faults(verdict(new, serving, BASE_MODEL, True, answers, likeness, rules))


def test_every_limit_is_that_of_the_settings() -> None:
    new, serving = candidate(4.01, noise=0.3, seed=12), candidate(4.0)
    assert reasons_under(Gate(), new, serving) == set()
    assert reasons_under(Gate(style_worse_max=0.1), new, serving) == {Fault.WORSE_STYLE}
    assert reasons_under(Gate(words_worse_max=0.001), new, serving) == {Fault.WORSE_THAN_SERVING}
    half = speaking(0.5, 0.5)
    assert reasons_under(Gate(), half, half) == set()
    assert reasons_under(Gate(reply_rate_min=0.9), half, half) == {Fault.MUTE}
    bad = (*GOOD[:18], *[Answer("在吗", FAULTY["loop"])] * 2)
    assert reasons_under(Gate(bad_answers_max=0.05), new, serving, bad) == {Fault.BAD_ANSWERS}
    undecided = speaking(0.53, 0.56)
    assert reasons_under(Gate(), undecided, half) == set()
    assert reasons_under(Gate(silence_worse_max=0.0001), undecided, half) == {Fault.WORSE_SILENCE}


def test_a_rate_that_noise_may_explain_is_not_mute() -> None:
    """Far below on average, and of so few conversations that it may be above."""
    scored = [replace(x, p_silent=0.05 if i < 3 else 0.9, cluster=i) for i, x in enumerate(candidate(4.0, n=9).scored)]
    new = Candidate(scored, candidate(4.0).metrics, ON_ITS_OWN)
    base = candidate(6.0, n=9)
    assert Fault.MUTE not in faults(verdict(new, new, base, True, GOOD))


def test_prodding_counts_as_well() -> None:
    made = Assessment(PLACES, TOLD).likeness({NEW: Spoken(REAL)}, [("你明天去哪", SECRET, SECRET), ("好", "好", "")])
    assert (made.leaks.runs, made.leaks.answers) == (1, 62)


def test_equal_versions_pass_about_as_often_as_the_intervals_say() -> None:
    """Three comparisons at 95 %, of which only the worse side refuses: 0.975 ** 3 = 0.93 should pass."""
    rng, fit, passed, trials = np.random.default_rng(5), Calibration(intercept=0.0, weights={"log_odds": 1.0}), 0, 40
    base, metrics_of_any = candidate(6.0), candidate(4.0).metrics
    real = [
        f"{'哈' * int(rng.integers(0, 5))}{rng.choice(list('去来在好困'))}{rng.choice(list('呀吗～！。'))}"
        for _ in PLACES
    ]

    def version(seed: int) -> Candidate:
        return Candidate(scores(4.0, noise=0.15, seed=seed), metrics_of_any, fit)

    def style_of_two() -> Likeness:
        new, old = ([real[i] for i in rng.integers(0, len(real), len(real))] for _ in range(2))
        found = difference(new, old, real, [p.cluster for p in PLACES])
        assert found is not None
        return Likeness(places=len(real), voices={}, against_serving={"style": found})

    for trial in range(trials):
        versions = version(2 * trial), version(2 * trial + 1)
        passed += verdict(*versions, base, True, GOOD, style_of_two()).passed
    assert 0.85 * trials <= passed < trials


@pytest.mark.parametrize("what", ["nll", "p_silent"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_refused(what: str, value: float) -> None:
    new = candidate(4.0)
    broken = [replace(new.scored[0], **{what: value}), *new.scored[1:]]
    found = judged(Candidate(broken, new.metrics))
    assert not found.passed
    assert Fault.NOT_A_NUMBER in faults(found)


def test_also_where_it_is_of_the_tune_split() -> None:
    new = candidate(4.0)
    tune = replace(new.scored[0], nll=math.nan, label=replace(new.scored[0].label, split=Split.TUNE, message_id="t"))
    assert faults(judged(Candidate([*new.scored, tune], new.metrics))) == {Fault.NOT_A_NUMBER}


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
        ("啊" * 40, False),
        ("啊" * 60, True),
        ("好的\n好的\n好的\n好的", True),
        ("\n".join(["今天吃什么"] * 5), True),
        ("[图片]" * 6, True),
        ("[捂脸]" * 8, False),
        ("[捂脸]" * 9, True),
        ("hahahahahaha", False),
        ("这也太好笑了hahahahahaha", False),
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
        ("明天去爬山吗？", "明天去爬山吗？好", True),
        ("明天去爬山吗？", "你说明天去爬山吗", True),
        ("明天去爬山吗？", "明天去爬山吗\n明天去爬山吗", True),
        ("明天去爬山吗？", "明天去爬山吗？好呀我带水", False),
        ("明天去爬山吗\n在吗", "明天去爬山吗", True),
        ("在吗\n去爬山", "在吗，去爬山", True),
        ("哈哈哈哈哈", "哈哈哈哈哈哈", False),
        ("", "", False),
    ],
)
def test_copies_are_told_from_manners(heard: str, said: str, expected: bool) -> None:
    assert copies(Answer(heard, said)) is expected


@pytest.mark.parametrize("text", ["<|im_end|>", "a<start_of_turn>b", "<eos>", "<think>", "<|eot_id|>", "<|endoftext|>"])
def test_every_templates_markers_are_known(text: str) -> None:
    assert holds_markers(text)
    assert not holds_markers("我 <3 你 a<b>c")
