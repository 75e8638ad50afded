"""A persona's version ⇄ one file that can be given away: a zip of persona.toml, manifest.json and what it lists.

A bundle comes from somebody else: nothing in it is trusted before it is checked. Names are plain relative paths and
exactly those the manifest lists, each file is no longer than it says, hashes and base are verified by
`Personas.publish` before anything is visible. It holds QQ numbers and what the model learned from chats.
"""

import contextlib
import json
import os
import re
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from bot import staging
from bot.errors import PersonaError
from bot.persona import MANIFEST_FILE, NAME, Manifest, Personas, Version

SUFFIX = ".qqtwin"
_SPEC_FILE, _BUNDLE_FILE, _NOTICE_FILE = "persona.toml", "bundle.json", "NOTICE"
_GEMMA_NOTICE = (
    "What is in this bundle is a Model Derivative of Gemma: it was changed by training. Gemma is provided under and "
    "subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, and so is this.\n"
)
_LAYOUT = 1
"""Of bundles; a newer one is refused."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_SMALL_BYTES = 4 * 2**20
"""No manifest or persona.toml is larger."""
_RATIO_MAX = 1_100
"""Deflate cannot do better: what claims to is no honest file."""


def pack(personas: Personas, name: str, version: str | None, out: Path, *, force: bool = False) -> Path:
    """Write a bundle of a persona's version (None: the serving one); gives `out`.

    Raises:
        PersonaError: there is no such version, it does not verify, `out` exists, or it cannot be written.
    """
    staging.sweep(out.parent, out.name)
    folder = personas.find(name).folder
    chosen = version or personas.current(folder.name)
    if chosen is None:
        raise PersonaError(f"persona {name!r} has no version yet; train one with `twin night`")
    if out.exists() and not force:
        raise PersonaError(f"{str(out)!r} exists already and is kept; --force replaces it")
    if out.is_dir():
        raise PersonaError(f"{str(out)!r} is a folder; name the file to write")
    verified = personas.verify(folder.name, chosen)
    needed = sum((verified.folder / file).stat().st_size for file in verified.manifest.files)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(out.parent).free) < needed:
            raise PersonaError(
                f"the bundle {str(out)!r} takes {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there; make "
                "room, or name another place"
            )
        with staging.beside(out) as made:
            _write_bundle(made, folder, verified)
            staging.put(made, out)
    except OSError as e:
        raise PersonaError(f"the bundle {str(out)!r} cannot be written ({e.strerror}); is there room?") from e
    return out


def _write_bundle(file: Path, folder: Path, version: Version) -> None:
    # Weights do not compress; texts are small.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        archive.writestr(_BUNDLE_FILE, json.dumps({"layout": _LAYOUT, "persona": folder.name}))
        archive.write(folder / _SPEC_FILE, _SPEC_FILE)
        if notice := _notice(folder, version.manifest):
            archive.writestr(_NOTICE_FILE, notice)
        for part in (MANIFEST_FILE, *version.manifest.files):
            archive.write(version.folder / part, part)


def unpack(personas: Personas, file: Path, name: str | None = None) -> Version:
    """Publish a bundle's version under `name` (None: its own); of an existing persona only the version is new.

    Raises:
        PersonaError: no bundle, a name or a length that is not what it should be, hashes or base that do not verify,
            or a persona of this name that imitates others. Nothing changed then.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return unpack_open(personas, archive, name, f"bundle {file.name!r}")
    except FileNotFoundError as e:
        raise PersonaError(f"there is no bundle {str(file)!r}") from e
    # RuntimeError: encrypted, or JSON nested without end; zlib.error: damaged; UnicodeDecodeError: of a name.
    except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise PersonaError(f"{file.name!r} is no readable bundle ({e}); is it complete?") from e
    except OSError as e:
        raise PersonaError(f"bundle {file.name!r} cannot be unpacked ({e.strerror}); is there room?") from e


def unpack_open(personas: Personas, archive: zipfile.ZipFile, name: str | None, label: str) -> Version:
    """`unpack` of an open archive, called `label` in errors."""
    found = {info.filename: info for info in archive.infolist()}
    head = _json(archive, found, _BUNDLE_FILE, label)
    if head.get("layout") != _LAYOUT:
        raise PersonaError(f"{label} has the layout {head.get('layout')!r}, not {_LAYOUT}; update qqtwin")
    try:
        manifest = Manifest.model_validate(_json(archive, found, MANIFEST_FILE, label))
    except ValidationError as e:
        raise PersonaError(f"{label}: {MANIFEST_FILE} is not valid ({str(e).splitlines()[0]})") from e
    expected = {_BUNDLE_FILE, _SPEC_FILE, MANIFEST_FILE, *manifest.files}
    expected |= {_NOTICE_FILE} & set(found)
    if odd := sorted(set(found) ^ expected) or [n for n in expected if not _plain(n)]:
        raise PersonaError(f"{label}: {odd[0]!r} is missing, not in its manifest, or no plain file name")
    if len(found) != len(archive.infolist()):
        raise PersonaError(f"{label} holds a file twice")
    for small in {_SPEC_FILE, _NOTICE_FILE} & set(found):
        if found[small].file_size > _SMALL_BYTES:
            raise PersonaError(f"{label}: {small} is too large to be one; was it made by `twin persona pack`?")
    target = name or str(head.get("persona"))
    if not NAME.fullmatch(target):
        raise PersonaError(f"persona name {target!r} must be letters, digits, - or _; give another with --name")
    # Twice: what was unpacked is checked, and published as a copy.
    _require_room(personas.root, 2 * sum(info.file_size for info in found.values()), label)
    personas.root.mkdir(parents=True, exist_ok=True)
    with staging.scratch(personas.root, "unpack") as made:
        # A root of its own: publishing verifies there first, and only a whole persona is moved. No persona is called
        # `.result`.
        staged = Personas(made, personas.base_sha256)
        for member in sorted({_SPEC_FILE, _NOTICE_FILE} & set(found)):
            _write(archive, found[member], made / target / member, label)
        for member in (MANIFEST_FILE, *manifest.files):
            _write(archive, found[member], made / ".result" / member, label)
        spec = staged.spec(target)
        if (personas.root / target / _SPEC_FILE).exists():
            if set(personas.spec(target).people) != set(spec.people):
                raise PersonaError(f"persona {target!r} exists and imitates others; give another name with --name")
            if manifest.version in personas.versions(target):
                if personas.verify(target, manifest.version).manifest != manifest:
                    raise PersonaError(f"persona {target!r} has another version {manifest.version!r} already")
            return personas.publish(target, made / ".result", by_hand=True)
        staged.publish(target, made / ".result")
        os.replace(made / target, personas.root / target)
    return personas.verify(target, manifest.version)


def _notice(folder: Path, manifest: Manifest) -> str:
    """The terms that what is given away is under, where it is known to be under some: they ask to go with it."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / _NOTICE_FILE).read_text("utf-8", "replace")
    return _GEMMA_NOTICE if manifest.base.architecture.startswith("gemma") else ""


def _json(archive: zipfile.ZipFile, found: dict[str, zipfile.ZipInfo], name: str, label: str) -> dict[str, object]:
    if name not in found or found[name].file_size > _SMALL_BYTES:
        raise PersonaError(f"{label} has no {name} of a sensible size; was it made by `twin persona pack`?")
    try:
        value = json.loads(archive.read(found[name]))
    except ValueError as e:
        raise PersonaError(f"{label}: {name} is not JSON") from e
    if not isinstance(value, dict):
        raise PersonaError(f"{label}: {name} holds no table")
    return value


def _plain(name: str) -> bool:
    """Whether a name is a relative path of ordinary parts: no root, drive, `..`, backslash or hidden file."""
    parts = PurePosixPath(name).parts
    return bool(parts) and "/".join(parts) == name and all(_PART.fullmatch(p) for p in parts)


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, out: Path, label: str) -> None:
    """Copy one member as a plain file, whatever its attributes say; its checksum is checked on the way."""
    if info.file_size > _RATIO_MAX * max(1, info.compress_size):
        raise PersonaError(f"{label}: {info.filename!r} claims {info.file_size} bytes from {info.compress_size}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, out.open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _require_room(folder: Path, needed_bytes: int, label: str) -> None:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if (free := shutil.disk_usage(existing).free) < needed_bytes:
        raise PersonaError(f"{label} needs {needed_bytes / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; make room")
