"""QQ's own MHT export → messages.

The first part is one HTML table: a row with the date, then a row a message (name and number, time of day, the words
with their fonts and pictures); the pictures follow as parts of their own, which are not read. It breaks MIME's rules,
so no mail parser is asked. The owner's name is green (`#42B475`), all others' blue [one source]; ids as in TXT.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from bot.message import Message
from training.importers.qqtxt import Block, Chat
from training.importers.record import each, moment
from training.importers.source import Item, Reading, Source
from training.importers.text import chunks

ROW_CHARS = 4 << 20
"""A longer row is given up."""
_ROW_END = "</tr>"
_OWN = "42b475"
_DATE = re.compile(r"日期[:：]\s?(\d{4})[-/](\d{1,2})[-/](\d{1,2})")
_FIELD = re.compile(r"消息(分组|对象)[:：]([^<]*)")
_HEAD = re.compile(
    r"<div style=\"?color:#(\w{6});[^>]*>\s*<div[^>]*>(.*?)</div>\s*(\d{1,2}:\d{2}:\d{2})\s*</div>\s*<div[^>]*>",
    re.DOTALL | re.IGNORECASE,
)
_BREAK = re.compile(r"<br\s{0,4}/?>|</(?:p|div)>(?=.)", re.IGNORECASE | re.DOTALL)
_PICTURE = re.compile(r"<img[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")


def sniff(_: Path, beginning: bytes) -> bool:
    """Whether it says that QQ's message manager saved it."""
    start = beginning[:4096]
    return b"Tencent MsgMgr" in start or b"Tencent IM Message" in start


def items(path: Path, reading: Reading) -> Iterator[Item]:
    """Every message, in the file's order.

    Raises:
        ImportFault: the file cannot be read.
    """

    def make(block: Block) -> Message:
        time = moment(f"{block.time}", reading.told.zone)
        return block.chat.message(block._replace(time=time), reading)

    yield from each(_blocks(path, reading), reading, make)


def _blocks(path: Path, reading: Reading) -> Iterator[Block]:
    chat, group, date = Chat(path.stem), "", ""
    for number, row in enumerate(_rows(path, reading), 1):
        reading.place = f"{path.name} row {number}"
        if found := _HEAD.search(row):
            words = plain(row[found.end() :])
            who = html.unescape(_TAG.sub("", found[2])).replace("\xa0", " ")
            yield Block(reading.place, chat, f"{date} {found[3]}", who, words, found[1].lower() == _OWN)
        elif day := _DATE.search(row):
            date = "-".join(day.groups())
        else:
            for kind, value in _FIELD.findall(row):
                if kind == "分组":
                    group = value
                else:
                    chat = Chat(html.unescape(value).strip() or path.stem, group)


def _rows(path: Path, reading: Reading) -> Iterator[str]:
    """The table's rows, to its end."""
    text = ""
    for piece in chunks(path, reading):
        text += piece
        *rows, text = text.split(_ROW_END)
        for row in rows:
            yield row
            if "</html>" in row:
                return
        if "</html>" in text or "</table>" in text:
            return
        if len(text) > ROW_CHARS:
            reading.skip("a row that does not end")
            text = ""
    if "color:#" in text:
        reading.skip("the file ends in the middle")


def plain(words: str) -> str:
    """The text of a message's HTML."""
    words = _BREAK.sub("\n", words.removesuffix("</div></td>"))
    words = _TAG.sub("", _PICTURE.sub("[图片]", words))
    return html.unescape(words).replace("\xa0", " ")


SOURCE = Source("qq-mht", "QQ's MHT export", sniff, items)
