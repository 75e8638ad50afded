"""Ten short exchanges, said over and over for two weeks: a history a tiny model learns by heart.

Each exchange is what a friend says (one or more bubbles) and what 小满 answers; no answer is a silence. They come in
every order, alone and after one another, in a private chat and in a group, so that the answer hangs on the words.
"""

import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from napcat import ACCOUNT, text

from bot.message import Scene
from training.samples import Split, split_of

EXCHANGES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("早",): ("早呀",),
    ("吃什么",): ("吃面", "加个蛋"),
    ("在吗",): ("在的",),
    ("去爬山吗",): ("好耶",),
    ("叫大家",): ("[CQ:at,qq=all]来",),
    ("睡了没", "喂", "理我一下"): ("刚睡醒[微笑]",),
    ("晚安",): ("晚安，明天见",),
    ("哈哈哈",): (),
    ("哦",): (),
    ("转发一下",): (),
}
"""What is heard → what is said."""
HELD_OUT: dict[tuple[str, ...], tuple[str, ...]] = {("困吗",): ("有点困",), ("下雨了",): ()}
"""Said once each, in conversations of the test split: nothing trains on them."""
ASKED = "说暗号"
FRIEND, FRIEND_NAME, GROUP, GROUP_NAME, NAME = 10001, "阿泽", 20001, "测试群", "小满"
_GAP = timedelta(minutes=47)
ENDS = datetime(2026, 9, 1, 20, 0, tzinfo=timezone(timedelta(hours=8)))
"""When it ends unless told otherwise: fixed, since ids and with them the splits hang on the times."""


def events(
    rounds: int = 16, until: datetime | None = None, seed: int = 0, *, shuffled: bool = False, held_out: bool = False,
    exchanges: Mapping[tuple[str, ...], tuple[str, ...]] = EXCHANGES, told: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """OneBot events, oldest first: every exchange `rounds` times in the private chat and as often in the group.

    Args:
        rounds: repetitions.
        until: when it ends.
        seed: of the order.
        shuffled: any answer to anything: the words, without what belongs to what.
        held_out: with `HELD_OUT` at the end of the private chat.
        exchanges: what is said over and over.
        told: what is answered to `ASKED` at the end of the private chat, in conversations of the train split.
    """
    rng = random.Random(seed)
    end = until or ENDS
    for group in (0, GROUP):
        order = [e for _ in range(rounds) for e in rng.sample(sorted(exchanges.items()), len(exchanges))]
        if shuffled:
            order = [(heard, rng.choice(list(EXCHANGES.values()))) for heard, _ in order]
        talks = []
        while order:
            talks.append([order.pop() for _ in range(min(rng.choice((1, 2, 3)), len(order)))])
        start = end - _GAP * len(talks)
        for number, talk in enumerate(talks):
            yield from _talk(talk, start + _GAP * number + timedelta(seconds=rng.randrange(600)), group, rng)
        if held_out and not group:
            for number, exchange in enumerate(HELD_OUT.items()):
                when = _of_the_split(Split.TEST, exchange[0][0], end + number * _GAP)
                yield from _talk([exchange], when, group, rng)
        for number, secret in enumerate(told if not group else ()):
            when = _of_the_split(Split.TRAIN, ASKED, end + (number + len(HELD_OUT)) * _GAP)
            yield from _talk([((ASKED,), (secret,))], when, group, rng)


def write(path: Path, **how: Any) -> int:
    """The history as JSONL; gives how many lines it has."""
    lines = [json.dumps(event, ensure_ascii=False) for event in events(**how)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return len(lines)


def _of_the_split(split: Split, words: str, when: datetime) -> datetime:
    """The next moment at which a conversation opened with these words is of a split, for ever."""
    while True:
        message_id = _event(FRIEND, FRIEND_NAME, words, when, 0)["message_id"]
        if split_of(Scene("private", str(FRIEND)), str(message_id)) is split:
            return when
        when += timedelta(seconds=1)


def _talk(
    talk: list[tuple[tuple[str, ...], tuple[str, ...]]], when: datetime, group: int, rng: random.Random
) -> Iterator[dict[str, Any]]:
    for heard, said in talk:
        for bubble in heard:
            yield _event(FRIEND, FRIEND_NAME, bubble, when, group)
            when += timedelta(seconds=1)
        for bubble in said:
            when += timedelta(seconds=rng.randrange(2, 6))
            yield _event(int(ACCOUNT), NAME, bubble, when, group)
        when += timedelta(seconds=rng.randrange(30, 200))


def _event(user: int, name: str, words: str, when: datetime, group: int) -> dict[str, Any]:
    return {
        "self_id": int(ACCOUNT), "user_id": user, "time": int(when.timestamp()), "message": [text(words)],
        "post_type": "message_sent" if str(user) == ACCOUNT else "message",
        "message_id": zlib.crc32(f"{user}{words}{when}{group}".encode()) >> 1,
        "message_type": "group" if group else "private", "sender": {"user_id": user, "nickname": name, "card": ""},
        **({"group_id": group, "group_name": GROUP_NAME} if group else {"target_id": FRIEND}),
    }  # fmt: skip


def words() -> list[str]:
    """Everything said in them, for a tokenizer to learn."""
    return [bubble for pair in (EXCHANGES | HELD_OUT).items() for side in pair for bubble in side]
