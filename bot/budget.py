"""How many bubbles may still be sent, and where none may: what keeps the accounts alive."""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

from bot.config import Chat
from bot.errors import SendFailure
from bot.events import BanKind
from bot.message import Scene

_FAILURE_S = 600.0
_DAY_S = 86_400.0


class Budget:
    """Bubbles per scene and per account in any minute, hour and day; each account has its own, as QQ limits accounts.

    A scene's are counted whichever account sends them. A failed send halves what that account may send there for ten
    minutes: repeated sends into a muted group get accounts limited. One that was taken and never confirmed is the face
    of risk control, and pauses its account for a while.

    Args:
        chat: `[chat]`.
    """

    def __init__(self, chat: Chat) -> None:
        self._scene_caps = ((60.0, chat.scene_per_minute), (3600.0, chat.scene_per_hour), (_DAY_S, chat.scene_per_day))
        self._account_caps = (
            (60.0, chat.account_per_minute), (3600.0, chat.account_per_hour), (_DAY_S, chat.account_per_day),
        )  # fmt: skip
        self._chat = chat
        self._sent: dict[Scene | str, deque[float]] = {}
        """When was sent into a scene, and from an account; monotonic seconds, ascending."""
        self._next: dict[str, float] = {}
        self._failed: dict[tuple[str, Scene], list[float]] = {}
        self._muted: dict[tuple[str, Scene], dict[BanKind, float]] = {}
        self._paused_until: dict[str, float] = {}

    def hindrance(self, account: str, scene: Scene, now: float) -> str | None:
        """What forbids one more bubble of an account to a scene at `now` (monotonic seconds), or nothing.

        Returns:
            `muted`, `paused`, `budget` or None.
        """
        if any(now < until for until in self._muted.get((account, scene), {}).values()):
            return "muted"
        if now < self._paused_until.get(account, -math.inf):
            return "paused"
        return None if self.left(account, scene, now) else "budget"

    def left(self, account: str, scene: Scene, now: float) -> int:
        """Bubbles an account may still send into a scene in this minute, hour and day, whichever is least."""
        halvings = len(self._failures(account, scene, now))
        caps = [(span, cap >> halvings) for span, cap in self._scene_caps]
        return min(_left(self._of(scene), caps, now), _left(self._of(account), self._account_caps, now))

    def wait_s(self, account: str, now: float) -> float:
        """Seconds until an account's next bubble may go; that moment is taken."""
        at = max(now, self._next.get(account, -math.inf))
        self._next[account] = at + self._chat.account_gap_s
        return at - now

    def restore(self, sent: Iterable[tuple[str, Scene, float]]) -> None:
        """Count what was sent before a restart.

        Args:
            sent: account, scene and when (monotonic seconds, below 0 before this machine started), oldest first.
        """
        for account, scene, at in sent:
            self.spend(account, scene, at)

    def spend(self, account: str, scene: Scene, now: float) -> None:
        """Count one bubble sent."""
        self._of(scene).append(now)
        self._of(account).append(now)

    def failed(self, account: str, scene: Scene, now: float, failure: SendFailure) -> None:
        """Count a send that failed; what never reached QQ counts for nothing."""
        if failure not in (SendFailure.OFFLINE, SendFailure.BUG):
            self._failed[account, scene] = [*self._failures(account, scene, now), now]
        if failure is SendFailure.SHADOWED:
            self._paused_until[account] = now + self._chat.shadowed_pause_s

    def mute(self, account: str, scene: Scene, until: float, kind: BanKind = BanKind.OWN) -> None:
        """An account may not speak in a group until then (monotonic seconds); a moment gone by lifts it.

        Bans of one kind neither end nor lift those of another.
        """
        self._muted.setdefault((account, scene), {})[kind] = until

    def _of(self, sender: Scene | str) -> deque[float]:
        return self._sent.setdefault(sender, deque())

    def _failures(self, account: str, scene: Scene, now: float) -> list[float]:
        return [t for t in self._failed.get((account, scene), []) if now - t < _FAILURE_S]


def _left(sent: deque[float], caps: Sequence[tuple[float, int]], now: float) -> int:
    """How many more may be sent under every cap of a span in seconds; what is older than a day is forgotten."""
    while sent and now - sent[0] > _DAY_S:
        sent.popleft()
    return max(0, min(cap - _since(sent, now - span) for span, cap in caps))


def _since(sent: deque[float], start: float) -> int:
    """How many of ascending times are not before `start`."""
    return len(sent) - bisect_left(sent, start)
