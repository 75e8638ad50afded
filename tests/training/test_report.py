"""What the owner reads: every reason and figure in it, in Chinese, short, and no chat text."""

import pytest

from bot.config import Retrain
from bot.persona import Base, Calibration, Manifest, Spec
from training import gate
from training.gate import Fault, Reason, Row, Verdict
from training.likeness.assessment import Leaks, Likeness
from training.likeness.figure import Figure
from training.report import SUMMARY_LINES, Sample, markdown, samples, skipped, summary

COUNTS = {"messages": 1234, "turns": 321, "bubbles": 400, "silences": 87, "twin_turns": 5}
LOSS = Figure(value=4.25, low=4.1, high=4.4, n=900, resampled="conversation")
AUC = Figure(value=0.82, low=0.75, high=0.88, n=120, resampled="conversation")
ROWS = (
    Row("loss", LOSS, LOSS.model_copy(update={"value": 4.4}), LOSS.model_copy(update={"value": 6.0})),
    Row("auc_text", AUC, None, None),
    Row("auc_features", AUC.model_copy(update={"value": 0.79}), None, None),
)
PASSED = Verdict(True, (), ROWS, against_base=LOSS.model_copy(update={"value": -1.75}))
REFUSED = Verdict(False, (Reason(Fault.WORSE_THAN_SERVING, LOSS), Reason(Fault.EMPTY_ANSWERS, count=3)), ROWS)
EVERYTHING = Verdict(False, tuple(Reason(f) for f in Fault), ROWS)


def manifest(version: str = "20261122-0400", **more: object) -> Manifest:
    values = {
        "version": version,
        "created": "2026-11-22T04:00:00Z",
        "format": "gemma",
        "system_prompt": "你是小满。",
        "files": {},
        "base": Base(file="gemma.gguf", sha256="0" * 64, architecture="gemma3"),
        "contributors": ("10001",),
        "corpus": {"fingerprint": "x", "counts": COUNTS},
        "calibration": Calibration(intercept=0.0, weights={}),
        "parity": {"passed": True, "loss_gap": 0.016, "loss_trained": 4.234, "loss_nf4": 4.3},
        **more,
    }
    return Manifest.model_validate(values)


def test_a_published_report_shows_counts_figures_and_verdict() -> None:
    text = markdown(manifest(), PASSED, manifest("20261121-0400"))
    for part in (
        "# 版本 20261122-0400：已发布",
        "原版本 20261121-0400",
        "本人的发言（轮）：321（上一版 321）",
        "1,234",
        "4.250 [4.100, 4.400]（n=900）",
        "6.000",
        "基线",
        "0.790",
        "新版本减底座：-1.750",
        "+0.0160",
        "NF4",
        "+0.0660",
        "通过，已经换上",
    ):
        assert part in text
    assert "10001" not in text


def test_every_row_of_the_gate_has_a_name() -> None:
    rows = tuple(Row(name, LOSS, None, None) for name in (*gate._SHOWN, *gate._AT_PLACES, *gate._JUDGED))
    assert len(rows) > 20
    text = markdown(manifest(), Verdict(True, (), rows), None)
    assert text.count("| 4.250 [4.100, 4.400]（n=900） |") == len(rows)


def test_a_refused_report_gives_reasons_and_a_next_step() -> None:
    text = markdown(manifest(), REFUSED, manifest("20261121-0400"))
    for part in (
        "：没有通过",
        "除非用 `--force` 发布，继续用",
        "比现在的版本差：4.250",
        "示例回答是空的（3 条）",
        "20261121-0400：",
        "下一晚",
        "temperature",
    ):
        assert part in text


def test_what_could_not_be_measured_is_said() -> None:
    by_label = Row("loss", LOSS.model_copy(update={"resampled": "label"}), None, None)
    text = markdown(manifest(calibration=None, parity={}), Verdict(True, (), (by_label,)), None)
    assert "偏窄" in text
    assert "没有拟合何时开口" in text
    assert "之前没有版本" in text
    assert "留出的对话太少" in markdown(manifest(), Verdict(False, (Reason(Fault.NOTHING_HELD_OUT),), ()), None)


@pytest.mark.parametrize("verdict", [PASSED, REFUSED, EVERYTHING], ids=["passed", "refused", "everything"])
@pytest.mark.parametrize("serving", [None, manifest("20261121-0400")], ids=["first", "later"])
def test_the_private_message_has_ten_lines_at_most(verdict: Verdict, serving: Manifest | None) -> None:
    lines = summary(manifest(), verdict, serving).split("\n")
    assert len(lines) <= SUMMARY_LINES == 10
    assert "20261122-0400" in lines[0]
    assert any("4.25" in line and "6.00" in line for line in lines)
    assert any("0.82" in line and "0.79" in line for line in lines)
    assert ("接下来" in lines[-1]) is not verdict.passed


@pytest.mark.parametrize("fault", list(Fault))
def test_every_reason_has_a_sentence_and_a_remedy(fault: Fault) -> None:
    verdict = Verdict(False, (Reason(fault),), ROWS)
    assert "接下来：" in summary(manifest(), verdict, None)
    assert "## 接下来\n\n- " in markdown(manifest(), verdict, None)


FOUND = Likeness(
    places=60,
    voices={
        name: {key: AUC.model_copy(update={"value": value}) for key in ("style", "sense", "authorship", "useful")}
        for name, value in (("person", 0.11), ("new", 0.31), ("retrieval", 0.41), ("base", 0.62))
    },
    against_retrieval={"style": AUC, "words": AUC.model_copy(update={"value": -1.0, "low": -1.2, "high": -0.8})},
    leaks=Leaks(answers=82, runs=1, longest=37, by_heart=2, by_heart_asked=29),
)
JUDGED = Row("style", AUC, AUC, AUC, AUC.model_copy(update={"value": 0.05}), False)


def test_the_card_tells_what_came_in_what_was_left_out_and_how_the_baselines_did() -> None:
    counts = {**COUNTS, "masked_repeat": 5, "masked_media": 3}
    made = manifest(corpus={"counts": counts})
    verdict = Verdict(False, (Reason(Fault.LEAKS, count=1),), (*ROWS, JUDGED), likeness=FOUND)
    text = markdown(made, verdict, None, {"group:900012345": 200, "private:60007": 30})
    for part in (
        "群…2345：200", "私聊…0007：30", "复读：5", "只有图片文件：3", "loss.png",
        "| 底座＋人设＋最像的旧对话 |", "0.410",
        "没有赢过检索基线**：文风。", "少见长句 1 处（最长 37 字）", "| 0.050", "| ✗ |", "原样带出",
        "29 个少见的回答里有 2 个一字不差",
    ):  # fmt: skip
        assert part in text, part
    assert "900012345" not in text
    message = summary(made, verdict, None, {"group:900012345": 200, "private:60007": 30})
    assert "新来 230 条（群…2345 200、私聊…0007 30）；没学 8 轮（复读 5、只有图片文件 3）；1 个账号" in message
    assert "还没赢过检索基线" in message
    assert len(message.split("\n")) <= SUMMARY_LINES


def test_the_message_says_how_to_undo_what_was_published() -> None:
    before = manifest("20261121-0400")
    for text in (summary(manifest(), PASSED, before), markdown(manifest(), PASSED, before)):
        assert "/persona rollback" in text
        assert "/twin off" not in text
    for text in (summary(manifest(), PASSED, None), markdown(manifest(), PASSED, None)):
        assert "/twin off" in text
        assert "rollback" not in text, "there is none to go back to"


def test_what_decides_without_a_fit_is_named() -> None:
    of_silences, of_none = (
        markdown(manifest(calibration=None, corpus={"counts": {**COUNTS, "silences": n}}), PASSED, None)
        for n in (87, 0)
    )
    assert "没有拟合何时开口；直接用模型自己的沉默概率" in of_silences
    assert "没有拟合何时开口；用的是内置的规则" in of_none


def test_how_often_it_passes_for_the_person_is_said_in_a_plain_line() -> None:
    share = AUC.model_copy(update={"n": 60})
    voices = {who: {"authorship": share.model_copy(update={"value": v})} for who, v in (("new", 0.55), ("person", 0.9))}
    verdict = Verdict(True, (), ROWS, likeness=Likeness(places=60, voices=voices))
    plain = "60 个时刻里，分身的话有 33 句被当成本人，本人自己的话是 54 句。"
    assert summary(manifest(), verdict, None).split("\n")[1] == plain
    assert plain in markdown(manifest(), verdict, None).split("## 学了什么")[0]
    assert "被当成本人" not in summary(manifest(), PASSED, None)


@pytest.mark.parametrize(("gain", "said"), [(-0.01, True), (0.02, False)])
def test_the_message_tells_the_silence_as_served_and_whether_the_text_adds_to_it(gain: float, said: bool) -> None:
    more = (
        Row("auc_both", AUC.model_copy(update={"value": 0.91}), None, None),
        Row("auc_gain", AUC.model_copy(update={"value": 0.05, "low": gain}), None, None),
    )
    (line,) = [x for x in summary(manifest(), Verdict(True, (), (*ROWS, *more)), None).split("\n") if "AUC" in x]
    assert "沉默 AUC 0.91（只看特征 0.79" in line
    assert ("文字没有明显帮上忙" in line) is said


def test_samples_stand_side_by_side() -> None:
    text = samples([Sample("在吗|在吗", "在\n怎么了", "在的", "")])
    assert "| 对方 | 在吗\\|在吗 |" in text
    assert "| 本人 | 在<br>怎么了 |" in text
    assert "（没说话）" in text


def test_a_skipped_night_says_how_many_are_missing() -> None:
    text = skipped(Spec(display_name="小满"), 12, Retrain(min_new_messages=50))
    assert "12" in text
    assert "50" in text
    assert "小满" in text
