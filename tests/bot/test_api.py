"""The API's parts that HTTP does not show: what a window keeps, and that a stream left alone stops the model."""

import asyncio
import json
import re
import string
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage import Script

from bot.api.answers import events, parts
from bot.api.talks import _STEP, Talk, Talks, _fitting, _key
from bot.api.wire import ChatRequest
from bot.archive import Archive
from bot.config import Paths, Settings
from bot.engine import End, Request, Voice
from bot.errors import EngineError, TooLong
from bot.message import Message, Origin, Scene
from bot.persona import Personas, new_persona
from bot.prompt import FORMATS, Exchange, Piece, Renderer
from bot.terminal import NoTransport
from bot.twin import Twin

RENDERER = Renderer(FORMATS["chatml"], "你是小满。", ZoneInfo("Asia/Shanghai"), group=False)
HEAD: dict[str, Any] = {"id": "chatcmpl-1", "created": 0, "model": "xiaoman"}


def _count(pieces: Any) -> int:
    return sum(len(piece.text) for piece in pieces)


def _history(n: int) -> list[Exchange]:
    scene, time = Scene("private", "1"), datetime(2026, 9, 1, tzinfo=UTC)
    found = []
    for i in range(n):
        heard = [Message(f"{i}.0", scene, "user", "", time, string.ascii_letters[i % 52] * 9)]
        said = [Message(f"{i}.1", scene, "twin", "", time, "好", Origin.TWIN)] if i < n - 1 else []
        found.append(Exchange(time if i == 0 else None, None, heard, said))
    return found


def test_what_clients_send_beside_the_words_is_taken() -> None:
    said = [{"role": "user", "content": "在吗", "name": None}, {"role": "system", "content": "[Write the next reply]"}]
    nulls = {"stream": None, "stream_options": {"include_usage": None}, "n": None, "stop": None}
    asked = ChatRequest.model_validate({"model": "xiaoman", "messages": said, **nulls})
    assert [turn.text for turn in asked.messages] == ["在吗", "[Write the next reply]"]
    with pytest.raises(ValueError, match="must end with what a user says"):
        ChatRequest.model_validate({"model": "xiaoman", "messages": [said[1]]})


def test_a_full_window_moves_by_steps_so_that_the_next_prompt_begins_alike() -> None:
    starts = []
    for n in range(1, 60):
        history = _history(n)
        kept = _fitting(history, RENDERER, _count, 1500)
        assert kept == history[len(history) - len(kept) :]
        starts.append(len(history) - len(kept))
    assert starts == sorted(starts)
    assert {start % _STEP for start in starts} == {0}
    assert starts[-1] > 0
    assert len(set(starts)) <= starts[-1] // _STEP + 1


def test_a_turn_longer_than_the_window_is_cut_from_its_beginning() -> None:
    (last,) = _history(1)
    long = Exchange(
        None, None, [Message("0", last.first.scene, "user", "", last.first.time, "头" * 900 + "尾" * 50)], []
    )
    (kept,) = _fitting([long], RENDERER, _count, 400)
    assert kept.heard[0].text.endswith("尾" * 50)
    assert len(kept.heard[0].text) < 400


def test_a_conversation_is_known_by_its_persona_system_and_first_words() -> None:
    def key(persona: str, *turns: tuple[str, str]) -> str:
        told = [{"role": role, "content": text} for role, text in turns]
        return _key(persona, ChatRequest.model_validate({"model": persona, "messages": told}).messages)

    first = key("a", ("user", "早"))
    assert key("a", ("user", "早"), ("assistant", "早呀"), ("user", "在吗")) == first
    others = {key("b", ("user", "早")), key("a", ("user", "晚安")), key("a", ("system", "说英语"), ("user", "早"))}
    assert len(others | {first}) == 4


class _Words:
    """A replier's `words`: bubbles or a fault, the engine's ending, and whether it was closed."""

    def __init__(
        self,
        fault: EngineError | None = None,
        bubbles: Sequence[str] = ("一", "二↵二", "三"),
        why: End | None = End.TURN,
    ) -> None:
        self.fault, self.bubbles, self.why, self.given, self.closed = fault, bubbles, why, 0, False

    async def words(self, request: Request, *, repeats: bool) -> AsyncGenerator[str, None]:
        try:
            for bubble in self.bubbles:
                self.given += 1
                yield bubble
            if self.fault:
                raise self.fault
            request.ending.why = self.why
        finally:
            self.closed = True
            request.ending.tokens = 3 * self.given


def _talk(*stops: str, speaks: bool = True) -> Talk:
    request = Request("api", Voice("a/b", None, FORMATS["chatml"]), [Piece("")])
    return Talk(request, speaks, 5, stops, repeats=False)


def _stream(words: _Words, talk: Talk) -> AsyncGenerator[str, None]:
    replier: Any = words
    return events(replier, talk, HEAD, with_usage=True)


async def test_a_client_that_goes_away_stops_the_generation() -> None:
    words = _Words()
    stream = _stream(words, _talk())
    assert "assistant" in await anext(stream)
    assert "一" in await anext(stream)
    await stream.aclose()
    assert (words.given, words.closed) == (1, True)


async def test_a_silence_streams_no_words_and_never_asks_the_model() -> None:
    words = _Words()
    told = [event async for event in _stream(words, _talk(speaks=False))]
    assert words.given == 0
    assert '"finish_reason": "stop"' in told[1]
    assert told[-1] == "data: [DONE]\n\n"


async def test_a_fault_in_the_middle_of_a_stream_is_told_in_it() -> None:
    told = [event async for event in _stream(_Words(EngineError("the decode failed")), _talk())]
    assert '"message": "the decode failed"' in told[-1]
    assert "[DONE]" not in "".join(told)


@pytest.mark.parametrize(
    ("why", "finish"), [(End.TURN, "stop"), (End.LENGTH, "length"), (End.LOOP, "stop"), (None, "stop")]
)
async def test_a_stream_ends_with_what_the_engine_tells_of_the_answer(why: End | None, finish: str) -> None:
    told = [event async for event in _stream(_Words(why=why), _talk())]
    *chunks, last = [json.loads(event.removeprefix("data: ")) for event in told[:-1]]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 4 + [finish]
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    assert [c["usage"] for c in chunks] == [None] * 5


@pytest.mark.parametrize(
    ("stops", "given"),
    [
        (["一\n二"], []),
        (["二\n三"], ["一", "\n二\n"]),
        (["三\n四"], ["一", "\n二\n二", "\n", "三"]),
        (["一二", "二\n四"], ["一\n二\n", "二\n三"]),
        (["\n"], ["一"]),
    ],
)
async def test_nothing_of_a_stop_text_over_several_bubbles_is_given(stops: list[str], given: list[str]) -> None:
    replier: Any = _Words()
    assert [part async for part in parts(replier, _talk(*stops))] == given


@given(st.lists(st.text("ab", min_size=1, max_size=3), max_size=4), st.lists(st.text("ab\n", min_size=1), max_size=2))
def test_an_answer_is_all_that_is_said_or_the_part_before_a_stop_text(bubbles: list[str], stops: list[str]) -> None:
    async def answer() -> str:
        replier: Any = _Words(bubbles=bubbles)
        return "".join([part async for part in parts(replier, _talk(*stops))])

    whole, told = "\n".join(bubbles), asyncio.run(answer())
    assert told == whole or whole[len(told) :].startswith(tuple(stops))
    assert not any(stop in told for stop in stops)


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        ("早", "早"),
        ([{"type": "text", "text": "看"}, {"type": "image_url", "image_url": {"url": "data:"}}], "看[图片]"),
        ([{"type": "input_audio", "input_audio": {}}], "[语音]"),
        (None, ""),
    ],
)
def test_parts_that_are_no_text_are_seen_as_in_qq(content: Any, seen: str) -> None:
    turns = [{"role": "assistant", "content": content}, {"role": "user", "content": "嗯"}]
    assert ChatRequest.model_validate({"model": "a", "messages": turns}).messages[0].text == seen


# -- a request understood -------------------------------------------------------------------------


@pytest.fixture
def talks(archive: Archive, tmp_path: Path) -> Talks:
    """Of a persona without a version; a token is a character, and a window 2,048 of them."""
    settings, engine = Settings(paths=Paths(data=tmp_path)), Script()
    new_persona(tmp_path / "personas", "xiaoman", "小满", ())
    twin = Twin(settings, archive, engine, Personas(tmp_path / "personas"), NoTransport())  # type: ignore[arg-type]
    return Talks(twin)


def _asked(*turns: tuple[str, str], **more: Any) -> ChatRequest:
    told = [{"role": role, "content": text} for role, text in turns]
    return ChatRequest.model_validate({"model": "xiaoman", "messages": told, **more})


NEW = (("user", "早"),)
ON = (*NEW, ("assistant", "早呀"), ("user", "在吗"))
HEADED = (("system", "说英语"), ("assistant", "你好呀"), *NEW)


@pytest.mark.parametrize(
    "asked",
    [
        # Minutes past eight, what is asked, and the minutes past eight it is headed with.
        [(0, NEW, 0), (1, NEW, 0), (2, ON, 0), (25, ON, 0), (50, ON, 0)],
        [(0, NEW, 0), (1, ON, 0), (3, NEW, 3), (4, ON, 3)],
        [(0, NEW, 0), (2, NEW, 0), (3, NEW, 3), (4, NEW, 3)],
        [(0, NEW, 0), (5, ON, 0), (36, ON, 36), (37, ON, 36)],
        [(0, ON, 0), (20, ON, 0), (30, NEW, 30)],
        [(0, HEADED, 0), (10, HEADED, 10)],
    ],
)
async def test_a_talk_is_headed_with_the_time_it_began(
    talks: Talks, asked: list[tuple[int, tuple[tuple[str, str], ...], int]]
) -> None:
    for minutes, turns, headed in asked:
        talks.clock = lambda minutes=minutes: datetime(2026, 9, 1, 0, minutes, tzinfo=UTC)  # type: ignore[misc]
        text = "".join(piece.text for piece in (await talks.understood(_asked(*turns))).request.pieces)
        assert re.findall(r"【周二 08:(\d\d)】", text) == [f"{headed:02}"], minutes


async def test_a_system_prompt_that_leaves_no_room_for_what_was_said_is_refused(talks: Talks) -> None:
    def asked(n: int) -> ChatRequest:
        return _asked(("system", "长" * n), ("user", "在吗"), max_tokens=400)

    with pytest.raises(TooLong, match="of its window of 2048 tokens 'xiaoman' has 1648 for a prompt") as caught:
        await talks.understood(asked(9000))
    found = re.search(r"take 9001 tokens where (\d+) fit", str(caught.value))
    assert found is not None
    fits = int(found[1]) - 1  # and its line break
    assert "在吗"[1:] in "".join(piece.text for piece in (await talks.understood(asked(fits))).request.pieces)
    with pytest.raises(TooLong, match="shorten the system prompt"):
        await talks.understood(asked(fits + 1))
