"""The twin as an API, spoken to by the official client over HTTP; the daemon is a child process."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import lessons
import pytest
from daemon import Daemon, persona, settings
from napcat import ACCOUNT, NapCat
from openai import APIStatusError, AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError

TOKEN = "test-token-of-the-api"


@pytest.fixture(scope="module")
def serving(learned_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    found = Daemon(
        tmp_path_factory.mktemp("api"), settings(learned_base, api={"enabled": True, "token": TOKEN}),
    )  # fmt: skip
    persona(found.data / "personas" / "xiaoman", lessons.NAME, [ACCOUNT], bias=30)
    persona(found.data / "personas" / "shitou", "石头", [ACCOUNT], bias=-30)
    persona(found.data / "personas" / "broken", "坏了", [ACCOUNT])
    version = found.data / "personas" / "broken" / "versions" / "v1"
    version.mkdir(parents=True)
    (version / "manifest.json").write_text("{}")
    (found.data / "personas" / "broken" / "current").write_text("v1")
    with found:
        yield found
        found.end()


@pytest.fixture
async def client(serving: Daemon) -> AsyncIterator[AsyncOpenAI]:
    async with _client(serving) as connected:
        yield connected


def _client(daemon: Daemon, token: str = TOKEN) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{daemon.port}/v1", api_key=token, max_retries=0)


async def _say(client: AsyncOpenAI, *words: str, model: str = "xiaoman", **more: Any) -> Any:
    roles = ("user", "assistant")
    told: list[Any] = [{"role": roles[i % 2], "content": text} for i, text in enumerate(words)]
    return await client.chat.completions.create(model=model, messages=told, **more)


async def test_personas_are_the_models(client: AsyncOpenAI) -> None:
    assert [m.id async for m in client.models.list()] == ["broken", "shitou", "xiaoman"]


async def test_an_answer_is_the_personas_bubbles_one_a_line(client: AsyncOpenAI) -> None:
    answer = await _say(client, "吃什么")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "吃面\n加个蛋", "stop")
    assert answer.model == "xiaoman"
    used = answer.usage
    assert used.completion_tokens > 0
    assert used.prompt_tokens > 20
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens


async def test_a_stream_is_the_same_answer_a_bubble_at_a_time(client: AsyncOpenAI) -> None:
    stream = await _say(client, "吃什么", stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert [c.choices[0].delta.content for c in chunks if c.choices] == ["", "吃面", "\n加个蛋", None]
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, None, None, "stop"]
    assert ["usage" in c.model_fields_set for c in chunks] == [True] * len(chunks)
    assert [c.usage for c in chunks[:-1]] == [None] * 4
    assert chunks[-1].usage.completion_tokens > 0
    assert len({c.id for c in chunks}) == 1


async def test_what_the_person_ignores_gets_an_empty_answer(client: AsyncOpenAI) -> None:
    answer = await _say(client, "在吗", model="shitou")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 0


async def test_earlier_turns_are_the_history_and_an_empty_answer_in_it_a_silence(client: AsyncOpenAI) -> None:
    answer = await _say(client, "早", "早呀", "哦", "", "在吗")
    assert answer.choices[0].message.content == "在的"


async def test_several_user_messages_are_bubbles_of_one_turn(client: AsyncOpenAI) -> None:
    told: list[Any] = [{"role": "user", "content": [{"type": "text", "text": t}]} for t in ("睡了没", "喂", "理我一下")]
    answer = await client.chat.completions.create(model="xiaoman", messages=told)
    assert answer.choices[0].message.content == "刚睡醒[微笑]"


async def test_a_note_behind_the_words_is_no_words(client: AsyncOpenAI) -> None:
    told: list[Any] = [{"role": "user", "content": "在吗", "name": None}, {"role": "system", "content": "说短一点"}]
    answer = await client.chat.completions.create(model="xiaoman", messages=told)
    assert answer.choices[0].message.content


async def test_names_make_a_group_whose_lines_carry_them(client: AsyncOpenAI) -> None:
    told: list[Any] = [
        {"role": "user", "name": "阿泽", "content": "早"}, {"role": "assistant", "content": "早呀"},
        {"role": "user", "name": "阿强", "content": "吃什么"},
    ]  # fmt: skip
    alone = await client.chat.completions.create(
        model="xiaoman", messages=[{k: m[k] for k in m if k != "name"} for m in told]
    )
    answer = await client.chat.completions.create(model="xiaoman", messages=told)
    assert answer.choices[0].message.content == "吃面\n加个蛋"
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens


async def test_a_stop_text_ends_the_answer_before_it(client: AsyncOpenAI) -> None:
    assert (await _say(client, "吃什么", stop="蛋")).choices[0].message.content == "吃面\n加个"
    assert (await _say(client, "吃什么", stop=["\n"])).choices[0].message.content == "吃面"
    assert (await _say(client, "吃什么", stop="面\n加")).choices[0].message.content == "吃"


async def test_length_is_said_where_max_tokens_cut_the_answer_and_nowhere_else(client: AsyncOpenAI) -> None:
    whole = (await _say(client, "吃什么")).usage.completion_tokens
    for most in range(1, whole + 2):
        answer = await _say(client, "吃什么", max_tokens=most)
        assert answer.choices[0].finish_reason == ("length" if most < whole else "stop")
        assert answer.usage.completion_tokens == min(most, whole), "its end of turn is the last of them"
    assert whole > 3, "a loop of several"


async def test_a_system_prompt_that_leaves_no_room_is_refused_with_what_fits(client: AsyncOpenAI) -> None:
    async def ask(n: int, **more: Any) -> Any:
        told: list[Any] = [{"role": "system", "content": "说短一点。" * n}, {"role": "user", "content": "在吗"}]
        return await client.chat.completions.create(model="xiaoman", messages=told, **more)

    used: list[int] = []
    with pytest.raises(BadRequestError) as caught:  # noqa: PT012 - which of them is found out here
        for n in range(1, 200):
            used.append((await ask(n)).usage.prompt_tokens)
    assert len({after - before for before, after in pairwise(used)}) == 1, "what was said was heard whole up to there"
    found = re.search(r"take (\d+) tokens where (\d+) fit: of its window of 512 tokens", caught.value.message)
    assert found is not None
    assert int(found[1]) > int(found[2]) >= int(found[1]) - (used[1] - used[0])
    for n, more in ((len(used) + 1, {"stream": True}), (5000, {})):
        with pytest.raises(BadRequestError, match="shorten the system prompt") as caught:
            await ask(n, **more)
        assert (caught.value.code, caught.value.type) == ("context_length_exceeded", "invalid_request_error")


async def test_a_history_longer_than_the_window_is_answered_from_its_end(client: AsyncOpenAI) -> None:
    words = [text for _ in range(80) for text in ("早", "早呀")]
    answer = await _say(client, *words, "在吗")
    assert answer.choices[0].message.content == "在的"
    assert answer.usage.prompt_tokens <= 512


async def test_requests_are_answered_beside_each_other(client: AsyncOpenAI) -> None:
    answers = await asyncio.gather(*(_say(client, words) for words in ("早", "在吗", "晚安", "去爬山吗")))
    assert [a.choices[0].message.content for a in answers] == ["早呀", "在的", "晚安，明天见", "好耶"]


async def test_nothing_said_here_is_stored_or_logged(serving: Daemon, client: AsyncOpenAI) -> None:
    await _say(client, "去爬山吗")
    with serving.archive() as archive:
        assert archive.scenes() == []
    assert "好耶" not in serving.log()
    assert "爬山" not in serving.log()
    assert TOKEN not in serving.log()


# -- bad input ------------------------------------------------------------------------------------


async def test_a_wrong_token_is_refused(serving: Daemon) -> None:
    async with _client(serving, "another") as stranger:
        with pytest.raises(AuthenticationError, match="bearer token"):
            await _say(stranger, "在吗")
        with pytest.raises(AuthenticationError):
            await stranger.models.list()


async def test_an_unknown_persona_is_a_model_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError, match="no persona 'gpt-9'") as caught:
        await _say(client, "在吗", model="gpt-9")
    assert caught.value.code == "model_not_found"


async def test_a_persona_without_a_sound_version_does_not_speak(client: AsyncOpenAI) -> None:
    with pytest.raises(APIStatusError, match="v1") as caught:
        await _say(client, "在吗", model="broken")
    assert (caught.value.status_code, caught.value.code) == (503, "persona_unavailable")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "在的"}]}, "must end with what a user says"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "must end with what a user says"),
        ({"messages": [{"role": "tool", "content": "1"}]}, "messages.0.role"),
        ({"n": 2}, "n: "),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": 7}, "model"),
    ],
)
async def test_a_request_that_means_nothing_is_refused_with_its_place(
    client: AsyncOpenAI, changed: dict[str, Any], named: str
) -> None:
    body = {"model": "xiaoman", "messages": [{"role": "user", "content": "秘密"}], **changed}
    with pytest.raises(BadRequestError, match=named) as caught:
        await client.post("/chat/completions", body=body, cast_to=object)
    assert "秘密" not in caught.value.message


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b'{"model":"' + b"a" * (5 << 20), 413)])
async def test_a_body_that_is_no_request_is_refused(serving: Daemon, body: bytes, status: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(
            f"http://127.0.0.1:{serving.port}/v1/chat/completions", content=body,
            headers={"Authorization": f"Bearer {TOKEN}"},
        )  # fmt: skip
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_without_silences_even_the_quiet_speak_and_a_token_is_made(learned_base: Path, tmp_path: Path) -> None:
    found = Daemon(tmp_path, settings(learned_base, api={"enabled": True, "silences": False}))
    persona(found.data / "personas" / "xiaoman", lessons.NAME, [ACCOUNT], bias=-30)
    with found:
        kept = found.data / "api_token"
        assert kept.stat().st_mode & 0o777 == 0o600
        async with _client(found, kept.read_text("utf-8").strip()) as connected:
            assert (await _say(connected, "在吗")).choices[0].message.content == "在的"
        assert kept.read_text("utf-8").strip() not in found.log()


async def test_it_is_off_unless_wanted(daemon: Daemon) -> None:
    async with NapCat(daemon.url, daemon.token), httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"http://127.0.0.1:{daemon.port}/v1/models")
    assert answer.status_code == 404
    assert not (daemon.data / "api_token").exists()
