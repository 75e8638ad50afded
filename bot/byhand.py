"""Any model for `twin chat`, by hand: a GGUF, a LoRA, other settings; nothing of it is kept."""

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from bot.errors import ConfigError, PersonaError
from bot.persona import LORA_FILE, Base, Manifest, Persona, Version


@dataclass(frozen=True, slots=True)
class ByHand:
    """What was asked for on the command line; None leaves the persona's own.

    Args:
        lora: a LoRA GGUF in place of the persona's version.
        bare: speak without any LoRA: the base itself, or a model that a LoRA was merged into.
        system_prompt: in place of the one persona.toml makes.
        temperature: in place of `[sampling] temperature`.
        top_p: likewise.
        max_tokens: likewise.
    """

    lora: Path | None = None
    bare: bool = False
    system_prompt: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None

    def persona(self, persona: Persona, format_name: str, folder: Path) -> Persona:
        """The persona as asked for.

        Args:
            persona: as its folder says.
            format_name: chat format of the base.
            folder: empty, where a LoRA given by hand is laid out as a version.

        Raises:
            ConfigError: a value is out of range.
            PersonaError: there is no such LoRA.
        """
        given = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        changed = {key: value for key, value in given.items() if value is not None}
        try:
            sampling = type(persona.spec.sampling).model_validate(persona.spec.sampling.model_dump() | changed)
        except ValueError as e:
            raise ConfigError(f"--temperature, --top-p or --max-tokens is out of range: {e}") from e
        spec = persona.spec.model_copy(update={"sampling": sampling})
        version, refused = persona.version, persona.refused
        if self.bare:
            version, refused = None, None
        if self.lora is not None:
            version, refused = self._version(persona, format_name, folder), None
        return replace(persona, spec=spec, version=version, refused=refused, prompt=self.system_prompt)

    def _version(self, persona: Persona, format_name: str, folder: Path) -> Version:
        """The LoRA as a version; what prompt it was trained with it does not say, so it gets persona.toml's."""
        assert self.lora is not None
        if not self.lora.is_file():
            raise PersonaError(f"LoRA {str(self.lora)!r} is no file; give a LoRA GGUF, or a PEFT folder with "
                               "--backend transformers")  # fmt: skip
        if not (folder / LORA_FILE).exists():  # asked for at every line typed
            shutil.copy2(self.lora, folder / LORA_FILE)
        manifest = Manifest(
            version=self.lora.stem, created=datetime.now(UTC).isoformat(timespec="seconds"),
            base=Base(file="", sha256="", architecture=""), format=format_name,
            system_prompt=persona.spec.system_prompt, files={},
        )  # fmt: skip
        return Version(folder, manifest)
