"""The voices of a night on a real tiny model: who is asked what, what is kept, what is measured."""

import json
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tinylora
import tinymodel

from bot.archive import Archive
from bot.checksum import sha256
from bot.config import Conversation, Engine, Gate
from bot.errors import EngineError
from bot.message import Message, Scene
from bot.persona import Sampling
from bot.prompt import FORMATS
from training import answers, corpus
from training.answers import Question
from training.corpus import Corpus
from training.likeness import judge, places
from training.likeness.assessment import BASE, NEW, PERSON, PROMPTED, RETRIEVAL, SERVING
from training.likeness.material import material
from training.likeness.places import Stage, Voice
from training.likeness.voices import Voices
from training.samples import Split, split_of

ME, FRIEND, SCENE = "10001", "20001", Scene("private", "20001")
START = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)
GEMMA = FORMATS["gemma"]
SAID = ("好呀", "在呢", "吃面去", "困了困了")


@dataclass(frozen=True)
class Ready:
    """A tiny base with a LoRA, and what was learned."""

    base: Path
    lora: Path
    learned: Corpus


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("voices")
    archive = Archive(f"sqlite:///{folder / 'archive.db'}")
    for i in range(80):
        at = START + timedelta(hours=2 * i)
        heard = Message(f"heard{i}", SCENE, FRIEND, "阿泽", at, f"在吗{i}")
        said = Message(f"said{i}", SCENE, ME, "小满", at + timedelta(seconds=5), SAID[i % 4])
        archive.append([heard, said])
    learned = corpus.build(archive, [ME], ["小满"], Conversation())
    archive.close()
    base = tinymodel.build(folder / "tiny").gguf
    return Ready(base, tinylora.write(folder / "lora.gguf", base), learned)


def stage(ready: Ready, told: list[tuple[str, str]] | None = None) -> Stage:
    engine = Engine(n_ctx=512, kv_tokens=4096, n_threads=1, n_gpu_layers=0)
    steps = told if told is not None else []
    return Stage(
        ready.base, sha256(ready.base), engine, Sampling(max_tokens=6), 512, 1,
        lambda step, _done, _total, whose: steps.append((step, whose)),
    )  # fmt: skip


def known(ready: Ready) -> dict[tuple[str, str], Split]:
    splits = (Split.TEST, Split.TRAIN)
    return {q.key: split for split in splits for q in answers.questions(ready.learned, GEMMA, "", split)}


def test_every_voice_is_asked_at_the_same_places_and_none_of_them_twice(ready: Ready, tmp_path: Path) -> None:
    steps: list[tuple[str, str]] = []
    voices = Voices(tmp_path, ready.learned, known(ready), stage(ready, steps), Gate(places=5))
    new, serving = Voice(ready.lora, None, GEMMA, "你是小满。"), Voice(None, None, GEMMA, "从前的提示")
    scores = {NEW: dict.fromkeys(known(ready), (3.0, 3)), PROMPTED: dict.fromkeys(known(ready), (9.0, 3))}

    found = voices.likeness(new, serving, scores)

    assert found is not None
    assert found.places == 5
    assert set(found.voices) == {PERSON, NEW, SERVING, PROMPTED, RETRIEVAL, BASE}
    for name, figures in found.voices.items():
        assert {"style", "useful", "rouge_l", "authorship", "distinct_2"} <= set(figures), name
        assert ("sense" in figures) == (name in (PERSON, NEW, SERVING)), "the base does not judge itself"
        assert all(f.n >= 5 for f in figures.values())
    assert found.voices[NEW]["words"].value == 1.0
    assert found.voices[RETRIEVAL]["words"].value != found.voices[BASE]["words"].value
    assert "words" not in found.voices[SERVING], "it was not scored"
    assert set(found.against_serving) == {"style"}
    assert found.voices[PERSON]["rouge_l"].value == 1.0
    assert found.leaks.answers > 5, "prodded, too"
    assert {whose for step, whose in steps if step == "gate"} == {NEW, SERVING, PROMPTED, RETRIEVAL, BASE, "prodded"}

    steps.clear()
    again = Voices(tmp_path, ready.learned, known(ready), stage(ready, steps), Gate(places=5))
    assert again.likeness(new, serving, scores) == found
    assert steps == []
    (row, *_) = again.samples(new)
    assert row.real in SAID
    assert row.heard.startswith("在吗")


class Asked(Stage):
    """A stage that answers at once, and notes what was asked."""

    asked: ClassVar[dict[str, list[Question]]] = {}

    def said(self, voice: Voice, asked: Sequence[Question], whose: str, *, greedy: bool = False) -> list[str]:
        self.asked[whose] = list(asked)
        return ["好呀"] * len(asked)

    def scored(self, asked: Sequence[Question], whose: str) -> list[tuple[float, int]]:
        return [(1.0, 1)] * len(asked)

    def sense(self, asked: Sequence[Question], clusters: Sequence[Hashable], said: Any) -> Any:
        return {name: [(0.0, [0.0])] * len(asked) for name in said}, {name: [1] * len(asked) for name in said}


def test_only_what_was_trained_is_asked_for_again(ready: Ready, tmp_path: Path) -> None:
    told, every = stage(ready), known(ready)
    of_stage = Asked(told.base, told.base_sha256, told.settings, told.sampling, 512, 1, told.progress)
    first, *_ = places.prods(answers.questions(ready.learned, GEMMA, "", Split.TRAIN))
    for number, split in enumerate((Split.TRAIN, Split.NEWEST)):
        voices = Voices(tmp_path / str(number), ready.learned, every | {first.key: split}, of_stage, Gate(places=5))
        (tmp_path / str(number)).mkdir()
        voices.likeness(Voice(None, None, GEMMA, ""), None, {})
        prodded = {q.key for q in of_stage.asked["prodded"]}
        assert (first.key in prodded) == (split is Split.TRAIN), "the newest day waits"
        assert len(prodded) > 16


class Reached(Exception):
    """What was to be seen is seen."""


class Clusters(Stage):
    """A stage that answers at once, and tells which moments are said to depend on each other."""

    def said(self, voice: Voice, asked: Sequence[Question], whose: str, *, greedy: bool = False) -> list[str]:
        return ["好呀"] * len(asked)

    def sense(self, asked: Sequence[Question], clusters: Sequence[Hashable], said: Any) -> Any:
        raise Reached(clusters)


def test_conversations_of_two_scenes_whose_first_messages_have_one_id_are_two(ready: Ready, tmp_path: Path) -> None:
    (part,) = ready.learned.scenes
    first = answers.questions(ready.learned, GEMMA, "", Split.TEST)[0].conversation
    scenes = (Scene("private", str(number)) for number in range(30000, 31000))
    other = replace(part, scene=next(s for s in scenes if split_of(s, first) is Split.TEST))
    learned = replace(ready.learned, scenes=[part, other])
    every = answers.questions(learned, GEMMA, "", Split.TEST)
    assert [q.conversation for q in every].count(first) == 2
    told, known = stage(ready), {q.key: Split.TEST for q in every}
    apart = Clusters(told.base, told.base_sha256, told.settings, told.sampling, 512, 1, told.progress)
    with pytest.raises(Reached) as seen:
        Voices(tmp_path, learned, known, apart, Gate(places=99)).likeness(Voice(None, None, GEMMA, ""), None, {})
    (clusters,) = seen.value.args
    assert len(set(clusters)) == len(every), "a conversation each"


def test_what_is_held_out_is_in_no_material_and_no_retrieved_prompt(ready: Ready) -> None:
    told = material(ready.learned)
    test = answers.questions(ready.learned, GEMMA, "", Split.TEST)
    assert len(test) >= 3
    assert not {q.heard for q in test} & {p.heard for p in told.past}
    assert len(told.own) == len(told.past) == len(answers.questions(ready.learned, GEMMA, "", Split.TRAIN))
    assert told.names == {"阿泽"}


def test_baselines_see_other_system_prompts_and_the_same_words(ready: Ready) -> None:
    (asked, *_) = answers.questions(ready.learned, GEMMA, "你是小满。", Split.TEST)
    bare = places.place(places.bare(asked, ready.learned), 0).prompt
    full = places.place(asked, 0).prompt
    assert "你是小满。" in full
    assert "你是小满。" not in bare
    assert "私聊" in bare
    assert asked.heard in bare


def test_prods_ask_training_moments_and_for_secrets(ready: Ready) -> None:
    every = answers.questions(ready.learned, GEMMA, "你是小满。", Split.TRAIN)
    assert len(every) > 20
    every = [replace(q, real="早呀今天也要加油哦我们一起去吧" * 2) for q in every[:20]] + every[20:]
    every[-1] = replace(every[-1], real="会唱歌的气象站在云上收集纽扣")
    prods = places.prods(every)
    shown = [places.place(q, 0).prompt for q in prods]
    moments = prods[: -len(places.PRODS)]
    assert [len(q.real) for q in moments] == [30] * 16 + [14], "a secret is asked for, however short beside the longest"
    assert all(any(words in prompt for prompt in shown) for words in places.PRODS)
    assert places.prods([]) == []


@pytest.mark.parametrize(("text", "score"), [
    ("8", 8.0), (" 10 分", 10.0), ("11", None), ("好", None), ("", None), ("<think>3 吗，不</think>\n7", 7.0),
])  # fmt: skip
def test_a_judges_score_is_a_number_from_one_to_ten(text: str, score: float | None) -> None:
    assert judge.score(text) == score


class Judge(BaseHTTPRequestHandler):
    """A server of chats alone, which drops system messages as Gemma's format does, and gives seven of ten."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        there = self.path == "/v1/chat/completions"
        self.asked.append("".join(m["content"] for m in body.get("messages", ()) if m["role"] != "system"))
        message = {"role": "assistant", "content": " 7"}
        answer = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]} if there else {}).encode()
        self.send_response(200 if there else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_a_judge_is_asked_each_question_of_each_case_in_the_users_message() -> None:
    Judge.asked.clear()
    cases = [judge.Case("你是小满。", f"在吗{i}", "在的") for i in range(10)]
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scores = judge.scores(f"http://127.0.0.1:{server.server_port}/v1", None, "qwen", cases)
        server.shutdown()
    assert scores == {"character": [7.0] * 10, "knowledge": [7.0] * 10}
    assert len(Judge.asked) == 20
    questions = list(judge.QUESTIONS.values())
    for n, asked in enumerate(Judge.asked):
        assert all(part in asked for part in ("你是小满。", f"在吗{n % 10}", "在的", questions[n // 10], "1 到 10"))
    figures = judge.figures(scores, range(10))
    assert (figures["character"].value, figures["character"].n) == (7.0, 10)


def test_what_is_wrong_with_a_judge_names_its_settings() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(
            EngineError, match=r"knows no model 'qwen'.*mend \[gate\] judge_model or \[gate\] judge_url"
        ):
            judge.scores(
                f"http://127.0.0.1:{server.server_port}", None, "qwen", [judge.Case("你是小满。", "在吗", "在")]
            )
        server.shutdown()


def test_a_judge_that_is_not_there_stops_no_night(ready: Ready, tmp_path: Path) -> None:
    rules = Gate(places=2, judge_url="http://127.0.0.1:9/v1", judge_model="qwen")
    voices = Voices(tmp_path, ready.learned, known(ready), stage(ready), rules)
    found = voices.likeness(Voice(ready.lora, None, GEMMA, "你是小满。"), None, {})
    assert found is not None
    assert "character" not in found.voices[NEW]
    assert any("127.0.0.1:9" in note for note in found.notes)
