"""What was trained against what will be served: are they the same model? The figures, and the limits they must keep.

`export.proof` measures both sides. Judged are token ids, the end of a turn, where answers stop, the template, the mean
held-out loss, P(silent), and single tokens; greedy texts are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, computed_field

from bot.errors import ExportError
from bot.prompt import ChatFormat, Piece, Tokenizer, clean
from export.probes import PROBES
from export.quantize import KINDS

LOSS_GAP_MAX = 0.03
"""Nats per token between trained and served, with the same weights. With a LoRA on a Q4_K_M Gemma 270M 0.016 was
measured, on F16 0.0001."""
PUBLISHED_FACTOR = 2
"""A merged model may lose this many times what its type costs an 8B model, on top: small models lose more."""
LEARNED_LOST_MAX = 0.5
"""Nor, beyond noise, this part of what the LoRA gained over the bare base: what Q2_K may cost a large model is all that
a small one has learned."""
SILENCE_GAP_MAX, SILENCE_GAP_MAX_EVER = 0.02, 0.1
"""Mean |ΔP(silent)|: a decision should not hang on which library asked; nor, beyond the second, on any type."""
NOISE_MAX = 0.3
"""Nats by which single tokens may scatter (standard deviation) and be taken for noise: 0.16 were measured with a LoRA
on a Q4_K_M base. What scatters more is damage, and does not excuse itself."""
TOKEN_GAP_MAX, TOKEN_GAP_MAX_QUANTIZED = 0.02, 0.25
"""Mean |Δ log p| of single tokens with the same weights on both sides. Unquantized 0.002 to 0.005 were measured; in a
quantized base 0.05 to 0.14, mostly from quantized activations, and 0.49 with the rows of q and k permuted wrongly, of
which the mean loss shows 0.035. Of a model quantized anew it is only shown."""

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
        heard: indices in `ids` of some tokens that are no labels, ascending, ≥ 1. Of words learned by heart nothing
            moves the probability; of what others say, a wrong projection does.
    """

    ids: tuple[int, ...]
    wanted: tuple[int, ...]
    decisions: tuple[int, ...] = ()
    heard: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """What one side gives over all passages.

    Args:
        log_p: of every wanted token, in order (nats).
        p_silent: at every decision, in order.
        heard: log p of every heard token, in order (nats).
    """

    log_p: Floats
    p_silent: Floats
    heard: Floats

    @property
    def all(self) -> tuple[Floats, Floats, Floats]:
        """Everything that is compared."""
        return self.log_p, self.p_silent, self.heard

    @property
    def loss(self) -> float:
        """Mean of -log p, nats per token."""
        return float(-self.log_p.mean()) if len(self.log_p) else math.nan


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What comparing ids, ends and templates found.

    Args:
        pieces: texts whose ids were compared.
        pieces_differing: those with other ids.
        end_equal: end-of-turn is one token, and the same.
        stops_differing: tokens that end an answer on one side alone.
        templates_differing: probes that the exported chat template renders otherwise than `bot.prompt`.
    """

    pieces: int
    pieces_differing: int
    end_equal: bool
    stops_differing: int = 0
    templates_differing: int = 0


class Parity(BaseModel):
    """The measured difference between what was trained and what is served."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, ser_json_inf_nan="strings")

    kind: str
    """Type of the served weights, such as Q4_K_M."""
    merged: bool
    """Whether the LoRA is in the weights; else it is applied to the base that was trained on."""
    imatrix: bool = False
    """Whether they were quantized with an importance matrix of held-out chats."""
    pieces: int
    """Texts whose ids were compared."""
    pieces_differing: int
    """Texts with other ids."""
    end_equal: bool
    """End-of-turn is one token, and the same."""
    stops_differing: int
    """Tokens that end an answer on one side alone."""
    templates_differing: int
    """Probes that the exported chat template renders otherwise."""
    n_tokens: int
    """Held-out tokens compared."""
    loss_trained: float
    """Checkpoint + PEFT LoRA, unquantized, in transformers (nats per token)."""
    loss_served: float
    """What is exported, in llama.cpp, or in transformers where it is a checkpoint (nats per token)."""
    loss_gap_se: float
    """Standard error of their difference, tokens taken as independent (nats)."""
    token_gap: float
    """Mean |Δ log p| of single tokens, heard ones among them; judged where the weights are the same (nats)."""
    n_decisions: int
    """Decision points compared."""
    silence_gap: float | None
    """Mean |ΔP(silent)|; None without decision points."""
    greedy: int = 0
    """Answers written greedily on both sides."""
    greedy_equal: int = 0
    """Those with the same words; shown, not judged: one rounding turns the rest of a text."""
    loss_base: float | None = None
    """The bare base over the same passages, where a merged model was compared with it (nats per token)."""
    loss_nf4: float | None = None
    """NF4 base + LoRA as it was trained, where it was; shown beside, not judged (nats per token)."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loss_gap(self) -> float:
        """Served less trained (nats per token)."""
        return self.loss_served - self.loss_trained

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loss_gap_published(self) -> float | None:
        """What quantizing to this type is known to cost an 8B model; None where no weight was quantized anew (nats)."""
        return KINDS[self.kind].published_nats if self.merged and self.kind in KINDS else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loss_gap_limit(self) -> float:
        """What `loss_gap` may be, up or down, beyond its own noise (nats per token).

        Without the noise 43 in 100 equal exports of twenty held-out tokens would be refused, and the same each night.
        """
        return LOSS_GAP_MAX + self._noise + PUBLISHED_FACTOR * (self.loss_gap_published or 0.0)

    @property
    def _noise(self) -> float:
        """Two standard errors of `loss_gap` (nats per token)."""
        return 2 * min(self.loss_gap_se, NOISE_MAX / math.sqrt(max(1, self.n_tokens)))

    @property
    def _learned(self) -> float | None:
        """What the LoRA gained over the bare base (nats per token); None: not measured, or nothing."""
        gained = None if self.loss_base is None else self.loss_base - self.loss_trained
        return gained if gained is not None and gained > 0 else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def learned_lost(self) -> float | None:
        """Part of that which is gone."""
        return None if self._learned is None else self.loss_gap / self._learned

    @property
    def speaks_alike(self) -> bool:
        """Whether ids, ends, stops and template are the same: what differs then is weights."""
        return self.end_equal and not (self.pieces_differing or self.stops_differing or self.templates_differing)

    @property
    def faults(self) -> list[str]:
        """What is over a limit; empty when equal. A figure that is no number is a fault."""
        found = []
        if self.pieces_differing:
            found.append(f"{self.pieces_differing} of {self.pieces} texts have other token ids")
        if not self.end_equal:
            found.append("end-of-turn is not one and the same token")
        if self.stops_differing:
            found.append(f"{self.stops_differing} tokens end an answer on one side alone")
        if self.templates_differing:
            found.append(
                f"the chat template renders {self.templates_differing} probes otherwise than they were trained"
            )
        if not abs(self.loss_gap) <= self.loss_gap_limit:
            limit = f"{self.loss_gap_limit:.3f}"
            found.append(f"held-out loss differs by {self.loss_gap:+.4f} nats per token (limit {limit})")
        if self._learned is not None and self.loss_gap - self._noise > LEARNED_LOST_MAX * self._learned:
            found.append(f"{self.learned_lost:.0%} of what was learned is gone (limit {LEARNED_LOST_MAX:.0%})")
        if self.token_gap_limit is not None and not self.token_gap <= self.token_gap_limit:
            found.append(f"single tokens differ by {self.token_gap:.4f} nats on average (limit {self.token_gap_limit})")
        if self.silence_gap is not None and not self.silence_gap <= self.silence_gap_limit:
            limit = f"{self.silence_gap_limit:.3f}"
            found.append(f"P(silent) differs by {self.silence_gap:.4f} on average (limit {limit})")
        return found

    @computed_field  # type: ignore[prop-decorator]
    @property
    def token_gap_limit(self) -> float | None:
        """What `token_gap` may be (nats); None where the weights were quantized anew."""
        if self.kind in ("F32", "F16", "BF16"):
            return TOKEN_GAP_MAX
        return None if self.merged else TOKEN_GAP_MAX_QUANTIZED

    @computed_field  # type: ignore[prop-decorator]
    @property
    def silence_gap_limit(self) -> float:
        """What `silence_gap` may be: a probability moves by no more than a quarter of its log-odds."""
        wider = PUBLISHED_FACTOR * (self.loss_gap_published or 0.0) / 4
        return min(SILENCE_GAP_MAX + wider, SILENCE_GAP_MAX_EVER)

    @property
    def as_judged(self) -> bool:
        """Whether it is as near to what was trained as a LoRA on the base must be, so that a verdict on that holds."""
        wider = PUBLISHED_FACTOR * (self.loss_gap_published or 0.0)
        near = abs(self.loss_gap) <= self.loss_gap_limit - wider
        return self.passed and near and (self.silence_gap or 0.0) <= SILENCE_GAP_MAX

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return not self.faults


def compare(
    trained: Scores,
    served: Scores,
    vocabulary: Vocabulary,
    *,
    kind: str,
    merged: bool,
    greedy: Sequence[tuple[str, str]] = (),
    loss_base: float | None = None,
    loss_nf4: float | None = None,
) -> Parity:
    """The figures from both sides' scores.

    Args:
        trained: of the unquantized checkpoint with the PEFT LoRA.
        served: over the same passages.
        vocabulary: what else was compared.
        kind: type of the served weights.
        merged: whether the LoRA is in them.
        greedy: (trained, served) texts.
        loss_base: loss of the bare base over the same passages, where it was asked.
        loss_nf4: loss of the NF4 base + LoRA, where training used one.

    Raises:
        ExportError: the sides scored different passages, or there is no held-out token to compare.
    """
    if any(len(ours) != len(theirs) for ours, theirs in zip(trained.all, served.all, strict=True)):
        raise ExportError(
            f"parity needs the same passages on both sides, not {len(trained.log_p)} and {len(served.log_p)} tokens"
        )
    n = len(trained.log_p)
    if n == 0:
        raise ExportError("parity has no held-out token to compare; import more history, so that some is held out")
    with np.errstate(invalid="ignore"):  # infinities end as NaN, which is over every limit
        difference = trained.log_p - served.log_p
        heard = trained.heard - served.heard
        error = float(difference.std() / math.sqrt(n))
    decisions = len(trained.p_silent)
    return Parity(
        kind=kind,
        merged=merged,
        pieces=vocabulary.pieces,
        pieces_differing=vocabulary.pieces_differing,
        end_equal=vocabulary.end_equal,
        stops_differing=vocabulary.stops_differing,
        templates_differing=vocabulary.templates_differing,
        n_tokens=n,
        loss_trained=trained.loss,
        loss_served=served.loss,
        loss_gap_se=error,
        token_gap=float(np.abs(np.concatenate([difference, heard])).mean()),
        n_decisions=decisions,
        silence_gap=float(np.abs(trained.p_silent - served.p_silent).mean()) if decisions else None,
        greedy=len(greedy),
        greedy_equal=sum(ours == theirs for ours, theirs in greedy),
        loss_base=loss_base,
        loss_nf4=loss_nf4,
    )


def differing_pieces(pieces: Iterable[Piece], trained: Tokenizer, served: Tokenizer) -> tuple[int, int]:
    """(texts compared, texts with other ids) of two vocabularies; each text once, `PROBES` always among them."""
    texts = {(p.text, p.control) for p in pieces} | {(clean(t), False) for t in PROBES}
    differing = sum(trained.tokens(t, c) != served.tokens(t, c) for t, c in texts)
    return len(texts), differing + (trained.bos != served.bos)


def same_end(fmt: ChatFormat, trained: Tokenizer, served: Tokenizer) -> bool:
    """Whether the format's end-of-turn is one token and the same on both sides."""
    ours, theirs = trained.tokens(fmt.end, True), served.tokens(fmt.end, True)
    return ours == theirs and len(ours) == 1


def scores(model: _Measure, passages: Sequence[Passage], end_id: int) -> Scores:
    """One side's scores.

    Args:
        model: a `bot.scorer.Scorer` with the LoRA or the merged model, or an `export.reference.Reference`.
        passages: held-out windows.
        end_id: end-of-turn.
    """
    found: tuple[list[Floats], ...] = ([np.empty(0)], [np.empty(0)], [np.empty(0)])
    for passage in passages:
        ids = passage.ids
        wanted = sorted(
            [(i, ids[i], 0) for i in passage.wanted]
            + [(i, end_id, 1) for i in passage.decisions]
            + [(i, ids[i], 2) for i in passage.heard]
        )
        if not wanted:
            continue
        values = np.asarray(model.log_probs(ids, [(i, token) for i, token, _ in wanted]), dtype=np.float64)
        kinds = np.array([kind for _, _, kind in wanted])
        for kind, parts in enumerate(found):
            parts.append(values[kinds == kind])
    log_p, silence, heard = (np.concatenate(parts) for parts in found)
    return Scores(log_p, np.exp(silence), heard)
