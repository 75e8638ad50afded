"""Training-set files beside the persona's own → windows: general chat that keeps the language, or held-out answers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

from bot.config import Cleaning, Conversation
from bot.errors import ImportFault, TrainingError
from training.corpus import Corpus
from training.dialogue import Dialogue
from training.hf import HFTokenizer
from training.importers.rolebench import Choice
from training.importers.sets import SetReading, dialogues
from training.samples import Window
from training.samples import windows as packed
from training.sets import scene_of


def windows(
    files: Sequence[Path], tokenizer: HFTokenizer, system_prompt: str, max_length: int, conversation: Conversation,
    rules: Cleaning,
) -> list[Window]:  # fmt: skip
    """All windows of some files, in any format of training sets; every answer is a label of one split or another.

    Args:
        files: the files.
        tokenizer: of the checkpoint; names the chat format.
        system_prompt: where a dialogue has none of its own.
        max_length: tokens of a window.
        conversation: the time zone.
        rules: what the model is shown.

    Raises:
        TrainingError: a file is not there, or is no training set.
    """
    if not files:
        return []
    found: dict[str, Dialogue] = {}
    for file in files:
        try:
            found |= {d.id: d for d in dialogues(file, SetReading(), Choice())}
        except (ImportFault, OSError) as e:
            raise TrainingError(f"[training] names {file.name!r}, which cannot be read as a training set: {e}") from e
    parts = [part for dialogue in found.values() if (part := scene_of(dialogue, rules)).exchanges]
    if not parts:
        raise TrainingError(f"[training] names {', '.join(f.name for f in files)}, which hold no dialogue to read")
    parts = [replace(p, system=system_prompt if p.system is None else p.system) for p in parts]
    corpus = Corpus(frozenset(), (), frozenset(), parts, conversation, ZoneInfo(conversation.timezone), "")
    return packed(corpus, tokenizer, tokenizer.format, system_prompt, max_length)
