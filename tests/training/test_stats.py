"""training/stats.py, preview.py, plots.py: what is told of a corpus before any training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chats import FRIEND, GROUP, ME, OTHER, PRIVATE, say

from bot.archive import Archive
from bot.config import Cleaning, Conversation, Settings, Training
from bot.message import Message, Scene
from bot.prompt import FORMATS
from training import modelclean, preview, stats
from training.corpus import Corpus, build
from training.samples import Split, windows

LATER = say(400 * 86400, FRIEND, "很久以后", Scene("group", "901"))
TALK = [
    say(0, FRIEND, "电话多少"), say(7, ME, "13800001111"), say(9, ME, "[微笑]"),
    say(60, OTHER, "有人吗"), say(120, OTHER, "我发个公告请大家看一下"), say(125, ME, "我发个公告请大家看一下"),
    say(0, FRIEND, "在", PRIVATE), say(30, ME, "在[动画表情]", PRIVATE), LATER,
]  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield opened
    opened.close()


def corpus(archive: Archive, said: list[Message] = TALK) -> Corpus:
    archive.append(said)
    return build(archive, [ME], ["小满"], Conversation())


def test_the_figures_of_a_small_talk_can_be_counted_by_hand(archive: Archive) -> None:
    found = stats.figures(corpus(archive))
    assert (found["turns"], found["bubbles"], found["silences"], found["masked_repeat"]) == (3, 4, 1, 1)
    assert found["bubbles_per_turn"] == {1: 2, 2: 1}
    assert found["reply_delay_s"]["private"] == {"p10": 30, "p50": 30, "p90": 30, "p99": 30, "mean": 30, "n": 1}
    assert found["reply_delay_s"]["group"]["mean"] == 6
    assert found["silence_rate"] == {"private": 0.0, "group": 0.333}
    assert found["stickers"] == {"bubbles_with_sticker": 1, "bubbles_with_face": 1, "faces": {"微笑": 1}}
    assert (found["redacted_own"], found["redacted_others"]) == ({"[手机号]": 1}, {})
    assert sum(found["hours"]) == 4
    assert found["hours"][23] == 4, "23:10 in Shanghai"
    assert found["per_scene"][str(GROUP)] == {"messages": 6, "turns": 2, "silences": 1, "masked": 1}
    assert found["answers_in_groups"] == {"scored": 2}


def test_an_empty_corpus_has_figures(archive: Archive) -> None:
    found = stats.figures(corpus(archive, []))
    assert (found["turns"], found["chars_per_bubble"], found["silence_rate"]["group"]) == (0, {}, None)
    first, second = stats.in_words(found).splitlines()
    assert first == "0 messages, 0 scenes, 0 conversations"
    assert second.startswith(f"{ME} says nothing there: is `people` in persona.toml right")


def test_a_person_reads_the_figures_and_no_words(archive: Archive) -> None:
    told = stats.in_words(stats.figures(corpus(archive)))
    first, *rows = told.splitlines()
    assert first == "8 messages, 2 scenes, 2 conversations, 2026-11-20"
    shown = {row[2:20].strip(): row[20:] for row in rows if row[2] != " "}
    assert shown["turns"] == "2 answers are there to be learned, of 3 in 4 bubbles"
    assert shown["silences"] == "1 times somebody spoke and was not answered"
    assert shown["silence_rate"] == "private 0%, group 33%"
    assert shown["left out"] == "masked repeat 1"
    assert shown["bubbles_per_turn"] == "1: 67%, 2: 33%"
    assert shown["hours"].count("█") == 1
    assert shown["hours"][23] == "█"
    assert shown["stickers"] == "in 1 bubble; faces in 1: 微笑 1"
    assert (shown["redacted_own"], shown["redacted_others"]) == ("[手机号] 1", "–")
    assert shown["answers_in_groups"] == "scored 2"
    assert [str(GROUP), "6", "2", "1", "1"] in [row.split() for row in rows]
    assert [m.text for m in TALK if m.text in told] == []


def test_examples_are_told_only_when_asked_for(archive: Archive) -> None:
    built = corpus(archive)
    assert stats.examples(built, 1) == {"repeat": [["我发个公告请大家看一下"] * 2]}
    assert stats.examples(built, 0) == {"repeat": []}


def answered(words: str, heard: str = "看看") -> list[Message]:
    return [say(0, FRIEND, heard), say(7, ME, words)]


NOTICE = "各位好，明天晚上八点在老地方集合，收到请回复"
NOTICES = [say(4000 * n, ME, NOTICE + "！" * n) for n in range(4)]
APART = [say(0, ME, "我到"), say(5, FRIEND, "在哪"), say(9, OTHER, "快点"), say(20, ME, "楼下了")]
NOTES = [say(0, "10000", "你们是好友"), say(3, OTHER, "卖号"), *answered("早")]
MERGE = {"merge": "bubbles"}
OPTIONS: dict[str, list[tuple[dict[str, Any], list[Message], str, Any]]] = {
    "redact": [
        ({}, answered("打13800001111"), "redacted_own", {"[手机号]": 1}),
        ({"redact": False}, answered("打13800001111"), "redacted_own", {}),
    ],
    "strip_mentions": [
        ({}, answered("@阿强 好"), "stripped_mentions", 0),
        ({"strip_mentions": True}, answered("@阿强 好[图片]"), "stripped_mentions", 1),
        ({"strip_mentions": True}, answered("@阿强 好[图片]"), "stripped_placeholders", 0),
    ],
    "strip_placeholders": [
        ({}, answered("@阿强 好[图片]"), "stripped_placeholders", 0),
        ({"strip_placeholders": True}, answered("@阿强 好[图片]"), "stripped_placeholders", 1),
        ({"strip_placeholders": True}, answered("[图片]"), "hidden_empty", 1),
        ({}, answered("[图片]"), "hidden_empty", 0),
    ],
    "system_senders": [
        ({}, NOTES, "hidden_system", 1), ({"system_senders": ("10000", OTHER)}, NOTES, "hidden_system", 2),
        ({"system_senders": ()}, NOTES, "hidden_system", 0), ({}, NOTES, "hidden_empty", 0),
    ],
    "merge": [({}, APART, "merged", 0), (MERGE, APART, "merged", 1), ({"merge": "，"}, APART, "merged", 1)],
    "merge_interleaved": [
        (MERGE | {"merge_interleaved": 2}, APART, "merged", 1), (MERGE | {"merge_interleaved": 1}, APART, "merged", 0),
    ],
    "merge_gap_s": [
        (MERGE | {"merge_gap_s": 20}, APART, "merged", 1), (MERGE | {"merge_gap_s": 19}, APART, "merged", 0),
    ],
    "drop_repeats": [
        ({}, answered(NOTICE, NOTICE), "masked_repeat", 1),
        ({"drop_repeats": False}, answered(NOTICE, NOTICE), "masked_repeat", 0),
    ],
    "drop_media": [
        ({}, answered("[图片]"), "masked_media", 1), ({"drop_media": False}, answered("[图片]"), "masked_media", 0),
        ({}, answered("看[图片]"), "media_bubbles", 0),
        ({}, [say(0, FRIEND, "在？"), say(5, ME, "看"), say(6, ME, "[图片]")], "media_bubbles", 1),
        ({"drop_media": False}, [say(0, FRIEND, "在？"), say(6, ME, "看"), say(7, ME, "[图片]")], "media_bubbles", 0),
    ],
    "drop_broken": [
        ({}, answered("锟斤拷锟斤拷"), "masked_mojibake", 1), ({}, answered("他说：“"), "masked_cut_off", 1),
        ({"drop_broken": False}, answered("锟斤拷锟斤拷"), "masked_mojibake", 0),
        ({"drop_broken": False}, answered("他说：“"), "masked_cut_off", 0),
    ],
    "min_chars": [({}, answered("嗯"), "masked_short", 0), ({"min_chars": 2}, answered("嗯"), "masked_short", 1)],
    "max_chars": [
        ({"max_chars": 3}, answered("好好好"), "masked_long", 0),
        ({"max_chars": 2}, answered("好好好"), "masked_long", 1),
    ],
    "blocked_words": [
        ({}, answered("买vpn"), "masked_blocked", 0),
        ({"blocked_words": ("VPN",)}, answered("买vpn"), "masked_blocked", 1),
    ],
    "duplicate_cap": [({}, NOTICES, "masked_duplicate", 1), ({"duplicate_cap": 4}, NOTICES, "masked_duplicate", 0)],
    "duplicate_min_chars": [({"duplicate_min_chars": 99}, NOTICES, "masked_duplicate", 0)],
    "pairing": [
        ({}, answered("好"), "answers_in_groups", {"scored": 1}),
        ({"pairing": "previous"}, answered("好"), "answers_in_groups", {"previous": 1}),
        ({"pairing": "empty"}, answered("好"), "answers_in_groups", {"none": 1}),
        ({"pairing": "mentioned"}, answered("好"), "answers_in_groups", {"none": 1}),
    ],
}  # fmt: skip
CASES = [(option, *case) for option, cases in OPTIONS.items() for case in cases]


@pytest.mark.parametrize(("option", "rules", "said", "name", "want"), CASES)
def test_what_every_option_did_stands_in_the_figures(
    archive: Archive, option: str, rules: dict[str, Any], said: list[Message], name: str, want: Any
) -> None:
    archive.append([*said, LATER])
    settings = Settings(corpus=Cleaning(**rules))
    built = build(archive, [ME], ["小满"], Conversation(), cleaning=settings.corpus)
    assert stats.figures(built, lambda part: modelclean.chosen(part, settings))[name] == want, option


def test_every_option_of_the_corpus_is_shown_in_the_figures() -> None:
    assert set(OPTIONS) == set(Cleaning.model_fields)
    assert len(CASES) == 44


class Characters:
    """One id a character; control texts above all characters."""

    bos: int | None = None

    def __init__(self) -> None:
        self.controls: list[str] = []

    def tokens(self, text: str, control: bool) -> list[int]:
        """Ids of a text."""
        if not control:
            return [ord(c) for c in text]
        self.controls += [] if text in self.controls else [text]
        return [0x110000 + self.controls.index(text)]

    def piece(self, token: int) -> bytes:
        """A token's text."""
        return (self.controls[token - 0x110000] if token >= 0x110000 else chr(token)).encode()


def test_the_preview_is_the_window_with_trained_tokens_marked(archive: Archive) -> None:
    pairs = [[say(7200 * i, FRIEND, f"问{i}"), say(7200 * i + 5, ME, f"答{i}")] for i in range(40)]
    tokenizer = Characters()
    found = windows(
        corpus(archive, [m for p in pairs for m in p] + [LATER]), tokenizer, FORMATS["gemma"], "你是小满。", 300
    )
    (shown,) = preview.chosen(found, 1, seed=3)
    assert preview.chosen(found, 1, seed=3) == [shown]
    text = preview.text(shown, tokenizer.piece, Training(), preview.bracketed)
    assert text.replace("⟦", "").replace("⟧", "") == "".join(tokenizer.piece(i).decode() for i in shown.ids)
    train = [x for x in shown.labels if x.split is Split.TRAIN]
    assert text.count("⟦") == len(train) > 0
    assert text.count("<end_of_turn>⟧") == len(train)


def test_plots_are_written(archive: Archive, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from training import plots

    files = plots.write(corpus(archive), tmp_path / "plots")
    assert len(files) == 5
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
