"""A completion's logprobs → the candidates for its first token, among which the end of turn is looked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TOP_MIN = 5
"""With fewer candidates a missing one may be anything, and no number is made of them. OpenAI gives five at most."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One candidate.

    Args:
        id: its token id, where the server tells it.
        text: what it reads as; empty for control tokens of some servers, and where only the id is told.
        log_p: natural-log probability.
    """

    id: int | None
    text: str
    log_p: float


def alternatives(choice: dict[str, Any]) -> list[Alternative] | None:
    """The candidates, the drawn one first; None without logprobs, empty when the answer ended before its first token.

    OpenAI's completions map texts to numbers (vLLM on request `token_id:N`); llama-server lists objects with ids.
    """
    told = choice.get("logprobs")
    try:
        if not told:
            return None
        if "content" in told:
            if not told["content"]:
                return []
            first = told["content"][0]
            listed = {c["id"]: c for c in (first, *first["top_logprobs"])}
            return [Alternative(int(i), str(c["token"]), float(c["logprob"])) for i, c in listed.items()]
        if not told["tokens"]:
            return []
        drawn, log_p = told["tokens"][0], told["token_logprobs"][0]
        named = {drawn: None, **(told["top_logprobs"][0] or {})} | {drawn: log_p}
        return [_named(text, float(value)) for text, value in named.items()]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def missing(found: Sequence[Alternative]) -> float | None:
    """Probability of a token that is not among the likeliest: half of what it can be at most; None for too few.

    It is no likelier than the least likely of them, nor than what all of them leave.
    """
    if len(found) < TOP_MIN:
        return None
    likely = [math.exp(one.log_p) for one in found]
    return max(1e-6, min(*likely, 1.0 - sum(likely)) / 2)


def _named(text: str, log_p: float) -> Alternative:
    head, _, number = text.partition("token_id:")
    return Alternative(int(number), "", log_p) if not head and number.isdigit() else Alternative(None, text, log_p)
