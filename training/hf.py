"""A checkpoint's tokenizer.json → `bot.prompt.Tokenizer`, with llama.cpp's ids.

Hugging Face's default encoding parses special tokens anywhere: a typed `<end_of_turn>` would become the control id, a
prompt injection in the training data. So what people wrote is encoded with special tokens split, control pieces with
special tokens parsed, and nothing is added in front (reference: llama_tokenize with parse_special off and on).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from bot.errors import TrainingError
from bot.prompt import ChatFormat, broken_up, format_for

_ARCHITECTURES = {"gemma3_text": "gemma3", "qwen3_moe": "qwen3moe"}
"""Hugging Face's `model_type` → GGUF's `general.architecture`, where they differ."""


class HFTokenizer:
    """The vocabulary of a checkpoint.

    Args:
        checkpoint: folder with tokenizer.json and config.json.

    Raises:
        TrainingError: there is no readable tokenizer.json, or no chat format fits the base.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._parsing, self._splitting = _read(checkpoint), _read(checkpoint)
        self._splitting.encode_special_tokens = True
        bare = self._parsing.encode("a", add_special_tokens=False).ids
        dressed = self._parsing.encode("a", add_special_tokens=True).ids
        self.bos: int | None = dressed[0] if len(dressed) > len(bare) and dressed[0] != bare[0] else None
        self.format: ChatFormat = self._format(checkpoint)
        """Chat format of the bare base."""

    def tokens(self, text: str, control: bool) -> list[int]:
        """Ids of a text, special tokens parsed if and only if `control`; nothing added in front."""
        if control:
            return list(self._parsing.encode(text, add_special_tokens=False).ids)
        parts = (self._splitting.encode(part, add_special_tokens=False) for part in broken_up(text))
        return [token for part in parts for token in part.ids]

    def text(self, ids: Sequence[int]) -> str:
        """What tokens say; special ones say nothing. A character cut in the middle ends in U+FFFD."""
        return self._parsing.decode(list(ids), skip_special_tokens=True)

    @property
    def special_ids(self) -> list[int]:
        """Ids of all special tokens."""
        return [i for i, added in self._parsing.get_added_tokens_decoder().items() if added.special]

    def is_control(self, text: str) -> bool:
        """Whether a text is exactly one special token."""
        token = self._parsing.token_to_id(text)
        added = self._parsing.get_added_tokens_decoder().get(token) if token is not None else None
        return added is not None and added.special

    def _format(self, checkpoint: Path) -> ChatFormat:
        kind = json.loads((checkpoint / "config.json").read_text("utf-8")).get("model_type", "")
        found = format_for(_ARCHITECTURES.get(kind, kind), self.is_control)
        if found is None:
            raise TrainingError(
                f"base {checkpoint.name!r} ({kind}) has the markers of no known chat format; choose an instruct base "
                "of the Gemma, Qwen or Llama 3 family"
            )
        return found


def _read(checkpoint: Path) -> Tokenizer:
    file = checkpoint / "tokenizer.json"
    if not file.is_file():
        raise TrainingError(
            f"checkpoint {checkpoint.name!r} has no tokenizer.json; give a complete Hugging Face checkpoint or a GGUF"
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as e:  # tokenizers raises nothing narrower
        raise TrainingError(f"tokenizer.json of checkpoint {checkpoint.name!r} is not readable ({e})") from e
