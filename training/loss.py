"""Hidden states and targets → the loss at trained positions, without ever holding all logits.

A vocabulary of 262,144 words makes full logits the largest thing in memory and a third of the work, and only a part of
the positions has a label. So the output layer runs on trained positions only, a chunk at a time. It is frozen (LoRA
leaves it alone), so its gradient for the hidden state is computed at once, in the forward pass, instead of running the
chunk a second time in the backward pass as checkpointing would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from bot.errors import TrainingError
from training.batches import IGNORED, pack

CHUNK_BYTES = 1 << 26
"""Logits held at once, as computed: 128 positions of 262,144 words in bf16."""
FULL_BYTES = {True: 1 << 24, False: 1 << 27}
"""Of those, what is held in float32 at once; on a processor little, which stays in its cache."""


class Unusable(TrainingError):
    """The loss is no number, or 0 before anything was learned.

    Args:
        message: what happened, and what to do.
        early: it was so from the beginning: the numbers cannot hold the base, whatever the learning rate.
    """

    def __init__(self, message: str, *, early: bool) -> None:
        super().__init__(message)
        self.early = early


class _ChunkedNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, chunk: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else hidden.new_empty(0)
        # Buffers for all chunks: fresh ones of this size are mapped and zeroed by the kernel each time.
        rows = min(chunk, len(targets))
        at_once = max(1, min(rows, FULL_BYTES[hidden.device.type == "cpu"] // (4 * len(weight))))
        low = torch.empty(rows, len(weight), dtype=weight.dtype, device=hidden.device)
        full = torch.empty(at_once, len(weight), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), chunk):
            part = slice(start, min(start + chunk, len(targets)))
            logits, wanted = low[: part.stop - start], targets[part].unsqueeze(1)
            torch.mm(hidden[part].to(weight.dtype), weight.T, out=logits)
            for few, ids in zip(torch.split(logits, at_once), torch.split(wanted, at_once), strict=True):
                total += _nll(few, ids, full[: len(few)], softcap, slope=wants_gradient)
            if wants_gradient:
                gradient[part] = (logits @ weight).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * upstream[0], None, None, None, None


def _nll(logits: Tensor, wanted: Tensor, z: Tensor, softcap: float | None, *, slope: bool) -> Tensor:
    """Sum of -log p of `wanted`, computed in float32.

    Args:
        logits: as computed, (positions, vocabulary); with `slope` its derivative by them stands there afterwards.
        wanted: ids, (positions, 1).
        z: float32, (positions, vocabulary), overwritten.
        softcap: see `sparse_nll`.
        slope: whether the derivative is wanted.
    """
    z.copy_(logits)
    bent = None
    if softcap is not None:
        z.div_(softcap).tanh_()
        bent = 1 - z * z
        z.mul_(softcap)
    said = z.gather(1, wanted)
    top = z.amax(-1, keepdim=True)
    norm = z.sub_(top).exp_().sum(-1, keepdim=True)
    if slope:
        z.div_(norm)
        z.scatter_add_(1, wanted, torch.full_like(said, -1))
        if bent is not None:
            z.mul_(bent)
        logits.copy_(z)
    return (norm.log() + top - said).sum()


def sparse_nll(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, chunk: int) -> Tensor:
    """Sum of -log p over all positions with a target, in nats; 0 without any.

    Args:
        hidden: last hidden states, (batch, seq, width).
        weight: the frozen output layer, (vocabulary, width).
        targets: ids to predict at each position, (batch, seq); `IGNORED` where nothing is trained.
        softcap: `final_logit_softcapping` of Gemma 2 and 3, logits → cap · tanh(logits / cap); None: none.
        chunk: positions whose logits are held at once.
    """
    kept = targets != IGNORED
    total: Tensor = _ChunkedNll.apply(  # type: ignore[no-untyped-call]
        hidden[kept], weight, targets[kept], softcap, chunk
    )
    return total


def teach_sparse_loss(model: Any, *, packed: bool = False) -> None:
    """Let a PEFT model's forward take `targets`, and `position_ids` of packed windows, and give `sparse_nll`.

    Through `forward`, so that a wrapper around the model (distributed training) still sees the call.

    Args:
        model: the PEFT model, changed.
        packed: windows will come packed.

    Raises:
        TrainingError: the base makes its logits in a way this does not know, or mixes packed windows.
    """
    base = model.get_base_model()
    head = base.get_output_embeddings()
    softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    whole = base.forward
    chunk = max(1, CHUNK_BYTES // (head.weight.element_size() * len(head.weight)))

    def forward(*args: Any, targets: Tensor | None = None, **inputs: Any) -> Any:
        if targets is None:
            return whole(*args, **inputs)
        # Positions alone keep packed windows apart; a mask of ones beside them would mix them.
        read = {name: inputs[name] for name in ("input_ids", "position_ids") if name in inputs}
        hidden = base.get_decoder()(**read, use_cache=False).last_hidden_state
        return sparse_nll(hidden, head.weight, targets, softcap, chunk)

    base.forward = forward
    _check(model, base.config.get_text_config().vocab_size)
    if packed:
        _check_packing(model, base.config.get_text_config().vocab_size)


@contextmanager
def measuring(model: Any) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards the model trains on as before.

    4-bit layers stay in training mode: out of it, bitsandbytes (0.50, on CPUs with AVX512-BF16) packs their weights for
    its inference kernel for good, with a backward pass that knows nothing of it.
    """
    training = model.training
    model.eval()
    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes"):
            module.training = True
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _check(model: Any, vocabulary: int) -> None:
    """Compare with the model's own logits on a few tokens: a bias, scale or softcap of its own would go unnoticed."""
    ids = torch.arange(3, 11, device=model.device).remainder(vocabulary).unsqueeze(0)
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], dim=1)
    with measuring(model):
        ours = model(input_ids=ids, targets=targets)
        logits = model(input_ids=ids).logits.float()
    theirs = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    if not torch.isfinite(theirs):
        raise Unusable(
            f"the loss of the bare base is {float(theirs)}; set [training] compute_dtype = 'float32'", early=True
        )
    if not torch.isclose(ours, theirs, rtol=0.02, atol=0.05):
        raise TrainingError(
            f"base {type(model.get_base_model()).__name__} makes its logits in a way that is not known here (loss "
            f"{float(ours):.3f}, its own {float(theirs):.3f}); choose a base of the Gemma, Qwen or Llama 3 family"
        )


def _check_packing(model: Any, vocabulary: int) -> None:
    """Compare the first token of a packed window with itself alone: what looks across windows is told by it."""
    base = model.get_base_model()
    first, second = (torch.arange(start, start + 8).remainder(vocabulary).tolist() for start in (3, 40))
    packed = pack([{"input_ids": ids, "labels": ids} for ids in (first, second)])
    alone = {"input_ids": torch.tensor([second])}
    with measuring(model):
        there, here = (
            base.get_decoder()(**{n: x.to(model.device) for n, x in batch.items() if n != "labels"}, use_cache=False)
            .last_hidden_state[0, at].float()
            for batch, at in ((packed, len(first)), (alone, 0))
        )  # fmt: skip
    if float((there - here).norm() / here.norm()) > 0.05:
        raise TrainingError(
            f"base {type(base).__name__} mixes packed windows with this attention kernel; set [training] packing = "
            "'off'"
        )
