"""training/talking.py beside the llama.cpp engine on the same tiny weights: one port, two implementations."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import tinymodel
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bot.config import Engine
from bot.engine import Request, Voice
from bot.errors import EngineError, TrainingError
from bot.persona import Sampling
from bot.prompt import FORMATS, Piece
from bot.serving import LlamaEngine
from training.base import fetched
from training.talking import TransformersEngine

GEMMA = FORMATS["gemma"]
VOICE = Voice("bare", None, GEMMA)
GREEDY = Sampling(temperature=0, repeat_penalty=1.0, max_tokens=16)
TURNS = (
    ["在吗"],
    ["在吗", "在的", "吃饭没"],
    ["在吗", "在的", "吃饭没", "没", "出来"],
    ["早呀，今天吃什么？"],
    ["晚安"],
)


def request(turns: list[str], sampling: Sampling = GREEDY, seed: int = 1) -> Request:
    pieces = [Piece(GEMMA.system_open, True), Piece("你是小满。"), Piece(GEMMA.system_close, True)]
    for number, text in enumerate(turns):
        if number % 2:
            pieces += [Piece(text), Piece(GEMMA.end, True), Piece(GEMMA.after, True)]
        else:
            pieces += [Piece(GEMMA.user_open, True)] if number else []
            pieces += [Piece(text), Piece(GEMMA.user_close, True), Piece(GEMMA.assistant_open, True)]
    return Request("a", VOICE, pieces, sampling, seed)


async def said(engine: TransformersEngine | LlamaEngine, asked: Request) -> list[str]:
    return [bubble async for bubble in engine.bubbles(asked)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    return tinymodel.build(tmp_path_factory.mktemp("tiny") / "gemma3")


@pytest.fixture
async def engine(tiny: tinymodel.Tiny) -> AsyncIterator[TransformersEngine]:
    made = TransformersEngine(tiny.hf, None, 512)
    yield made
    await made.close()


async def test_it_says_what_llama_cpp_says(engine: TransformersEngine, tiny: tinymodel.Tiny) -> None:
    theirs = LlamaEngine(tiny.gguf, Engine(n_ctx=512, kv_tokens=1024, n_threads=1), "0" * 64)
    words = 0
    for turns in TURNS:
        asked = request(turns)
        assert await engine.p_silent(asked) == pytest.approx(await theirs.p_silent(asked), rel=0.05)
        answer, ending = await said(engine, asked), replace(asked.ending)
        assert answer == await said(theirs, asked)
        assert asked.ending == ending
        assert ending.tokens
        words += bool(answer)
    assert words >= 3
    await theirs.close()


async def test_the_same_seed_gives_the_same_text_and_another_one_another(engine: TransformersEngine) -> None:
    free = Sampling(temperature=1.0, max_tokens=24)
    first, again, other = [await said(engine, request(["在吗"], free, seed)) for seed in (1, 1, 2)]
    assert first == again != other


async def test_a_trained_lora_changes_what_is_said(tiny: tinymodel.Tiny, tmp_path: Path) -> None:
    torch.manual_seed(3)
    lora = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny.hf), LoraConfig(r=4, target_modules="all-linear"))
    for name, weight in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    lora.save_pretrained(tmp_path / "peft")
    with_lora, without = (TransformersEngine(tiny.hf, peft, 512) for peft in (tmp_path / "peft", None))
    assert await said(with_lora, request(["在吗"])) != await said(without, request(["在吗"]))


async def test_it_stops_when_nobody_listens_and_refuses_what_does_not_fit(engine: TransformersEngine) -> None:
    async with aclosing(engine.bubbles(request(["在吗"], Sampling(temperature=1.0, max_tokens=400)))) as bubbles:
        task = asyncio.ensure_future(anext(bubbles, None))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(EngineError, match="n_ctx = 512"):
        await engine.p_silent(request(["龘" * 1000]))
    assert 0 < await engine.p_silent(request(["在吗"])) < 1


def test_what_is_no_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TrainingError, match="'no/such-model' is no folder"):
        fetched("no/such-model")
    with pytest.raises(TrainingError, match=r"no tokenizer\.json"):
        TransformersEngine(tmp_path, None, 512)
