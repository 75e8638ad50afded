"""KV sequences by name: found again, begun from another's prefix, dropped or spilled when room is needed.

A sequence belongs to a scene and persona. What it holds is known token by token, so a prompt that extends it costs
only its new tokens. A new sequence begins as a copy of the longest prefix another one of the same LoRA holds
(`llama_memory_seq_cp` shares the cells): the persona's prompt is evaluated once. Idle sequences that must go are
spilled (`bot/spill.py`), and come back in milliseconds instead of being read again, to share that prefix once more.

Not every sequence can be cut where a prompt departs from it: a recurrent state never can, and of a sliding window what
slid out may be gone. A prompt departs from the one before it in its open assistant header, and where the answer was not
said as it was drawn. So recurrent states are marked just before the header while a prompt is read, and what might not
be cut later is spilled up to there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from bot.errors import EngineError
from bot.llama import Context, Mark
from bot.spill import Held, Spill

SHARED_MIN = 16
"""Tokens a shared prefix must have; copying it costs as much as evaluating a few."""
HEADER_MAX = 16
"""Tokens at the end of a prompt that the next one may not begin with: the open header, at most 9 in our formats."""


@dataclass(slots=True, eq=False)
class Seat:
    """A sequence: its number in the cache, whose words it was evaluated with, what it holds."""

    name: str
    number: int
    lora: Path | None
    tokens: list[int] = field(default_factory=list)
    busy: bool = False
    sure: int = 0
    """Tokens that the next prompt begins with as well."""
    mark: Mark | None = None
    unwanted: bool = False
    """Whether it is to be dropped."""


class Seats:
    """The sequences of one context.

    Args:
        context: the cache; sequences 0 to `n_seq_max` - 1 are used.
        n_seq_max: sequences at most.
        spill: takes those that have to go.
    """

    def __init__(self, context: Context, n_seq_max: int, spill: Spill) -> None:
        self._context = context
        self._free = list(range(n_seq_max))
        self._warm: OrderedDict[str, Seat] = OrderedDict()
        self._spill = spill

    def __contains__(self, name: str) -> bool:
        return name in self._warm

    def __getitem__(self, name: str) -> Seat:
        return self._warm[name]

    def __len__(self) -> int:
        return len(self._warm)

    def is_busy(self, name: str) -> bool:
        """Whether a sequence is being used."""
        return name in self._warm and self._warm[name].busy

    def take(self, name: str, lora: Path | None, ids: Sequence[int]) -> Seat | None:
        """The sequence of that name, busy now, holding the longest known prefix of `ids` but for its last token.

        None when every sequence is busy.
        """
        if name not in self._warm and not self._free and all(seat.busy for seat in self._warm.values()):
            return None
        seat = self._warm.get(name) or self._come(name, lora)
        self._warm.move_to_end(name)
        if seat.lora != lora:
            self.clear(seat)
            seat.lora = lora
        prompt = ids[:-1]
        self._cut(seat, common(seat.tokens, prompt))
        self._share(seat, prompt)
        seat.sure = max(0, len(ids) - HEADER_MAX)
        seat.busy = True
        return seat

    def readable(self, seat: Seat, n: int) -> int:
        """How many of the next `n` tokens a step may evaluate: a recurrent state is marked on the way."""
        left = seat.sure - len(seat.tokens)
        if not self._context.recurrent or left < 0:
            return n
        if left == 0:
            if seat.tokens and (seat.mark is None or seat.mark.n != seat.sure):
                seat.mark = Mark(seat.sure, self._context.save(seat.number, mark=True))
            return n
        return min(n, left)

    def clear(self, seat: Seat) -> None:
        """Forget what a sequence holds."""
        self._cut(seat, 0)

    def take_back(self, seat: Seat) -> None:
        """A decode was broken off: a sequence holds what it held before, or what it can be cut to."""
        self._keep(seat, len(seat.tokens))

    def _cut(self, seat: Seat, n: int) -> None:
        if n < len(seat.tokens) or n == 0:
            self._keep(seat, n)

    def _keep(self, seat: Seat, n: int) -> None:
        n = self._context.keep(seat.number, n, seat.mark)
        del seat.tokens[n:]
        if seat.mark is not None and seat.mark.n > n:
            seat.mark = None

    def forget(self, wanted: Callable[[str], bool]) -> None:
        """Drop some sequences, chosen by name, and what was spilled of them; one being used as soon as it is not."""
        for seat in [s for s in self._warm.values() if wanted(s.name)]:
            seat.unwanted = True
            if not seat.busy:
                self.leave(seat)
        self._spill.forget(wanted)

    def leave(self, seat: Seat) -> None:
        """A sequence is no longer used: it stays for the next prompt, unless it was to be dropped."""
        seat.busy = False
        if seat.unwanted:
            del self._warm[seat.name]
            self._context.keep(seat.number, 0)
            self._free.append(seat.number)

    def evict(self) -> bool:
        """Spill the idle sequence used least recently; False when all are busy."""
        seat = next((s for s in self._warm.values() if not s.busy), None)
        if seat is None:
            return False
        del self._warm[seat.name]
        try:
            if self._spill.enabled:
                self._put_away(seat)
        finally:  # whatever fails, a sequence is not lost
            self._context.keep(seat.number, 0)
            self._free.append(seat.number)
        return True

    def _put_away(self, seat: Seat) -> None:
        """Spill what the next prompt of a scene can begin with."""
        sure = min(seat.sure, len(seat.tokens))
        marked = seat.mark is not None and seat.mark.n <= sure
        if not self._context.rewinds(len(seat.tokens)) and (marked or self._context.reaches(seat.number, sure)):
            self._cut(seat, sure)
        if seat.tokens and (state := self._context.save(seat.number)):
            self._spill.put(seat.name, Held(seat.lora, list(seat.tokens), state))

    def _come(self, name: str, lora: Path | None) -> Seat:
        """A sequence for a scene that has none: with what was spilled of it, else empty. One is free or idle."""
        held = self._spill.take(name)
        if not self._free:
            self.evict()
        seat = self._warm[name] = Seat(name, self._free.pop(), lora)
        if held is not None and held.lora == lora:
            self._restore(seat, held)
        return seat

    def _restore(self, seat: Seat, held: Held) -> None:
        back, seat.busy = False, True  # it must not be evicted to make room for itself
        try:
            while not (back := self._context.restore(seat.number, held.state)) and self.evict():
                pass
        except EngineError as e:  # nobody is to make room for it
            logger.warning("a scene that was spilled is read again: {}", e)
        finally:
            seat.busy = False
        other, length = self._longest(seat, held.tokens, SHARED_MIN) if back else (None, 0)
        if other is not None:  # it came back in cells of its own, the persona's prompt too
            back = self._context.join(other.number, seat.number, length)
        if back:
            seat.tokens = held.tokens
        else:
            self._context.keep(seat.number, 0)

    def _share(self, seat: Seat, prompt: Sequence[int]) -> None:
        """Begin from the longest prefix another sequence holds, where it is clearly longer than what this one does."""
        other, length = self._longest(seat, prompt, len(seat.tokens) + SHARED_MIN, reached=True)
        if other is not None:
            self._context.keep(seat.number, 0)
            self._context.share(other.number, seat.number, length)
            seat.tokens = list(prompt[:length])

    def _longest(
        self, seat: Seat, wanted: Sequence[int], least: int, *, reached: bool = False
    ) -> tuple[Seat | None, int]:
        """The sequence of the same LoRA that holds the longest prefix, `least` tokens or more; and how long it is.

        Args:
            seat: for whom; not that one.
            wanted: a prompt.
            least: tokens the prefix must have.
            reached: whether tokens are to be evaluated behind it.
        """
        found, best = None, least - 1
        if self._context.recurrent:
            return found, 0
        head = list(wanted[: best + 1])
        for other in self._warm.values():
            if other is seat or other.lora != seat.lora or other.tokens[: best + 1] != head:
                continue
            length = common(other.tokens, wanted)
            if length > best and (not reached or self._context.reaches(other.number, length)):
                found, best = other, length
                head = list(wanted[: best + 1])
        return found, best


def common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the common prefix of two token lists."""
    shorter = min(len(held), len(wanted))
    if list(held[:shorter]) == list(wanted[:shorter]):
        return shorter
    return next(i for i, (a, b) in enumerate(zip(held, wanted, strict=False)) if a != b)
