"""Corpus → what it holds in numbers, before any training: people, scenes, hours, lengths, delays, silence, redactions.

Never words, but for `examples`, which is asked for them: of a text, names of faces and placeholders are told.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bot.message import Message, Origin
from bot.prompt import Exchange
from bot.redact import placeholders
from bot.segments import face_ids
from training.clean import Reason
from training.corpus import Corpus, SceneCorpus
from training.pairing import Link, links, talk

CLEANED = (
    "hidden_system", "hidden_empty", "stripped_mentions", "stripped_placeholders", "merged",
    *(f"masked_{reason}" for reason in Reason), "media_bubbles",
)  # fmt: skip
"""Counts of what `[corpus]` and `[cleaning]` left out or changed: messages, answers by reason, bubbles among others."""
_STICKER = re.compile(r"\[动画表情(?::[^\[\]]*)?\]")
_BRACKETED = re.compile(r"\[([^\[\]\s]{1,12})\]")
_QUANTILES = (10, 50, 90, 99)
_TOP = 10
_SCENES_TOLD, _FACES_TOLD = 8, 5
_BESIDES = ("scenes_without_person", "scenes_with_own_twin", "twin_turns", "questions_written", "fragments_joined")
"""Counts that most corpora have none of."""
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Rates:
    """How often redaction errs on tests/data/redaction.txt.

    Args:
        marked: things to be redacted.
        missed: of them, not redacted.
        clean: bubbles with nothing to redact.
        false_alarms: placeholders where nothing was to be redacted.
    """

    marked: int
    missed: int
    clean: int
    false_alarms: int


REDACTION = Rates(marked=217, missed=16, clean=273, false_alarms=2)
"""The whole table; a test measures it anew."""
REDACTION_UNSEEN = Rates(marked=40, missed=8, clean=25, false_alarms=1)
"""The part that was written after the rules."""


def figures(corpus: Corpus, linked: Callable[[SceneCorpus], Sequence[Link]] | None = None) -> dict[str, Any]:
    """Everything `twin corpus stats` tells, as plain values; times in seconds, hours local, lengths in characters.

    Args:
        corpus: what can be learned.
        linked: what the answers of a group answer; None: by the fitted rule.
    """
    bubbles = list(own(corpus))
    return {
        "people": sorted(corpus.people),
        **dict.fromkeys(CLEANED, 0),
        **corpus.counts,
        "span": [t.astimezone(corpus.zone).isoformat() for t in corpus.span or ()],
        "fingerprint": corpus.fingerprint,
        "per_scene": {str(p.scene): _scene(p) for p in corpus.scenes},
        "hours": hours(corpus),
        "chars_per_bubble": quantiles([len(m.text) for m in bubbles]),
        "bubbles_per_turn": dict(sorted(bubbles_per_turn(corpus).items())),
        "reply_delay_s": {kind: quantiles(delays(corpus, private=kind == "private")) for kind in ("private", "group")},
        "silence_rate": {kind: _silence_rate(corpus, private=kind == "private") for kind in ("private", "group")},
        "stickers": _stickers(bubbles),
        "redacted_own": dict(_redacted(bubbles)),
        "redacted_others": dict(_redacted(m for p in corpus.scenes for e in p.exchanges for m in e.heard)),
        "redaction_on_test_table": asdict(REDACTION),
        "redaction_on_unseen_part": asdict(REDACTION_UNSEEN),
        "answers_in_groups": dict(_paired(corpus, linked or _linked)),
    }


def in_words(found: dict[str, Any]) -> str:
    """`figures` as a person reads them, a line each under its name there; `--json` has all."""
    span = " – ".join(dict.fromkeys(t[:10] for t in found["span"]))
    lines = [f"{found['messages']:,} messages, {_counted(found['scenes'], 'scene')}, "
             f"{_counted(found['conversations'], 'conversation')}{f', {span}' if span else ''}"]  # fmt: skip
    if not found["turns"]:
        who = ", ".join(found["people"]) or "nobody"
        return "\n".join([*lines, f"{who} says nothing there: is `people` in persona.toml right, is it imported?"])
    unknown = f"; of {found['silences_unlabelled']:,} more it is not known" if found["silences_unlabelled"] else ""
    rates = [f"{kind} {rate:.0%}" for kind, rate in found["silence_rate"].items() if rate is not None]
    delays = [f"{kind} {_spread(told)}" for kind, told in found["reply_delay_s"].items() if told]
    faces = [f"{name} {n}" for name, n in list(found["stickers"]["faces"].items())[:_FACES_TOLD]]
    table = found["redaction_on_test_table"]
    learned = found["turns"] - sum(found.get(f"masked_{reason}", 0) for reason in Reason)
    rows = {
        "turns": f"{learned:,} answers are there to be learned, of {found['turns']:,} in {found['bubbles']:,} bubbles",
        "silences": f"{found['silences']:,} times somebody spoke and was not answered{unknown}",
        "silence_rate": ", ".join(rates),
        "left out": cleaned_in_words(found),
        "chars_per_bubble": _spread(found["chars_per_bubble"]),
        "bubbles_per_turn": _shares(found["bubbles_per_turn"]),
        "reply_delay_s": ", ".join(delays),
        "hours": f"{_drawn(found['hours'])} (0 to 23 h)" if any(found["hours"]) else "",
        "stickers": f"in {_counted(found['stickers']['bubbles_with_sticker'], 'bubble')}; faces in "
                    f"{found['stickers']['bubbles_with_face']:,}{': ' if faces else ''}{', '.join(faces)}",
        "redacted_own": _listed(found["redacted_own"]),
        "redacted_others": _listed(found["redacted_others"]),
        "redaction": f"misses {table['missed']} of {table['marked']}, {table['false_alarms']} false alarms in "
                     f"{table['clean']} clean bubbles (measured on a table of the tests, not here)",
        "answers_in_groups": _listed(found["answers_in_groups"]),
        "besides": _listed({name: found.get(name, 0) for name in _BESIDES}),
    }  # fmt: skip
    lines += [f"  {name:<18}{words or '–'}" for name, words in rows.items() if words or name != "besides"]
    scenes = sorted(found["per_scene"].items(), key=lambda item: -item[1]["messages"])
    lines += [f"  {'per_scene':<26}{'messages':>10}{'turns':>8}{'silences':>10}{'masked':>8}"] if scenes else []
    lines += [
        f"    {name:<24}{told['messages']:>10,}{told['turns']:>8,}{told['silences']:>10,}{told['masked']:>8,}"
        for name, told in scenes[:_SCENES_TOLD]
    ]
    return "\n".join([*lines, *([f"    and {len(scenes) - _SCENES_TOLD} more"] if scenes[_SCENES_TOLD:] else [])])


def cleaned_in_words(found: Mapping[str, int]) -> str:
    """What `[corpus]` and `[cleaning]` left out or changed, by reason; `nothing`."""
    return _listed({name.replace("_", " "): found.get(name, 0) for name in CLEANED}) or "nothing"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if n)


def _counted(n: int, name: str) -> str:
    return f"{n:,} {name}{'' if n == 1 else 's'}"


def _spread(told: Mapping[str, float]) -> str:
    return f"{told['p50']:g} ({told['p10']:g} to {told['p90']:g} in eight of ten)" if told else ""


def _shares(counts: Mapping[int, int]) -> str:
    """Of how many turns have one bubble, two, three, and more."""
    total, more = sum(counts.values()), sum(n for size, n in counts.items() if size > 3)
    shares = {**{str(size): counts.get(size, 0) for size in (1, 2, 3)}, "more": more}
    return ", ".join(f"{size}: {n / total:.0%}" for size, n in shares.items() if n)


def _drawn(counts: Sequence[int]) -> str:
    return "".join(_BARS[(len(_BARS) - 1) * n // max(counts)] for n in counts)


def hours(corpus: Corpus) -> list[int]:
    """The person's bubbles by local hour, 24 numbers."""
    found = Counter(m.time.astimezone(corpus.zone).hour for m in own(corpus))
    return [found[h] for h in range(24)]


def bubbles_per_turn(corpus: Corpus) -> Counter[int]:
    """How many turns of the person have so many bubbles."""
    turns = (sum(m.origin is Origin.HUMAN for m in e.said) for part in corpus.scenes for e in part.exchanges)
    return Counter(n for n in turns if n)


def delays(corpus: Corpus, *, private: bool) -> list[float]:
    """Seconds from the end of a burst to the person's first bubble."""
    return [
        (e.said[0].time - e.heard[-1].time).total_seconds()
        for part in corpus.scenes
        if part.scene.private == private
        for e in part.exchanges
        if e.heard and _answered(e)
    ]


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Quantiles and mean; nothing of nothing."""
    if not values:
        return {}
    found = np.percentile(values, _QUANTILES)
    named = {f"p{q}": round(float(v), 1) for q, v in zip(_QUANTILES, found, strict=True)}
    return {**named, "mean": round(float(np.mean(values)), 1), "n": len(values)}


def examples(corpus: Corpus, n: int) -> dict[str, list[list[str]]]:
    """At most `n` masked answers of each reason: the bubble before, and the answer's. The one thing here with words."""
    found: dict[str, list[list[str]]] = {}
    for part in corpus.scenes:
        for place, reason in part.masked.items():
            exchange = part.exchanges[place]
            if len(shown := found.setdefault(reason.value, [])) < n:
                shown.append([*(m.text for m in exchange.heard[-1:]), *(m.text for m in exchange.said)])
    return found


def own(corpus: Corpus) -> Iterator[Message]:
    """The person's bubbles, scene by scene."""
    return (m for part in corpus.scenes for e in part.exchanges for m in e.said if m.origin is Origin.HUMAN)


def _answered(exchange: Exchange) -> bool:
    return bool(exchange.said) and exchange.said[0].origin is Origin.HUMAN


def _scene(part: SceneCorpus) -> dict[str, int]:
    return {
        "messages": sum(len(e.heard) + len(e.said) for e in part.exchanges),
        "turns": sum(map(_answered, part.exchanges)),
        "silences": sum(part.counted_silence),
        "masked": len(part.masked),
    }


def _silence_rate(corpus: Corpus, *, private: bool) -> float | None:
    """Silences among the decisions a version would be judged by: the twin was off, somebody had spoken."""
    silences = answers = 0
    for part in corpus.scenes:
        if part.scene.private == private:
            silences += sum(part.counted_silence)
            off = zip(part.exchanges, part.twin_off, strict=True)
            answers += sum(bool(e.heard) and _answered(e) and was_off for e, was_off in off)
    return round(silences / (silences + answers), 3) if silences + answers else None


def _stickers(own: Sequence[Message]) -> dict[str, Any]:
    """How many bubbles hold a sticker or a face, and the faces used most."""
    faces: Counter[str] = Counter()
    with_face = with_sticker = 0
    for message in own:
        found = [n for n in _BRACKETED.findall(message.text) if n in face_ids()]
        faces.update(found)
        with_face += bool(found)
        with_sticker += bool(_STICKER.search(message.text))
    return {
        "bubbles_with_sticker": with_sticker,
        "bubbles_with_face": with_face,
        "faces": dict(faces.most_common(_TOP)),
    }


def _redacted(messages: Iterator[Message] | Sequence[Message]) -> Counter[str]:
    return sum((placeholders(m.text) for m in messages if "[" in m.text), Counter())


def _paired(corpus: Corpus, linked: Callable[[SceneCorpus], Sequence[Link]]) -> Counter[str]:
    """How the message that each of the person's group answers answers was found (training/pairing.py)."""
    found: Counter[str] = Counter()
    for part in corpus.scenes:
        if not part.scene.private:
            found.update(link.by if link.to else "none" for link in linked(part))
    return found


def _linked(part: SceneCorpus) -> list[Link]:
    return links(*talk(part.exchanges))
