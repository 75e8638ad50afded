"""bot/models.py on tiny models: personas that are models of their own, beside the base."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import psutil
import pytest
import tinymodel

from bot import config
from bot.engine import Request, Voice
from bot.errors import EngineError
from bot.llama import Context, Model, log_probs
from bot.models import Served
from bot.persona import Sampling
from bot.prompt import FORMATS, ChatFormat, Piece, encode
from bot.serving import LlamaEngine

EPSILON = 0.02
"""Logits two evaluations may differ by: the shape of a batch changes the last bits (F16 keys and values)."""
GREEDY = Sampling(max_tokens=16, temperature=0, repeat_penalty=1.0)
LONG = Sampling(max_tokens=300, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
SETTINGS = config.Engine(n_ctx=512, kv_tokens=1024, n_seq_max=4, n_batch=32, n_threads=1, n_gpu_layers=0)
GEMMA, QWEN3 = FORMATS["gemma"], FORMATS["qwen3"]
BARE = Voice("bare/base", None, GEMMA)


@pytest.fixture(scope="module")
def merged(tinies: dict[str, tinymodel.Tiny], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of their own: two like the base, with other weights, and one with another vocabulary and format."""
    root = tmp_path_factory.mktemp("merged")
    made = {name: tinymodel.build(root / name, "gemma3", seed=seed).gguf for seed, name in ((7, "one"), (8, "two"))}
    return made | {"qwen3": tinies["qwen3"].gguf}


def voice(path: Path, fmt: ChatFormat = GEMMA, name: str = "me/v1") -> Voice:
    return Voice(name, None, fmt, path)


def prompt(fmt: ChatFormat, text: str) -> list[Piece]:
    opening = Piece(fmt.first_user_open, True)
    system = [Piece(fmt.system_open, True), Piece("你是小满。"), Piece(fmt.system_close, True)]
    pieces = [*system, opening, Piece(text), Piece(fmt.user_close, True), Piece(fmt.assistant_open, True)]
    return [piece for piece in pieces if piece.text]


def request(seat: str, text: str, speaker: Voice, sampling: Sampling = GREEDY) -> Request:
    return Request(seat, speaker, prompt(speaker.format, text), sampling, 7)


async def said(engine: LlamaEngine, asked: Request) -> list[str]:
    return [bubble async for bubble in engine.bubbles(asked)]


def start(tinies: dict[str, tinymodel.Tiny], **changed: object) -> LlamaEngine:
    return LlamaEngine(tinies["gemma3"].gguf, SETTINGS.model_copy(update=changed))


@pytest.fixture
async def engine(tinies: dict[str, tinymodel.Tiny]) -> AsyncIterator[LlamaEngine]:
    started = start(tinies)
    yield started
    await started.close()


def alone(gguf: Path, pieces: list[Piece], tokens: list[int]) -> tuple[float, float]:
    """In a fresh context on a file: P(silent), and how far below the best any token of an answer lies."""
    model = Model(gguf, 0)
    ids = encode(pieces, model)[0]
    assert tokens[: len(ids)] == ids, "it was read in that model's vocabulary"
    context = Context(model, len(tokens) + 8, 1, len(tokens) + 8, 1, n_outputs=len(tokens))
    context.decode([(token, 0, i, True) for i, token in enumerate(tokens)])
    rows = context.logits(len(tokens)).copy()
    silent = float(np.exp(log_probs(rows[len(ids) - 1], [model.end_id])[0]))
    rows[:, [i for i in model.control_ids if i not in model.ends]] = -np.inf
    rows[len(ids) - 1, model.no_first_word] = -np.inf
    gaps = [float(rows[i - 1].max() - rows[i - 1, tokens[i]]) for i in range(len(ids), len(tokens))]
    context.close()
    model.close()
    assert len(gaps) > 3
    return silent, max(gaps)


def loaded(engine: LlamaEngine, *paths: Path) -> list[bool]:
    return [path in engine.models for path in paths]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what is waited for happens on another thread
            await asyncio.sleep(0.002)


async def test_merged_personas_in_turn_answer_as_their_own_files_do(
    engine: LlamaEngine, tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path]
) -> None:
    speakers = {
        tinies["gemma3"].gguf: BARE, merged["one"]: voice(merged["one"]), merged["qwen3"]: voice(merged["qwen3"], QWEN3)
    }  # fmt: skip
    silences: dict[Path, list[float]] = {path: [] for path in speakers}
    for _ in range(2):
        for path, speaker in speakers.items():
            asked = request("g", "今天吃什么？", speaker)
            silent = await engine.p_silent(asked)
            answer = await said(engine, asked)
            async with engine.models.using(speaker) as served:
                tokens = list(served.seats["g"].tokens)
                made = b"".join(map(served.model.piece, tokens[len(encode(asked.pieces, served.model)[0]) :]))
            expected, gap = alone(path, asked.pieces, tokens)
            assert silent == pytest.approx(expected, rel=0.02)
            assert gap < EPSILON
            assert "".join(answer)[:3] in made.decode("utf-8", "ignore").replace("\n", "")
            silences[path].append(silent)
    for first, again in silences.values():
        assert again == pytest.approx(first, rel=1e-3), "the second time as the first, but for the shape of the batch"
    first, *others = sorted(found[0] for found in silences.values())
    assert all(b > 1.2 * a for a, b in zip([first, *others], others, strict=False)), "each answered for itself"


async def test_prompts_are_counted_and_limited_by_the_model_that_reads_them(
    engine: LlamaEngine, tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path], models: dict[str, Model]
) -> None:
    pieces = [Piece("昨晚又熬夜了，困死我了哈哈哈 hello there")]
    for speaker, model in ((BARE, models["gemma3"]), (voice(merged["qwen3"], QWEN3), models["qwen3"])):
        measure = await engine.measure(speaker)
        assert measure.count(pieces) == len(encode(pieces, model, bos=False)[0])
        assert measure.n_ctx == 512
    counts = [(await engine.measure(s)).count(pieces) for s in (BARE, voice(merged["qwen3"], QWEN3))]
    assert counts[0] != counts[1]
    wide = start(tinies, n_ctx=6000, kv_tokens=6000)
    assert (await wide.measure(voice(merged["qwen3"], QWEN3))).n_ctx == 4096, "as long as it was trained for"
    await wide.close()


async def test_both_models_speak_at_once(engine: LlamaEngine, merged: dict[str, Path]) -> None:
    asked = [request("a", "在吗", BARE), request("a", "在吗", voice(merged["one"]))]
    apart = [await said(engine, r) for r in asked]
    assert await asyncio.gather(*(said(engine, r) for r in asked * 3)) == apart * 3


async def test_the_others_go_on_while_a_model_is_loaded(
    engine: LlamaEngine, merged: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request("a", "在吗", BARE, LONG)
    answered, in_time, load = threading.Event(), [], engine.models._open

    def held(spoken: Voice, path: Path) -> Served:
        in_time.append(answered.wait(20))
        return load(spoken, path)

    monkeypatch.setattr(engine.models, "_open", held)
    loading = asyncio.create_task(engine.p_silent(request("a", "在吗", voice(merged["qwen3"], QWEN3))))
    await until(lambda: merged["qwen3"] in engine.models)
    assert 0 < await engine.p_silent(asked) < 1
    answered.set()
    assert 0 < await loading < 1
    assert in_time == [True], "on the event loop nobody is answered before the load ends"


async def test_a_scene_is_forgotten_in_models_of_their_own_and_in_one_that_is_being_loaded(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"n_seq_max": 2, "n_parallel": 2, "spill_mb": 0, "spill_disk_mb": 64}
    engine = LlamaEngine(tinies["gemma3"].gguf, SETTINGS.model_copy(update=changed), spill=tmp_path)
    one, two = voice(merged["one"]), voice(merged["two"])
    for seat in ("spilled", "stays", "warm"):
        await engine.p_silent(request(seat, f"{seat}说的话", one))
    begun, go, load = threading.Event(), threading.Event(), engine.models._open

    def held(spoken: Voice, path: Path) -> Served:
        begun.set()
        assert go.wait(20)
        return load(spoken, path)

    monkeypatch.setattr(engine.models, "_open", held)
    waiting = [asyncio.create_task(engine.p_silent(request(seat, "在吗", two))) for seat in ("coming", "stays")]
    answer = asyncio.create_task(said(engine, request("said", "在吗", two)))
    await until(begun.is_set)
    await engine.forget(lambda seat: seat != "stays")
    assert len(os.listdir(tmp_path)) == 0
    go.set()
    await asyncio.gather(*waiting, answer)
    for speaker in (one, two):
        async with engine.models.using(speaker) as served:
            seats = ("spilled", "stays", "warm", "coming", "said")
            assert [seat in served.seats for seat in seats] == [False, True, False, False, False]
    await engine.p_silent(request("coming", "在吗", two))
    async with engine.models.using(two) as served:
        assert "coming" in served.seats, "what is asked later may stay"
    await engine.close()


# -- the budget -----------------------------------------------------------------------------------


async def test_beyond_the_budget_the_model_used_least_recently_is_freed(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path]
) -> None:
    one, two, three = merged["one"], merged["two"], merged["qwen3"]
    roomy = start(tinies)
    async with roomy.models.using(voice(one)) as served:
        cells = 1024 * 2 * 2 * 256 * 2  # layers, K and V, width of a head, F16
        assert served.n_bytes == pytest.approx(one.stat().st_size + cells, rel=0.02)
        size_mb = served.n_bytes / 1e6
    for path, fmt in ((one, GEMMA), (two, GEMMA), (three, QWEN3)):
        await roomy.measure(voice(path, fmt))
    assert loaded(roomy, one, two, three) == [True] * 3
    await roomy.close()

    tight = start(tinies, models_mb=int(size_mb * 2) + 1)
    first = await tight.p_silent(request("a", "在吗", voice(one)))
    await tight.p_silent(request("a", "在吗", voice(two)))
    assert await tight.p_silent(request("a", "在吗", voice(one))) == pytest.approx(first, rel=1e-3)
    await tight.p_silent(request("a", "在吗", voice(three, QWEN3)))
    assert loaded(tight, one, two, three) == [True, False, True]
    await tight.p_silent(request("a", "在吗", voice(two)))
    assert loaded(tight, one, two, three) == [False, True, True]
    assert await tight.p_silent(request("a", "在吗", voice(one))) == pytest.approx(first, rel=1e-3)
    await tight.close()


async def test_models_asked_for_at_once_are_loaded_one_by_one_into_what_room_there_is(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    voices = [voice(merged["one"]), voice(merged["two"]), voice(merged["qwen3"], QWEN3)]
    apart = []
    for speaker in voices:
        engine = start(tinies)
        apart.append(await engine.p_silent(request("a", "在吗", speaker)))
        (size,) = (s.n_bytes for s in engine.models.loaded[1:])
        await engine.close()
    engine = start(tinies, models_mb=int(size * 1.5 / 1e6))
    load, under_way, most = engine.models._open, 0, 0

    def counted(spoken: Voice, path: Path) -> Served:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return load(spoken, path)
        finally:
            under_way -= 1

    monkeypatch.setattr(engine.models, "_open", counted)
    for _ in range(3):
        asked = (engine.p_silent(request("a", "在吗", speaker)) for speaker in voices)
        assert await asyncio.gather(*asked) == pytest.approx(apart, rel=1e-3)
        assert most == 1, "two at once would each take the same room for its own"
        assert len(engine.models.loaded) == 2, "the base and one"
    await engine.close()


async def test_a_deadline_that_passes_while_a_model_is_loaded_ends_the_request_and_not_the_loading(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tinies, deadline_s=0.2)
    go, load, loads = threading.Event(), engine.models._open, []

    def held(spoken: Voice, path: Path) -> Served:
        loads.append(path)
        assert go.wait(20)
        return load(spoken, path)

    monkeypatch.setattr(engine.models, "_open", held)
    asked = request("a", "在吗", voice(merged["one"]))
    with pytest.raises(EngineError, match=r"'me/v1' was not loaded within \[engine\] deadline_s = 0.2.*ask again"):
        await engine.p_silent(asked)
    go.set()
    await until(lambda: len(engine.models.loaded) == 2)
    assert 0 < await engine.p_silent(asked) < 1
    assert loads == [merged["one"]]
    await engine.close()


async def test_a_model_with_requests_in_flight_is_not_freed_before_they_end(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path]
) -> None:
    engine = start(tinies, models_mb=0)
    asked = request("a", "在吗", voice(merged["one"]), LONG)
    expected = await said(engine, asked)
    assert len(expected) > 1
    async with aclosing(engine.bubbles(asked)) as bubbles:
        begun = [await anext(bubbles)]
        await engine.p_silent(request("a", "在吗", voice(merged["two"])))
        assert loaded(engine, merged["one"], merged["two"]) == [True, True]
        begun += [bubble async for bubble in bubbles]
    assert begun == expected
    assert loaded(engine, merged["one"], merged["two"]) == [False, True], "and then it goes; the one used last stays"
    await engine.close()


async def test_a_model_stays_while_somebody_counts_with_its_vocabulary(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path]
) -> None:
    engine = start(tinies, models_mb=0)
    measure = await engine.measure(voice(merged["one"]))
    expected = measure.count([Piece("在吗")])
    for _ in range(2):
        await engine.p_silent(request("a", "在吗", voice(merged["two"])))
        assert measure.count([Piece("今天吃什么？")]) > expected > 0
    del measure
    await engine.p_silent(request("a", "在吗", voice(merged["two"])))
    assert loaded(engine, merged["one"], merged["two"]) == [False, True]
    await engine.close()


async def test_who_no_longer_waits_for_a_model_does_not_take_it_from_the_others(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path]
) -> None:
    engine = start(tinies)
    waiting = [asyncio.create_task(engine.p_silent(request(s, "在吗", voice(merged["one"])))) for s in "ab"]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert 0 < await waiting[1] < 1
    alone_waiting = asyncio.create_task(engine.p_silent(request("c", "在吗", voice(merged["two"]))))
    await asyncio.sleep(0)
    alone_waiting.cancel()
    await asyncio.gather(*waiting, alone_waiting, return_exceptions=True)
    assert 0 < await engine.p_silent(request("c", "在吗", voice(merged["two"]))) < 1
    await engine.close()


async def test_a_new_version_takes_over_between_two_requests(engine: LlamaEngine, merged: dict[str, Path]) -> None:
    old, new = voice(merged["one"], name="me/v1"), voice(merged["two"], name="me/v2")
    asked = [request("g", "在吗", speaker, LONG) for speaker in (old, new)]
    expected = [await said(engine, r) for r in asked]
    assert expected[0] != expected[1]
    async with aclosing(engine.bubbles(asked[0])) as bubbles:
        begun = [await anext(bubbles)]
        assert await said(engine, asked[1]) == expected[1]
        assert [*begun, *[bubble async for bubble in bubbles]] == expected[0]


# -- what cannot be used --------------------------------------------------------------------------


async def test_a_damaged_model_is_refused_and_the_others_go_on(
    engine: LlamaEngine, merged: dict[str, Path], tmp_path: Path
) -> None:
    before = [await engine.p_silent(request("a", "在吗", s)) for s in (BARE, voice(merged["one"]))]
    half, missing = tmp_path / "half.gguf", tmp_path / "missing.gguf"
    half.write_bytes(merged["one"].read_bytes()[:100_000])
    for path, why in ((half, "cannot be loaded"), (missing, "No such file")):
        told = rf"the model of 'me/v1' cannot be used: .*{why}.*; publish it anew or `twin persona rollback me`"
        for _ in range(2):
            with pytest.raises(EngineError, match=told):
                await engine.p_silent(request("a", "在吗", voice(path)))
        with pytest.raises(EngineError, match=told):
            await said(engine, request("a", "在吗", voice(path)))
        with pytest.raises(EngineError, match=told):
            await engine.measure(voice(path))
    after = [await engine.p_silent(request("a", "在吗", s)) for s in (BARE, voice(merged["one"]))]
    assert after == pytest.approx(before, rel=1e-3)
    half.write_bytes(merged["one"].read_bytes())
    assert await engine.p_silent(request("a", "在吗", voice(half))) == pytest.approx(before[1], rel=1e-3)


async def test_a_model_of_another_format_than_its_manifest_says_is_refused(
    engine: LlamaEngine, merged: dict[str, Path]
) -> None:
    with pytest.raises(EngineError, match=r"names the chat format 'gemma', its markers are those of 'qwen3'; publish"):
        await engine.p_silent(request("a", "在吗", voice(merged["qwen3"], GEMMA)))
    assert 0 < await engine.p_silent(request("a", "在吗", voice(merged["qwen3"], QWEN3))) < 1


async def test_too_little_memory_for_a_model_is_told_and_the_base_goes_on(
    tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    deep = tinymodel.build(tmp_path / "deep", "gemma3", layers=24).gguf  # 24 KB a token
    engine = start(tinies, kv_tokens=16384)
    before = await engine.p_silent(request("a", "在吗", BARE))
    await asyncio.to_thread(lambda: None)  # the thread that loads: its stack is not to count
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 200 * 2**20, hard))
    try:
        with pytest.raises(EngineError, match=r"'me/v1' cannot be used: no context of 16384 tokens.*lower kv_tokens"):
            await engine.p_silent(request("a", "在吗", voice(deep)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert await engine.p_silent(request("a", "在吗", BARE)) == pytest.approx(before, rel=1e-3)
    assert 0 < await engine.p_silent(request("a", "在吗", voice(deep))) < 1
    await engine.close()


def mapped(files: list[Path]) -> list[Path]:
    """Those that are in this process's memory, as far as the system tells."""
    maps = Path("/proc/self/maps")
    return [file for file in files if maps.exists() and str(file) in maps.read_text()]


async def test_a_closed_engine_loads_nothing(tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path]) -> None:
    engine = start(tinies)
    waiting = asyncio.create_task(engine.p_silent(request("a", "在吗", voice(merged["one"]))))
    await asyncio.sleep(0)
    await engine.close()
    (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
    closed = isinstance(outcome, EngineError) and "the engine is closed" in str(outcome)
    assert closed or (isinstance(outcome, float) and 0 < outcome < 1), "answered before it closed, or told"
    with pytest.raises(EngineError, match="the engine is closed"):
        await engine.measure(voice(merged["two"]))
    assert engine.models.loaded == [engine.base]
    assert not [name for name in ("one", "two") if merged[name] in engine.models]
    assert not mapped([merged["one"], merged["two"]])


async def test_an_engine_that_is_closed_does_not_wait_for_a_whole_load(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tinies)
    begun, load, ended, refused = threading.Event(), engine.models._open, [], []

    def held(spoken: Voice, path: Path) -> Served:
        begun.set()
        while not engine.models._closed:
            time.sleep(0.002)
        try:
            served = load(spoken, path)
        except EngineError as e:
            refused.append(str(e))
            raise
        ended.append(path)
        return served

    monkeypatch.setattr(engine.models, "_open", held)
    speakers = [voice(merged["one"]), voice(merged["two"])]
    waiting = [asyncio.create_task(engine.p_silent(request("a", "在吗", speaker))) for speaker in speakers]
    await until(begun.is_set)
    await engine.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["the engine is closed"] * 2
    assert refused == ["loading model 'model.gguf' was stopped"], "the second was not begun"
    assert ended == []
    assert not mapped([merged["one"], merged["two"]])


async def test_scenes_of_merged_models_spill_to_disk_each_in_files_of_its_own(
    tinies: dict[str, tinymodel.Tiny], merged: dict[str, Path], tmp_path: Path
) -> None:
    left = tmp_path / "0123456789abcdef-left.kv"
    changed = {"n_seq_max": 2, "n_parallel": 2, "spill_mb": 0, "spill_disk_mb": 64}
    left.write_bytes(b"of a process that was killed")
    engine = LlamaEngine(tinies["gemma3"].gguf, SETTINGS.model_copy(update=changed), spill=tmp_path)
    assert os.listdir(tmp_path) == [], "whichever model they were of"
    speakers = [BARE, voice(merged["one"], name="one/v1"), voice(merged["two"], name="two/v1")]
    words = "昨晚又熬夜了，困死我了哈哈哈" * 6
    first = {}
    for speaker in speakers:
        for seat in ("a", "b", "c"):  # the same names in each model
            found = await engine.p_silent(request(seat, f"{seat}{words}", speaker))
            first.setdefault(speaker.name, found)
    assert len(os.listdir(tmp_path)) == 3, "one scene had to leave in each"
    for speaker in speakers:
        async with engine.models.using(speaker) as served:
            read = served.batcher.evaluated
            again = await engine.p_silent(request("a", f"a{words}", speaker))
            assert served.batcher.evaluated - read < 20, "it came back, and was not read again"
        assert again == pytest.approx(first[speaker.name], rel=0.02)
    async with engine.models.using(speakers[1]) as served:
        served.spill.close()
    assert len(os.listdir(tmp_path)) == 2, "another model's files are its own"
    await engine.close()
    assert os.listdir(tmp_path) == []
