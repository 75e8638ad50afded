from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import tinymodel
from versions import JUDGED, SYSTEM, version

from bot.checksum import sha256
from bot.errors import ExportError
from bot.message import Message, Scene
from bot.prompt import FORMATS, Exchange, Renderer, render, scene_line
from export.source import ASKING, Source, doubts, read


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), "gemma3")


def found(folder: Path, tiny: tinymodel.Tiny) -> Source:
    return read(folder, lambda: (tiny.gguf, sha256(tiny.gguf)))


def test_what_failed_its_proof_or_is_another_file_goes_nowhere(tiny, tmp_path):
    broken = version(tiny, tmp_path / "v1", parity={"passed": False})
    with pytest.raises(ExportError, match=r"'v1' is not what was trained \(its proof failed\)"):
        found(broken, tiny)
    for merged, name in ((False, "lora.gguf"), (True, "model.gguf")):
        swapped = version(tiny, tmp_path / name, merged=merged)
        with (swapped / name).open("ab") as f:
            f.write(b"more")
        with pytest.raises(ExportError, match=f"{name} is not the file that was proven"):
            found(swapped, tiny)


def test_a_lora_is_of_the_base_that_serves_or_is_refused(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1")
    with pytest.raises(ExportError, match=r"trained on the base model\.gguf .*set that base"):
        read(folder, lambda: (tiny.gguf, "0" * 64))
    assert found(folder, tiny).base == tiny.gguf


def test_a_merged_model_asks_for_no_base(tiny, tmp_path):
    asked = []
    folder = version(tiny, tmp_path / "v1", merged=True)
    assert read(folder, lambda: asked.append(1) or (tiny.gguf, "")).base is None
    assert asked == []


def test_a_folder_without_a_manifest_that_is_known_is_refused(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"has no manifest\.json; give a version's folder"):
        found(tmp_path / "empty", tiny)
    (tmp_path / "empty" / "manifest.json").write_text("{}")
    with pytest.raises(ExportError, match="is not valid"):
        found(tmp_path / "empty", tiny)
    with pytest.raises(ExportError, match="format 'alpaca'"):
        found(version(tiny, tmp_path / "odd", format="alpaca"), tiny)


def test_the_system_prompt_is_the_one_that_is_rendered(tiny, tmp_path):
    folder = version(tiny, tmp_path / "v1", system_prompt="你是 Zoe\u0301 \u2581。")
    assert found(folder, tiny).system == "你是 Zo\u00e9 _。\n现在是QQ私聊。"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"gate": {"passed": True, "reasons": [], "forced": "2026-11-25"}}, []),
        ({"gate": {"passed": False, "reasons": ["leaks", "mute"]}}, ["The gate refused version v1 (leaks, mute)."]),
        ({"gate": {"passed": False}}, ["The gate refused version v1 (no reason is noted)."]),
        ({"gate": {"passed": False, "reasons": ["leaks"], "forced": "2026-11-25"}},
         ["The gate refused version v1 (leaks)."]),
        ({"gate": {}, "parity": {}},
         ["Version v1 was never proven to be what was trained.", "No gate has judged version v1."]),
    ],
    ids=["passed", "passed, forced", "refused", "refused without a word", "refused, forced", "imported"],
)  # fmt: skip
def test_what_the_gate_refused_or_nothing_proved_is_told(tiny, tmp_path, change, said):
    assert doubts(found(version(tiny, tmp_path / "v1", **{**JUDGED, **change}), tiny).manifest) == said


def test_how_it_must_be_asked_is_how_it_is_rendered():
    """Every example stands in a talk that bot.prompt renders."""
    began = datetime(2026, 11, 27, 23, 10, tzinfo=UTC)  # a Friday
    scene = Scene("group", "1")
    asked = Message("1", scene, "2", "阿泽", began, "在吗")
    quoting = Message("2", scene, "2", "阿泽", began, "在")
    before = replace(asked, id="0", sender_name="小满")
    renderer = Renderer(FORMATS["chatml"], SYSTEM, ZoneInfo("UTC"), group=True)
    talk = [
        Exchange(opened=began, heard=[asked]),
        Exchange(opened=began, gap=timedelta(hours=3), heard=[quoting, replace(asked, text="两\n行")]),
    ]
    pieces = render(renderer, talk, lambda m: before if m is quoting else None)
    lines = "".join(p.text for p in pieces).replace("<|im_end|>", "\n").splitlines()
    told = "\n".join(ASKING)
    for line in ("【周五 23:10】", "【周五 23:10 · 隔了3小时】", "阿泽：在吗", "阿泽：[回复 小满：在吗]在"):
        assert line in told
        assert line in lines
    assert "阿泽：两↵行" in lines
    assert "a line break inside one as ↵" in told
    for where, name in (
        (Scene("private", "1"), ""), (Scene("private", "1"), "阿泽"), (scene, ""), (scene, "周末去哪儿"),
    ):  # fmt: skip
        assert scene_line(where, name) in told
    empty = "".join(p.text for p in render(renderer, [Exchange(heard=[asked]), talk[0]], lambda _: None))
    assert "<|im_start|>assistant\n<|im_end|>\n" in empty
    assert "an empty assistant message" in told.replace("\n  ", " ")
