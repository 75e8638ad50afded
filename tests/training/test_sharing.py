"""Exports: what other trainers and ChatLab read says what the archive says, and comes back as it went."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME, OTHER, PRIVATE, START, at, say

from bot.archive import Archive
from bot.config import Conversation, Paths, Settings
from bot.errors import TwinError
from bot.message import Message, Scene
from bot.persona import new_persona
from bot.prompt import FORMATS
from training import chatlab, sharing
from training.corpus import Corpus, build
from training.dialogue import Dialogue
from training.importers.rolebench import Choice
from training.importers.sets import SetReading, dialogues, recognised
from training.samples import Split, renderer_for, split_of

EVERY = tuple(Split)
PROMPT = "你是小满。"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield store
    store.close()


def learned(archive: Archive, messages: list[Message]) -> Corpus:
    archive.append([*messages, say(400 * 86400, FRIEND, "很久以后")])
    return build(archive, [ME], ["小满"], Conversation())


TALK = [
    say(0, FRIEND, "在吗"), say(3, OTHER, "喂"), say(8, ME, "在"), say(9, ME, "怎么了↵急吗"),
    say(60, FRIEND, "没人理"), say(120, OTHER, "帮个忙", reply_to=f"{ME}-8"), say(126, ME, "好"),
    say(200, FRIEND, "谢谢"),
]  # fmt: skip


def test_a_conversation_is_a_sample_with_the_turns_the_renderer_makes(archive: Archive) -> None:
    (talk,) = sharing.talks(learned(archive, TALK), PROMPT, EVERY)
    assert talk.system == "你是小满。\n现在是QQ群「测试群」。"
    assert talk.turns == (
        ("user", "【周五 23:10】\n阿强：在吗\n小红：喂"),
        ("assistant", "在\n怎么了↵急吗"),
        ("user", "阿强：没人理\n小红：[回复 小满：在]帮个忙"),
        ("assistant", "好"),
    )


def test_silences_that_count_are_empty_answers_where_they_are_wanted(archive: Archive) -> None:
    (talk,) = sharing.talks(learned(archive, TALK), PROMPT, EVERY, silences=True)
    assert [text for side, text in talk.turns if side == "assistant"] == ["在\n怎么了↵急吗", "", "好", ""]
    assert talk.turns[2] == ("user", "阿强：没人理")
    assert talk.answers == 2


def test_a_picture_among_the_words_is_no_part_of_a_sample(archive: Archive) -> None:
    said = [
        say(0, FRIEND, "在哪"), say(5, ME, "[图片]"), say(6, ME, "这里"), say(60, FRIEND, "哦"),
        say(65, ME, "[图片]好"),
    ]  # fmt: skip
    (talk,) = sharing.talks(learned(archive, said), PROMPT, EVERY)
    assert [text for side, text in talk.turns if side == "assistant"] == ["这里", "[图片]好"]


def test_a_twins_words_end_a_sample_and_stand_in_none(archive: Archive) -> None:
    said = [
        say(0, FRIEND, "一"), say(5, ME, "本人"), say(60, FRIEND, "二"), say(65, ACCOUNT, "代答"), say(67, ME, "补"),
        say(120, FRIEND, "三"), say(125, ME, "又是本人"),
    ]  # fmt: skip
    found = list(sharing.talks(learned(archive, said), PROMPT, EVERY))
    assert [[t for _, t in talk.turns] for talk in found] == [
        ["【周五 23:10】\n阿强：一", "本人"], ["阿强：三", "又是本人"],
    ]  # fmt: skip


def test_the_text_of_a_sample_is_what_is_trained_here(archive: Archive) -> None:
    """Wrapped in a chat format, a sample is token for token our own window."""
    corpus = learned(archive, [m for m in TALK if m.text != "没人理" and m.text != "谢谢"])
    (talk,) = sharing.talks(corpus, PROMPT, EVERY)
    fmt, part = FORMATS["chatml"], corpus.scenes[0]
    renderer = renderer_for(part, corpus, fmt, PROMPT)
    ours = "".join(p.text for p in renderer.opening())
    for number, exchange in enumerate(e for e in part.exchanges if e.said):
        pieces = chain(renderer.heard(exchange, part.quoted, first=not number), renderer.said(exchange, trained=True))
        ours += "".join(p.text for p in pieces)
    theirs = f"<|im_start|>system\n{talk.system}<|im_end|>\n"
    theirs += "".join(f"<|im_start|>{side}\n{text}<|im_end|>\n" for side, text in talk.turns)
    assert theirs == ours


def test_samples_are_of_the_splits_that_were_asked_for(archive: Archive) -> None:
    said = list(chain.from_iterable(
        (say(7200 * i, FRIEND, f"问{i}", PRIVATE), say(7200 * i + 9, ME, f"答{i}", PRIVATE)) for i in range(80)
    ))  # fmt: skip
    corpus = learned(archive, said)
    found = {split: {t.turns[1].text for t in sharing.talks(corpus, PROMPT, [split])} for split in Split}
    assert set.union(*found.values()) == {f"答{i}" for i in range(80)}
    assert sum(map(len, found.values())) == 80
    for i in range(80):
        assert f"答{i}" in found[split_of(PRIVATE, f"{FRIEND}-{7200 * i}")]


@pytest.mark.parametrize(
    ("form", "title"), [("sharegpt", "ShareGPT"), ("openai", "OpenAI messages"), ("alpaca", "Alpaca")]
)
@pytest.mark.parametrize("silences", [False, True])
def test_what_is_exported_comes_back_as_the_same_turns(
    archive: Archive, tmp_path: Path, form: str, title: str, silences: bool
) -> None:
    said = [m for start in range(0, 90000, 9000) for m in _moved(TALK, start)]
    went = list(sharing.talks(learned(archive, said), PROMPT, EVERY, silences=silences))
    file, samples, answers = sharing.write(went, form, tmp_path / "out", "me_all")
    assert (samples, answers) == (10, 20)
    assert recognised(file) == title
    came = list(dialogues(file, SetReading(), Choice()))
    assert [c.turns for c in came] == [_to_last_answer(w) for w in went]
    assert {c.system for c in came} == {went[0].system}


def _moved(messages: list[Message], seconds: int) -> list[Message]:
    """The same messages later on."""

    def later(message: Message) -> float:
        return (message.time - START).total_seconds() + seconds

    return [say(later(m), m.sender_id, m.text) for m in messages]


def _to_last_answer(talk: Dialogue) -> tuple[Any, ...]:
    """A training set ends with words: a silence at the end says nothing to who cannot know that it is one."""
    turns = list(talk.turns)
    while not turns[-1].text:
        del turns[-2:]
    return tuple(turns)


def test_llama_factory_is_told_of_every_set_and_keeps_the_others(archive: Archive, tmp_path: Path) -> None:
    talks = list(sharing.talks(learned(archive, TALK), PROMPT, EVERY))
    (tmp_path / "dataset_info.json").write_text('{"theirs": {"file_name": "x.json"}}', "utf-8")
    for form in sharing.FORMS:
        sharing.write(talks, form, tmp_path, f"me_{form}")
    info = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))
    assert list(info) == ["theirs", "me_sharegpt", "me_openai", "me_alpaca"]
    for name in list(info)[1:]:
        told = info[name]
        (record,) = map(json.loads, (tmp_path / told["file_name"]).read_text("utf-8").splitlines())
        assert set(told["columns"].values()) == set(record)
        if told["formatting"] == "sharegpt":
            tags, turns = told["tags"], record[told["columns"]["messages"]]
            assert {t[tags["role_tag"]] for t in turns} <= {tags[f"{x}_tag"] for x in ("user", "assistant", "system") if
                                                            f"{x}_tag" in tags}  # fmt: skip
            assert [t[tags["content_tag"]] for t in turns][-1] == "好"
    record = json.loads((tmp_path / "me_alpaca.jsonl").read_text("utf-8"))
    assert (len(record["history"]), record["input"], record["output"]) == (1, "", "好")


@pytest.mark.parametrize("content", ["[]", "half {", b"\xff\xfe"])
def test_a_foreign_dataset_info_is_refused_and_nothing_is_written(
    archive: Archive, tmp_path: Path, content: Any
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_info.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TwinError, match=r"dataset_info\.json'"):
        sharing.write(sharing.talks(learned(archive, TALK), PROMPT, EVERY), "openai", out, "me")
    assert [p.name for p in out.iterdir()] == ["dataset_info.json"]


def test_nothing_to_export_is_said_and_a_file_that_cannot_be_written_too(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(TwinError, match="would be empty"):
        sharing.write([], "openai", tmp_path / "out", "me")
    assert not (tmp_path / "out").exists()
    with pytest.raises(TwinError, match="nothing to export"):
        chatlab.export(archive, [ME], tmp_path / "out", START)
    (tmp_path / "blocked").write_text("", "utf-8")
    with pytest.raises(TwinError, match="cannot be"):
        sharing.write(sharing.talks(learned(archive, TALK), PROMPT, EVERY), "openai", tmp_path / "blocked", "me")


NAMED = ("一家/亲", "x/../../../evil", "长" * 120, "..", "a:b?", "a:b*", "CON\\x")
"""What exports call chats that they give no number."""


def test_a_chat_of_any_name_is_one_file_of_the_folder(archive: Archive, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    archive.append([say(n, ME, "早", Scene("group", name), id=str(n)) for n, name in enumerate(NAMED)])
    files = [file for file, _ in chatlab.export(archive, [ME], out, START)]
    assert sorted(out.iterdir()) == sorted(files)
    assert len({file.name.casefold() for file in files}) == len(NAMED)
    assert [p for p in tmp_path.rglob("*.jsonl") if p.parent != out] == []
    assert not any(c in file.name for file in files for c in '\\/:*?"<>|')


def test_a_file_no_system_can_name_is_a_fault_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(TwinError, match="cannot be written"):
        sharing.write_lines(tmp_path / f"{'长' * 120}.jsonl", ["x"])


def test_the_command_line_exports(archive: Archive, tmp_path: Path) -> None:
    config, out = tmp_path / "bot.toml", tmp_path / "out"
    settings = Settings(paths=Paths(data=tmp_path / "data"))
    new_persona(settings.data / "personas", "me", "小满", (ME,))
    stored = Archive(settings.archive_url)
    stored.append(TALK)
    stored.close()

    def export(*words: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "bot", "corpus", "export", "--persona", "me", "--split", "all", "--out", str(out),
             "--json", "--config", str(config), *words],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown: dict[str, Any] = json.loads(done.stdout)
        return shown

    assert export("--format", "chatlab") == {"files": {str(out / "group-20001.jsonl"): 8}}
    samples = [
        export("--format", "sharegpt"), export("--format", "openai"), export("--format", "sharegpt", "--pairs"),
        export("--format", "sharegpt", "--silences"),
    ]  # fmt: skip
    names = [Path(x["file"]).name for x in samples]
    kinds = ("sharegpt", "openai", "sharegpt_pairs", "sharegpt_silences")
    assert names == [f"me_{kind}_all.jsonl" for kind in kinds]
    assert {p.name for p in out.iterdir()} == {"group-20001.jsonl", "dataset_info.json", *names}
    listed = json.loads((out / "dataset_info.json").read_text("utf-8"))
    assert {entry["file_name"] for entry in listed.values()} == set(names)


# -- ChatLab ------------------------------------------------------------------------------------------

CHATLAB_TYPES = {0, 1, 2, 3, 4, 5, 7, 8, 20, 21, 22, 23, 24, 25, 26, 27, 80, 81, 99}


def valid(lines: list[dict[str, Any]]) -> None:
    """The shape of ChatLab's standard 0.0.2, JSONL."""
    header, *rest = lines
    assert set(header) == {"_type", "chatlab", "meta"}
    assert header["_type"] == "header"
    assert (header["chatlab"]["version"], type(header["chatlab"]["exportedAt"])) == ("0.0.2", int)
    meta = header["meta"]
    assert (
        {"name", "platform", "type"} <= set(meta) <= {"name", "platform", "type", "groupId", "groupAvatar", "ownerId"}
    )
    assert meta["type"] in ("group", "private")
    kinds = [line["_type"] for line in rest]
    assert kinds == sorted(kinds), "members before messages"
    members = [line for line in rest if line["_type"] == "member"]
    for member in members:
        assert {"platformId", "accountName"} <= set(member) - {"_type"} <= {
            "platformId", "accountName", "groupNickname", "aliases", "avatar", "roles",
        }  # fmt: skip
    known = {m["platformId"] for m in members}
    for message in rest[len(members) :]:
        assert {"sender", "accountName", "timestamp", "type", "content"} <= set(message) - {"_type"} <= {
            "sender", "accountName", "groupNickname", "timestamp", "type", "content", "platformMessageId",
            "replyToMessageId",
        }  # fmt: skip
        assert message["sender"] in known
        assert isinstance(message["timestamp"], int)
        assert message["type"] in CHATLAB_TYPES
        assert message["content"] is None or isinstance(message["content"], str)


def test_a_scene_is_a_chatlab_log_of_every_message(archive: Archive, tmp_path: Path) -> None:
    archive.append([
        *TALK, say(300, ACCOUNT, "代答"), say(301, ME, "收回的"), say(302, FRIEND, "[图片]", sender_name="强哥"),
        say(303, FRIEND, "[动画表情:猫]"), say(304, OTHER, "[图片]好看"),
        say(305, OTHER, "引一条没有的", reply_to="gone"), say(306, FRIEND, "私聊", PRIVATE),
        say(307, ME, "嗯", PRIVATE), say(308, OTHER, "别处", Scene("group", "7")),
    ])  # fmt: skip
    archive.recall(GROUP, f"{ME}-301", at(310))
    files = chatlab.export(archive, [ME], tmp_path / "out", datetime.fromtimestamp(1_800_000_000).astimezone())
    assert [(f.name, n) for f, n in files] == [("group-20001.jsonl", 13), ("private-10001.jsonl", 2)]
    lines = [json.loads(line) for line in files[0][0].read_text("utf-8").splitlines()]
    valid(lines)
    assert lines[0]["meta"] == {
        "name": "测试群", "platform": "qq", "type": "group", "ownerId": ME, "groupId": "20001",
    }  # fmt: skip
    assert lines[0]["chatlab"]["exportedAt"] == 1_800_000_000
    members = {m["platformId"]: m for m in lines if m["_type"] == "member"}
    assert set(members) == {ME, FRIEND, OTHER, f"twin:{ACCOUNT}"}
    assert (members[FRIEND]["accountName"], members[FRIEND]["aliases"]) == ("阿强", ["强哥"])
    assert members[f"twin:{ACCOUNT}"]["roles"] == [{"id": "bot", "name": "分身"}]
    messages = [m for m in lines if m["_type"] == "message"]
    assert [m["content"] for m in messages if m["sender"] == ME] == ["在", "怎么了\n急吗", "好"]
    assert next(m for m in messages if m["content"] == "帮个忙")["replyToMessageId"] == f"{ME}-8"
    assert [m["type"] for m in messages[-4:]] == [1, 5, 0, 0]
    assert "replyToMessageId" not in messages[-1]
    private = [json.loads(line) for line in files[1][0].read_text("utf-8").splitlines()]
    valid(private)
    assert (private[0]["meta"]["name"], private[0]["meta"]["type"]) == ("阿强", "private")


@pytest.mark.parametrize("raw", [False, True])
def test_a_chatlab_export_is_redacted_unless_the_words_are_asked_for(
    archive: Archive, tmp_path: Path, raw: bool
) -> None:
    archive.append([say(0, FRIEND, "打我电话 13812345678", sender_name="阿强13912345678"), say(5, ME, "好")])
    ((file, count),) = chatlab.export(archive, [ME], tmp_path / "out", START, raw=raw)
    told = file.read_text("utf-8")
    assert count == 2
    assert ("13812345678" in told, "13912345678" in told) == (raw, raw)
    assert ("打我电话 [手机号]" in told, "阿强[手机号]" in told) == (not raw, not raw)
