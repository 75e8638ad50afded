"""A judge model behind an OpenAI-compatible endpoint: character and knowledge of a role, 1 to 10.

The recipe of the role-play benchmarks (RoleLLM, CharacterEval): a stronger model reads the role's description, what was
said to it and its answer. All of it stands in the user's message of a chat: a server with a chat format that has no
system message drops one without a word (Gemma's in llama_cpp.server), and some servers have no plain completions. Used
only where `[gate] judge_url` names one: what is asked leaves for that server.
"""

import asyncio
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from bot.completions import Completions, Named
from bot.errors import EngineError
from training.likeness.figure import Figure, mean_figure

QUESTIONS = {
    "character": "这句回答的语气、口吻和性格，有多像这个角色？",
    "knowledge": "这句回答和角色的身份、经历、知道的事情，有多相符？",
}
"""What is asked of each answer, by the figure's name."""
TIMEOUT_S = 60.0
_NAMED = Named(
    "[gate] judge_url", "[gate] judge_model", "TWIN__GATE__JUDGE_API_KEY", "the judge's seconds", "the judge's seconds",
    "the persona's prompt and one exchange",
)  # fmt: skip
_SCORE = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Case:
    """What is judged: the role in words, what was said to it, its answer."""

    role: str
    heard: str
    said: str


def scores(url: str, api_key: str | None, model: str, cases: Sequence[Case]) -> dict[str, list[float | None]]:
    """`judged` by an endpoint of its own; raises EngineError."""

    async def run() -> dict[str, list[float | None]]:
        client = Completions(url, api_key, TIMEOUT_S, TIMEOUT_S, _NAMED)
        try:
            return await judged(client, model, cases)
        finally:
            await client.close()

    return asyncio.run(run())


async def judged(client: Completions, model: str, cases: Sequence[Case]) -> dict[str, list[float | None]]:
    """Scores by question; None where the judge's answer held no number from 1 to 10.

    Args:
        client: of the endpoint.
        model: the judge's name there.
        cases: what is judged.

    Raises:
        EngineError: the server cannot be reached or refuses.
    """
    found: dict[str, list[float | None]] = {}
    for name, question in QUESTIONS.items():
        found[name] = []
        for case in cases:
            messages = [{"role": "user", "content": prompt(case, question)}]
            told = await client.chat({"model": model, "messages": messages, "temperature": 0})
            found[name].append(score(told.text))
    if cases and not any(s is not None for scores in found.values() for s in scores):
        raise EngineError(f"judge model {model!r} answered no question with a number; set another [gate] judge_model")
    return found


def prompt(case: Case, question: str) -> str:
    """What the judge is asked."""
    return (
        f"角色：\n{case.role}\n\n有人对角色说：\n{case.heard}\n\n角色回答：\n{case.said}\n\n"
        f"问题：{question}\n只写一个 1 到 10 的整数，10 最像。"
    )


def score(text: str) -> float | None:
    """The first number of an answer, what was thought before it left out, if it is one from 1 to 10."""
    found = _SCORE.search(text.rpartition("</think>")[2])
    value = int(found.group()) if found else 0
    return float(value) if 1 <= value <= 10 else None


def figures(scores: dict[str, list[float | None]], clusters: Sequence[Hashable]) -> dict[str, Figure]:
    """Mean score of each question over the answers that got one."""
    found = {}
    for name, each in scores.items():
        kept = [(s, c) for s, c in zip(each, clusters, strict=True) if s is not None]
        found[name] = mean_figure([s for s, _ in kept], [c for _, c in kept])
    return {name: figure for name, figure in found.items() if figure is not None}
