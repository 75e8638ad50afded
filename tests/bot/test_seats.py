"""bot/seats.py on a tiny model's cache: who keeps a sequence, who leaves, what is shared and what comes back."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tinymodel

from bot.llama import Context, Model, log_probs
from bot.seats import HEADER_MAX, Seat, Seats
from bot.spill import Spill

CELLS, SEQUENCES = 512, 3
LORA = Path("never loaded here.gguf")


@pytest.fixture(scope="module")
def model(tinies: dict[str, tinymodel.Tiny]) -> Iterator[Model]:
    made = Model(tinies["gemma3"].gguf, 0)
    yield made
    made.close()


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = Context(model, CELLS, SEQUENCES, CELLS, 1)
    yield made
    made.close()


@pytest.fixture
def seats(context: Context) -> Seats:
    return Seats(context, SEQUENCES, Spill(10**9))


def ids(n: int, of: int = 0) -> list[int]:
    """A prompt of n tokens; of another number it differs from the second token on."""
    return [2, *(300 + (of * 37 + i * 7) % 300 for i in range(n - 1))]


def read(context: Context, seat: Seat, prompt: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
    """Evaluate what a sequence does not hold of a prompt; log-probabilities of every word behind it."""
    at, left = len(seat.tokens), prompt[len(seat.tokens) :]
    assert context.decode([(t, seat.number, at + i, i == len(left) - 1) for i, t in enumerate(left)])
    seat.tokens += left
    return log_probs(context.logits()[0], range(context.model.n_vocab))


def alone(model: Model, prompt: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
    """The same in a fresh context."""
    fresh = Context(model, CELLS, 1, CELLS, 1)
    fresh.decode([(t, 0, i, i == len(prompt) - 1) for i, t in enumerate(prompt)])
    found = log_probs(fresh.logits()[0], range(model.n_vocab))
    fresh.close()
    return found


def sit(seats: Seats, context: Context, name: str, prompt: Sequence[int], lora: Path | None = None) -> Seat:
    """Take a sequence, read a prompt into it, leave it idle."""
    seat = seats.take(name, lora, prompt)
    assert seat is not None
    read(context, seat, prompt)
    seat.busy = False
    return seat


def warm(seats: Seats) -> set[str]:
    return {name for name in "abcdef" if name in seats}


def test_a_longer_prefix_of_another_takes_the_place_of_what_was_held(
    seats: Seats, context: Context, model: Model
) -> None:
    long = ids(90)
    sit(seats, context, "a", long)
    sit(seats, context, "b", [*long[:40], *ids(30, of=5)[1:]])
    wanted = [*long, *ids(10, of=9)[1:]]
    seat = seats.take("b", None, wanted)
    assert seat is not None
    assert seat.tokens == long, "of what it held itself only 40 tokens go on"
    assert read(context, seat, wanted) == pytest.approx(alone(model, wanted), abs=0.02)
    back = seats.take("a", None, [*long, 400])
    assert back is not None
    assert back.tokens == long, "the one that was copied from keeps its own"
    assert read(context, back, [*long, 400]) == pytest.approx(alone(model, [*long, 400]), abs=0.02)


def test_what_another_lora_made_is_not_shared(seats: Seats, context: Context) -> None:
    sit(seats, context, "a", ids(60), LORA)
    seat = seats.take("b", None, ids(60))
    assert seat is not None
    assert seat.tokens == []


def test_the_one_used_least_recently_leaves_and_none_that_is_busy(seats: Seats, context: Context) -> None:
    for number, name in enumerate("abc"):
        sit(seats, context, name, ids(30, of=number))
    sit(seats, context, "a", ids(40))
    sit(seats, context, "d", ids(30, of=3))
    assert warm(seats) == {"a", "c", "d"}
    seats["c"].busy = True
    sit(seats, context, "e", ids(30, of=4))
    assert warm(seats) == {"c", "d", "e"}, "c was longest unused, but is busy"
    for name in "cde":
        seats[name].busy = True
    assert seats.take("f", None, ids(30)) is None
    assert not seats.evict()
    assert warm(seats) == {"c", "d", "e"}
    assert len({seats[name].number for name in "cde"}) == SEQUENCES


@pytest.mark.parametrize("lora", [None, LORA])
def test_what_was_spilled_comes_back_to_the_same_lora_alone(
    seats: Seats, context: Context, model: Model, lora: Path | None
) -> None:
    prompt = ids(60)
    sit(seats, context, "a", prompt)
    for number, name in enumerate("bcd", 1):
        sit(seats, context, name, ids(30, of=number))
    assert "a" not in seats
    seat = seats.take("a", lora, [*prompt, 400, 401])
    assert seat is not None
    assert seat.tokens == ([] if lora else prompt)
    if not lora:
        assert read(context, seat, [*prompt, 400, 401]) == pytest.approx(alone(model, [*prompt, 400, 401]), abs=0.02)


def test_what_finds_no_room_to_come_back_to_is_read_again(seats: Seats, context: Context, model: Model) -> None:
    prompt = ids(300)
    sit(seats, context, "a", prompt)
    assert seats.evict()
    other = sit(seats, context, "b", ids(300, of=1))
    other.busy = True
    seat = seats.take("a", None, prompt)
    assert seat is not None
    assert seat.tokens == [], "300 cells of 512 are taken by who must not leave"
    seat.busy = other.busy = False
    seats.clear(other)
    assert sit(seats, context, "a", prompt) is seat
    assert seat.tokens == prompt
    seats.clear(seat)
    assert read(context, seat, prompt) == pytest.approx(alone(model, prompt), abs=0.02)


@pytest.mark.parametrize("kind", ["gemma3", "swa", "mamba", "lfm2"])
@pytest.mark.parametrize("cut", [0, 9, 500])
def test_a_state_that_cannot_be_read_drives_nobody_out(
    tinies: dict[str, tinymodel.Tiny], forgetful: dict[str, tinymodel.Tiny], kind: str, cut: int
) -> None:
    model, spill = Model({**tinies, **forgetful}[kind].gguf, 0), Spill(10**9)
    context = Context(model, 512, 3, 512, 1)
    seats = Seats(context, 3, spill)
    for number, name in enumerate("abcd"):
        sit(seats, context, name, ids(30, of=number))
    held = spill.take("a")
    assert held is not None
    spill.put("a", replace(held, state=held.state[:cut] if cut else bytes(len(held.state))))
    seats.evict()  # there is a sequence for it
    seat = seats.take("a", None, ids(30))
    assert seat is not None
    assert (seat.tokens, warm(seats)) == ([], {"a", "c", "d"})
    assert read(context, seat, ids(30)) == pytest.approx(alone(model, ids(30)), abs=0.02)
    context.close()
    model.close()


def test_of_many_scenes_as_many_as_fit_are_warm_or_come_back(context: Context) -> None:
    n_bytes = len(_state(context, ids(20)))
    spill = Spill(20 * n_bytes)
    seats, scenes = Seats(context, SEQUENCES, spill), [f"scene{i}" for i in range(200)]
    for number, scene in enumerate(scenes):
        sit(seats, context, scene, [2, 300 + number, *ids(18)])
        assert spill.kept_bytes <= 20 * n_bytes
        assert len(seats) <= SEQUENCES
    held = [spill.take(scene) is not None for scene in scenes]
    assert [scene in seats for scene in scenes] == [False] * 197 + [True] * 3
    assert held == [False] * 177 + [True] * 20 + [False] * 3


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("kind", "own"), [("gemma3", 40), ("swa", 20), ("swa", 60)])
def test_scenes_that_come_back_share_their_personas_prompt_again(
    tinies: dict[str, tinymodel.Tiny], forgetful: dict[str, tinymodel.Tiny], kind: str, own: int, fresh: bool
) -> None:
    """A window of 32 tokens reaches into the prompt, or begins behind it; the first of them was read, or came back."""
    model = Model({**tinies, **forgetful}[kind].gguf, 0)
    context = Context(model, 1024, 13, 512, 1)
    seats, persona, names = Seats(context, 13, Spill(10**9)), ids(200), "abcdefghijkl"
    prompts = {name: [*persona, *(300 + (i * 11 + k * 7) % 290 for k in range(own))] for i, name in enumerate(names)}
    for name, prompt in prompts.items():
        sit(seats, context, name, prompt)
    assert sum(name in seats for name in names) == 12, "fresh ones share it"
    while seats.evict():
        pass
    if fresh:
        sit(seats, context, "fresh", [*persona, 401])
    for name in names:
        back = seats.take(name, None, [*prompts[name], 400])
        assert back is not None
        assert back.tokens == prompts[name][: len(back.tokens)]
        assert len(back.tokens) >= len(persona) + own - HEADER_MAX
        back.busy = False
    assert sum(name in seats for name in names) == 12
    for name, prompt in prompts.items():
        for wanted in ([*prompt, 400, 401], [*prompt[: 200 + own // 2], 402]):  # and from where a window may not reach
            seat = seats.take(name, None, wanted)
            assert seat is not None
            assert read(context, seat, wanted) == pytest.approx(alone(model, wanted), abs=0.02)
            seat.busy = False
    context.close()
    model.close()


class Poor(Context):
    """Finds memory for whole states alone."""

    def restore(self, seq: int, state: bytes, *, mark: bool = False) -> bool:
        if mark:
            raise MemoryError
        return super().restore(seq, state)


def test_who_finds_no_memory_to_share_a_prompt_is_read_again(forgetful: dict[str, tinymodel.Tiny]) -> None:
    model = Model(forgetful["swa"].gguf, 0)
    context = Poor(model, 1024, 3, 512, 1)
    seats, prompt = Seats(context, 3, Spill(10**9)), ids(260)
    sit(seats, context, "a", prompt)
    assert seats.evict()
    sit(seats, context, "b", [*prompt[:200], 401])
    seat = seats.take("a", None, prompt)
    assert seat is not None
    assert seat.tokens == prompt[:200], "what the other one holds, and nothing else"
    assert read(context, seat, prompt) == pytest.approx(alone(model, prompt), abs=0.02)
    context.close()
    model.close()


def _state(context: Context, prompt: Sequence[int]) -> bytes:
    """What a sequence of a prompt is spilled as."""
    context.decode([(t, 0, i, False) for i, t in enumerate(prompt)])
    state = context.save(0)
    context.keep(0, 0)
    return state
