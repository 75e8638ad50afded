"""What this plugin says in QQ."""

ON = "已开启，我会在这里说话了。"
OFF = "已关闭，我只看不说。"
STATUS = (
    "这里{state}，由「{persona}」（{version}）回复；已运行 {hours:.1f} 小时。\n"
    "今天这里看了 {decisions} 次，说了 {replies} 次，想出一句要 {took}（中位数）；现在还能发 {left} 条。\n"
    "偏置 {bias:+.1f}，安静时段 {quiet}，下次夜训 {night}。"
)
BIAS = "好，这里开口的偏置改为 {bias:+.1f}（对数几率，大于 0 更爱说话）。"
QUIET = "好，这里 {hours} 不说话。"
QUIET_OFF = "好，这里没有安静时段了。"
STATE_ON, STATE_OFF = "开着", "关着"
BASE_VERSION = "未训练的底模"
TWIN_USAGE = "用法：/twin on|off|status，/twin bias -1.5（-20 到 20），/twin quiet 23:30-07:00 或 off"
MEMORY_CLEARED = "好，之前聊的不再记得了（聊天记录还在）。"
MEMORY_USAGE = "用法：/memory clear"
WHY_NONE = "这里还没有做过决定。"
WHY_NONE_ON_IT = "对这条消息没有做过决定。"
TOOK = {"look": "决定", "words": "想出第一句"}
WHY = (
    "（{time}，{persona} {version}）：{outcome}\n"
    "开口概率 {p_speak:.0%}，随机数 {draw:.2f}（小于概率才开口）；模型认为沉默的概率 {p_silent}\n"
    "各项（对数几率）：{terms}\n"
    "提示 {tokens} 个 token；{took}"
)
OUTCOMES = {
    "spoke": "说了", "silent": "看到了，没说话", "cancelled": "准备说，被新消息打断后重新决定",
    "cut short": "说到一半停了", "budget": "想说，但最近说得够多了", "empty": "想说，但没生成出内容",
    "held": "准备说，本人先开口了，就没说", "off": "准备说，被关闭了", "recalled": "准备说，那句话被撤回了",
    "optout": "准备说，说话的人退出了，就没说",
    "stopped": "准备说，程序退出了", "muted": "想说，但在这里被禁言了", "paused": "想说，但疑似被风控，先停一阵",
    "offline": "想说，但账号掉线了", "quiet": "想说，但现在是安静时段", "failed: engine": "看到了，但模型出错了",
}  # fmt: skip
OPENINGS = {"own": "（自己先开口的）", "schedule": "（按计划先开口的）"}
OUTCOME_FAILED = "想说，没发出去（{how}）"
ABOUT = (
    "我是「{persona}」的数字分身（qqtwin），不是本人：用聊天记录训练的小模型，在主人自己的电脑上运行，数据不出本机。\n"
    "版本：{version}。命令：{commands}"
)
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
