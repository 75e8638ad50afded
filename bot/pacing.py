"""When things are said: the delay before an answer, and the gap between bubbles."""

import random
from collections.abc import Sequence
from itertools import pairwise

from bot.config import Chat
from bot.message import Message
from bot.persona import Pacing

DEFAULT_DELAY_S = (1.5, 2.5, 3.5, 4.5, 6.0, 8.0, 11.0, 15.0, 22.0, 40.0, 90.0)
"""Quantiles 0, 0.1, … 1 of an answer's delay where nothing was learned; shape of people chatting (median 8 s)."""
DEFAULT_GAP_S = (0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 3.7, 4.6, 6.0, 8.5, 15.0)
"""Quantiles of the time between two bubbles of one turn where nothing was learned."""
_GAP_CAP_S = 8.0
TYPE_S_PER_CHAR, _TYPING_CAP_S = 0.25, 5.0
"""Seconds to type a character where nothing was learned, and the most that is shown."""
_BURST_S, _RHYTHM_MIN = 20.0, 5


def quantile(values: Sequence[float], u: float) -> float:
    """The u-quantile, linear between the values, which are equally spaced quantiles from 0 to 1."""
    position = min(max(u, 0.0), 1.0) * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)


def situations(*, private: bool, cold: bool, hour: float) -> tuple[str, str, str]:
    """Names of a situation, coarse to fine: `("private", "private cold", "private cold 18")`.

    Args:
        private: a chat between two.
        cold: the words answered opened a conversation; else it was under way.
        hour: local, 0–24; quarters of the day are told apart.
    """
    kind = "private" if private else "group"
    state = f"{kind} {'cold' if cold else 'mid'}"
    return kind, state, f"{state} {int(hour) % 24 // 6 * 6}"


class Pace:
    """The times of one answer, drawn from the person's own.

    Args:
        pacing: as learned with the version; empty without one.
        chat: `[chat]` scale and cap.
        rng: random numbers.
        of: the situation, coarse to fine.
        heard: the last bubble heard; empty when the person speaks first.
    """

    def __init__(
        self, pacing: Pacing, chat: Chat, rng: random.Random, of: tuple[str, str, str], heard: str = ""
    ) -> None:
        self._pacing, self._chat, self._rng, self._heard = pacing, chat, rng, heard
        tempo = pacing.tempo
        if tempo is not None:
            delays = next((tempo.answer_s[name] for name in reversed(of) if name in tempo.answer_s), DEFAULT_DELAY_S)
        else:
            delays = (pacing.private_delay_s if of[0] == "private" else pacing.group_delay_s) or DEFAULT_DELAY_S
        self._delay_s = quantile(delays, rng.random())

    def first_s(self, bubble: str) -> float:
        """Seconds from the last bubble heard to the first one said."""
        tempo = self._pacing.tempo
        read_s = tempo.read_s_per_char * len(self._heard) if tempo else 0.0
        return self._within(self._delay_s + read_s + (tempo.type_s_per_char * len(bubble) if tempo else 0.0))

    def next_s(self, bubble: str) -> float:
        """Seconds from one bubble to the next of the same answer."""
        tempo = self._pacing.tempo
        drawn = quantile((tempo.gap_s if tempo else self._pacing.bubble_gap_s) or DEFAULT_GAP_S, self._rng.random())
        return self._within(min(drawn, _GAP_CAP_S) + (tempo.type_s_per_char * len(bubble) if tempo else 0.0))

    def typing_s(self, bubble: str) -> float:
        """Seconds a person takes to type a bubble, as far as it is worth showing."""
        tempo = self._pacing.tempo
        per_char = tempo.type_s_per_char if tempo else TYPE_S_PER_CHAR
        return min(len(bubble) * per_char, _TYPING_CAP_S)

    def _within(self, seconds: float) -> float:
        return min(seconds * self._chat.delay_scale, self._chat.delay_cap_s)


def rhythms_s(messages: Sequence[Message]) -> dict[str, float]:
    """Seconds in which four of five further bubbles of a speaker come, where they come within a burst, by speaker.

    Args:
        messages: of one scene, oldest first. Who has too few is left out.
    """
    gaps: dict[str, list[float]] = {}
    for earlier, later in pairwise(messages):
        gap = (later.time - earlier.time).total_seconds()
        if earlier.sender_id == later.sender_id and gap <= _BURST_S:
            gaps.setdefault(later.sender_id, []).append(gap)
    return {who: quantile(sorted(found), 0.8) for who, found in gaps.items() if len(found) >= _RHYTHM_MIN}
