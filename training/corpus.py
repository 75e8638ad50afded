"""Archive → what can be learned: every scene's exchanges, and which of its silences count.

Where the twin answers, the person need not: their quiet there means nothing. So a silence counts only at moments when
the twin was off in that scene and the person was around. Their words count everywhere, the twin's own nowhere; without
both rules every night would make the twin a little more mute and a little more like itself.

What was taken back, has no words or is hidden, is never rendered. But it was said: it is no silence, and it keeps its
place in the conversation, so that taking a message back moves nothing to another split. What is rendered is what
`bot.shown` lets the live twin see, too; answers that are not worth learning from (`training.clean`) are only masked.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from zoneinfo import ZoneInfo

from bot.archive import Archive
from bot.config import Cleaning, Conversation
from bot.message import Message, Origin, Scene
from bot.prompt import Exchange, exchanges, media_alone, opens, spoken_by
from bot.segments import STICKER
from bot.shown import shown, stripped
from bot.stickers import named
from training import clean
from training.garbage import uncollected

Timeline: TypeAlias = Sequence[tuple[datetime, str]]
"""What the twin was doing in a scene: (since when, `on` | `off` | `held`), oldest first."""


@dataclass(frozen=True, slots=True)
class SceneCorpus:
    """One scene. The lists are parallel: one entry an exchange, oldest first.

    Args:
        scene: where.
        name: the group's newest name, or the peer's.
        exchanges: bursts and what was said to them.
        counted_silence: whether the exchange is a silence that counts as a label.
        twin_off: whether the twin was off there while the exchange was open: to answer was the person's own decision.
        last_spoke: when the person or the twin last spoke before the exchange was decided.
        conversation: id of the first message of the exchange's conversation, be it taken back or not.
        quotes: quoted messages by id.
        masked: exchanges whose answer stands in the context and is not trained, by place, and why.
        written: questions a language model wrote, by place: for answers to nothing, and for those of which no message
            was found that they answer. They are no exchange's: nothing is decided, measured or timed on them.
        unlearned: ids of the person's bubbles of media alone, among the words of answers that are trained.
        altered: what `[corpus]` did to its messages, in numbers: not shown are `hidden_system` (by a system sender) and
            `hidden_empty` (nothing is left); `stripped_mentions` and `stripped_placeholders` lost some; `merged` moved.
        of_set: whether it is a dialogue of a training set: its times are no times.
        system: a system prompt in place of the persona's and the scene's line; None: those.
    """

    scene: Scene
    name: str
    exchanges: list[Exchange]
    counted_silence: list[bool]
    twin_off: list[bool]
    last_spoke: list[datetime | None]
    conversation: list[str]
    quotes: dict[str, Message]
    masked: Mapping[int, clean.Reason] = field(default_factory=dict)
    altered: Mapping[str, int] = field(default_factory=dict)
    written: Mapping[int, Message] = field(default_factory=dict)
    unlearned: frozenset[str] = frozenset()
    of_set: bool = False
    system: str | None = None

    def quoted(self, message: Message) -> Message | None:
        """The message another one quotes, or None."""
        return None if message.reply_to is None else self.quotes.get(message.reply_to)

    def only(self, places: Sequence[int]) -> "SceneCorpus":
        """Some of its exchanges, ascending, with quotes of their own messages alone."""
        ids = {m.id for i in places for m in (*self.exchanges[i].heard, *self.exchanges[i].said)}
        return replace(
            self,
            exchanges=[self.exchanges[i] for i in places],
            counted_silence=[self.counted_silence[i] for i in places],
            twin_off=[self.twin_off[i] for i in places],
            last_spoke=[self.last_spoke[i] for i in places],
            conversation=[self.conversation[i] for i in places],
            quotes={key: m for key, m in self.quotes.items() if m.id in ids},
            masked={new: self.masked[old] for new, old in enumerate(places) if old in self.masked},
            written={new: self.written[old] for new, old in enumerate(places) if old in self.written},
        )

    def learned(self, exchange: Exchange) -> list[Message]:
        """What was said in an exchange without bubbles of media alone that are no labels."""
        return [m for m in exchange.said if m.id not in self.unlearned]

    def as_rendered(self, place: int) -> Exchange:
        """An exchange with the question that was written for it."""
        exchange = self.exchanges[place]
        return exchange if exchange.heard else replace(exchange, heard=self.written_for(place))

    def written_for(self, place: int) -> list[Message]:
        """The question that was written for an answer, or none."""
        return [self.written[place]] if place in self.written else []


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything one persona can learn from.

    Args:
        people: QQ numbers of the imitated person.
        names: names they listen to.
        ids: QQ numbers whose mention means them: theirs, and every account a twin has spoken from.
        scenes: scenes they spoke in, by size, largest first.
        rules: how scenes were cut.
        zone: where the person lives.
        fingerprint: sha256 of the ids and texts of all messages used, in order.
        counts: `messages`, `turns` and `bubbles` of the person, `silences` that count and `silences_unlabelled`,
            `twin_turns`, `conversations`, `scenes`, what was left out, `masked_<reason>` answers, and `media_bubbles`
            that are masked in others.
        contributors: QQ numbers whose words are labels.
        span: times of the first and last message used; None without any.
    """

    people: frozenset[str]
    names: tuple[str, ...]
    ids: frozenset[str]
    scenes: list[SceneCorpus]
    rules: Conversation
    zone: ZoneInfo
    fingerprint: str
    counts: dict[str, int] = field(default_factory=dict)
    contributors: tuple[str, ...] = ()
    span: tuple[datetime, datetime] | None = None

    def of_logs(self) -> "Corpus":
        """The same without the dialogues of training sets, which have no times; they still stand in the counts."""
        return replace(self, scenes=[part for part in self.scenes if not part.of_set])


def build(
    archive: Archive,
    people: Sequence[str],
    names: Sequence[str],
    rules: Conversation,
    until: datetime | None = None,
    cleaning: Cleaning = Cleaning(),  # noqa: B008 - frozen
    stickers: Mapping[str, str] = {},
) -> Corpus:
    """What an archive can teach of a person.

    Args:
        archive: the message store.
        people: the imitated person's QQ numbers.
        names: names they listen to.
        rules: gaps and caps.
        until: messages after this are not seen, as if training ran at that moment; None: all.
        cleaning: what is shown, and which answers are worth learning from.
        stickers: names of the sticker library by key (`bot.stickers.names`).

    Raises:
        ArchiveError: the store cannot be read.
    """
    with uncollected():
        return _built(archive, frozenset(people), tuple(names), rules, until, cleaning, stickers)


def _built(
    archive: Archive,
    who: frozenset[str],
    names: tuple[str, ...],
    rules: Conversation,
    until: datetime | None,
    cleaning: Cleaning,
    stickers: Mapping[str, str],
) -> Corpus:
    summaries = archive.scenes()
    known_until = until or max((s.last for s in summaries), default=None)
    counts: Counter[str] = Counter()
    scenes: list[SceneCorpus] = []
    for summary in summaries:
        scene = summary.scene
        if scene.private and scene.id in who:
            # The person talking with their own twin: they are the other side there, and nothing is a label.
            counts["scenes_with_own_twin"] += 1
            continue
        stored = _history(archive, scene, until, stickers)
        if known_until is None or not any(_by_person(m, who) for m in stored if _worded(m)):
            counts["scenes_without_person"] += 1
            continue
        scenes.append(_scene(scene, stored, archive.timeline(scene, "state"), who, rules, known_until, cleaning))
    scenes = _without_duplicates(scenes, cleaning)
    return _assembled(scenes, who, names, rules, counts)


def of_scene(
    archive: Archive,
    scene: Scene,
    people: frozenset[str],
    rules: Conversation,
    until: datetime | None = None,
    cleaning: Cleaning = Cleaning(),  # noqa: B008 - frozen
    stickers: Mapping[str, str] = {},
) -> SceneCorpus:
    """One scene as `build` cuts it, also where it holds no label (the person talking with their own twin).

    Raises:
        ArchiveError: the store cannot be read.
    """
    stored = _history(archive, scene, until, stickers)
    known_until = until or (stored[-1].time if stored else datetime.now(UTC))
    return _scene(scene, stored, archive.timeline(scene, "state"), people, rules, known_until, cleaning)


def _history(archive: Archive, scene: Scene, until: datetime | None, stickers: Mapping[str, str]) -> list[Message]:
    """Everything of a scene, with what was taken back; stickers have their names."""
    stored = archive.history(scene, until, recalled=True, segments_of=STICKER if stickers else None)
    return [named(m, stickers) for m in stored]


def twin_was_off(timeline: Timeline, start: datetime, stop: datetime) -> bool:
    """Whether the twin was off in a scene from `start` to `stop`. Before the first entry it is off; held is not off."""
    times = [time for time, _ in timeline]
    first, last = bisect_right(times, start), bisect_right(times, stop)
    before = timeline[first - 1][1] if first else "off"
    return all(state == "off" for state in (before, *(value for _, value in timeline[first:last])))


def _by_person(message: Message, people: frozenset[str]) -> bool:
    return message.origin is Origin.HUMAN and spoken_by(message, people)


def _worded(message: Message) -> bool:
    """Whether it may be shown. A bubble without text would render as an empty turn: a silence that never was."""
    return not message.recalled and bool(message.text.strip())


def _scene(
    scene: Scene,
    stored: list[Message],
    timeline: Timeline,
    people: frozenset[str],
    rules: Conversation,
    known_until: datetime,
    cleaning: Cleaning,
) -> SceneCorpus:
    said = [m for m in stored if _worded(m)]
    visible = list(shown(said, cleaning))
    messages, moved = clean.merged(visible, cleaning)
    cut = exchanges(messages, people, rules)
    by_id = {m.id: m for m in messages}
    spoke = [m.time for m in messages if spoken_by(m, people)]
    present = [m.time for m in messages if _by_person(m, people)]
    conversations = _conversations(stored, people, rules)
    # What an exchange is a label of decides: the answer, else the burst's end.
    conversation = [conversations[(e.said[0] if e.said else e.heard[-1]).id] for e in cut]
    place = {m.id: number for number, m in enumerate(stored)}
    unseen = [
        n
        for n, m in enumerate(stored)
        # Of somebody who was forgotten a row does not say who: it may have been the person.
        if (spoken_by(m, people) or not m.sender_id) and (m.id not in by_id or m.id in moved)
    ]
    wait = timedelta(seconds=max(rules.conversation_gap_s, rules.answer_within_s if scene.private else 0))
    counted: list[bool] = []
    off: list[bool] = []
    for exchange, conversation_id, after in zip(cut, conversation, [*cut[1:], None], strict=True):
        decided_at = exchange.decided_at
        # An answer may come until the burst is surely over; OneBot's seconds are cut, the twin's log is not.
        over = decided_at + timedelta(seconds=rules.burst_gap_s)
        stop = max(over, after.first.time if after else decided_at + wait)
        off.append(twin_was_off(timeline, decided_at, exchange.said[0].time if exchange.said else stop))
        end = place[after.first.id] if after else len(stored)
        begin = bisect_left(unseen, place[exchange.first.id])
        between = [stored[n] for n in unseen[begin : bisect_left(unseen, end)]]
        counted.append(
            not exchange.said
            and _around(present, decided_at, rules)
            and off[-1]
            # They answered, and took it back: neither a silence nor words.
            and not any(conversations[m.id] == conversation_id or m.time - decided_at <= wait for m in between)
            # Where nothing came after, the person may still answer.
            and (after is not None or known_until - decided_at > wait)
        )
    quotes = {m.reply_to: by_id[m.reply_to] for m in messages if m.reply_to is not None and m.reply_to in by_id}
    last_spoke = [_latest(spoke, exchange.decided_at) for exchange in cut]
    withheld = {
        n: clean.Reason.WITHHELD
        for n, e in enumerate(cut)
        if e.said and _to_withheld(stored, place[e.said[0].id], people)
    }
    masked = _masked(cut, cleaning) | withheld
    return SceneCorpus(
        scene,
        _name(scene, messages),
        cut,
        counted,
        off,
        last_spoke,
        conversation,
        quotes,
        masked,
        _altered(said, visible, messages, moved, cleaning),
        unlearned=_media(e for n, e in enumerate(cut) if n not in masked) if cleaning.drop_media else frozenset(),
    )


def _altered(
    said: Sequence[Message],
    visible: Sequence[Message],
    messages: Sequence[Message],
    moved: set[str],
    cleaning: Cleaning,
) -> dict[str, int]:
    """`SceneCorpus.altered`, from what was said, what is shown of it, and what merging made of that."""
    system = sum(m.sender_id in cleaning.system_senders for m in said)
    found = {"hidden_system": system, "hidden_empty": len(said) - system - len(visible)}
    for option in ("strip_mentions", "strip_placeholders"):
        if getattr(cleaning, option):
            alone = cleaning.model_copy(update={"strip_mentions": False, "strip_placeholders": False, option: True})
            lost = sum(stripped(m.text, alone) != m.text.strip() for m in said)
            found[option.replace("strip_", "stripped_")] = lost
    if cleaning.merge != "off":
        # As one text, bubbles with nothing between them are joined, too.
        found["merged"] = len(moved) if cleaning.merge == "bubbles" else len(visible) - len(messages)
    return found


def _to_withheld(stored: Sequence[Message], place: int, people: frozenset[str]) -> bool:
    """Whether what was said last before an answer was by somebody whose words are not kept: a row without a name."""
    before = (stored[n] for n in range(place - 1, -1, -1))
    last = next((m for m in before if not spoken_by(m, people)), None)
    return last is not None and last.recalled and not last.sender_name


def _masked(cut: Sequence[Exchange], cleaning: Cleaning) -> dict[int, clean.Reason]:
    found = {}
    for place, exchange in enumerate(cut):
        said = [m.text for m in exchange.said if m.origin is Origin.HUMAN]
        heard = exchange.heard[-1].text if exchange.heard else None
        if said and (reason := clean.masked(said, heard, cleaning)) is not None:
            found[place] = reason
    return found


def _media(answers: Iterable[Exchange]) -> frozenset[str]:
    return frozenset(m.id for e in answers for m in e.said if m.origin is Origin.HUMAN and media_alone(m.text))


def _without_duplicates(scenes: Sequence[SceneCorpus], cleaning: Cleaning) -> list[SceneCorpus]:
    """The same with answers masked that were given often enough, in whatever scene, oldest first."""
    answers = sorted(_answers(scenes, cleaning))
    over = clean.duplicates([text for *_, text in answers], cleaning)
    more: dict[int, dict[int, clean.Reason]] = {}
    for number in over:
        _, part, place, _ = answers[number]
        more.setdefault(part, {})[place] = clean.Reason.DUPLICATE
    return [replace(p, masked={**p.masked, **more[n]}) if n in more else p for n, p in enumerate(scenes)]


def _answers(scenes: Sequence[SceneCorpus], cleaning: Cleaning) -> Iterator[tuple[datetime, int, int, str]]:
    """Trained answers that are long enough to be compared: when, which scene, which exchange, the words."""
    for number, part in enumerate(scenes):
        for place, exchange in enumerate(part.exchanges):
            text = "\n".join(m.text for m in part.learned(exchange) if m.origin is Origin.HUMAN)
            if len(text) >= cleaning.duplicate_min_chars and place not in part.masked:
                yield exchange.said[0].time, number, place, text


def _conversations(stored: list[Message], people: frozenset[str], rules: Conversation) -> dict[str, str]:
    """The id of its conversation's first message, by message id."""
    found: dict[str, str] = {}
    first, previous = "", None
    for message in stored:
        first = message.id if opens(message, previous, people, rules) else first
        found[message.id], previous = first, message
    return found


def _around(present: Sequence[datetime], moment: datetime, rules: Conversation) -> bool:
    latest = _latest(present, moment)
    return latest is not None and moment - latest <= timedelta(seconds=rules.presence_s)


def _latest(times: Sequence[datetime], before: datetime) -> datetime | None:
    """The last of ascending times strictly before a moment, as `Archive.last_spoke` gives it live."""
    place = bisect_left(times, before)
    return times[place - 1] if place else None


def _name(scene: Scene, messages: Sequence[Message]) -> str:
    if scene.private:
        return next((m.sender_name for m in reversed(messages) if m.sender_id == scene.id and m.sender_name), "")
    return next((m.scene_name for m in reversed(messages) if m.scene_name), "")


def _assembled(
    scenes: list[SceneCorpus],
    people: frozenset[str],
    names: tuple[str, ...],
    rules: Conversation,
    counts: Counter[str],
) -> Corpus:
    digest = hashlib.sha256()
    twins: set[str] = set()
    contributors: set[str] = set()
    times: list[datetime] = []
    for part in scenes:
        counts["conversations"] += len(set(part.conversation))
        counts["silences"] += sum(part.counted_silence)
        counts["silences_unlabelled"] += sum(not e.said for e in part.exchanges) - sum(part.counted_silence)
        counts.update(f"masked_{reason}" for reason in part.masked.values())
        counts.update(part.altered)
        counts["media_bubbles"] += len(part.unlearned)
        for exchange in part.exchanges:
            human = [m for m in exchange.said if m.origin is Origin.HUMAN]
            contributors |= {m.sender_id for m in human}
            twins |= {m.sender_id for m in exchange.said if m.origin is Origin.TWIN}
            counts["turns"] += bool(human)
            counts["bubbles"] += len(human)
            counts["twin_turns"] += bool(exchange.said) and not human
            for message in (*exchange.heard, *exchange.said):
                counts["messages"] += 1
                times.append(message.time)
                digest.update(_identity(message))
    counts["scenes"] = len(scenes)
    for key in ("messages", "turns", "bubbles", "silences", "silences_unlabelled", "twin_turns", "conversations"):
        counts.setdefault(key, 0)
    return Corpus(
        people, names, people | twins, scenes, rules, ZoneInfo(rules.timezone), digest.hexdigest(), dict(counts),
        tuple(sorted(contributors)), (min(times), max(times)) if times else None,
    )  # fmt: skip


def _identity(message: Message) -> bytes:
    return f"{message.scene}\0{message.id}\0{message.text}\0\0".encode()
