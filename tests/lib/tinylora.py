"""A seeded LoRA GGUF for a tiny model, written without training: strong enough to change what is said."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from bot.llama import BASE_KEY


def write(
    path: Path, base: Path, *, seed: int = 0, names_base: str | None = None, strength: float = 4.0,
    says_base: str | None = None, rank: int = 4,
) -> Path:  # fmt: skip
    """Adapt one or two projections of every layer.

    Args:
        path: where it is written.
        base: the model's GGUF; shapes come from there.
        seed: of the weights.
        names_base: sha256 put into our metadata key; None leaves it out.
        strength: alpha / r.
        says_base: what llama.cpp's converter would have noted of the base.
        rank: r; the file is as large as that.
    """
    reader, rng = gguf.GGUFReader(base), np.random.default_rng(seed)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", strength * rank)
    if names_base is not None:
        writer.add_string(BASE_KEY, names_base)
    if says_base is not None:
        writer.add_base_model_count(1)
        writer.add_base_model_repo_url(0, says_base)
    for tensor in reader.tensors:
        if tensor.name.endswith(("attn_q.weight", "ffn_down.weight", "ssm_out.weight")):
            rows_in, rows_out = (int(n) for n in tensor.shape)
            writer.add_tensor(f"{tensor.name}.lora_a", rng.normal(0, 0.3, (rank, rows_in)).astype(np.float32))
            writer.add_tensor(f"{tensor.name}.lora_b", rng.normal(0, 0.3, (rows_out, rank)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
