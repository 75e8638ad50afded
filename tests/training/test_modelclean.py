"""training/modelclean.py and judging.py: what a model said of a corpus, and what becomes of it."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peer
import pytest
from chats import FRIEND, ME, OTHER, say
from peer import Answer, chatted

from bot.archive import Archive
from bot.config import Conversation, Settings
from bot.errors import TrainingError
from bot.message import Message, Scene
from bot.persona import new_persona
from bot.prompt import FORMATS
from training import clean, modelclean, sharing, stats
from training.corpus import Corpus, build
from training.judging import judged
from training.samples import Split, windows
from training.taskwords import TASKS, Words
from training.verdicts import FILE, Verdicts

MODEL = "judge-7b"
ALONE = Scene("private", FRIEND)
TALK = [
    say(0, FRIEND, "在吗", ALONE), say(5, ME, "在", ALONE), say(7, ME, "怎么了", ALONE),
    say(60, FRIEND, "我的手机号 13812345678", ALONE), say(70, ME, "乱七八糟", ALONE),
    say(9000, ME, "到家了", ALONE), say(9100, FRIEND, "好", ALONE),
]  # fmt: skip
GROUP_TALK = [
    say(0, FRIEND, "明天几点"), say(2, OTHER, "打球吗"), say(4, OTHER, "三缺一"), say(9, ME, "早上八点"),
    say(60, OTHER, "哈哈哈哈哈哈"), say(62, ME, "哈哈哈哈哈哈"),
    say(100, FRIEND, "谁有空"), say(130, ME, "我吧", reply_to=f"{FRIEND}-100"),
    say(200, OTHER, "今天好热"), say(230, ME, "周末去爬山吗"),
]  # fmt: skip


class Characters:
    """A tokenizer of characters."""

    bos = None

    def tokens(self, text: str, control: bool) -> list[int]:
        return [ord(c) for c in text]


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[peer.Peer]:
    """The scripted server in a thread of its own, for code that runs its own loop."""
    up, loop, served = threading.Event(), asyncio.new_event_loop(), []

    async def serve() -> None:
        async with peer.serving(answer) as server:
            server.models = [MODEL]
            served.append(server)
            served.append(asyncio.Event())
            up.set()
            await served[1].wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(10)
        yield served[0]
    finally:
        loop.call_soon_threadsafe(served[1].set)
        thread.join(10)
        loop.close()


def model(said: dict[str, Callable[[str], Any]]) -> Callable[[dict[str, Any]], Answer]:
    """A server that knows a task by its prompt's first words, and answers each sample by its text."""

    def answer(body: dict[str, Any]) -> Answer:
        (asked,) = (m["content"] for m in body["messages"])
        (task,) = [t for t in said if asked.startswith(OPENINGS[t])]
        parts = re.split(r"\n\n## \d+\n", asked)[1:]
        return chatted(json.dumps({str(n): said[task](part) for n, part in enumerate(parts, 1)}, ensure_ascii=False))

    return answer


OPENINGS = {
    "score": "你在为一个聊天模型", "question": "你在补全聊天", "fragments": "你在整理聊天", "pairing": "你在整理群聊",
}  # fmt: skip


def settings(tmp_path: Path, url: str | None, *tasks: str, pairing: str = "scored", **more: Any) -> Settings:
    told = {"url": url, "model": MODEL, "tasks": tasks, "timeout_s": 5.0, **more}
    return Settings.model_validate({
        "paths": {"data": str(tmp_path / "data")}, "cleaning": told, "corpus": {"pairing": pairing},
    })  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{tmp_path / 'data' / 'archive.db'}")
    yield store
    store.close()


def learned(archive: Archive, wanted: Settings, messages: list[Message]) -> Corpus:
    archive.append([*messages, say(400 * 86400, FRIEND, "很久以后", Scene("group", "901"))])
    return build(archive, [ME], ["小满"], Conversation(), cleaning=wanted.corpus)


def trained(corpus: Corpus) -> str:
    """All text that is a label."""
    found = windows(corpus, Characters(), FORMATS["chatml"], "你是小满。", 4000)
    return "".join(chr(w.ids[i]) for w in found for label in w.labels for i in label.trained)


def rendered(corpus: Corpus) -> str:
    return "".join(chr(i) for w in windows(corpus, Characters(), FORMATS["chatml"], "你是小满。", 4000) for i in w.ids)


def test_answers_of_low_score_are_masked_and_stay_in_the_context(archive: Archive, tmp_path: Path) -> None:
    with serving(model({"score": lambda text: 1 if "乱七八糟" in text else 4})) as server:
        wanted = settings(tmp_path, server.url, "score")
        built = learned(archive, wanted, TALK)
        told = judged(built, wanted)
    assert told["score"]["scores"] == {"1": 1, "2": 0, "3": 0, "4": 2, "5": 0, "none": 0}
    assert told["changed"]["masked_low_score"] == 1
    assert "13812345678" not in json.dumps(server.asked, ensure_ascii=False), "what is sent is redacted"
    assert "我的手机号 [手机号]" in server.asked[0]["messages"][0]["content"]
    found = modelclean.cleaned(built, wanted)
    assert "乱七八糟" in trained(built)
    assert "乱七八糟" not in trained(found)
    assert rendered(found) == rendered(built)
    assert [r for part in found.scenes for r in part.masked.values()] == [clean.Reason.LOW_SCORE]
    assert found.counts["masked_low_score"] == 1
    assert found.fingerprint != built.fingerprint
    assert [len(shown) for shown in stats.examples(found, 3).values()] == [1]


def test_without_a_url_nothing_is_used_and_nothing_is_asked(archive: Archive, tmp_path: Path) -> None:
    with serving(model({"score": lambda _: 1})) as server:
        wanted = settings(tmp_path, server.url, "score")
        built = learned(archive, wanted, TALK)
        judged(built, wanted)
    assert modelclean.cleaned(built, wanted).counts["masked_low_score"] == 3
    assert modelclean.cleaned(built, settings(tmp_path, None, "score")) is built
    assert modelclean.cleaned(built, settings(tmp_path, server.url, "score", threshold=1)) is built
    assert modelclean.cleaned(built, settings(tmp_path, server.url, "score", model="other")) is built
    with pytest.raises(TrainingError, match=r"set \[cleaning\] url"):
        judged(built, settings(tmp_path, None, "score"))


def test_an_edited_prompt_is_what_is_asked_and_asks_anew(archive: Archive, tmp_path: Path) -> None:
    with serving(model({"score": lambda _: 4})) as server:
        wanted = settings(tmp_path, server.url, "score")
        built = learned(archive, wanted, TALK)
        assert judged(built, wanted)["score"]["answered"] == 3
        assert judged(built, wanted)["score"]["answered"] == 0
        file = tmp_path / "data" / "prompts" / "score.txt"
        file.write_text(file.read_text("utf-8") + "\n宽一点。", "utf-8")
        assert judged(built, wanted)["score"]["answered"] == 3
    assert server.asked[-1]["messages"][0]["content"].partition("\n\n## 1\n")[0].endswith("宽一点。")
    Words(tmp_path / "data", wanted.cleaning).install()
    assert "宽一点" in file.read_text("utf-8"), "what a user wrote stays"
    assert {f.stem for f in file.parent.iterdir()} == set(TASKS)


def test_a_written_question_is_heard_and_never_trained_decided_or_timed(archive: Archive, tmp_path: Path) -> None:
    with serving(model({"question": lambda _: "  到家\n没 打我电话13812345678 "})) as server:
        wanted = settings(tmp_path, server.url, "question")
        built = learned(archive, wanted, TALK)
        told = judged(built, wanted)
    found = modelclean.cleaned(built, wanted)
    assert (told["question"]["answered"], found.counts["questions_written"]) == (1, 1)
    assert "到家 没 打我电话[手机号]<|im_end|>\n<|im_start|>assistant\n到家了" in rendered(found)
    assert trained(found) == trained(built)
    of = [
        [
            (label.decision, label.moment)
            for w in windows(c, Characters(), FORMATS["chatml"], "", 4000)
            for label in w.labels
        ]
        for c in (built, found)
    ]
    assert of[0] == of[1]
    assert stats.delays(found, private=True) == stats.delays(built, private=True)


@pytest.mark.parametrize("line", ["3", " 5\n", "？？", "1.", "......"])
def test_a_lone_digit_or_mark_is_no_question(archive: Archive, tmp_path: Path, line: str) -> None:
    with serving(model({"question": lambda _: line})) as server:
        wanted = settings(tmp_path, server.url, "question")
        built = learned(archive, wanted, TALK)
        told = judged(built, wanted)["question"]
    assert (told["answered"], told["asked_again"], told["unreadable"]) == (0, 1, 1)
    assert modelclean.cleaned(built, wanted) is built


def test_a_lone_digit_that_was_kept_before_is_not_used_and_asked_anew(archive: Archive, tmp_path: Path) -> None:
    with serving(model({"question": lambda _: "到家没"})) as server:
        wanted = settings(tmp_path, server.url, "question")
        built = learned(archive, wanted, TALK)
        words, verdicts = Words(wanted.data, wanted.cleaning), Verdicts(wanted.data / FILE)
        (asked,) = modelclean.samples("question", built, words, verdicts, wanted)
        verdicts.keep({asked.sample.key: "3"})
        assert modelclean.applied(built, wanted, verdicts) is built
        verdicts.close()
        assert judged(built, wanted)["question"]["answered"] == 1
    assert modelclean.cleaned(built, wanted).counts["questions_written"] == 1


def test_fragments_are_joined_by_number_and_no_word_is_the_models(archive: Archive, tmp_path: Path) -> None:
    more = [
        say(100, FRIEND, "what", ALONE),
        *(say(103 + n, ME, t, ALONE) for n, t in enumerate(("see", "you", "明天见"))),
    ]
    with serving(model({"fragments": lambda text: [2] if "see" in text else []})) as server:
        wanted = settings(tmp_path, server.url, "fragments")
        built = learned(archive, wanted, [*TALK[:5], *more])
        judged(built, wanted)
    assert "1 see\n2 you\n3 明天见" in server.asked[0]["messages"][0]["content"]
    found = modelclean.cleaned(built, wanted)
    said = [[m.text for m in e.said] for part in found.scenes for e in part.exchanges if e.said]
    assert said == [["在", "怎么了"], ["乱七八糟"], ["see you", "明天见"]]
    assert found.counts["fragments_joined"] == 1


def test_a_picture_is_no_part_of_a_sentence(archive: Archive, tmp_path: Path) -> None:
    more = [
        say(100, FRIEND, "在哪", ALONE),
        *(say(103 + n, ME, t, ALONE) for n, t in enumerate(("好的", "[图片]", "在这里", "拍的"))),
    ]
    with serving(model({"fragments": lambda text: [2, 3, 4] if "[图片]" in text else []})) as server:
        wanted = settings(tmp_path, server.url, "fragments")
        built = learned(archive, wanted, more)
        judged(built, wanted)
    (part,) = modelclean.cleaned(built, wanted).scenes
    (exchange,) = (e for e in part.exchanges if e.said)
    assert [m.text for m in exchange.said] == ["好的", "[图片]", "在这里拍的"]
    assert [m.text for m in part.learned(exchange)] == ["好的", "在这里拍的"]


@pytest.mark.parametrize("value", [[1], [4], ["2"], 2, [2.0]])
def test_numbers_of_no_bubble_join_nothing(archive: Archive, tmp_path: Path, value: Any) -> None:
    with serving(model({"fragments": lambda _: value})) as server:
        wanted = settings(tmp_path, server.url, "fragments")
        built = learned(archive, wanted, TALK)
        assert judged(built, wanted)["fragments"]["unreadable"] == 1
    assert modelclean.cleaned(built, wanted) is built


# -- pairing -----------------------------------------------------------------------------------------


def pairs(corpus: Corpus, wanted: Settings) -> list[tuple[str, str]]:
    talks = sharing.pairs(corpus, "", tuple(Split), lambda part: modelclean.chosen(part, wanted))
    return [(talk.turns[0].text, talk.turns[1].text) for talk in talks]


def test_a_model_chooses_among_the_last_ten_back_to_the_persons_own(archive: Archive, tmp_path: Path) -> None:
    picks = {"早上八点": 1, "我吧": 2, "周末去爬山吗": 0}
    chosen = {"pairing": lambda text: next(n for words, n in picks.items() if text.endswith(words))}
    with serving(model({**chosen, "question": lambda _: "周末干嘛"})) as server:
        wanted = settings(tmp_path, server.url, "question", pairing="model")
        built = learned(archive, wanted, GROUP_TALK)
        told = judged(built, wanted)
        asked = [b["messages"][0]["content"] for b in server.asked if "候选" in b["messages"][0]["content"]]
    assert told["pairing"]["samples"] == 2, "a quote says it itself, a repeat answers nothing"
    assert "1 阿强：明天几点\n2 小红：打球吗\n3 小红：三缺一\n【回答】\n早上八点" in asked[0]
    assert "1 小红：今天好热\n【回答】" in asked[0], "not beyond the person's own last message"
    found = modelclean.cleaned(built, wanted)
    assert pairs(found, wanted) == [
        ("阿强：明天几点", "早上八点"), ("阿强：谁有空", "我吧"), ("小红：周末干嘛", "周末去爬山吗"),
    ]  # fmt: skip
    assert stats.figures(found, lambda part: modelclean.chosen(part, wanted))["answers_in_groups"] == {
        "model": 1, "quote": 1, "none": 1,
    }  # fmt: skip
    assert "周末干嘛" not in rendered(found), "what was heard is the context of training"


def test_at_most_ten_are_shown(archive: Archive, tmp_path: Path) -> None:
    many = [say(n, OTHER, f"第{n}句") for n in range(15)]
    with serving(model({"pairing": lambda _: 10})) as server:
        wanted = settings(tmp_path, server.url, pairing="model")
        built = learned(archive, wanted, [*many, say(15, ME, "嗯嗯")])
        judged(built, wanted)
    assert "1 小红：第5句" in server.asked[0]["messages"][0]["content"]
    assert "10 小红：第14句" in server.asked[0]["messages"][0]["content"]
    assert "第4句" not in server.asked[0]["messages"][0]["content"]
    assert pairs(built, wanted) == [("小红：第14句", "嗯嗯")]


@pytest.mark.parametrize(("mode", "want"), [
    ("previous", [("小红：三缺一", "早上八点"), ("小红：今天好热", "周末去爬山吗")]), ("mentioned", []),
    ("empty", [("", "早上八点"), ("", "周末去爬山吗")]), ("model", [("阿强：明天几点", "早上八点")]),
])  # fmt: skip
def test_the_simple_modes_are_settings(
    archive: Archive, tmp_path: Path, mode: str, want: list[tuple[str, str]]
) -> None:
    wanted = settings(tmp_path, None, pairing=mode)
    built = learned(archive, wanted, GROUP_TALK)
    found = [pair for pair in pairs(built, wanted) if pair[1] in ("早上八点", "周末去爬山吗")]
    if mode == "model":  # nobody was asked: the fitted rule
        assert pairs(built, wanted) == pairs(built, settings(tmp_path, None))
    else:
        assert found == want


def test_private_answers_are_paired_with_all_that_was_heard(archive: Archive, tmp_path: Path) -> None:
    wanted = settings(tmp_path, None)
    assert pairs(learned(archive, wanted, TALK), wanted) == [
        ("在吗", "在\n怎么了"), ("我的手机号 [手机号]", "乱七八糟"),
    ]  # fmt: skip


# -- the command line --------------------------------------------------------------------------------


def test_the_command_line_asks_reports_and_shows(archive: Archive, tmp_path: Path) -> None:
    archive.append([*TALK, say(400 * 86400, FRIEND, "很久以后", Scene("group", "901"))])
    config = tmp_path / "bot.toml"
    (tmp_path / "data" / "personas").mkdir(parents=True)
    new_persona(tmp_path / "data" / "personas", "me", "小满", (ME,))

    def twin(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bot", "corpus", *args, "--persona", "me", "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    with serving(model({"score": lambda text: 1 if "乱七八糟" in text else 4})) as server:
        config.write_text(f'[cleaning]\nurl = "{server.url}"\nmodel = "{MODEL}"\n', "utf-8")
        done = twin("clean", "--model", "--show", "1", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        config.write_text(f'[cleaning]\nurl = "{server.url}"\nmodel = "{MODEL}x"\n', "utf-8")
        wrong = twin("clean", "--model")
    assert told["masked_low_score"] == 1
    assert told["examples"] == {"low_score": [["我的手机号 [手机号]", "乱七八糟"]]}
    assert told["model"]["score"]["answered"] == 3
    assert told["model"]["score"]["kB_per_minute"] > 0
    assert told["model"]["costs_of_all_runs"] == {MODEL: {"requests": 1, "prompt_tokens": 7, "completion_tokens": 3}}
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert f"has '{MODEL}'" in wrong.stderr
