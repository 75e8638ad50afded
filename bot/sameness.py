"""When a message of a history is one the archive has from elsewhere: the same words, told twice.

Clients give one message different ids (NapCat a 31-bit hash, QQ's database 19 digits). Where both sides know the
chat's own running number, it and the second decide. Else sender, second and words do, each stored message counted
once: somebody's second 哈哈 in one second stays a second one. QQ's own TXT and tables made from it have no names of
faces: `[表情]` is any face, and `[图片]` an image sticker, too.

What the twin sent is known otherwise: its row has the moment and number of what it answered. A message of its account
is the twin's when it says the same within `SENT_LATE_S` of it (or has the row's number, where that is its own); so a
later import of the account's history never makes the person's words of the twin's.
"""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from bot.message import Message, Origin, Segment
from bot.segments import to_text

SENT_EARLY_S, SENT_LATE_S = 60, 600
"""How much earlier (clocks differ) or later (an answer's bubbles all bear its first one's time) QQ's second of a
message can be than that of the row the twin or a command's answer was stored with."""
_BLANKS = re.compile(r"[\s↵]+")
_PLACEHOLDER = re.compile(r"(\[(?:文件|卡片|动画表情|图片):[^\[\]]*\]|\[[^\[\]\s]{1,12}\])")
_NO_FACE = re.compile(r"\[(?:图片|语音|视频|文件|聊天记录|卡片|戳一戳|位置|未知)[:\]]")


@dataclass(slots=True)
class Stored:
    """A message in the archive, of another source.

    Args:
        id: its `message_id`.
        sender_id: QQ number; empty where only a recall is known.
        time_ms: unix milliseconds.
        text: canonical text.
        seq: the chat's own running number.
        recalled: whether its words were taken back.
        origin: whose.
        segments: of what we sent.
        taken: whether a message of the source being imported is known to be this one.
    """

    id: str
    sender_id: str
    time_ms: int
    text: str
    seq: int | None
    recalled: bool
    origin: Origin
    segments: tuple[Segment, ...] = ()
    taken: bool = False

    @property
    def sent_by_us(self) -> bool:
        """Whether it is the twin's or a command's answer, not something heard."""
        return self.origin is Origin.TWIN or (self.origin is Origin.SYSTEM and self.seq is None)


@dataclass(slots=True)
class Others:
    """The messages of other sources around a stretch of a scene."""

    _by_id: dict[str, Stored] = field(default_factory=dict)
    _by_seq: dict[tuple[int, int, str], Stored] = field(default_factory=dict)
    _by_words: dict[tuple[str, int, str], list[Stored]] = field(default_factory=dict)
    _ours: dict[str, list[Stored]] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Iterable[Stored]) -> "Others":
        """Sorted for looking up."""
        found = cls()
        for one in stored:
            second = one.time_ms // 1000
            found._by_id[one.id] = one
            if one.seq is not None:
                # A row with the number of what it answered has that one's sender never.
                found._by_seq.setdefault((one.seq, second, one.sender_id if one.sent_by_us else ""), one)
            if one.sent_by_us:
                found._ours.setdefault(one.sender_id, []).append(one)
                continue
            words = "" if one.recalled else _nameless(folded(one.text))
            found._by_words.setdefault((one.sender_id, second, words), []).append(one)
        return found

    def claim(self, message_id: str) -> None:
        """Mark the message of an id as taken: a message that is known by its id is this one, and no other is."""
        if (one := self._by_id.get(message_id)) is not None:
            one.taken = True

    def take(self, message: Message, reads: Callable[[str, str], bool] = operator.eq) -> Stored | None:
        """The stored message that this one is, marked as taken; None if it is new.

        Args:
            message: to be stored.
            reads: whether two texts are the same: `vaguely`, once every message that has its equal has taken it.
        """
        time_ms = round(message.time.timestamp() * 1000)
        found = self._sent(message, time_ms) or self._heard(message, time_ms // 1000, reads)
        if found is not None:
            found.taken = True
        return found

    def _heard(self, message: Message, second: int, reads: Callable[[str, str], bool]) -> Stored | None:
        if message.seq is not None:
            for sender in (message.sender_id, ""):
                same = self._by_seq.get((message.seq, second, sender))
                if same is not None and not same.taken:
                    return same
        said = folded(message.text)
        for words in (_nameless(said), ""):
            for same in self._by_words.get((message.sender_id, second, words), ()):
                numbered = message.seq is not None and same.seq is not None
                if not same.taken and not numbered and (same.recalled or reads(folded(same.text), said)):
                    return same
        return None

    def _sent(self, message: Message, time_ms: int) -> Stored | None:
        said = _BLANKS.sub("", message.text)
        near = [
            one
            for one in self._ours.get(message.sender_id, ())
            if not one.taken and -SENT_EARLY_S * 1000 <= time_ms - one.time_ms <= SENT_LATE_S * 1000
        ]
        near.sort(key=lambda one: abs(time_ms - one.time_ms))
        return next((one for one in near if _reads_as(one)(said)), None)


def folded(text: str) -> str:
    """A text for comparing: clients differ in blanks."""
    return _BLANKS.sub("", text)


def vaguely(one: str, other: str) -> bool:
    """Whether two folded texts are equal but for placeholders of which one tells less than the other."""
    ones, others = _PLACEHOLDER.split(one), _PLACEHOLDER.split(other)
    pairs = list(zip(ones[1::2], others[1::2], strict=False))
    less = all(_tells_less(a, b) for a, b in pairs) or all(_tells_less(b, a) for a, b in pairs)
    return ones[::2] == others[::2] and less


def _tells_less(told: str, named: str) -> bool:
    face = told == "[表情]" and not _NO_FACE.match(named)
    return told == named or face or (told == "[图片]" and named.startswith("[动画表情"))


def _nameless(text: str) -> str:
    return _PLACEHOLDER.sub("[]", text) if "[" in text else text


def _reads_as(sent: Stored) -> Callable[[str], object]:
    """Whether a text is what was sent, whatever name a mention was shown with."""
    if not sent.segments:
        return _pattern(re.escape(folded(sent.text)))
    parts = []
    for segment in sent.segments:
        kind = segment.get("type")
        if kind == "reply":
            parts.append("(?:@.*?)?")  # clients mention whom they quote
        elif kind == "at":
            parts.append("@.*?")
        else:
            parts.append(re.escape(folded(to_text([segment], lambda _: None).text)))
    return _pattern("".join(parts))


@lru_cache(4096)
def _pattern(text: str) -> Callable[[str], object]:
    return re.compile(text, re.DOTALL).fullmatch
