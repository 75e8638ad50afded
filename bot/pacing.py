"""When things are said: the delay before an answer, the gap between bubbles, and how many may be sent."""

import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

from bot.config import Chat
from bot.errors import SendFailure
from bot.message import Message, Scene
from bot.persona import Pacing

DEFAULT_DELAY_S = (1.5, 2.5, 3.5, 4.5, 6.0, 8.0, 11.0, 15.0, 22.0, 40.0, 90.0)
"""Quantiles 0, 0.1, … 1 of an answer's delay where nothing was learned; shape of people chatting (median 8 s)."""
DEFAULT_GAP_S = (0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 3.7, 4.6, 6.0, 8.5, 15.0)
"""Quantiles of the time between two bubbles of one turn where nothing was learned."""
_GAP_CAP_S = 8.0
_FAILURE_S = 600.0
_DAY_S = 86_400.0
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


def rhythm_s(messages: Sequence[Message], sender_id: str) -> float:
    """Seconds in which four of five further bubbles of somebody come, where they come within a burst; 0 if unknown.

    Args:
        messages: of one scene, oldest first.
        sender_id: whose.
    """
    gaps = sorted(
        (later.time - earlier.time).total_seconds()
        for earlier, later in pairwise(messages)
        if earlier.sender_id == later.sender_id == sender_id
    )
    within = [g for g in gaps if g <= _BURST_S]
    return quantile(within, 0.8) if len(within) >= _RHYTHM_MIN else 0.0


class Budget:
    """How many bubbles may still be sent, per scene and for the account, in any minute, hour and day; where none may.

    A failed send halves a scene's budget for ten minutes: repeated sends into a muted group get accounts limited. One
    that was taken and never confirmed is the face of risk control, and pauses everything for a while.

    Args:
        chat: `[chat]`.
    """

    def __init__(self, chat: Chat) -> None:
        self._scene_caps = ((60.0, chat.scene_per_minute), (3600.0, chat.scene_per_hour), (_DAY_S, chat.scene_per_day))
        self._account_caps = (
            (60.0, chat.account_per_minute), (3600.0, chat.account_per_hour), (_DAY_S, chat.account_per_day),
        )  # fmt: skip
        self._chat = chat
        self._sent: dict[Scene, deque[float]] = {}
        self._all: deque[float] = deque()
        self._next = -math.inf
        self._failed: dict[Scene, list[float]] = {}
        self._muted: dict[Scene, float] = {}
        self._paused_until = -math.inf

    def hindrance(self, scene: Scene, now: float) -> str | None:
        """What forbids one more bubble to a scene at `now` (monotonic seconds): muted, paused, budget; or nothing."""
        if now < self._muted.get(scene, -math.inf):
            return "muted"
        if now < self._paused_until:
            return "paused"
        halvings = len(self._failures(scene, now))
        scene_caps = [(span, cap >> halvings) for span, cap in self._scene_caps]
        room = _room(self._sent.get(scene, deque()), scene_caps, now) and _room(self._all, self._account_caps, now)
        return None if room else "budget"

    def left(self, scene: Scene, now: float) -> int:
        """Bubbles that may still be sent into a scene in this minute, hour and day, whichever is least."""
        halvings = len(self._failures(scene, now))
        sent = self._sent.get(scene, deque())
        lefts = [(cap >> halvings) - _since(sent, now - span) for span, cap in self._scene_caps]
        lefts += [cap - _since(self._all, now - span) for span, cap in self._account_caps]
        return max(0, min(lefts))

    def wait_s(self, now: float) -> float:
        """Seconds until the account's next bubble may go; that moment is taken."""
        at = max(now, self._next)
        self._next = at + self._chat.account_gap_s
        return at - now

    def restore(self, sent: Iterable[tuple[Scene, float]]) -> None:
        """Count what was sent before a restart.

        Args:
            sent: where and when (monotonic seconds, below 0 before this machine started), oldest first.
        """
        for scene, at in sent:
            self.spend(scene, at)

    def spend(self, scene: Scene, now: float) -> None:
        """Count one bubble sent."""
        self._sent.setdefault(scene, deque()).append(now)
        self._all.append(now)

    def failed(self, scene: Scene, now: float, failure: SendFailure) -> None:
        """Count a send that failed; what never reached QQ counts for nothing."""
        if failure not in (SendFailure.OFFLINE, SendFailure.BUG):
            self._failed[scene] = [*self._failures(scene, now), now]
        if failure is SendFailure.SHADOWED:
            self._paused_until = now + self._chat.shadowed_pause_s

    def mute(self, scene: Scene, until: float) -> None:
        """The account may not speak in a group until then (monotonic seconds); a moment gone by lifts it."""
        self._muted[scene] = until

    def _failures(self, scene: Scene, now: float) -> list[float]:
        return [t for t in self._failed.get(scene, []) if now - t < _FAILURE_S]


def _room(sent: deque[float], caps: Sequence[tuple[float, int]], now: float) -> bool:
    """Whether one more may be sent under every cap of a span in seconds; what is older than a day is forgotten."""
    while sent and now - sent[0] > _DAY_S:
        sent.popleft()
    return all(_since(sent, now - span) < cap for span, cap in caps)


def _since(sent: deque[float], start: float) -> int:
    """How many of ascending times are not before `start`."""
    return len(sent) - bisect_left(sent, start)
