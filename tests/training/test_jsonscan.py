"""training/importers/jsonscan.py: the same members wherever the text is cut into pieces."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.importers.jsonscan import BROKEN, CLOSED, OPENED, TRUNCATED, members, objects
from training.importers.source import Reading
from training.importers.text import LINE_CHARS

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


def read(pieces: list[str], whole: tuple[str, ...] | None = None) -> tuple[list[tuple[str, Any]], list[str]]:
    broken: list[str] = []
    return list(members(pieces, ("", "a"), broken.append, whole=whole)), broken


@given(st.lists(_values, max_size=4), st.sampled_from([None, 0, 1, "\t"]), st.lists(st.integers(0, 300), max_size=6))
def test_where_the_text_is_cut_changes_nothing(values: list[Any], indent: Any, cuts: list[int]) -> None:
    text = json.dumps({"a": values, "b": 1.5, "c": values}, indent=indent, ensure_ascii=False)
    ends = sorted({min(c, len(text)) for c in cuts})
    pieces = [text[i:j] for i, j in zip([0, *ends], [*ends, len(text)], strict=True)]
    found, broken = read(pieces)
    assert broken == []
    assert found == [("", OPENED), ("a", OPENED), *(("a.*", v) for v in values), ("b", 1.5), ("c", values)]


@pytest.mark.parametrize("number", ["1.5", "1e5", "-0.25", "1E-3", "12345", "-7"])
def test_a_number_cut_anywhere_is_one_number(number: str) -> None:
    text = f'{{"a": [{number}, {number}], "b": {number}}}'
    value = json.loads(number)
    for cut in range(len(text)):
        assert read([text[:cut], text[cut:]])[0][1:] == [("a", OPENED), ("a.*", value), ("a.*", value), ("b", value)]


def test_a_broken_member_costs_itself_wherever_the_text_is_cut() -> None:
    good = '{\n  "id": 1\n }'
    text = f'{{"a": [\n {good},\n {{\n  "id": x }},\n {good}, {good}]}}'
    for cut in range(len(text)):
        found, broken = read([text[:cut], text[cut:]])
        assert broken == [BROKEN], cut
        assert [value for route, value in found if route == "a.*"][:2] == [{"id": 1}] * 2, cut


@pytest.mark.parametrize("space", ["", "\n  "])
def test_behind_a_broken_member_one_with_another_first_key_is_read_wherever_the_text_is_cut(space: str) -> None:
    whole = ['{"id": 1, "in": [{"id": 2}, {"b": "]},{"}]}', '{"type": 3, "id": 4}', '{"id": 5}']
    broken_one = '{"id": 6, "in": [{"id\\"": "},{"}, {"b": 1}], "text": w, "after": {"c": 2}}'
    for first in (whole[0], broken_one):
        parts = [first, broken_one, whole[1], "7 8", broken_one, whole[1], whole[2]]
        text = f'{{"a": [{f",{space}".join(parts)}], "b": 9}}'
        good = [json.loads(p) for p in parts if p in whole]
        for cut in range(len(text)):
            found, broken = read([text[:cut], text[cut:]])
            assert [value for route, value in found if route == "a.*" and isinstance(value, dict)] == good, cut
            assert broken == [BROKEN] * parts.count(broken_one), cut
            assert found[-1] == ("b", 9), cut


def test_a_member_without_a_quote_costs_none_that_begins_like_the_first() -> None:
    text = '{"a": [{"id": 1}, {"id": 2, "text": w"}, {"id": 3, "text": "x"}, {"id": 4}]}'
    for cut in range(len(text)):
        found, broken = read([text[:cut], text[cut:]])
        assert [value["id"] for route, value in found if route == "a.*"] == [1, 3, 4], cut
        assert broken == [BROKEN], cut


def test_behind_brackets_too_many_the_next_member_is_found_and_little_is_held() -> None:
    pieces = ['{"a": [{"id": 1}, {"id": x}]]', *['"filling": 1, ' * 10_000] * 100, ', {"id": 4}']
    tracemalloc.start()
    try:
        found, _ = read(pieces)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [value["id"] for route, value in found if route == "a.*"] == [1, 4]
    assert peak < 2 << 20


def test_outermost_lists_are_opened_but_for_those_named_and_what_is_whole_is_told() -> None:
    found, broken = read(['{"x": [1], "keep": [2], "y": {"z": [3]}} {"x": [4'], whole=("keep",))
    assert found == [
        ("", OPENED), ("x", OPENED), ("x.*", 1), ("keep", [2]), ("y", {"z": [3]}), ("", CLOSED), ("", OPENED),
        ("x", OPENED), ("x.*", 4),
    ]  # fmt: skip
    assert broken == [TRUNCATED]


def test_a_line_without_end_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text('{"a": 1}\n' + '{"a": 2}'.ljust(LINE_CHARS) * 2 + '{"a": 3}\n{"a": 4}\n', "utf-8")
    reading = Reading()
    assert list(objects(path, reading)) == [{"a": 1}, {"a": 4}]
    assert dict(reading.skipped) == {"a line of more than 16 MiB": 1}
