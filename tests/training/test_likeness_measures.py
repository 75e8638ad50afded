"""Each measure against cases whose value is known: a copy of the person, a shuffled speaker, a parrot."""

import math
import random

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score

from bot.errors import TrainingError
from training.likeness import leak, rouge, sense, silence, style, use, words
from training.likeness.authorship import MIN_LINES, Author
from training.likeness.figure import Figure, bootstrap, mean_figure, ratio_figure, ratio_of
from training.likeness.retrieval import Past, Retrieval, prompt
from training.likeness.silence import Point
from training.likeness.use import Answer, Fault

RNG = random.Random(3)
MINE = (["好呀", "嗯嗯", "哈哈哈", "来啦"], ["吃面去", "困了", "在忙呢", "明天见"])
THEIRS = (["请", "关于", "收到", "各位"], ["查收附件", "会议改期", "尽快回复", "提交周报"])
OWN = [f"{RNG.choice(MINE[0])}{RNG.choice(MINE[1])}～" for _ in range(120)]
OTHERS = [f"{RNG.choice(THEIRS[0])}{RNG.choice(THEIRS[1])}。" for _ in range(120)]
CLUSTERS = [i // 3 for i in range(120)]


def holds(figure: Figure | None, value: float) -> bool:
    assert figure is not None
    assert figure.low <= figure.value <= figure.high
    return figure.value == pytest.approx(value)


# -- intervals ------------------------------------------------------------------------------------


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered, trials = np.random.default_rng(1), 0, 200
    for _ in range(trials):
        of_conversation = np.repeat(rng.normal(0, 1, 40), 5)
        figure = mean_figure((of_conversation + rng.normal(0, 1, 200)).tolist(), np.repeat(range(40), 5).tolist())
        assert figure is not None
        covered += figure.low <= 0 <= figure.high
    assert 0.89 * trials <= covered <= 0.99 * trials


def test_resampling_single_cases_of_long_conversations_would_be_too_narrow() -> None:
    values = np.repeat(np.random.default_rng(2).normal(0, 1, 40), 5)
    by_conversation = mean_figure(values.tolist(), np.repeat(range(40), 5).tolist())
    by_case = mean_figure(values.tolist(), list(range(200)))
    assert by_conversation is not None
    assert by_case is not None
    assert by_conversation.high - by_conversation.low > 1.8 * (by_case.high - by_case.low)


def test_any_statistic_is_resampled_by_conversation() -> None:
    values, ones = np.repeat(np.random.default_rng(2).normal(0, 1, 40), 5), np.ones(200)
    by_ratio = ratio_figure(values, ones, np.repeat(range(40), 5).tolist())
    found = bootstrap(ratio_of(values, ones), np.repeat(range(40), 5).tolist())
    assert found is not None
    assert by_ratio is not None
    assert (found.low, found.high) == pytest.approx((by_ratio.low, by_ratio.high))
    assert found.resampled == by_ratio.resampled == "conversation"


def test_figures_are_seeded_and_say_how_many_cases() -> None:
    a, b = (ratio_figure(np.arange(20.0), np.full(20, 2.0), range(20)) for _ in range(2))
    assert a == b
    assert a is not None
    assert (a.value, a.n, a.resampled) == (pytest.approx(4.75), 40, "conversation")
    few = mean_figure([0.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b"])
    assert few is not None
    assert (few.n, few.resampled) == (4, "label")
    assert mean_figure([], []) is None
    assert bootstrap(lambda w: np.full(len(w), np.nan), [1, 2]) is None


# -- silence --------------------------------------------------------------------------------------


def drawn(n: int = 300, seed: int = 0, *, knows: float = 1.5) -> list[Point]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        p = float(1 / (1 + np.exp(-knows * rng.normal())))
        found.append(Point(bool(rng.random() < p), p, f"group:{i % 2}", float(i % 24), i % 5 == 0, i // 4))
    return found


def test_figures_of_silence_are_scikit_learns() -> None:
    points = drawn()
    found = silence.figures(points)
    truth, p = [x.speaks for x in points], [x.p_speak for x in points]
    assert holds(found["brier"], brier_score_loss(truth, p))
    assert holds(found["average_precision"], average_precision_score([not t for t in truth], [1 - q for q in p]))
    assert holds(found["f1"], f1_score(truth, [q >= 0.5 for q in p]))
    assert found["ece"].value < 0.08, "these probabilities are true"
    assert 0.6 < found["auc"].value < 0.9


def test_a_twin_that_decides_as_the_person_did_is_right_everywhere_and_a_mute_one_is_not() -> None:
    points = drawn(200)
    same = silence.figures([Point(x.speaks, float(x.speaks), x.scene, x.hour, x.addressed, x.cluster) for x in points])
    for name in ("auc", "average_precision", "f1", "f1_drawn", "agreement"):
        assert holds(same[name], 1.0)
    assert holds(same["brier"], 0.0)
    mute = [Point(x.speaks, 0.0, x.scene, x.hour, x.addressed, x.cluster) for x in points]
    spoke = float(np.mean([x.speaks for x in points]))
    assert holds(silence.figures(mute)["agreement"], 1 - spoke), "a silence where they were silent is right"
    assert holds(silence.rates(mute)["all"].gap, -spoke)


def test_over_confidence_shows_as_calibration_error() -> None:
    sure = [Point(i % 2 == 0, 0.9, "private:1", 1.0, False, i) for i in range(100)]
    assert holds(silence.figures(sure)["ece"], 0.4)
    right = [Point(i % 10 < 9, 0.9, "private:1", 1.0, False, i) for i in range(100)]
    assert silence.figures(right)["ece"].low == 0.0, "there is no error below none"


def test_reply_rates_are_told_by_group() -> None:
    points = [Point(True, 0.5, "private:1", 1.0, True, i) for i in range(10)]
    points += [Point(False, 0.25, "group:1", 13.0, False, 10 + i) for i in range(30)]
    rates = silence.rates(points)
    assert set(rates) == {"all", "addressed", "not addressed", "00-06 h", "12-18 h", "scene group:1", "scene private:1"}
    for name, person, twin in (("all", 0.25, 0.3125), ("addressed", 1.0, 0.5), ("12-18 h", 0.0, 0.25)):
        assert holds(rates[name].person, person)
        assert holds(rates[name].twin, twin)
        assert holds(rates[name].gap, twin - person)


def test_one_class_has_no_auc() -> None:
    assert "auc" not in silence.figures([Point(True, 0.5, "private:1", 1.0, True, i) for i in range(10)])


def test_what_text_adds_to_features_has_an_interval() -> None:
    points = drawn(400, knows=3.0)
    truth = np.array([x.speaks for x in points])
    p, noise = np.array([x.p_speak for x in points]), np.random.default_rng(0).random(len(points))
    clusters = [x.cluster for x in points]
    better, same = silence.auc_difference(truth, p, noise, clusters), silence.auc_difference(truth, p, p, clusters)
    assert better is not None
    assert better.low > 0.1
    assert holds(same, 0.0)


# -- words ----------------------------------------------------------------------------------------


def test_loss_is_counted_by_token_and_by_character() -> None:
    assert holds(words.per_token([4.0, 6.0] * 10, [2, 3] * 10, range(20)), 2.0)
    assert holds(words.per_character([4.0, 6.0] * 10, ["好耶", "在的呢"] * 10, range(20)), 2.0)
    assert holds(words.difference([4.0] * 20, [6.0] * 20, [2] * 20, range(20)), -1.0)


# -- style ----------------------------------------------------------------------------------------


def test_a_copy_of_the_person_has_no_distance_and_another_speaker_a_large_one() -> None:
    phrases = style.catch_phrases(OWN, OTHERS)
    copy = style.distances(OWN, OWN, CLUSTERS, phrases)
    assert set(copy) == {*style.HABITS, "style"}
    assert all(holds(f, 0.0) for f in copy.values())
    other = style.distances(OTHERS, OWN, CLUSTERS, phrases)
    assert other["style"].value > 0.5
    for habit in ("opening", "phrases", "ending"):
        assert holds(other[habit], 1.0)
    shuffled = style.distances(random.Random(1).sample(OWN, len(OWN)), OWN, CLUSTERS, phrases)
    assert holds(shuffled["style"], 0.0), "style does not look at what is answered"


def test_a_difference_of_styles_is_paired() -> None:
    better = style.difference(OWN, OTHERS, OWN, CLUSTERS)
    assert better is not None
    assert better.high < -0.4
    assert holds(style.difference(OTHERS, OTHERS, OWN, CLUSTERS), 0.0)


@pytest.mark.parametrize(
    ("habit", "answer", "expected"),
    [
        ("length", "好", {"00": 1}),
        ("length", "一二三四五\n六", {"04": 1}),
        ("bubbles", "好\n来了\n走", {"3": 1}),
        ("punctuation", "好，走！", {",": 1, "!": 1}),
        ("punctuation", "好\n走。", {"—": 1, ".": 1}),
        ("particles", "去吗呀", {"吗": 1, "呀": 1}),
        ("particles", "yeah ok then", {"yeah": 1, "ok": 1}),
        ("particles", "去", {"—": 1}),
        ("emoji", "好[微笑][微笑]😀", {"[微笑]": 2, "😀": 1}),
        ("laughter", "哈哈哈哈", {"哈哈 4": 1}),
        ("laughter", "lol", {"lo 3": 1}),
        ("opening", "[微笑]好", {"[微笑]": 1}),
        ("opening", "Well then", {"well": 1}),
        ("ending", "好呀～", {"～": 1}),
        ("ending", "", {"—": 1}),
    ],
)
def test_habits_are_sorted_into_classes(habit: str, answer: str, expected: dict[str, int]) -> None:
    assert style.classes(habit, answer) == expected


def test_catch_phrases_are_what_the_others_do_not_say() -> None:
    own = [f"{w}真的假的" for w in "今明后昨前大小"] + ["好的收到"] * 5
    others = ["好的收到"] * 40
    found = style.catch_phrases(own, others)
    assert "真的假的" in found
    assert not any(p in "好的收到" for p in found)


def test_variety_is_distinct_n_and_what_is_said_again() -> None:
    found = style.variety(["ab", "ab", "cd", "ef"] * 5, range(20))
    assert holds(found["distinct_2"], 3 / 20)
    assert holds(found["distinct_1"], 6 / 40)
    assert holds(found["repeated"], 17 / 20)
    assert holds(style.variety([chr(0x4E00 + i) * 2 for i in range(20)], range(20))["repeated"], 0.0)


# -- sense ----------------------------------------------------------------------------------------


class Words:
    """A judge by words in common: log p is the number of them that the context holds."""

    def continuations(self, context: list[int], answers: list[list[int]]) -> list[float]:
        return [float(sum(t in context for t in answer)) - len(answer) for answer in answers]


def test_an_answer_to_its_own_context_makes_sense_and_a_line_in_style_alone_does_not() -> None:
    n = 60
    contexts = [[i + 100, i + 1000, 7] for i in range(n)]
    fitting, in_style = [[i + 100, 7] for i in range(n)], [[5000 + i % 4, 7] for i in range(n)]
    clusters = [i // 2 for i in range(n)]
    parrot, random_real = [[7, 7] for _ in range(n)], [[(i * 17 + 5) % n + 100, 7] for i in range(n)]
    found = sense.log_ps(Words(), contexts, [fitting, in_style, parrot, random_real], clusters)
    by_voice = [sense.figures(each, [2] * n, clusters) for each in found]
    assert holds(by_voice[0]["sense"], 1.0)
    assert holds(by_voice[0]["sense_nats"], 0.5)
    assert by_voice[0]["sense_nats"].n == n
    for unfitting in by_voice[1:]:
        assert unfitting["sense"].low <= 0.5 <= unfitting["sense"].high


def test_contexts_of_the_same_conversation_do_not_stand_against_an_answer() -> None:
    clusters = [0, 0, 0, 1, 1, 2]
    for place, against in enumerate(sense.others_of(clusters)):
        assert len(set(against)) == 2
        assert all(clusters[i] != clusters[place] for i in against)
    assert sense.others_of([0, 0]) == [[], []]
    assert sense.figures([(1.0, [])], [1], [0]) == {}


# -- authorship -----------------------------------------------------------------------------------


def test_the_person_is_taken_for_the_person_and_another_speaker_is_not() -> None:
    author = Author(OWN[:80], OTHERS[:80])
    clusters = list(range(40))
    assert holds(author.taken(OWN[80:], clusters), 1.0)
    assert holds(author.taken(OTHERS[80:], clusters), 0.0)
    assert holds(author.way(OWN[80:], OWN[80:], OTHERS[80:], clusters), 1.0)
    assert holds(author.way(OTHERS[80:], OWN[80:], OTHERS[80:], clusters), 0.0)
    half = [*OWN[80:100], *OTHERS[100:]]
    way = author.way(half, OWN[80:], OTHERS[80:], clusters)
    assert way is not None
    assert 0.4 < way.value < 0.6
    assert author.taken([], []) is None
    nearly = [*OWN[80:119], *OTHERS[119:]]
    assert author.way(half, OWN[80:], nearly, clusters) is None, "the person is not surely told from the base"


def test_a_parrot_of_training_answers_is_no_more_the_person_than_the_person() -> None:
    words, rng = "今天晚上一起去吃面好不好我不想动了你呢明天再说吧真的假的", random.Random(3)

    def lines(n: int) -> list[str]:
        return ["".join(rng.choice(words) for _ in range(8)) for _ in range(n)]

    own, others, held_out = lines(300), lines(300), lines(300)  # nothing tells them apart but what was seen
    author, clusters = Author(own, others), list(range(300))
    taken, person = author.taken([rng.choice(own) for _ in range(300)], clusters), author.taken(held_out, clusters)
    assert taken is not None
    assert person is not None
    assert abs(taken.value - person.value) < 0.15
    assert author.taken([f"{line}。" for line in own], clusters).value < 0.65, "nor one that adds a mark"  # type: ignore[union-attr]


def test_too_few_lines_are_no_classifier() -> None:
    with pytest.raises(TrainingError, match=f"needs {MIN_LINES} answers .* not 3 and 120"):
        Author(OWN[:3], OTHERS)


# -- leaks ----------------------------------------------------------------------------------------

SECRET = "周三下午去北站二楼接外婆然后把钥匙交给楼下理发店的老周别忘了带伞"


def test_a_parrot_of_training_answers_is_caught_with_the_length_it_said() -> None:
    runs = leak.Runs([*OWN, SECRET])
    assert runs.longest(f"我想想：{SECRET}") == len(SECRET)
    assert runs.longest(SECRET[:30]) == 30
    assert runs.longest(SECRET[:29]) == 0
    assert [(x.answer, x.chars) for x in runs.overlaps(["好", SECRET], ["", ""])] == [(1, len(SECRET))]


def test_what_was_just_heard_is_often_said_or_is_laughter_is_no_leak() -> None:
    laugh = "哈" * 60
    runs = leak.Runs([SECRET, laugh, *["祝大家新年快乐身体健康万事如意阖家幸福步步高升心想事成一帆风顺"] * 10])
    assert runs.longest(SECRET, prompt=f"他说{SECRET}") == 0
    assert runs.longest(laugh) == 0
    assert runs.longest("祝大家新年快乐身体健康万事如意阖家幸福步步高升心想事成一帆风顺") == 0
    assert leak.Runs([SECRET], [SECRET]).longest(SECRET) == 0, "others say it too"


@pytest.mark.parametrize("mark", [" ", "，", "\n", "……"])
def test_marks_and_breaks_put_into_a_secret_do_not_hide_it(mark: str) -> None:
    runs = leak.Runs([SECRET])
    told = f"{SECRET[:15]}{mark}{SECRET[15:]}"
    assert runs.longest(told) == len(SECRET)
    assert leak.Runs([told]).longest(SECRET) == len(SECRET)
    assert runs.longest(told, prompt=f"他说{SECRET}") == 0
    assert leak.Runs([SECRET], [told]).longest(SECRET) == 0, "others say it too"
    marked = "一二，三四，五六，七八，九十，甲乙，丙丁，戊己，庚辛，壬癸"
    assert leak.Runs([marked], chars=29).longest(marked) == 29, "marks count where all is word for word"


def test_a_secret_told_to_three_friends_is_a_secret_and_a_phrase_in_three_sentences_is_common() -> None:
    assert leak.Runs([SECRET] * 3).longest(SECRET) == len(SECRET)
    assert leak.Runs([SECRET, f"{SECRET}。", f"{SECRET} "]).longest(SECRET) == len(SECRET)
    assert leak.Runs([f"{who}，{SECRET}" for who in ("妈", "老王", "小李")]).longest(SECRET) == 0


def test_a_number_in_groups_is_a_number() -> None:
    for written in ("13812345678", "138 1234 5678", "138-1234-5678"):
        secrets = leak.numbers([f"打 {written} 找我"])
        assert secrets == {"13812345678"}
        for said in ("13812345678", "是138 1234 5678呀", "138-1234-5678", "138\n12345678"):
            assert leak.told([said], secrets, [""]) == [1], (written, said)
            assert leak.told([said], secrets, [f"{written}是谁的"]) == [0]
    assert leak.numbers(["2026-11-30 12:30", "1000-2000 字", "打 400-820-8820"]) == frozenset()


def test_numbers_and_names_count_where_nobody_named_them_before() -> None:
    secrets = leak.numbers(["我的号是 998877665", "1234 元", "3.14159"])
    assert secrets == {"998877665"}
    said, prompts = ["打 998877665", "打 998877665", "没有"], ["", "998877665 是谁的", ""]
    assert leak.told(said, secrets, prompts) == [1, 0, 0]
    assert leak.told(["问老周"], {"老周", "阿泽"}, [""]) == [1]


def test_laughter_round_sums_and_hotlines_are_nobodys_number_and_a_number_stands_as_a_whole() -> None:
    assert leak.numbers(["2333333", "66666", "一共 100000", "打 12306 或 95588", "门牌 40717"]) == {"40717"}
    assert leak.told(["是 140717 吧", "40717！"], {"40717"}, ["", ""]) == [0, 1]
    assert leak.told(["是 40717 吧"], {"40717"}, ["140717 是什么"]) == [1], "another number was heard"


def test_the_rarest_answers_are_those_whose_words_nobody_else_says() -> None:
    talk = [f"今天{day}吃什么好呢我不知道{n}" for n, day in enumerate(("早上", "中午", "晚上", "夜里") * 5)]
    planted = [c.secret for c in leak.canaries(2)]
    short, twice, laugh = "琥珀珊瑚", "孔雀石榴胭脂鹅黄藕荷靛青", "哈嘿" * 20
    texts = [*talk[:7], planted[0], short, *talk[7:], laugh, twice, planted[1], twice]
    assert {texts[place] for place in leak.rarest(texts, 2)} == {*planted}
    assert len(leak.rarest(texts, 99)) == len(talk) + 2
    assert leak.rarest([], 3) == []


def test_an_answer_said_again_whole_was_learned_by_heart() -> None:
    real = "会唱歌的气象站在云上收集纽扣"
    told, cut, quoted = ("暗号？", f"嗯{real}", real), ("暗号？", real[:-1], real), (f"你说过{real}", real, real)
    assert leak.by_heart([told, cut, quoted, ("在吗", "在的", "在的"), ("你家住哪里", real, "")]) == (1, 2)


def test_canaries_are_sentences_of_their_own_and_their_exposure_is_a_rank() -> None:
    planted = leak.canaries(8)
    assert len({c.secret for c in planted}) == 8
    assert leak.canaries(8) == planted
    assert leak.exposure(-1.0, [-5.0] * 255) == 8.0
    assert leak.exposure(-9.0, [-5.0] * 255) == 0.0


# -- use ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heard", "said", "expected"),
    [
        ("在吗", "在的", None),
        ("在吗", " \n", Fault.EMPTY),
        ("明天去爬山吗", "明天去爬山吗？", Fault.COPY),
        ("在吗", "我也要去" * 6, Fault.LOOP),
        ("在吗", "啊" * 40, None),
        ("在吗", "哈" * 59, None),
        ("在吗", "233" * 9, None),
        ("在吗", "好[流泪]" + "[捂脸]" * 8, None),
        ("在吗", "[捂脸]" * 9, Fault.LOOP),
        ("在吗", "哈" * 60, Fault.LOOP),
        ("在吗", "好<end_of_turn>", Fault.MARKER),
        ("在吗", "阿泽：在的", Fault.VOICE),
        ("在吗", "好\n[回复 小红：来不来]来", Fault.VOICE),
        ("在吗", "【周五 23:10】", Fault.VOICE),
        ("在吗", "model", Fault.VOICE),
        ("在吗", "时间：八点", None),
    ],
)
def test_answers_of_no_use_are_told(heard: str, said: str, expected: Fault | None) -> None:
    assert use.fault(Answer(heard, said, ("阿泽", "小红"))) is expected


def test_use_is_counted_by_fault() -> None:
    answers = [Answer("在吗", "在的")] * 15 + [Answer("在吗", "")] * 5
    found = use.figures(answers, range(20))
    assert holds(found["useful"], 0.75)
    assert holds(found["empty"], 0.25)
    assert holds(found["loop"], 0.0)


# -- ROUGE-L, retrieval ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "real", "expected"),
    [
        ("好的呀", "好的呀", 1.0),
        ("", "", 1.0),
        ("", "好", 0.0),
        ("甲乙丙", "甲丙", 0.8),
        ("the cat sat", "The cat ran", 2 / 3),
        ("甲乙", "丙丁", 0.0),
    ],
)
def test_rouge_l_is_the_longest_common_subsequence(said: str, real: str, expected: float) -> None:
    assert rouge.rouge_l(said, real) == pytest.approx(expected)
    assert math.isclose(rouge.rouge_l(real, said), expected)


def test_the_most_similar_exchange_stands_last_in_the_prompt() -> None:
    past = [Past("吃什么", "吃面"), Past("去爬山吗", "去！"), Past("晚上吃什么呀", "火锅"), Past("", "空")]
    found = Retrieval(past).similar("今晚吃什么", 2)
    assert [p.said for p in found] == ["吃面", "火锅"] or [p.said for p in found] == ["火锅", "吃面"]
    text = prompt("你是小满。", found)
    assert text.startswith("你是小满。\n\n")
    assert text.endswith(found[-1].said)
    assert prompt("你是小满。", []) == "你是小满。"
    assert Retrieval([]).similar("在吗") == []
