"""training/stats.py, preview.py, plots.py: what is told of a corpus before any training."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chats import FRIEND, GROUP, ME, OTHER, PRIVATE, say

from bot.archive import Archive
from bot.config import Conversation, Training
from bot.message import Message, Scene
from bot.prompt import FORMATS
from training import preview, stats
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


def test_examples_are_told_only_when_asked_for(archive: Archive) -> None:
    built = corpus(archive)
    assert stats.examples(built, 1) == {"repeat": [["我发个公告请大家看一下"] * 2]}
    assert stats.examples(built, 0) == {"repeat": []}


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
