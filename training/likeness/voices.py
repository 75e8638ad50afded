"""A night's voices asked at the held-out places: the new version, the serving one and the baselines → `Likeness`.

What each voice said is kept in the run folder with what it was made of, so a killed night asks none of them twice.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from loguru import logger

from bot.checksum import digest, sha256
from bot.config import Gate
from bot.errors import EngineError
from bot.prompt import ChatFormat, render
from training import answers
from training.answers import Question
from training.corpus import Corpus
from training.likeness import judge, places, use
from training.likeness.assessment import BASE, NEW, PERSON, PROMPTED, RETRIEVAL, SERVING, Assessment, Likeness, Spoken
from training.likeness.material import Material, material
from training.likeness.places import Stage, Voice
from training.likeness.retrieval import Retrieval
from training.report import Sample
from training.samples import Split
from training.state import read_state, write_state

Scores = Mapping[tuple[str, str], tuple[float, int]]
"""-log p (nats) and tokens of what the person said, by decision point."""


class Voices:
    """Asks voices, and measures what they say.

    Args:
        run: the run folder.
        corpus: what was learned.
        known: decision points whose answer is worth learning, with their split; no other is a place or a prod.
        stage: where voices are asked.
        rules: bot.toml's `[gate]`.
    """

    def __init__(
        self, run: Path, corpus: Corpus, known: Mapping[tuple[str, str], Split], stage: Stage, rules: Gate
    ) -> None:
        self._run, self._corpus, self._known, self._stage, self._rules = run, corpus, known, stage, rules

    def likeness(self, new: Voice, serving: Voice | None, scores: Mapping[str, Scores]) -> Likeness | None:
        """Every figure of every voice; None without a place.

        Args:
            new: the version judged.
            serving: the version that serves; None when there is none.
            scores: of the windows, by voice; the bare base and the retrieval baseline are scored here.

        Raises:
            EngineError: a voice cannot be asked.
        """
        asked = self.asked(new)
        if not asked:
            return None
        said, questions = self._everyone(new, serving, asked)
        clusters = [q.cluster for q in asked]
        texts = {PERSON: [q.real for q in asked], **said}
        belongs, sizes = self._once("sense", [repr(texts)], lambda: self._stage.sense(asked, clusters, texts))
        spoken = {}
        for name, each in texts.items():
            pairs = self._scores(name, asked, questions.get(name), scores.get(name))
            nll, tokens = [n for n, _ in pairs], [t for _, t in pairs]
            spoken[name] = Spoken(each, nll, tokens, belongs[name], sizes[name])
        at = [places.place(q, q.cluster) for q in asked]
        made = Assessment(at, self._material, self._rules.leak_chars).likeness(spoken, self._prodded(new))
        return self._judged(made, asked, texts, new.prompt)

    def answers(self, new: Voice) -> list[use.Answer]:
        """What a version says at the places."""
        asked = self.asked(new)
        said = self._said(NEW, new, asked)
        return [use.Answer(q.heard, text, q.speakers) for q, text in zip(asked, said, strict=True)]

    def samples(self, new: Voice) -> list[Sample]:
        """The places with what the person, the new version and the serving one (else the base) said there."""
        asked, said = self.asked(new), [a.said for a in self.answers(new)]
        kept = read_state(self._run / f"said-{SERVING}.json") or read_state(self._run / f"said-{PROMPTED}.json") or {}
        before = [str(text) for text in kept.get("value", [])] or [""] * len(said)
        return [Sample(q.heard, q.real, a, b) for q, a, b in zip(asked, said, before, strict=True)]

    def asked(self, voice: Voice) -> list[Question]:
        """The places, as a voice is asked there: moments of the test split, spread from first to last."""
        return answers.spread(self._questions(voice.format, voice.prompt, Split.TEST), self._rules.places)

    def _everyone(
        self, new: Voice, serving: Voice | None, asked: list[Question]
    ) -> tuple[dict[str, list[str]], dict[str, list[Question]]]:
        """What each voice says, and the questions of those whose prompts no window has."""
        past, bare = Retrieval(self._material.past), Voice(None, None, new.format, new.prompt)
        questions = {
            RETRIEVAL: [places.with_past(q, past) for q in asked],
            BASE: [places.bare(q, self._corpus) for q in asked],
        }
        said = {NEW: self._said(NEW, new, asked)}
        if serving is not None:
            said[SERVING] = self._said(SERVING, serving, self.asked(serving))
        for name, each in {PROMPTED: asked, **questions}.items():
            said[name] = self._said(name, bare, each)
        return said, questions

    def _scores(
        self, name: str, asked: list[Question], questions: list[Question] | None, known: Scores | None
    ) -> list[tuple[float, int]]:
        """-log p and tokens of the person's answers under a voice.

        Empty where it was not scored, or not everywhere: a longer prompt may leave a window without its places.
        """
        if questions is not None:
            found = self._once(f"words-{name}", _shown(questions), lambda: self._stage.scored(questions, name))
            return [(float(nll), int(n)) for nll, n in found]
        return [known[q.key] for q in asked] if known and all(q.key in known for q in asked) else []

    def _prodded(self, new: Voice) -> list[tuple[str, str, str]]:
        """(prompt, answer, answer in training) of the new version where it is made to tell."""
        prods = places.prods(self._questions(new.format, new.prompt, Split.TRAIN))
        told = self._said("prodded", new, prods, greedy=True)
        return [(places.place(q, "").prompt, text, q.real) for q, text in zip(prods, told, strict=True)]

    def _judged(self, made: Likeness, asked: list[Question], said: Mapping[str, Sequence[str]], role: str) -> Likeness:
        """With a judge model's scores, where one is configured; a judge that fails stops no night."""
        rules, voices, clusters = self._rules, dict(made.voices), [q.cluster for q in asked]
        if rules.judge_url is None or rules.judge_model is None:
            return made
        key = rules.judge_api_key.get_secret_value() if rules.judge_api_key else None
        try:
            for name in (n for n in (PERSON, NEW, SERVING, BASE) if n in said):
                cases = [judge.Case(role, q.heard, text) for q, text in zip(asked, said[name], strict=True)]
                scores = judge.scores(rules.judge_url, key, rules.judge_model, cases)
                voices[name] = {**voices[name], **judge.figures(scores, clusters)}
        except EngineError as e:
            logger.warning("the judge model was left out: {}", e)
            return made.model_copy(update={"notes": (*made.notes, str(e))})
        return made.model_copy(update={"voices": voices})

    @cached_property
    def _material(self) -> Material:
        return material(self._corpus)

    def _questions(self, fmt: ChatFormat, prompt: str, split: Split) -> list[Question]:
        every = answers.questions(self._corpus, fmt, prompt, split)
        return [q for q in every if self._known.get(q.key) is split]

    def _said(self, whose: str, voice: Voice, asked: list[Question], *, greedy: bool = False) -> list[str]:
        """What a voice says to questions; as an earlier attempt left it, if it is of the same files and prompts."""
        weights = [sha256(voice.lora) if voice.lora else "", digest(voice.model) if voice.model else ""]
        how = [repr(self._stage.sampling), repr(self._stage.settings), str(greedy)]

        def draw() -> list[str]:
            self._stage.progress("gate", 0, len(asked), whose)
            return self._stage.said(voice, asked, whose, greedy=greedy)

        return [str(text) for text in self._once(f"said-{whose}", [*weights, *how, *_shown(asked)], draw)]

    def _once(self, name: str, made_of: Sequence[str], work: Callable[[], Any]) -> Any:
        """A result as JSON, kept in the run with what it was made of: done again only where that changed."""
        file = self._run / f"{name}.json"
        of = hashlib.sha256("\0".join([self._stage.base_sha256, *made_of]).encode()).hexdigest()
        kept = read_state(file) or {}
        if kept.get("made_of") == of and "value" in kept:
            return kept["value"]
        value = work()
        write_state(file, {"made_of": of, "value": value})
        return value


def _shown(questions: Sequence[Question]) -> list[str]:
    """What is asked, to tell whether it is the same."""
    return [repr(render(q.renderer, q.history, q.quoted)) for q in questions]
