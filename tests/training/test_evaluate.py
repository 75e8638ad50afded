"""Scores, intervals and the calibration, on scores drawn from known distributions and on a real tiny model."""

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import tinymodel
from sklearn.metrics import roc_auc_score

from bot.config import Conversation
from bot.decision import FEATURES, Moment, decide, sigmoid
from bot.message import Message, Origin, Scene
from bot.prompt import exchanges
from bot.scorer import Scorer
from training.corpus import Corpus, SceneCorpus
from training.evaluate import (
    Scored,
    fit_calibration,
    loss_figure,
    metrics,
    pacing,
    paired_difference,
    score,
    undone,
)
from training.likeness.figure import mean_figure, ratio_figure
from training.likeness.silence import weighted_aucs
from training.samples import Label, Split, windows

ME, FRIEND, TWIN = "10001", "20001", "30001"
RULES = Conversation()
START = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)


def label(number: int, split: Split = Split.TEST, silence: bool = False, **moment: object) -> Label:
    values = {
        "p_silent": None, "since_spoke_s": 60.0, "private": True, "mentioned": False, "quoted": False, "named": False,
        "burst": 1, "hour": 12.0, **moment,
    }  # fmt: skip
    return Label(1, 2, (1,), silence, True, split, "private:1", str(number), Moment(**values))


def drawn(n: int, seed: int, split: Split, *, text_knows: float, mentions_know: float) -> list[Scored]:
    """Decision points of which the text's log-odds and mentions tell so much; conversations of five."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        silence = bool(rng.random() < 0.6)
        mentioned = bool(rng.random() < (0.5 - mentions_know / 2 if silence else 0.5 + mentions_know / 2))
        logit = (1 if silence else -1) * text_knows + rng.normal()
        hour = float(rng.random() * 24)
        found.append(
            Scored(
                label(seed * 10000 + i, split, silence, mentioned=mentioned, hour=hour), 2.0, 1, sigmoid(logit), i // 5
            )
        )
    return found


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.2])
def test_what_fewer_silences_take_from_the_loss_is_given_back(keep: float) -> None:
    whole, fewer = [], []
    for number, silent in enumerate(np.linspace(0.02, 0.97, 30)):
        odds = silent / (1 - silent) * keep  # what a model comes to that saw so many of the silences
        biased = odds / (1 + odds)
        for silence in (True, False):
            found = label(2 * number + silence, silence=silence)
            first = [math.log(p if silence else 1 - p) for p in (silent, biased)]
            rest = 0.0 if silence else 3.0
            whole.append(Scored(found, rest - first[0], 1, silent, number))
            fewer.append(Scored(found, rest - first[1], 1, biased, number))
    difference = paired_difference(undone(fewer, keep), whole)
    assert difference is not None
    assert difference.value == pytest.approx(0, abs=1e-9)
    raw = paired_difference(fewer, whole)
    assert raw is not None
    assert (raw.value > 0.02) == (keep < 1)
    assert [x.p_silent for x in undone(fewer, keep)] == [x.p_silent for x in fewer], "a fit corrects it by itself"


def both_splits(text_knows: float, mentions_know: float, n: int = 300) -> list[Scored]:
    return drawn(n, 1, Split.TUNE, text_knows=text_knows, mentions_know=mentions_know) + drawn(
        n, 2, Split.TEST, text_knows=text_knows, mentions_know=mentions_know
    )


# -- scoring a real model -------------------------------------------------------------------------


def corpus(conversations: int = 60) -> Corpus:
    scene = Scene("private", FRIEND)
    messages: list[Message] = []
    for i in range(conversations):
        for at, who, text in (
            (0, FRIEND, f"今天吃什么{i}"),
            (9, ME, "好耶"),
            (12, ME, "我也要去"),
            (60, FRIEND, "在忙"),
        ):
            time = START + timedelta(seconds=90000 * i + at)
            messages.append(Message(f"{i}-{at}", scene, who, f"n{who}", time, text))
    return assembled(scene, messages)


def assembled(scene: Scene, messages: list[Message]) -> Corpus:
    cut = exchanges(messages, frozenset([ME]), RULES)
    conversation: list[str] = []
    for exchange in cut:
        conversation.append(exchange.first.id if exchange.opened else conversation[-1])
    part = SceneCorpus(
        scene, "", cut, [not e.said for e in cut], [True] * len(cut), [None] * len(cut), conversation, {}
    )
    return Corpus(frozenset([ME]), (), frozenset([ME]), [part], RULES, ZoneInfo(RULES.timezone), "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    return tinymodel.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def scorer(tiny: tinymodel.Tiny):
    found = Scorer(tiny.gguf, None, 256, n_threads=1)
    yield found
    found.close()


def test_every_held_out_label_is_scored_once_and_no_trained_one(scorer: Scorer) -> None:
    cut = windows(corpus(), scorer.model, scorer.model.format, "你是小满。", 200)
    held_out = [x for w in cut for x in w.labels if x.split is not Split.TRAIN]
    told: list[tuple[int, int]] = []

    scored = score(cut, scorer, scorer.model.end_id, progress=lambda done, total: told.append((done, total)))

    assert len(held_out) > 10
    assert sorted(x.key for x in scored) == sorted((x.scene, x.message_id) for x in held_out)
    assert all(x.tokens == len(x.label.trained) for x in scored)
    assert told[-1] == (len(cut), len(cut))
    assert {x.label.split for x in score(cut, scorer, scorer.model.end_id, [Split.TEST])} == {Split.TEST}


def test_scores_are_the_log_probabilities_of_the_label_tokens(scorer: Scorer) -> None:
    end_id = scorer.model.end_id
    cut = windows(corpus(), scorer.model, scorer.model.format, "你是小满。", 200)
    scored = {x.key: x for x in score(cut, scorer, end_id)}
    checked = 0
    for window in [w for w in cut if any((x.scene, x.message_id) in scored for x in w.labels)][:3]:
        for one in (x for x in window.labels if (x.scene, x.message_id) in scored):
            found = scored[one.scene, one.message_id]
            alone = [scorer.log_probs(window.ids, [(i, window.ids[i])])[0] for i in one.trained]
            assert found.nll == pytest.approx(-sum(alone), abs=0.02)
            assert found.p_silent == pytest.approx(
                math.exp(scorer.log_probs(window.ids, [(one.start, end_id)])[0]), rel=0.02
            )
            if one.silence:
                assert found.nll == pytest.approx(-math.log(found.p_silent))
            checked += 1
    assert checked >= 3


def test_labels_of_one_conversation_share_a_cluster_and_of_distant_ones_do_not(scorer: Scorer) -> None:
    cut = windows(corpus(), scorer.model, scorer.model.format, "你是小满。", 200)
    scored = score(cut, scorer, scorer.model.end_id)
    by_talk: dict[str, set[int]] = {}
    for one in scored:
        by_talk.setdefault(one.label.message_id.split("-")[0], set()).add(one.cluster)
    assert all(len(clusters) == 1 for clusters in by_talk.values())
    assert len({x.cluster for x in scored}) > len(by_talk) / 3


# -- figures --------------------------------------------------------------------------------------


def test_loss_is_per_token_not_per_label() -> None:
    scored = [Scored(label(0), 1.0, 1, 0.5, 0), Scored(label(1), 8.0, 2, 0.5, 1)]
    figure = loss_figure(scored)
    assert figure is not None
    assert (figure.value, figure.n) == (3.0, 3)
    assert loss_figure([]) is None


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Conversations differ (sd 0.5), words within them less (0.5 / 5 words); 95 % intervals of 40 conversations."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    clusters = [i for i in range(40) for _ in range(5)]
    for trial in range(60):
        values = np.repeat(rng.normal(2, 0.5, 40), 5) + rng.normal(0, 0.5, 200)
        figure = ratio_figure(values, np.ones(200), clusters, seed=trial)
        alone = ratio_figure(values, np.ones(200), list(range(200)), seed=trial)
        assert figure is not None
        assert alone is not None
        assert figure.resampled == "conversation"
        covered += figure.low <= 2 <= figure.high
        naive += alone.low <= 2 <= alone.high
    assert 0.85 <= covered / 60 <= 1
    assert naive < covered - 5


def test_few_conversations_are_resampled_by_label_and_say_so() -> None:
    figure = ratio_figure(np.ones(20), np.ones(20), [i // 10 for i in range(20)])
    assert figure is not None
    assert figure.resampled == "label"


@pytest.mark.parametrize(("cases", "conversations", "bound"), [(20, 20, 0.161), (60, 10, 0.278), (3, 3, 0.562)])
def test_where_all_cases_agree_the_next_may_not(cases: int, conversations: int, bound: float) -> None:
    clusters = [i % conversations for i in range(cases)]
    all_of_them, none = mean_figure([True] * cases, clusters), mean_figure([False] * cases, clusters)
    assert all_of_them is not None
    assert none is not None
    assert (none.low, none.value, none.high) == (0, 0, pytest.approx(bound, abs=0.001)), "Wilson's, of conversations"
    assert (all_of_them.low, all_of_them.high) == (pytest.approx(1 - bound, abs=0.001), 1)
    measured = mean_figure([0.5] * cases, clusters)
    assert measured is not None
    assert measured.low == measured.high, "no share"


def test_a_paired_difference_is_far_tighter_than_the_losses() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.normal(3, 1, 100)
    old = [Scored(label(i), float(h), 1, 0.5, i) for i, h in enumerate(hardness)]
    new = [Scored(label(i), float(h - 0.1 + rng.normal() * 0.05), 1, 0.5, i) for i, h in enumerate(hardness)]
    difference, loss = paired_difference(new, old), loss_figure(new)
    assert difference is not None
    assert loss is not None
    assert difference.value == pytest.approx(-0.1, abs=0.02)
    assert difference.high < 0
    assert loss.high - loss.low > 5 * (difference.high - difference.low)
    assert paired_difference(new, []) is None


# -- silence --------------------------------------------------------------------------------------


def test_auc_follows_what_text_and_features_know() -> None:
    text = metrics(both_splits(2.0, 0.0), None)
    features = metrics(both_splits(0.0, 0.8), None)
    assert text.auc_text is not None
    assert features.auc_text is not None
    assert text.auc_features is not None
    assert features.auc_features is not None
    assert text.auc_text.value > 0.95
    assert text.auc_features.low < 0.5 < text.auc_features.high + 0.1
    assert features.auc_text.low < 0.5 < features.auc_text.high
    assert features.auc_features.value > 0.85
    assert text.auc_text.low < text.auc_text.value < text.auc_text.high


def test_weighted_aucs_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(50) < 0.4, rng.integers(0, 12, 50).astype(float)
    weights = rng.integers(0, 3, (20, 50)).astype(float)
    expected = [roc_auc_score(truth, scores, sample_weight=w) for w in weights]
    assert weighted_aucs(truth, scores, weights) == pytest.approx(expected)
    assert math.isnan(weighted_aucs(truth, scores, truth[None].astype(float))[0])


def test_both_together_beat_each_alone_and_the_constant_rate() -> None:
    scored = both_splits(0.7, 0.6)
    found = metrics(scored, fit_calibration(scored))
    assert found.auc_both is not None
    assert found.auc_text is not None
    assert found.auc_features is not None
    assert found.brier is not None
    assert found.brier_constant is not None
    assert found.auc_both.value > max(found.auc_text.value, found.auc_features.value)
    assert found.brier.value < found.brier_constant
    assert (found.decisions, found.calibrated) == (300, True)
    assert found.silences == sum(x.label.silence for x in scored if x.label.split is Split.TEST)


def test_the_calibration_is_calibrated_on_unseen_decisions() -> None:
    scored = both_splits(1.0, 0.4, n=2000)
    calibration = fit_calibration(scored)
    test = [x for x in scored if x.label.split is Split.TEST]
    p = np.array([decide(moment_of(x), calibration, {}, 0.5).p_speak for x in test])
    spoke = np.array([not x.label.silence for x in test])
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (p >= low) & (p < low + 0.2)
        assert inside.sum() > 50
        assert spoke[inside].mean() == pytest.approx(p[inside].mean(), abs=0.1)


def moment_of(scored: Scored) -> Moment:
    moment = scored.label.moment
    return Moment(
        scored.p_silent, moment.since_spoke_s, moment.private, moment.mentioned, moment.quoted, moment.named,
        moment.burst, moment.hour,
    )  # fmt: skip


def test_the_calibration_never_sees_the_test_split() -> None:
    scored = both_splits(1.0, 0.4)
    flipped = [
        Scored(label(i, Split.TEST, not x.label.silence), x.nll, x.tokens, x.p_silent, x.cluster)
        if x.label.split is Split.TEST
        else x
        for i, x in enumerate(scored)
    ]
    assert fit_calibration(scored) == fit_calibration(flipped)


def test_features_that_never_vary_get_no_weight() -> None:
    calibration = fit_calibration(both_splits(1.0, 0.4))
    assert calibration is not None
    assert set(calibration.weights) == {"log_odds", "mentioned", "hour_sin", "hour_cos"}
    assert set(calibration.weights) < set(FEATURES)


def test_subsampled_silences_are_corrected_once() -> None:
    """The same p of silence means more silence when only a fifth of the silences were trained."""
    scored = both_splits(1.0, 0.0)
    calibration = fit_calibration(scored, silence_keep=0.2)
    assert calibration is not None
    assert calibration.silence_keep == 0.2
    plain = fit_calibration(scored)
    assert plain is not None
    moment = moment_of(scored[0])
    assert decide(moment, calibration, {}, 0.5).p_speak == pytest.approx(
        decide(moment, plain, {}, 0.5).p_speak, abs=0.01
    )


def test_perfectly_separable_decisions_get_finite_weights() -> None:
    scored = [Scored(label(i, Split.TUNE, i % 2 == 0), 1, 1, 1.0 if i % 2 == 0 else 0.0, i) for i in range(40)]
    calibration = fit_calibration(scored)
    assert calibration is not None
    assert 0 < calibration.weights["log_odds"] < 5


@pytest.mark.parametrize("silences", [0, 7, 33, 40])
def test_too_few_answers_or_silences_give_no_calibration(silences: int) -> None:
    scored = [Scored(label(i, Split.TUNE, i < silences), 1, 1, 0.5, i) for i in range(40)]
    assert fit_calibration(scored) is None
    found = metrics(scored, None)
    assert not found.calibrated
    assert found.auc_both is found.auc_features is found.auc_text is None
    assert found.loss is None


def test_metrics_survive_json() -> None:
    scored = both_splits(1.0, 0.4)
    found = metrics(scored, fit_calibration(scored))
    assert type(found).model_validate_json(found.model_dump_json()) == found


# -- pace -----------------------------------------------------------------------------------------


def test_pacing_is_the_deciles_of_the_persons_own_delays() -> None:
    found = pacing(corpus(20))
    assert found.private_delay_s == (9.0,) * 11
    assert found.bubble_gap_s == (3.0,) * 11
    assert found.group_delay_s == ()


def test_pacing_tells_how_often_somebody_says_the_same_twice() -> None:
    assert pacing(corpus(20)).repeat_share == 0
    scene, messages = Scene("group", "5"), []
    for i in range(20):
        for at, who, text in ((0, FRIEND, "好"), (3, ME, "好"), (5, ME, "好" if i % 4 == 0 else "嗯"), (7, ME, "走")):
            time = START + timedelta(seconds=90000 * i + at)
            messages.append(Message(f"{i}-{at}", scene, who, "", time, text))
    assert pacing(assembled(scene, messages)).repeat_share == 5 / 40


def test_pacing_learns_nothing_from_the_twin() -> None:
    scene = Scene("group", "5")
    messages = []
    for i in range(20):
        for at, who, origin in ((0, FRIEND, Origin.HUMAN), (1 + i, ME, Origin.HUMAN if i % 2 else Origin.TWIN)):
            time = START + timedelta(seconds=90000 * i + at)
            messages.append(Message(f"{i}-{at}", scene, who, "", time, "好", origin))
    found = pacing(assembled(scene, messages))
    assert (found.group_delay_s[0], found.group_delay_s[5], found.group_delay_s[-1]) == (2.0, 11.0, 20.0)
    assert found.private_delay_s == found.bubble_gap_s == ()
