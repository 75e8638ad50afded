"""Corrections become pairs at the very prompt the live twin decided on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinymodel
from chats import ACCOUNT, FRIEND, GROUP, ME, OTHER, PRIVATE, at, say
from tokenizers import Tokenizer

from bot import corrections
from bot.archive import Archive, Decision
from bot.config import Cleaning, Settings
from bot.corrections import Correction, How
from bot.engine import Measure
from bot.memory import Memory
from bot.message import Message, Origin, Scene
from bot.persona import Persona, Spec
from bot.prompt import encode
from training import corpus
from training.hf import HFTokenizer
from training.preferences import Pair, pairs
from training.samples import Split, split_of

SETTINGS = Settings()
SPEC = Spec(display_name="小满", people=(ME,))
END = "<end_of_turn>"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodel.build(tmp_path_factory.mktemp("tiny")).hf


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield opened
    opened.close()


def asked(archive: Archive, seconds: float, scene: Scene = GROUP, sender: str = FRIEND) -> Message:
    """An exchange of the person's, then a burst the twin answers with two bubbles; gives the first."""
    heard = say(seconds + 70, sender, "吃什么", scene)
    archive.append([
        say(seconds, FRIEND, "早", scene), say(seconds + 5, ME, "早呀", scene), say(seconds + 65, FRIEND, "喂", scene),
        heard,
    ])  # fmt: skip
    said = [say(seconds + 75, ACCOUNT, t, scene, id=f"t{seconds:g}-{n}") for n, t in enumerate(("吃面", "加个蛋"))]
    archive.append(said)
    archive.decide(Decision(scene, heard.id, at(seconds + 76), "xiaoman", "v1", "spoke"))
    return said[0]


def corrected(archive: Archive, bubble: Message, how: How, wanted: tuple[str, ...] | None, after: float = 900) -> None:
    when = at(after)
    corrections.correct(archive, bubble, how, wanted, by="555", told=None, persona="xiaoman", now=when)


def made(
    archive: Archive, base: Path, given: list[Correction] | None = None, max_length: int = 256, **how: Any
) -> list[Pair]:  # fmt: skip
    tokenizer = HFTokenizer(base)
    learned = corpus.build(archive, [ME], SPEC.names, SETTINGS.conversation)
    found = corrections.current(archive) if given is None else given
    return pairs(archive, found, learned, tokenizer, tokenizer.format, SPEC.system_prompt, max_length, **how)


def told(base: Path, ids: tuple[int, ...] | None) -> str:
    words = Tokenizer.from_file(str(base / "tokenizer.json"))
    return str(words.decode(list(ids or ()), skip_special_tokens=False))


@pytest.mark.parametrize("scene", [GROUP, PRIVATE, Scene("private", ME)])
def test_the_prompt_is_the_one_the_live_twin_decided_on(
    archive: Archive, base: Path, tmp_path: Path, scene: Scene
) -> None:
    # Also in the person's chat with their own twin, where they are the other side and nothing is a label.
    before = Archive(f"sqlite:///{tmp_path / 'before.db'}")
    bubble = asked(archive, 0, scene, ME if scene.id == ME else FRIEND)
    before.append([m for m in archive.window(scene, 10) if m.origin is Origin.HUMAN])
    corrected(archive, bubble, How.UNLIKE, ("不吃", "减肥呢"))
    tokenizer = HFTokenizer(base)
    measure = Measure(512, lambda pieces: len(encode(pieces, tokenizer, bos=False)[0]))
    persona = Persona("xiaoman", tmp_path, SPEC, None)
    live = Memory(before, SETTINGS).window(scene, persona, tokenizer.format, measure)
    (pair,) = made(archive, base)
    assert list(pair.prompt) == encode(live.pieces, tokenizer)[0]
    assert told(base, pair.chosen) == f"不吃\n减肥呢{END}"
    assert told(base, pair.rejected) == f"吃面\n加个蛋{END}"
    before.close()


def test_silence_is_the_end_of_turn_alone(archive: Archive, base: Path) -> None:
    corrected(archive, asked(archive, 0), How.HUSH, ())
    (pair,) = made(archive, base)
    assert told(base, pair.chosen) == END
    assert pair.chosen is not None
    assert len(pair.chosen) == 1


def test_what_the_person_then_said_themselves_is_what_was_wanted(archive: Archive, base: Path) -> None:
    bubble = asked(archive, 0)
    for bubble_id in ("t0-0", "t0-1"):
        corrections.recalled(archive, GROUP, bubble_id, by=ACCOUNT, persona="xiaoman", now=at(80))
        archive.recall(GROUP, bubble_id, at(80))
    assert made(archive, base)[0].chosen is None, "nobody said what"
    archive.append([say(84, ME, "[图片]")])
    assert made(archive, base)[0].chosen is None, "a picture is nothing to learn"
    archive.append([say(85, ME, "随便")])
    (pair,) = made(archive, base)
    assert (told(base, pair.chosen), told(base, pair.rejected)) == (f"随便{END}", f"吃面\n加个蛋{END}")
    assert bubble.id == "t0-0"


def test_the_prompt_ends_where_it_was_decided_also_when_the_burst_went_on(archive: Archive, base: Path) -> None:
    bubble = asked(archive, 0)
    corrected(archive, bubble, How.HUSH, ())
    for bubble_id in ("t0-0", "t0-1"):
        archive.recall(GROUP, bubble_id, at(300))
    archive.append([say(78, FRIEND, "人呢")])
    (pair,) = made(archive, base)
    assert "吃什么" in told(base, pair.prompt)
    assert "人呢" not in told(base, pair.prompt)


def test_a_pair_is_of_its_conversations_split(archive: Archive, base: Path) -> None:
    for day in range(60):
        bubble = asked(archive, day * 90000, GROUP, OTHER)
        corrected(archive, bubble, How.HUSH, (), day * 90000 + 100)
    found = made(archive, base)
    firsts = [f"{FRIEND}-{day * 90000:g}" for day in range(60)]
    assert [p.split for p in found] == [split_of(GROUP, first) for first in firsts]
    assert {p.split for p in found} == {Split.TRAIN, Split.TUNE, Split.TEST}


def test_a_conversation_of_the_newest_waits_where_it_would_be_trained(archive: Archive, base: Path) -> None:
    for day in range(20):
        corrected(archive, asked(archive, day * 90000), How.HUSH, (), day * 90000 + 100)
    every = [p.split for p in made(archive, base)]
    waiting = [p.split for p in made(archive, base, newest=at(10 * 90000))]
    assert waiting[:10] == every[:10]
    assert waiting[10:] == [Split.NEWEST if split is Split.TRAIN else split for split in every[10:]]
    assert set(waiting) == {Split.TRAIN, Split.NEWEST, Split.TEST} | set(every)


def test_stickers_have_their_names_as_they_are_shown_live(archive: Archive, base: Path) -> None:
    key = "0123456789abcdef" * 2
    image = {"type": "image", "data": {"file": f"{key}.gif", "sub_type": 1}}
    archive.append([say(-60, FRIEND, "[动画表情]", segments=(image,))])
    corrected(archive, asked(archive, 0), How.HUSH, ())
    (pair,) = made(archive, base, stickers={key: "贴贴"})
    assert "[动画表情:贴贴]" in told(base, pair.prompt)


def test_what_is_gone_equal_or_too_long_makes_no_pair(archive: Archive, base: Path) -> None:
    corrected(archive, asked(archive, 0), How.UNLIKE, ("吃面", "加个蛋"))
    corrected(archive, asked(archive, 90000), How.HUSH, (), 90100)
    corrected(archive, asked(archive, 180000), How.UNLIKE, ("很长的话" * 80,), 180100)
    corrected(archive, asked(archive, 270000), How.HUSH, (), 270100)
    archive.recall(GROUP, f"{FRIEND}-90070", at(90200))
    assert len(corrections.current(archive)) == 4
    (pair,) = made(archive, base)
    assert len(pair.prompt) < 256
    assert "吃什么" in told(base, pair.prompt)


def test_secrets_typed_as_the_wanted_answer_are_redacted_as_all_is_shown(archive: Archive, base: Path) -> None:
    corrected(archive, asked(archive, 0), How.UNLIKE, ("打13812345678",))
    (pair,) = made(archive, base)
    assert told(base, pair.chosen) == f"打[手机号]{END}"
    assert Cleaning().redact
