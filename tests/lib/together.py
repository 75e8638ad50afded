"""One of several processes that train a LoRA on the same windows; started by torchrun.

Arguments: a checkpoint, a run folder, settings as JSON, perhaps a DeepSpeed configuration. Each writes what it ended
with beside the folder, as `rank-N.json`.
"""

import hashlib
import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import talks
import torch
from torch import distributed, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from bot.config import Training
from training import world
from training.qlora import Options, train


def main() -> None:
    warnings.simplefilter("ignore")
    base, folder = Path(sys.argv[1]), Path(sys.argv[2])
    settings = Training.model_validate_json(sys.argv[3])
    deepspeed = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    seen: dict[str, Any] = {}

    def look(module: nn.Module, _: Any) -> None:
        if isinstance(module, DistributedDataParallel) or type(module).__name__ == "DeepSpeedEngine":
            seen["wrapped"] = type(module).__name__
            seen["weights"] = [p for p in module.parameters() if p.requires_grad]

    register_module_forward_pre_hook(look)
    options = replace(Options(deepspeed=deepspeed), tell=lambda _: None)
    run = train(talks.samples(base), base, folder, settings, options=options)
    digest = hashlib.sha256(b"".join(p.detach().float().numpy().tobytes() for p in seen["weights"])).hexdigest()
    told = {
        "rank": int(os.environ["RANK"]),
        "world": distributed.get_world_size(),
        "steps": run.record["steps"],
        "lora": digest,
        "wrapped": seen["wrapped"],
        "processes": run.record["processes"],
        "total": world.total(int(os.environ["RANK"]) + 5, torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "patience_s": distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout.total_seconds(),
    }
    folder.with_name(f"{folder.name}-rank-{told['rank']}.json").write_text(json.dumps(told), "utf-8")
    world.leave()


if __name__ == "__main__":
    main()
