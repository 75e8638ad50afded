"""bot/memory.py: what the twin remembers of a scene."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME, OTHER, PRIVATE, at, say

from bot.archive import Archive
from bot.config import Conversation, Settings
from bot.engine import Measure
from bot.errors import EngineError
from bot.memory import Memory, Window
from bot.message import Origin, Scene
from bot.persona import Base, Manifest, Persona, Spec, Version, Who
from bot.prompt import FORMATS, Piece

SETTINGS = Settings()
PERSONA = Persona("xiaoman", Path(), Spec(display_name="小满", people=(ME,)), None)


def characters(pieces: Sequence[Piece]) -> int:
    """A tokenizer of one token a character: what fits can be counted by hand."""
    return sum(1 if p.control else len(p.text) for p in pieces)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield opened
    opened.close()


MEASURE = Measure(512, characters)
ROOMY = Measure(8192, characters)


def memory_of(archive: Archive, settings: Settings = SETTINGS) -> Memory:
    return Memory(archive, settings)


def look(
    memory: Memory, scene: Scene = GROUP, persona: Persona = PERSONA, measure: Measure = MEASURE
) -> Window:  # fmt: skip
    return memory.window(scene, persona, FORMATS["gemma"], measure)


def text(window: Window) -> str:
    return "".join(p.text for p in window.pieces)


def firsts(window: Window) -> list[str]:
    return [e.first.text for e in window.exchanges]


def test_a_system_prompt_that_leaves_nothing_to_be_heard_is_refused(archive: Archive) -> None:
    said = "明天早上八点在南门集合，记得带上护照和钱"
    archive.append([say(0, FRIEND, said, PRIVATE)])
    memory = memory_of(archive)

    def speaker(length: int, window: int | None = None) -> Persona:
        spec = Spec(display_name="小满", people=(ME,), who=Who(identity="她" * length))
        if window is None:
            return replace(PERSONA, spec=spec)
        manifest = Manifest(
            version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
            format="gemma", system_prompt=spec.system_prompt, files={}, settings={"model_max_length": window},
        )  # fmt: skip
        return replace(PERSONA, spec=spec, version=Version(Path(), manifest))

    around = characters(look(memory, PRIVATE, speaker(0)).pieces)
    assert said in text(look(memory, PRIVATE, speaker(384 - around - 20)))
    with pytest.raises(EngineError, match=r"'xiaoman' takes \d+ tokens of the 384 .* \[engine\] n_ctx larger \(512"):
        look(memory, PRIVATE, speaker(360))
    assert said in text(look(memory, PRIVATE, speaker(360), ROOMY))
    with pytest.raises(EngineError, match=r"of the 380 .*\[training\] model_max_length; 380 in this one"):
        look(memory, PRIVATE, speaker(360, 380), ROOMY)


def pair(i: int) -> list:  # type: ignore[type-arg]
    return [say(i * 100, FRIEND, f"问{i:03}"), say(i * 100 + 5, ME, f"答{i:03}")]


def test_the_window_is_the_scene_alone_with_the_newest_exchange_open(archive: Archive) -> None:
    archive.append([say(0, FRIEND, "嗨"), say(1, ME, "在"), say(30, OTHER, "早"), say(0, FRIEND, "私", PRIVATE)])
    window = look(memory_of(archive))
    assert firsts(window) == ["嗨", "早"]
    assert text(window).endswith("小红：早<end_of_turn>\n<start_of_turn>model\n")
    assert "私" not in text(window)
    assert "现在是QQ群「测试群」。" in text(window)
    assert window.last_spoke == at(1)
    assert window.speakers == {"阿强": {FRIEND}, "小红": {OTHER}}


def test_in_private_nobody_can_be_mentioned(archive: Archive) -> None:
    archive.append([say(0, FRIEND, "嗨", PRIVATE)])
    window = look(memory_of(archive), PRIVATE)
    assert window.speakers == {}
    assert "现在是你和阿强的QQ私聊。" in text(window)


def test_a_window_is_made_in_steps_of_what_stood_there_at_the_first(archive: Archive) -> None:
    archive.append([say(10 * n, (FRIEND, ME)[n % 2], f"第{n}句") for n in range(600)])
    memory = memory_of(archive)
    whole = look(memory, measure=ROOMY)
    steps = memory.steps(GROUP, PERSONA, FORMATS["gemma"], ROOMY)
    next(steps)
    archive.append([say(6000, FRIEND, "太晚")])
    taken = 1
    while True:
        try:
            next(steps)
        except StopIteration as made:
            window = made.value
            break
        taken += 1
    assert taken >= 5, "a message waits for one of them, not for all"
    assert (text(window), window.exchanges, window.before) == (text(whole), whole.exchanges, whole.before)
    assert "太晚" in text(look(memory, measure=ROOMY))


def test_an_empty_scene_has_an_empty_window(archive: Archive) -> None:
    window = look(memory_of(archive))
    assert (list(window.exchanges), window.last_spoke) == ([], None)


def test_recalled_and_system_messages_are_not_remembered(archive: Archive) -> None:
    archive.append(
        [say(0, FRIEND, "收回", id="1"), say(1, FRIEND, "/about", origin=Origin.SYSTEM), say(2, FRIEND, "留下")]
    )
    archive.recall(GROUP, "1", at(3))
    assert firsts(look(memory_of(archive))) == ["留下"]


def test_the_window_is_never_longer_than_those_the_version_was_trained_on(archive: Archive) -> None:
    manifest = Manifest(
        version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
        format="gemma", system_prompt="", files={}, settings={"model_max_length": 256},
    )  # fmt: skip
    trained = replace(PERSONA, version=Version(Path(), manifest))
    memory, longest = memory_of(archive), 0
    for i in range(48):
        archive.append(pair(i))
        longest = max(longest, characters(look(memory, persona=trained).pieces))
    assert 128 < longest <= 256


def test_the_window_never_exceeds_the_budget_and_drops_the_oldest_half_at_once(archive: Archive) -> None:
    memory = memory_of(archive)
    sizes: list[int] = []
    begins: list[str] = []
    for i in range(48):
        archive.append(pair(i))
        window = look(memory)
        assert characters(window.pieces) <= 512 - 128
        sizes.append(len(window.exchanges))
        begins.append(firsts(window)[0])
    moves = [i for i in range(1, 48) if begins[i] != begins[i - 1]]
    assert len(moves) >= 3
    for i in moves:
        assert sizes[i] <= sizes[i - 1] // 2 + 1, "the oldest half goes"
    for a, b in pairwise(moves):
        assert b - a >= 4, "and then nothing goes for a while"


def test_between_two_overflows_the_prompt_only_grows(archive: Archive) -> None:
    memory = memory_of(archive)
    before, grown = "", 0
    for i in range(40):
        archive.append(pair(i)[:1])
        now = text(look(memory))
        grown += now.startswith(before)
        before = now
        archive.append(pair(i)[1:])
    assert grown >= 33


def test_the_window_holds_max_turns_at_most(archive: Archive) -> None:
    settings = Settings(conversation=Conversation(max_turns=10))
    memory = memory_of(archive, settings)
    sizes = []
    for i in range(30):
        archive.append(pair(i))
        sizes.append(len(look(memory, measure=ROOMY).exchanges))
    assert max(sizes) == 10
    assert sizes[9:12] == [10, 5, 6]


def test_a_restart_gives_the_same_window(archive: Archive, tmp_path: Path) -> None:
    memory = memory_of(archive)
    for i in range(0, 40, 8):
        for k in range(8):
            archive.append(pair(i + k))
            before = look(memory)
        again = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
        assert text(look(memory_of(again))) == text(before)
        again.close()


def test_two_personas_have_their_own_windows(archive: Archive) -> None:
    memory = memory_of(archive)
    wordy = Persona("wordy", Path(), Spec(display_name="话痨", people=(ME,), who={"identity": "长" * 150}), None)  # type: ignore[arg-type]
    for i in range(20):
        archive.append(pair(i))
        short, long = look(memory), look(memory, persona=wordy)
    assert len(short.exchanges) != len(long.exchanges)
    assert firsts(look(memory)) == firsts(short)


def test_memory_clear_forgets_until_now_and_the_archive_keeps(archive: Archive) -> None:
    archive.append([say(0, FRIEND, "旧"), say(1, ME, "嗯")])
    memory = memory_of(archive)
    memory.clear(GROUP, at(2))
    assert list(look(memory).exchanges) == []
    archive.append([say(10, FRIEND, "新")])
    assert firsts(look(memory)) == firsts(look(memory_of(archive))) == ["新"]
    assert "旧" not in text(look(memory))
    assert len(archive.history(GROUP)) == 3


def test_a_quote_reaches_beyond_the_window(archive: Archive) -> None:
    memory = memory_of(archive)
    archive.append([say(-1000, OTHER, "很久以前", id="old"), say(-990, OTHER, "收回的", id="gone")])
    archive.append([say(-980, ACCOUNT, "命令的回答", id="system", origin=Origin.SYSTEM)])
    archive.recall(GROUP, "gone", at(-980))
    for i in range(20):
        archive.append(pair(i))
        look(memory)
    for number, target in enumerate(("old", "gone", "system", "unknown")):
        archive.append([say(9000 + number, FRIEND, f"看这条{number}", reply_to=target)])
    window = look(memory)
    assert "很久以前" not in firsts(window)
    assert "阿强：[回复 小红：很久以前]看这条0\n阿强：看这条1\n阿强：看这条2\n阿强：看这条3" in text(window)


def test_a_burst_longer_than_the_window_loses_its_oldest_bubbles(archive: Archive) -> None:
    archive.append([*pair(0), *(say(100 + i, FRIEND, str(i) * 90) for i in range(6))])
    window = look(memory_of(archive))
    assert characters(window.pieces) <= 512 - 128
    assert [m.text[0] for m in window.exchanges[-1].heard] == ["4", "5"] or window.exchanges[-1].heard[-1].text[
        0
    ] == "5"
    assert len(window.exchanges) == 1


def test_a_bubble_longer_than_the_window_keeps_its_end(archive: Archive) -> None:
    archive.append([say(0, FRIEND, "开头" + "长" * 4000 + "结尾")])
    window = look(memory_of(archive))
    assert characters(window.pieces) <= 512 - 128
    (heard,) = window.exchanges[-1].heard
    assert heard.text.endswith("结尾")
    assert len(heard.text) > 50


def test_after_a_giant_burst_the_scene_goes_on(archive: Archive) -> None:
    memory = memory_of(archive)
    archive.append([say(0, FRIEND, "长" * 4000)])
    look(memory)
    archive.append([say(5, ME, "太长不看"), say(40, FRIEND, "好吧")])
    window = look(memory)
    assert firsts(window)[-1] == "好吧"
    assert characters(window.pieces) <= 512 - 128


def test_scenes_longer_than_what_is_read_stay_prefix_stable(archive: Archive) -> None:
    settings = Settings(conversation=Conversation(max_turns=20))
    memory = memory_of(archive, settings)
    archive.append([m for i in range(100) for m in pair(i)])
    before, grown = text(look(memory, measure=ROOMY)), 0
    for i in range(100, 120):
        archive.append(pair(i)[:1])
        now = text(look(memory, measure=ROOMY))
        grown += now.startswith(before)
        before = now
        archive.append(pair(i)[1:])
    assert grown >= 16
