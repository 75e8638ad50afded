"""A corpus → the same as a language model judged it: answers of low score masked, questions written, fragments joined.

`twin corpus clean --model` asks (`samples`); wherever a corpus is built, what was said is used (`cleaned`), and only
that: no night waits for a model. What the model sees is what the twin's own would: the one renderer's text, redacted.
Nothing it says replaces a word of the person's: it scores, it numbers the bubbles that go together, and what it writes
stands where others speak and is never trained.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise

from bot.config import Settings
from bot.message import Message, Origin
from bot.prompt import FORMATS, Exchange, Piece, Renderer, media_alone
from bot.shown import as_shown
from training import clean, pairing
from training.corpus import Corpus, SceneCorpus
from training.judge import Sample, fits
from training.samples import renderer_for
from training.taskwords import TASKS, Task, Words
from training.verdicts import FILE, Verdicts

SCORES = range(1, 6)
_BEFORE = 6
"""Lines told of what went before an answer that has no question."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a place of the corpus.

    Args:
        part: number of the scene.
        place: number of its exchange.
        sample: the question.
    """

    part: int
    place: int
    sample: Sample


def tasks(settings: Settings) -> list[Task]:
    """What a model is asked: `[cleaning] tasks`, and pairing where `[corpus] pairing` is the model's."""
    wanted: set[Task] = {*settings.cleaning.tasks}
    if settings.corpus.pairing == "model":
        wanted.add("pairing")
    return [task for task in TASKS if task in wanted]


def samples(task: Task, corpus: Corpus, words: Words, verdicts: Verdicts, settings: Settings) -> Iterator[Asked]:
    """Everything a task asks of a corpus as it was built, before `cleaned`; masked answers are not asked about."""
    for number, part in enumerate(corpus.scenes):
        if part.of_set:
            continue
        match task:
            case "score":
                found = _score(part, corpus, words)
            case "fragments":
                found = _fragments(part, words)
            case "pairing":
                found = _pairing(part, words)
            case "question":
                found = _question(part, corpus, words, verdicts, settings)
        yield from (Asked(number, place, sample) for place, sample in found)


def cleaned(corpus: Corpus, settings: Settings) -> Corpus:
    """A corpus as the model judged it so far; the same where none is set or nothing was asked.

    Raises:
        TrainingError: what it said cannot be read.
    """
    file = settings.data / FILE
    if settings.cleaning.url is None or not file.exists():
        return corpus
    with closing(Verdicts(file)) as verdicts:
        return applied(corpus, settings, verdicts)


def applied(corpus: Corpus, settings: Settings, verdicts: Verdicts) -> Corpus:
    """A corpus with what was said of its samples."""
    words, counts, digest = Words(settings.data, settings.cleaning), Counter(corpus.counts), hashlib.sha256()
    digest.update(corpus.fingerprint.encode())
    masked: list[dict[int, clean.Reason]] = [{} for _ in corpus.scenes]
    written: list[dict[int, Message]] = [{} for _ in corpus.scenes]
    joined: list[dict[int, Exchange]] = [{} for _ in corpus.scenes]
    for task in settings.cleaning.tasks:
        for asked in samples(task, corpus, words, verdicts, settings):
            said, part = verdicts.of(asked.sample.key), corpus.scenes[asked.part]
            if not fits(said, asked.sample.wanted):
                continue
            if task == "score" and said < settings.cleaning.threshold:
                masked[asked.part][asked.place] = clean.Reason.LOW_SCORE
                counts[f"masked_{clean.Reason.LOW_SCORE}"] += 1
            elif task == "question":
                if (line := question(part, asked.place, said, settings)) is not None:
                    written[asked.part][asked.place] = line
                    counts["questions_written"] += 1
            elif task == "fragments" and said:
                exchange = part.exchanges[asked.place]
                joined[asked.part][asked.place] = replace(exchange, said=_joined(exchange.said, set(said)))
                counts["fragments_joined"] += len(exchange.said) - len(joined[asked.part][asked.place].said)
            else:
                continue
            digest.update(f"{task}\0{asked.part}\0{asked.place}\0{said}\0\0".encode())
    if counts == Counter(corpus.counts):
        return corpus
    scenes = [
        replace(
            part, masked={**part.masked, **masked[n]}, written=written[n],
            exchanges=[joined[n].get(place, e) for place, e in enumerate(part.exchanges)],
        )
        for n, part in enumerate(corpus.scenes)
    ]  # fmt: skip
    return replace(corpus, scenes=scenes, counts=dict(counts), fingerprint=digest.hexdigest())


def question(part: SceneCorpus, place: int, text: str, settings: Settings) -> Message | None:
    """What the model wrote for an answer, as a message of who spoke last before it; None where nobody else is.

    It is said at the answer's own time, and shown as others' words are.
    """
    answer = part.exchanges[place].said[0]
    near = [*reversed(part.exchanges[: place + 1]), *part.exchanges[place + 1 :]]
    someone = next((e.heard[-1] for e in near if e.heard), None)
    if someone is None:
        return None
    made = Message(
        f"{answer.id}-question", part.scene, someone.sender_id, someone.sender_name, answer.time,
        " ".join(text.split()), scene_name=answer.scene_name,
    )  # fmt: skip
    seen = as_shown(made, settings.corpus)
    return seen if seen.text.strip() else None


def chosen(part: SceneCorpus, settings: Settings, verdicts: Verdicts | None = None) -> list[pairing.Link]:
    """Which message each of the person's answers in a group answers, as `[corpus] pairing` says.

    Where the model was not asked of an answer, the fitted rule chooses. Answers that only repeat what was said right
    before them are left out where the model pairs.

    Args:
        part: the scene.
        settings: with the mode.
        verdicts: what the model said, where it is open; None: as it is kept in the data folder.

    Raises:
        TrainingError: what it said cannot be read.
    """
    messages, answers = pairing.talk(part.exchanges)
    if settings.corpus.pairing != "model":
        return pairing.links(messages, answers, settings.corpus.pairing)
    if verdicts is None:
        with closing(Verdicts(settings.data / FILE)) as opened:
            return chosen(part, settings, opened)
    picks: dict[str, Message | None] = {}
    if settings.cleaning.url is not None:
        words = Words(settings.data, settings.cleaning)
        for place, sample in _pairing(part, words):
            answer = part.exchanges[place].said[0].id
            if (number := verdicts.of(sample.key)) is not None:
                picks[answer] = pairing.last_ten(messages, answers[answer])[number - 1] if number else None
    found = pairing.links(messages, answers, picks=picks)
    return [link for link in found if not _repeats(messages, answers[link.answer.id])]


def _repeats(messages: Sequence[Message], place: int) -> bool:
    """Whether an answer says exactly what was said right before it."""
    return place > 0 and messages[place - 1].text == messages[place].text


# -- what is asked -----------------------------------------------------------------------------------


def _asked_about(part: SceneCorpus) -> Iterator[tuple[int, Exchange]]:
    """Exchanges whose answer is the person's own and is trained."""
    for place, exchange in enumerate(part.exchanges):
        if exchange.said and place not in part.masked and all(m.origin is Origin.HUMAN for m in exchange.said):
            yield place, exchange


def _score(part: SceneCorpus, corpus: Corpus, words: Words) -> Iterator[tuple[int, Sample]]:
    lines = _lines(part, corpus)
    wanted = {"type": "integer", "enum": [*SCORES]}
    for place, exchange in _asked_about(part):
        yield place, words.sample("score", "【对话】", lines(exchange), _answer(exchange), wanted)


def _fragments(part: SceneCorpus, words: Words) -> Iterator[tuple[int, Sample]]:
    for place, exchange in _asked_about(part):
        if len(exchange.said) > 1:
            text = "\n".join(f"{n} {m.text}" for n, m in enumerate(exchange.said, 1))
            numbers = {"type": "integer", "enum": [*range(2, len(exchange.said) + 1)]}
            yield place, words.sample("fragments", "", (), text, {"type": "array", "items": numbers})


def _pairing(part: SceneCorpus, words: Words) -> Iterator[tuple[int, Sample]]:
    """Answers in groups that say not themselves what they answer."""
    if part.scene.private:
        return
    messages, answers = pairing.talk(part.exchanges)
    unsaid = {link.answer.id for link in pairing.links(messages, answers) if link.by == "scored"}
    for place, exchange in _asked_about(part):
        number = answers[exchange.said[0].id]
        candidates = pairing.last_ten(messages, number)
        if candidates and exchange.said[0].id in unsaid and not _repeats(messages, number):
            lines = [f"{n} {m.sender_name}：{m.text}" for n, m in enumerate(candidates, 1)]
            wanted = {"type": "integer", "enum": [*range(len(candidates) + 1)]}
            yield place, words.sample("pairing", "【候选】", lines, _answer(exchange), wanted)


def _question(
    part: SceneCorpus, corpus: Corpus, words: Words, verdicts: Verdicts, settings: Settings
) -> Iterator[tuple[int, Sample]]:
    lines = _lines(part, corpus)
    alone: set[str] = set()
    if not part.scene.private and settings.corpus.pairing in ("scored", "model"):
        alone = {link.answer.id for link in chosen(part, settings, verdicts) if link.to is None}
    for place, exchange in _asked_about(part):
        if not exchange.heard or exchange.said[0].id in alone:
            before = part.exchanges[place - 1] if place else Exchange()
            context = [*lines(before), *(m.text for m in before.said)][-_BEFORE:]
            yield place, words.sample("question", "【前文】", context, _answer(exchange), {"type": "string"})


def _lines(part: SceneCorpus, corpus: Corpus) -> Callable[[Exchange], list[str]]:
    """What was heard in an exchange, line by line, as the model of the twin sees it, without the time."""
    renderer: Renderer = renderer_for(part, corpus, FORMATS["chatml"], "")

    def lines(exchange: Exchange) -> list[str]:
        heard = Exchange(heard=exchange.heard)
        return [p.text.strip("\n") for p in renderer.heard(heard, part.quoted, first=True) if _said(p)]

    return lines


def _said(piece: Piece) -> bool:
    return not piece.control and bool(piece.text)


def _answer(exchange: Exchange) -> str:
    return "\n".join(("【回答】", *(m.text for m in exchange.said)))


def _joined(said: Sequence[Message], to_previous: set[int]) -> list[Message]:
    """Bubbles with some brought into the one before them, by number from 1; a picture is no part of a sentence."""
    found = [said[0]]
    for number, (before, message) in enumerate(pairwise(said), 2):
        if number in to_previous and not (media_alone(before.text) or media_alone(message.text)):
            blank = " " if before.text[-1:].isascii() and message.text[:1].isascii() else ""
            found[-1] = replace(found[-1], text=found[-1].text + blank + message.text)
        else:
            found.append(message)
    return found
