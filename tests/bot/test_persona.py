"""bot/persona.py: published whole or not at all; what does not verify does not serve."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from killing import killed_at

from bot.checksum import digest, sha256
from bot.errors import PersonaError
from bot.persona import BY_HAND, Calibration, Pacing, Personas, Sampling, Spec, new_persona

BASE = "b" * 64
TOML = """
display_name = "小满"
nicknames = ["满满"]
people = ["30001"]
[who]
identity = "二十三岁，在杭州做插画。"
limits = "不聊钱。"
[speech]
style = "短句。"
[leaning]
likes = "猫"
ignores = "群发不回。"
"""


@pytest.fixture
def personas(tmp_path: Path) -> Personas:
    folder = tmp_path / "personas" / "xiaoman"
    folder.mkdir(parents=True)
    (folder / "persona.toml").write_text(TOML, "utf-8")
    return Personas(tmp_path / "personas", BASE)


def result(folder: Path, version: str, *, lora: bytes = b"GGUF lora", **changes: Any) -> Path:
    """A finished version's folder, as the night leaves it."""
    made = folder / f"run-{version}"
    made.mkdir(exist_ok=True)
    (made / "lora.gguf").write_bytes(lora)
    (made / "report.md").write_text("# 报告", "utf-8")
    manifest: dict[str, Any] = {
        "version": version, "created": "2026-11-22T04:00:00Z", "format": "gemma", "system_prompt": "你是小满。",
        "base": {"file": "base.gguf", "sha256": BASE, "architecture": "gemma3"},
        "files": {"lora.gguf": sha256(made / "lora.gguf")},
    }  # fmt: skip
    (made / "manifest.json").write_text(json.dumps(manifest | changes), "utf-8")
    return made


def merged(folder: Path, version: str, **changes: Any) -> Path:
    """A finished version that is a model of its own, merged from a base that is not the one serving."""
    made = result(folder, version)
    (made / "lora.gguf").unlink()
    (made / "model.gguf").write_bytes(b"GGUF merged " + version.encode())
    manifest = json.loads((made / "manifest.json").read_text("utf-8"))
    manifest |= {
        "base": {"file": "qwen3.gguf", "sha256": "e" * 64, "architecture": "qwen3"}, "format": "qwen3",
        "files": {"model.gguf": sha256(made / "model.gguf")},
    }  # fmt: skip
    (made / "manifest.json").write_text(json.dumps(manifest | changes), "utf-8")
    return made


def serving(personas: Personas) -> str | None:
    version = personas.load("xiaoman").version
    return version.name if version else None


# -- persona.toml ---------------------------------------------------------------------------------


def test_the_system_prompt_holds_the_three_parts(personas: Personas) -> None:
    spec = personas.spec("xiaoman")
    assert spec.system_prompt == "你是小满。二十三岁，在杭州做插画。\n说话：短句。\n喜欢猫；群发不回。\n不聊钱。"
    assert spec.names == ("小满", "满满")


def test_empty_parts_are_left_out_of_the_system_prompt() -> None:
    assert Spec(display_name="小满").system_prompt == "你是小满。"


@pytest.mark.parametrize("bias", [{"": 1.0}, {"哈": 101.0}, {"哈": float("nan")}, {"哈": "much"}])
def test_a_logit_bias_is_a_word_and_a_number_in_range(bias: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="logit_bias"):
        Sampling.model_validate({"logit_bias": bias})


def test_sampling_defaults_stay() -> None:
    assert (Sampling().temperature, Sampling().top_p, Sampling().max_tokens) == (0.7, 0.9, 512)


def test_every_fault_of_a_persona_is_told(personas: Personas) -> None:
    (personas.root / "xiaoman" / "persona.toml").write_text("colour = 1\n[sampling]\ntop_p = 2\n", "utf-8")
    with pytest.raises(PersonaError) as caught:
        personas.spec("xiaoman")
    told = str(caught.value)
    assert all(word in told for word in ("display_name", "sampling.top_p", "colour"))
    assert len(told.splitlines()) == 3


def test_a_persona_is_found_by_folder_and_by_display_name(personas: Personas) -> None:
    assert personas.find("xiaoman").name == personas.find("小满").name == "xiaoman"
    with pytest.raises(PersonaError, match=r"no persona '大满' .*xiaoman"):
        personas.find("大满")


def test_another_personas_broken_file_hides_nobody(personas: Personas) -> None:
    (personas.root / "abroken").mkdir()
    (personas.root / "abroken" / "persona.toml").write_text("[[[", "utf-8")
    assert personas.find("小满").name == "xiaoman"
    with pytest.raises(PersonaError, match="not readable as TOML"):
        personas.find("abroken")


def test_a_half_copied_persona_is_not_listed(personas: Personas) -> None:
    (personas.root / ".other.tmp").mkdir()
    (personas.root / ".other.tmp" / "persona.toml").write_text(TOML, "utf-8")
    assert personas.names() == ["xiaoman"]


# -- publish --------------------------------------------------------------------------------------


def test_without_a_version_the_bare_base_answers(personas: Personas) -> None:
    found = personas.load("xiaoman")
    assert (found.version, found.refused, found.system_prompt) == (None, None, found.spec.system_prompt)


def test_a_published_version_serves_with_its_own_prompt(personas: Personas, tmp_path: Path) -> None:
    extra = {"calibration": {"intercept": 1.5, "weights": {"log_odds": 1.0}}, "pacing": {"bubble_gap_s": [1, 2]}}
    published = personas.publish("xiaoman", result(tmp_path, "20261121-0400", **extra))
    found = personas.load("xiaoman")
    assert found.version == published
    assert found.system_prompt == "你是小满。"
    assert published.lora.read_bytes() == b"GGUF lora"
    assert (published.folder / "report.md").is_file()
    assert published.manifest.calibration == Calibration(intercept=1.5, weights={"log_odds": 1.0})
    assert published.manifest.pacing == Pacing(bubble_gap_s=(1, 2))


PUBLISHES = """
import sys
from pathlib import Path
from bot.persona import Personas
Personas(Path(sys.argv[1])).publish("xiaoman", Path(sys.argv[2]))
"""


def test_half_a_version_that_a_killed_process_left_is_removed_by_the_next(personas: Personas, tmp_path: Path) -> None:
    killed_at("fsync", PUBLISHES, personas.root, result(tmp_path, "20261121-0400"))
    versions = personas.root / "xiaoman" / "versions"
    assert len(list(versions.iterdir())) == 1
    assert personas.versions("xiaoman") == []
    personas.publish("xiaoman", result(tmp_path, "20261122-0400"))
    assert [path.name for path in versions.iterdir()] == ["20261122-0400"]


def test_what_is_not_what_was_trained_is_published_by_nothing(personas: Personas, tmp_path: Path) -> None:
    broken = result(tmp_path, "20261121-0400", gate={"passed": True, "reasons": []}, parity={"passed": False})
    with pytest.raises(PersonaError, match=r"is not what was trained \(its proof failed\): export it again"):
        personas.publish("xiaoman", broken, by_hand=True, force=True)
    assert personas.versions("xiaoman") == []


def test_what_the_gate_refused_is_published_by_force_alone_and_on_record(personas: Personas, tmp_path: Path) -> None:
    personas.publish("xiaoman", result(tmp_path, "20261120-0400", gate={"passed": True, "reasons": []}))
    refused = result(tmp_path, "20261121-0400", gate={"passed": False, "reasons": ["leaks", "mute"]})
    with pytest.raises(PersonaError, match=r"refused by the gate \(leaks, mute\); --force publishes it"):
        personas.publish("xiaoman", refused)
    assert serving(personas) == "20261120-0400"
    assert personas.versions("xiaoman") == ["20261120-0400"]
    forced = personas.publish("xiaoman", refused, force=True)
    assert forced.manifest.gate["reasons"] == ["leaks", "mute"]
    assert datetime.fromisoformat(forced.manifest.gate["forced"]).tzinfo is not None
    assert serving(personas) == "20261121-0400"
    assert "forced" not in json.loads((refused / "manifest.json").read_text("utf-8"))["gate"]
    other = Personas(tmp_path / "other", personas.base_sha256)
    (tmp_path / "other" / "xiaoman").mkdir(parents=True)
    assert other.publish("xiaoman", forced.folder).name == "20261121-0400", "what was forced once travels as such"


def test_publishing_twice_changes_nothing(personas: Personas, tmp_path: Path) -> None:
    made = result(tmp_path, "20261121-0400")
    assert personas.publish("xiaoman", made) == personas.publish("xiaoman", made)
    assert personas.versions("xiaoman") == ["20261121-0400"]


def test_other_weights_under_a_published_name_are_refused_and_other_figures_are_the_same_version(
    personas: Personas, tmp_path: Path
) -> None:
    personas.publish("xiaoman", result(tmp_path, "20261121-0400"))
    again = result(tmp_path, "20261121-0400", created="2026-11-22T05:00:00Z")
    assert personas.publish("xiaoman", again).manifest.created == "2026-11-22T04:00:00Z"
    with pytest.raises(PersonaError, match=r"has another version '20261121-0400' already; .*a name of its own"):
        personas.publish("xiaoman", result(tmp_path, "20261121-0400", lora=b"GGUF other"))
    assert personas.load("xiaoman").version.lora.read_bytes() == b"GGUF lora"  # type: ignore[union-attr]


def test_a_disk_that_is_full_is_told_and_leaves_nothing_behind(personas: Personas, tmp_path: Path) -> None:
    made = result(tmp_path, "20261121-0400", lora=b"GGUF" * 10_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a write ends in the middle, as on a full disk
    try:
        with pytest.raises(PersonaError, match=r"'20261121-0400' of persona 'xiaoman' cannot be copied in \(.*room"):
            personas.publish("xiaoman", made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((personas.root / "xiaoman" / "versions").iterdir()) == []
    assert personas.publish("xiaoman", made).name == "20261121-0400"


@pytest.mark.parametrize("name", ["my-twin", "小满", "a_1", "1"])
def test_a_persona_may_have_any_plain_name(tmp_path: Path, name: str) -> None:
    new_persona(tmp_path, name, "小满", ("1",))
    assert Personas(tmp_path).names() == [name]


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", ".x", "a b", "a.b"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PersonaError, match="must be letters, digits, - or _"):
        new_persona(tmp_path, name, "小满", ("1",))
    assert list(tmp_path.iterdir()) == []


def damage(made: Path, how: str) -> None:
    manifest = made / "manifest.json"
    match how:
        case "truncated":
            (made / "lora.gguf").write_bytes(b"GGUF")
        case "missing":
            (made / "lora.gguf").unlink()
        case "no manifest":
            manifest.unlink()
        case "half a manifest":
            manifest.write_text(manifest.read_text("utf-8")[:80], "utf-8")
        case _:
            changes = {
                "unknown key": {"colour": 1},
                "no lora": {"files": {}},
                "no such format": {"format": "alpaca"},
                "another base": {"base": {"file": "other.gguf", "sha256": "c" * 64, "architecture": "gemma3"}},
                "a path": {"version": "../../x"},
                "hidden": {"version": ".x"},
                "a number": {"version": 7},
            }[how]
            manifest.write_text(json.dumps(json.loads(manifest.read_text("utf-8")) | changes), "utf-8")


REFUSALS = [
    ("truncated", "'20261122-0400' of persona 'xiaoman': lora.gguf does not have the sha256"),
    ("missing", "lora.gguf is missing"),
    ("no manifest", "holds no readable manifest.json"),
    ("half a manifest", "holds no readable manifest.json"),
    ("unknown key", r"manifest.json is not valid"),
    ("no lora", "must list either lora.gguf or model.gguf"),
    ("no such format", "names the chat format 'alpaca'; known are chatml"),
    ("another base", r"was trained on another base \(other.gguf\)"),
    ("a path", "is no folder name"),
    ("hidden", "is no folder name"),
    ("a number", "is no folder name"),
]


@pytest.mark.parametrize(("how", "told"), REFUSALS, ids=[r[0] for r in REFUSALS])
def test_a_damaged_result_is_refused_and_leaves_nothing_behind(
    personas: Personas, tmp_path: Path, how: str, told: str
) -> None:
    personas.publish("xiaoman", result(tmp_path, "20261121-0400"))
    before = sorted(p.relative_to(tmp_path / "personas") for p in (tmp_path / "personas").rglob("*"))
    made = result(tmp_path, "20261122-0400")
    damage(made, how)
    with pytest.raises(PersonaError, match=told):
        personas.publish("xiaoman", made)
    assert serving(personas) == "20261121-0400"
    assert sorted(p.relative_to(tmp_path / "personas") for p in (tmp_path / "personas").rglob("*")) == before


@pytest.mark.parametrize("how", ["truncated", "missing", "no manifest", "half a manifest", "no lora", "another base"])
def test_the_last_good_version_serves_when_the_current_one_breaks(personas: Personas, tmp_path: Path, how: str) -> None:
    for version in ("20261120-0400", "20261121-0400", "20261122-0400"):
        personas.publish("xiaoman", result(tmp_path, version))
    damage(personas.root / "xiaoman" / "versions" / "20261122-0400", how)
    found = personas.load("xiaoman")
    assert found.version is not None
    assert found.version.name == "20261121-0400"
    assert found.refused is not None
    assert "'20261122-0400' of persona 'xiaoman'" in found.refused


def test_with_no_good_version_it_is_told_why(personas: Personas, tmp_path: Path) -> None:
    personas.publish("xiaoman", result(tmp_path, "20261121-0400"))
    damage(personas.root / "xiaoman" / "versions" / "20261121-0400", "truncated")
    found = personas.load("xiaoman")
    assert found.version is None
    assert "lora.gguf does not have the sha256" in str(found.refused)


def test_a_renamed_version_is_refused(personas: Personas, tmp_path: Path) -> None:
    personas.publish("xiaoman", result(tmp_path, "20261121-0400"))
    folder = personas.root / "xiaoman" / "versions"
    (folder / "20261121-0400").rename(folder / "20261129-0400")
    with pytest.raises(PersonaError, match="is of version '20261121-0400'"):
        personas.verify("xiaoman", "20261129-0400")


# -- merged ---------------------------------------------------------------------------------------


def test_a_merged_model_serves_whatever_the_base_is(personas: Personas, tmp_path: Path) -> None:
    lora = personas.publish("xiaoman", result(tmp_path, "20261121-0400"))
    published = personas.publish("xiaoman", merged(tmp_path, "20261122-0400"))
    assert personas.load("xiaoman").version == published
    assert (published.lora, published.model) == (None, published.folder / "model.gguf")
    assert (lora.lora, lora.model) == (lora.folder / "lora.gguf", None)
    assert [v.manifest.kind for v in (lora, published)] == ["lora", "merged"]
    assert personas.rollback("xiaoman") == lora
    assert personas.rollback("xiaoman", "20261122-0400") == published


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "truncated",
            "'20261122-0400' of persona 'xiaoman': model.gguf does not have the sha256 .*twin persona rollback",
        ),
        ("missing", "model.gguf is missing.*twin persona rollback"),
        ("both", "must list either lora.gguf or model.gguf"),
    ],
)
def test_a_damaged_merged_model_is_refused_and_the_last_good_version_serves(
    personas: Personas, tmp_path: Path, how: str, told: str
) -> None:
    personas.publish("xiaoman", merged(tmp_path, "20261121-0400"))
    made = merged(tmp_path, "20261122-0400")

    def damaged(folder: Path) -> None:
        if how == "both":
            (folder / "lora.gguf").write_bytes(b"GGUF")
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            manifest["files"]["lora.gguf"] = sha256(folder / "lora.gguf")
            (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        elif how == "truncated":
            (folder / "model.gguf").write_bytes(b"GGUF")
        else:
            (folder / "model.gguf").unlink()

    published = personas.publish("xiaoman", made)
    damaged(published.folder)
    found = personas.load("xiaoman")
    assert found.version is not None
    assert found.version.name == "20261121-0400"
    assert re.search(told, str(found.refused))
    with pytest.raises(PersonaError, match=told):
        personas.publish("xiaoman", made)


@pytest.mark.parametrize("held", [b"\0" * 14, b"\xff\xfe\xfd"])
def test_a_current_that_was_never_written_out_lets_the_newest_serve(
    personas: Personas, tmp_path: Path, held: bytes
) -> None:
    for version in ("20261120-0400", "20261121-0400"):
        personas.publish("xiaoman", result(tmp_path, version))
    (personas.root / "xiaoman" / "current").write_bytes(held)
    found = personas.load("xiaoman")
    assert found.version is not None
    assert found.version.name == "20261121-0400"
    assert "has no manifest.json" in str(found.refused)


def test_a_merged_models_hash_is_taken_of_the_copy_and_remembered(personas: Personas, tmp_path: Path) -> None:
    made = merged(tmp_path, "20261122-0400")
    model = made / "model.gguf"
    digest(model)
    stat = model.stat()
    model.write_bytes(model.read_bytes()[::-1])
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(PersonaError, match="does not have the sha256"):
        personas.publish("xiaoman", made)
    model.write_bytes(model.read_bytes()[::-1])
    version = personas.publish("xiaoman", made)
    assert version.model is not None
    note = version.folder / "model.gguf.sha256.json"
    assert sha256(version.model) in note.read_text("utf-8")
    note.write_text(note.read_text("utf-8").replace(sha256(version.model), "f" * 64), "utf-8")
    with pytest.raises(PersonaError, match="does not have the sha256"):
        personas.verify("xiaoman", version.name)
    assert personas.verify("xiaoman", version.name, anew=True) == version


# -- rollback -------------------------------------------------------------------------------------


def test_rollback_goes_one_back_or_to_the_named_one(personas: Personas, tmp_path: Path) -> None:
    for version in ("20261120-0400", "20261121-0400", "20261122-0400"):
        personas.publish("xiaoman", result(tmp_path, version))
    assert personas.rollback("xiaoman").name == serving(personas) == "20261121-0400"
    assert personas.rollback("xiaoman").name == serving(personas) == "20261120-0400"
    with pytest.raises(PersonaError, match="no version before '20261120-0400'"):
        personas.rollback("xiaoman")
    assert personas.rollback("xiaoman", "20261122-0400").name == serving(personas) == "20261122-0400"


def test_rollback_to_a_damaged_version_changes_nothing(personas: Personas, tmp_path: Path) -> None:
    for version in ("20261120-0400", "20261121-0400"):
        personas.publish("xiaoman", result(tmp_path, version))
    damage(personas.root / "xiaoman" / "versions" / "20261120-0400", "truncated")
    with pytest.raises(PersonaError, match="'20261120-0400'"):
        personas.rollback("xiaoman")
    assert serving(personas) == "20261121-0400"


# -- kill -9 --------------------------------------------------------------------------------------

_CHILD = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from bot.persona import Personas
personas = Personas(Path(sys.argv[1]), sys.argv[2])
print("ready", flush=True)
for made in sys.argv[3:] * 1000:
    personas.publish("xiaoman", Path(made))
"""


def test_kill_9_while_publishing_leaves_a_whole_version_serving(personas: Personas, tmp_path: Path) -> None:
    personas.publish("xiaoman", result(tmp_path, "20261101-0400"))
    names = [f"202611{day:02}-0400" for day in range(2, 28)]
    made = [str(result(tmp_path, name, lora=os.urandom(200_000))) for name in names]
    for pause_s in (0.0, 0.03):
        command = [sys.executable, "-c", _CHILD, str(personas.root), BASE, *made]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(pause_s)
            child.send_signal(signal.SIGKILL)
        found = personas.load("xiaoman")
        assert found.refused is None
        assert found.version is not None
        for version in personas.versions("xiaoman"):
            personas.verify("xiaoman", version)
    # What the killed one left half done is in nobody's way.
    assert personas.publish("xiaoman", Path(made[-1])).name == serving(personas) == names[-1]


# -- withdrawn by themselves ----------------------------------------------------------------------

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def published(personas: Personas, folder: Path, *versions: str) -> None:
    for version in versions:
        personas.publish("xiaoman", result(folder, version, lora=version.encode()))


def test_a_withdrawn_version_gives_way_and_is_not_published_again_by_itself(personas: Personas, tmp_path: Path) -> None:
    published(personas, tmp_path, "1", "2", "3")
    back = personas.withdraw("xiaoman", "12 次回答被纠正了 6 次", NOW)
    assert back is not None
    assert (back.name, serving(personas)) == ("2", "2")
    assert personas.withdrawn("xiaoman")["3"]["why"] == "12 次回答被纠正了 6 次"
    for again in (result(tmp_path, "3", lora=b"3"), result(tmp_path, "4", lora=b"3")):
        with pytest.raises(PersonaError, match=r"rolled back on 2026-12-01.*纠正"):
            personas.publish("xiaoman", again)
        assert serving(personas) == "2"
    weights = hashlib.sha256(b"3").hexdigest()
    assert [personas.gone_back("xiaoman", *new) for new in (("3", ""), ("4", weights), ("4", "other"))] == [
        "3",
        "3",
        None,
    ]
    assert "4" not in personas.versions("xiaoman")
    published(personas, tmp_path, "5")
    assert serving(personas) == "5"


def test_rolling_back_passes_over_withdrawn_versions(personas: Personas, tmp_path: Path) -> None:
    published(personas, tmp_path, "1", "2")
    personas.withdraw("xiaoman", "why", NOW)
    published(personas, tmp_path, "3")
    (personas.root / "xiaoman" / "versions" / "3" / "lora.gguf").write_bytes(b"broken")
    assert serving(personas) == "1", "what does not verify is not replaced by what was withdrawn"
    assert personas.rollback("xiaoman").name == "1"


@pytest.mark.parametrize("how", ["rollback", "publish"])
def test_a_withdrawn_version_is_brought_back_by_hand(personas: Personas, tmp_path: Path, how: str) -> None:
    published(personas, tmp_path, "1", "2")
    personas.withdraw("xiaoman", "why", NOW)
    if how == "rollback":
        personas.rollback("xiaoman", "2")
    else:
        personas.publish("xiaoman", result(tmp_path, "2", lora=b"2"), by_hand=True)
    assert serving(personas) == "2"
    assert personas.withdrawn("xiaoman")["2"]["restored"] is True
    published(personas, tmp_path, "2")
    assert serving(personas) == "2"
    personas.rollback("xiaoman", "1")
    assert personas.gone_back("xiaoman", "2", "") == "2"
    personas.rollback("xiaoman", "2")
    assert personas.withdrawn("xiaoman")["2"]["restored"] is True, "it still is not judged a second time"


def test_what_somebody_went_back_from_does_not_come_back_by_itself(personas: Personas, tmp_path: Path) -> None:
    published(personas, tmp_path, "1", "2")
    assert personas.rollback("xiaoman").name == "1"
    for again in (result(tmp_path, "2", lora=b"2"), result(tmp_path, "21", lora=b"2")):
        with pytest.raises(PersonaError, match=r"rolled back on 20.*\(by hand\) and is not published again by itself"):
            personas.publish("xiaoman", again)
    published(personas, tmp_path, "3")
    back = personas.withdraw("xiaoman", "why", NOW)
    assert (back and back.name, serving(personas)) == ("1", "1")
    published(personas, tmp_path, "4")
    assert personas.rollback("xiaoman").name == "1"
    published(personas, tmp_path, "5")
    (personas.root / "xiaoman" / "versions" / "5" / "lora.gguf").write_bytes(b"broken")
    assert serving(personas) == "1"
    assert {v: x["why"] for v, x in personas.withdrawn("xiaoman").items()} == {"2": BY_HAND, "3": "why", "4": BY_HAND}


@pytest.mark.parametrize("how", ["rollback", "publish"])
def test_naming_what_somebody_went_back_from_takes_the_note_away(personas: Personas, tmp_path: Path, how: str) -> None:
    published(personas, tmp_path, "1", "2")
    personas.rollback("xiaoman")
    assert list(personas.withdrawn("xiaoman")) == ["2"]
    if how == "rollback":
        personas.rollback("xiaoman", "2")
    else:
        personas.publish("xiaoman", result(tmp_path, "2", lora=b"2"), by_hand=True)
    assert (serving(personas), personas.withdrawn("xiaoman")) == ("2", {})
    published(personas, tmp_path, "3")
    back = personas.withdraw("xiaoman", "why", NOW)
    assert (back and back.name, serving(personas)) == ("2", "2")


def test_a_version_that_is_damaged_is_gone_back_from_all_the_same(personas: Personas, tmp_path: Path) -> None:
    published(personas, tmp_path, "1", "2")
    (personas.root / "xiaoman" / "versions" / "2" / "manifest.json").write_text("{", "utf-8")
    assert personas.rollback("xiaoman").name == serving(personas) == "1"
    assert personas.gone_back("xiaoman", "2", "") == "2"
    assert personas.gone_back("xiaoman", "3", "") is None


def test_the_only_version_is_not_withdrawn(personas: Personas, tmp_path: Path) -> None:
    published(personas, tmp_path, "1")
    assert personas.withdraw("xiaoman", "why", NOW) is None
    assert (serving(personas), personas.withdrawn("xiaoman")) == ("1", {})
