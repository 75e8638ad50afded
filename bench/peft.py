"""A LoRA GGUF → a PEFT folder with the same numbers: what is shipped is the GGUF alone, exports begin at the folder.

For architectures without permuted rows.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from export.metadata import fields

_PARTS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def write(lora: Path, folder: Path) -> Path:
    """Write adapter_config.json and adapter_model.safetensors (float32); gives the folder."""
    alpha = float(fields(lora, "adapter.lora.alpha")["adapter.lora.alpha"].value)
    tensors = {}
    for tensor in gguf.GGUFReader(lora).tensors:
        _, layer, part, _, half = tensor.name.split(".")
        key = f"base_model.model.model.layers.{layer}.{_PARTS[part]}.lora_{half[-1].upper()}.weight"
        tensors[key] = torch.from_numpy(np.array(tensor.data, np.float32))
    rank = min(min(t.shape) for t in tensors.values())
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none",
        "target_modules": sorted({name.split(".")[1] for name in _PARTS.values()}), "inference_mode": True,
        "base_model_name_or_path": None, "lora_dropout": 0.0,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), "utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
