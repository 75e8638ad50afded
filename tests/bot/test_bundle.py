"""Packing a persona's version into one file, and what a hostile file may not do."""

import json
import os
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from killing import killed_at

from bot.bundle import pack, unpack, unpack_open
from bot.checksum import sha256
from bot.errors import PersonaError
from bot.persona import Base, Manifest, Personas

BASE = "b" * 64
PEOPLE = '["10001"]'


@pytest.fixture
def mine(tmp_path: Path) -> Personas:
    """A persona with one published version, its PEFT folder with it."""
    personas = Personas(tmp_path / "mine", BASE)
    folder = personas.root / "xiaoman"
    folder.mkdir(parents=True)
    (folder / "persona.toml").write_text(f'display_name = "小满"\npeople = {PEOPLE}\n', "utf-8")
    result = tmp_path / "result"
    (result / "peft").mkdir(parents=True)
    (result / "lora.gguf").write_bytes(b"GGUF" * 1000)
    (result / "peft" / "adapter_config.json").write_text("{}")
    files = {name: sha256(result / name) for name in ("lora.gguf", "peft/adapter_config.json")}
    manifest = Manifest(
        version="v1", created="2026-11-25T00:00:00+00:00", format="gemma", system_prompt="你是小满。", files=files,
        base=Base(file="base.gguf", sha256=BASE, architecture="gemma3"),
    )  # fmt: skip
    (result / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    personas.publish("xiaoman", result)
    return personas


@pytest.fixture
def packed(mine: Personas, tmp_path: Path) -> Path:
    return pack(mine, "xiaoman", None, tmp_path / "xiaoman-v1.qqtwin")


@pytest.fixture
def theirs(tmp_path: Path) -> Personas:
    return Personas(tmp_path / "theirs" / "personas", BASE)


def test_a_version_comes_out_as_it_went_in(mine: Personas, packed: Path, theirs: Personas) -> None:
    version = unpack(theirs, packed)
    assert (version.name, theirs.current("xiaoman")) == ("v1", "v1")
    assert version.manifest == mine.verify("xiaoman", "v1").manifest
    assert (version.folder / "lora.gguf").read_bytes() == b"GGUF" * 1000
    assert theirs.spec("xiaoman") == mine.spec("xiaoman")
    assert [p.name for p in theirs.root.iterdir()] == ["xiaoman"]


def test_the_notice_that_a_base_asks_for_goes_with_it(mine: Personas, theirs: Personas, tmp_path: Path) -> None:
    unpack(theirs, pack(mine, "xiaoman", None, tmp_path / "gemma.qqtwin"))
    assert "Gemma Terms of Use" in (theirs.root / "xiaoman" / "NOTICE").read_text("utf-8")
    (mine.root / "xiaoman" / "NOTICE").write_text("of its own", "utf-8")
    again = unpack(theirs, pack(mine, "xiaoman", None, tmp_path / "own.qqtwin"), "another")
    assert (theirs.root / "another" / "NOTICE").read_text("utf-8") == "of its own"
    assert again.manifest.base.architecture == "gemma3"


def test_a_notice_of_a_length_no_notice_has_is_refused(packed: Path, theirs: Personas) -> None:
    with zipfile.ZipFile(packed) as archive:
        members = {n: archive.read(n) for n in archive.namelist()} | {"NOTICE": b"x" * (4 * 2**20 + 1)}
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(PersonaError, match="NOTICE is too large"):
        unpack(theirs, packed)
    assert not theirs.root.exists() or not any(theirs.root.iterdir())


def test_under_another_name_and_twice(packed: Path, theirs: Personas) -> None:
    assert unpack(theirs, packed, "her").name == "v1"
    assert unpack(theirs, packed, "her").name == "v1"
    assert theirs.names() == ["her"]


def test_an_existing_persona_toml_is_kept(packed: Path, theirs: Personas) -> None:
    folder = theirs.root / "xiaoman"
    folder.mkdir(parents=True)
    (folder / "persona.toml").write_text(f'display_name = "满"\npeople = {PEOPLE}\n', "utf-8")
    unpack(theirs, packed)
    assert theirs.spec("xiaoman").display_name == "满"
    assert theirs.current("xiaoman") == "v1"


def test_a_persona_that_imitates_others_is_left_alone(packed: Path, theirs: Personas) -> None:
    folder = theirs.root / "xiaoman"
    folder.mkdir(parents=True)
    (folder / "persona.toml").write_text('display_name = "满"\npeople = ["7"]\n', "utf-8")
    with pytest.raises(PersonaError, match="imitates others; give another name with --name"):
        unpack(theirs, packed)
    assert theirs.current("xiaoman") is None


def test_a_bundle_of_another_base_is_refused(packed: Path, tmp_path: Path) -> None:
    others = Personas(tmp_path / "others", "c" * 64)
    with pytest.raises(PersonaError, match=r"trained on another base \(base\.gguf\)"):
        unpack(others, packed)
    assert list(others.root.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_forced(mine: Personas, packed: Path) -> None:
    before = packed.read_bytes()
    with pytest.raises(PersonaError, match="exists already and is kept; --force"):
        pack(mine, "xiaoman", None, packed)
    with pytest.raises(PersonaError, match="exists already and is kept; --force"):
        pack(mine, "xiaoman", "v9", packed)  # told before a version's files are read
    pack(mine, "xiaoman", "v1", packed, force=True)
    assert len(packed.read_bytes()) == len(before)


def test_room_for_a_bundle_is_asked_for_first(mine: Personas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(PersonaError, match="takes 0 MB, and 0 MB are free there; make room"):
        pack(mine, "xiaoman", "v1", tmp_path / "full" / "x")
    assert list((tmp_path / "full").iterdir()) == []


def test_no_version_nothing_to_pack(mine: Personas, tmp_path: Path) -> None:
    (mine.root / "xiaoman" / "current").unlink()
    with pytest.raises(PersonaError, match="has no version yet"):
        pack(mine, "xiaoman", None, tmp_path / "x")
    with pytest.raises(PersonaError, match="'v9'"):
        pack(mine, "xiaoman", "v9", tmp_path / "x")


def rewritten(packed: Path, change) -> Path:
    """The bundle with its members (name → bytes) changed."""
    with zipfile.ZipFile(packed) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    change(members)
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed


def listed(name: str):
    """A member of this name that the manifest lists, too."""

    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["files"][name] = manifest["files"].pop("peft/adapter_config.json")
        members[name] = members.pop("peft/adapter_config.json")
        members["manifest.json"] = json.dumps(manifest).encode()

    return change


OUTSIDE = ("../evil", "peft/../../evil", "/tmp/evil", "peft//x", "./x", "C:\\evil", "..\\evil", ".hidden", "a/", "a\nb")


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_folder(packed: Path, theirs: Personas, name: str) -> None:
    with pytest.raises(PersonaError, match=r"no plain file name|not in its manifest|no readable bundle"):
        unpack(theirs, rewritten(packed, listed(name)))
    assert not theirs.root.exists() or list(theirs.root.iterdir()) == []
    assert not list(theirs.root.parent.parent.rglob("*evil*"))


def name_of_persona(members: dict[str, bytes]) -> None:
    members["bundle.json"] = json.dumps({"layout": 1, "persona": "../../evil"}).encode()


def name_of_version(members: dict[str, bytes]) -> None:
    members["manifest.json"] = members["manifest.json"].replace(b'"version":"v1"', b'"version":"../v1"')


def unlisted(members: dict[str, bytes]) -> None:
    members["more.bin"] = b"x"


def missing(members: dict[str, bytes]) -> None:
    del members["lora.gguf"]


def changed(members: dict[str, bytes]) -> None:
    members["lora.gguf"] = b"other"


def newer(members: dict[str, bytes]) -> None:
    members["bundle.json"] = json.dumps({"layout": 2}).encode()


def not_json(members: dict[str, bytes]) -> None:
    members["manifest.json"] = b"{"


def half_a_manifest(members: dict[str, bytes]) -> None:
    members["manifest.json"] = b'{"version": "v1"}'


def broken_spec(members: dict[str, bytes]) -> None:
    members["persona.toml"] = b"x = ["


def no_head(members: dict[str, bytes]) -> None:
    del members["bundle.json"]


def huge_spec(members: dict[str, bytes]) -> None:
    members["persona.toml"] += b"#" * 2**22


def deep_json(members: dict[str, bytes]) -> None:
    members["manifest.json"] = b"[" * 10**6


FAULTS = [
    (name_of_persona, "must be letters"), (name_of_version, "no folder name"), (unlisted, "'more.bin' is missing, not"),
    (missing, "'lora.gguf' is missing"), (changed, "does not have the sha256"), (newer, "layout 2"),
    (not_json, "manifest.json is not JSON"), (half_a_manifest, "not valid"), (broken_spec, "not readable as TOML"),
    (no_head, "made by `twin persona pack`"), (huge_spec, "persona.toml is too large"),
    (deep_json, "no readable bundle"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), FAULTS, ids=[c.__name__ for c, _ in FAULTS])
def test_what_does_not_verify_changes_nothing(packed: Path, theirs: Personas, change, said: str) -> None:
    with pytest.raises(PersonaError, match=said):
        unpack(theirs, rewritten(packed, change))
    assert not theirs.root.exists() or list(theirs.root.iterdir()) == []


def test_a_link_is_written_as_the_file_it_claims_not_to_be(packed: Path, theirs: Personas, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(packed, "w") as archive:
        for info, content in members:
            if info.filename == "lora.gguf":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content)
    version = unpack(theirs, packed)
    assert not (version.folder / "lora.gguf").is_symlink()


def test_a_member_twice_is_refused(packed: Path, theirs: Personas) -> None:
    with zipfile.ZipFile(packed, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("lora.gguf", b"x")
    with pytest.raises(PersonaError, match="holds a file twice"):
        unpack(theirs, packed)


def test_another_version_of_the_same_name_is_not_taken_for_it(packed: Path, theirs: Personas) -> None:
    def judged_otherwise(members: dict[str, bytes]) -> None:
        members["manifest.json"] = members["manifest.json"].replace(b'"seed":0', b'"seed":1')

    unpack(theirs, packed)
    with pytest.raises(PersonaError, match="has another version 'v1' already"):
        unpack(theirs, rewritten(packed, judged_otherwise))


def test_an_encrypted_or_damaged_member_is_no_bundle(packed: Path, theirs: Personas) -> None:
    whole = packed.read_bytes()
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"lora.gguf"))
    packed.write_bytes(whole[: at + 8] + b"\x01" + whole[at + 9 :])  # the flag of the directory
    with pytest.raises(PersonaError, match=r"is no readable bundle .*encrypted"):
        unpack(theirs, packed)
    packed.write_bytes(whole)
    with zipfile.ZipFile(packed) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        start = archive.getinfo("lora.gguf").header_offset + 30 + len("lora.gguf")
    whole = packed.read_bytes()
    packed.write_bytes(whole[:start] + b"\xff" * 8 + whole[start + 8 :])
    with pytest.raises(PersonaError, match="is no readable bundle"):
        unpack(theirs, packed)
    assert list(theirs.root.iterdir()) == []


def test_files_of_before_1980_are_packed_too(mine: Personas, theirs: Personas, tmp_path: Path) -> None:
    os.utime(mine.verify("xiaoman", "v1").folder / "lora.gguf", (0, 0))  # as reproducible builds leave them
    assert unpack(theirs, pack(mine, "xiaoman", None, tmp_path / "old.qqtwin")).name == "v1"


def test_a_name_in_chinese_goes_out_and_comes_in(mine: Personas, theirs: Personas, tmp_path: Path) -> None:
    (mine.root / "xiaoman").rename(mine.root / "小满-2")
    assert unpack(theirs, pack(mine, "小满-2", None, tmp_path / "x.qqtwin")).name == "v1"
    assert theirs.names() == ["小满-2"]


@pytest.mark.parametrize("cut", [0, 10, 4000])
def test_a_cut_or_foreign_file_is_no_bundle(packed: Path, theirs: Personas, cut: int) -> None:
    packed.write_bytes(packed.read_bytes()[:cut])
    with pytest.raises(PersonaError, match="is no readable bundle"):
        unpack(theirs, packed)
    with pytest.raises(PersonaError, match="there is no bundle"):
        unpack(theirs, packed.with_name("nowhere"))


def test_more_than_there_is_room_for_is_told_first(packed: Path, theirs: Personas) -> None:
    with zipfile.ZipFile(packed) as archive:
        archive.getinfo("lora.gguf").file_size = 2**43  # as a directory that lies would say
        with pytest.raises(PersonaError, match=r"needs 17,592.* MB and .* MB are free"):
            unpack_open(theirs, archive, None, "bundle 'x'")


PACKS = """
import sys
from pathlib import Path
from bot.bundle import pack
from bot.persona import Personas
pack(Personas(Path(sys.argv[1])), "xiaoman", None, Path(sys.argv[2]))
"""
UNPACKS = """
import sys
from pathlib import Path
from bot.bundle import unpack
from bot.persona import Personas
unpack(Personas(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_a_bundle_is_on_the_disk_before_it_has_its_name_and_half_of_one_is_removed_by_the_next(
    mine: Personas, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "xiaoman.qqtwin"
    killed_at("fsync", PACKS, mine.root, out)
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1
    pack(mine, "xiaoman", None, out)
    assert list(out.parent.iterdir()) == [out]


def test_what_a_killed_unpacking_left_is_removed_by_the_next(packed: Path, theirs: Personas) -> None:
    killed_at("fsync", UNPACKS, theirs.root, packed)
    assert len(list(theirs.root.iterdir())) == 1
    unpack(theirs, packed, "her")
    assert [path.name for path in theirs.root.iterdir()] == ["her"]


def test_a_folder_is_not_replaced_by_a_bundle(mine: Personas, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(PersonaError, match="is a folder; name the file to write"):
        pack(mine, "xiaoman", None, folder, force=True)
    assert (folder / "mine").exists()


def test_a_persona_may_be_called_as_a_part_of_unpacking_is(packed: Path, theirs: Personas) -> None:
    for name in ("result", "unpack", "publish"):
        assert unpack(theirs, packed, name).name == "v1"
        there = {path.name for path in (theirs.root / name).iterdir()}
        assert there == {"NOTICE", "current", "persona.toml", "versions"}
