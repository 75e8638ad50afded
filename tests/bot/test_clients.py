"""What NapCat, LLBot and Lagrange send (tests/data/golden_events.jsonl), read to the last field.

Shapes are those of the clients' own code and documents; the people and words are made up.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from napcat import _event_validator

from bot.events import Mute, Online, Recall, read
from bot.message import Message
from bot.onebot import TwinAdapter, raw_event
from bot.segments import market_face, to_segments
from bot.stickers import key_of

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "golden_events.jsonl").read_text("utf-8").splitlines()
]
NAMES = {"10001": "阿强", "10002": "小红", "3889000770": "小明"}


def shown(item: Message | Recall | Mute | Online | None) -> dict[str, Any] | None:
    """What an event was read as, as the golden file writes it."""
    match item:
        case Message():
            found: dict[str, Any] = {
                "kind": "message", "scene": str(item.scene), "sender": item.sender_id, "text": item.text,
                "sender_name": item.sender_name, "seq": item.seq,
            }  # fmt: skip
            keys = [key for s in item.segments if (key := key_of(s))]
            more = {
                "mentions": list(item.mentions), "reply_to": item.reply_to, "sticker": keys[0] if keys else None,
                "mface": market_face(item.segments, item.text) is not None,
            }  # fmt: skip
            return found | {k: v for k, v in more.items() if v}
        case Recall():
            return {"kind": "recall", "scene": str(item.scene), "id": item.message_id, "by": item.operator_id}
        case Mute():
            seconds = "inf" if item.seconds == float("inf") else item.seconds
            return {"kind": "mute", "scene": str(item.scene), "seconds": seconds}
        case Online():
            assert item.account == "3889000770"
            return {"kind": "online", "online": item.online}
    return None


def test_all_three_clients_are_there() -> None:
    counts = {c: sum(r["client"] == c for r in ROWS) for c in ("NapCat", "LLBot", "Lagrange")}
    assert counts == {"NapCat": 47, "LLBot": 45, "Lagrange": 39}


@pytest.mark.parametrize("row", ROWS, ids=[f"{r['client']}: {r['name']}" for r in ROWS])
def test_an_event_is_read_as_its_client_means_it(row: dict[str, Any]) -> None:
    warned: list[str] = []
    sink = logger.add(lambda line: warned.append(str(line)), level="WARNING")
    try:
        event = TwinAdapter.json_to_event(json.loads(json.dumps(row["event"])))
        assert event is not None
        assert raw_event(event) == row["event"], "nothing of the frame is touched"
        assert shown(read(raw_event(event), NAMES.get)) == row["reads"]
    finally:
        logger.remove(sink)
    assert warned == []


def test_napcats_own_schema_takes_its_messages_and_recalls() -> None:
    ours = [r for r in ROWS if r["client"] == "NapCat" and r["reads"]]
    told = [r["event"] for r in ours if r["reads"]["kind"] in ("message", "recall")]
    assert len(told) == 25
    for event in told:
        _event_validator().validate(event)


@pytest.mark.parametrize("name", ["dice", "rps", "at and face", "market face"])
def test_what_was_read_of_any_client_is_sent_back_as_the_same_thing(name: str) -> None:
    seen = 0
    for row in (r for r in ROWS if r["name"] == name):
        item = read(row["event"], NAMES.get)
        assert isinstance(item, Message)
        segments = to_segments(item.text, {"小红": {"10002"}}, lambda text: market_face(item.segments, text))  # noqa: B023
        kinds = [s["type"] for s in segments]
        want = {"dice": ["dice"], "rps": ["rps"], "at and face": ["at", "text", "face"], "market face": ["mface"]}
        assert kinds == want[name]
        seen += 1
    assert seen == 3
