import asyncio
import math
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncGenerator
from io import StringIO
from pathlib import Path

import pytest
import tinylora
import tinymodel
from chats import FRIEND, GROUP, ME, PRIVATE, say
from rich.console import Console

from bot import config
from bot.byhand import ByHand
from bot.checksum import sha256
from bot.errors import ConfigError, EngineError, PersonaError
from bot.llama import Model
from bot.message import Origin
from bot.persona import Base, Calibration, Manifest
from bot.prompt import Piece, encode
from bot.reply import Look
from bot.scorer import Scorer
from bot.terminal import SCENE, NoTransport, Terminal, choose
from bot.twin import Twin


@pytest.fixture
def twin(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> Twin:
    settings = config.load(tmp_path / "bot.toml", {"TWIN__CHAT__PERSONA": "me", "TWIN__ENGINE__N_GPU_LAYERS": "0"})
    engine = settings.engine.model_copy(update={"base": str(tinies["gemma3"].gguf), "n_ctx": 512, "n_threads": 1})
    settings = settings.model_copy(
        update={"engine": engine, "paths": settings.paths.model_copy(update={"data": tmp_path / "data"})}
    )
    folder = tmp_path / "data" / "personas" / "me"
    folder.mkdir(parents=True)
    text = 'display_name = "阿满"\n[sampling]\nmax_tokens = 8\n[reply]\nbias = {}\n'
    (folder / "persona.toml").write_text(text.format("30.0"), "utf-8")
    mute = folder.with_name("mute")
    mute.mkdir()
    (mute / "persona.toml").write_text(text.format("-30.0").replace("阿满", "哑巴"), "utf-8")
    return Twin.assemble(settings, tmp_path, NoTransport())


async def talk(twin: Twin, *lines: str) -> str:
    """What the terminal shows when these lines are typed."""
    typed = iter(lines)

    def read() -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    shown = StringIO()
    try:
        await Terminal(twin, Console(file=shown, width=200, color_system=None), read, rng=random.Random(1)).run()
    finally:
        await twin.close()
    return shown.getvalue()


def visible(text: str) -> str:
    """A bubble as a terminal shows it: a line break inside it is one."""
    return text.replace("↵", "\n")


async def test_what_is_typed_is_answered_and_stored_as_the_twins(twin: Twin) -> None:
    choose(twin, None)
    shown = await talk(twin, "你好", "/quit", "再说一句")
    stored = twin.archive.window(SCENE, 10)
    assert (stored[0].text, stored[0].origin) == ("你好", Origin.HUMAN)
    answers = [m.text for m in stored[1:] if m.origin is Origin.TWIN]
    assert answers
    assert all(f"阿满 {visible(text)}" in shown for text in answers)
    assert "再说一句" not in [m.text for m in stored], "/quit ends it"


async def test_typed_bytes_that_are_no_text_are_shown_as_such_and_answered(twin: Twin) -> None:
    choose(twin, None)
    await talk(twin, "\udcff你好\udcfe")
    said = twin.archive.window(SCENE, 10)
    assert said[0].text == "�你好�"
    assert said[1].origin is Origin.TWIN


async def test_why_shows_the_terms_of_the_last_decision(twin: Twin) -> None:
    shown = await talk(twin, "/why", "你好", "/why")
    assert "还没有做过决定" in shown
    assert "配置·偏置 +30.0" in shown


async def test_a_switched_persona_answers_and_its_silence_is_shown(twin: Twin) -> None:
    shown = await talk(twin, "/persona 哑巴", "你好", "/persona nobody", "/exit")
    assert "现在是 哑巴" in shown
    assert "看到了，没回" in shown
    assert "no persona 'nobody'" in shown


async def test_clear_forgets_what_was_said(twin: Twin) -> None:
    shown = await talk(twin, "你好", "/clear", "/why")
    assert "还没有做过决定" in shown
    cleared = twin.archive.latest(SCENE, "memory")
    assert cleared is not None
    assert twin.archive.window(SCENE, 10, cleared[1]) == []


async def test_a_closed_engine_says_so(twin: Twin) -> None:
    await talk(twin)
    with pytest.raises(EngineError, match="is closed"):
        twin.engine.count([Piece("你好")])


async def test_personas_are_listed_as_in_qq(twin: Twin) -> None:
    choose(twin, None)
    assert await talk(twin, "/persona") == await talk(twin, "/persona list")
    shown = await talk(twin, "/persona list")
    assert all(name in shown for name in twin.personas.names())


def test_an_unknown_persona_is_named(twin: Twin) -> None:
    with pytest.raises(PersonaError, match="nobody"):
        choose(twin, "nobody")


def test_without_a_base_there_is_a_remedy(tmp_path: Path) -> None:
    settings = config.load(tmp_path / "bot.toml", {"TWIN__ENGINE__BASE": '"nowhere.gguf"'})
    with pytest.raises(EngineError, match=r"nowhere\.gguf.*give the path of a GGUF"):
        Twin.assemble(settings, tmp_path, NoTransport())


async def test_a_lora_a_prompt_and_settings_can_be_given_by_hand(
    twin: Twin, tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    lora = tinylora.write(tmp_path / "mine.gguf", tinies["gemma3"].gguf, seed=1)
    persona = twin.persona_of(SCENE)
    made = ByHand(lora, system_prompt="你是阿花。", temperature=0.0, max_tokens=3).persona(persona, "gemma", tmp_path)
    assert (made.system_prompt, made.spec.sampling.temperature, made.spec.sampling.max_tokens) == ("你是阿花。", 0, 3)
    assert made.spec.sampling.top_p == persona.spec.sampling.top_p
    assert made.version is not None
    assert made.version.lora.read_bytes() == lora.read_bytes()
    assert twin.replier.voice(made).lora == made.version.lora
    assert ByHand(lora).persona(persona, "gemma", tmp_path).system_prompt == persona.spec.system_prompt != ""
    assert ByHand(bare=True).persona(made, "gemma", tmp_path).version is None
    with pytest.raises(ConfigError, match="--temperature"):
        ByHand(temperature=9.0).persona(persona, "gemma", tmp_path)
    with pytest.raises(PersonaError, match="is no file"):
        ByHand(lora=tmp_path).persona(persona, "gemma", tmp_path)
    await twin.close()


async def test_a_sequence_belongs_to_a_scene_and_a_persona(twin: Twin) -> None:
    seats = []
    for at, scene in enumerate((PRIVATE, GROUP)):
        twin.archive.append([say(at, FRIEND, "在吗", scene)])
        for name in ("me", "mute", "me"):
            look = await twin.replier.look(scene, twin.personas.load(name), ME, lambda _: 0.5)
            assert look is not None
            seats.append(look.request.seat)
    assert (seats[0], seats[3]) == (seats[2], seats[5])
    assert len(set(seats)) == 4
    await twin.close()


async def test_a_window_too_small_for_the_system_prompt_is_told_and_others_answer(twin: Twin) -> None:
    folder = twin.personas.root / "wordy"
    folder.mkdir()
    identity = "龘" * 300  # three tokens each
    (folder / "persona.toml").write_text(f'display_name = "话多"\n[who]\nidentity = "{identity}"\n', "utf-8")
    shown = await talk(twin, "/persona 话多", "你好", "/persona 阿满", "你好")
    told = "".join(shown.split())
    assert "thesystempromptof'wordy'takes" in told
    assert "shortenpersona.toml,orset[engine]n_ctxlarger(512now)" in told
    assert "\n阿满 " in shown.split("现在是 阿满")[1]


async def test_a_merged_version_answers_and_the_next_one_takes_over(
    twin: Twin, tinies: dict[str, tinymodel.Tiny], tmp_path: Path
) -> None:
    """Its own vocabulary counts, its own format renders, and a published version is taken up at the next look."""
    other = tinymodel.build(tmp_path / "other", "qwen3", seed=9)

    def publish(version: str, gguf: Path) -> Path:
        result = tmp_path / version
        result.mkdir()
        model = Path(shutil.copy2(gguf, result / "model.gguf"))
        base = Base(file="qwen.gguf", sha256="f" * 64, architecture="qwen3")
        calibration = Calibration(intercept=0.0, weights={"log_odds": 1.0})
        manifest = Manifest(
            version=version, created="", base=base, format="qwen3", system_prompt="你是阿满。",
            files={"model.gguf": sha256(model)}, calibration=calibration,
        )  # fmt: skip
        (result / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
        found = twin.personas.publish("me", result).model
        assert found is not None
        return found

    async def look() -> Look:
        twin.archive.append([say(len(looks) * 100, FRIEND, "在吗", PRIVATE)])
        found = await twin.replier.look(PRIVATE, twin.persona_of(PRIVATE), ME, lambda _: 0.5)
        assert found is not None
        return found

    looks: list[Look] = []
    paths = [publish("20260101-0400", tinies["qwen3"].gguf)]
    looks.append(await look())
    paths.append(publish("20260102-0400", other.gguf))
    looks.append(await look())
    assert [found.request.voice.model for found in looks] == paths
    for found, path in zip(looks, paths, strict=True):
        model = Model(path, 0)
        scorer = Scorer(path, None, 1024, 1)
        ids = encode(found.request.pieces, model)[0]
        expected = math.exp(scorer.log_probs(ids, [(len(ids), model.end_id)])[0])
        assert found.moment.p_silent == pytest.approx(expected, rel=0.02)
        assert [bubble async for bubble in twin.replier.bubbles(found)]
        scorer.close()
        model.close()
    await twin.close()


async def test_what_would_not_leave_in_qq_is_said_so_and_not_stored(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def written(_: Look) -> AsyncGenerator[str, None]:
        for bubble in ("[图片]", "好看吗"):
            yield bubble

    monkeypatch.setattr(twin.replier, "bubbles", written)
    choose(twin, None)
    shown = await talk(twin, "发张照片")
    assert "想发 [图片]，没有可发的" in shown
    assert "阿满 好看吗" in shown
    assert [m.text for m in twin.archive.window(SCENE, 10) if m.origin is Origin.TWIN] == ["好看吗"]


async def test_sigint_ends_the_answer_and_at_the_prompt_the_talk(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def written(_: Look) -> AsyncGenerator[str, None]:
        yield "在"
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
        yield "后半句"

    monkeypatch.setattr(twin.replier, "bubbles", written)
    typed = iter(["在吗", "/clear"])

    def read() -> str:
        line = next(typed, None)
        if line is None:  # as one that waits for a key
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return line or "/why"

    choose(twin, None)
    shown, before = StringIO(), signal.getsignal(signal.SIGINT)
    async with asyncio.timeout(20):
        await Terminal(twin, Console(file=shown, width=200, color_system=None), read, rng=random.Random(1)).run()
    await twin.close()
    said = shown.getvalue()
    assert said.index("阿满 在") < said.index("打断了") < said.index("不记得了")
    assert "后半句" not in said
    assert signal.getsignal(signal.SIGINT) is before
