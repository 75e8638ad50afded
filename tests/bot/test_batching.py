"""bot/batching.py: whatever goes wrong with one job, every job is told how it ended, and the thread lives on."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tinylora
import tinymodel

from bot import config
from bot.batching import PASSED_MAX, TURN_STEPS, Batcher, Job
from bot.engine import Request, Voice
from bot.errors import EngineError
from bot.llama import Context, Model
from bot.loras import Loras
from bot.models import Served
from bot.persona import Sampling
from bot.prompt import FORMATS
from bot.seats import Seats
from bot.spill import Spill

GEMMA = FORMATS["gemma"]
SETTINGS = config.Engine(n_ctx=512, kv_tokens=1024, n_seq_max=4, n_batch=64, n_threads=1, n_gpu_layers=0)
PATIENCE_S = 20.0


class Asked:
    """A job and what became of it."""

    def __init__(
        self, seat: str, n: int, *, lora: Path | None = None, answers: bool = False, max_tokens: int = 8
    ) -> None:
        sampling = Sampling(max_tokens=max_tokens, temperature=0, repeat_penalty=1.0)
        request = Request(seat, Voice("me/v1", lora, GEMMA), (), sampling)
        self._ended = threading.Event()
        self._result: float | EngineError | None = None
        self.job = Job(
            request, [2, *(300 + i % 300 for i in range(n - 1))], (lambda _: None) if answers else None, self.done
        )

    def done(self, result: float | EngineError) -> None:
        self._result = result
        self._ended.set()

    def result(self) -> float | EngineError:
        assert self._ended.wait(PATIENCE_S), "nobody was told"
        assert self._result is not None
        return self._result


@pytest.fixture
def served(tinies: dict[str, tinymodel.Tiny]) -> Iterator[Served]:
    made = Served(tinies["gemma3"].gguf, SETTINGS, "")
    yield made
    made.close()


def looks(served: Served) -> None:
    """The engine still answers."""
    later = Asked("later", 20)
    served.batcher.submit(later.job)
    assert 0 < float(later.result()) < 1  # type: ignore[arg-type]


def test_a_lora_whose_metadata_is_no_text_is_one_jobs_error(
    served: Served, tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    lora = tinylora.write(tmp_path / "lora.gguf", tinies["gemma3"].gguf, names_base="f" * 64)
    lora.write_bytes(lora.read_bytes().replace(b"f" * 64, b"\xff" * 64))
    served.loras._base_sha256 = "0" * 64
    asked = Asked("a", 20, lora=lora)
    served.batcher.submit(asked.job)
    assert "trained on the base" in str(asked.result())
    looks(served)


class Poor(Context):
    """A cache whose states find no memory to be put back from."""

    def restore(self, seq: int, state: bytes, *, mark: bool = False) -> bool:
        raise MemoryError


def test_a_scene_that_finds_no_memory_to_come_back_is_told_and_read_again_later(
    tinies: dict[str, tinymodel.Tiny],
) -> None:
    model = Model(tinies["gemma3"].gguf, 0)
    context = Poor(model, 1024, 2, 64, 1)
    seats = Seats(context, 2, Spill(10**9))
    loras = Loras(model, context, "", 0)
    batcher = Batcher(model, context, seats, loras, n_ctx=512, n_parallel=2, deadline_s=60.0)
    outcomes = []
    for seat in ("a", "b", "c", "a", "a", "b", "b"):  # "a" has to leave for "c", "b" for "a"
        asked = Asked(seat, 40)
        batcher.submit(asked.job)
        outcomes.append(asked.result())
    batcher.close()
    context.close()
    model.close()
    assert [str(o) for o in outcomes if not isinstance(o, float)] == ["the engine failed: MemoryError"] * 2
    assert [isinstance(o, float) for o in outcomes] == [True, True, True, False, True, False, True]


def test_a_job_put_while_the_end_comes_is_told_of_it(served: Served) -> None:
    late, closing = Asked("late", 20), threading.Thread(target=served.batcher.close)

    def at_the_end(_: float | EngineError) -> None:
        """On the engine's thread, after it has taken in what was asked."""
        served.batcher.submit(late.job)
        closing.start()
        while not served.batcher._closing.is_set():
            time.sleep(0.001)

    first = Asked("first", 20)
    first.job.done = at_the_end
    first.job.stop.set()
    served.batcher.submit(first.job)
    assert str(late.result()) == "the engine is closed"
    closing.join()
    with pytest.raises(EngineError, match="the engine is closed"):
        served.batcher.submit(Asked("later", 20).job)


def test_a_look_that_the_end_breaks_off_is_no_certain_silence(tinies: dict[str, tinymodel.Tiny]) -> None:
    changed = {"n_ctx": 4096, "kv_tokens": 4096, "n_batch": 4096}
    served = Served(tinies["gemma3"].gguf, SETTINGS.model_copy(update=changed), "")
    served.batcher._prompt_rate = 1e6  # all of it in one step
    asked = Asked("a", 4000)
    served.batcher.submit(asked.job)
    until = time.monotonic() + PATIENCE_S
    while served.batcher.steps == 0:
        assert time.monotonic() < until
        time.sleep(0.001)
    served.close()
    assert str(asked.result()) == "the engine is closed"


@pytest.mark.parametrize("answers", [False, True])
def test_a_prompt_that_takes_too_long_to_read_is_given_up(tinies: dict[str, tinymodel.Tiny], answers: bool) -> None:
    served = Served(tinies["gemma3"].gguf, SETTINGS.model_copy(update={"n_batch": 32, "deadline_s": 0.02}), "")
    served.batcher._prompt_rate = 1.0  # 16 tokens in a step
    asked = Asked("a", 500, answers=answers)
    served.batcher.submit(asked.job)
    assert "deadline_s = 0.02" in str(asked.result())
    assert 0 < served.batcher.evaluated < 500
    served.close()


def test_a_prompt_and_its_answer_stay_within_the_window(served: Served) -> None:
    with pytest.raises(EngineError, match=r"a prompt of 512 tokens is longer than a window of 512 \(\[engine\] n_ctx"):
        served.batcher.submit(Asked("a", 512).job)
    asked = Asked("a", 508, answers=True, max_tokens=100)
    served.batcher.submit(asked.job)
    assert asked.result() == 0.0
    assert len(asked.job.ids) + len(asked.job.made) <= 512
    looks(served)


def test_more_chats_than_a_decode_takes_are_refused_before_they_write_past_it(
    tinies: dict[str, tinymodel.Tiny],
) -> None:
    with pytest.raises(ValueError, match="must be at least n_parallel = 64"):
        config.Engine(n_parallel=64, n_batch=32)
    model = Model(tinies["gemma3"].gguf, 0)
    context = Context(model, 512, 1, 32, 1)
    with pytest.raises(EngineError, match="33 tokens in one decode"):
        context.decode([(300, 0, i, False) for i in range(33)])
    assert context.decode([(300, 0, i, False) for i in range(32)])
    context.close()
    model.close()


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_outside_the_vocabulary_is_one_jobs_error(served: Served, token: int) -> None:
    asked, other = Asked("a", 20), Asked("b", 20)
    asked.job.ids = [2, 300, token, 301]
    served.batcher.submit(other.job)
    assert 0 < float(other.result()) < 1  # type: ignore[arg-type]
    served.batcher.submit(asked.job)
    assert "llama_decode failed with -1" in str(asked.result())
    looks(served)


class Watched(Context):
    """Remembers the LoRA of each step."""

    def __init__(self, model: Model) -> None:
        # Fewer rows in a step than a pace is measured by: a step reads 16 tokens, whatever the clock says.
        super().__init__(model, 4096, 12, 31, 1, n_outputs=8)
        self.used: list[object] = []

    def use(self, lora: Any) -> None:
        self.used.append(lora)
        super().use(lora)


@pytest.fixture
def watched(tinies: dict[str, tinymodel.Tiny]) -> Iterator[Batcher]:
    model = Model(tinies["gemma3"].gguf, 0)
    context = Watched(model)
    loras = Loras(model, context, "", 10**9)
    batcher = Batcher(model, context, Seats(context, 12, Spill(0)), loras, n_ctx=512, n_parallel=8, deadline_s=600.0)
    batcher._prompt_rate = 1.0
    yield batcher
    batcher.close()
    loras.close()
    context.close()
    model.close()


def together(batcher: Batcher, *asked: Asked) -> None:
    """Submit all of them between two steps."""

    def at_once(_: float | EngineError) -> None:
        """On the engine's thread."""
        for each in asked:
            batcher.submit(each.job)

    gate = Asked("gate", 2)
    gate.job.done = at_once
    gate.job.stop.set()
    batcher.submit(gate.job)


class Chain:
    """As soon as one is done the next is asked, while `wanted` says so."""

    def __init__(self, batcher: Batcher, again: Callable[[int], Asked], wanted: Callable[[], bool]) -> None:
        self._batcher, self._again, self._wanted = batcher, again, wanted
        self.asked = [again(0)]
        self._over = threading.Event()
        self._follow(self.asked[0])

    def _follow(self, each: Asked) -> None:
        done = each.job.done

        def ended(result: float | EngineError) -> None:
            done(result)
            if not self._wanted():
                self._over.set()
                return
            self.asked.append(self._again(len(self.asked)))
            self._follow(self.asked[-1])
            self._batcher.submit(self.asked[-1].job)

        each.job.done = ended

    def results(self) -> list[float | EngineError]:
        """Of all that were asked, when no more are."""
        assert self._over.wait(PATIENCE_S), "it does not end"
        return [each.result() for each in self.asked]


def ends(batcher: Batcher, asked: Asked, into: dict[str, int]) -> Asked:
    """Note the step in which a job ends."""
    done = asked.job.done

    def ended(result: float | EngineError) -> None:
        into[asked.job.request.seat] = batcher.steps
        done(result)

    asked.job.done = ended
    return asked


@pytest.mark.parametrize("longs", [1, 2])
def test_a_long_prompt_is_read_though_short_ones_keep_coming(watched: Batcher, longs: int) -> None:
    at: dict[str, int] = {}
    waiting = [Asked(f"long{i}", 160) for i in range(longs)]
    for i, each in enumerate(waiting):  # nothing to share between them
        each.job.ids = [2, *(400 + (i * 7 + k) % 200 for k in range(159))]
        ends(watched, each, at)
    # 16 tokens fill a step, and share no prefix that is worth copying. 300 of them would make the long ones wait.
    shorts = Chain(watched, lambda i: ends(watched, Asked(f"short{i}", 16), at), lambda: len(shorts.asked) < 300)
    together(watched, shorts.asked[0], *waiting)
    for result in [*shorts.results(), *(each.result() for each in waiting)]:
        assert 0 < float(result) < 1  # type: ignore[arg-type]
    chunks = 10
    last = max(at[each.job.request.seat] for each in waiting)
    assert (chunks - 1) * (PASSED_MAX + 1) < last <= chunks * (PASSED_MAX + 1)
    steps = [at[f"short{i}"] for i in range(300)]
    assert max(b - a for a, b in pairwise(steps)) <= 1 + 2 * longs, "the short ones hardly wait"


def longest_wait(used: list[object], lora: object) -> int:
    """Steps of others between two of a LoRA's, or before its first."""
    own = [-1, *(i for i, u in enumerate(used) if u is lora)]
    return max(b - a - 1 for a, b in pairwise(own))


def test_loras_take_turns_however_their_chats_come_and_go(
    watched: Batcher, tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    base = tinies["gemma3"].gguf
    loras = [tinylora.write(tmp_path / f"{i}.gguf", base, seed=i, strength=0.1) for i in range(3)]
    # Of one LoRA chats of several steps keep coming, of another chats of one step; of the third there is one thing.
    one = Asked("one", 500, lora=loras[2])
    wanted = lambda: not one._ended.is_set()  # noqa: E731
    busy = Chain(watched, lambda i: Asked(f"busy{i}", 100, lora=loras[0]), wanted)
    quick = Chain(watched, lambda i: Asked(f"quick{i}", 16, lora=loras[1]), wanted)
    # A second chat of the first LoRA behind the others: a place in the row of jobs is no place in the order of turns.
    together(watched, busy.asked[0], quick.asked[0], one, Asked("busy", 40, lora=loras[0]))
    for result in [one.result(), *busy.results(), *quick.results()]:
        assert 0 < float(result) < 1  # type: ignore[arg-type]
    context = watched._context
    assert isinstance(context, Watched)
    handles = [watched._loras.handle(lora) for lora in loras]
    used = [u for u in context.used if u in handles]
    assert [used.count(h) > TURN_STEPS for h in handles] == [True] * 3
    until = max(i for i, u in enumerate(used) if u is handles[2]) + 1
    assert [longest_wait(used[:until], h) <= 2 * TURN_STEPS for h in handles] == [True] * 3
    changes = sum(a is not b for a, b in pairwise(used[:until]))
    assert changes <= until / TURN_STEPS + 1, "turns are whole while all of them have work"


def test_a_chat_that_goes_on_does_not_pass_over_a_lora_that_waits(
    watched: Batcher, tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    base = tinies["gemma3"].gguf
    first, waits, later = (tinylora.write(tmp_path / f"{i}.gguf", base, seed=i, strength=0.1) for i in range(3))
    # The first LoRA's older chat ends in its turn; its other one stands behind the LoRA that waits.
    asked = [Asked("a", 16, lora=first), Asked("b", 500, lora=waits), Asked("c", 500, lora=first),
             Asked("d", 500, lora=later)]  # fmt: skip
    together(watched, *asked)
    for each in asked:
        assert 0 < float(each.result()) < 1  # type: ignore[arg-type]
    context = watched._context
    assert isinstance(context, Watched)
    handles = [watched._loras.handle(lora) for lora in (first, waits, later)]
    began = [next(i for i, u in enumerate(context.used) if u is handle) for handle in handles]
    assert began == sorted(began)
