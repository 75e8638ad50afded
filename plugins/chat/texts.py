"""What this plugin says in QQ."""

ON = "已开启，我会在这里说话了。"
OFF = "已关闭，我只看不说。"
STATUS = (
    "这里{state}，由「{persona}」（{version}）回复；已运行 {hours:.1f} 小时，收到看不懂的 {odd} 条。\n"
    "今天这里看了 {decisions} 次，说了 {replies} 次，想出一句要 {took}（中位数）；现在还能发 {left} 条。\n"
    "话多话少 {bias:+.1f}，安静时段 {quiet}，命令{commands}，下次夜训 {night}。"
)
BIAS = "好，这里话多话少改为 {bias:+.1f}（0 是平时的样子，正数话更多，负数话更少）。"
QUIET = "好，这里 {hours} 不说话。"
QUIET_OFF = "好，这里没有安静时段了。"
STATE_ON, STATE_OFF = "开着", "关着"
BASE_VERSION = "未训练的底模"
COMMANDS_ON, COMMANDS_OFF = "好，这里的命令大家都能用了。", "好，这里的命令只有主人能用了。"
FOR_ALL, FOR_OWNERS = "大家可用", "仅主人可用"
TWIN_USAGE = (
    "用法：/twin on|off|status，/twin bias -1.5（话多话少，-20 到 20），/twin quiet 23:30-07:00 或 off，"
    "/twin commands on|off"
)
MEMORY_CLEARED = "好，之前聊的不再记得了（聊天记录还在）。"
MEMORY_USAGE = "用法：/memory clear"
WHY_NONE = "这里还没有做过决定。"
WHY_NONE_ON_IT = "对这条消息没有做过决定。"
WHY_WAS = {"off": "那时这里关着，没有看这条消息。", "held": "那时本人刚在这里说过话，没有看这条消息。"}
WHY_NOW = {"off": "这里现在关着（/twin on 打开）。", "held": "本人刚在这里说过话，先不插嘴。"}
TOOK = {"look": "决定", "words": "想出第一句"}
WHY_OUTCOME = "（{time}，{persona}{version}）：{outcome}"
WHY_ODDS = (
    "\n不说话的概率：模型觉得 {p_silent}，按本人习惯和设置调整后 {p_quiet:.0%}"
    "\n抽签 {draw:.2f}，小于 {p_speak:.2f} 才开口"
    "\n调整用的加减分（正数更想说，负数更不想）：{terms}"
)
WHY_COST = "\n读了 {tokens} 个 token；{took}"
OUTCOMES = {
    "spoke": "说了", "silent": "看到了，没说话", "cancelled": "准备说，被新消息打断后重新决定",
    "cut short": "说到一半停了", "budget": "想说，但最近说得够多了", "empty": "想说，但没生成出内容",
    "held": "准备说，本人先开口了，就没说", "off": "准备说，被关闭了", "recalled": "准备说，那句话被撤回了",
    "optout": "准备说，说话的人退出了，就没说",
    "stopped": "准备说，程序退出了", "muted": "想说，但在这里被禁言了", "paused": "想说，但疑似被风控，先停一阵",
    "offline": "想说，但账号掉线了", "quiet": "想说，但现在是安静时段", "failed: engine": "看到了，但模型出错了",
    "failed: fault": "看到了，但程序出错了", "stale": "太久以前的消息，补上记录，不再回",
    "busy": "想说，但正在回别人的话", "failed: refused": "想说，QQ 拒绝发送", "failed: unknown": "想说，发了却没有回音",
    "failed: shadowed": "想说，QQ 收下了却没有确认（疑似风控）", "failed: offline": "想说，但客户端没连上",
    "failed: bug": "想说，但客户端不认这条消息",
}  # fmt: skip
PLANNED_MISSED = "原定 {time} 在 {scene} 说的话没说成：{why}。"
PLANNED_DENSE = (
    "{scene} 的定时消息排得太密：上一次还在等机会说，这一次又到点了，就跳过了，之后再跳过不再提醒。"
    "把 cron 排稀一些，或把 [opening] late_s（现在是 {minutes:.0f} 分钟）改小。"
)
PLANNED_WHY = {
    "nobody": "没有连上的账号在那里", "late": "电脑睡过了头，太晚了", "off": "那里关着（/twin on 打开）",
    "held": "本人刚在那里说过话", "cancelled": "别人先开口了，就先回了别人", "empty": "没生成出内容",
    "quiet": "一直是安静时段", "budget": "那阵子说得够多了", "muted": "在那里被禁言了", "paused": "疑似被风控，正停着",
    "offline": "账号掉线了", "busy": "一直在回别人的话", "failed: fault": "程序出错了，看日志",
    "optout": "对方退出了（/optout）", "failed: offline": "客户端没连上", "recalled": "有人撤回了消息，就没接着说",
}  # fmt: skip
OPENINGS = {"own": "（自己先开口的）", "schedule": "（按计划先开口的）"}
OUTCOME_FAILED = "想说，没发出去（{how}）"
ABOUT = "我是「{persona}」的数字分身（qqtwin），不是本人：{model}，{where}。\n版本：{version}。命令：{commands}"
ABOUT_TRAINED, ABOUT_UNTRAINED = "用聊天记录训练的小模型", "还没训练过的模型"
ABOUT_HERE, ABOUT_SENT = "在主人自己的电脑上运行，数据不出本机", "聊天内容会发到主人指定的服务器"
CORRECTED = "记下了：「{said}」不像。"
CORRECTED_WANTED = "记下了：不该说「{said}」，该说「{wanted}」。"
CORRECTED_HUSH = "记下了：「{said}」不该说，该不说话。"
NOTHING_TO_CORRECT = "这里没有可以纠正的话。引用我说的那条再发：/不像 本来会说的话（可以不写），或 /该闭嘴"
HUSH_USAGE = "用法：引用我说的那条，发 /该闭嘴。该说别的，用 /不像 本来会说的话"
BLIND_PRIVATE = "盲测私聊我玩：里面是本人的聊天记录。"
BLIND_NONE = "还没有出好的题。在电脑上运行 twin eval --blind --persona {persona}，再来 /blind。"
BLIND_ASK = "第 {number}/{total} 题\n{context}\n——\n1）{first}\n\n2）{second}\n——\n哪个是本人？回 1 或 2，回 0 停。"
BLIND_RIGHT, BLIND_WRONG = "对。", "错，那是分身。"
BLIND_SCORE = "猜对 {right}/{n}，{share:.0%}（95% 区间 {low:.0%} 到 {high:.0%}）；分不出来是 50%。"
BLIND_DONE = "题做完了。"
BLIND_STOPPED = "好，停在这里，下次 /blind 接着来。"
