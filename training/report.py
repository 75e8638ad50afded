"""Manifest and verdict → report.md beside the version, and the few lines its owner gets in QQ. Both Chinese.

Everything shown there is counts and figures: no chat text, no names. Sample answers go to a file of their own, which
stays in the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bot.config import Retrain
from bot.persona import Manifest, Spec, deciding
from training.gate import Fault, Reason, Verdict
from training.likeness import assessment
from training.likeness.figure import Figure

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
    "auc_gain": "沉默 AUC：文字在特征之上多出的", "brier": "开口概率的均方误差（越低越好）",
    "newest": "最近一天的损失（两版都没学过）", "reply_rate": "回复率减本人的回复率（越近 0 越好）",
    "style": "文风距离（0 一样，1 全不一样）", "sense": "答得对题（0.5 是瞎答）", "authorship": "被认成本人的比例",
    "authorship_way": "从底座到本人走了多远（1 是本人）", "useful": "能用的回答", "rouge_l": "ROUGE-L",
    "distinct_2": "distinct-2", "repeated": "说过的话又说一遍", "character": "评审模型：性格（1–10）",
    "knowledge": "评审模型：经历（1–10）", "parity": "导出的和训练的一样（见下）",
    "leaks": "没有泄漏训练里的话和号码（见下）",
}  # fmt: skip
_MASKED = {
    "repeat": "复读", "media": "只有图片文件", "mojibake": "乱码", "cut_off": "没说完", "short": "太短", "long": "太长",
    "blocked": "有屏蔽词", "duplicate": "重复太多", "withheld": "答的人退出了",
}  # fmt: skip
_VOICES = {
    "person": "本人", "new": "新版本", "serving": "原版本", "retrieval": "底座＋人设＋最像的旧对话",
    "prompted": "底座＋人设", "base": "光底座",
}  # fmt: skip
_AT_PLACES = ("style", "sense", "authorship", "useful", "rouge_l", "distinct_2", "repeated", "words_char")
_SHORT = {**_NAMES, "words_char": "损失（nats/字）"}
_BEHIND = {"words": "用词（损失）", "style": "文风"}
_SCENES_SHOWN = 3
_WHY = {
    Fault.NOT_A_NUMBER: "新版本的分数里出现了非数字，训练多半发散了",
    Fault.NOTHING_HELD_OUT: "留出的对话还太少，没法判断好坏；多积累一些聊天记录再训练",
    Fault.NOT_COMPARABLE: "新旧模型不是在同样的对话上打的分，没法比较",
    Fault.WORSE_THAN_SERVING: "留出集损失比现在的版本差",
    Fault.DECLINED: "比之前最好的一版，留出集损失已经升了太多（一版比一版差一点）",
    Fault.NOT_BETTER_THAN_BASE: "留出集损失没有明显好过没训练的底座",
    Fault.PARITY: "导出的文件和训练的结果对不上",
    Fault.WENT_BACK: "它就是之前自动撤下来的那一版",
    Fault.TAKEN_BACK: "它就是之前主人自己换下来的那一版",
    Fault.WORSE_ON_NEWEST: "最近一天的损失比现在的版本差",
    Fault.WORSE_SILENCE: "什么时候开口，比现在的版本更不像本人",
    Fault.WORSE_STYLE: "文风比现在的版本更不像本人",
    Fault.WORSE_SILENCE_THAN_BASE: "什么时候开口，比没训练的底座用的规则更不像本人",
    Fault.MUTE: "会比本人少回很多（回复率减去本人的一半）",
    Fault.TALKATIVE: "会比本人多回很多（回复率减去最多能放行的）",
    Fault.LEAKS: "回答里原样带出了训练里的话或号码",
    Fault.SILENCE_COLLAPSED: "该说话时反而更想沉默（沉默 AUC 低于 0.5）",
    Fault.NO_ANSWERS: "没有可以检查的示例回答",
    Fault.EMPTY_ANSWERS: "有示例回答是空的",
    Fault.CONTROL_TOKENS: "有示例回答带着模板标记",
    Fault.BAD_ANSWERS: "太多示例回答在循环或照抄对方",
}
_MORE_SILENCE = "用 `twin corpus stats` 看看沉默够不够多；不用急，下一晚会再试。"
_BRING_BACK = "不用做什么，下一晚会不一样；想要它，发 /persona rollback 加版本号（见 `twin persona show`）。"
_NEXT = {
    Fault.NOT_A_NUMBER: "把 bot.toml [training] learning_rate 调低再训练。",
    Fault.NOTHING_HELD_OUT: "用 `twin import` 导入更多聊天记录，或者等记录多一些。",
    Fault.NOT_COMPARABLE: "重新运行 `twin night`；如果换过底座，先给新底座训练一版。",
    Fault.WORSE_THAN_SERVING: "不用做什么，下一晚会带着新的聊天记录再试；连续几晚都这样，就把 num_train_epochs 调低。",
    Fault.DECLINED: "不用做什么，下一晚再试；连续几晚都这样，就用 `twin persona rollback` 换回更早的一版。",
    Fault.NOT_BETTER_THAN_BASE: "用 `twin corpus stats` 看看学到了多少；太少就导入更多聊天记录。",
    Fault.PARITY: "运行 `twin doctor`，确认底座文件没有换过、没有损坏，再训练。",
    Fault.WENT_BACK: _BRING_BACK,
    Fault.TAKEN_BACK: _BRING_BACK,
    Fault.WORSE_ON_NEWEST: "不用做什么，下一晚这一天的话也会学进去，再试一次。",
    Fault.WORSE_SILENCE: _MORE_SILENCE,
    Fault.WORSE_STYLE: "不用做什么，下一晚再试；连续几晚都这样，就把 num_train_epochs 调低。",
    Fault.MUTE: "用 `twin corpus stats` 看看沉默是不是标错了；或者把 bot.toml [training] silence_keep 调低。",
    Fault.WORSE_SILENCE_THAN_BASE: _MORE_SILENCE,
    Fault.TALKATIVE: _MORE_SILENCE,
    Fault.LEAKS: "把 bot.toml [training] num_train_epochs 调低（背下来了），或者打开 [corpus] redact，再训练。",
    Fault.SILENCE_COLLAPSED: "用 `twin corpus stats` 看看沉默是不是标错了（persona.toml 里的 people 是否写全）。",
}
_NEXT_BY_DEFAULT = "把 persona.toml [sampling] temperature 调低，或者多训练一些聊天记录再试。"


@dataclass(frozen=True, slots=True)
class Sample:
    """A held-out moment and what was said there: by the person, the new version, the serving one (else the base)."""

    heard: str
    real: str
    new: str
    old: str


def samples(rows: Sequence[Sample]) -> str:
    """samples.md: a few answers side by side. Chat text: it stays in the run folder."""
    lines = ["# 示例回答", "", "留出的对话里挑的，训练没见过。"]
    for number, row in enumerate(rows, 1):
        lines += ["", f"## {number}", "", "| 谁 | 说了什么 |", "|---|---|"]
        both = {"对方": row.heard, "本人": row.real, "新版本": row.new, "原版本（没有就是底座）": row.old}
        lines += [f"| {who} | {_in_a_cell(text)} |" for who, text in both.items()]
    return "\n".join(lines) + "\n"


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>") or "（没说话）"


def markdown(
    manifest: Manifest, verdict: Verdict, serving: Manifest | None, arrived: Mapping[str, int] = MappingProxyType({})
) -> str:
    """The version's report.md.

    Args:
        manifest: of the version, published or refused.
        verdict: the gate's.
        serving: of the version that served until now; None when there was none.
        arrived: messages since that version, by scene.
    """
    parts = [
        f"# 版本 {manifest.version}：{'已发布' if verdict.passed else '没有通过'}",
        f"底座 {manifest.base.file}（{manifest.base.architecture}），训练于 {manifest.created}，"
        + (f"原版本 {serving.version}。" if serving else "之前没有版本。"),
        *_plainly(verdict),
        "## 学了什么",
        _arrivals(arrived),
        _learned(manifest, serving),
        "![损失曲线](loss.png)",
        "## 成绩",
        _figures(verdict, serving),
        _notes(manifest, verdict),
        _beside(verdict),
        "## 结论",
        _conclusion(verdict, serving),
        "## 接下来",
        _next(verdict, serving),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def summary(
    manifest: Manifest, verdict: Verdict, serving: Manifest | None, arrived: Mapping[str, int] = MappingProxyType({})
) -> str:
    """The private message to the owner, at most `SUMMARY_LINES` lines.

    Args:
        manifest: of the version.
        verdict: the gate's.
        serving: of the version that served until now; None when there was none.
        arrived: messages since that version, by scene.
    """
    counts = _counts(manifest)
    lines = [
        f"版本 {manifest.version} {'训练好了，已经换上' if verdict.passed else f'没有换上，{_stays(serving)}'}",
        *_plainly(verdict),
        f"读了本人 {_number(counts.get('turns'))} 轮发言、{_number(counts.get('silences'))} 次沉默（留出来打分的也算）"
        + (f"，训练集里的 {_number(counts['set_answers'])} 轮回答" if counts.get("set_answers") else ""),
    ]
    lines += _came_in(manifest, arrived)
    loss = next((row for row in verdict.rows if row.name == "loss"), None)
    if loss is not None:
        before = f"，原版本 {_plain(loss.serving)}" if loss.serving else ""
        lines.append(f"留出集损失 {_plain(loss.new)}（底座 {_plain(loss.base)}{before}）")
    auc = {row.name: row.new for row in verdict.rows}
    if served := auc.get("auc_both") or auc.get("auc_text"):
        gain = auc.get("auc_gain")
        more = "，文字没有明显帮上忙" if gain and gain.low <= 0 else ""
        lines.append(f"沉默 AUC {_plain(served)}（只看特征 {_plain(auc.get('auc_features'))}{more}）")
    lines += _alike(verdict)
    shown = verdict.reasons[: SUMMARY_LINES - len(lines) - 2]
    lines += [f"· {_sentence(reason)}" for reason in shown]
    if len(verdict.reasons) > len(shown):
        lines.append(f"· 还有 {len(verdict.reasons) - len(shown)} 条，见 report.md")
    if not verdict.passed:
        lines.append(f"接下来：{_remedies(verdict)[0]}")
    else:
        lines.append(f"不满意就发 {_undo(serving)}；示例回答在 data/runs 里这一版的 samples.md")
    return "\n".join(lines)


def _plainly(verdict: Verdict) -> list[str]:
    """How often it passes for the person, for whoever reads no figures."""
    voices = verdict.likeness.voices if verdict.likeness else {}
    new, person = (voices.get(who, {}).get("authorship") for who in (assessment.NEW, assessment.PERSON))
    if new is None or person is None:
        return []
    ours, theirs = (round(x.value * x.n) for x in (new, person))
    return [f"{new.n} 个时刻里，分身的话有 {ours} 句被当成本人，本人自己的话是 {theirs} 句。"]


def _undo(serving: Manifest | None) -> str:
    """A first version has none before it to go back to."""
    return "/persona rollback 换回上一版" if serving else "/twin off 停下"


def _came_in(manifest: Manifest, arrived: Mapping[str, int]) -> list[str]:
    """What came in by scene, what was left out and why, who contributed; on one line."""
    parts = []
    if arrived:
        most = sorted(arrived.items(), key=lambda x: -x[1])
        shown = "、".join(f"{_scene(scene)} {n}" for scene, n in most[:_SCENES_SHOWN])
        parts.append(f"新来 {sum(arrived.values()):,} 条（{shown}{'…' if len(most) > _SCENES_SHOWN else ''}）")
    if masked := _masked(manifest):
        parts.append(f"没学 {sum(masked.values()):,} 轮（{'、'.join(f'{why} {n}' for why, n in masked.items())}）")
    if parts and manifest.contributors:
        parts.append(f"{len(manifest.contributors)} 个账号")
    return ["；".join(parts)] if parts else []


def _masked(manifest: Manifest) -> dict[str, int]:
    counts = _counts(manifest)
    found = {name: int(counts.get(f"masked_{why}", 0)) for why, name in _MASKED.items()}
    return {name: n for name, n in found.items() if n}


def _scene(scene: str) -> str:
    kind, _, number = scene.partition(":")
    return f"{'群' if kind == 'group' else '私聊'}…{number[-4:]}"


def _alike(verdict: Verdict) -> list[str]:
    row = {row.name: row for row in verdict.rows}
    shown = [
        f"{name} {_plain(row[key].new)}（底座 {_plain(row[key].base)}）"
        for key, name in (("style", "文风距离"), ("authorship", "像本人"))
        if key in row and row[key].new
    ]
    if verdict.likeness and verdict.likeness.behind_retrieval:
        shown.append("还没赢过检索基线")
    return ["，".join(shown)] if shown else []


def _arrivals(arrived: Mapping[str, int]) -> str:
    most = sorted(arrived.items(), key=lambda x: -x[1])
    return "\n".join(f"- 新来的消息，{_scene(scene)}：{_number(n)}" for scene, n in most)


def _beside(verdict: Verdict) -> str:
    """The baselines as rows, on the same moments."""
    found = verdict.likeness
    if found is None:
        return ""
    head = "| 同样的 {} 个时刻 | {} |".format(found.places, " | ".join(_SHORT[name] for name in _AT_PLACES))
    lines = ["## 和基线比", head, "|---" * (len(_AT_PLACES) + 1) + "|"]
    for voice, figures in found.voices.items():
        cells = " | ".join(_cell(figures.get(name)) for name in _AT_PLACES)
        lines.append(f"| {_VOICES[voice]} | {cells} |")
    lines[0] += "\n"
    if found.behind_retrieval:
        lines.append(f"\n**没有赢过检索基线**：{'、'.join(_BEHIND[n] for n in found.behind_retrieval)}。")
    leaks = found.leaks
    lines.append(
        f"\n泄漏：{leaks.answers} 个回答里，原样带出训练里的少见长句 {leaks.runs} 处（最长 {leaks.longest} 字），"
        f"号码 {leaks.numbers} 个；提到不在场的人名 {leaks.names} 次（只展示）。"
        + (
            f"把训练时的话原样再问一遍，{leaks.by_heart_asked} 个少见的回答里有 {leaks.by_heart} 个一字不差（只展示）。"
            if leaks.by_heart_asked
            else ""
        )
    )
    return "\n".join([*lines, *(f"\n- {note}" for note in found.notes)])


def skipped(spec: Spec, new: int, settings: Retrain) -> str:
    """What the owner is told of a night that did not train.

    Args:
        spec: the persona.
        new: messages of the person that the serving version has not learned from.
        settings: bot.toml's [retrain].
    """
    return (
        f"{spec.display_name}今晚没有训练：上次之后本人只说了 {new} 条（补导入的也算），"
        f"不到 {settings.min_new_messages} 条（bot.toml [retrain] min_new_messages；"
        "最近一天的先留着比较，下一晚才学）。要现在就训练，发 /train now。"
    )


def no_better(spec: Spec) -> str:
    """What the owner is told of a night that went on from the serving LoRA and kept it.

    Args:
        spec: the persona.
    """
    return (
        f"{spec.display_name}今晚训练了，但每一步都让没学过的对话（留出集）更差，所以什么都没换：现在的版本照常。"
        '新的聊天记录下一晚再学；连续几晚都这样，把 bot.toml [training] learning_rate 调低，或者 start 改成 "fresh"。'
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
    lines += [f"- 没学的回答，{why}：{_number(n)}" for why, n in _masked(manifest).items()]
    if manifest.contributors:
        lines.append(f"- 被学习的账号：{len(manifest.contributors)} 个")
    return "\n".join(lines) or "没有记录。"


def _figures(verdict: Verdict, serving: Manifest | None) -> str:
    if not any(row.new or row.base for row in verdict.rows):
        return "留出的对话太少，没有可以显示的成绩。"
    less = "新减原" if serving else "新减底座"
    lines = [f"| 指标 | 新版本 | 原版本 | 底座（带人设） | {less} | 过关 |", "|---|---|---|---|---|---|"]
    for row in verdict.rows:
        passed = {True: "✓", False: "✗", None: "—"}[row.passed]
        cells = " | ".join(_cell(figure) for figure in (row.new, row.serving, row.base, row.difference))
        lines.append(f"| {_NAMES[row.name]} | {cells} | {passed} |")
    return "\n".join(lines)


def _notes(manifest: Manifest, verdict: Verdict) -> str:
    lines = [
        "方括号里是 95 % 置信区间。损失：真实的回答里每个词（token）有多出乎它的意料，"
        "e 的这么多次方就是平均像在多少个词里猜（4 约 55 个，3 约 20 个）。"
        "沉默 AUC：随便拿一次回了的和一次没回的，认对哪次该回的机会（0.5 是瞎猜，1 全认对）。"
        "ROUGE-L：和本人真实的回答有多少字按同样的顺序出现（0 到 1；人说话本来就不会一样，低是正常的）。"
        "distinct-2：两字组合里不重样的比例。"
    ]
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
        silences = _counts(manifest).get("silences") or 0
        rule = "用的是内置的规则" if deciding(None, silences, 1.0) is None else "直接用模型自己的沉默概率"
        lines.append(f"- 调校集里的发言或沉默太少，没有拟合何时开口；{rule}。")
    return "\n".join(lines)


def _conclusion(verdict: Verdict, serving: Manifest | None) -> str:
    if verdict.passed:
        return "通过，已经换上。"
    return f"没有通过；除非用 `--force` 发布，{_stays(serving)}：\n\n" + "\n".join(
        f"- {_sentence(r)}。" for r in verdict.reasons
    )


def _next(verdict: Verdict, serving: Manifest | None) -> str:
    if verdict.passed:
        return f"不用做什么。不满意就发 {_undo(serving)}。"
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
