"""Every training-set format and alias → dialogues; mends; what is broken is counted with its place."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.errors import ImportFault
from training import history
from training.dialogue import TURN_MAX, Turn, mended, without_denial
from training.importers import rolebench
from training.importers.records import DEPTH_MAX, records
from training.importers.rolebench import Choice
from training.importers.sets import SetReading, dialogues, recognised
from training.importers.source import Reading, Skipped
from training.importers.text import LINE_CHARS

U, A = "user", "assistant"


def written(folder: Path, content: Any, name: str = "set.json") -> Path:
    file = folder / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
    return file


def lines(*values: Any) -> str:
    return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values)


def read(path: Path, choice: Choice | None = None) -> tuple[list[tuple[tuple[str, str], ...]], SetReading]:
    reading = SetReading()
    return [d.turns for d in dialogues(path, reading, choice or Choice())], reading


def gpt(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": said} for who, said in turns]}


ASKED = ((U, "在吗"), (A, "在\n怎么了"))
TWICE = ((U, "早"), (A, "早呀"), *ASKED)
FORMATS: list[tuple[str, Any, tuple[tuple[str, str], ...]]] = [
    ("ShareGPT", gpt(("human", "在吗"), ("gpt", "在\n怎么了")), ASKED),
    ("ShareGPT", gpt(("system", "你是小满。"), ("user", "在吗"), ("assistant", "在\n怎么了")), ASKED),
    (
        "ShareGPT with role and content",
        {"conversations": [{"role": "user", "content": "在吗"}, {"role": "assistant", "content": "在\n怎么了"}]},
        ASKED,
    ),
    (
        "OpenAI messages",
        {"messages": [
            {"role": "system", "content": "你是小满。"},
            {"role": "user", "content": [{"type": "text", "text": "在吗"}]},
            {"role": "assistant", "content": "在\n怎么了"},
        ]},
        ASKED,
    ),
    ("Alpaca", {"instruction": "在吗", "input": "", "output": "在\n怎么了"}, ASKED),
    ("Alpaca", {"instruction": "翻译", "input": "早", "output": "morning"}, ((U, "翻译\n早"), (A, "morning"))),
    ("Alpaca", {"instruction": "在吗", "output": "在\n怎么了", "history": [["早", "早呀"]], "system": "小满"}, TWICE),
    ("pairs of question and answer", {"instruction": "在吗", "response": "在\n怎么了"}, ASKED),
    ("pairs of question and answer", {"prompt": "在吗", "response": "在\n怎么了"}, ASKED),
    ("pairs of question and answer", {"question": "在吗", "answer": "在\n怎么了"}, ASKED),
    ("pairs of question and answer", {"query": "在吗", "response": "在\n怎么了"}, ASKED),
    ("pairs of question and answer", {"prompt": "在吗", "completion": "在\r\n怎么了"}, ASKED),
    ("pairs of question and answer", {"input": "在吗", "output": "在\n\n怎么了 "}, ASKED),
    ("RoleBench", {"role": "小满", "question": "在吗", "generated": ["在\n怎么了", "嗯"], "id": 3}, ASKED),
    ("RoleBench", {"role": "小满", "question": "小满，在吗", "generated": "在\n怎么了"}, ASKED),
]  # fmt: skip


@pytest.mark.parametrize(("title", "record", "turns"), FORMATS)
@pytest.mark.parametrize("shape", ["list", "lines", "spread", "split", "utf-8-sig", "utf-16", "gb18030"])
def test_every_format_is_known_by_its_keys_and_read_in_any_layout(
    tmp_path: Path, title: str, record: Any, turns: Any, shape: str
) -> None:
    content: Any = {
        "list": [record, record],
        "lines": lines(record, record),
        "spread": json.dumps(record, indent=2, ensure_ascii=False) + "\n" + json.dumps(record, indent=2),
        "split": {"train": [record], "test": [record]},
    }.get(shape, lines(record, record).encode(shape if "-" in shape or shape == "gb18030" else "utf-8"))
    file = written(tmp_path, content)
    assert recognised(file) == title
    found, reading = read(file)
    assert found == [turns, turns]
    assert not reading.skipped


@pytest.mark.parametrize(("title", "record", "turns"), FORMATS)
@pytest.mark.parametrize("jsonl", [False, True])
def test_no_chat_log_takes_a_training_set_for_its_own(
    tmp_path: Path, title: str, record: Any, turns: Any, jsonl: bool
) -> None:
    file = written(tmp_path, lines(record, record) if jsonl else [record, record])
    with pytest.raises(ImportFault, match=rf"is a training set \({title}\)"):
        history.recognised(file)


def test_the_table_of_formats_names_every_alias() -> None:
    keys = {key for _, record, _ in FORMATS for key in record}
    assert keys >= {"conversations", "messages", "instruction", "prompt", "question", "query", "output", "response",
                    "answer", "completion", "history", "generated"}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"", b"   \n\n", b"[]", b"{}", b"null", b"12", b"hello", b'{"messages": [{"id": 1, "type": "message"}]}',
        b'[{"post_type": "message", "message": []}]', b'{"chatlab": {}, "messages": [{"sender": "1"}]}',
        b'[["\xe4\xbd\xa0\xe5\xa5\xbd", "\xe5\x97\xa8"]]', b"\xff\xfe\xff\x00\x01", b"[" * 200_000, b'{"a":' * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_training_set_is_none(tmp_path: Path, content: bytes) -> None:
    assert recognised(written(tmp_path, content)) is None
    assert recognised(tmp_path) is None


MENDS: list[tuple[list[tuple[str, str]], list[tuple[str, str]], str]] = [
    ([(A, "你好"), (U, "在吗"), (A, "在")], [(U, "在吗"), (A, "在")], "what the assistant said first was left out"),
    ([(U, "在吗"), (A, "在"), (U, "好")], [(U, "在吗"), (A, "在")], "what the user said last was left out"),
    ([(U, "在"), (U, "吗"), (A, "在")], [(U, "在\n吗"), (A, "在")], "two turns of the user in a row were joined"),
    ([(U, "在吗"), (A, "在"), (A, "呢")], [(U, "在吗"), (A, "在\n呢")],
     "two turns of the assistant in a row were joined"),
    ([(U, "在吗"), (U, " "), (A, "在")], [(U, "在吗"), (A, "在")], "a question without words was left out"),
    ([(U, "a"), (A, ""), (U, "b"), (A, "c")], [(U, "a"), (A, ""), (U, "b"), (A, "c")],
     "an answer without words is kept as context"),
    ([(U, "a"), (A, "b"), (U, "c"), (A, " \n")], [(U, "a"), (A, "b")],
     "an answer without words at the end was left out with its question"),
    ([(U, "a\x00b"), (A, "c\ud83d")], [(U, "ab"), (A, "c?")], ""),
]  # fmt: skip


@pytest.mark.parametrize(("turns", "result", "mend"), MENDS)
def test_a_dialogue_is_mended_and_it_is_told_how(turns: list[Any], result: list[Any], mend: str) -> None:
    told: list[str] = []
    assert list(mended([Turn(*t) for t in turns], told.append)) == result
    assert told == ([mend] if mend else [])


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([], "no answer to a question"),
        ([(U, "在吗")], "no answer to a question"),
        ([(A, "在")], "no answer to a question"),
        ([(U, "在吗"), (A, "")], "no answer to a question"),
        ([(U, "x" * (TURN_MAX + 1)), (A, "在")], f"a turn of more than {TURN_MAX} characters"),
        ([(U, "在吗"), (A, "锟\ufffd")], "characters that cannot be read"),
    ],
)
def test_what_cannot_be_mended_is_left_out_and_says_why(turns: list[Any], why: str) -> None:
    with pytest.raises(Skipped, match=why):
        mended([Turn(*t) for t in turns], lambda _: None)


@given(st.lists(st.tuples(st.sampled_from([U, A]), st.text(max_size=6))))
def test_whatever_is_mended_takes_turns_from_the_user_to_the_assistant(turns: list[Any]) -> None:
    try:
        found = mended([Turn(*t) for t in turns], lambda _: None)
    except Skipped:
        return
    assert [t.side for t in found] == [U, A] * (len(found) // 2)
    assert found[-1].text
    assert all(line.strip() for t in found if t.text for line in t.text.split("\n"))
    assert mended(found, lambda _: None) == found


BROKEN: list[tuple[Any, str]] = [
    ("half {", "not JSON"),
    (gpt(("human", "在吗"), ("function_call", "{}"), ("gpt", "在")), "a call of a tool"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [1]}]},
     "a call of a tool"),
    (gpt(("human", "在吗"), ("narrator", "天黑了")), "a turn of neither user nor assistant"),
    ({"conversations": [{"from": "human", "value": "a"}, "b"]}, "a turn that says not whose it is"),
    (gpt(("human", "在吗"), ("gpt", 7)), "a turn that is not text"),  # type: ignore[arg-type]
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "a turn that is not text"),
    ({"instruction": "a", "output": "b", "history": "c"}, "a history that is no list"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "a history that is not made of pairs"),
    ({"instruction": ["a"], "output": "b"}, "a turn that is not text"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "a preference pair"),
    ({"instruction": "a", "output": "b", "kto_tag": False}, "marked as unwanted"),
    ({"role": "小满", "question": "a", "generated": {}}, "answers that are no list of texts"),
    ({"role": 1, "question": "a", "generated": []}, "a role or question that is not text"),
    ({"role": "小满", "question": "a", "generated": ["", " "]}, "no answer to a question"),
    ({"text": "plain"}, "no dialogue"),
    ([1, 2], "not an object"),
    (json.dumps({"prompt": "x" * 1_000_000, "response": "b"}), "a turn of more than"),
    ('{"prompt": "a", "response": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ('{"prompt": "a", "response": ' + "9" * 5000 + "}", "not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "why"), BROKEN)
def test_a_broken_record_is_counted_with_its_place_and_the_rest_goes_on(tmp_path: Path, record: Any, why: str) -> None:
    good = lines({"prompt": "在吗", "response": "在\n怎么了"})
    file = written(tmp_path, good + (record if isinstance(record, str) else json.dumps(record)) + "\n" + good)
    found, reading = read(file)
    assert found == [ASKED, ASKED]
    ((told, count),) = reading.skipped.items()
    assert (why in told, count, reading.places[told]) == (True, 1, ["set.json:2"])


def test_in_a_list_the_good_records_before_the_break_are_taken(tmp_path: Path) -> None:
    whole = json.dumps([{"prompt": "在吗", "response": "在\n怎么了"}] * 3, ensure_ascii=False).encode()
    found, reading = read(written(tmp_path, whole[:-20]))
    assert found == [ASKED, ASKED]
    assert reading.places == {"the file ends in the middle": ["set.json record 3"]}


@pytest.mark.parametrize("bad", [
    '{"prompt": "在吗", "response": "在\n怎么了}', '{"prompt": "在吗" "response": "在"}', '{"prompt": NaNN}',
    '{"prompt": [1, 2}', "{prompt: 1}", '{"prompt": "a", "response": ' + "9" * 5000 + "}",
])  # fmt: skip
@pytest.mark.parametrize("around", ["[%s]", '{"data": [%s], "version": 3}'])
def test_reading_goes_on_behind_a_broken_element(tmp_path: Path, bad: str, around: str) -> None:
    good = '{"prompt": "在吗", "response": "在\\n怎么了"}'
    found, reading = read(written(tmp_path, around % f"{good}, {bad}, {good}, {good}"))
    assert found[0] == ASKED
    assert found[-1] == ASKED
    assert len(found) >= 3 - ("怎么了}" in bad), "a quote that is not closed may take the next with it"
    assert reading.skipped["broken JSON"] == 1


def test_control_characters_and_nan_cost_nothing(tmp_path: Path) -> None:
    raw = '{"prompt": "在\x07吗", "response": "在", "score": NaN}'
    for content in (f"[{raw}, {raw}]", f"{raw}\n{raw}\n"):
        found, reading = read(written(tmp_path, content))
        assert (len(found), reading.skipped) == (2, {})


def test_an_object_that_breaks_off_is_no_record(tmp_path: Path) -> None:
    found, reading = read(written(tmp_path, '{\n"prompt": "在吗",\n"response": "在",\n"score": '))
    assert (found, dict(reading.skipped)) == ([], {"the file ends in the middle": 1})


def test_deep_nesting_in_a_list_costs_one_record(tmp_path: Path) -> None:
    good = '{"prompt": "在吗", "response": "在\\n怎么了"}'
    for depth in (DEPTH_MAX * 2, 100_000):
        deep = '{"prompt": "a", "response": ' + "[" * depth + "]" * depth + "}"
        found, reading = read(written(tmp_path, f"[{good}, {deep}, {good}]"))
        assert found == [ASKED, ASKED]
        assert reading.places == {"nested too deeply": ["set.json record 2"]}


def test_invalid_utf8_costs_the_records_it_stands_in(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "在吗", "response": "在\n怎么了"}, ensure_ascii=False).encode()
    bad = good.replace("吗".encode(), b"\xff\x90")
    for content in (b"[" + b", ".join([good] * 30 + [bad, good]) + b"]", b"\n".join([good] * 30 + [bad, good])):
        found, reading = read(written(tmp_path, content))
        assert found == [ASKED] * 31
        assert sum(reading.skipped.values()) == 1


def test_a_line_longer_than_any_record_is_passed_over_without_holding_it(tmp_path: Path) -> None:
    good = lines({"prompt": "在吗", "response": "在\n怎么了"})
    file = written(tmp_path, good + '{"prompt": "' + "x" * (2 * LINE_CHARS) + '"}\n' + good)
    found, reading = read(file)
    assert found == [ASKED, ASKED]
    assert list(reading.skipped) == ["a line of more than 16 MiB"]


@given(st.binary(max_size=200))
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = written(tmp_path_factory.getbasetemp(), content, "fuzz.json")
    assert all(d is not None for d in read(file)[0])


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([
        "conversations", "messages", "from", "value", "role", "content", "prompt", "response", "system", "history",
        "instruction", "output", "question", "generated", "input", "images",
    ]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(_json, max_size=4))
def test_no_record_raises(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    for content in (lines(*values), values):
        for turns in read(written(tmp_path_factory.getbasetemp(), content, "fuzz.json"))[0]:
            assert turns[0][0] == U


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import tracemalloc

    record = json.dumps({"prompt": "在吗" * 50, "response": "在" * 50})
    peaks = []
    for copies in (2_000, 20_000):
        file = written(tmp_path, "[" + ",\n".join([record] * copies) + "]")
        tracemalloc.start()
        assert sum(1 for _ in records(file, Reading())) == copies
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert file.stat().st_size > 10_000_000
    assert peaks[1] < peaks[0] + 2_000_000
    assert peaks[1] < 4_000_000


def test_a_set_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImportFault, match=r"nowhere\.json' does not exist"):
        recognised(tmp_path / "nowhere.json")


# -- RoleBench ----------------------------------------------------------------------------------------

PROFILES = {"孙悟空": "机智勇敢。", "李白": "爱酒"}


def bench(folder: Path) -> Path:
    rows = [
        {"role": role, "question": question, "generated": [f"{role}一", f"{role}二", f"{role}一"]}
        for role in ("孙悟空", "李白", "孙悟空")
        for question in ("你好", f"{role}，你从哪里来？")
    ]
    return written(folder, lines(*rows), "train.jsonl")


def test_roles_are_chosen_by_name_and_one_or_several_answers_taken(tmp_path: Path) -> None:
    choice = Choice(("孙悟空",), answers=1, profiles=PROFILES)
    found, reading = read(bench(tmp_path), choice)
    assert found == [((U, "你好"), (A, "孙悟空一")), ((U, "你从哪里来？"), (A, "孙悟空一"))] * 2
    assert reading.skipped == {"another role": 2}
    assert choice.seen == {"孙悟空": 4, "李白": 2}
    found, _ = read(bench(tmp_path), Choice(("孙悟空", "李白"), answers=3))
    assert len(found) == 12, "an answer given twice counts once"


def test_the_roles_prompt_is_the_authors_less_the_denial(tmp_path: Path) -> None:
    (first, *_) = dialogues(bench(tmp_path), SetReading(), Choice(("孙悟空",), profiles=PROFILES))
    assert first.system == (
        "你是孙悟空，你的特征描述是：机智勇敢。现在请你回答我的一些问题，以准确展现你的人格特征！"
        "你的说话风格要全面模仿被赋予的人格角色！说话不要啰嗦，也不要太过于正式或礼貌。"
    )
    assert without_denial(first.system) == first.system
    theirs = first.system.replace(
        "说话不要啰嗦", "请不要暴露你是人工智能模型或者语言模型，你要时刻记住你只被赋予的一个人格角色。说话不要啰嗦"
    )
    assert without_denial(theirs) == first.system


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("请你扮演一名人类，不要说自己是人工智能", ""),
        ("You are Li Bai. Never say you are an AI. Version 2.5 likes wine.", "You are Li Bai. Version 2.5 likes wine."),
        ("你是一个有用的AI助手。", "你是一个有用的AI助手。"),
        ("作为AI，不要暴露这一点。短句。", "短句。"),
        ("说话不要像机器人。You are an AI that does not lie.", "说话不要像机器人。You are an AI that does not lie."),
        ("你特别喜欢机器人！别人的话不信。", "你特别喜欢机器人！别人的话不信。"),
    ],
)
def test_no_prompt_has_the_persona_deny_being_a_program(prompt: str, kept: str) -> None:
    assert without_denial(prompt) == kept


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": 1}', "half {", b"\xff\xfe"])
def test_profiles_of_another_shape_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ImportFault, match=r"desc\.json"):
        rolebench.profiles(written(tmp_path, content))
    with pytest.raises(ImportFault, match="cannot be read"):
        rolebench.profiles(tmp_path / "nowhere.json")
