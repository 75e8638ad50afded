"""Which answers are not worth learning from, and why; and merging, for training sets.

An answer that is *dropped* is masked: it stands in the context as it was said, none of its tokens is a label, and it
stays an answer to the decision of speaking. So rendering does not change, and no silence comes of it that never was.
Among an answer's words a bubble of media alone is masked by itself. Only *merging* moves what was said, and so is off
(bot.toml `[corpus]`).

Near-duplicates are found by MinHash (Broder 1997) over pairs of characters, in bands (Leskovec, Rajaraman & Ullman,
*Mining of Massive Datasets*, ch. 3).
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from bot.config import Cleaning
from bot.message import Message
from bot.prompt import media_alone

SIMILAR = 0.8
"""Jaccard similarity of character pairs from which two answers read alike."""
_ROWS, _BANDS = 4, 12
"""Hashes in a band, bands: at a similarity of 0.8 all bands miss 1 pair in 600, at 0.4 a band meets 1 pair in 4."""
_PRIME = np.uint64(2**31 - 1)
_MOJIBAKE = re.compile("\ufffd|锟斤拷|烫烫烫|屯屯屯|[\x80-\x9f]|(?:Ã|Â|â€|ï¼|ã€|[åæçèé])[\xa0-\xbf‚„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ]")
_OPEN = re.compile(r"[“「《【]$|\[[^\[\]\s]{0,6}$")
"""What was opened and not closed. `（` is left out: to end with it is how many people joke."""
_REPEAT_MIN = 5
"""Characters from which an answer equal to what was heard only repeats it; 好, 晚安 and 哈哈哈 are manners.

A face, a sticker or a poke is one: to poke back, or to send the same sticker, is an answer.
"""
_GESTURE = re.compile(r"\[[^\[\]\n]+\]")
_CUT_MIN = 60
"""Characters from which an answer that ends in a comma was cut off; shorter ones are how people type."""


class Reason(StrEnum):
    """Why an answer is not trained."""

    REPEAT = "repeat"
    MEDIA = "media"
    MOJIBAKE = "mojibake"
    CUT_OFF = "cut_off"
    SHORT = "short"
    LONG = "long"
    BLOCKED = "blocked"
    DUPLICATE = "duplicate"
    LOW_SCORE = "low_score"
    """By a language model (`training.modelclean`)."""
    WITHHELD = "withheld"
    """It answers somebody whose words are not kept (`bot.optouts`), and would be learned as an answer to others."""


def masked(said: Sequence[str], heard: str | None, rules: Cleaning) -> Reason | None:
    """Why an answer is not trained; None if it is. Near-duplicates need all answers: `duplicates`.

    Args:
        said: its bubbles.
        heard: the bubble right before it, None when the person spoke first.
        rules: `[corpus]` of bot.toml.
    """
    if rules.drop_media:
        said = [s for s in said if not media_alone(s)]
        if not said:
            return Reason.MEDIA
    whole = "\n".join(said)
    if rules.drop_repeats and set(said) == {heard} and len(_GESTURE.sub("x", said[0])) >= _REPEAT_MIN:
        return Reason.REPEAT
    if rules.drop_broken and (_MOJIBAKE.search(whole) or _misread(whole)):
        return Reason.MOJIBAKE
    if rules.drop_broken and (_OPEN.search(whole) or (len(whole) >= _CUT_MIN and whole[-1] in "，、,")):
        return Reason.CUT_OFF
    if len(whole) < rules.min_chars:
        return Reason.SHORT
    if len(whole) > rules.max_chars:
        return Reason.LONG
    if rules.blocked_words and any(w.casefold() in whole.casefold() for w in rules.blocked_words):
        return Reason.BLOCKED
    return None


def _misread(text: str) -> bool:
    """Whether UTF-8 was read as GBK (`浣犲ソ` for 你好): then its GBK bytes are UTF-8, which chance hardly gives."""
    if not any("\u4e00" <= c for c in text):
        return False
    try:
        meant = text.encode("gbk").decode("utf-8")
    except UnicodeError:
        return False
    return sum("\u4e00" <= c <= "\u9fff" for c in meant) >= 2


def duplicates(texts: Sequence[str], rules: Cleaning) -> set[int]:
    """Places of the answers that read like `duplicate_cap` earlier ones. The first ones stay trained for ever.

    Args:
        texts: answers, oldest first.
        rules: `[corpus]` of bot.toml.
    """
    places = [i for i, text in enumerate(texts) if len(text) >= max(2, rules.duplicate_min_chars)]
    if len(places) <= rules.duplicate_cap:
        return set()
    signatures = _signatures([texts[i] for i in places])
    first: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    count: dict[int, int] = {}
    over: set[int] = set()
    for row, place in enumerate(places):
        bands = [(b, signatures[row, b * _ROWS : (b + 1) * _ROWS].tobytes()) for b in range(_BANDS)]
        candidates = dict.fromkeys(c for band in bands for c in first.get(band, ()))
        like = next((c for c in candidates if (signatures[c] == signatures[row]).mean() >= SIMILAR), None)
        if like is None:
            count[row] = 1
            for band in bands:
                first[band].append(row)
            continue
        count[like] += 1
        if count[like] > rules.duplicate_cap:
            over.add(place)
    return over


def _signatures(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """MinHash signatures, (texts, bands * rows), of the character pairs of texts of at least two characters."""
    known: dict[str, int] = {}
    pairs: list[int] = []
    starts: list[int] = []
    for text in texts:
        starts.append(len(pairs))
        for pair in {text[i : i + 2] for i in range(len(text) - 1)}:
            if pair not in known:
                known[pair] = zlib.crc32(pair.encode("utf-8", "replace")) % int(_PRIME)
            pairs.append(known[pair])
    hashed = np.array(pairs, np.uint64)
    rng = np.random.default_rng(5)
    factors = rng.integers(1, int(_PRIME), (_BANDS * _ROWS, 2), dtype=np.uint64)
    rows = [np.minimum.reduceat((hashed * a + b) % _PRIME, starts) for a, b in factors]
    return np.stack(rows, axis=1)


def merged(messages: Sequence[Message], rules: Cleaning) -> tuple[list[Message], set[str]]:
    """One speaker's bubbles, others' standing between them, brought together; and the ids of those that moved.

    Bubbles join the speaker's last group if at most `merge_interleaved` messages of others came after it and at most
    `merge_gap_s` passed. All of a group stand at the mean of their times.

    Args:
        messages: one scene's, oldest first.
        rules: `[corpus]` of bot.toml; with `merge = "off"` nothing changes.
    """
    if rules.merge == "off":
        return list(messages), set()
    groups: list[list[Message]] = []
    last: dict[str, tuple[int, int]] = {}  # sender → group, how many messages came before its newest bubble
    for number, message in enumerate(messages):
        group, at = last.get(message.sender_id, (-1, 0))
        fits = group >= 0 and number - at - 1 <= rules.merge_interleaved
        if fits and (message.time - groups[group][-1].time).total_seconds() <= rules.merge_gap_s:
            groups[group].append(message)
        else:
            groups.append([message])
            group = len(groups) - 1
        last[message.sender_id] = (group, number)
    place = {m.id: number for number, m in enumerate(messages)}
    moved = {m.id for g in groups for k, m in enumerate(g) if place[m.id] != place[g[0].id] + k}
    whole = sorted((list(_joined(g, rules)) for g in groups), key=lambda g: g[0].time)
    return [m for g in whole for m in g], moved


def _joined(group: Sequence[Message], rules: Cleaning) -> Iterator[Message]:
    if len(group) == 1:
        yield group[0]
        return
    since = [(m.time - group[0].time).total_seconds() for m in group]
    mean = group[0].time + timedelta(seconds=sum(since) / len(since))
    if rules.merge == "bubbles":
        yield from (replace(m, time=mean) for m in group)
        return
    mentions = tuple(dict.fromkeys(who for m in group for who in m.mentions))
    reply_to = next((m.reply_to for m in group if m.reply_to), None)
    yield replace(group[0], time=mean, text="，".join(m.text for m in group), mentions=mentions, reply_to=reply_to)
