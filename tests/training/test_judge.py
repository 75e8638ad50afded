"""training/judge.py against real HTTP: what a model is asked, how often, and what is left of it when it fails."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llamaserver
import peer
import pytest
import tinymodel
from daemon import free_port
from peer import Answer, chatted

from bot.config import ModelCleaning
from bot.errors import TrainingError
from training.judge import Judge, Sample, Tally, key_of
from training.verdicts import Verdicts

MODEL, WORDS = "judge-7b", "打分"
SCORE = {"type": "integer", "enum": [1, 2, 3, 4, 5]}


def sample(number: int, context: int = 0, lead: str = "") -> Sample:
    """The sample `number`; its text tells it. With a context of so many lines."""
    lines = tuple(f"{lead}第{n}行" for n in range(context))
    return Sample(key_of(MODEL, WORDS, *lines, f"答{number}"), "【对话】" if lines else "", lines, f"答{number}", SCORE)


def shown(body: dict[str, Any]) -> str:
    """The samples of a request, without the task's words."""
    return str(body["messages"][0]["content"]).removeprefix(f"{WORDS}\n\n")


def asked_of(body: dict[str, Any]) -> list[int]:
    """The samples of a request, as `sample` numbers them."""
    return [int(n) for n in re.findall(r"^答(\d+)$", shown(body), re.MULTILINE)]


def good(body: dict[str, Any]) -> Answer:
    """Each sample's score: its number modulo five, plus one."""
    return chatted(json.dumps({str(n): x % 5 + 1 for n, x in enumerate(asked_of(body), 1)}))


def settings(url: str, **changed: Any) -> ModelCleaning:
    return ModelCleaning.model_validate({"url": url, "model": MODEL, "batch_size": 16, "timeout_s": 5.0, **changed})


@pytest.fixture
def verdicts(tmp_path: Path) -> Iterator[Verdicts]:
    store = Verdicts(tmp_path / "cleaning.db")
    yield store
    store.close()


async def ask(verdicts: Verdicts, wanted: ModelCleaning, samples: list[Sample]) -> Tally:
    judge = Judge(wanted, verdicts, (0.01, 0.01))
    try:
        return await judge.ask("score", WORDS, samples)
    finally:
        await judge.close()


def scores(verdicts: Verdicts, samples: list[Sample]) -> list[Any]:
    return [verdicts.of(s.key) for s in samples]


# -- asking ------------------------------------------------------------------------------------------


async def test_samples_are_asked_about_in_batches_a_few_at_once_and_each_once(verdicts: Verdicts) -> None:
    samples = [sample(n) for n in range(70)]
    async with peer.serving(lambda body: Answer(good(body).parts, pause_s=0.05)) as server:
        tally = await ask(verdicts, settings(server.url, concurrency=3), [*samples, *samples[:9]])
        assert Counter(n for body in server.asked for n in asked_of(body)) == Counter(range(70))
        assert [len(asked_of(body)) for body in server.asked] == [16, 16, 16, 16, 6]
        assert server.most == 3
        assert scores(verdicts, samples) == [n % 5 + 1 for n in range(70)]
        assert (tally.samples, tally.known, tally.answered, tally.requests) == (70, 0, 70, 5)
        assert (tally.prompt_tokens, tally.completion_tokens) == (35, 15)
        assert tally.bytes == sum(len(s.shown.encode()) for s in samples)
        assert tally.kb_per_minute == pytest.approx(tally.bytes / 1000 / tally.seconds * 60)
        again = await ask(verdicts, settings(server.url), samples)
        assert (again.known, again.answered, len(server.asked)) == (70, 0, 5), "what is known is not asked for"
    assert verdicts.costs() == {MODEL: {"requests": 5, "prompt_tokens": 35, "completion_tokens": 15}}
    (message,) = server.asked[0]["messages"]
    assert message["role"] == "user", "some chat formats have no system message, and drop it"
    assert message["content"].startswith(f"{WORDS}\n\n## 1\n答0\n\n## 2\n")
    assert server.asked[0]["temperature"] == 0


def test_another_model_or_other_words_ask_anew() -> None:
    assert len({key_of("a", "w", "x"), key_of("b", "w", "x"), key_of("a", "v", "x"), key_of("a", "w", "y")}) == 4


async def test_json_is_asked_for_as_strictly_as_the_server_takes_it(verdicts: Verdicts) -> None:
    def fussy(*taken: str | None) -> Callable[[dict[str, Any]], Answer]:
        def answer(body: dict[str, Any]) -> Answer:
            kind = body.get("response_format", {}).get("type")
            return good(body) if kind in taken else Answer([b'{"error": {"code": "bad"}}'], 422)

        return answer

    asked = []
    for number, taken in enumerate(("json_schema", "json_object", None)):
        async with peer.serving(fussy(taken)) as server:
            await ask(verdicts, settings(server.url, concurrency=1), [sample(100 * number + n) for n in range(32)])
            asked.append([body.get("response_format", {}).get("type") for body in server.asked])
    assert asked == [
        ["json_schema"] * 2,
        ["json_schema", *["json_object"] * 2],
        ["json_schema", "json_object", None, None],
    ]
    wanted = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert wanted["required"] == [str(n) for n in range(1, 17)]
    assert wanted["properties"]["16"] == SCORE


# -- answers that are not what was asked for ---------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["我给 4 分", "{", "[4, 4]", '{"1": 4}', '{"1": 4, "2": 4, "3": 4}', '{"2": 4, "3": 4}', "", '{"1": {"1": 4}}'],
)
async def test_what_was_not_asked_for_is_asked_again_once_and_then_left(verdicts: Verdicts, text: str) -> None:
    async with peer.serving(lambda _: chatted(text)) as server:
        tally = await ask(verdicts, settings(server.url), [sample(0), sample(1)])
    assert len(server.asked) == 2
    assert (tally.asked_again, tally.unreadable, tally.answered) == (2, 2, 0)
    assert scores(verdicts, [sample(0), sample(1)]) == [None, None]


async def test_only_the_sample_whose_value_is_wrong_is_asked_again(verdicts: Verdicts) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        numbers = asked_of(body)
        return chatted(
            json.dumps({"1": 4, "2": 7, "3": "5", "4": True}) if len(numbers) == 4 else '{"1":1,"2":2,"3":3}'
        )

    samples = [sample(n) for n in range(4)]
    async with peer.serving(answer) as server:
        tally = await ask(verdicts, settings(server.url), samples)
    assert [asked_of(body) for body in server.asked] == [[0, 1, 2, 3], [1, 2, 3]]
    assert scores(verdicts, samples) == [4, 1, 2, 3]
    assert (tally.asked_again, tally.unreadable, tally.answered) == (3, 0, 4)


@pytest.mark.parametrize("text", [
    '```json\n{"1": 2, "2": 3}\n```', '<think>{"1": 1, "2": 1}</think>{"1": 2, "2": 3}',
    '好的 {} 结果：{"1": 2, "2": 3}。',
])  # fmt: skip
async def test_an_answer_among_other_words_is_found(verdicts: Verdicts, text: str) -> None:
    async with peer.serving(lambda _: chatted(text)) as server:
        await ask(verdicts, settings(server.url), [sample(0), sample(1)])
    assert scores(verdicts, [sample(0), sample(1)]) == [2, 3]


# -- a context that is too small ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refused", "cut"])
async def test_what_is_too_long_is_split_and_at_last_loses_its_oldest_lines(verdicts: Verdicts, how: str) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if len(shown(body).encode()) > 400:
            if how == "cut":
                return chatted('{"1": ', finish="length")
            return Answer([b'{"error": {"code": "context_length_exceeded"}}'], 400)
        return good(body)

    samples = [*(sample(n, context=3) for n in range(40)), sample(77, context=60)]
    async with peer.serving(answer) as server:
        tally = await ask(verdicts, settings(server.url, concurrency=1), samples)
    assert scores(verdicts, samples) == [n % 5 + 1 for n in (*range(40), 77)]
    assert (tally.answered, tally.unreadable, tally.refused) == (41, 0, 0)
    assert tally.splits == 3, "later batches are as long as went through"
    last = shown(server.asked[-1])
    assert "第59行" in last, "the newest lines stay"
    assert "第0行" not in last


async def test_what_was_too_long_of_one_task_says_nothing_of_the_next(verdicts: Verdicts) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return chatted("[", finish="length") if len(asked_of(body)) > 1 and 0 in asked_of(body) else good(body)

    async with peer.serving(answer) as server:
        judge = Judge(settings(server.url, concurrency=1, batch_size=16), verdicts)
        first = await judge.ask("fragments", WORDS, [sample(n) for n in range(16)])
        before = len(server.asked)
        second = await judge.ask("score", WORDS, [sample(n) for n in range(100, 132)])
        await judge.close()
    assert (first.splits, first.answered) == (4, 16)
    assert (second.splits, second.answered, len(server.asked) - before) == (0, 32, 2)


async def test_a_sample_that_is_refused_alone_is_counted_and_left(verdicts: Verdicts) -> None:
    async with peer.serving(lambda body: Answer([b"{}"], 413) if 3 in asked_of(body) else good(body)) as server:
        tally = await ask(verdicts, settings(server.url), [sample(n) for n in range(6)])
    assert (tally.answered, tally.refused) == (5, 1)


async def test_a_server_that_refuses_everything_is_not_asked_to_the_end(verdicts: Verdicts) -> None:
    async with peer.serving(lambda _: Answer([b'{"error": {"code": "bad_model"}}'], 400)) as server:
        with pytest.raises(TrainingError, match=r"refuses the request \(HTTP 400, bad_model\).* 0 of 500 samples"):
            await ask(verdicts, settings(server.url, concurrency=1), [sample(n) for n in range(500)])
    assert len(server.asked) < 60


# -- outages -----------------------------------------------------------------------------------------


async def test_a_short_outage_is_waited_for_and_a_broken_answer_asked_for_again(
    verdicts: Verdicts,
) -> None:
    faults = iter([Answer([b"{}"], 503), Answer([b'{"choices": ['], cut=True)])
    async with peer.serving(lambda body: next(faults, None) or good(body)) as server:
        tally = await ask(verdicts, settings(server.url, concurrency=1), [sample(n) for n in range(5)])
    assert (tally.answered, len(server.asked)) == (5, 3)


async def test_a_long_outage_loses_nothing_and_the_next_run_goes_on(verdicts: Verdicts) -> None:
    samples, answered = [sample(n) for n in range(100)], []

    def answer(body: dict[str, Any]) -> Answer:
        if len(answered) >= 3:
            return Answer([b"{}"], 503)
        answered.extend([asked_of(body)])
        return good(body)

    async with peer.serving(answer) as server:
        with pytest.raises(TrainingError, match=r"overloaded .*tried 3 times.* 48 of 100 samples \(score\) .*goes on"):
            await ask(verdicts, settings(server.url, concurrency=2), samples)
        assert len(server.asked) <= 3 + 2 * 3, "nothing is begun after a server has failed for good"
    assert sum(s is not None for s in scores(verdicts, samples)) == 48
    async with peer.serving(good) as server:
        tally = await ask(verdicts, settings(server.url), samples)
        assert sorted(n for body in server.asked for n in asked_of(body)) == sorted(
            {*range(100)} - {n for batch in answered for n in batch}
        )
    assert (tally.known, tally.answered) == (48, 52)


async def test_nobody_there_and_a_wrong_key_are_told_with_the_setting(verdicts: Verdicts) -> None:
    with pytest.raises(
        TrainingError, match=r"no server answers at .*tried 3 times\); start it, or mend \[cleaning\] url"
    ):
        await ask(verdicts, settings(f"http://127.0.0.1:{free_port()}/v1"), [sample(0)])
    async with peer.serving(lambda _: Answer([b"{}"], 401)) as server:
        with pytest.raises(TrainingError, match="set TWIN__CLEANING__API_KEY") as caught:
            await ask(verdicts, settings(server.url, api_key="s3cret"), [sample(0)])
    assert "authorization: bearer s3cret" in server.heads[0].lower()
    assert "s3cret" not in str(caught.value)


async def test_samples_go_nowhere_else(verdicts: Verdicts) -> None:
    async with peer.serving(good) as elsewhere:
        away = Answer([b"{}"], 307, kind=f"text/plain\r\nLocation: {elsewhere.url}/chat/completions")
        async with peer.serving(lambda _: away) as server:
            with pytest.raises(TrainingError, match="HTTP 307"):
                await ask(verdicts, settings(server.url), [sample(0)])
    assert elsewhere.asked == []


# -- models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "model", "told"), [
    (["a", "b"], "c", r"model = 'c' is not there; http.* has 'a', 'b'"),
    (["a"], None, r"model is not set; http.* has 'a'"),
    (None, None, "does not list those it has"), (["a", "b"], "b", None), (None, "b", None),
])  # fmt: skip
async def test_the_models_that_are_there_are_named(
    verdicts: Verdicts, there: list[str] | None, model: str | None, told: str | None
) -> None:
    async with peer.serving(good) as server:
        server.models = there
        judge = Judge(settings(server.url, model=model), verdicts)
        if told is None:
            await judge.meet()
        else:
            with pytest.raises(TrainingError, match=told):
                await judge.meet()
        await judge.close()


def test_a_store_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "cleaning.db").write_bytes(b"no database" * 100)
    with pytest.raises(TrainingError, match=r"cleaning\.db.*remove the file"):
        Verdicts(tmp_path / "cleaning.db")


# -- a real server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`python -m llama_cpp.server` with a tiny model of random weights."""
    folder = tmp_path_factory.mktemp("llama")
    model = {
        "model": str(tinymodel.build(folder / "tiny", "gemma3").gguf), "model_alias": MODEL, "n_ctx": 512,
        "n_threads": 1, "n_threads_batch": 1, "n_gpu_layers": 0, "verbose": False, "chat_format": "gemma",
    }  # fmt: skip
    with llamaserver.serving(folder, [model]) as url:
        yield url


async def test_a_real_server_scores_every_sample_by_its_grammar(llama: str, verdicts: Verdicts) -> None:
    judge = Judge(settings(llama, batch_size=4, concurrency=2, timeout_s=60.0), verdicts)
    samples = [sample(n, context=2) for n in range(10)]
    await judge.meet()
    tally = await judge.ask("score", WORDS, samples)
    await judge.close()
    assert all(score in range(1, 6) for score in scores(verdicts, samples)), "weights are random, the grammar is not"
    assert tally.answered == 10
    assert tally.prompt_tokens > 50 < 10 * tally.completion_tokens


async def test_a_real_servers_context_that_is_too_small_is_split(llama: str, verdicts: Verdicts) -> None:
    samples = [sample(n, context=8, lead="今天我们去爬山然后吃了很多好吃的") for n in range(6)]
    tally = await ask(verdicts, settings(llama, concurrency=1, timeout_s=60.0), samples)
    assert all(score in range(1, 6) for score in scores(verdicts, samples))
    assert tally.splits > 0


async def test_a_real_server_names_its_models(llama: str, verdicts: Verdicts) -> None:
    judge = Judge(settings(llama, model="gpt-4"), verdicts)
    with pytest.raises(TrainingError, match=f"'gpt-4' is not there; .* has '{MODEL}'"):
        await judge.meet()
    await judge.close()
