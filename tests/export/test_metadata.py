"""A GGUF's header, as it was written and damaged."""

import struct
from pathlib import Path

import gguf
import pytest

from bot.errors import ExportError
from export.metadata import fields


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gemma3")
    writer.add_string("tokenizer.text", "你好")
    writer.add_array("tokenizer.words", ["a", "b"])
    writer.add_array("tokenizer.scores", [1.5, -2.0])
    writer.add_bool("tokenizer.flag", True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tmp_path / "a.gguf"


def test_values_come_back_by_prefix_with_their_types(whole: Path) -> None:
    found = fields(whole, "tokenizer.")
    assert {key: field.value for key, field in found.items()} == {
        "tokenizer.text": "你好", "tokenizer.words": ["a", "b"], "tokenizer.scores": [1.5, -2.0],
        "tokenizer.flag": True,
    }  # fmt: skip
    assert found["tokenizer.words"].items is gguf.GGUFValueType.STRING
    assert list(fields(whole, "general.")) == ["general.architecture"]


def test_a_header_cut_anywhere_is_told(whole: Path) -> None:
    content = whole.read_bytes()
    for length in range(len(content)):
        whole.write_bytes(content[:length])
        with pytest.raises(ExportError, match=r"'a\.gguf' is no readable GGUF .*is the file complete"):
            fields(whole, "tokenizer.")


@pytest.mark.parametrize("length", [2**40, 2**63])
def test_a_damaged_length_asks_for_no_memory(whole: Path, length: int) -> None:
    content = whole.read_bytes()
    at = content.index("你好".encode()) - 8
    whole.write_bytes(content[:at] + struct.pack("<Q", length) + content[at + 8 :])
    with pytest.raises(ExportError, match=f"a value of {length} bytes goes beyond its end"):
        fields(whole, "tokenizer.")


def test_an_unknown_type_is_told(whole: Path) -> None:
    content = whole.read_bytes()
    at = content.index(b"tokenizer.scores") + len("tokenizer.scores") + 4
    for kind in (9, 77):  # a list of lists, and what no version knows
        whole.write_bytes(content[:at] + struct.pack("<I", kind) + content[at + 4 :])
        with pytest.raises(ExportError, match="no readable GGUF"):
            fields(whole, "tokenizer.")
