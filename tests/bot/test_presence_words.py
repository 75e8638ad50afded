"""bot/presence.py: what an answer is said with – repeats, stickers, pokes, quotes."""

import base64
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME, OTHER, PRIVATE
from stage import Stage

from bot.archive import Archive
from bot.config import Paths
from bot.config import Stickers as StickerRules
from bot.message import Message, Scene
from bot.persona import Base, Manifest, Pacing, Version
from bot.stickers import Stickers


async def test_bubbles_that_only_count_on_end_the_answer(stage: Stage) -> None:
    stage.engine.lines = ["我睡了3次", "困", "我睡了4次", "我睡了5次"]
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["我睡了3次", "困"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["好<|im_end|>", "<|im_start|>user", "在吗"], ["好"]),
        (["好", "<end_of_turn>", "阿强：在吗"], ["好"]),
        (["好<|eot_id|>呀", "阿强：在吗"], ["好"]),
        (["好<|im_\u200bend|>", "阿强：在吗"], ["好"]),
        (["<|im_[CQ:shake]end|>", "阿强：在吗"], []),
        (["<think>", "他在问我", "</think>", "好"], []),
        (["a<b", "[INSTANT]", "1<2>1", "<3"], ["a<b", "[INSTANT]", "1<2>1", "<3"]),
    ],
)
async def test_a_token_of_a_chat_format_is_never_sent_and_ends_the_answer(
    stage: Stage, lines: list[str], said: list[str]
) -> None:
    stage.engine.lines = lines
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == said


async def test_a_cq_code_is_never_said(stage: Stage) -> None:
    stage.engine.lines = ["[CQ:at,qq=all]来", "[CQ:image,file=file:///etc/hostname]", "[CQ:是什么"]
    stage.hear("嗨")
    await stage.quiet()
    assert stage.wire.segments == [[{"type": "text", "data": {"text": words}}] for words in ("来", "[CQ:是什么")]
    assert [m.text for m in stage.archive.window(GROUP, 9)] == ["嗨", "来", "[CQ:是什么"]


async def test_bubbles_are_compared_as_they_are_sent_and_none_is_sent_that_nobody_sees(stage: Stage) -> None:
    stage.engine.lines = [
        "好",
        "[图片]",
        "好",
        "嗯[图片]",
        "嗯",
        "\u200b",
        "嗯 [卡片:x]",
        "[微笑]\u200d[语音]",
        "[微笑]",
    ]
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["好", "嗯", ""]
    assert stage.wire.segments[2] == [{"type": "face", "data": {"id": "14"}}]


async def test_bubbles_of_which_nothing_can_be_sent_do_not_count(archive: Archive) -> None:
    stage = Stage(archive, max_bubbles=2)
    stage.engine.lines = ["[图片]", "[语音]", "好", "嗯"]
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["好", "嗯"]


async def test_who_says_things_twice_may_and_no_more_than_twice(stage: Stage) -> None:
    stage.engine.lines = ["在吗", "在吗", "在吗", "好", "在吗"]
    manifest = Manifest(
        version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
        format="gemma", system_prompt="", files={}, pacing=Pacing(repeat_share=0.01),
    )  # fmt: skip
    stage.persona = replace(stage.persona, version=Version(Path(), manifest))
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["在吗", "在吗", "好", "在吗"]


async def test_who_hardly_ever_says_things_twice_may_not(stage: Stage) -> None:
    stage.engine.lines = ["在吗", "在吗", "好"]
    manifest = Manifest(
        version="1", created="2026-01-01T00:00:00+00:00", base=Base(file="b", sha256="0", architecture="gemma3"),
        format="gemma", system_prompt="", files={}, pacing=Pacing(repeat_share=0.004),
    )  # fmt: skip
    stage.persona = replace(stage.persona, version=Version(Path(), manifest))
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["在吗", "好"]


async def test_a_market_face_the_person_used_is_sent_as_they_sent_it(stage: Stage) -> None:
    face = {"emoji_id": "ab", "emoji_package_id": 7, "key": "k", "summary": "[猫猫摇头]"}
    stage.persona = replace(stage.persona, spec=stage.persona.spec.model_copy(update={"people": (ME,)}))
    own = Message(
        "f1", PRIVATE, ME, "小满", datetime.now(UTC), "[猫猫摇头]", segments=({"type": "mface", "data": face},)
    )
    stage.archive.append([own])
    sent: list[dict[str, Any]] = []
    send = stage.wire.send

    async def keep(account: str, scene: Scene, segments: list[dict[str, Any]]) -> str:
        sent.extend(segments)
        return await send(account, scene, segments)

    stage.wire.send = keep  # type: ignore[method-assign]
    stage.engine.lines = ["[猫猫摇头]", "[动画表情]"]
    stage.hear("嗨")
    await stage.quiet()
    assert sent == [{"type": "mface", "data": face | {"emoji_package_id": "7"}}]


async def test_a_sticker_of_the_library_is_sent_with_its_file_and_stored_without(
    archive: Archive, tmp_path: Path
) -> None:
    content, md5 = b"GIF89a" + b"x" * 1000, "a" * 32
    library = Stickers(tmp_path / "stickers", StickerRules(enabled=True))
    library.add(content, md5, "[贴贴]", ME, datetime.now(UTC))
    stage = Stage(archive)
    stage.settings = stage.settings.model_copy(
        update={"stickers": StickerRules(enabled=True), "paths": Paths(data=tmp_path)}
    )
    stage.restart()
    stage.persona = replace(stage.persona, spec=stage.persona.spec.model_copy(update={"people": (ME,)}))
    stage.engine.lines = ["来[动画表情:贴贴]", "[动画表情:没有的]", "[动画表情]", "[骰子]"]
    stage.hear("嗨")
    await stage.quiet()
    (first, dice) = stage.wire.segments
    assert [s["type"] for s in first] == ["text", "image"]
    assert base64.b64decode(first[1]["data"]["file"].removeprefix("base64://")) == content
    assert dice == [{"type": "dice", "data": {}}]
    stored = archive.window(GROUP, 10)[1]
    assert stored.text == "来[动画表情:贴贴]"
    assert "base64" not in str(stored.segments)


async def test_no_more_bubbles_than_allowed(archive: Archive) -> None:
    stage = Stage(archive, max_bubbles=2)
    stage.engine.lines = list("一二三四")
    stage.hear("嗨")
    await stage.quiet()
    assert stage.said == ["一", "二"]
    assert stage.engine.closed == 1


@pytest.mark.parametrize(
    ("line", "poked"), [("[戳一戳]", [OTHER]), ("[戳一戳]@老王", ["10003"]), ("[戳一戳]@没人", [])]
)
async def test_who_is_named_is_poked_else_who_asked(stage: Stage, line: str, poked: list[str]) -> None:
    stage.archive.append([Message("w", GROUP, "10003", "老王", datetime.now(UTC), "嗯")])
    stage.engine.lines = [line]
    stage.hear("戳他", sender=OTHER)
    await stage.quiet()
    assert stage.wire.segments == [[{"type": "poke", "data": {"id": qq}}] for qq in poked]


async def test_who_asked_is_poked(stage: Stage) -> None:
    stage.engine.lines = ["[戳一戳]"]
    sent: list[list[dict[str, Any]]] = []

    async def note(_: str, __: Scene, segments: list[dict[str, Any]]) -> str:
        sent.append(segments)
        return "poke-1"

    stage.wire.send = note  # type: ignore[method-assign]
    stage.hear("[戳一戳]", sender=OTHER, mentions=(ACCOUNT,))
    await stage.quiet()
    assert sent == [[{"type": "poke", "data": {"id": OTHER}}]]
    assert stage.archive.window(GROUP, 1)[0].text == "[戳一戳]"


@pytest.mark.parametrize(
    ("heard", "quotes"),
    [
        ([("在吗", FRIEND, {}), ("我也想问", OTHER, {})], [None, None]),
        ([("在吗", FRIEND, {"mentions": (ME,)})], [None, None]),
        ([("在吗", FRIEND, {"mentions": (ME,)}), ("问你个事", FRIEND, {})], [None, None]),
        ([("在吗", FRIEND, {"mentions": (ME,)}), ("今天好冷", OTHER, {})], ["m2", None]),
        ([("今天好冷", OTHER, {}), ("真的吗", FRIEND, {"reply_to": "m1"}), ("是啊", OTHER, {})], ["m3", None]),
        ([("今天好冷", OTHER, {}), ("在吗", FRIEND, {"mentions": (ME,)})], [None, None]),
    ],
)
async def test_an_answer_to_something_not_last_quotes_it(
    stage: Stage, heard: list[tuple[str, str, dict[str, Any]]], quotes: list[str | None]
) -> None:
    stage.persona = replace(stage.persona, spec=stage.persona.spec.model_copy(update={"people": (ME,)}))
    stage.engine.lines = ["一", "　好"]
    stage.hear("我先说的", sender=ME)
    for text, sender, how in heard:
        stage.hear(text, sender=sender, **how)
    await stage.quiet()
    assert stage.wire.quotes == quotes


async def test_words_taken_back_stand_between_nothing(stage: Stage) -> None:
    stage.hear("在吗")
    slip = stage.hear("呀发错了")
    stage.archive.recall(slip.scene, slip.id, slip.time)
    stage.presence.recalled(slip.scene, slip.id)
    await stage.quiet()
    assert stage.wire.quotes == [None]
