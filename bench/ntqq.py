"""A QQ NT database made up from a seed: the wire format's encoder, the tables as QQ makes them, and people who chat.

The encoder stands apart from training/importers/ntqq_wire.py on purpose: a mistake in one is not repeated in the other.
"""

import random
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Fields = list[tuple[int, int | str | bytes]]
COLUMNS = (
    "40001 INTEGER PRIMARY KEY", "40002 INTEGER", "40003 INTEGER", "40010 INTEGER", "40011 INTEGER", "40012 INTEGER",
    "40013 INTEGER", "40020 TEXT", "40026 INTEGER", "40021 TEXT", "40027 INTEGER", "40040 INTEGER", "40041 INTEGER",
    "40050 INTEGER", "40052 INTEGER", "40090 TEXT", "40093 TEXT", "40800 BLOB", "40900 BLOB", "40105 INTEGER",
    "40005 INTEGER", "40058 INTEGER", "40006 INTEGER", "40100 INTEGER", "40600 BLOB", "40060 INTEGER",
    "40850 INTEGER", "40851 INTEGER", "40601 BLOB", "40801 BLOB", "40605 BLOB", "40030 INTEGER", "40033 INTEGER",
    "40062 BLOB", "40083 INTEGER", "40084 INTEGER", "40008 INTEGER", "40009 INTEGER",
)  # fmt: skip
"""Of c2c_msg_table and group_msg_table, in QQ's order."""
GROUP, CHAT = 2, 1
"""Values of 40010."""
ME, FIRST_FRIEND, FIRST_GROUP, START_S = 10001, 20001, 700001, 1_700_000_000
_WORDS = (
    "今天 好 的 吗 我 你 去 吃 饭 了 哈哈 在 干嘛 明天 再 说 不 知道 呜呜 行 啊 那 就 这样 晚安 笑 死 真 可以 一起"
).split()


def varint(value: int) -> bytes:
    """An unsigned number of 64 bits at most."""
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encoded(fields: Iterable[tuple[int, int | str | bytes]]) -> bytes:
    """Fields in the given order; text and bytes length-delimited."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(raw)) + raw
    return out


def body(*elements: Fields, field: int = 40800) -> bytes:
    """A message body of these elements."""
    return encoded((field, encoded(e)) for e in elements)


def element(kind: int, *more: tuple[int, int | str | bytes], number: int = 7_638_353_204_859_217_953) -> Fields:
    """An element of a kind."""
    return [(45001, number), (45002, kind), *more]


def text(words: str) -> Fields:
    """A text element, with the fields QQ writes."""
    return element(1, (45101, words), (45102, 0), (45106, 0), (45108, 0))


def at(words: str, uin: int, uid: str) -> Fields:
    """An @ of one person; of all where `uin` is 0."""
    return element(1, (45101, words), (45102, 2 if uin else 1), (45103, uin), (45105, uid))


def picture(summary: str = "", sticker: bool = False, name: str = "0123456789ABCDEF0123456789ABCDEF.jpg") -> Fields:
    """A picture or an image sticker."""
    return element(
        2, (45003, int(sticker)), (45402, name), (45405, 51200), (45406, b"\x01" * 16), (45411, 800), (45412, 600),
        (45416, 1000), (45815, summary), (45802, "/download?appid=1406&fileid=x"),
    )  # fmt: skip


def face(number: int, name: str, kind: int = 1, result: str = "") -> Fields:
    """A face of QQ's own."""
    return element(6, (45003, kind), (47601, number), (47602, name), *([(47607, result)] if result else []))


def market_face(name: str, pack: int = 231764, emoji: bytes = b"\xab" * 16, key: str = "0123456789abcdef") -> Fields:
    """A sticker of a pack."""
    return element(11, (80810, pack), (80824, key), (80900, name), (80903, emoji))


def reply(seq: int, uin: int, time: int, quoted: Fields, wrong_id: int = 1) -> Fields:
    """A quote; the ids in it are as wrong as in real ones."""
    return [
        (40020, f"u_{uin}"), (40021, "700001"), (45001, 1), (45002, 7), (47401, wrong_id), (47402, seq), (47403, uin),
        (47404, time), (47416, wrong_id), (47422, wrong_id), (47423, encoded(quoted)),
    ]  # fmt: skip


OTHERS: dict[str, Fields] = {
    "[文件:合同.docx]": element(3, (45402, "合同.docx"), (45405, 4096)),
    "[语音]": element(4, (45402, "a.amr"), (45923, "晚点到")),
    "[视频]": element(5, (45402, "v.mp4"), (45410, 12)),
    "[卡片:红包]": element(9, (48403, encoded([(48443, "恭喜发财")])), (48412, 2)),
    "[卡片:转账]": element(9, (48412, 1)),
    "[卡片:分享 一篇文章]": element(10, (47901, '{"app":"com.tencent.structmsg","prompt":"[分享] 一篇文章"}')),
    "[聊天记录]": element(16, (48601, "res"), (48602, "<msg><title>群聊的聊天记录</title></msg>")),
    "# 标题": element(14, (48701, "# 标题")),
    "[平底锅]x10": element(27, (52132, 1), (52138, "[平底锅]x10")),
    "[位置]": element(28, (52152, "某地")),
    "[文件:在线文件]": element(23),
    "[文件:闪传]": element(14, (48705, "闪传")),
    "[骰子]": face(358, "/骰子", 3, "4"),
    "[猜拳]": face(359, "/包剪锤", 3, "2"),
    "[戳一戳]": face(1, "戳一戳", 5),
    "[捂脸]": face(264, "/捂脸"),
    "[微笑]": element(6, (47601, 14)),
    "[表情]": element(6, (47601, 99_999)),
    "[贴贴]": market_face("[贴贴]"),
    "[图片]": picture(),
    "[动画表情]": picture("[动画表情]", sticker=True),
    "[未知]": element(43),
}
"""An element of every other kind, by its canonical text."""


def row(number: int, **more: Any) -> dict[str, Any]:
    """A row of a group's message by column number, as `c40003=…`; `body` is 40800."""
    values: dict[str, Any] = {
        "40001": number, "40003": number % 1_000_000, "40005": number % 65_536, "40010": 2, "40011": 2, "40012": 1,
        "40013": 0, "40020": f"u_{FIRST_FRIEND}", "40021": str(FIRST_GROUP), "40027": FIRST_GROUP, "40041": 2,
        "40050": START_S, "40090": "", "40093": "甲", "40030": FIRST_GROUP, "40033": FIRST_FRIEND,
    }  # fmt: skip
    for name, value in more.items():
        values["40800" if name == "body" else name.removeprefix("c")] = value
    return values


def write(
    path: Path,
    groups: Iterable[Mapping[str, Any]] = (),
    chats: Iterable[Mapping[str, Any]] = (),
    without: frozenset[str] = frozenset(),
) -> Path:
    """Write nt_msg.db.

    Args:
        path: of the new file.
        groups: rows of group_msg_table.
        chats: rows of c2c_msg_table.
        without: columns an older QQ does not have yet.
    """
    columns = [c for c in COLUMNS if c.split()[0] not in without]
    names = [c.split()[0] for c in columns]
    ddl = ",".join(f"[{c.split()[0]}] {c.split(maxsplit=1)[1]}" for c in columns)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA page_size=4096")
        for table, rows in (("c2c_msg_table", chats), ("group_msg_table", groups)):
            database.execute(f"CREATE TABLE {table}({ddl})")
            database.execute(f"CREATE INDEX {table}_idx ON {table}([40027],[40003])")
            database.executemany(
                f"INSERT INTO {table} VALUES({','.join('?' * len(names))})", ([r.get(n) for n in names] for r in rows)
            )
        database.execute(
            "CREATE TABLE nt_uid_mapping_table([48901] INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,[48902] TEXT,"
            "[48912] TEXT,[1002] INTEGER)"
        )
        people = [ME, *range(FIRST_FRIEND, FIRST_FRIEND + 50)]
        database.executemany(
            "INSERT INTO nt_uid_mapping_table([48902],[1002]) VALUES(?,?)", [(f"u_{p}", p) for p in people]
        )
    database.close()
    return path


def people_talking(n: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Rows of `n` messages of twelve groups and, with 40010 = 1, twenty private chats.

    Of what people send in chats: seven of ten bodies are text alone, one a quote, two hold every other kind.
    """
    draw, second = random.Random(seed), START_S
    others = list(OTHERS.values())
    newest: dict[int, dict[str, Any]] = {}
    for i in range(1, n + 1):
        second += draw.choice((0, 1, 2, 5, 20, 90))
        private = draw.random() < 0.3
        peer = FIRST_FRIEND + draw.randrange(20) if private else FIRST_GROUP + draw.randrange(12)
        sender = ME if draw.random() < 0.25 else (peer if private else FIRST_FRIEND + draw.randrange(50))
        words = text("".join(draw.choices(_WORDS, k=draw.randint(1, 9))))
        chance, old = draw.random(), newest.get(peer)
        parts = [words]
        if chance < 0.1 and old is not None:
            parts.insert(0, reply(old["40003"], old["40033"], old["40050"], text("原话")))
            if not private:
                parts.insert(1, at("@某人 ", old["40033"], old["40020"]))
        elif chance < 0.3:
            parts = [draw.choice(others), *([words] if draw.random() < 0.3 else [])]
        quoting = parts[0][:1] == [(40020, old["40020"])] if old else False
        made = row(
            (second << 32) + i, c40003=i, c40005=i % 65_536, c40010=CHAT if private else GROUP,
            c40011=9 if quoting else 2, c40013=int(sender == ME), c40020=f"u_{sender}",
            c40021=f"u_{peer}" if private else str(peer), c40027=peer, c40030=peer, c40033=sender, c40050=second,
            c40090="" if private else f"群名片{sender % 100}", c40093=f"昵称{sender % 100}",
            c40850=old["40005" if private else "40003"] if quoting and old else 0, body=body(*parts),
        )  # fmt: skip
        newest[peer] = made
        yield made
