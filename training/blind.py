"""A persona's held-out moments → pairs of what the person said and what the twin says there, for `bot.blind`."""

import random
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bot.archive import Archive
from bot.blind import BlindTest, Trial
from bot.config import Settings
from bot.errors import TrainingError
from bot.message import Message
from bot.persona import Persona
from bot.prompt import FORMATS, spoken_by
from training import answers, corpus
from training.answers import Question
from training.samples import Split

_UNSAYABLE = ("[图片", "[语音", "[视频", "[文件", "[聊天记录", "[卡片", "[动画表情")
"""The twin has none to send: such an answer would give itself away."""
_CONTEXT = 6
"""Bubbles shown before the burst."""


def prepare(settings: Settings, persona: Persona, base: Path, base_sha256: str, pairs: int) -> BlindTest:
    """Ask the serving version at held-out moments.

    Args:
        settings: bot.toml.
        persona: whose.
        base: the base GGUF.
        base_sha256: its hash.
        pairs: at most so many, spread over the history.

    Raises:
        TrainingError: no version serves, or too little is held out to ask about.
        EngineError: the model cannot be evaluated.
        ArchiveError: the store cannot be read.
    """
    version = persona.version
    if version is None:
        raise TrainingError(f"persona {persona.name!r} has no version to test; train one with `twin night`")
    archive = Archive(settings.archive_url)
    try:
        spec = persona.spec
        learned = corpus.build(
            archive, spec.people, spec.names, settings.conversation, cleaning=settings.corpus
        )  # fmt: skip
    finally:
        archive.close()
    fmt = FORMATS[version.manifest.format]
    every = answers.questions(learned, fmt, persona.system_prompt, Split.TEST)
    masked = {
        (str(part.scene), part.exchanges[place].heard[-1].id)
        for part in learned.scenes for place in part.masked if part.exchanges[place].heard
    }  # fmt: skip
    fit = answers.spread([q for q in every if q.key not in masked and not any(x in q.real for x in _UNSAYABLE)], pairs)
    if not fit:
        raise TrainingError(
            f"nothing is held out of what {persona.name!r} learned; import more history with `twin import`"
        )
    drawn = secrets.randbits(32)
    said = answers.answer(
        version.model or base, base_sha256, version.lora, fmt, fit, persona.spec.sampling, settings.engine, drawn
    )
    trials, equal = paired(fit, [answer.text for answer in said], learned.people, random.Random(drawn))
    if not trials:
        raise TrainingError(
            f"version {version.name!r} said nothing that the person had not: {equal} of {len(fit)} answers were "
            "theirs, the others empty; look at it with `twin eval`"
        )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return BlindTest(secrets.token_hex(6), persona.name, version.name, created, tuple(trials), equal)


def paired(
    asked: Sequence[Question], said: Sequence[str], people: frozenset[str], rng: random.Random
) -> tuple[list[Trial], int]:
    """Pairs of real answers and the twin's, and how often both are equal: no pair, since nobody could tell them apart.

    Args:
        asked: moments.
        said: what the twin says there; where that is nothing there is no pair.
        people: ids of the person.
        rng: draws which comes first.
    """
    keys = {q.key for q in asked}
    both = [(q, twin) for q, twin in zip(asked, said, strict=True) if twin.strip()]
    differ = [(q, twin) for q, twin in both if twin != q.real]
    return [_trial(q, twin, rng.randrange(2), people, keys) for q, twin in differ], len(both) - len(differ)


def _trial(question: Question, twin: str, real: int, people: frozenset[str], keys: set[tuple[str, str]]) -> Trial:
    def line(message: Message) -> str:
        name = "我" if spoken_by(message, people) else message.sender_name or "对方"
        return f"{name}：{message.text}"

    before: list[Message] = []
    for e in question.history[:-1]:
        # What was said at another pair's moment is that pair's key.
        asked = bool(e.heard) and (question.scene, e.heard[-1].id) in keys
        before = [] if asked else [*before, *e.heard, *e.said]
    context = [line(m) for m in (*before[-_CONTEXT:], *question.history[-1].heard)]
    options = (question.real, twin) if real == 0 else (twin, question.real)
    return Trial(tuple(context), options, real)
