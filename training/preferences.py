"""The owner's corrections → pairs of answers at the same prompt: what was wanted, and what was rejected.

The prompt is rendered as training and the live twin render it, up to the very message that was decided on, and a pair
belongs to the split of its conversation: what the gate judges by is not trained here either.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from bot.archive import Archive
from bot.config import Cleaning
from bot.corrections import Correction
from bot.message import Message, Origin, Scene
from bot.prompt import ChatFormat, Exchange, Piece, Renderer, Tokenizer, encode
from bot.shown import as_shown
from training import corpus
from training.answers import Question
from training.corpus import Corpus, SceneCorpus
from training.samples import Split, newest_of, renderer_for, split_at


@dataclass(frozen=True, slots=True)
class Pair:
    """One corrected decision as token ids.

    Args:
        prompt: BOS, system prompt, exchanges, the open assistant header.
        chosen: what should have been said, end of turn included (alone: silence); None where nobody said.
        rejected: what was said, end of turn included.
        split: of its conversation.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...] | None
    rejected: tuple[int, ...]
    split: Split


def pairs(
    archive: Archive,
    corrected: Iterable[Correction],
    learned: Corpus,
    tokenizer: Tokenizer,
    fmt: ChatFormat,
    system_prompt: str,
    max_length: int,
    until: datetime | None = None,
    cleaning: Cleaning = Cleaning(),  # noqa: B008 - frozen
    *,
    newest: datetime | None = None,
    stickers: Mapping[str, str] = {},
) -> list[Pair]:
    """Pairs of one persona's corrections, oldest first.

    Left out are corrections whose message is gone, and answers that equal what was wanted or fill a whole window.

    Args:
        archive: the message store.
        corrected: from `bot.corrections.current`.
        learned: the persona's corpus: whose words are the assistant's, gaps, time zone.
        tokenizer: the base's vocabulary.
        fmt: chat format of the base.
        system_prompt: the persona's.
        max_length: tokens of prompt and answer at most.
        until: messages after this are not seen.
        cleaning: what is shown.
        newest: conversations that began at this moment or later wait, as in `training.samples.windows`.
        stickers: names of the sticker library by key (`bot.stickers.names`).

    Raises:
        ArchiveError: the store cannot be read.
    """
    scenes: dict[Scene, SceneCorpus] = {}
    found = []
    for correction in corrected:
        if correction.scene not in scenes:
            scenes[correction.scene] = corpus.of_scene(
                archive, correction.scene, learned.people, learned.rules, until, cleaning, stickers
            )
        part = scenes[correction.scene]
        place = next((n for n, e in enumerate(part.exchanges) for m in e.heard if m.id == correction.on), None)
        if place is not None:
            renderer = renderer_for(part, learned, fmt, system_prompt)
            split = split_at(part, place, newest_of(part, newest))
            pair = _pair(correction, part, place, renderer, tokenizer, max_length, cleaning, split)
            found += [pair] if pair is not None else []
    return found


def _pair(
    correction: Correction, part: SceneCorpus, place: int, renderer: Renderer, tokenizer: Tokenizer, max_length: int,
    cleaning: Cleaning, split: Split,
) -> Pair | None:  # fmt: skip
    exchange = part.exchanges[place]
    last = next(n for n, m in enumerate(exchange.heard) if m.id == correction.on)
    asked = replace(exchange, heard=exchange.heard[: last + 1], said=[])

    def ids(bubbles: Sequence[str]) -> tuple[int, ...]:
        seen = [as_shown(m, cleaning) for m in _said(asked.heard[-1], bubbles)]
        tokens, trained = encode(renderer.said(Exchange(said=seen), trained=True), tokenizer, bos=False)
        return tuple(t for t, counts in zip(tokens, trained, strict=True) if counts)

    wanted = _wanted(correction, part, place)
    chosen, rejected = None if wanted is None else ids(wanted), ids(correction.rejected)
    room = max_length - max(len(rejected), len(chosen or ())) - 1
    if chosen == rejected or room < max_length // 4:
        return None

    def count(pieces: Sequence[Piece]) -> int:
        return len(encode(pieces, tokenizer, bos=False)[0])

    history = (*part.exchanges[:place], asked)
    question = Question(str(part.scene), renderer, history, part.quoted, "", "")
    prompt, _ = encode(question.pieces(count, room), tokenizer)
    return Pair(tuple(prompt), chosen, rejected, split)


def _wanted(correction: Correction, part: SceneCorpus, place: int) -> tuple[str, ...] | None:
    """What should have been said: as the owner told it, else as the person then said it, if that may be learned."""
    if correction.wanted is not None:
        return correction.wanted
    said = part.learned(part.exchanges[place])
    themselves = said and place not in part.masked and all(m.origin is Origin.HUMAN for m in said)
    return tuple(m.text for m in said) if themselves else None


def _said(heard: Message, bubbles: Sequence[str]) -> list[Message]:
    """Bubbles as the person's messages, which is how labels are rendered."""
    return [replace(heard, text=text, origin=Origin.HUMAN, reply_to=None, mentions=()) for text in bubbles]
