"""What this plugin says in QQ."""

STARTED = "开始训练「{persona}」了，跑完告诉你。/train status 看进度，/train cancel 停下。"
RUNNING = "已经有一个训练在跑：{state}"
STATUS = "{step} {count}{words}"
IDLE = "现在没有训练在跑。{last}"
LAST = "上一次：{summary}"
CANCELLED = "好，停下了。做完的部分留着，下次接着跑。"
NOTHING = "没有正在跑的训练。"
USAGE = "用法：/train now|status|cancel"
NOT_INSTALLED = (
    "这里没装训练用的包（缺 {missing}），晚上也不会训练。装好再来：make run TRAIN=1，或 pip install '.[train]'。"
)
FAILED = "训练没跑完：{why}"
TIMEOUT = "训练超过了 {hours:.1f} 小时，停了；做完的部分留着。"
STEPS = {
    "snapshot": "整理聊天记录", "train": "训练", "prefer": "学主人的纠正", "export": "导出", "parity": "核对导出",
    "evaluate": "评估", "gate": "把关", "publish": "换上",
}  # fmt: skip
ROLLED_BACK = (
    "「{persona}」的新版本 {version} 我撤下来了，换回了 {back}。原因：{why}。\n"
    "它不会自己再换上；还想用它：twin persona rollback {name} {version}"
)
WORSE = "「{persona}」的版本 {version} 看着不太对，没有自动撤下（没开，或没有更早的版本）。原因：{why}。"
CORRECTED = "换上之后 {answers} 次回答被纠正了 {corrected} 次{before}"
CORRECTED_BEFORE = "（上一版 {answers} 次里 {corrected} 次）"
OUTSIDE = "{measure} {value:.2f}，本人一向在 {low:.2f} 到 {high:.2f}"
MEASURES = {
    "log_chars": "每条的长短（对数字数）", "bubbles": "一次发几条（对数）", "punctuation": "句尾标点的比例",
    "faces": "带表情的比例", "laughter": "笑的比例", "distinct": "不重样的程度", "rate_private": "私聊里开口的比例",
    "rate_group": "群里开口的比例",
}  # fmt: skip
