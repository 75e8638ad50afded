"""A run → the LoRA in its weights, proven: one GGUF in a folder that can be published, or a checkpoint.

Everything happens beside the last place; what fails its proof never gets there.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bot.checksum import sha256
from bot.persona import MANIFEST_FILE, MODEL_FILE, Manifest
from export import gguf, merge, place, proof
from export.metadata import fields
from export.quantize import Imatrix, quantize, quantized_bytes, require
from export.reference import Reference, require_memory, require_watchable
from export.template import jinja
from export.tensors import checkpoint_tensors

PARITY_FILE = "parity.json"
IMATRIX_TOKENS_MAX = 16_384
"""Tokens an importance matrix is made of at most: Q2_K came out the same with 10,000 and 10 million tokens of Wikitext
(llama.cpp's tools/perplexity/README.md)."""
WINDOWS_BEFORE = 8
"""Held-out windows on which the whole file is proven before it is quantized: a wrong row shows on any of them there."""
_ROUNDED = "; rounded to {} a small change is lost: `twin export merge --type F32` or `twin export gguf` keep it"
_QUANTIZED = "; {} may round away what a young LoRA changes: `--type F16`, or the LoRA beside its base, keeps it"
Progress = Callable[[str, int, int, str], None]


def export(
    trained: proof.Trained, base: Path, about: gguf.About, kind: str, out: Path, held_out: proof.HeldOut,
    progress: Progress, *, imatrix: Sequence[Sequence[int]] | None = None, manifest: Manifest | None = None,
    force: bool = False,
) -> proof.Proof:  # fmt: skip
    """Make a folder with `model.gguf`, its proof, and, where the run has one, its manifest.

    Args:
        trained: the run's result.
        base: the base GGUF, for the tokenizer, and for what the LoRA gained over it.
        about: what the file says of itself.
        kind: quantization type.
        out: the folder.
        held_out: what the proof asks.
        progress: told (step, done, total, words).
        imatrix: token ids of held-out chats to make an importance matrix of; None: without.
        manifest: of the run's LoRA version; its merged one is named `about.version`.
        force: replace what lies at `out`.

    Raises:
        ExportError: unknown type, too little room, a step failed, or the result is not what was trained.
    """
    require(kind, imatrix=imatrix is not None)
    weights = checkpoint_tensors(trained.checkpoint)
    if imatrix is not None:
        require_watchable(weights)
    require_memory(trained.checkpoint)
    name = kind.upper()
    full: gguf.Unquantized = "F32" if name == "F32" else "BF16" if name == "BF16" else "F16"
    found = None
    needed = sum(quantized_bytes(each, weights.values()) for each in {full, name})
    with place.written(out, needed, force=force) as beside:
        beside.mkdir()
        made = beside / MODEL_FILE
        whole = made if name == full else beside / "full.gguf"
        progress("convert", 0, 0, "")
        # From the sums in float32: rounded to the checkpoint's bf16 first, a young LoRA's changes were half lost.
        sums = merge.sums(trained.peft, trained.checkpoint)
        gguf.convert(trained.checkpoint, whole, full, about, base, sums)
        if whole != made:
            # Quantizing anew widens what the whole file's proof can tell from damage; what comes before it does not.
            progress("parity", 0, 0, "unquantized")
            some = held_out.passages[:: -(-len(held_out.passages) // WINDOWS_BEFORE) or 1]
            few = replace(held_out, passages=some, prompts=())
            proof.require_passed(proof.prove(trained, whole, None, few).parity, f"F16 of run {about.version!r}")
            found = importance(trained, base, imatrix, progress) if imatrix is not None else None
            quantize(whole, made, name, _step(progress, "quantize"), found, held_out.n_threads)
            place.remove(whole)
        progress("parity", 0, 0, "")
        proven = proof.prove(trained, made, None, held_out, None if name == full else base)
        proven = replace(proven, parity=proven.parity.model_copy(update={"imatrix": found is not None}))
        proof.require_passed(
            proven.parity, f"{name} of run {about.version!r}", "" if name == full else _QUANTIZED.format(name)
        )
        figures = _put_proof(beside, proven)
        if manifest is not None:
            changed: dict[str, Any] = {
                "version": about.version, "files": {MODEL_FILE: sha256(made)}, "parity": figures,
            }  # fmt: skip
            if not proven.parity.as_judged:
                why = f"as {name} it differs by {proven.parity.loss_gap:+.2f} nats from what a night judged"
                changed["gate"] = {
                    **manifest.gate,
                    "passed": False,
                    "reasons": [*manifest.gate.get("reasons", ()), why],
                }
            text = manifest.model_copy(update=changed).model_dump_json(indent=1)
            (beside / MANIFEST_FILE).write_text(text, "utf-8")
    return proven


def checkpoint(
    trained: proof.Trained, out: Path, held_out: proof.HeldOut, progress: Progress, *, float32: bool = False,
    force: bool = False,
) -> proof.Proof:  # fmt: skip
    """Make a Hugging Face folder of checkpoint and LoRA (`export.merge`), with its proof.

    Args:
        trained: the run's result.
        out: the folder.
        held_out: what the proof asks.
        progress: told (step, done, total, words).
        float32: as `merge.merge`.
        force: replace what lies at `out`.

    Raises:
        ExportError: as `merge.merge`; or the folder is not what was trained.
    """
    require_memory(trained.checkpoint)
    with place.written(out, 0, force=force) as beside:
        step = _step(progress, "merge")
        merge.merge(trained.peft, trained.checkpoint, trained.format, beside, step, float32=float32)
        progress("parity", 0, 0, "")
        proven = proof.prove_merged(trained, beside, held_out)
        coarse = proven.parity.kind != "F32"
        proof.require_passed(proven.parity, f"{out.name!r}", _ROUNDED.format(proven.parity.kind) if coarse else "")
        _put_proof(beside, proven)
    return proven


def _put_proof(folder: Path, proven: proof.Proof) -> dict[str, Any]:
    """Write a proof into an export; gives its figures."""
    figures = proven.parity.model_dump(mode="json")
    shown = {"parity": figures, "greedy": proven.texts}
    (folder / PARITY_FILE).write_text(json.dumps(shown, ensure_ascii=False, indent=1), "utf-8")
    return figures


def about(
    trained: proof.Trained, base: Path, base_sha256: str, name: str, version: str, counts: dict[str, int]
) -> gguf.About:
    """What a merged GGUF of a run says of itself; name and licence of the base are its own GGUF's."""
    told = fields(base, "general.name", "general.license")
    base_name, licence = (
        str(told[k].value) if k in told else default
        for k, default in (("general.name", base.stem), ("general.license", ""))
    )
    template = jinja(trained.format, merge.bos_text(trained.checkpoint))
    return gguf.About(name, base_name, base_sha256, version, licence, template, counts)


def importance(trained: proof.Trained, base: Path, texts: Sequence[Sequence[int]], progress: Progress) -> Imatrix:
    """The importance matrix of the trained model over texts, `IMATRIX_TOKENS_MAX` tokens at most."""
    progress("imatrix", 0, 0, "")
    taken: list[Sequence[int]] = []
    for ids in texts:
        taken.append(ids[: IMATRIX_TOKENS_MAX - sum(map(len, taken))])
    architecture = str(fields(base, "general.architecture")["general.architecture"].value)
    return Reference(trained.checkpoint, trained.peft).mean_squares([t for t in taken if t], architecture)


def _step(progress: Progress, step: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(step, done, total, "")
