"""Checkpoint + PEFT LoRA against base GGUF + LoRA GGUF: are they the same model? Tokens, loss and silence.

What was trained and what will be served must give the same ids for every text, nearly the same held-out loss and
nearly the same P(silent). The reference side is transformers in float32, unquantized, with logits at wanted positions
only (all logits of a 262,144-word vocabulary would take gigabytes); the served side is `bot.llama.Scorer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, computed_field
from transformers import AutoModelForCausalLM

from bot.errors import ExportError
from bot.prompt import ChatFormat, Piece, Tokenizer, clean

LOSS_GAP_MAX = 0.03
"""Nats per token between served and trained. On a Q4_K_M Gemma 270M 0.016 was measured, on F16 0.0001; single tokens
differ by 0.14 on average in the quantized file, mostly from quantized activations, so only the mean is judged."""
SILENCE_GAP_MAX = 0.02
"""Mean |ΔP(silent)|: a decision should not hang on which library asked."""
_CHUNK = 64
"""Positions whose logits are held at once; 64 of 262,144 words are 67 MB."""

Floats = npt.NDArray[np.float64]


class _Measure(Protocol):
    def log_probs(self, ids: Sequence[int], wanted: Sequence[tuple[int, int]]) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Passage:
    """A held-out window.

    Args:
        ids: token ids.
        wanted: indices in `ids` of held-out label tokens, ascending, ≥ 1.
        decisions: indices in `ids` where an answer begins or end-of-turn stands, ascending, ≥ 1.
    """

    ids: tuple[int, ...]
    wanted: tuple[int, ...]
    decisions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """What one side gives over all passages.

    Args:
        log_p: of every wanted token, in order (nats).
        p_silent: at every decision, in order.
    """

    log_p: Floats
    p_silent: Floats

    @property
    def loss(self) -> float:
        """Mean of -log p, nats per token."""
        return float(-self.log_p.mean()) if len(self.log_p) else math.nan


class Parity(BaseModel):
    """The measured difference between what was trained and what is served."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, ser_json_inf_nan="strings")

    pieces: int
    """Texts whose ids were compared."""
    pieces_differing: int
    """Texts with other ids."""
    end_equal: bool
    """End-of-turn is one token, and the same."""
    n_tokens: int
    """Held-out tokens compared."""
    loss_trained: float
    """Checkpoint + PEFT LoRA, unquantized, in transformers (nats per token)."""
    loss_served: float
    """Base GGUF + LoRA GGUF in llama.cpp (nats per token)."""
    loss_gap_se: float
    """Standard error of their difference, tokens taken as independent (nats)."""
    token_gap: float
    """Mean |Δ log p| of single tokens; shown, not judged (nats)."""
    n_decisions: int
    """Decision points compared."""
    silence_gap: float | None
    """Mean |ΔP(silent)|; None without decision points."""
    loss_nf4: float | None = None
    """NF4 base + LoRA as it was trained, where it was; shown beside, not judged (nats per token)."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loss_gap(self) -> float:
        """Served less trained (nats per token)."""
        return self.loss_served - self.loss_trained

    @property
    def faults(self) -> list[str]:
        """What is over a limit; empty when equal. A figure that is no number is a fault."""
        found = []
        if self.pieces_differing:
            found.append(f"{self.pieces_differing} of {self.pieces} texts have other token ids")
        if not self.end_equal:
            found.append("end-of-turn is not one and the same token")
        if not abs(self.loss_gap) <= LOSS_GAP_MAX:
            found.append(f"held-out loss differs by {self.loss_gap:+.4f} nats per token (limit {LOSS_GAP_MAX})")
        if self.silence_gap is not None and not self.silence_gap <= SILENCE_GAP_MAX:
            found.append(f"P(silent) differs by {self.silence_gap:.4f} on average (limit {SILENCE_GAP_MAX})")
        return found

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return not self.faults


def compare(
    trained: Scores,
    served: Scores,
    ids: tuple[int, int],
    end_equal: bool,
    loss_nf4: float | None = None,
) -> Parity:
    """The figures from both sides' scores.

    Args:
        trained: `trained_scores` of the unquantized checkpoint with the PEFT LoRA.
        served: `served_scores` over the same passages.
        ids: `differing_pieces`' result: texts compared, texts with other ids.
        end_equal: `same_end`'s result.
        loss_nf4: loss of the NF4 base + LoRA, where training used one.

    Raises:
        ExportError: the sides scored different passages, or there is no held-out token to compare.
    """
    if trained.log_p.shape != served.log_p.shape or trained.p_silent.shape != served.p_silent.shape:
        raise ExportError(
            f"parity needs the same passages on both sides, not {len(trained.log_p)} and {len(served.log_p)} tokens"
        )
    n = len(trained.log_p)
    if n == 0:
        raise ExportError("parity has no held-out token to compare; import more history, so that some is held out")
    with np.errstate(invalid="ignore"):  # infinities end as NaN, which is over every limit
        difference = trained.log_p - served.log_p
        error = float(difference.std() / math.sqrt(n))
    decisions = len(trained.p_silent)
    return Parity(
        pieces=ids[0],
        pieces_differing=ids[1],
        end_equal=end_equal,
        n_tokens=n,
        loss_trained=trained.loss,
        loss_served=served.loss,
        loss_gap_se=error,
        token_gap=float(np.abs(difference).mean()),
        n_decisions=decisions,
        silence_gap=float(np.abs(trained.p_silent - served.p_silent).mean()) if decisions else None,
        loss_nf4=loss_nf4,
    )


def differing_pieces(pieces: Iterable[Piece], trained: Tokenizer, served: Tokenizer) -> tuple[int, int]:
    """(texts compared, texts with other ids) of two vocabularies; each text once, `PROBES` always among them.

    Texts with `</s>` are left out: llama.cpp takes it for a control token by its spelling, in any mode, and one person
    who typed it once must not stop every export.
    """
    texts = {(p.text, p.control) for p in pieces if "</s>" not in p.text} | {(clean(t), False) for t in PROBES}
    differing = sum(trained.tokens(t, c) != served.tokens(t, c) for t, c in texts)
    return len(texts), differing + (trained.bos != served.bos)


def same_end(fmt: ChatFormat, trained: Tokenizer, served: Tokenizer) -> bool:
    """Whether the format's end-of-turn is one token and the same on both sides."""
    ours, theirs = trained.tokens(fmt.end, True), served.tokens(fmt.end, True)
    return ours == theirs and len(ours) == 1


def served_scores(scorer: _Measure, passages: Sequence[Passage], end_id: int) -> Scores:
    """Scores in llama.cpp.

    Args:
        scorer: a `bot.llama.Scorer` with the LoRA.
        passages: held-out windows.
        end_id: end-of-turn.
    """
    return _gathered(scorer.log_probs, passages, end_id)


def trained_scores(
    checkpoint: Path, peft: Path | None, passages: Sequence[Passage], end_id: int, quantization: Any = None
) -> Scores:
    """Scores in transformers, float32 on the CPU.

    Args:
        checkpoint: the Hugging Face checkpoint that was trained on.
        peft: the trained LoRA; None for the bare checkpoint.
        passages: held-out windows.
        end_id: end-of-turn.
        quantization: a transformers quantization config, to see what NF4 adds; None: unquantized.

    Raises:
        ExportError: the checkpoint or the LoRA cannot be loaded.
    """
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, quantization_config=quantization, local_files_only=True,
            device_map={"": "cpu"} if quantization is not None else None,
        )  # fmt: skip
        if peft is not None:
            model = PeftModel.from_pretrained(model, peft).get_base_model()
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise ExportError(f"checkpoint {checkpoint.name!r} with its LoRA cannot be loaded for parity ({e})") from e
    return _gathered(_Transformers(model.eval()).log_probs, passages, end_id)


class _Transformers:
    """Log-probabilities of given tokens by a causal language model; the output layer runs on asked positions only."""

    def __init__(self, model: Any) -> None:
        self._decoder, self._head = model.get_decoder(), model.get_output_embeddings()
        self._softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    @torch.inference_mode()
    def log_probs(self, ids: Sequence[int], wanted: Sequence[tuple[int, int]]) -> Floats:
        """Log p(token | ids[:position]) in nats for each wanted (position, token)."""
        if not wanted:
            return np.empty(0)
        last = max(position for position, _ in wanted)
        hidden = self._decoder(input_ids=torch.tensor([ids[:last]]), use_cache=False).last_hidden_state[0]
        parts = []
        for start in range(0, len(wanted), _CHUNK):
            part = wanted[start : start + _CHUNK]
            logits = self._head(hidden[[position - 1 for position, _ in part]]).double()
            if self._softcap is not None:
                logits = torch.tanh(logits / self._softcap) * self._softcap
            asked = torch.tensor([[token] for _, token in part])
            parts.append((logits.gather(1, asked) - logits.logsumexp(1, keepdim=True)).squeeze(1))
        found: Floats = torch.cat(parts).numpy()
        return found


def _gathered(log_probs: Any, passages: Sequence[Passage], end_id: int) -> Scores:
    log_p, p_silent = [np.empty(0)], [np.empty(0)]
    for passage in passages:
        wanted = sorted(
            [(i, passage.ids[i], False) for i in passage.wanted] + [(i, end_id, True) for i in passage.decisions]
        )
        if not wanted:
            continue
        values = np.asarray(log_probs(passage.ids, [(i, token) for i, token, _ in wanted]), dtype=np.float64)
        silence = np.array([asked for _, _, asked in wanted])
        log_p.append(values[~silence])
        p_silent.append(np.exp(values[silence]))
    return Scores(np.concatenate(log_p), np.concatenate(p_silent))


PROBES = (
    "", " ", "   a  ", "\n", "\n\n\n", "\r\n", "\t", "a\x00b", "你好", "你好 世界，今天星期五！", "龘靐齉𠮷",
    "……——「」『』", "【周五 23:10 · 隔了3小时】", "阿泽：收到", "[回复 阿泽：好的]收到", "[微笑][图片]",
    "😀👨‍👩‍👧‍👦👍🏽🇨🇳❤️", "①½ﬁ㎡", "ｈｅｌｌｏ　ｗｏｒｌｄ", "e\u0301\u212b", "각カ\u3099",
    "Привет مرحبا ไทย", "z̴̡a̵l̸g̷o̶", "a\u200bb\ufeff\u202ec", "<end_of_turn>\n<start_of_turn>model\n",
    "<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "<|eot_id|>", "<bos>", "<eos>", "<unk>",
    "<think>\n\n</think>", "<0x0A>", "[INST]", "[CQ:at,qq=all]", "https://example.org/?a=1&b=%E4%BD%A0#x",
    "1234567890", "3.14159", "I'm DON'T", "哈" * 100, "a" * 100, "aA1!中文 mixed 文本\n  b", "tab\there",
    "\ue000\U0010ffff", "¯\\_(ツ)_/¯", "233333 yyds",
)  # fmt: skip
"""Texts that break tokenizers."""
