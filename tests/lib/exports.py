"""Exports of every format, made up here: one small chat each, with every kind of message its format has."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASE_S = 1_700_000_000
"""2023-11-14 22:13:20 UTC, 2023-11-15 06:13:20 in Shanghai."""


def clock(second: int) -> str:
    """A time of the made-up chats as people in Shanghai write it."""
    return f"2023-11-15 06:13:{20 + second:02}"


def document(value: Any, indent: int | None = 2) -> bytes:
    """A JSON file."""
    return json.dumps(value, ensure_ascii=False, indent=indent).encode()


def rows(*values: Any) -> bytes:
    """A JSONL file."""
    return b"".join(json.dumps(v, ensure_ascii=False).encode() + b"\n" for v in values)


# -- QQChatExporter -------------------------------------------------------------------------------

QCE_INFO = {
    "name": "面包店", "type": "group", "selfUid": "u_me", "selfUin": "1001", "selfName": "小满", "peerUid": "900100",
    "peerUin": "900100",
}  # fmt: skip
QCE_HEAD = {
    "metadata": {"name": "QQChatExporter V6", "copyright": "", "version": "6.0"}, "chatInfo": QCE_INFO,
    "statistics": {"totalMessages": 1, "senders": []},
}  # fmt: skip


def qce_row(number: int, *elements: tuple[str, dict[str, Any]], who: str = "u_2", **more: Any) -> dict[str, Any]:
    """A message of V6; `who` is `u_me` or somebody."""
    uin = "1001" if who == "u_me" else "1002"
    return {
        "id": f"76300000000000000{number:02}", "seq": str(1000 + number), "timestamp": (BASE_S + number) * 1000,
        "time": clock(number), "sender": {"uid": who, "uin": uin, "name": "阿泽", "nickname": "阿泽"}, "type": "text",
        "content": {
            "text": "".join(str(d.get("text", "[x]")) for _, d in elements), "html": "",
            "elements": [{"type": kind, "data": data} for kind, data in elements], "resources": [], "mentions": [],
        },
        "recalled": False, "system": False, **more,
    }  # fmt: skip


QCE_ROWS = [
    qce_row(1, ("text", {"text": "早"}), ("face", {"id": "14", "name": "/微笑"})),
    qce_row(2, ("reply", {"messageId": "1", "referencedMessageId": None, "senderUin": "1002", "timestamp": BASE_S + 1}),
            ("text", {"text": "你也早\n睡了吗"}), who="u_me"),
    qce_row(3, ("at", {"uid": "u_me", "uin": "1001", "name": "@小满"}), ("text", {"text": " 看图"}),
            ("image", {"filename": "a.png", "subType": "photo"})),
    qce_row(4, ("image", {"filename": "b.gif", "subType": "sticker"})),
    qce_row(5, ("market_face", {"name": "[贴贴]", "emojiId": "ab", "emojiPackageId": 7, "key": "k"}), who="u_me"),
    qce_row(6, ("file", {"filename": "账本.xlsx"})),
    qce_row(7, ("audio", {"filename": "a.silk", "duration": 7})),
    qce_row(8, ("video", {"filename": "a.mp4"})),
    qce_row(9,
        ("forward", {"title": "群聊的聊天记录", "resId": "r", "messages": [qce_row(1, ("text", {"text": "里"}))]})),
    qce_row(10, ("json", {"content": json.dumps({"prompt": "[分享]一首歌"}), "title": "一首歌"})),
    qce_row(11, ("at", {"uid": "all", "name": "全体成员"}), ("text", {"text": " 开门了"})),
    qce_row(12, ("wallet", {})),
    qce_row(13, ("av_record", {"text": "通话时长"})),
    qce_row(14, ("text", {"text": "撤了"}), recalled=True),
    qce_row(15, ("text", {"text": "有人进群"}), system=True),
    qce_row(16, ("text", {"text": ""})),
]  # fmt: skip
QCE_TEXTS = [
    "早[微笑]", "你也早↵睡了吗", "@小满 看图[图片]", "[动画表情]", "[贴贴]", "[文件:账本.xlsx]", "[语音]", "[视频]",
    "[聊天记录]",
    "[卡片:分享 一首歌]", "@全体成员 开门了", "[卡片:红包]",
]  # fmt: skip
QCE = document(QCE_HEAD | {"messages": QCE_ROWS, "avatars": {"1001": "data:image/png;base64,AAAA"}})


def qce_v5_row(number: int, text: str, *others: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A message of V4 and V5: the whole rendered text stands before what it is made of."""
    row = qce_row(number, ("text", {"text": text}), *others)
    row["content"]["text"] = text
    return row


QCE_V5_ROWS = [
    qce_v5_row(1, "早 [[微笑]]", ("face", {"id": "14", "name": "[微笑]"})),
    qce_v5_row(2, "[图片: a.png]看[图片: b.gif]", ("image", {}), ("image", {"subType": "sticker"})),
    qce_v5_row(3, "[文件: 账本.xlsx]", ("file", {"filename": "账本.xlsx"})),
    qce_v5_row(4, "[回复 阿泽: 早 [[微笑]]]\n好", ("reply", {
        "messageId": "9", "referencedMessageId": "9", "senderUin": "1002", "senderName": "阿泽",
        "timestamp": BASE_S + 1,
        "content": "早 [[微笑]]"})),
    qce_v5_row(5, "@小满 来", ("at", {"uid": "u_me", "name": "小满"})),
    qce_v5_row(6, "[语音 7秒]", ("audio", {})),
    qce_v5_row(7, "只有字"),
    qce_v5_row(8, "/微笑 和/或"),
]  # fmt: skip
QCE_V5_TEXTS = [
    "早 [微笑]", "[图片]看[动画表情]", "[文件:账本.xlsx]", "好", "@小满 来", "[语音]", "只有字", "/微笑 和/或",
]  # fmt: skip
QCE_V3 = document({
    "metadata": {"name": "QQChatExporter"}, "chatInfo": {"name": "阿泽", "type": "private", "selfUin": "1001"},
    "messages": [
        {"messageId": "m1", "timestamp": "2023-11-14T22:13:21.000Z", "messageType": 2, "isSystemMessage": False,
         "isRecalled": False, "sender": {"uid": "u_2", "name": "阿泽"}, "rawMessage": {"senderUin": "1002"},
         "content": {"text": "早", "html": "", "raw": "", "mentions": [], "resources": [], "emojis": []}},
        {"messageId": "m2", "timestamp": "2023-11-14T22:13:22.000Z", "messageType": 2, "isSystemMessage": False,
         "isRecalled": False, "sender": {"uid": "u_me", "uin": "1001", "name": "小满"},
         "content": {"text": "", "html": "", "raw": "", "resources": [{"type": "image", "filename": "a.png"}]}},
        {"messageId": "m3", "timestamp": "2023-11-14T22:13:23.000Z", "messageType": 8, "isSystemMessage": False,
         "isRecalled": True, "sender": {"uid": "u_me", "uin": "1001"}, "content": {"text": "撤了", "raw": ""}},
        {"messageId": "m4", "timestamp": "2023-11-14T22:13:24.000Z", "isSystemMessage": True,
         "sender": {"uid": "未知", "name": "系统消息"}, "content": {"text": "加了好友", "raw": ""}},
        {"messageId": "m5", "timestamp": "2023-11-14T22:13:25.000Z", "sender": {"uid": "u_2", "name": "阿泽"},
         "content": {"text": "x", "raw": "", "multiForward": {"title": "聊天记录"}}},
    ],
})  # fmt: skip
QCE_TXT = f"""[QQChatExporter V5 / https://example.org]
[本软件是免费的开源项目]

===============================================
           QQ聊天记录导出文件
===============================================

聊天名称: 面包店
聊天类型: 群聊
参与人数: 2
消息总数: 5


[店长] 阿泽:
时间: {clock(1)}
内容: 早 [[微笑]]
第二行:


小满:
时间: {clock(2)}
内容: [回复 阿泽: 早]
好
回复: 11-15 06:13 阿泽 - 早 [[微笑]]↵第二行:


系统消息:
时间: {clock(3)}
类型: 系统消息
内容: 有人进群


小满:
时间: {clock(4)}
内容: [图片: a.png]
资源: 1 个文件
  - image: a.png
提及: 阿泽


阿泽:
时间: {clock(5)}
内容: [语音 7秒]
资源: 1 个文件
  - audio: a.silk

===============================================
              导出完成
===============================================
总计导出 5 条消息
""".encode()

# -- QQ's own exports -----------------------------------------------------------------------------

_RULE = "=" * 64
QQ_TXT = "\r\n".join([
    "消息记录（此消息记录为文本格式，不支持重新导入）", "", _RULE, "消息分组:我的群", _RULE, "消息对象:面包店", _RULE,
    "",
    f"{clock(1)} 【店长】阿泽(100200)", "早/微笑", "第二行", "", f"{clock(2)} 小满(100100)", "[图片]", "",
    f"{clock(2)} 小满(100100)", "[图片]", "", f"{clock(3)} 系统消息(10000)", "阿泽撤回了一条消息", "",
    f"{clock(4)} 老李<li@example.org>", "[表情]", "", f"{clock(5)} 阿泽", "没有号码", "",
    f"{clock(6)} 阿泽(100200)", "阿泽撤回了一条消息", "",
    _RULE, "消息分组:我的好友", _RULE, "消息对象:阿泽", _RULE, "",
    "2023-11-15 6:13:30 阿泽", "在吗", "", "2023-11-15 6:13:31 小满", "在", "", "2023-11-15 6:13:32 小满", "", "",
]).encode("utf-8-sig")  # fmt: skip


def _mht_row(who: str, second: int, words: str, colour: str = "006EFE") -> str:
    return (
        f"<tr><td><div style=color:#{colour};padding-left:10px;><div style=float:left;margin-right:6px;>{who}</div>"
        f"{clock(second)[11:]}</div><div style=padding-left:20px;>{words}</div></td></tr>"
    )


_FONT = "<font style=\"font-size:9pt;font-family:'微软雅黑'\" color='000000'>"
QQ_MHT = "\r\n".join([
    "From: <Save by Tencent MsgMgr>", "Subject: Tencent IM Message", "MIME-Version: 1.0",
    "Content-Type:multipart/related;", '\tcharset="utf-8"', '\ttype="text/html";',
    '\tboundary="----=_NextPart_20231115_0001"', "", "------=_NextPart_20231115_0001", "Content-Type: text/html",
    "Content-Transfer-Encoding:7bit", "",
    "<html><head><title>QQ Message</title></head><body><table width=100% cellspacing=0>"
    "<tr><td><div style=padding-left:10px;>消息记录</div></td></tr>"
    "<tr><td><div style=padding-left:10px;>消息分组:我的群</div></td></tr>"
    "<tr><td><div style=padding-left:10px;>消息对象:面包店 &amp; 朋友</div></td></tr>"
    "<tr><td><div style=padding-left:10px;>&nbsp;</div></td></tr>"
    "<tr><td style=border-bottom-width:1px;border-bottom-color:#8EC3EB;>日期: 2023-11-15</td></tr>"
    + _mht_row("阿泽(100200)", 1, f"{_FONT}早&nbsp;1 &lt; 2<br>第二行</font>")
    + _mht_row("小满(100100)", 2, '<IMG src="{AB-1}.dat">' + f"{_FONT}看</font>", "42B475")
    + _mht_row("老李&lt;li@example.org&gt;", 3, f"{_FONT}/微笑</font>")
    + _mht_row("系统消息(10000)", 4, f"{_FONT}阿泽加入了群</font>")
    + "<tr><td style=border-bottom-width:1px;border-bottom-color:#8EC3EB;>日期: 2023/11/16</td></tr>"
    + _mht_row("小满(100100)", 5, f"{_FONT}第二天</font>", "42B475")
    + "</table></body></html>",
    "------=_NextPart_20231115_0001", "Content-Type:image/jpeg", "Content-Transfer-Encoding:base64",
    "Content-Location:{AB-1}.dat", "", "AAAA", "------=_NextPart_20231115_0001--",
]).encode()  # fmt: skip

# -- tables ---------------------------------------------------------------------------------------

FIVE_CSV = (
    "900100,2023-11-14T22:13:21Z,阿泽,100200,['早']\n"
    '900100,2023-11-14T22:13:22Z,?小满?,100100,"[\'@阿泽 \', \'两\\n行\', ""it\'s""]"\n'
    "900100,2023-11-14T22:13:23Z,,100300,['[表情]']\n"
    "900100,2023-11-14T22:13:24Z,阿泽,100200,['[语音通话]']\n"
    "900200,2023-11-14T22:13:25Z,阿泽,100200,\"['一', '二']\"\n"
    "900200,2023-11-14T22:13:26Z,阿泽,100200,[]\n"
).encode()
_WECHAT = "id,MsgSvrID,type_name,is_sender,talker,room_name,msg,src,CreateTime"
WECHAT_CSV = "\r\n".join([
    _WECHAT,
    f"1,8001,文本,0,wxid_aze,wxid_aze,早[微笑],,{clock(1)}",
    f'2,8002,文本,1,wxid_me,wxid_aze,"两\n行, ""引号""",,{clock(2)}',
    f"3,8003,图片,0,wxid_aze,wxid_aze,,FileStorage/a.jpg,{clock(3)}",
    f"4,8004,语音,1,wxid_me,wxid_aze,,,{clock(4)}",
    f"5,8005,动画表情,0,wxid_aze,wxid_aze,表情包,,{clock(5)}",
    f"6,8006,文件,0,wxid_aze,wxid_aze,,C:\\x\\账本.xlsx,{clock(6)}",
    f"7,8007,引用回复,1,wxid_me,wxid_aze,引用的,,{clock(7)}",
    f"8,0,文本,1,wxid_me,wxid_aze,没有号,,{clock(8)}",
    f"9,8009,系统通知,0,wxid_aze,wxid_aze,你们是好友,,{clock(9)}",
    f"10,8010,消息撤回,0,wxid_aze,wxid_aze,撤了,,{clock(10)}",
    f"11,8011,语音通话,0,wxid_aze,wxid_aze,时长,,{clock(11)}",
    f"12,8012,(分享)卡片式链接,0,wxid_aze,wxid_aze,一首歌,,{clock(12)}",
    "13,8013,视频,0,wxid_aze,wxid_aze,,a.mp4,2023/11/15 6:14",
    f"14,8014,拍一拍,0,wxid_aze,wxid_aze,拍了拍,,{clock(14)}",
    "",
]).encode("utf-8-sig")  # fmt: skip
WECHAT_OLD_CSV = "\n".join([
    "id,MsgSvrID,type_name,is_sender,talker,room_name,content,CreateTime",
    f'1,8001,文本,0,wxid_aze,77@chatroom,"{{""src"": """", ""msg"": ""早""}}",{clock(1)}',
    f'2,8002,文件,1,wxid_me,77@chatroom,"{{""src"": ""a/账本.xlsx"", ""msg"": """"}}",{clock(2)}',
    f"3,8003,文本,0,wxid_li,77@chatroom,不是JSON,{clock(3)}",
    "",
]).encode()  # fmt: skip

# -- WeQ ------------------------------------------------------------------------------------------


def weq_row(number: int, *elements: tuple[str, dict[str, Any]], uin: str = "1002") -> dict[str, Any]:
    """A message of WeQ."""
    return {
        "msgId": f"7630{number}", "msgSeq": str(number), "sendTime": BASE_S + number, "senderUin": uin,
        "senderUid": f"u_{uin}", "elements": [{"type": kind, "data": data} for kind, data in elements],
        "senderName": "阿泽" if uin == "1002" else "小满",
    }  # fmt: skip


WEQ_ROWS = [
    weq_row(1, ("text", {"textContent": "早"}), ("face", {"faceId": 14, "faceText": "微笑"})),
    weq_row(2, ("reply", {"origMsgSeq": 1, "origMsgId": "76301", "origElements": []}), ("text", {"textContent": "好"}),
            uin="1001"),
    weq_row(3, ("at", {"textContent": "@小满"}), ("text", {"textContent": " 看"}), ("pic", {"subType": 0})),
    weq_row(4, ("pic", {"subType": 1})),
    weq_row(5, ("mface", {"emojiPackId": 1})),
    weq_row(6, ("file", {"fileName": "账本.xlsx"})),
    weq_row(7, ("ptt", {})),
    weq_row(8, ("video", {})),
    weq_row(9, ("ark", {"arkData": json.dumps({"prompt": "[分享]一首歌"})})),
    weq_row(10, ("multiMsg", {"forwardMessages": [{"elements": []}]})),
    weq_row(11, ("markdown", {"markdownContent": "# 标题", "markdownTextSummary": ""})),
    weq_row(12, ("wallet", {})),
    weq_row(13, ("grayTipRevoke", {"recallDisplayText": "撤回了"})),
    weq_row(14, ("grayTipGroup", {})),
    weq_row(15, ("call", {})),
]  # fmt: skip
WEQ_TEXTS = [
    "早[微笑]", "好", "@小满 看[图片]", "[动画表情]", "[动画表情]", "[文件:账本.xlsx]", "[语音]", "[视频]",
    "[卡片:分享 一首歌]",
    "[聊天记录]", "# 标题", "[卡片:红包]",
]  # fmt: skip
WEQ_META = {"name": "阿泽", "platform": "qq", "type": "private", "ownerId": "1001", "exportedAt": BASE_S}
WEQ = document({"meta": WEQ_META, "members": [], "messages": WEQ_ROWS})
WEQ_JSONL = rows({"_type": "header", "meta": WEQ_META}, {"_type": "member", "uid": "u_1001"}, *WEQ_ROWS)
WEQ_TXT = "\n".join([
    f"[{clock(1)}] 1002: 早[微笑]", f"[{clock(2)}] 1001: [回复: 早] 好", "第二行",
    f"[{clock(3)}] 1002: [文件: 账本.xlsx]",
    f"[{clock(4)}] 1002: [撤回了一条消息]", f"[{clock(5)}] 1002: [合并转发]", "",
]).encode()  # fmt: skip
WEQ_CSV = "\r\n".join([
    "时间,发送者QQ,发送者ID,内容,消息ID,序号", f"{clock(1)},1002,u_1002,早[微笑],76301,1",
    f'{clock(2)},1001,u_1001,"[回复: 早] 两\n行, ""引""",76302,2', f"{clock(3)},1002,u_1002,[通话],76303,3", "",
]).encode("utf-8-sig")  # fmt: skip

# -- WeChat as JSON, Telegram, ChatLab, OneBot ----------------------------------------------------


def weflow_row(number: int, kind: str, content: str, own: int | None = 0) -> dict[str, Any]:
    """A message of WeFlow."""
    return {
        "localId": number, "createTime": BASE_S + number, "formattedTime": clock(number), "type": kind, "localType": 1,
        "content": content, "isSend": own, "senderUsername": "wxid_me" if own else "wxid_aze",
        "senderDisplayName": "小满" if own else "阿泽",
    }  # fmt: skip


WEFLOW = document({
    "weflow": {"version": "1.0", "exportedAt": BASE_S},
    "session": {"wxid": "wxid_aze", "nickname": "阿泽", "type": "私聊", "messageCount": 9},
    "messages": [
        weflow_row(1, "文本消息", "早[微笑]"), weflow_row(2, "文本消息", "两\n行", 1),
        weflow_row(3, "图片消息", "[图片]"),
        weflow_row(4, "语音消息", "[语音消息]"), weflow_row(5, "动画表情", "[动画表情]"),
        weflow_row(6, "视频消息", "[视频]"),
        weflow_row(7, "文件消息", "[文件] 账本.xlsx"), weflow_row(8, "系统消息", "你们是好友", None),
        weflow_row(9, "引用消息", "引用的", 1), weflow_row(10, "链接消息", "一首歌"),
        weflow_row(11, "通话消息", "时长"),
        weflow_row(12, "聊天记录", "<xml>"),
    ],
    "avatars": {"wxid_aze": "data:image/png;base64,AAAA"},
})  # fmt: skip
WEFLOW_TEXTS = [
    "早[微笑]", "两↵行", "[图片]", "[语音]", "[动画表情]", "[视频]", "[文件:账本.xlsx]", "引用的", "[卡片:一首歌]",
    "[聊天记录]",
]  # fmt: skip


def chatlog_row(number: int, kind: int, content: str, sub: int = 0, **more: Any) -> dict[str, Any]:
    """A message of chatlog."""
    return {
        "seq": 1_700_000_000_000 + number, "time": f"2023-11-15T06:13:{20 + number:02}+08:00", "talker": "77@chatroom",
        "talkerName": "面包店", "isChatRoom": True, "sender": "wxid_aze", "senderName": "阿泽", "isSelf": False,
        "type": kind, "subType": sub, "content": content, **more,
    }  # fmt: skip


_ME = {"sender": "wxid_me", "senderName": "小满", "isSelf": True}
CHATLOG = document([
    chatlog_row(1, 1, "早[微笑]"),
    chatlog_row(2, 49, "好", 57, contents={"refer": {"seq": 1_700_000_000_001}}, **_ME),
    chatlog_row(3, 3, ""), chatlog_row(4, 34, ""), chatlog_row(5, 43, ""), chatlog_row(6, 47, ""),
    chatlog_row(7, 49, "", 6, contents={"title": "账本.xlsx"}), chatlog_row(8, 49, "", 62),
    chatlog_row(9, 10000, "加入了群聊"), chatlog_row(10, 10000, "撤回了一条消息"), chatlog_row(11, 50, ""),
    chatlog_row(12, 49, "", 19), chatlog_row(13, 49, "", 5, contents={"title": "一首歌"}),
    chatlog_row(14, 49, "", 2001), chatlog_row(15, 48, ""),
])  # fmt: skip
CHATLOG_TEXTS = [
    "早[微笑]", "好", "[图片]", "[语音]", "[视频]", "[动画表情]", "[文件:账本.xlsx]", "[聊天记录]", "[卡片:一首歌]",
    "[卡片:红包]", "[位置]",
]  # fmt: skip


def telegram_row(number: int, text: Any, who: str = "user20", **more: Any) -> dict[str, Any]:
    """A message of Telegram."""
    return {
        "id": number, "type": "message", "date": "2023-11-15T06:13:20", "date_unixtime": str(BASE_S + number),
        "from": "阿泽" if who == "user20" else "小满", "from_id": who, "text": text, "text_entities": [], **more,
    }  # fmt: skip


TELEGRAM_ROWS = [
    {"id": 1, "type": "service", "date_unixtime": str(BASE_S), "actor": "阿泽", "action": "create_group", "text": ""},
    telegram_row(2, "早"),
    telegram_row(3,
        ["看 ", {"type": "link", "text": "example.org"}, {"type": "mention_name", "text": "阿泽", "user_id": 20}],
                 "user10", reply_to_message_id=2),
    telegram_row(4, "图\n说", photo="photos/a.jpg"),
    telegram_row(5, "", file="stickers/a.webp", media_type="sticker", sticker_emoji="😀"),
    telegram_row(6, "", file="a.ogg", media_type="voice_message"),
    telegram_row(7, "", file="a.mp4", media_type="video_file"),
    telegram_row(8, "", file="files/账本.xlsx"),
    telegram_row(9, "别人的话", forwarded_from="频道"),
    telegram_row(10, "", poll={"question": "吃什么", "answers": []}),
    telegram_row(11, "", location_information={"latitude": 1, "longitude": 2}),
    {"id": 12, "type": "service", "date_unixtime": str(BASE_S), "actor": "阿泽", "action": "phone_call", "text": ""},
    telegram_row(13, ""),
]  # fmt: skip
TELEGRAM_TEXTS = [
    "早", "看 example.org@阿泽", "[图片]图↵说", "[动画表情]", "[语音]", "[视频]", "[文件:账本.xlsx]", "[聊天记录]",
    "[卡片:吃什么]", "[位置]",
]  # fmt: skip
TELEGRAM_CHAT = {"name": "阿泽", "type": "personal_chat", "id": 20, "messages": TELEGRAM_ROWS}
TELEGRAM = document(TELEGRAM_CHAT, 1)
TELEGRAM_ALL = document({
    "about": "Here is the data you requested.", "personal_information": {"user_id": 10, "first_name": "小满"},
    "contacts": {"about": "", "list": []},
    "chats": {"about": "", "list": [
        TELEGRAM_CHAT,
        {"name": "面包店", "type": "private_supergroup", "id": 77,
            "messages": [telegram_row(1, "群里"), telegram_row(2, "在", "user10")]},
    ]},
}, 1)  # fmt: skip


def chatlab_row(number: int, kind: int, content: str | None, who: str = "1002", **more: Any) -> dict[str, Any]:
    """A message of ChatLab."""
    return {
        "sender": who, "accountName": "阿泽" if who == "1002" else "小满", "timestamp": BASE_S + number, "type": kind,
        "content": content, "platformMessageId": f"c{number}", **more,
    }  # fmt: skip


CHATLAB_MARK = {"version": "0.0.2", "exportedAt": BASE_S, "generator": "x"}
CHATLAB_META = {"name": "阿泽", "platform": "qq", "type": "private", "ownerId": "1001"}
CHATLAB_MEMBERS = [{"platformId": "1001", "accountName": "小满"}, {"platformId": "1002", "accountName": "阿泽"}]
CHATLAB_ROWS = [
    chatlab_row(1, 0, "早[微笑]\n第二行"), chatlab_row(2, 25, "好", "1001", replyToMessageId="c1"),
    chatlab_row(3, 1, None),
    chatlab_row(4, 2, None), chatlab_row(5, 3, None), chatlab_row(6, 4, "账本.xlsx"), chatlab_row(7, 5, "[贴贴]"),
    chatlab_row(8, 5, "https://example.org/a.gif"), chatlab_row(9, 7, "一首歌"), chatlab_row(10, 20, ""),
    chatlab_row(11, 22, ""), chatlab_row(12, 23, "通话"), chatlab_row(13, 26, ""), chatlab_row(14, 80, "加了好友"),
    chatlab_row(15, 81, "撤回"), chatlab_row(16, 99, None), chatlab_row(17, 0, ""),
]  # fmt: skip
CHATLAB_TEXTS = [
    "早[微笑]↵第二行", "好", "[图片]", "[语音]", "[视频]", "[文件:账本.xlsx]", "[贴贴]", "[动画表情]", "[卡片:一首歌]",
    "[卡片:红包]", "[戳一戳]", "[聊天记录]", "[未知]",
]  # fmt: skip
CHATLAB = document(
    {"chatlab": CHATLAB_MARK, "meta": CHATLAB_META, "members": CHATLAB_MEMBERS, "messages": CHATLAB_ROWS}
)
CHATLAB_JSONL = b"# comment\n" + rows(
    {"_type": "header", "chatlab": CHATLAB_MARK, "meta": CHATLAB_META},
    *({"_type": "member", **m} for m in CHATLAB_MEMBERS), *({"_type": "message", **m} for m in CHATLAB_ROWS),
)  # fmt: skip


def onebot_row(number: int, text: str, **more: Any) -> dict[str, Any]:
    """A message as a history action answers it."""
    return {
        "self_id": 1001, "user_id": 1002, "time": BASE_S + number, "message_id": number, "real_seq": str(5000 + number),
        "message_type": "group", "group_id": 900100, "sender": {"user_id": 1002, "nickname": "阿泽", "card": ""},
        "message": [{"type": "text", "data": {"text": text}}], "message_format": "array", "post_type": "message",
        **more,
    }  # fmt: skip


def onebot_answer(*messages: dict[str, Any]) -> dict[str, Any]:
    """What a history action answers."""
    return {"status": "ok", "retcode": 0, "data": {"messages": list(messages)}, "message": "", "wording": ""}


ONEBOT_ROWS = [onebot_row(n, f"第{n}句") for n in range(1, 6)]
ONEBOT = rows(*ONEBOT_ROWS)
ONEBOT_ANSWER = document(onebot_answer(*ONEBOT_ROWS))
ONEBOT_ANSWERS = document(onebot_answer(*ONEBOT_ROWS[:3])) + b"\n" + document(onebot_answer(*ONEBOT_ROWS[2:]))
ONEBOT_ARRAY = document(ONEBOT_ROWS, None)


# -- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Export:
    """A file of a format.

    Args:
        source: the name of the format.
        name: the file's name.
        content: its bytes.
        messages: how many it holds.
    """

    source: str
    name: str
    content: bytes
    messages: int

    def written(self, folder: Path) -> Path:
        """The file, in a folder."""
        path = folder / self.name
        path.write_bytes(self.content)
        return path


ALL = (
    Export("qce", "qce6.json", QCE, len(QCE_TEXTS)),
    Export("qce", "qce5.json", document(QCE_HEAD | {"messages": QCE_V5_ROWS}), len(QCE_V5_TEXTS)),
    Export("qce", "qce3.json", QCE_V3, 3),
    Export("qce", "c000001.jsonl", rows(*QCE_ROWS), len(QCE_TEXTS)),
    Export("qce-txt", "qce.txt", QCE_TXT, 4),
    Export("qq-txt", "qq.txt", QQ_TXT, 7),
    Export("qq-mht", "qq.mht", QQ_MHT, 4),
    Export("five-csv", "five.csv", FIVE_CSV, 4),
    Export("five-csv", "five-gbk.csv", FIVE_CSV.decode().encode("gb18030"), 4),
    Export("wechat-csv", "wechat.csv", WECHAT_CSV, 10),
    Export("wechat-csv", "wechat-old.csv", WECHAT_OLD_CSV, 2),
    Export("weq", "weq.json", WEQ, len(WEQ_TEXTS)),
    Export("weq", "weq-array.json", document(WEQ_ROWS), len(WEQ_TEXTS)),
    Export("weq", "weq.jsonl", WEQ_JSONL, len(WEQ_TEXTS)),
    Export("weq", "weq.txt", WEQ_TXT, 4),
    Export("weq", "weq.csv", WEQ_CSV, 2),
    Export("weflow", "weflow.json", WEFLOW, len(WEFLOW_TEXTS)),
    Export("chatlog", "chatlog.json", CHATLOG, len(CHATLOG_TEXTS)),
    Export("telegram", "result.json", TELEGRAM, len(TELEGRAM_TEXTS)),
    Export("telegram", "result-all.json", TELEGRAM_ALL, len(TELEGRAM_TEXTS) + 2),
    Export("chatlab", "chatlab.json", CHATLAB, len(CHATLAB_TEXTS)),
    Export("chatlab", "chatlab.jsonl", CHATLAB_JSONL, len(CHATLAB_TEXTS)),
    Export("onebot", "events.jsonl", ONEBOT, 5),
    Export("onebot", "answer.json", ONEBOT_ANSWER, 5),
    Export("onebot", "answers.json", ONEBOT_ANSWERS, 6),
    Export("onebot", "messages.json", ONEBOT_ARRAY, 5),
)
