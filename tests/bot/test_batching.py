"""bot/batching.py: whatever goes wrong with one job, every job is told how it ended, and the thread lives on."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinylora
import tinymodel

from bot import config
from bot.batching import Batcher, Job
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
