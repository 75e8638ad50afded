"""bot/serving.py on a tiny model: what was read stays read, and nothing of one scene leaks into another."""

import asyncio
import itertools
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tinylora
import tinymodel
from loguru import logger

from bot import base, config
from bot.batching import Lines
from bot.engine import End, Ending, Request, Voice
from bot.errors import EngineError
from bot.llama import Context, Model, log_probs
from bot.looping import looping
from bot.models import Served
from bot.persona import Sampling
from bot.prompt import FORMATS, ChatFormat, Piece, encode
from bot.seats import Seats
from bot.serving import LlamaEngine
from bot.spill import Spill
from training.likeness import use

GEMMA = FORMATS["gemma"]
BARE = Voice("bare", None, GEMMA)
SAMPLING = Sampling(max_tokens=24, temperature=1.0, repeat_penalty=1.0)
SETTINGS = config.Engine(n_ctx=512, kv_tokens=1024, n_seq_max=4, n_batch=32, n_threads=1)


def prompt(*turns: str, fmt: ChatFormat = GEMMA) -> list[Piece]:
    """User, assistant, user, …; ends with the open assistant header."""
    pieces = [Piece(fmt.system_open, True), Piece("你是小满。"), Piece(fmt.system_close, True)]
    for number, text in enumerate(turns):
        if number % 2:
            pieces += [Piece(text), Piece(fmt.end, True), Piece(fmt.after, True)]
        else:
            pieces += [Piece(fmt.user_open if number else fmt.first_user_open, True), Piece(text)]
            pieces += [Piece(fmt.user_close, True), Piece(fmt.assistant_open, True)]
    return [piece for piece in pieces if piece.text]


def request(seat: str, *turns: str, voice: Voice = BARE, seed: int = 7, sampling: Sampling = SAMPLING) -> Request:
    return Request(seat, voice, prompt(*turns, fmt=voice.format), sampling, seed)


GREEDY = Sampling(max_tokens=24, temperature=0, repeat_penalty=1.0)
EPSILON = 0.02
"""Logits two evaluations may differ by: the shape of a batch changes the last bits (F16 keys and values)."""


def worst(gguf: Path, engine: LlamaEngine, seat: str, asked: Request, lora: Path | None = None) -> float:
    """How far below the best any token of a greedy answer lies, in a fresh context that reads it all at once."""
    model = Model(gguf)
    tokens, prompt = engine.base.seats[seat].tokens, encode(asked.pieces, model)[0]
    assert tokens[: len(prompt)] == prompt
    context = Context(model, len(tokens) + 8, 1, len(tokens) + 8, 1, n_outputs=len(tokens))
    handle = model.load_lora(lora) if lora else None
    context.use(handle)
    context.decode([(token, 0, i, True) for i, token in enumerate(tokens)])
    rows = context.logits(len(tokens)).copy()
    rows[:, [i for i in model.control_ids if i not in model.ends]] = -np.inf
    rows[len(prompt) - 1, model.no_first_word] = -np.inf
    gaps = [float(rows[i - 1].max() - rows[i - 1, tokens[i]]) for i in range(len(prompt), len(tokens))]
    context.use(None)
    context.close()
    if handle is not None:
        model.free_lora(handle)
    model.close()
    return max(gaps, default=0.0)


WORDS, ROUNDS = "昨晚又熬夜了困死我哈今天吃什么周末去爬山谁看见的猫", 32
FORGETFUL = ["mamba", "lfm2", "qwen35", "falcon-h1", "swa"]
"""Of conftest: models whose cache cannot be cut everywhere."""


async def said(engine: LlamaEngine, asked: Request) -> list[str]:
    return [bubble async for bubble in engine.bubbles(asked)]


def start(tinies: dict[str, tinymodel.Tiny], settings: config.Engine = SETTINGS) -> LlamaEngine:
    return LlamaEngine(tinies["gemma3"].gguf, settings)


@pytest.fixture
async def engine(tinies: dict[str, tinymodel.Tiny]) -> AsyncIterator[LlamaEngine]:
    started = start(tinies)
    yield started
    await started.close()


@pytest.fixture
async def cold(tinies: dict[str, tinymodel.Tiny]) -> AsyncIterator[LlamaEngine]:
    """A second engine whose seats are never used twice."""
    started = start(tinies)
    yield started
    await started.close()


async def test_a_warm_seat_answers_as_a_cold_one(engine: LlamaEngine, cold: LlamaEngine) -> None:
    turns = ["早呀，今天吃什么？"]
    for number in range(4):
        warm, fresh = request("g", *turns), request(f"cold{number}", *turns)
        assert await engine.p_silent(warm) == pytest.approx(await cold.p_silent(fresh), rel=1e-3)
        answer = await said(engine, warm)
        assert answer == await said(cold, fresh)
        turns += ["\n".join(answer), f"还有{number}"]


async def test_taking_back_and_rewording_leaves_no_trace(engine: LlamaEngine, cold: LlamaEngine) -> None:
    for turns in (["一二三", "好", "走不走"], ["一二三"], ["一二三四五六"], ["早", "好", "走不走"]):
        expected = await cold.p_silent(request(str(turns), *turns))
        assert await engine.p_silent(request("g", *turns)) == pytest.approx(expected, rel=1e-3)


async def test_a_prompt_costs_the_tokens_that_are_not_held(engine: LlamaEngine) -> None:
    held: list[int] = []
    for asked in (
        request("g", "早呀，今天吃什么？"),
        request("g", "早呀，今天吃什么？"),
        request("g", "早呀，今天吃什么？\n还有呢"),
        request("g", "早呀，今天吃什么？\n还有呢", "吃面", "走不走"),
        request("g", "早呀，今天吃饭没"),
    ):
        ids, before = encode(asked.pieces, engine.base.model)[0], engine.base.batcher.evaluated
        pairs = zip(held, ids[:-1], strict=False)  # the last one is always evaluated: its logits are what is wanted
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(ids) - 1))
        assert common >= 10 or not held
        await engine.p_silent(asked)
        assert engine.base.batcher.evaluated - before == len(ids) - common
        held = ids


async def test_the_same_seed_gives_the_same_text_and_another_one_another(engine: LlamaEngine) -> None:
    first = await said(engine, request("a", "在吗", seed=1))
    assert await said(engine, request("a", "在吗", seed=1)) == first
    assert await said(engine, request("b", "在吗", seed=1)) == first
    assert any([await said(engine, request("a", "在吗", seed=s)) != first for s in range(2, 6)])


async def test_many_chats_at_once_are_each_answered_as_alone(
    engine: LlamaEngine, tinies: dict[str, tinymodel.Tiny]
) -> None:
    asked = {s: [request(s, f"{s}第一句" * n, sampling=GREEDY)] for n, s in enumerate(("甲", "乙", "丙", "丁"), 1)}
    for s, turns in asked.items():
        turns.append(request(s, f"{s}第一句", "嗯", "第二句", sampling=GREEDY))
    for number in range(2):
        await asyncio.gather(*(said(engine, turns[number]) for turns in asked.values()))
        for s, turns in asked.items():
            assert worst(tinies["gemma3"].gguf, engine, s, turns[number]) < EPSILON


class Reference:
    """Files read by themselves, each prompt in a context of its own."""

    def __init__(self) -> None:
        self._models: dict[Path, Model] = {}

    def check(self, base: Path, voice: Voice, ids: list[int], tokens: list[int]) -> tuple[float, float]:
        """P(silent) behind a prompt, and how far below the best any token of an answer to it lies."""
        path = voice.model or base
        model = self._models[path] if path in self._models else self._models.setdefault(path, Model(path, 0))
        context = Context(model, len(tokens), 1, len(tokens), 1, n_outputs=len(tokens))
        handle = model.load_lora(voice.lora) if voice.lora else None
        context.use(handle)
        context.decode([(token, 0, i, True) for i, token in enumerate(tokens)])
        rows = context.logits(len(tokens)).copy()
        context.close()
        if handle is not None:
            model.free_lora(handle)
        silent = float(np.exp(log_probs(rows[len(ids) - 1], [model.end_id])[0]))
        rows[:, [i for i in model.control_ids if i not in model.ends]] = -np.inf
        rows[len(ids) - 1, model.no_first_word] = -np.inf
        gaps = [float(rows[i - 1].max() - rows[i - 1, tokens[i]]) for i in range(len(ids), len(tokens))]
        return silent, max(gaps, default=0.0)

    def close(self) -> None:
        for model in self._models.values():
            model.close()


class Breaking:
    """Breaks steps off in the middle, when llama.cpp asks for the fifth time, while `armed`; and counts them."""

    def __init__(self, served: Served) -> None:
        self._decode, self._batcher = served.context.decode, served.batcher
        self.armed, self.broken = False, 0
        served.context.decode = self.decode  # type: ignore[method-assign]

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]], stop: Callable[[], bool] | None = None) -> bool:
        asks = itertools.count(1)

        def asked() -> bool:
            assert stop is not None
            if self.armed and next(asks) == 5:
                for job in self._batcher._active:
                    job.stop.set()
            return stop()

        done = self._decode(tokens, None if stop is None else asked)
        self.broken += not done
        return done


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("kind", ["gemma3", "qwen3", *FORGETFUL])
async def test_no_interleaving_leaves_a_trace(
    tinies: dict[str, tinymodel.Tiny], forgetful: dict[str, tinymodel.Tiny], tmp_path: Path, kind: str, seed: int
) -> None:
    """Appends, rewinds, growing bursts, looks, switches of LoRA and model, evictions, spills to memory and files, steps
    broken off, cancelled looks and answers, scenes forgotten, at any pace, as they come."""
    base, rng, happened = {**tinies, **forgetful}[kind].gguf, random.Random(seed), Counter[str]()
    changed = {"n_ctx": 768, "n_batch": 128, "n_seq_max": 3, "n_parallel": 3, "kv_tokens": 1600, "spill_disk_mb": 64}
    engine = LlamaEngine(base, SETTINGS.model_copy(update=changed), spill=tmp_path / "spill")
    batcher, spill, breaking, reference = engine.base.batcher, engine.base.spill, Breaking(engine.base), Reference()
    other = "gemma3" if kind == "qwen3" else "qwen3"
    loras = [None, *(tinylora.write(tmp_path / f"{i}.gguf", base, seed=i) for i in range(2))]
    voices = [Voice("v", lora, engine.format) for lora in loras]
    voices.append(Voice("m", None, FORMATS["gemma" if other == "gemma3" else other], tinies[other].gguf))
    system = "".join(rng.choices(WORDS, k=60))
    voice_of = {f"s{i}": voices[i % 4] for i in range(7)}
    turns: dict[str, list[str]] = {}
    lengths = []

    def words(*of: int) -> str:
        return "".join(rng.choices(WORDS, k=rng.choice(of)))

    for _ in range(ROUNDS):
        batcher._prompt_rate = rng.choice([60.0, 200.0, 2000.0])
        spill._memory_bytes = rng.choice([0, 10**7])
        chosen: dict[str, Request] = {}
        for seat in rng.sample(sorted(voice_of), 2):
            said_there = turns.setdefault(seat, [words(5, 200)])
            match rng.choice(["append", "append", "grow", "rewind", "reword", "switch"]):
                case "append":
                    said_there += ["嗯", words(3, 30, 150)]
                case "grow":
                    said_there[-1] += f"\n{words(4)}"
                case "rewind":
                    del said_there[1:]
                case "reword":
                    said_there[-1] = words(3, 10)
                case "switch":
                    voice_of[seat] = rng.choice(voices)
            while sum(map(len, said_there)) > 330:
                del said_there[1:3]
                said_there[0] = said_there[0][:100]
            asked = request(seat, *said_there, voice=voice_of[seat], sampling=GREEDY)
            pieces = [Piece(system) if piece == Piece("你是小满。") else piece for piece in asked.pieces]
            chosen[seat] = replace(asked, pieces=pieces)
        silences: dict[str, float] = {}
        if rng.random() < 0.6:
            breaking.armed = rng.random() < 0.3
            looks = {seat: asyncio.create_task(engine.p_silent(r)) for seat, r in chosen.items()}
            if not breaking.armed and rng.random() < 0.3:
                await asyncio.sleep(rng.choice([0, 0.001, 0.003]))
                happened["look cancelled"] += looks[next(iter(looks))].cancel()
            found = await asyncio.gather(*looks.values(), return_exceptions=True)
            if not breaking.armed:
                silences = {seat: p for seat, p in zip(looks, found, strict=True) if isinstance(p, float)}
            breaking.armed = False
        answers = [asyncio.create_task(said(engine, r)) for r in chosen.values()]
        await asyncio.sleep(rng.choice([0, 0.003]))
        if rng.random() < 0.2:
            gone = rng.sample(sorted(voice_of), 2)
            await engine.forget(lambda name: name in gone)  # noqa: B023 - it is done when this goes on
            happened["forgotten"] += 1
        if rng.random() < 0.3:
            first = next(iter(chosen))
            happened["answer cancelled"] += answers[0].cancel()
            del chosen[first]
            silences.pop(first, None)
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        assert not [o for o in outcomes if isinstance(o, EngineError)]
        happened["in memory"] += spill.kept_bytes > 0
        happened["in files"] += spill.filed_bytes > 0
        for seat, asked in chosen.items():
            async with engine.models.using(asked.voice) as served:
                ids = encode(asked.pieces, served.model)[0]
                tokens = list(served.seats[seat].tokens) if seat in served.seats else ids
            assert tokens[: len(ids)] == ids
            lengths.append(len(ids))
            silent, gap = reference.check(base, asked.voice, ids, tokens)
            assert gap < EPSILON
            happened["answer checked"] += len(tokens) > len(ids)
            if seat in silences:
                assert silences[seat] == pytest.approx(silent, rel=0.02)
                happened["P(silent) checked"] += 1
            happened["merged"] += asked.voice.model is not None
    happened["broken off"] = breaking.broken
    await engine.close()
    reference.close()
    assert min(lengths) < 150
    assert max(lengths) > 350
    assert len(happened) == 9
    assert min(happened.values()) > 0, happened
    assert happened["answer checked"] > ROUNDS


@pytest.mark.parametrize("kind", FORGETFUL)
async def test_what_cannot_be_cut_is_not_read_twice_either(
    forgetful: dict[str, tinymodel.Tiny], tmp_path: Path, kind: str
) -> None:
    settings = SETTINGS.model_copy(update={"n_seq_max": 2, "n_parallel": 2})
    engine = LlamaEngine(forgetful[kind].gguf, settings, spill=tmp_path)
    voice, words = Voice("bare", None, engine.format), "昨晚又熬夜了，困死我了哈哈哈，今天吃什么？" * 20

    async def reads(ask: Awaitable[object]) -> int:
        before = engine.base.batcher.evaluated
        await ask
        return engine.base.batcher.evaluated - before

    def of(seat: str, *turns: str) -> Request:
        return request(seat, *turns, voice=voice, sampling=GREEDY)

    first = of("a", words)
    whole = await reads(engine.p_silent(first))
    assert whole > 80, "more than a window"
    assert await reads(said(engine, first)) <= 16 + GREEDY.max_tokens, "a look, then an answer"
    grown = of("a", f"{words}\n还有呢")
    assert await reads(engine.p_silent(grown)) < whole / 2, "the burst goes on"
    for seat in ("b", "c"):
        await engine.p_silent(of(seat, "在吗"))
    assert "a" not in engine.base.seats
    assert await reads(engine.p_silent(grown)) <= 16, "it comes back"
    assert await reads(said(engine, grown)) <= 16 + GREEDY.max_tokens
    assert worst(forgetful[kind].gguf, engine, "a", grown) < EPSILON
    await engine.close()


async def test_what_slid_out_of_a_window_is_not_taken_for_there(forgetful: dict[str, tinymodel.Tiny]) -> None:
    """llama.cpp gives cells that slid out to others before it uses free ones, with a full-size cache too."""
    model = Model(forgetful["swa"].gguf, 0)
    context = Context(model, 512, 3, 64, 1)
    for seq, at, n in ((1, 0, 10), (0, 0, 64), (0, 64, 64)):
        context.decode([(300 + i, seq, at + i, False) for i in range(n)])
    assert context.reaches(0, 40)
    context.keep(1, 0)
    context.decode([(300 + i, 2, i, False) for i in range(60)])
    assert not context.reaches(0, 40), "the window before the 40th token is not whole"
    assert context.reaches(0, 128)
    saved = context.save(0)
    assert context.keep(0, 40) == 0
    assert context.restore(0, saved)
    assert context.reaches(0, 128)
    assert context.keep(0, 120) == 0, "a saved state holds one window"
    context.close()
    model.close()


@pytest.mark.parametrize("changed", [{}, {"spill_mb": 0, "spill_disk_mb": 64}])
async def test_a_scene_that_had_to_leave_comes_back_without_being_read_again(
    tinies: dict[str, tinymodel.Tiny], tmp_path: Path, changed: dict[str, int]
) -> None:
    settings = SETTINGS.model_copy(update={"n_seq_max": 2, "n_parallel": 2, **changed})
    engine = LlamaEngine(tinies["gemma3"].gguf, settings, spill=tmp_path)
    words = "昨晚又熬夜了，困死我了哈哈哈" * 6
    for seat in ("a", "b", "c"):
        await engine.p_silent(request(seat, f"{seat}{words}"))
    assert "a" not in engine.base.seats
    read = engine.base.batcher.evaluated
    again = request("a", f"a{words}", "嗯", "还在吗", sampling=GREEDY.model_copy(update={"max_tokens": 12}))
    await said(engine, again)
    count = engine.count(again.pieces)
    assert engine.base.batcher.evaluated - read < count / 2
    assert worst(tinies["gemma3"].gguf, engine, "a", again) < EPSILON
    assert len(os.listdir(tmp_path)) == (1 if changed else 0)
    await engine.close()
    assert os.listdir(tmp_path) == []


async def test_a_scene_whose_file_is_gone_is_read_again(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"n_seq_max": 2, "n_parallel": 2, "spill_mb": 0, "spill_disk_mb": 64})
    engine = LlamaEngine(tinies["gemma3"].gguf, settings, spill=tmp_path)
    first = await engine.p_silent(request("a", "在吗"))
    for seat in ("b", "c"):
        await engine.p_silent(request(seat, f"{seat}在吗"))
    shutil.rmtree(tmp_path)
    assert await engine.p_silent(request("a", "在吗")) == pytest.approx(first, rel=1e-3)
    await engine.close()


async def test_the_personas_prompt_is_read_once_for_all_its_scenes(tinies: dict[str, tinymodel.Tiny]) -> None:
    engine = start(tinies)
    long = Piece("你是小满，你爱吃面，你常熬夜，你养猫。" * 4)

    def ask(seat: str, words: str) -> Request:
        asked = request(seat, words, sampling=GREEDY)
        return replace(asked, pieces=[asked.pieces[0], long, *asked.pieces[2:]])

    await said(engine, ask("a", "在吗"))
    read = engine.base.batcher.evaluated
    other = ask("b", "吃饭没")
    await engine.p_silent(other)
    assert engine.base.batcher.evaluated - read <= engine.count(other.pieces) - engine.count([long])
    await said(engine, other)
    assert worst(tinies["gemma3"].gguf, engine, "b", other) < EPSILON
    await engine.close()


async def test_a_long_prompt_does_not_stall_the_chats_that_are_typing(tinies: dict[str, tinymodel.Tiny]) -> None:
    engine = start(tinies, SETTINGS.model_copy(update={"n_batch": 64, "n_ctx": 2048, "kv_tokens": 4096}))
    engine.base.model.ends = frozenset()  # the typist goes on typing
    engine.base.batcher._prompt_rate = 320  # as on a slow machine: 32 tokens of prompt in a step
    long, first = Sampling(max_tokens=400, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0), []

    async def type_on() -> None:
        async for bubble in engine.bubbles(request("a", "在吗", sampling=long)):
            first.append(bubble)

    typing = asyncio.create_task(type_on())
    async with asyncio.timeout(60):
        while not engine.base.batcher._active or not engine.base.batcher._active[0].made:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    before = len(engine.base.batcher._active[0].made)
    await engine.p_silent(request("b", "昨晚又熬夜了，困死我了哈哈哈" * 60))
    assert not typing.done()
    (typist,) = engine.base.batcher._active
    assert len(typist.made) - before > 5
    typing.cancel()
    await asyncio.gather(typing, return_exceptions=True)
    await engine.close()


async def test_the_first_token_is_never_the_end_of_turn(engine: LlamaEngine) -> None:
    assert 0 < await engine.p_silent(request("a", "在吗")) < 1
    one = Sampling(max_tokens=2, temperature=2.0, top_p=1.0, top_k=0, min_p=0.0)
    made = []
    for seed in range(300):
        await said(engine, request("a", "在吗", seed=seed, sampling=one))
        made.append(engine.base.seats["a"].tokens[-1])
    ends = {*engine.base.model.end_ids, *engine.base.model.control_ids}
    assert not ends & set(made)
    assert all(engine.base.model.piece(token).strip() for token in made), "and never blank"
    assert len(set(made)) > 100, "the draws were spread wide enough to have met it"


async def test_how_an_answer_ended_is_told_with_its_request(engine: LlamaEngine) -> None:
    wild = Sampling(max_tokens=400, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    cut = request("a", "在吗", sampling=wild.model_copy(update={"max_tokens": 9}))
    closed = request("b", "在吗", sampling=wild)
    await said(engine, cut)
    assert cut.ending == Ending(9, End.LENGTH)
    async with aclosing(engine.bubbles(closed)) as bubbles:
        assert await anext(bubbles)
    assert closed.ending.why is None
    assert 0 < closed.ending.tokens < 400
    engine.base.model.ends = frozenset(range(engine.base.model.n_vocab))
    await said(engine, closed)
    assert closed.ending == Ending(1, End.TURN)


async def test_a_cancelled_answer_leaves_the_engine_usable(engine: LlamaEngine, cold: LlamaEngine) -> None:
    long = Sampling(max_tokens=400, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    async with aclosing(engine.bubbles(request("a", "在吗", sampling=long))) as bubbles:
        task = asyncio.ensure_future(anext(bubbles, None))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    waiting = [asyncio.create_task(engine.p_silent(request("b", "长" * 300))) for _ in range(3)]
    await asyncio.sleep(0.005)
    for look in waiting:
        look.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for seat in ("a", "b"):
        assert await said(engine, request(seat, "还在吗")) == await said(cold, request(seat, "还在吗"))


async def idle(engine: LlamaEngine) -> None:
    """Until nothing is under way."""
    async with asyncio.timeout(60):
        while engine.base.batcher._active or engine.base.batcher._waiting:  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.001)


async def test_who_no_longer_listens_stops_the_work(tinies: dict[str, tinymodel.Tiny]) -> None:
    engine = start(tinies, SETTINGS.model_copy(update={"n_ctx": 4096, "kv_tokens": 4096}))
    engine.base.model.ends = frozenset()  # nothing but the listener ends it
    endless = Sampling(max_tokens=3000, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    async with aclosing(engine.bubbles(request("a", "在吗", sampling=endless))) as bubbles:
        assert await anext(bubbles)
    await idle(engine)
    made = len(engine.base.seats["a"].tokens)
    assert made < 1500, "of 3,000"
    look = asyncio.create_task(engine.p_silent(request("b", "龘" * 1000)))
    async with asyncio.timeout(60):
        while not engine.base.batcher._active:  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.001)
    look.cancel()
    await asyncio.gather(look, return_exceptions=True)
    await idle(engine)
    assert len(engine.base.seats["b"].tokens) < 1500, "of 3,000: a character is three bytes, each of them a token"
    await engine.close()


async def test_a_full_cache_drops_the_scene_used_least_recently(tinies: dict[str, tinymodel.Tiny]) -> None:
    engine = start(tinies, SETTINGS.model_copy(update={"kv_tokens": 512, "n_seq_max": 8}))
    words = "昨晚又熬夜了，困死我了哈哈哈" * 8
    first = await said(engine, request("s0", words))
    for number in range(1, 8):
        await said(engine, request(f"s{number}", f"{number}{words}"))
    assert "s0" not in engine.base.seats
    assert "s7" in engine.base.seats
    assert await said(engine, request("s0", words)) == first
    await engine.close()


async def test_more_scenes_than_sequences_take_turns(tinies: dict[str, tinymodel.Tiny]) -> None:
    engine = start(tinies, SETTINGS.model_copy(update={"n_seq_max": 2}))
    first = [await engine.p_silent(request(f"s{i}", f"问{i}")) for i in range(5)]
    assert [await engine.p_silent(request(f"s{i}", f"问{i}")) for i in range(5)] == pytest.approx(first, rel=1e-3)
    assert len(engine.base.seats) == 2
    await engine.close()


async def test_a_prompt_beyond_the_cache_is_an_error_and_not_the_end(engine: LlamaEngine) -> None:
    with pytest.raises(EngineError, match="longer than"):
        await engine.p_silent(request("a", "龘" * 1000))
    assert 0 < await engine.p_silent(request("a", "在吗")) < 1


async def test_personas_share_the_base_and_nothing_else(
    engine: LlamaEngine, tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    base = tinies["gemma3"].gguf
    voices = [BARE] + [
        Voice(str(n), tinylora.write(tmp_path / f"{n}.gguf", base, seed=n, names_base=engine.base_sha256), GEMMA)
        for n in range(10)  # more than are kept loaded
    ]
    first = [await engine.p_silent(request("a", "在吗", voice=v)) for v in voices]
    assert len({round(p, 9) for p in first}) == len(voices)
    again = [await engine.p_silent(request("a", "在吗", voice=v)) for v in reversed(voices)]
    assert list(reversed(again)) == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize(("seats", "lora_mb"), [("aa", 256), ("ab", 256), ("ab", 0)])
async def test_an_answer_under_way_is_finished_by_the_version_it_began_with(
    cold: LlamaEngine, tinies: dict[str, tinymodel.Tiny], tmp_path: Path, seats: str, lora_mb: int
) -> None:
    """In one scene behind it, in two at once beside it; also where there is no memory for two LoRAs."""
    base, engine = tinies["gemma3"].gguf, start(tinies, SETTINGS.model_copy(update={"lora_mb": lora_mb}))
    long = SAMPLING.model_copy(update={"max_tokens": 60})
    voices = [
        Voice(n, tinylora.write(tmp_path / f"{n}.gguf", base, seed=i, names_base=engine.base_sha256), GEMMA)
        for i, n in enumerate(("old", "new"))
    ]
    asked = [request(seat, "在吗", voice=v, sampling=long) for seat, v in zip(seats, voices, strict=True)]
    both = await asyncio.gather(*(said(engine, r) for r in asked))
    assert both == [await said(cold, r) for r in asked]
    assert both[0] != both[1]
    await engine.close()


async def test_a_lora_of_another_base_is_refused_and_the_base_still_serves(
    engine: LlamaEngine, tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    lora = tinylora.write(tmp_path / "other.gguf", tinies["gemma3"].gguf, names_base="f" * 64)
    before = await engine.p_silent(request("a", "在吗"))
    with pytest.raises(EngineError, match=r"other\.gguf.*trained on the base"):
        await engine.p_silent(request("a", "在吗", voice=Voice("other", lora, GEMMA)))
    with pytest.raises(EngineError, match=r"other\.gguf"):
        await said(engine, request("a", "在吗", voice=Voice("other", lora, GEMMA)))
    assert await engine.p_silent(request("a", "在吗")) == pytest.approx(before, rel=1e-3)


async def test_an_answer_that_takes_too_long_is_given_up(tinies: dict[str, tinymodel.Tiny]) -> None:
    engine = start(tinies, SETTINGS.model_copy(update={"deadline_s": 1e-6}))
    with pytest.raises(EngineError, match="deadline_s"):
        await said(engine, request("a", "在吗"))
    await engine.close()


async def test_of_an_answer_that_takes_too_long_what_is_out_stays_said(tinies: dict[str, tinymodel.Tiny]) -> None:
    engine = start(tinies, SETTINGS.model_copy(update={"deadline_s": 600.0}))
    engine.base.model.ends = frozenset()
    wild = Sampling(max_tokens=400, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    asked, told = request("a", "在吗", sampling=wild), list[str]()

    async def listen() -> None:
        async for bubble in engine.bubbles(asked):
            told.append(bubble)
            engine.base.batcher._clock = lambda: time.perf_counter() + 601

    with pytest.raises(EngineError, match=r"an answer took longer than \[engine\] deadline_s = 600; raise it"):
        await listen()
    assert told
    assert asked.ending.why is None, "it did not end by itself"
    assert 0 < asked.ending.tokens < 400
    engine.base.batcher._clock = time.perf_counter
    assert 0 < await engine.p_silent(request("a", "在吗", "\n".join(told), "走不走")) < 1
    await engine.close()


@pytest.mark.parametrize(
    "changed", [{"type_k": "q8_0", "type_v": "q8_0", "flash_attn": "on"}, {"flash_attn": "off"}, {"load_mode": "none"}]
)
async def test_the_cache_and_the_loading_are_as_the_settings_say(
    engine: LlamaEngine, tinies: dict[str, tinymodel.Tiny], changed: dict[str, str]
) -> None:
    other = start(tinies, SETTINGS.model_copy(update=changed))
    asked = request("a", "昨晚又熬夜了，困死我了哈哈哈")
    assert await other.p_silent(asked) == pytest.approx(await engine.p_silent(asked), rel=0.05)
    await other.close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells what is mapped on Linux only")
def test_the_base_is_mapped_or_read_as_the_settings_say(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> None:
    gguf = shutil.copy(tinies["gemma3"].gguf, tmp_path / "mine.gguf")
    for load_mode, mapped in (("mmap", True), ("none", False)):
        engine = LlamaEngine(gguf, SETTINGS.model_copy(update={"load_mode": load_mode}), "0" * 64)
        assert (str(gguf) in Path("/proc/self/maps").read_text()) is mapped
        asyncio.run(engine.close())


async def test_a_base_is_split_as_the_settings_say(tinies: dict[str, tinymodel.Tiny]) -> None:
    with pytest.raises(EngineError, match=r"'model\.gguf' cannot be loaded .*TENSOR needs >= 1 devices"):
        start(tinies, SETTINGS.model_copy(update={"split_mode": "tensor"}))
    with pytest.raises(EngineError, match=r"tensor_split names 99 GPUs, this llama.cpp takes \d+"):
        start(tinies, SETTINGS.model_copy(update={"tensor_split": (1.0,) * 99}))
    for changed in ({"split_mode": "none", "main_gpu": 0}, {"split_mode": "row", "tensor_split": (3.0, 1.0)}):
        engine = start(tinies, SETTINGS.model_copy(update=changed))
        assert 0 < await engine.p_silent(request("a", "在吗")) < 1, "without a GPU they mean nothing"
        await engine.close()


async def test_values_of_another_type_without_flash_attention_are_an_error(tinies: dict[str, tinymodel.Tiny]) -> None:
    with pytest.raises(EngineError, match=r"no context.*q8_0"):
        start(tinies, SETTINGS.model_copy(update={"type_v": "q8_0", "flash_attn": "off"}))


async def test_a_closed_engine_says_so(tinies: dict[str, tinymodel.Tiny]) -> None:
    engine = start(tinies)
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.p_silent(request("a", "在吗"))


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([5] * 16, True), ([5] * 15, False), ([1, 2] * 5, True), ([1, 2] * 4, False), ([9, 9, *[1, 2, 3] * 5], True),
        (list(range(12)) * 5, True), (list(range(13)) * 5, False), (list(range(50)), False), ([], False),
    ],
)  # fmt: skip
def test_a_loop_is_noticed(tokens: list[int], loops: bool) -> None:
    assert looping(tokens, lambda run: "".join(f"词{t}" for t in run)) is loops


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("embedded")
    return base.resolve(base.EMBEDDED, data, data)


@pytest.fixture(scope="module")
def vocabulary(embedded: Path) -> Iterator[Model]:
    """The embedded base's, without its weights."""
    made = Model(embedded, vocab_only=True)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("said", "bubbles"),
    [
        *((row, [row]) for row in (
            "[捂脸]" * 5, "[捂脸]" * 8, "[doge]" * 8, "好[流泪]" + "[捂脸]" * 8, "哈" * 32, "笑死 " + "哈" * 59,
            "呜" * 16, "啊" * 40, "6" * 16,
            "2" + "3" * 21, "2" + "3" * 50, "233" * 12, "ha" * 20, "哈哈嘿嘿" * 8, "好" * 20,
            "！" * 30, "😂" * 20, "在吗" * 4, "我也要去" * 4,
        )),
        ("[捂脸]" * 40, ["[捂脸]" * 8]), ("好呀" + "哈" * 200, ["好呀" + "哈" * 58]), ("啊" * 200, ["啊" * 59]),
        ("3" * 200, ["3" * 59]), ("我也要去" * 9, []), ("今天吃什么呀" * 9, []), ("在吗" * 30, []),
        ("好[捂脸]" * 9, []),
        ("😂👍" * 30, []), ("[动画表情]" * 9, []), ("\x0f" * 90, []), ("好\n" + "我也要去" * 9, ["好"]),
        ("嗯\n" * 30, ["嗯"] * 4), ("哈哈哈\n好的呀\n" * 9, ["哈哈哈", "好的呀"] * 4 + ["哈哈哈"]),
    ],
)  # fmt: skip
def test_rows_that_people_send_are_said_and_phrases_again_and_again_are_not(
    vocabulary: Model, said: str, bubbles: list[str]
) -> None:
    """As the embedded base would make them; what a loop's last row is cut to, no verdict calls a loop."""
    told: list[str] = []
    lines, made, looped = Lines(told.append), list[bytes](), False
    for token in map(vocabulary.piece, vocabulary.tokens(said, control=False)):
        made.append(token)
        if looped := looping(made, lambda run: b"".join(run).decode("utf-8", "ignore")):
            break
        lines.feed(token)
    lines.end(looped=looped)
    assert told == bubbles
    assert looped is ("\n".join(told) != said)
    assert not any(use.loops(bubble) for bubble in told)


async def test_dry_makes_saying_the_same_again_unlikely(engine: LlamaEngine) -> None:
    def again(tokens: list[int]) -> int:
        """Runs of three tokens said before."""
        runs = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
        return len(runs) - len(set(runs))

    made = {}
    for multiplier in (0.0, 5.0):
        asked = request(
            "a", "在吗", sampling=GREEDY.model_copy(update={"max_tokens": 60, "dry_multiplier": multiplier})
        )
        await said(engine, asked)
        made[multiplier] = again(engine.base.seats["a"].tokens[engine.count(asked.pieces) + 1 :])
    assert made[0.0] > 5
    assert made[5.0] < made[0.0] / 2


async def test_a_banned_word_is_never_said_and_a_favoured_one_is(engine: LlamaEngine) -> None:
    model, wide = engine.base.model, Sampling(max_tokens=24, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)

    async def drawn(**bias: float) -> list[int]:
        made = []
        for seed in range(20):
            asked = request("a", "在吗", seed=seed, sampling=wide.model_copy(update={"logit_bias": bias}))
            await said(engine, asked)
            made += engine.base.seats["a"].tokens[engine.count(asked.pieces) + 1 :]
        return made

    free = await drawn()
    banned = next(
        t for t in free if free.count(t) > 1 and model.tokens(model.piece(t).decode("utf-8", "ignore"), False) == [t]
    )
    assert banned not in await drawn(**{model.piece(banned).decode(): -100.0})
    (wanted,) = model.tokens("好", control=False)
    assert free.count(wanted) < 5
    assert (await drawn(好=12.0)).count(wanted) > 100


async def test_a_bias_is_of_the_first_token_and_of_no_part_of_a_character(engine: LlamaEngine) -> None:
    model, told = engine.base.model, list[str]()
    number = logger.add(told.append, level="WARNING", format="{message}")
    first = model.tokens("好", control=False)[0]
    longer = next(w for w in ("好龘", "好好好好好好好") if model.tokens(w, control=False)[0] == first)
    for _ in range(2):
        assert model.biases({"好": 1.0, longer: 2.0, "龘": 3.0, " ": 4.0, GEMMA.end: 0.5}) == {
            first: 3.0, model.tokens(GEMMA.end, control=False)[0]: 0.5,
        }  # fmt: skip
    logger.remove(number)
    assert len(told) == 2, "once for each"
    assert model.end_id not in model.biases({GEMMA.end: 0.5}), "what people write names no control token"


async def test_a_loop_ends_the_answer(engine: LlamaEngine) -> None:
    greedy = Sampling(max_tokens=400, temperature=0, repeat_penalty=1.0)
    asked = request("a", "在吗", sampling=greedy)
    await said(engine, asked)
    # BOS counts for one; the token that closed the loop is not kept.
    made = engine.base.seats["a"].tokens[engine.count(asked.pieces) + 1 :]
    assert len(made) < 200
    assert any(looping([*made, made[-period]], engine.base.batcher._text) for period in range(1, 13))


async def test_a_scene_that_is_forgotten_is_neither_warm_nor_spilled(
    tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"n_seq_max": 2, "spill_mb": 0, "spill_disk_mb": 50})
    engine = LlamaEngine(tinies["gemma3"].gguf, settings, spill=tmp_path / "spill")
    names = [f"group:{n}|xiaoman" for n in range(1, 5)]
    for name in names:
        await engine.p_silent(request(name, f"{name}说了什么"))
    assert [name in engine.base.seats for name in names] == [False, False, True, True]
    assert len(list((tmp_path / "spill").iterdir())) == 2
    await engine.forget(lambda name: name.partition("|")[0] in ("group:1", "group:4"))
    assert [name in engine.base.seats for name in names] == [False, False, True, False]
    assert len(list((tmp_path / "spill").iterdir())) == 1
    await engine.close()


def test_a_sequence_forgotten_while_it_is_used_goes_when_it_is_not(models: dict[str, Model]) -> None:
    model = models["gemma3"]
    context = Context(model, 256, 2, 32, 1)
    seats = Seats(context, 2, Spill(1_000_000))
    ids = encode(prompt("在吗"), model)[0]
    seat = seats.take("g", None, ids)
    assert seat is not None
    seats.forget(lambda name: name == "g")
    assert "g" in seats, "a request still needs it"
    seats.leave(seat)
    assert "g" not in seats
    assert [seats.take(name, None, ids) is not None for name in ("a", "b", "c")] == [True, True, False], "none is lost"
    context.close()
