"""Manifest and verdict → report.md beside the version, and the few lines its owner gets in QQ. Both Chinese.

Everything shown is counts and figures: no chat text, no names.
"""

from collections.abc import Mapping
from typing import Any

from bot.config import Retrain
from bot.persona import Manifest, Spec
from training.evaluate import Figure
from training.gate import Fault, Reason, Verdict

SUMMARY_LINES = 10
"""Lines of a private message at most."""

_COUNTS = {
    "messages": "读到的消息", "conversations": "对话", "scenes": "会话（群和私聊）", "turns": "本人的发言（轮）",
    "bubbles": "本人的发言（条）", "silences": "算数的沉默",
    "silences_unlabelled": "不算数的沉默", "twin_turns": "分身自己的发言（不学）",
    "set_dialogues": "训练集里的对话", "set_answers": "训练集里的回答（轮）",
    "set_dialogues_left_out": "训练集里没用上的对话",
}  # fmt: skip
_NAMES = {
    "loss": "留出集损失（nats/token，越低越好）", "loss_words": "其中只算说了话的", "auc_text": "沉默 AUC：只看文字",
    "auc_features": "沉默 AUC：只看时间、@ 等特征（基线）", "auc_both": "沉默 AUC：两者合用（实际使用）",
    "brier": "开口概率的均方误差（越低越好）",
}  # fmt: skip
_WHY = {
    Fault.NOT_A_NUMBER: "新版本的分数里出现了非数字，训练多半发散了",
    Fault.NOTHING_HELD_OUT: "留出的对话还太少，没法判断好坏；多积累一些聊天记录再训练",
    Fault.NOT_COMPARABLE: "新旧模型不是在同样的对话上打的分，没法比较",
    Fault.WORSE_THAN_SERVING: "留出集损失比现在的版本差",
    Fault.NOT_BETTER_THAN_BASE: "留出集损失没有明显好过没训练的底座",
    Fault.PARITY: "导出的文件和训练的结果对不上",
    Fault.SILENCE_COLLAPSED: "该说话时反而更想沉默（沉默 AUC 低于 0.5）",
    Fault.NO_ANSWERS: "没有可以检查的示例回答",
    Fault.EMPTY_ANSWERS: "有示例回答是空的",
    Fault.CONTROL_TOKENS: "有示例回答带着模板标记",
    Fault.BAD_ANSWERS: "太多示例回答在循环或照抄对方",
}
_NEXT = {
    Fault.NOT_A_NUMBER: "把 bot.toml [training] learning_rate 调低再训练。",
    Fault.NOTHING_HELD_OUT: "用 `twin import` 导入更多聊天记录，或者等记录多一些。",
    Fault.NOT_COMPARABLE: "重新运行 `twin night`；如果换过底座，先给新底座训练一版。",
    Fault.WORSE_THAN_SERVING: "不用做什么，下一晚会带着新的聊天记录再试；连续几晚都这样，就把 num_train_epochs 调低。",
    Fault.NOT_BETTER_THAN_BASE: "用 `twin corpus stats` 看看学到了多少；太少就导入更多聊天记录。",
    Fault.PARITY: "运行 `twin doctor`，确认底座文件没有换过、没有损坏，再训练。",
    Fault.SILENCE_COLLAPSED: "用 `twin corpus stats` 看看沉默是不是标错了（persona.toml 里的 people 是否写全）。",
}
_NEXT_BY_DEFAULT = "把 persona.toml [sampling] temperature 调低，或者多训练一些聊天记录再试。"


def markdown(manifest: Manifest, verdict: Verdict, serving: Manifest | None) -> str:
    """The version's report.md.

    Args:
        manifest: of the version, published or refused.
        verdict: the gate's.
        serving: of the version that served until now; None when there was none.
    """
    parts = [
        f"# 版本 {manifest.version}：{'已发布' if verdict.passed else '没有发布'}",
        f"底座 {manifest.base.file}（{manifest.base.architecture}），训练于 {manifest.created}，"
        + (f"原版本 {serving.version}。" if serving else "之前没有版本。"),
        "## 学了什么",
        _learned(manifest, serving),
        "## 成绩",
        _figures(verdict),
        _notes(manifest, verdict),
        "## 结论",
        _conclusion(verdict, serving),
        "## 接下来",
        _next(verdict),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def summary(manifest: Manifest, verdict: Verdict, serving: Manifest | None) -> str:
    """The private message to the owner, at most `SUMMARY_LINES` lines.

    Args:
        manifest: of the version.
        verdict: the gate's.
        serving: of the version that served until now; None when there was none.
    """
    counts = _counts(manifest)
    lines = [
        f"版本 {manifest.version} {'训练好了，已经换上' if verdict.passed else f'没有换上，{_stays(serving)}'}",
        f"学了本人 {_number(counts.get('turns'))} 轮发言、{_number(counts.get('silences'))} 次沉默"
        + (f"，训练集里的 {_number(counts['set_answers'])} 轮回答" if counts.get("set_answers") else ""),
    ]
    loss = next((row for row in verdict.rows if row.name == "loss"), None)
    if loss is not None:
        before = f"，原版本 {_plain(loss.serving)}" if loss.serving else ""
        lines.append(f"留出集损失 {_plain(loss.new)}（底座 {_plain(loss.base)}{before}）")
    auc = {row.name: row.new for row in verdict.rows}
    if auc.get("auc_text"):
        lines.append(f"沉默 AUC {_plain(auc['auc_text'])}（只看特征 {_plain(auc.get('auc_features'))}）")
    shown = verdict.reasons[: SUMMARY_LINES - len(lines) - 2]
    lines += [f"· {_sentence(reason)}" for reason in shown]
    if len(verdict.reasons) > len(shown):
        lines.append(f"· 还有 {len(verdict.reasons) - len(shown)} 条，见 report.md")
    if not verdict.passed:
        lines.append(f"接下来：{_remedies(verdict)[0]}")
    return "\n".join(lines)


def skipped(spec: Spec, new: int, settings: Retrain) -> str:
    """What the owner is told of a night that did not train.

    Args:
        spec: the persona.
        new: messages of the person that the serving version has not learned from.
        settings: bot.toml's [retrain].
    """
    return (
        f"{spec.display_name}今晚没有训练：上次之后本人只说了 {new} 条（补导入的也算），"
        f"不到 {settings.min_new_messages} 条（bot.toml [retrain] min_new_messages）。要现在就训练，发 /train now。"
    )


def failed(spec: Spec, error: Exception, attempt: int, attempts: int) -> str:
    """What the owner is told of a night that broke off.

    Args:
        spec: the persona.
        error: what broke it; its message holds no chat text.
        attempt: how often this night was tried.
        attempts: how often it will be.
    """
    again = "做完的部分留着，下次接着跑" if attempt < attempts else "这一晚不再试了"
    return f"{spec.display_name}的训练没跑完（第 {attempt} 次）：{error}\n现在的版本照常；{again}。"


def killed(spec: Spec, attempts: int) -> str:
    """What the owner is told of a night that is given up because its process was killed again and again.

    Args:
        spec: the persona.
        attempts: how often it was tried.
    """
    return (
        f"{spec.display_name}的训练试了 {attempts} 次都没跑完，最后一次没有留下错误就断了："
        "进程被系统杀掉了（多半是内存不够），或者机器断了电。\n现在的版本照常；这一晚不再试了。"
        "内存不够的话，把 bot.toml [training] per_device_train_batch_size 或 model_max_length 调小，再发 /train now。"
    )


def _counts(manifest: Manifest | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = manifest.corpus.get("counts", manifest.corpus) if manifest else {}
    return found


def _stays(serving: Manifest | None) -> str:
    return f"继续用 {serving.version}" if serving else "继续用没有训练过的底座"


def _learned(manifest: Manifest, serving: Manifest | None) -> str:
    counts, before = _counts(manifest), _counts(serving)
    lines = []
    for key, name in _COUNTS.items():
        if key in counts:
            was = before.get(key)
            more = f"（上一版 {_number(was)}）" if isinstance(was, int) else ""
            lines.append(f"- {name}：{_number(counts[key])}{more}")
    if manifest.contributors:
        lines.append(f"- 被学习的账号：{len(manifest.contributors)} 个")
    return "\n".join(lines) or "没有记录。"


def _figures(verdict: Verdict) -> str:
    if not verdict.rows:
        return "留出的对话太少，没有可以显示的成绩。"
    lines = ["| 指标 | 新版本 | 原版本 | 底座 |", "|---|---|---|---|"]
    for row in verdict.rows:
        lines.append(f"| {_NAMES[row.name]} | {_cell(row.new)} | {_cell(row.serving)} | {_cell(row.base)} |")
    return "\n".join(lines)


def _notes(manifest: Manifest, verdict: Verdict) -> str:
    lines = ["方括号里是 95 % 置信区间。"]
    if any(row.new and row.new.resampled == "label" for row in verdict.rows):
        lines[0] += "留出的对话不到 8 段，区间按单条发言估计，偏窄。"
    for difference, name in ((verdict.against_serving, "原版本"), (verdict.against_base, "底座")):
        if difference is not None:
            lines.append(f"- 同样的发言上，新版本减{name}：{_cell(difference)} nats/token（负数是更好）。")
    parity = manifest.parity
    if "loss_gap" in parity:
        equal = "一致" if parity.get("passed") else "不一致"
        lines.append(f"- 导出{equal}：llama.cpp 与训练框架的损失相差 {float(parity['loss_gap']):+.4f} nats/token。")
    if parity.get("loss_nf4") is not None:
        added = float(parity["loss_nf4"]) - float(parity["loss_trained"])
        lines.append(f"- 用 NF4 量化训练，损失另差 {added:+.4f} nats/token。")
    if manifest.calibration is None:
        lines.append("- 调校集里的发言或沉默太少，没有拟合何时开口；用的是内置的规则。")
    return "\n".join(lines)


def _conclusion(verdict: Verdict, serving: Manifest | None) -> str:
    if verdict.passed:
        return "通过，已经换上。"
    return f"没有通过，{_stays(serving)}：\n\n" + "\n".join(f"- {_sentence(r)}。" for r in verdict.reasons)


def _next(verdict: Verdict) -> str:
    if verdict.passed:
        return "不用做什么。不满意的话，用 `/persona rollback` 换回上一版。"
    return "\n".join(f"- {remedy}" for remedy in _remedies(verdict))


def _remedies(verdict: Verdict) -> list[str]:
    return list(dict.fromkeys(_NEXT.get(r.fault, _NEXT_BY_DEFAULT) for r in verdict.reasons))


def _sentence(reason: Reason) -> str:
    text = _WHY[reason.fault]
    if reason.figure is not None:
        return f"{text}：{_cell(reason.figure)}"
    return f"{text}（{reason.count} 条）" if reason.count else text


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "—"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]（n={figure.n}）"


def _plain(figure: Figure | None) -> str:
    return "—" if figure is None else f"{figure.value:.2f}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "—"
