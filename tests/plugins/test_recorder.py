"""plugins/recorder: what comes is stored; what is not as it should be is counted."""

import errno
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP
from plugged import plugged

from bot import config, corrections
from bot.events import Recall
from bot.message import Message, Origin
from bot.onebot import Outbox
from bot.terminal import NoTransport
from bot.twin import Twin


@pytest.mark.parametrize(
    ("text", "ahead_s", "odd"),
    [("在吗", 0, {}), ("[未知]好", 0, {"unknown": 1}), ("在吗", 9000, {"future": 1}), ("在吗", -9000, {})],
)
async def test_messages_that_are_not_as_they_should_be_are_stored_and_counted(
    tmp_path: Path, text: str, ahead_s: float, odd: dict[str, int]
) -> None:
    settings = config.load(tmp_path / "bot.toml", {"TWIN__ENGINE__BASE": '"nowhere.gguf"'})
    twin = Twin.assemble(settings, tmp_path, NoTransport(), only_record=True)
    recorder: Any = plugged("recorder.recording").Recorder(twin, Outbox())
    came = datetime.now(UTC) + timedelta(seconds=ahead_s)
    assert await recorder.message(Message("1", GROUP, FRIEND, "阿强", came, text), ACCOUNT)
    recorder.odd("malformed")
    assert dict(twin.odd) == odd | {"malformed": 1}
    (stored,) = twin.archive.window(GROUP, 9)
    assert stored.text == text
    assert stored.time <= datetime.now(UTC)
    await twin.close()


async def test_a_quote_and_a_recall_of_an_id_met_before_are_about_the_newest_message_of_it(tmp_path: Path) -> None:
    settings = config.load(tmp_path / "bot.toml", {"TWIN__ENGINE__BASE": '"nowhere.gguf"'})
    twin = Twin.assemble(settings, tmp_path, NoTransport(), only_record=True)
    recorder: Any = plugged("recorder.recording").Recorder(twin, Outbox())
    now = datetime.now(UTC).replace(microsecond=0)
    earlier = now - timedelta(days=9)
    twin.archive.append([
        Message("7", GROUP, FRIEND, "阿强", earlier, "旧话"),
        Message("6", GROUP, FRIEND, "阿强", now - timedelta(seconds=9), "在吗"),
        Message("7", GROUP, ACCOUNT, "小满", now - timedelta(seconds=5), "好呀", Origin.TWIN),
    ])  # fmt: skip
    await recorder.message(Message("8", GROUP, FRIEND, "阿强", now, "好什么", reply_to="7"), ACCOUNT)
    quoting = twin.archive.get(GROUP, "8")
    assert quoting is not None
    quoted = twin.archive.get(GROUP, quoting.reply_to or "")
    assert quoted is not None
    assert quoted.text == "好呀"
    assert corrections.answered(twin.archive, GROUP, quoting.reply_to) == quoted
    await recorder.recall(Recall(GROUP, "7", ACCOUNT, now))
    assert [m.text for m in twin.archive.window(GROUP, 9)] == ["旧话", "在吗", "好什么"]
    (correction,) = corrections.current(twin.archive, GROUP)
    assert (correction.said, correction.rejected) == ((quoted.id,), ("好呀",))
    await twin.close()


async def test_a_sticker_that_cannot_be_noted_on_a_full_disk_keeps_nothing_else_from_being_heard() -> None:
    def seen(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    twin = SimpleNamespace(stickers=SimpleNamespace(enabled=True, seen=seen), imitated=lambda: {FRIEND})
    collector: Any = plugged("recorder.collecting").Collector(twin)
    segment = {"type": "image", "data": {"sub_type": 1, "summary": "[动画表情]", "file": f"{'A' * 32}.gif"}}
    collector.look(Message("1", GROUP, FRIEND, "阿强", datetime.now(UTC), "[动画表情]", segments=(segment,)), ACCOUNT)
    await collector.close()


def test_hundreds_of_unknown_names_are_not_asked_for_at_once_nor_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message may hold five hundred ats, and each name is a query on the event loop."""
    asked: list[str] = []
    archive = SimpleNamespace(optouts=SimpleNamespace(why=lambda _: None), name_of=lambda who: asked.append(who))
    recording: Any = plugged("recorder.recording")
    now = 1000.0
    monkeypatch.setattr(recording.time, "monotonic", lambda: now)
    recorder = recording.Recorder(SimpleNamespace(archive=archive), Outbox())
    assert {recorder.name_of(str(n)) for n in range(500)} == {None}
    assert asked == [str(n) for n in range(20)]
    now += 1
    assert {recorder.name_of(str(n)) for n in range(30)} == {None}
    assert asked[20:] == [str(n) for n in range(20, 30)], "who has no name is not asked for again"
