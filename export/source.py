"""A folder with a manifest → what another program is given, and what its user must know.

To be answered as in QQ a client must do the rest itself: how a talk is written, in the words of bot/prompt.py, goes
along with every export.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bot.checksum import digest, sha256
from bot.errors import ExportError
from bot.message import Scene
from bot.persona import MANIFEST_FILE, MODEL_FILE, Manifest
from bot.prompt import FORMATS, ChatFormat, clean, system_of

ASKING = (
    "How it must be asked, for so it was trained (20 s, twelve and half an hour unless [conversation] says otherwise):",
    "- A user message is one burst of what others said (less than 20 s between two bubbles, twelve at most), a line a",
    "  bubble, a line break inside one as ↵. After each the twin speaks or is silent.",
    "- The first message of a conversation (half an hour of quiet ends one) opens with a line of its own:",
    "  【周五 23:10】, or where there was one before 【周五 23:10 · 隔了3小时】 (分钟 below an hour, 小时 below",
    "  a day, else 天).",
    "- In groups a line begins with who speaks, 阿泽：在吗, and behind that with what is quoted,",
    "  阿泽：[回复 小满：在吗]在; in private chats without the name.",
    "- The system prompt ends with a line of where it is: 现在是QQ私聊。 or 现在是你和阿泽的QQ私聊。,",
    "  现在是QQ群聊。 or 现在是QQ群「周末去哪儿」。",
    "- An answer is one bubble a line, too. An empty one is a silence, and normal: the twin says nothing. It stays in",
    "  the talk, as an empty assistant message.",
)
"""What a client must do, for whoever reads an export; lines."""


def doubts(manifest: Manifest) -> list[str]:
    """What stands against giving a version away, a sentence each; none of one that was proven and passed the gate."""
    found = []
    if not manifest.gate.get("passed", True):
        why = ", ".join(map(str, manifest.gate.get("reasons", []))) or "no reason is noted"
        found.append(f"The gate refused version {manifest.version} ({why}).")
    if not manifest.parity:
        found.append(f"Version {manifest.version} was never proven to be what was trained.")
    if not manifest.gate:
        found.append(f"No gate has judged version {manifest.version}.")
    return found


@dataclass(frozen=True, slots=True)
class Source:
    """A folder with a manifest: a published version, a run that a night has judged, or its merged folder.

    Args:
        folder: where its files lie.
        manifest: what it is.
        base: the base GGUF; None where the model is merged and needs none.
    """

    folder: Path
    manifest: Manifest
    base: Path | None

    @property
    def format(self) -> ChatFormat:
        """The chat format it was trained with."""
        return FORMATS[self.manifest.format]

    @property
    def system(self) -> str:
        """The system prompt as a private chat has it, as it is rendered."""
        return clean(system_of(self.manifest.system_prompt, Scene("private", "0"), ""))


def read(folder: Path, base: Callable[[], tuple[Path, str]]) -> Source:
    """Read a folder.

    Args:
        folder: with a manifest.
        base: gives the base GGUF and its hash; asked only where the version needs one.

    Raises:
        ExportError: it has no valid manifest, its proof failed or its files are others, or its LoRA is of another base
            than ours.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_text("utf-8"))
    except OSError as e:
        raise ExportError(
            f"{str(folder)!r} has no {MANIFEST_FILE}; give a version's folder, a run that a night has judged, or what "
            "`twin export gguf` made of one"
        ) from e
    except ValidationError as e:
        raise ExportError(f"{str(folder)!r}: {MANIFEST_FILE} is not valid ({str(e).splitlines()[0]})") from e
    if manifest.format not in FORMATS:
        raise ExportError(f"{manifest.version!r} was trained with the format {manifest.format!r}, which is not known")
    if manifest.parity.get("passed") is False:
        raise ExportError(f"{manifest.version!r} is not what was trained (its proof failed); export it again")
    for name, wanted in manifest.files.items():
        there = folder / name
        if there.is_file() and (digest(there) if name == MODEL_FILE else sha256(there)) != wanted:
            raise ExportError(f"{manifest.version!r}: {name} is not the file that was proven; export it again")
    return Source(folder.resolve(), manifest, None if manifest.merged else _base(manifest, *base()))


def _base(manifest: Manifest, base: Path, base_sha256: str) -> Path:
    if manifest.base.sha256 != base_sha256:
        raise ExportError(
            f"{manifest.version!r} was trained on the base {manifest.base.file} ({manifest.base.sha256[:12]}…), and "
            f"[engine] base is {base.name!r} ({base_sha256[:12]}…); set that base"
        )
    return base.resolve()
