"""When things are said: the delay before an answer, the gap between bubbles, and how many may be sent."""

import math
import random
from collections import deque
from collections.abc import Sequence

from bot.config import Chat
from bot.errors import SendFailure
from bot.message import Scene
from bot.persona import Pacing

DEFAULT_DELAY_S = (1.5, 2.5, 3.5, 4.5, 6.0, 8.0, 11.0, 15.0, 22.0, 40.0, 90.0)
"""Quantiles 0, 0.1, … 1 of an answer's delay where nothing was learned; shape of people chatting (median 8 s)."""
DEFAULT_GAP_S = (0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 3.7, 4.6, 6.0, 8.5, 15.0)
"""Quantiles of the time between two bubbles of one turn where nothing was learned."""
_GAP_CAP_S = 8.0
_MINUTE_S = 60.0
_FAILURE_S = 600.0


def quantile(values: Sequence[float], u: float) -> float:
    """The u-quantile, linear between the values, which are equally spaced quantiles from 0 to 1."""
    position = min(max(u, 0.0), 1.0) * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)


def answer_delay_s(pacing: Pacing, chat: Chat, scene: Scene, rng: random.Random) -> float:
    """Seconds from the burst's last bubble to the first answering bubble, drawn from the person's own."""
    learned = pacing.private_delay_s if scene.private else pacing.group_delay_s
    drawn = quantile(learned or DEFAULT_DELAY_S, rng.random())
    return min(drawn * chat.delay_scale, chat.delay_cap_s)


def bubble_gap_s(pacing: Pacing, chat: Chat, rng: random.Random) -> float:
    """Seconds between two bubbles of one answer."""
    drawn = min(quantile(pacing.bubble_gap_s or DEFAULT_GAP_S, rng.random()), _GAP_CAP_S)
    return min(drawn * chat.delay_scale, chat.delay_cap_s)


class Budget:
    """How many bubbles may still be sent, per scene and for the account, in any minute; and where none may.

    A failed send halves a scene's budget for ten minutes: repeated sends into a muted group get accounts limited. One
    that was taken and never confirmed is the face of risk control, and pauses everything for a while.

    Args:
        chat: `[chat]`.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._sent: dict[Scene, deque[float]] = {}
        self._all: deque[float] = deque()
        self._failed: dict[Scene, list[float]] = {}
        self._muted: dict[Scene, float] = {}
        self._paused_until = -math.inf

    def hindrance(self, scene: Scene, now: float) -> str | None:
        """What forbids one more bubble to a scene at `now` (monotonic seconds): muted, paused, budget; or nothing."""
        if now < self._muted.get(scene, -math.inf):
            return "muted"
        if now < self._paused_until:
            return "paused"
        recent = self._sent.get(scene, deque())
        for times in (recent, self._all):
            while times and now - times[0] > _MINUTE_S:
                times.popleft()
        halvings = len(self._failures(scene, now))
        cap = max(0, self._chat.scene_per_minute >> halvings)
        return None if len(recent) < cap and len(self._all) < self._chat.account_per_minute else "budget"

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
