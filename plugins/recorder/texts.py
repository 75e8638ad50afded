"""What this plugin says in QQ."""

from bot.backfill import EMPTY, REFUSED
from bot.optouts import Why

STARTED = "开始补这里的旧记录，补完告诉你。/corpus backfill status 看进度，cancel 停下。"
RUNNING = "正在补 {scene}：{progress}"
PROGRESS = "翻了 {pages} 页，{messages} 条里新的 {added} 条，到 {oldest}"
LEFT_OUT = "；没收进来：{reasons}"
LEFT_OUT_OF = "{why} {count} 条"
LEFT_OUT_WHY = {
    EMPTY: "空消息",
    REFUSED: "存不进去的",
    str(Why.OUT): "退出的人说的（只留有过一条）",
    str(Why.FORGOTTEN): "要求忘掉的人的",
}
UNREADABLE = "读不懂的（{why}）"
DONE = "{scene} 的旧记录补完了：{progress}。"
STOPPED = "停下了，补到的都留着，下次接着补。"
IDLE = "现在没有在补。"
FAILED = "{scene} 的旧记录没补完：{why}"
USAGE = "用法：/corpus backfill [status|cancel]"
