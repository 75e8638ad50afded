"""bot/batching.py: whatever goes wrong with one job, every job is told how it ended, and the thread lives on."""

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp as lc
import pytest
import tinylora
import tinymodel

from bot import config
from bot.batching import ALONE_TOKENS, PASSED_MAX, TURN_S, TURN_STEPS, TYPING_STEP_S, Batcher, Job, Lines
from bot.engine import End, Request, Voice
from bot.errors import EngineError
from bot.llama import CacheFull, Context, Model, log_probs
from bot.looping import kept, looping
from bot.loras import Loras
from bot.models import Served
from bot.persona import Sampling
from bot.prompt import FORMATS
from bot.seats import HEADER_MAX, Seats
from bot.spill import Spill

GEMMA = FORMATS["gemma"]
SETTINGS = config.Engine(n_ctx=512, kv_tokens=1024, n_seq_max=4, n_batch=64, n_threads=1, n_gpu_layers=0)
PATIENCE_S = 120.0
"""Of a machine that does much else; nothing waits as long unless it waits for ever."""
WILD = Sampling(max_tokens=60, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)


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


class Cramped(Model):
    """Has no memory to spare while a LoRA is loaded."""

    def load_lora(self, path: Path, base_sha256: str | None = None) -> Any:
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + 16_000_000, before[1]))
        try:
            return super().load_lora(path, base_sha256)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded on Linux only")
def test_a_lora_that_finds_no_memory_is_one_jobs_error(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> None:
    base = tinies["gemma3"].gguf
    small, large = (tinylora.write(tmp_path / f"{r}.gguf", base, rank=r) for r in (4, 40_000))
    model = Cramped(base, 0)
    with batching(Context(model, 1024, 4, 64, 1)) as batcher:
        asked = [Asked("bare", 200), Asked("a", 20, lora=large), Asked("b", 20, lora=small), Asked("c", 20, lora=large)]
        together(batcher, *asked)
        told = [each.result() for each in asked]
        assert [isinstance(t, float) for t in told] == [True, False, True, False]
        for t in (told[1], told[3]):
            assert isinstance(t, EngineError)
            assert "LoRA" in str(t)
            assert "40000.gguf' does not load on 'model.gguf'" in str(t)
        assert (small in batcher._loras, large in batcher._loras) == (True, False)
    model.close()


@pytest.mark.parametrize("answers", [False, True])
def test_logits_that_are_no_numbers_are_one_jobs_error(
    served: Served, tinies: dict[str, tinymodel.Tiny], tmp_path: Path, answers: bool
) -> None:
    lora = tinylora.write(tmp_path / "lora.gguf", tinies["gemma3"].gguf, strength=float("nan"))
    good = Asked("a", 20)
    served.batcher.submit(good.job)
    before = good.result()
    for _ in range(2):
        asked = Asked("a", 20, lora=lora, answers=answers)
        served.batcher.submit(asked.job)
        assert "'model.gguf' gives no numbers: the weights of its LoRA" in str(asked.result())
        assert served.seats["a"].tokens == []
    good = Asked("b", 20)
    served.batcher.submit(good.job)
    assert good.result() == pytest.approx(before, rel=1e-3)


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
    assert [str(o) for o in outcomes if not isinstance(o, float)] == [
        "the engine failed (MemoryError); the log says where"
    ] * 2
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
    changed = {"n_ctx": 4096, "kv_tokens": 8192, "n_batch": 4096}
    served = Served(tinies["gemma3"].gguf, SETTINGS.model_copy(update=changed), "")
    served.batcher._prompt_rate = 1e6  # all of it in one step, since two are there
    asked, other = Asked("a", 4000), Asked("b", 8)
    together(served.batcher, asked, other)
    until = time.monotonic() + PATIENCE_S
    while served.batcher.steps == 0:
        assert time.monotonic() < until
        time.sleep(0.001)
    served.close()
    assert str(asked.result()) == "the engine is closed"


@pytest.mark.parametrize("answers", [False, True])
def test_a_prompt_that_takes_too_long_to_read_is_given_up(model: Model, answers: bool) -> None:
    context = Timed(model)
    with batching(context, n_seq_max=8, deadline_s=0.5, clock=lambda: context.now) as batcher:
        asked = Asked("a", 500, answers=answers)
        batcher.submit(asked.job)
        assert "deadline_s = 0.5" in str(asked.result())
        assert 0 < batcher.evaluated < 500


def test_waiting_counts_to_the_time_an_answer_may_take(model: Model) -> None:
    context = Timed(model)
    with batching(context, n_parallel=1, n_seq_max=8, deadline_s=1.0, clock=lambda: context.now) as batcher:
        asked = [Asked("a", 300), Asked("a", 40), Asked("b", 300), Asked("c", 40)]
        asked[2].job.ids = [2, *(500 + i % 90 for i in range(299))]  # nothing to share
        together(batcher, *asked)
        told = [each.result() for each in asked]
        # The second is in the cache already; the third has a quarter of a second left for three.
        assert [isinstance(t, float) for t in told] == [True, True, False, False]
        assert "deadline_s = 1" in str(told[3])
        assert batcher.evaluated < 300 + 40 + 300


def test_a_prompt_and_its_answer_stay_within_the_window(served: Served) -> None:
    with pytest.raises(EngineError, match=r"a prompt of 512 tokens is longer than a window of 512 \(\[engine\] n_ctx"):
        served.batcher.submit(Asked("a", 512).job)
    asked = Asked("a", 508, answers=True, max_tokens=100)
    served.batcher.submit(asked.job)
    assert asked.result() == 0.0
    assert len(asked.job.ids) + len(asked.job.made) == 512
    assert asked.job.why is End.LENGTH
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
    with pytest.raises(EngineError, match=f"token {token} is outside the vocabulary of .*'model.gguf'"):
        served.batcher.submit(asked.job)
    assert 0 < float(other.result()) < 1  # type: ignore[arg-type]
    looks(served)


class Faulty(Context):
    """Decodes what `change` makes of a step, asked in the engine's thread."""

    change: Callable[[list[tuple[int, int, int, bool]]], list[tuple[int, int, int, bool]]] = staticmethod(lambda r: r)

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]], stop: Callable[[], bool] | None = None) -> bool:
        return super().decode(self.change(list(tokens)), stop)


@contextlib.contextmanager
def batching(
    context: Context, *, n_parallel: int = 8, n_ctx: int = 512, n_seq_max: int = 4, deadline_s: float = 600.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Batcher]:  # fmt: skip
    """A thread over a context, with sequences and LoRAs of its own; all is freed in the end."""
    loras = Loras(context.model, context, "", 10**9)
    seats = Seats(context, n_seq_max, Spill(0))
    batcher = Batcher(
        context.model, context, seats, loras, n_ctx=n_ctx, n_parallel=n_parallel, deadline_s=deadline_s, clock=clock
    )
    yield batcher
    batcher.close()
    loras.close()
    context.close()


@pytest.fixture(scope="module")
def model(tinies: dict[str, tinymodel.Tiny]) -> Iterator[Model]:
    made = Model(tinies["gemma3"].gguf, 0)
    yield made
    made.close()


def test_a_decode_that_fails_ends_who_is_in_it_and_nobody_else(model: Model) -> None:
    context = Faulty(model, 1024, 4, 64, 1)
    with batching(context, n_parallel=2) as batcher:
        asked = [Asked(name, 20) for name in "abcd"]
        failed: list[int] = []

        def once(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
            if failed:
                return rows
            failed.extend({seq for _, seq, _, _ in rows})
            return [(10**6, *rest) for _, *rest in rows]  # llama.cpp refuses it

        context.change = once  # type: ignore[method-assign,assignment]
        together(batcher, *asked)
        told = [each.result() for each in asked]
        assert [str(t) for t in told[:2]] == [str(told[0])] * 2
        assert "llama_decode failed with -1" in str(told[0])
        assert all(0 < float(t) < 1 for t in told[2:])  # type: ignore[arg-type]
        again = Asked("a", 20)
        batcher.submit(again.job)
        assert again.result() == pytest.approx(float(told[2]), rel=1e-3)  # type: ignore[arg-type]


def test_who_no_longer_waits_for_a_scene_to_be_forgotten_harms_nobody(model: Model) -> None:
    context = Faulty(model, 1024, 4, 64, 1)
    with batching(context, n_parallel=1) as batcher:
        gone, first, last, waits = Asked("gone", 20), Asked("first", 200), Asked("last", 200), Asked("waits", 20)
        batcher.submit(gone.job)
        gone.result()
        closing = threading.Thread(target=batcher.close)
        steps = itertools.count()

        def cancelled(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
            """On the engine's thread, so before it hears of it."""
            step = next(steps)
            if step == 4:
                batcher.submit(waits.job)
            if step in (0, 4):
                assert batcher.forget(lambda name: name == "gone").cancel()
            if step == 4:
                closing.start()
                while not batcher._closing.is_set():
                    time.sleep(0.001)
            return rows

        context.change = cancelled  # type: ignore[method-assign,assignment]
        last.job.ids = [2, *(500 + i % 90 for i in range(199))]  # nothing to share
        together(batcher, first, last)
        assert 0 < float(first.result()) < 1  # type: ignore[arg-type]
        assert "gone" not in batcher._seats, "it is forgotten all the same"
        assert [str(each.result()) for each in (last, waits)] == ["the engine is closed"] * 2
        closing.join()


def test_what_waited_when_its_scene_was_forgotten_leaves_nothing(model: Model) -> None:
    context = Faulty(model, 1024, 4, 64, 1)
    with batching(context, n_parallel=1) as batcher:
        asked = [Asked("busy", 20), Asked("gone", 20), Asked("gone", 30), Asked("stays", 20)]
        forgotten = []

        def once(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
            """In the first step, when the others wait."""
            if not forgotten:
                forgotten.append(batcher.forget(lambda name: name == "gone"))
            return rows

        context.change = once  # type: ignore[method-assign,assignment]
        together(batcher, *asked)
        assert all(0 < float(each.result()) < 1 for each in asked)  # type: ignore[arg-type]
        assert [name in batcher._seats for name in ("busy", "gone", "stays")] == [True, False, True]
        later = Asked("gone", 20)
        batcher.submit(later.job)
        later.result()
        assert "gone" in batcher._seats, "what is asked later may stay"


def test_what_fails_while_a_job_is_ended_or_a_scene_forgotten_is_told_and_keeps_nobody_waiting(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Faulty(model, 1024, 4, 64, 1)
    with batching(context) as batcher:

        def poor(_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as failing:
            failing.setattr(batcher._seats, "clear", poor)
            context.change = lambda rows: [(10**6, *rest) for _, *rest in rows]  # type: ignore[method-assign]
            asked = Asked("a", 20)
            batcher.submit(asked.job)
            assert "llama_decode failed" in str(asked.result())
        del context.change
        again = Asked("a", 30)
        batcher.submit(again.job)
        assert 0 < float(again.result()) < 1, "its sequence is nobody's any more"  # type: ignore[arg-type]
        beside = Asked("b", 200)
        batcher.submit(beside.job)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            batcher.forget(lambda _: bool(1 / 0)).result(PATIENCE_S)
        assert 0 < float(beside.result()) < 1  # type: ignore[arg-type]


def test_a_cache_that_is_full_with_nobody_idle_ends_the_longest_alone(model: Model) -> None:
    context = Faulty(model, 1024, 4, 64, 1)
    with batching(context) as batcher:
        long, short = Asked("long", 60, answers=True), Asked("short", 20, answers=True)

        def full(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
            if len({seq for _, seq, _, _ in rows}) > 1:
                raise CacheFull("the KV cache of 1024 tokens is full")
            return rows

        context.change = full  # type: ignore[method-assign,assignment]
        together(batcher, long, short)
        assert "is full" in str(long.result())
        assert short.result() == 0.0


def test_who_could_not_all_fit_begins_when_there_is_room(model: Model) -> None:
    context = Faulty(model, 512, 4, 64, 1)
    with batching(context) as batcher:
        asked = [Asked(name, 250 + number, answers=True, max_tokens=100) for number, name in enumerate("abc")]
        for number, each in enumerate(asked):  # nothing to share between them
            each.job.ids = [2, *(300 + (number * 37 + k) % 300 for k in range(249 + number))]
        together(batcher, *asked)
        assert [each.result() for each in asked] == [0.0] * 3


def test_no_more_are_under_way_than_may_be(model: Model) -> None:
    context, most = Faulty(model, 1024, 4, 64, 1), []

    def count(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
        most.append(len({seq for _, seq, _, _ in rows}))
        return rows

    context.change = count  # type: ignore[method-assign,assignment]
    with batching(context, n_parallel=2) as batcher:
        asked = [Asked(name, 20, answers=True) for name in "abcd"]
        together(batcher, *asked)
        assert [each.result() for each in asked] == [0.0] * 4
    assert max(most) == 2


def test_prompts_take_a_step_no_longer_than_typists_may_wait(model: Model) -> None:
    context, rows_of = Faulty(model, 2048, 4, 512, 1), []

    def count(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
        rows_of.append(len(rows))
        return rows

    context.change = count  # type: ignore[method-assign,assignment]
    with batching(context, clock=lambda: sum(rows_of) / 120) as batcher:
        # 30 tokens in a quarter of a second, and in a tenth 12, of which 16 are made.
        batcher._prompt_rate = 120.0
        typing, reading = Asked("typing", 8, answers=True, max_tokens=60), Asked("reading", 200)
        typing.job.request = replace(typing.job.request, sampling=WILD)
        together(batcher, typing, reading)
        assert 0 < float(reading.result()) < 1  # type: ignore[arg-type]
        assert typing.result() == 0.0
        assert len(typing.job.made) > 10, "it typed all the while"
    assert rows_of[:2] == [30, 17], "nobody types in the first step"
    assert max(rows_of[1:]) == 17


def test_a_pace_measured_while_the_machine_was_busy_rises_again(model: Model) -> None:
    context = Timed(model)
    with batching(context, n_seq_max=8, clock=lambda: context.now) as batcher:
        batcher._prompt_rate = 20.0
        asked = [Asked(f"a{i}", 500) for i in range(3)]
        for i, each in enumerate(asked):  # nothing to share between them
            each.job.ids = [2, *(400 + (i * 7 + k) % 200 for k in range(499))]
        together(batcher, *asked)
        assert all(0 < float(each.result()) < 1 for each in asked)  # type: ignore[arg-type]
        assert batcher._prompt_rate == pytest.approx(400, rel=0.1)
        assert batcher.steps < 40, "1,500 tokens at 16 in a step are 94"


@pytest.mark.parametrize("rate", [1.0, 1e6])
def test_a_prompt_that_is_alone_is_read_in_the_same_steps_at_any_pace(model: Model, rate: float) -> None:
    context, rows_of = Faulty(model, 1024, 4, 512, 1), []

    def count(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
        rows_of.append(len(rows))
        return rows

    context.change = count  # type: ignore[method-assign,assignment]
    with batching(context) as batcher:
        batcher._prompt_rate = rate
        asked = Asked("a", 300)
        batcher.submit(asked.job)
        assert 0 < float(asked.result()) < 1  # type: ignore[arg-type]
    assert rows_of == [ALONE_TOKENS, ALONE_TOKENS, 300 - 2 * ALONE_TOKENS]


# -- stopping -------------------------------------------------------------------------------------


def test_an_answer_that_is_stopped_is_out_before_the_next_step(model: Model) -> None:
    context, steps = Faulty(model, 1024, 4, 64, 1), []
    with batching(context) as batcher:
        asked, other = (Asked(name, 8, answers=True, max_tokens=60) for name in "ab")
        for each in (asked, other):
            each.job.request = replace(each.job.request, sampling=WILD)

        def stopped_in_the_fifth(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
            steps.append({seq for _, seq, _, _ in rows})
            if len(steps) == 5:
                asked.job.stop.set()
            return rows

        context.change = stopped_in_the_fifth  # type: ignore[method-assign,assignment]
        together(batcher, asked, other)
        assert asked.result() == 1.0
        assert other.result() == 0.0
    assert [len(step) for step in steps[:6]] == [2, 2, 2, 2, 2, 1]
    assert len(asked.job.made) == 5
    assert asked.job.why is None
    assert len(other.job.made) > 10


def test_who_is_stopped_while_it_waits_is_never_begun(model: Model) -> None:
    context = Faulty(model, 1024, 4, 64, 1)
    with batching(context, n_parallel=1) as batcher:
        first, second = Asked("a", 20), Asked("b", 40)

        def stop(rows: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
            second.job.stop.set()
            return rows

        context.change = stop  # type: ignore[method-assign,assignment]
        together(batcher, first, second)
        assert (second.result(), first.result() != 1.0) == (1.0, True)
        assert batcher.evaluated == 20


class Asking(Context):
    """Stops jobs when llama.cpp has asked a number of times in one decode whether it is to go on."""

    after, asks, stops = 10**9, 0, staticmethod(lambda: None)

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]], stop: Callable[[], bool] | None = None) -> bool:
        def asked() -> bool:
            assert stop is not None
            self.asks += 1
            if self.asks == self.after:
                self.stops()
            return stop()

        return super().decode(tokens, None if stop is None else asked)


_LONG = (("a", 300), ("b", 200))


def alone(model: Model, ids: Sequence[int]) -> float:
    """P(silent) behind a prompt in a fresh context."""
    context = Context(model, 512, 1, 512, 1)
    context.decode([(t, 0, i, i == len(ids) - 1) for i, t in enumerate(ids)])
    found = math.exp(log_probs(context.logits()[0], [model.tokens(GEMMA.end, control=True)[0]])[0])
    context.close()
    return found


@pytest.mark.parametrize("kind", ["gemma3", "swa", "mamba", "lfm2", "qwen35", "falcon-h1"])
@pytest.mark.parametrize("stopped", ["ab", "a"])
def test_a_decode_is_broken_off_when_nobody_wants_it_any_more(
    tinies: dict[str, tinymodel.Tiny], forgetful: dict[str, tinymodel.Tiny], kind: str, stopped: str
) -> None:
    """And only then; what was broken off leaves nothing behind, in layers with a state neither, and takes nothing away.

    A state cannot be cut: it goes back to its mark, 16 tokens before the end of what was read before.
    """
    model = Model({**tinies, **forgetful}[kind].gguf, 0)
    prompts = {name: [2, *(300 + (of * 37 + i * 7) % 300 for i in range(n))] for of, (name, n) in enumerate(_LONG)}
    expected = {name: alone(model, ids) for name, ids in prompts.items()}
    context = Asking(model, 1024, 4, 1024, 1)
    with batching(context, n_ctx=1024) as batcher:
        batcher._prompt_rate = 1e6  # all in one step

        def asked(name: str, n: int | None = None) -> Asked:
            made = Asked(name, 2)
            made.job.ids = prompts[name][:n]
            return made

        for name in prompts:
            begun = asked(name, 60)
            batcher.submit(begun.job)
            begun.result()
        whole, context.asks, context.after = context.asks // 2, 0, 5
        both = [asked(name) for name in prompts]
        context.stops = lambda: [each.job.stop.set() for each in both if each.job.request.seat in stopped]  # type: ignore[assignment]
        together(batcher, *both)
        told = [each.result() for each in both]
        if stopped == "ab":
            assert told == [1.0, 1.0]
            assert context.asks < whole / 2
            held = 60 - (HEADER_MAX if context.recurrent else 0)
            assert [batcher._seats[name].tokens for name in "ab"] == [prompts[name][:held] for name in "ab"]
        else:
            assert told[1] == pytest.approx(expected["b"], rel=0.02)
            assert context.asks >= whole, "it went on for the other one"
        context.after = 10**9
        for name in prompts:
            again, before = asked(name), batcher.evaluated
            batcher.submit(again.job)
            assert again.result() == pytest.approx(expected[name], rel=0.02)
            if stopped == "ab":
                assert batcher.evaluated - before == len(prompts[name]) - held, "the rest alone"
    model.close()


@pytest.mark.parametrize("kind", ["gemma3", "swa", "mamba", "lfm2", "qwen35", "falcon-h1"])
def test_wherever_a_decode_is_broken_off_it_leaves_what_was_held_before(
    tinies: dict[str, tinymodel.Tiny], forgetful: dict[str, tinymodel.Tiny], kind: str
) -> None:
    """Where each has cells of its own, llama.cpp evaluates unequal prompts in several ubatches; those before it stay.

    A state goes back to the mark of the prompt before, or to its own, when that much was read.
    """
    model = Model({**tinies, **forgetful}[kind].gguf, 0)
    prompts = {name: [2, *(300 + (of * 37 + i * 7) % 300 for i in range(n))] for of, (name, n) in enumerate(_LONG)}
    expected = {name: alone(model, ids) for name, ids in prompts.items()}
    places = 0
    for after in itertools.count(2, 14):
        context = Asking(model, 4096, 4, 1024, 1, kv_unified=False)
        with batching(context, n_ctx=1024) as batcher:
            batcher._prompt_rate = 1e6  # all in one step
            begun, both, again = ([Asked(name, 2) for name in prompts] for _ in range(3))
            for each in (*begun, *both, *again):
                each.job.ids = prompts[each.job.request.seat][: 60 if each in begun else None]
            together(batcher, *begun)
            assert all(0 < float(each.result()) < 1 for each in begun)  # type: ignore[arg-type]
            context.asks, context.after = 0, after
            context.stops = lambda both=both: [each.job.stop.set() for each in both]  # type: ignore[assignment,misc]
            together(batcher, *both)
            told = [each.result() for each in both]
            if told != [1.0, 1.0]:
                break
            seats = [batcher._seats[name] for name in prompts]
            held = [len(seat.tokens) for seat in seats]
            marked = [[60 - HEADER_MAX] * 2, [len(ids) - HEADER_MAX for ids in prompts.values()]]
            assert held in (marked if context.recurrent else [[60, 60]])
            assert [seat.tokens for seat in seats] == [prompts[seat.name][: len(seat.tokens)] for seat in seats]
            last = [int(lc.llama_memory_seq_pos_max(context._memory, seat.number)) for seat in seats]
            assert last == [n - 1 for n in held]
            before = batcher.evaluated
            together(batcher, *again)
            for each in again:
                assert each.result() == pytest.approx(expected[each.job.request.seat], rel=0.02)
            assert batcher.evaluated - before == sum(map(len, prompts.values())) - sum(held), "the rest alone"
            places += 1
    assert places >= 5
    model.close()


@pytest.mark.parametrize("kind", ["gemma3", "swa"])
def test_of_a_prompt_that_is_broken_off_what_its_earlier_steps_read_stays(
    tinies: dict[str, tinymodel.Tiny], forgetful: dict[str, tinymodel.Tiny], kind: str
) -> None:
    model = Model({**tinies, **forgetful}[kind].gguf, 0)
    context = Asking(model, 1024, 4, 64, 1)
    with batching(context) as batcher:
        asked, again = Asked("a", 300), Asked("a", 300)

        def in_the_third() -> None:
            if batcher.steps == 3:
                asked.job.stop.set()
            context.after = context.asks + 1

        context.after, context.stops = 1, in_the_third  # type: ignore[assignment]
        batcher.submit(asked.job)
        assert asked.result() == 1.0
        assert batcher._seats["a"].tokens == list(asked.job.ids[:128])
        batcher.submit(again.job)
        assert again.result() == pytest.approx(alone(model, again.job.ids), rel=0.02)
        assert batcher.evaluated == 192 + 300 - 128
    model.close()


@pytest.mark.parametrize("kind", ["mamba", "lfm2", "qwen35"])
def test_a_state_is_put_back_into_the_prompt_it_was_marked_in(forgetful: dict[str, tinymodel.Tiny], kind: str) -> None:
    model = Model(forgetful[kind].gguf, 0)
    one, other = ([2, *(300 + (of * 37 + i * 7) % 300 for i in range(59))] for of in range(2))
    with batching(Context(model, 512, 4, 64, 1)) as batcher:
        for ids, evaluated in ((one, 60), (other, 60), ([*other[:46], 300], 3), ([*other[:46], 301], 3)):
            asked, before = Asked("a", 2), batcher.evaluated
            asked.job.ids = ids
            batcher.submit(asked.job)
            assert asked.result() == pytest.approx(alone(model, ids), rel=0.02)
            assert batcher.evaluated - before == evaluated, "all, or from the mark 16 tokens before the end on"
    model.close()


# -- what is said ---------------------------------------------------------------------------------


def test_bubbles_are_told_as_their_lines_end_and_characters_whole() -> None:
    told: list[str] = []
    lines, said = Lines(told.append), "在吗\n\n  走不走 😀\n好".encode()
    for number, byte in enumerate(said):
        lines.feed(bytes([byte]))
        if number == len("在吗\n".encode()) - 1:
            assert told == ["在吗"]
    assert told == ["在吗", "走不走 😀"]
    lines.end()
    assert told == ["在吗", "走不走 😀", "好"]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_an_answer_has_as_many_tokens_as_it_may(served: Served, most: int) -> None:
    asked, told = Asked("a", 20, answers=True, max_tokens=most), list[str]()
    asked.job.put = told.append
    served.batcher.submit(asked.job)
    assert asked.result() == 0.0
    assert len(asked.job.made) == most
    assert asked.job.why is End.LENGTH
    text = b"".join(map(served.model.piece, asked.job.made)).decode("utf-8", "ignore")
    assert told == [line.strip() for line in text.split("\n") if line.strip()], "its last words, too"


def test_an_answer_ends_at_an_end_of_turn_which_is_not_said(served: Served) -> None:
    def asked() -> tuple[Asked, list[str]]:
        made, told = Asked("a", 20, answers=True), list[str]()
        made.job.request, made.job.put = replace(made.job.request, sampling=WILD), told.append
        served.batcher.submit(made.job)
        assert made.result() == 0.0
        return made, told

    words = asked()[0].job.made
    at = next(i for i, token in enumerate(words) if i > 4 and token not in words[:i])
    served.model.ends = frozenset({words[at]})
    ended, told = asked()
    assert ended.job.made == words[: at + 1]
    assert ended.job.why is End.TURN
    text = b"".join(map(served.model.piece, words[:at])).decode("utf-8", "ignore")
    assert told == [line.strip() for line in text.split("\n") if line.strip()]


def test_of_a_loop_the_half_line_is_not_said_unless_it_is_a_row(served: Served) -> None:
    rows = set()
    for n in range(20, 44, 2):
        asked, told = Asked("a", n, answers=True, max_tokens=400), list[str]()
        asked.job.put = told.append
        served.batcher.submit(asked.job)
        assert asked.result() == 0.0
        assert looping(asked.job.made, served.batcher._text)
        assert asked.job.why is End.LOOP
        text = b"".join(map(served.model.piece, asked.job.made[:-1])).decode("utf-8", "ignore")
        whole, _, half = text.rpartition("\n")
        assert told == [line.strip() for line in (*whole.split("\n"), kept(half)) if line.strip()]
        rows.add(bool(kept(half)))
    assert rows == {True, False}, "both were met"


# -- turns ----------------------------------------------------------------------------------------


class Watched(Context):
    """Remembers the LoRA of each step."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, 4096, 12, 16, 1, n_outputs=8)  # 16 tokens in a step, whatever the clock says
        self.used: list[object] = []

    def use(self, lora: Any) -> None:
        self.used.append(lora)
        super().use(lora)


@pytest.fixture
def watched(tinies: dict[str, tinymodel.Tiny]) -> Iterator[Batcher]:
    model = Model(tinies["gemma3"].gguf, 0)
    context = Watched(model)
    loras = Loras(model, context, "", 10**9)
    batcher = Batcher(
        model, context, Seats(context, 12, Spill(0)), loras,
        n_ctx=512, n_parallel=8, deadline_s=600.0, clock=itertools.count(step=0.001).__next__,
    )  # fmt: skip
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


class Timed(Context):
    """Reads 400 tokens a second by a clock of its own, and remembers when each sequence was in a step."""

    def __init__(self, model: Model, n_tokens: int = 4096) -> None:
        super().__init__(model, n_tokens, 8, 512, 1, n_outputs=8)
        self.now = 0.0
        self.times: dict[int, list[float]] = {}

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]], stop: Callable[[], bool] | None = None) -> bool:
        self.now += max(0.01, len(tokens) / 400)
        for seq in {seq for _, seq, _, _ in tokens}:
            self.times.setdefault(seq, []).append(self.now)
        return super().decode(tokens, stop)


@pytest.mark.parametrize("same", [True, False])
def test_who_types_hardly_waits_for_prompts_of_another_lora(
    tinies: dict[str, tinymodel.Tiny], tmp_path: Path, same: bool
) -> None:
    base = tinies["gemma3"].gguf
    model, loras = Model(base, 0), [tinylora.write(tmp_path / f"{i}.gguf", base, seed=i) for i in range(2)]
    model.ends = frozenset()
    context = Timed(model)
    with batching(context, n_ctx=1024, n_seq_max=8, clock=lambda: context.now) as batcher:
        typing = Asked("typing", 8, lora=loras[0], answers=True, max_tokens=1000)
        typing.job.request = replace(typing.job.request, sampling=WILD.model_copy(update={"max_tokens": 1000}))
        reading = [Asked(f"reading{i}", 900, lora=loras[0 if same else 1]) for i in range(3)]
        for i, each in enumerate(reading):  # nothing to share between them
            each.job.ids = [2, *(400 + (i * 7 + k) % 200 for k in range(899))]
        together(batcher, typing, *reading)
        assert all(0 < float(each.result()) < 1 for each in reading)  # type: ignore[arg-type]
        assert not typing._ended.is_set()
        assert typing.job.seat is not None
        times = list(context.times[typing.job.seat.number])
        typing.job.stop.set()
    model.close()
    assert times[-1] > 3
    assert max(b - a for a, b in pairwise(times)) < TYPING_STEP_S + (0.02 if same else TURN_S + TYPING_STEP_S)


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
