"""A trained LoRA and the GGUF or checkpoint made of it, through both libraries: the proof that every export carries.

What is served first, what was trained after that is closed: both models at once would take twice the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as lc
from tokenizers import Tokenizer as HFVocabulary

from bot import config
from bot.errors import ExportError
from bot.llama import Model
from bot.persona import Base
from bot.prompt import ChatFormat, Piece, Tokenizer, broken_up
from bot.scorer import Scorer
from export import lora, parity, place, stops, template
from export.merge import bos_text
from export.metadata import fields
from export.quantize import KINDS
from export.reference import Reference, require_memory
from export.tensors import checkpoint_tensors, stored_as
from export.vocabulary import Vocabulary

GREEDY_TOKENS = 24
"""Tokens of a greedy answer at most: a chat turn is rarely longer."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What an export must equal.

    Args:
        checkpoint: the Hugging Face checkpoint that was trained on.
        peft: the LoRA.
        format: the chat format it was trained with.
        tokenizer: the checkpoint's vocabulary.
        nf4: a transformers quantization config where training used one.
    """

    checkpoint: Path
    peft: Path
    format: ChatFormat
    tokenizer: Tokenizer
    nf4: Any = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What both sides are asked.

    Args:
        passages: held-out windows.
        pieces: every text whose ids are compared.
        prompts: ids up to where an answer begins, for the greedy texts.
        n_ctx: tokens of the longest window.
        n_threads: CPU threads; None: as `bot.llama` chooses.
        settings: `[engine]`: where what is served is put.
    """

    passages: Sequence[parity.Passage]
    pieces: Sequence[Piece]
    prompts: Sequence[Sequence[int]]
    n_ctx: int
    n_threads: int | None = None
    settings: config.Engine = field(default_factory=config.Engine)


@dataclass(frozen=True, slots=True)
class Proof:
    """Figures, and the (trained, served) greedy texts behind `Parity.greedy`; they hold the model's own words alone."""

    parity: parity.Parity
    texts: tuple[tuple[str, str], ...]


def prove(trained: Trained, model: Path, adapter: Path | None, held_out: HeldOut, base: Path | None = None) -> Proof:
    """Compare what was trained with what will be served.

    Args:
        trained: one side.
        model: the other: the base GGUF, or a merged one.
        adapter: the LoRA GGUF on the base; None where `model` is merged.
        held_out: what both are asked.
        base: the bare base GGUF, to see what part of what was learned a merged model keeps; None: it is not asked.

    Raises:
        ExportError: the checkpoint or LoRA cannot be loaded, or there is nothing held out.
        EngineError: llama.cpp cannot load the export: no vocabulary without an end of turn gets this far.
    """
    scorer = Scorer(model, adapter, held_out.n_ctx + GREEDY_TOKENS, held_out.n_threads, held_out.settings)
    try:
        asked = _Asked(held_out, scorer.model.end_id, scorer.model.ends)
        vocabulary = _vocabulary(trained, scorer.model, held_out.pieces, merged=adapter is None)
        served = asked.of(scorer)
    finally:
        scorer.close()
    bare = None if base is None else _loss(base, held_out, asked.end)
    return _compared(trained, asked, served, vocabulary, kind_of_file(model), merged=adapter is None, bare=bare)


def _loss(base: Path, held_out: HeldOut, end: int) -> float:
    scorer = Scorer(base, None, held_out.n_ctx, held_out.n_threads, held_out.settings)
    try:
        return parity.scores(scorer, held_out.passages, end).loss
    finally:
        scorer.close()


def prove_merged(trained: Trained, folder: Path, held_out: HeldOut) -> Proof:
    """Compare what was trained with a merged checkpoint, as transformers serves it.

    Args:
        trained: one side.
        folder: the other: weights, vocabulary, template and stops are all read from there.
        held_out: what both are asked.

    Raises:
        ExportError: the folder, the checkpoint or the LoRA cannot be loaded, or there is nothing held out.
    """
    speaks, ends = Vocabulary(folder), stops.served(folder)
    end = trained.tokenizer.tokens(trained.format.end, True)
    vocabulary = parity.Vocabulary(
        *parity.differing_pieces(held_out.pieces, trained.tokenizer, speaks),
        parity.same_end(trained.format, trained.tokenizer, speaks),
        len(ends ^ (stops.named(trained.checkpoint) | set(end))),
        template.differing(speaks.template, trained.format, bos_text(trained.checkpoint)),
    )
    asked = _Asked(held_out, end[0], ends)
    served = asked.of(Reference(folder, None))
    return _compared(trained, asked, served, vocabulary, stored_as(checkpoint_tensors(folder)), merged=True)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The questions, and the end of turn and stops of the side that serves."""

    held_out: HeldOut
    end: int
    ends: frozenset[int]

    def of(self, model: Scorer | Reference) -> tuple[parity.Scores, list[list[int]]]:
        """A side's scores and greedy answers."""
        scores = parity.scores(model, self.held_out.passages, self.end)
        return scores, [model.greedy(ids, GREEDY_TOKENS, self.ends) for ids in self.held_out.prompts]


def _compared(
    trained: Trained, asked: _Asked, served: tuple[parity.Scores, list[list[int]]], vocabulary: parity.Vocabulary,
    kind: str, *, merged: bool, bare: float | None = None,
) -> Proof:  # fmt: skip
    known, ours = asked.of(Reference(trained.checkpoint, trained.peft))
    nf4 = None
    if trained.nf4 is not None:
        reference = Reference(trained.checkpoint, trained.peft, trained.nf4)
        nf4 = parity.scores(reference, asked.held_out.passages, asked.end).loss
    say = _vocabulary_of(trained.checkpoint).decode
    texts = tuple((say(a), say(b)) for a, b in zip(ours, served[1], strict=True))
    found = parity.compare(
        known, served[0], vocabulary, kind=kind, merged=merged, greedy=texts, loss_base=bare, loss_nf4=nf4
    )
    return Proof(found, texts)


def prove_lora(
    trained: Trained, model: Path, base: Base, out: Path, precision: lora.Precision, held_out: HeldOut, *,
    force: bool,
) -> Proof:  # fmt: skip
    """Write a LoRA GGUF, with the proof; a file that does not pass is not kept.

    Args:
        trained: the run's result.
        model: the base GGUF.
        base: the same, as the file will name it.
        out: the file.
        precision: of the tensors.
        held_out: what the proof asks.
        force: replace what lies at `out`.

    Raises:
        ExportError: as `lora.export`; or the file is not what was trained.
    """
    require_memory(trained.checkpoint)
    with place.written(out, 0, force=force) as beside:
        lora.export(trained.peft, trained.checkpoint, base, beside, precision)
        found = prove(trained, model, beside, held_out)
        require_passed(found.parity, f"{out.name!r}")
    return found


def require_passed(found: parity.Parity, what: str, remedy: str = "") -> None:
    """Raise ExportError with everything that is over a limit, and a remedy for weights: such a file is no version."""
    if not found.passed:
        way = remedy if found.speaks_alike else ""
        raise ExportError(f"{what} is not what was trained, so it is not kept: {'; '.join(found.faults)}{way}")


def kind_of_file(gguf: Path) -> str:
    """Type of a GGUF's weights by llama.cpp's name, `?` when it does not say."""
    field = fields(gguf, "general.file_type").get("general.file_type")
    return next((name for name, kind in KINDS.items() if field is not None and kind.ftype == field.value), "?")


def _vocabulary(trained: Trained, served: Model, pieces: Sequence[Piece], *, merged: bool) -> parity.Vocabulary:
    compared, differing = parity.differing_pieces(pieces, trained.tokenizer, served)
    if merged:
        written = served.metadata("tokenizer.chat_template")
        templates = template.differing(written, trained.format, bos_text(trained.checkpoint))
    else:
        templates = template.differing_formats(trained.format, served.format)
    return parity.Vocabulary(
        compared,
        differing,
        parity.same_end(trained.format, trained.tokenizer, served),
        _stops_differing(trained, served),
        templates,
    )


def _stops_differing(trained: Trained, served: Model) -> int:
    """Tokens that end an answer on one side alone.

    llama.cpp also ends at tokens it knows by their spelling. Those must be special in the checkpoint, or spelled so
    that people's words are `broken_up` there (`</s>`, Qwen's `<|fim_pad|>`): then no word ends an answer.
    """
    ours = stops.named(trained.checkpoint) | set(trained.tokenizer.tokens(trained.format.end, True))
    theirs = {i for i in served.end_ids if lc.llama_vocab_is_eog(served.vocab, i)}
    known = _vocabulary_of(trained.checkpoint)
    special = {i for i, token in known.get_added_tokens_decoder().items() if token.special}
    spelled = {i for i in theirs if len(broken_up(known.id_to_token(i) or "")) > 1}
    return len(ours - theirs) + len(theirs - special - spelled)


def _vocabulary_of(checkpoint: Path) -> HFVocabulary:
    return HFVocabulary.from_file(str(checkpoint / "tokenizer.json"))
