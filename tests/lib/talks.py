"""A small history as training windows: forty conversations, in each an answer, a silence and a turn of the twin."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from bot.config import Conversation
from bot.message import Message, Origin, Scene
from bot.prompt import exchanges
from training.corpus import Corpus, SceneCorpus
from training.hf import HFTokenizer
from training.samples import Window, windows

ME, FRIEND, TWIN = "10001", "20001", "30001"
SCENE = Scene("private", FRIEND)
START = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)
A_DAY = timedelta(seconds=90000)
RULES = Conversation()
LENGTH = 160


def samples(base: Path, conversations: int = 40, length: int = LENGTH) -> list[Window]:
    """The windows, in a checkpoint's tokens; conversation number n begins at `START + n * A_DAY`."""
    messages: list[Message] = []
    for i in range(conversations):
        lines = [
            (0, FRIEND, f"今天吃什么{i}"), (9, ME, "好耶！我也要去"), (60, FRIEND, "在忙"), (120, FRIEND, "晚安"),
            (125, TWIN, "知道啦"),
        ]  # fmt: skip
        messages += [
            Message(f"{i}-{at}", SCENE, who, f"n{who}", START + i * A_DAY + timedelta(seconds=at), text,
                    Origin.TWIN if who == TWIN else Origin.HUMAN)
            for at, who, text in lines
        ]  # fmt: skip
    cut = exchanges(messages, frozenset([ME]), RULES)
    conversation: list[str] = []
    for exchange in cut:
        conversation.append(exchange.first.id if exchange.opened else conversation[-1])
    part = SceneCorpus(
        SCENE, "阿泽", cut, [not e.said for e in cut], [True] * len(cut), [None] * len(cut), conversation, {}
    )
    corpus = Corpus(frozenset([ME]), (), frozenset([ME]), [part], RULES, ZoneInfo(RULES.timezone), "")
    tokenizer = HFTokenizer(base)
    return windows(corpus, tokenizer, tokenizer.format, "你是小满。", length)
