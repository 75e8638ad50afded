"""The bare base and any personas, asked the same with the same seeds: Markdown and one HTML page to read side by side.

Every prompt is the first message of a private chat at a fixed moment, rendered as live. Nothing is stored or learned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from jinja2 import Environment

from bot.engine import ReplyEngine, Request, Voice
from bot.errors import ConfigError, PersonaError
from bot.message import Message, Origin, Scene
from bot.persona import Persona, Sampling
from bot.prompt import FORMATS, ChatFormat, Exchange, Renderer, render, system_of
from bot.reply import tidy

SHIPPED = Path(__file__).with_name("prompts.zh.txt")
"""Twenty-five prompts of five kinds."""
BASE = "base"
"""Name of the bare base among personas; it gets the first one's system prompt."""
MORE = "多说几句"
"""What is asked after an answer that is too short."""
_SCENE, _FRIEND, _ACCOUNT = Scene("private", "1"), "朋友", "2"
_WHEN = datetime(2026, 1, 9, 20, 0)
"""A Friday evening: prompts hold weekday and hour."""
_PAGE = Path(__file__).with_name("compare.html")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is said to everyone, and what kind of talk it is."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of them said.

    Args:
        text: bubbles, joined by line breaks.
        p_silent: probability that nothing would have been said.
        short: whether it is shorter than asked for.
        more: the answer to "say more", None where that was not asked.
    """

    text: str
    p_silent: float
    short: bool
    more: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers side by side.

    Args:
        settings: what is told on top, by name.
        speakers: column heads.
        rows: a prompt and an answer of each speaker.
    """

    settings: dict[str, str]
    speakers: tuple[str, ...]
    rows: tuple[tuple[Prompt, tuple[Answer, ...]], ...]


def prompts(file: Path) -> list[Prompt]:
    """Prompts of a text file: one a line, `# …` names the kind of those below.

    Raises:
        ConfigError: there is no such text file, or no prompt in it.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"prompts {str(file)!r} cannot be read ({e}); give a UTF-8 text file, a prompt a line") from e
    found, kind = [], ""
    for line in map(str.strip, lines):
        if line.startswith("#"):
            kind = line.lstrip("#").strip()
        elif line:
            found.append(Prompt(kind, line))
    if not found:
        raise ConfigError(f"prompts {str(file)!r} holds no prompt; write one a line, `# …` above names their kind")
    return found


def speakers(personas: Sequence[Persona], names: Sequence[str]) -> list[Persona]:
    """Personas in the order of their names, the bare base with the first one's system prompt.

    Args:
        personas: those named, without the base; at least one.
        names: as given, `base` among them or not.

    Raises:
        PersonaError: no version of one that was trained verifies; the bare base does not speak in its name.
    """
    if refused := [p.refused for p in personas if p.version is None and p.refused is not None]:
        raise PersonaError(refused[0])
    bare = replace(personas[0], name=BASE, version=None, refused=None, prompt=personas[0].system_prompt)
    rest = iter(personas)
    return [bare if name == BASE else next(rest) for name in names]


async def compare(
    engine: ReplyEngine, who: Sequence[Persona], asked: Sequence[Prompt], sampling: Sampling, seed: int,
    *, short_chars: int, expand: bool, zone: ZoneInfo, told: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[tuple[Prompt, tuple[Answer, ...]], ...]:  # fmt: skip
    """Ask everyone everything.

    Args:
        engine: the model.
        who: the speakers.
        asked: the prompts.
        sampling: how words are drawn, the same for all.
        seed: of the first prompt; each further one has the next number.
        short_chars: answers with fewer characters, blanks not counted, are too short.
        expand: ask those once more.
        zone: whose clock stands in the prompt.
        told: how many answers are there, of how many.

    Raises:
        EngineError: a model cannot be evaluated.
    """
    rows: list[list[Answer]] = [[] for _ in asked]
    for number, persona in enumerate(who):  # one after another: a merged persona is a model of its own to load
        for place, prompt in enumerate(asked):
            answer = await _answer(engine, persona, prompt, sampling, seed + place, short_chars, zone, expand=expand)
            rows[place].append(answer)
            told(number * len(asked) + place + 1, len(who) * len(asked))
    return tuple((prompt, tuple(row)) for prompt, row in zip(asked, rows, strict=True))


async def _answer(
    engine: ReplyEngine, persona: Persona, prompt: Prompt, sampling: Sampling, seed: int, short_chars: int,
    zone: ZoneInfo, *, expand: bool,
) -> Answer:  # fmt: skip
    version = persona.version
    fmt = FORMATS[version.manifest.format] if version else engine.format
    voice = Voice(
        f"{persona.name}/{version.name if version else BASE}", version.lora if version else None, fmt,
        version.model if version else None,
    )  # fmt: skip
    when = _WHEN.replace(tzinfo=zone)
    first = Exchange(opened=when, heard=[_message("q1", prompt.text, when, Origin.HUMAN)])
    text, p_silent = await _said(engine, persona, voice, fmt, [first], sampling, seed, zone)
    short = len("".join(text.split())) < short_chars
    more = None
    if short and expand:
        said = [_message(f"a{n}", b, when, Origin.TWIN) for n, b in enumerate(text.split("\n")) if b]
        again = Exchange(heard=[_message("q2", MORE, when, Origin.HUMAN)])
        history = [replace(first, said=said), again]
        more, _ = await _said(engine, persona, voice, fmt, history, sampling, seed, zone)
    return Answer(text, p_silent, short, more)


async def _said(
    engine: ReplyEngine, persona: Persona, voice: Voice, fmt: ChatFormat, history: Sequence[Exchange],
    sampling: Sampling, seed: int, zone: ZoneInfo,
) -> tuple[str, float]:  # fmt: skip
    renderer = Renderer(fmt, system_of(persona.system_prompt, _SCENE, _FRIEND), zone, group=False)
    pieces = render(renderer, history, lambda _: None)
    await engine.measure(voice)
    request = Request(f"compare|{persona.name}", voice, pieces, sampling, seed)
    p_silent = await engine.p_silent(request)
    bubbles = [tidy(bubble) async for bubble in engine.bubbles(request)]
    return "\n".join(b for b in bubbles if b), p_silent


def _message(message_id: str, text: str, when: datetime, origin: Origin) -> Message:
    sender, name = (_SCENE.id, _FRIEND) if origin is Origin.HUMAN else (_ACCOUNT, "")
    return Message(message_id, _SCENE, sender, name, when, text, origin)


def markdown(found: Comparison) -> str:
    """The comparison as Markdown: settings, then a table for each kind of prompt."""
    lines = ["# 同题对比", "", *(f"- {name}：{_cell(value)}" for name, value in found.settings.items())]
    for kind in dict.fromkeys(prompt.kind for prompt, _ in found.rows):
        lines += ["", f"## {_cell(kind) or '其他'}", "", _row(("问", *map(_cell, found.speakers)))]
        lines.append(_row(["---"] * (len(found.speakers) + 1)))
        for prompt, answers in found.rows:
            if prompt.kind == kind:
                lines.append(_row((_cell(prompt.text), *map(_shown, answers))))
    return "\n".join(lines) + "\n"


def page(found: Comparison) -> str:
    """The comparison as one HTML page without anything from elsewhere; what models said is escaped."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE.read_text("utf-8"))
    return template.render(found=found, kinds=list(dict.fromkeys(prompt.kind for prompt, _ in found.rows)), more=MORE)


def _shown(answer: Answer) -> str:
    mark = "**（太短）** " if answer.short else ""
    more = "" if answer.more is None else f"<br>*再问「{MORE}」：* {_cell(answer.more) or '（没说）'}"
    return f"{mark}{_cell(answer.text) or '（没说）'}{more}<br>沉默 {answer.p_silent:.0%}"


def _cell(text: str) -> str:
    """Text that stays in its cell: no markup of its own."""
    safe = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return "".join(f"\\{c}" if c in "`*_[]" else c for c in safe).replace("\n", " / ")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
