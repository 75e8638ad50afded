"""A merged checkpoint's vocabulary and chat template, as who serves the folder loads them."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bot.errors import ExportError
from bot.prompt import broken_up


class Vocabulary:
    """A `bot.prompt.Tokenizer` of what transformers, and with it vLLM, makes of a folder.

    Args:
        folder: a checkpoint.

    Raises:
        ExportError: transformers cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._backend = loaded.backend_tokenizer
        except Exception as e:  # tokenizers raises nothing narrower
            raise ExportError(f"the tokenizer in {folder.name!r} cannot be loaded for parity ({e})") from e
        self.template: str = loaded.chat_template if isinstance(loaded.chat_template, str) else ""
        """The chat template, Jinja; empty where there is none."""
        bare, dressed = (loaded("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        self.bos: int | None = dressed[0] if len(dressed) > len(bare) and dressed[0] != bare[0] else None

    def tokens(self, text: str, control: bool) -> list[int]:
        """Ids of a text, special tokens parsed if and only if `control`; nothing added in front."""
        self._backend.encode_special_tokens = not control
        parts = [text] if control else broken_up(text)
        return [i for part in parts for i in self._backend.encode(part, add_special_tokens=False).ids]
