"""Answers of several voices at the same held-out places → every figure by voice, and how the new one compares.

`training.likeness.places` asks the voices; here is no model. The person is a voice too: their own answers at these
places are the ceiling of what hears sense and authorship, and those of the tune split that of style.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from bot.errors import TrainingError
from training.answers import spread
from training.likeness import leak, rouge, sense, style, use, words
from training.likeness.authorship import Author
from training.likeness.figure import Figure, mean_figure
from training.likeness.material import Material

PERSON, NEW, SERVING, PROMPTED, RETRIEVAL, BASE = "person", "new", "serving", "prompted", "retrieval", "base"
VOICES = (PERSON, NEW, SERVING, RETRIEVAL, PROMPTED, BASE)
"""The person; the version judged; the one now serving; the base with the persona's prompt and the person's most
similar past exchanges; with the persona's prompt; with the scene alone."""


@dataclass(frozen=True, slots=True)
class Place:
    """A held-out moment at which the person spoke.

    Args:
        heard: the burst, bubbles joined by line breaks.
        real: what the person said.
        prompt: all that was shown before the answer, as text.
        cluster: its conversation.
        speakers: names of the others there.
    """

    heard: str
    real: str
    prompt: str
    cluster: Hashable
    speakers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a voice makes of the places.

    Args:
        said: its answers, bubbles joined by line breaks.
        nll: -log p of the person's answers (nats), where they were scored.
        tokens: how many each of those is.
        belongs: from `sense.log_ps`: log p of its answer after its own context and after others.
        said_tokens: how many tokens each of its answers is.
    """

    said: Sequence[str]
    nll: Sequence[float] = ()
    tokens: Sequence[int] = ()
    belongs: Sequence[tuple[float, Sequence[float]]] = ()
    said_tokens: Sequence[int] = ()


class Leaks(BaseModel):
    """What came out at the places and under prodding."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    answers: int = 0
    """Answers that were looked at, those under prodding among them."""
    runs: int = 0
    """Answers that say a rare run of a training answer word for word."""
    longest: int = 0
    """Characters of the longest such run."""
    numbers: int = 0
    """Numbers of the corpus told unasked."""
    names: int = 0
    """Names of people that did not stand in the prompt; shown and not judged: friends are spoken of."""
    person: Figure | None = None
    """Part of the person's own held-out answers that say such a run: what is nobody's secret."""
    by_heart: int = 0
    """Training answers said again whole where they were said in training; shown and not judged."""
    by_heart_asked: int = 0
    """Of how many that were asked for: the longest, and those of the rarest words."""

    @property
    def judged(self) -> int:
        """What the gate counts."""
        return self.runs + self.numbers


class Likeness(BaseModel):
    """Every figure at the held-out places."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    places: int
    """Moments at which the voices answered."""
    voices: dict[str, dict[str, Figure]]
    """By voice and measure."""
    against_serving: dict[str, Figure] = {}
    """New less serving by measure, paired; below 0 is better."""
    against_retrieval: dict[str, Figure] = {}
    """New less the retrieval baseline, as above."""
    leaks: Leaks = Leaks()
    """What came out."""
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    @property
    def behind_retrieval(self) -> tuple[str, ...]:
        """Measures in which the new version does not surely beat the retrieval baseline."""
        return tuple(name for name, figure in self.against_retrieval.items() if not figure.high < 0)


@dataclass(slots=True)
class Assessment:
    """Makes the figures.

    Args:
        places: where the voices answered.
        material: what the person and the others said in training.
        leak_chars: characters from which a rare run is a leak.
    """

    places: Sequence[Place]
    material: Material
    leak_chars: int = leak.RUN_CHARS
    notes: list[str] = field(default_factory=list)

    def likeness(self, voices: Mapping[str, Spoken], prodded: Sequence[tuple[str, str, str]] = ()) -> Likeness:
        """Every figure of every voice.

        Args:
            voices: by name, of `VOICES`; the person's answers at the places are added.
            prodded: (prompt, answer, answer in training) of the new version under prodding.
        """
        real = [p.real for p in self.places]
        known = voices.get(PERSON, Spoken(real))
        everyone = {PERSON: Spoken(real, belongs=known.belongs, said_tokens=known.said_tokens), **voices}
        author = self._author()
        found = {name: self._figures(name, everyone[name], everyone, author) for name in VOICES if name in everyone}
        return Likeness(
            places=len(self.places),
            voices=found,
            against_serving=self._compared(everyone, SERVING),
            against_retrieval=self._compared(everyone, RETRIEVAL),
            leaks=self._leaks(everyone[NEW].said, prodded) if NEW in everyone else Leaks(),
            notes=tuple(self.notes),
        )

    @property
    def _clusters(self) -> list[Hashable]:
        return [p.cluster for p in self.places]

    def _author(self) -> Author | None:
        try:
            return Author(self.material.own, self.material.others)
        except TrainingError as e:
            self.notes.append(str(e))
            return None

    def _figures(
        self, name: str, voice: Spoken, everyone: Mapping[str, Spoken], author: Author | None
    ) -> dict[str, Figure]:
        clusters, real = self._clusters, [p.real for p in self.places]
        found = {**self._style(name, voice), **style.variety(voice.said, clusters), **self._use(voice)}
        measured: dict[str, Figure | None] = {"rouge_l": rouge.figure(voice.said, real, clusters)}
        if voice.nll:
            measured["words"] = words.per_token(voice.nll, voice.tokens, clusters)
            measured["words_char"] = words.per_character(voice.nll, real, clusters)
        # The base judges sense, and likes its own words best: its own rows would say nothing.
        if voice.belongs and name in (PERSON, NEW, SERVING):
            found |= sense.figures(voice.belongs, voice.said_tokens, clusters)
        if author is not None:
            measured["authorship"] = author.taken(voice.said, clusters)
            if BASE in everyone:
                measured["authorship_way"] = author.way(voice.said, real, everyone[BASE].said, clusters)
        return found | {key: figure for key, figure in measured.items() if figure is not None}

    def _style(self, name: str, voice: Spoken) -> dict[str, Figure]:
        """Distances to the answers at the places; for the person, of their answers elsewhere."""
        if name != PERSON:
            return style.distances(voice.said, *self._real, self.material.phrases)
        # Both from first to last: a scene's oldest answers would stand for all the person's.
        others = spread(list(self.material.tune), len(self.places))
        places = spread(list(self.places), len(others))
        real = [p.real for p in places]
        return style.distances(others, real, [p.cluster for p in places], self.material.phrases)

    @property
    def _real(self) -> tuple[list[str], list[Hashable]]:
        return [p.real for p in self.places], self._clusters

    def _use(self, voice: Spoken) -> dict[str, Figure]:
        both = zip(self.places, voice.said, strict=True)
        answers = [use.Answer(p.heard, said, p.speakers) for p, said in both]
        return use.figures(answers, self._clusters)

    def _compared(self, everyone: Mapping[str, Spoken], other: str) -> dict[str, Figure]:
        if NEW not in everyone or other not in everyone:
            return {}
        new, old = everyone[NEW], everyone[other]
        real, clusters = self._real
        found = {"style": style.difference(new.said, old.said, real, clusters, self.material.phrases)}
        if new.nll and old.nll and list(new.tokens) != list(old.tokens):
            self.notes.append(f"words are not compared with {other!r}: the same answers are other tokens there")
        elif new.nll and old.nll:
            found["words"] = words.difference(new.nll, old.nll, new.tokens, clusters)
        return {name: figure for name, figure in found.items() if figure is not None}

    def _leaks(self, said: Sequence[str], prodded: Sequence[tuple[str, str, str]]) -> Leaks:
        prompts = [*(p.prompt for p in self.places), *(prompt for prompt, *_ in prodded)]
        answers = [*said, *(answer for _, answer, _ in prodded)]
        known, asked = leak.by_heart(prodded)
        runs = leak.Runs(self.material.own, self.material.others, self.leak_chars)
        overlaps = runs.overlaps(answers, prompts)
        of_person = {x.answer for x in runs.overlaps([p.real for p in self.places], [p.prompt for p in self.places])}
        numbers = leak.numbers([*self.material.own, *self.material.others])
        return Leaks(
            answers=len(answers),
            runs=len(overlaps),
            longest=max((x.chars for x in overlaps), default=0),
            numbers=sum(leak.told(answers, numbers, prompts)),
            names=sum(leak.told(answers, self.material.names, prompts)),
            person=mean_figure([i in of_person for i in range(len(self.places))], self._clusters),
            by_heart=known,
            by_heart_asked=asked,
        )
