"""bot/llama.py on tiny models: vocabulary, LoRAs, scoring."""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np
import psutil
import pytest
import tinylora
import tinymodel
from loguru import logger
from nasty import TEXTS

from bot.checksum import sha256
from bot.config import Engine
from bot.errors import EngineError
from bot.llama import Context, Model, Sampler, build, log_probs
from bot.persona import Sampling
from bot.prompt import clean
from bot.scorer import Scorer

ARCHITECTURES = ["gemma3", "qwen3"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_read_back_as_the_text_they_were_made_of(models: dict[str, Model], architecture: str) -> None:
    model, swept = models[architecture], 0
    for text in map(clean, TEXTS):
        ids = model.tokens(text, control=False)
        assert b"".join(model.piece(i) for i in ids).decode("utf-8") == text
        assert not set(ids) & set(model.control_ids)
        swept += 1
    assert swept == len(TEXTS) >= 100


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_control_tokens_are_parsed_where_we_write_them(models: dict[str, Model], architecture: str) -> None:
    model = models[architecture]
    end = model.format.end
    assert model.tokens(end, control=True) == [model.end_id]
    assert model.end_id in model.end_ids
    assert model.end_id not in model.tokens(end, control=False)
    assert model.piece(model.end_id) == b""
    assert model.is_control(end)
    assert not model.is_control("嗨")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loading_ends_when_it_is_told_to_stop(tinies: dict[str, tinymodel.Tiny], architecture: str) -> None:
    asked: list[bool] = []

    def third() -> bool:
        asked.append(len(asked) >= 2)
        return asked[-1]

    with pytest.raises(EngineError, match=r"loading model 'model.gguf' was stopped"):
        Model(tinies[architecture].gguf, 0, stop=third)
    assert asked[:3] == [False, False, True]
    model = Model(tinies[architecture].gguf, 0, stop=lambda: False)
    assert model.architecture == architecture
    model.close()


def warned(load: Callable[[], None]) -> list[str]:
    found: list[str] = []
    sink = logger.add(lambda message: found.append(message.record["message"]), level="WARNING")
    load()
    logger.remove(sink)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_ordinary_load_warns_of_nothing(tinies: dict[str, tinymodel.Tiny], architecture: str) -> None:
    def load() -> None:
        model = Model.of(tinies[architecture].gguf, Engine())
        Context(model, 8192, 4, 32, 1).close()  # more cells than it knows positions: they are of many scenes
        model.close()

    assert warned(load) == []


@pytest.mark.skipif(build().gpu, reason="layers go to the GPU here")
def test_layers_for_a_gpu_that_is_not_there_are_told(tinies: dict[str, tinymodel.Tiny]) -> None:
    def load() -> None:
        Model.of(tinies["gemma3"].gguf, Engine(n_gpu_layers=5)).close()

    (told,) = warned(load)
    assert told.startswith("[engine] n_gpu_layers = 5, and this llama.cpp finds no GPU")


_LOCKS = """
import ctypes, os, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:  # CAP_IPC_LOCK, which knows no limit
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~(1 << 14)
    assert libc.capset(header, data) == 0
from bot.llama import Context, Model
model = Model(Path(sys.argv[1]), 0, load_mode="mmap_mlock")
Context(model, 64, 1, 32, 1).close()
model.close()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and capabilities as Linux has them")
def test_weights_that_cannot_be_locked_are_told_once(tinies: dict[str, tinymodel.Tiny]) -> None:
    command = [sys.executable, "-c", _LOCKS, str(tinies["gemma3"].gguf)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert "WARNING" in line
    assert "llama.cpp warns of model.gguf: warning: failed to mlock" in line


def test_a_token_of_many_bytes_reads_whole(tmp_path: Path) -> None:
    model = Model(tinymodel.build(tmp_path, "qwen3", texts=[*tinymodel.TEXTS, "哈" * 400]).gguf, 0)
    lengths = [len(model.piece(i)) for i in range(model.n_vocab) if i not in model.control_ids]
    assert min(lengths) > 0
    assert max(lengths) > 256
    model.close()


_CLOSES = """
import sys, threading, time
from pathlib import Path
from bot.errors import EngineError
from bot.llama import Model
model, found = Model(Path(sys.argv[1]), 0), []
begun = threading.Event()
def tokenize():
    begun.set()
    found.append(len(model.tokens("困死我了" * 200_000, control=True)))
asking = threading.Thread(target=tokenize)
asking.start()
begun.wait()
while not model._tokenizing.locked():
    time.sleep(0.001)
started = time.monotonic()
model.close()
closed = time.monotonic() - started
asking.join()
ended = time.monotonic() - started
assert found and closed > ended / 2, f"freed after {closed} s while it was asked until {ended}"
try:
    model.tokens("在吗", control=False)
except EngineError as e:
    print(e)
"""


def test_a_vocabulary_is_not_freed_while_another_thread_asks_it(tinies: dict[str, tinymodel.Tiny]) -> None:
    command = [sys.executable, "-c", _CLOSES, str(tinies["gemma3"].gguf)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "the model 'model.gguf' is closed\n"), done.stderr


def test_the_format_comes_with_the_base(models: dict[str, Model]) -> None:
    assert {name: m.format.name for name, m in models.items()} == {"gemma3": "gemma", "qwen3": "qwen3"}
    assert {m.architecture for m in models.values()} == set(ARCHITECTURES)
    assert models["gemma3"].metadata("no.such.key") == ""


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.gguf' does not exist"):
        Model(tmp_path / "nowhere.gguf")


def test_a_truncated_base_is_named(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    half.write_bytes(tinies["gemma3"].gguf.read_bytes()[:100_000])
    with pytest.raises(EngineError, match=r"model 'half\.gguf' cannot be loaded"):
        Model(half)


# -- LoRAs ----------------------------------------------------------------------------------------


def test_a_lora_of_another_base_is_refused_by_both_hashes(
    models: dict[str, Model], tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    base = sha256(tinies["gemma3"].gguf)
    lora = tinylora.write(tmp_path / "other.gguf", tinies["gemma3"].gguf, names_base="f" * 64)
    with pytest.raises(EngineError, match=f"other.gguf.*{'f' * 12}…, not on .*{base[:12]}…"):
        models["gemma3"].load_lora(lora, base)
    own = tinylora.write(tmp_path / "own.gguf", tinies["gemma3"].gguf, names_base=base)
    models["gemma3"].free_lora(models["gemma3"].load_lora(own, base))


@pytest.mark.parametrize(
    ("names", "says", "checked", "warned"),
    [(None, None, True, 1), (None, "https://example.org/other-base", True, 1), (None, None, False, 0),
     ("its own", None, True, 0)],
)  # fmt: skip
def test_a_lora_that_names_no_base_is_warned_of(
    models: dict[str, Model], tinies: dict[str, tinymodel.Tiny], tmp_path: Path, names: str | None, says: str | None,
    checked: bool, warned: int,
) -> None:  # fmt: skip
    """Its tensors fit, and nothing in it tells another base of that shape but the words of a model card."""
    base, told = sha256(tinies["gemma3"].gguf), list[str]()
    lora = tinylora.write(
        tmp_path / "found.gguf", tinies["gemma3"].gguf, names_base=base if names else None, says_base=says
    )
    number = logger.add(told.append, level="WARNING", format="{message}")
    try:
        models["gemma3"].free_lora(models["gemma3"].load_lora(lora, base if checked else ""))
    finally:
        logger.remove(number)
    assert len([line for line in told if "found.gguf does not name the base" in line]) == warned
    if warned:
        assert f"Of its base it says {says or 'nothing'!r}, and model.gguf of itself 'Hf'" in told[0]


def test_a_lora_of_another_architecture_is_refused_with_llamas_reason(
    models: dict[str, Model], tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    lora = tinylora.write(tmp_path / "lora.gguf", tinies["gemma3"].gguf)
    with pytest.raises(EngineError, match="mismatch"):
        models["qwen3"].load_lora(lora)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no gguf at all"])
def test_a_broken_lora_is_refused(models: dict[str, Model], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lora.gguf").write_bytes(content)
    with pytest.raises(EngineError, match=r"lora\.gguf' does not load"):
        models["gemma3"].load_lora(tmp_path / "lora.gguf")


# -- scoring --------------------------------------------------------------------------------------


def full(model: Model, ids: list[int]) -> np.ndarray:  # type: ignore[type-arg]
    """Log-probabilities of every word at every position, token by token in a fresh context."""
    context = Context(model, 512, 1, 64, 1)
    rows = []
    for position, token in enumerate(ids):
        assert context.decode([(token, 0, position, True)])
        rows.append(log_probs(context.logits()[0], range(model.n_vocab)))
    context.close()
    return np.stack(rows)


def test_log_probabilities_sum_to_one() -> None:
    row = np.array([1.0, 2.0, -float("inf"), 50.0], dtype=np.float32)
    assert np.exp(log_probs(row, range(4))).sum() == pytest.approx(1)
    assert log_probs(row, [3])[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_scorer_agrees_with_decoding_token_by_token(
    models: dict[str, Model], tinies: dict[str, tinymodel.Tiny], architecture: str
) -> None:
    model = models[architecture]
    text = clean("".join(TEXTS))
    ids = ([model.bos] if model.bos is not None else []) + model.tokens(text, control=False)[:400]
    assert 300 < len(ids) < 500, "longer than one batch of the scorer"
    expected = full(model, ids)
    wanted = [(p, t) for p in (1, 2, 100, 255, 256, 257, len(ids)) for t in (model.end_id, 300)]
    scorer = Scorer(tinies[architecture].gguf, None, 512, 1)
    for _ in range(2):
        found = scorer.log_probs(ids, wanted)
        assert found == pytest.approx([expected[p - 1][t] for p, t in wanted], abs=0.02)
    assert len(scorer.log_probs(ids, [])) == 0
    scorer.close()


def test_a_scorer_that_cannot_have_its_lora_frees_its_model(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> None:
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    process, big = psutil.Process(), tinymodel.build(tmp_path / "big", "gemma3", hidden=256, layers=12).gguf
    for tried in range(6):
        with pytest.raises(EngineError, match="does not load"):
            Scorer(big, tmp_path / "lora.gguf", 2048, 1)
        if tried == 1:
            before = process.memory_info().rss
    assert process.memory_info().rss - before < 2 * big.stat().st_size


def test_the_scorer_scores_with_its_lora(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> None:
    tiny = tinies["gemma3"]
    lora = tinylora.write(tmp_path / "lora.gguf", tiny.gguf)
    bare, adapted = Scorer(tiny.gguf, None, 128, 1), Scorer(tiny.gguf, lora, 128, 1)
    ids = [2, *bare.model.tokens("早呀，今天吃什么？", control=False)]
    wanted = [(i, ids[i]) for i in range(1, len(ids))]
    assert abs(bare.log_probs(ids, wanted) - adapted.log_probs(ids, wanted)).max() > 0.1
    bare.close()
    adapted.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_continuations_are_scored_as_if_each_was_read_alone(
    tinies: dict[str, tinymodel.Tiny], architecture: str
) -> None:
    scorer = Scorer(tinies[architecture].gguf, None, 512, n_threads=1)
    context = scorer.model.tokens("今天吃什么" * 20, control=False)
    answers = [scorer.model.tokens(words, control=False) for words in ("吃面", "哈哈哈哈好耶", "吃面")]
    found = scorer.continuations(context, [*answers, []])
    for answer, together in zip(answers, found, strict=False):
        wanted = [(len(context) + i, token) for i, token in enumerate(answer)]
        assert together == pytest.approx(scorer.log_probs([*context, *answer], wanted).sum(), abs=0.02)
    assert found[0] == pytest.approx(found[2], abs=0.02)
    assert found[3] == 0
    assert found[0] != pytest.approx(scorer.continuations(context[:1], answers[:1])[0], abs=0.02)
    scorer.close()


@pytest.mark.parametrize(
    ("temperature", "cut"), [(0.0, {}), (1.0, {}), (2.0, {"top_p": 0.8, "top_k": 9}), (2.0, {"min_p": 0.2, "top_k": 9})]
)
@pytest.mark.parametrize("dry", [0.0, 2.0])
def test_looking_at_the_likeliest_words_first_changes_no_draw(
    models: dict[str, Model], temperature: float, cut: dict[str, float], dry: float
) -> None:
    model, rng = models["gemma3"], np.random.default_rng(7)
    plain = {"top_k": 3, "min_p": 0.0, "top_p": 1.0, "temperature": temperature, "dry_multiplier": dry}
    sampling = Sampling.model_validate({**plain, "repeat_penalty": 3.0, **cut})
    without_penalties = sampling.model_copy(update={"repeat_penalty": 1.0, "dry_multiplier": 0.0})
    changed = 0
    for seed in range(40):
        logits = rng.normal(2, 3, model.n_vocab).astype(np.float32)
        said = [int(t) for t in [*rng.integers(0, model.n_vocab, 30), *np.argsort(logits)[-40:]] * 2]
        whole = _whole_chain(model, sampling, seed)
        chains = [Sampler(model, sampling, seed), Sampler(model, without_penalties, seed)]
        drawn = [_drawn(handle, logits, said) for handle in (whole, *(c.handle for c in chains))]
        assert drawn[0] == drawn[1]
        changed += drawn[1] != drawn[2]
        lc.llama_sampler_free(whole)
        for chain in chains:
            chain.close()
    assert changed > 10, "the penalties matter here"


@pytest.mark.parametrize(
    ("setting", "value", "drawn"),
    [("top_p", 1e-6, 1), ("min_p", 1.0, 1), ("top_k", 1, 1), ("temperature", 1e-4, 1), ("temperature", 2.0, 20),
     ("top_k", 5, 5), ("top_k", 0, 20)],
)  # fmt: skip
def test_words_are_drawn_as_the_settings_say(models: dict[str, Model], setting: str, value: float, drawn: int) -> None:
    model, rng = models["gemma3"], np.random.default_rng(3)
    logits = rng.normal(2, 1, model.n_vocab).astype(np.float32)
    free = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    found = set()
    for seed in range(60):
        chain = Sampler(model, free.model_copy(update={setting: value}), seed)
        found.add(_drawn(chain.handle, logits, []))
        chain.close()
    best = int(np.argmax(np.where(np.isin(np.arange(model.n_vocab), model.control_ids), -np.inf, logits)))
    assert len(found) == drawn if drawn < 20 else len(found) >= drawn
    assert drawn > 1 or found <= {best, *model.ends}


_SAVES = """
import resource, sys
from pathlib import Path
import psutil
from bot.llama import Context, Model
context = Context(Model(Path(sys.argv[1]), 0), 1024, 1, 1024, 1)
context.decode([(300 + i % 300, 0, i, False) for i in range(1024)])
size = len(context.save(0))
assert size > 20 * 2**20
limit = psutil.Process().memory_info().vms + size + size // 2
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
print(len(context.save(0)))
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
print(len(context.save(0)) - size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_state_that_finds_memory_only_once_is_not_saved(tmp_path: Path) -> None:
    """In a process of its own, whose heap holds no room left by others."""
    deep = tinymodel.build(tmp_path / "deep", "qwen3", layers=48).gguf
    done = subprocess.run([sys.executable, "-c", _SAVES, str(deep)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n0\n"), done.stderr


def test_threads_are_as_many_as_asked_for(models: dict[str, Model]) -> None:
    for asked, expected in (((1, None), (1, 1)), ((2, 3), (2, 3)), ((3, None), (3, 3))):
        context = Context(models["gemma3"], 64, 1, 32, asked[0], n_threads_batch=asked[1])
        assert (lc.llama_n_threads(context._context), lc.llama_n_threads_batch(context._context)) == expected
        context.close()


def _whole_chain(model: Model, sampling: Sampling, seed: int) -> Any:
    """The chain as it is meant: penalties over all words, and then the likeliest."""
    chain = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
    links = [
        lc.llama_sampler_init_logit_bias(model.n_vocab, len(model.banned), model.banned),
        lc.llama_sampler_init_penalties(model.n_vocab, 64, sampling.repeat_penalty, 0.0, 0.0),
        lc.llama_sampler_init_dry(model.vocab, sampling.dry_multiplier, 1.75, 2, 512, None, 0),
    ]
    if sampling.temperature == 0:
        links.append(lc.llama_sampler_init_greedy())
    else:
        links.append(lc.llama_sampler_init_top_k(sampling.top_k))
        links += [lc.llama_sampler_init_top_p(sampling.top_p, 1), lc.llama_sampler_init_min_p(sampling.min_p, 1)]
        links += [lc.llama_sampler_init_temp(sampling.temperature), lc.llama_sampler_init_dist(seed)]
    for link in links:
        lc.llama_sampler_chain_add(chain, link)
    return chain


def _drawn(chain: Any, logits: np.ndarray, said: Sequence[int]) -> int:
    """What a chain draws after some words."""
    for token in said:
        lc.llama_sampler_accept(chain, token)
    words = (lc.llama_token_data * len(logits))(*((i, float(x), 0.0) for i, x in enumerate(logits)))
    row = lc.llama_token_data_array(words, len(logits), -1, False)
    lc.llama_sampler_apply(chain, ctypes.byref(row))
    return int(row.data[row.selected].id)
