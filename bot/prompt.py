"""Messages → prompt pieces. The one renderer, for training and for answering.

A scene's messages become *exchanges*: what others said in one burst, and what the person said to it (nothing: a
silence). Exchanges become pieces `(text, control, trained)`; control pieces are tokenized with special tokens parsed,
everything people wrote never is, so a typed `<|im_end|>` stays plain text. Rendering is prefix-stable: what was
rendered up to a decision point is a prefix of everything rendered later.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from bot.config import Conversation
from bot.message import Message, Origin, Scene

_WEEKDAYS = "一二三四五六日"
_NAME_MAX, _QUOTE_MAX = 16, 24
_IN_MARKER = re.compile(r"(?<=<)(?=[|/｜A-Za-z_])")
"""Behind the `<` of what a vocabulary may hold as one token."""
_MEDIA = re.compile(r"(?:\[(?:图片|语音|视频|聊天记录|卡片|位置|未知|(?:文件|卡片|图片):[^\[\]]*)\]\s*)+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text tokenized by itself.

    Args:
        text: NFC; without U+2581, which SentencePiece vocabularies read as a space.
        control: written by us: special tokens are parsed. Otherwise written by people: never parsed.
        trained: the loss counts its tokens.
    """

    text: str
    control: bool = False
    trained: bool = False


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A chat template as data. Each field is a control text around a part; `end` closes the assistant's turn.

    Args:
        name: as recorded in a version's manifest.
        system_open: before the system prompt.
        system_close: after it.
        first_user_open: before the first user turn, where the system prompt has no turn of its own.
        user_open: before every other user turn.
        user_close: after a user turn.
        assistant_open: the assistant header.
        end: end of turn: one token, the only trained token of a silence.
        after: what follows `end` before the next turn.
    """

    name: str
    system_open: str
    system_close: str
    first_user_open: str
    user_open: str
    user_close: str
    assistant_open: str
    end: str
    after: str


def _chatml(name: str, assistant_open: str) -> ChatFormat:
    user = "<|im_start|>user\n"
    return ChatFormat(
        name, "<|im_start|>system\n", "<|im_end|>\n", user, user, "<|im_end|>\n", assistant_open, "<|im_end|>", "\n"
    )


FORMATS = {
    f.name: f
    for f in (
        _chatml("chatml", "<|im_start|>assistant\n"),
        # Qwen3 answers with an empty think block when thinking is off; it stands in every assistant header.
        _chatml("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        # Gemma has no system turn: the system prompt opens the first user turn.
        ChatFormat(
            "gemma", "<start_of_turn>user\n", "\n\n", "", "<start_of_turn>user\n", "<end_of_turn>\n",
            "<start_of_turn>model\n", "<end_of_turn>", "\n",
        ),
        ChatFormat(
            "llama3", "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>",
            *("<|start_header_id|>user<|end_header_id|>\n\n",) * 2, "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", "",
        ),
    )
}  # fmt: skip
"""Chat formats by name."""


def format_for(architecture: str, vocabulary: Callable[[str], bool]) -> ChatFormat | None:
    """The format of a base, from GGUF's `general.architecture` and a test whether a text is one control token.

    None when no format fits: such a base is refused before training.
    """
    preferred = {"qwen3": ["qwen3"], "qwen3moe": ["qwen3"]}.get(architecture, [])
    for name in (*preferred, "gemma", "llama3", "chatml"):
        fmt = FORMATS[name]
        markers = [w for w in ("<|im_start|>", "<start_of_turn>", "<|start_header_id|>") if w in fmt.user_open]
        if all(vocabulary(w) for w in [fmt.end, *markers]):
            return fmt
    return None


class Tokenizer(Protocol):
    """What `encode` needs of a vocabulary."""

    bos: int | None
    """Id put once at the very front; None when the model has none."""

    def tokens(self, text: str, control: bool) -> list[int]:
        """Ids of a text; nothing added in front.

        Special tokens are parsed if and only if `control`; else the text is people's, and `broken_up` first.
        """
        ...


def broken_up(text: str) -> list[str]:
    """What people wrote, cut inside every marker (`<|` + `im_end|>`); the parts are encoded one by one.

    Not to parse special tokens is not enough: Hugging Face still finds the added tokens that are not special (of Qwen
    3 `<think>` and `<tool_call>`), llama.cpp those a GGUF calls user-defined, merges make `</s>` one token again, and
    llama.cpp takes `</s>` and `<|fim_pad|>` for special by their spelling, in any vocabulary: other ids on each side.
    """
    return _IN_MARKER.split(text)


def encode(pieces: Iterable[Piece], tokenizer: Tokenizer, *, bos: bool = True) -> tuple[list[int], list[bool]]:
    """Token ids of pieces, and for each whether it is trained. Pieces are encoded one by one, BOS once."""
    ids: list[int] = []
    trained: list[bool] = []
    if bos and tokenizer.bos is not None:
        ids.append(tokenizer.bos)
        trained.append(False)
    for piece in pieces:
        new = tokenizer.tokens(piece.text, piece.control)
        ids += new
        trained += [piece.trained] * len(new)
    return ids, trained


@dataclass(slots=True)
class Exchange:
    """One burst of others' bubbles and what the person said to it.

    Args:
        opened: when its conversation began, if this exchange opens one.
        gap: quiet time before that, None at the very beginning.
        heard: the burst, oldest first; empty when the person spoke first.
        said: the person's or the twin's bubbles; empty is a silence, or not decided yet.
        prompt: what a planned message is about, where the twin is to speak first; only there, never in training.
    """

    opened: datetime | None = None
    gap: timedelta | None = None
    heard: list[Message] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    prompt: str = ""

    @property
    def first(self) -> Message:
        """The first message."""
        return (self.heard or self.said)[0]

    @property
    def decided_at(self) -> datetime:
        """When the burst ended: the decision point."""
        return self.heard[-1].time if self.heard else self.said[0].time


def spoken_by(message: Message, people: frozenset[str]) -> bool:
    """Whether a message stands on the assistant's side: the person's own, or a twin's.

    In their private chat with the bot's account the imitated person is the other side.
    """
    if message.origin is Origin.TWIN:
        return True
    return message.sender_id in people and not (message.scene.private and message.sender_id == message.scene.id)


def exchanges(messages: Iterable[Message], people: frozenset[str], rules: Conversation) -> list[Exchange]:
    """Cut a scene's messages, in order, into exchanges.

    Args:
        messages: one scene's, oldest first, without recalled and system ones.
        people: the imitated person's QQ numbers.
        rules: gaps and caps.
    """
    found: list[Exchange] = []
    previous: Message | None = None
    for message in messages:
        ours = spoken_by(message, people)
        gap = message.time - previous.time if previous else None
        if opens(message, previous, people, rules):
            found.append(Exchange(opened=message.time, gap=gap))
        current = found[-1]
        if ours:
            current.said.append(message)
        else:
            if current.heard or current.said:
                since = (message.time - current.heard[-1].time).total_seconds() if current.heard else 0.0
                if current.said or since >= rules.burst_gap_s or len(current.heard) >= rules.burst_cap:
                    current = Exchange()
                    found.append(current)
            current.heard.append(message)
        previous = message
    return found


def opens(message: Message, previous: Message | None, people: frozenset[str], rules: Conversation) -> bool:
    """Whether a message begins a conversation, given the one before it in the scene (None: there is none)."""
    if previous is None:
        return True
    gap_s = (message.time - previous.time).total_seconds()
    if gap_s <= rules.conversation_gap_s:
        return False
    late_answer = message.scene.private and spoken_by(message, people) and not spoken_by(previous, people)
    return not late_answer or gap_s > rules.answer_within_s


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders one scene for one persona.

    Args:
        format: chat format of the base.
        system: the persona's system prompt, with the scene's line.
        zone: the person's time zone.
        group: whether user lines carry `昵称：`.
    """

    format: ChatFormat
    system: str
    zone: ZoneInfo
    group: bool

    def opening(self) -> list[Piece]:
        """The system prompt."""
        return [
            Piece(self.format.system_open, control=True),
            Piece(clean(self.system)),
            Piece(self.format.system_close, control=True),
        ]

    def heard(self, exchange: Exchange, quoted: Callable[[Message], Message | None], *, first: bool) -> list[Piece]:
        """The user turn and the open assistant header: what a decision is taken on.

        Args:
            exchange: the burst.
            quoted: the message another one quotes, or None.
            first: whether this is the first turn after the system prompt.
        """
        lines = [] if exchange.opened is None else [self._header(exchange.opened, exchange.gap)]
        lines += [f"（{exchange.prompt}）"] if exchange.prompt else []
        lines += [self._line(m, quoted(m)) for m in exchange.heard]
        # A line a piece: no token spans two bubbles, so a growing burst takes back nothing but the header.
        turn = [Piece(clean(f"\n{line}" if number else line)) for number, line in enumerate(lines)]
        fmt = self.format
        front = [Piece(fmt.first_user_open if first else fmt.user_open, control=True)]
        return [
            *(p for p in front if p.text),
            *turn,
            Piece(fmt.user_close, control=True),
            Piece(fmt.assistant_open, control=True),
        ]

    def said(self, exchange: Exchange, *, trained: bool, but: Collection[str] = ()) -> list[Piece]:
        """The assistant's turn, empty for a silence. Twin bubbles are never trained, whatever `trained` says.

        Args:
            exchange: what was said.
            trained: whether the loss counts it, its end of turn included.
            but: ids of bubbles of media alone that it does not count.
        """
        pieces: list[Piece] = []
        before: tuple[bool, bool] | None = None
        for message in exchange.said:
            text, human = clean(message.text), message.origin is Origin.HUMAN
            counts = trained and human and message.id not in but
            # Cut at speakers and media, trained or not: the ids must not depend on what is trained.
            kind = human, media_alone(text)
            if kind == before:
                pieces[-1] = Piece(f"{pieces[-1].text}\n{text}", trained=counts)
            else:
                pieces.append(Piece(f"\n{text}" if pieces else text, trained=counts))
            before = kind
        human_end = not exchange.said or exchange.said[-1].origin is Origin.HUMAN
        pieces.append(Piece(self.format.end, control=True, trained=trained and human_end))
        if self.format.after:
            pieces.append(Piece(self.format.after, control=True))
        return pieces

    def _header(self, opened: datetime, gap: timedelta | None) -> str:
        local = opened.astimezone(self.zone)
        quiet = "" if gap is None else f" · 隔了{_quiet(gap)}"
        return f"【周{_WEEKDAYS[local.weekday()]} {local:%H:%M}{quiet}】"

    def _line(self, message: Message, quoted: Message | None) -> str:
        prefix = ""
        if quoted is not None:
            words = quoted.text if len(quoted.text) <= _QUOTE_MAX else quoted.text[:_QUOTE_MAX] + "…"
            prefix = f"[回复 {short_name(quoted.sender_name)}：{words}]"
        line = prefix + message.text.replace("\n", "↵")
        return f"{short_name(message.sender_name)}：{line}" if self.group else line


def render(renderer: Renderer, history: Sequence[Exchange], quoted: Callable[[Message], Message | None]) -> list[Piece]:
    """Pieces of a window that ends at a decision point: the last exchange's assistant header is open."""
    pieces = renderer.opening()
    for number, exchange in enumerate(history):
        pieces += renderer.heard(exchange, quoted, first=number == 0)
        if number < len(history) - 1:
            pieces += renderer.said(exchange, trained=False)
    return pieces


def system_of(system_prompt: str, scene: Scene, name: str) -> str:
    """The whole system prompt in a scene: the persona's, and where it is.

    Args:
        system_prompt: the persona's.
        scene: where.
        name: of the group, or of who is on the other side; empty where it is not known.
    """
    return f"{system_prompt}\n{scene_line(scene, name)}"


def scene_line(scene: Scene, name: str) -> str:
    """What the system prompt says of where it is."""
    if scene.private:
        return f"现在是你和{short_name(name)}的QQ私聊。" if name else "现在是QQ私聊。"
    return f"现在是QQ群「{short_name(name)}」。" if name else "现在是QQ群聊。"


def short_name(name: str) -> str:
    """A nickname fit for a line: one line, no colon, at most 16 characters."""
    flat = " ".join(name.replace("：", " ").replace(":", " ").split())
    return flat[:_NAME_MAX] or "某人"


def media_alone(text: str) -> bool:
    """Whether a bubble is nothing but pictures, voices, files or cards; a sticker is none of them."""
    return text.startswith("[") and _MEDIA.fullmatch(text) is not None


def clean(text: str) -> str:
    """NFC, and U+2581 as `_`: then Hugging Face's and llama.cpp's ids are equal (U+2581 is SentencePiece's space)."""
    return unicodedata.normalize("NFC", text).replace("▁", "_")


def _quiet(gap: timedelta) -> str:
    minutes = int(gap.total_seconds() // 60)
    if minutes < 60:
        return f"{minutes}分钟"
    if minutes < 24 * 60:
        return f"{minutes // 60}小时"
    return f"{minutes // (24 * 60)}天"
