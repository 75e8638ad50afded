"""Which message an answer answers, against IRC's gold reply links, which are not shipped.

irc_disentangle/new-domains (Kummerfeld et al. 2019, CC BY 4.0; `IRC` says where it is looked for): four channels, three
stretches of 200 annotated messages each. Stretches 0 and 1 of each channel are for fitting (`--full` fits the weights
anew and prints them), stretch 2 is what the figures are of. A message may answer nothing: then the gold link is to
itself.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bench.figures import Figure, show
from bot import config
from bot.message import Message, Scene
from training import pairing

IRC = Path(__file__).parents[2] / "shared" / "data" / "irc_disentangle" / "new-domains"
_LINE = re.compile(r"\S+ (\d{4}-\d\d-\d\d) (?:\[(\d\d):(\d\d)(?::(\d\d))?\] )?(?:<([^>]+)>\s*|\* (\S+) )?(.*)")
_ANNOTATED = 1000
"""Lines before this are context."""
_L2, _STEPS = 1e-2, 400
_Case: TypeAlias = tuple[set[int], int, list[int]]
"""Right places, ours, the peers'."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Messages of a channel and, by place, the places each of the annotated ones answers (its own: nothing)."""

    messages: list[Message]
    gold: dict[int, set[int]]


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure and print.

    Args:
        settings: nothing of it is needed.
        root: nor this.
        full: fit the weights anew and print them.
        as_json: for programs.
    """
    if not IRC.is_dir():
        raise SystemExit(f"bench pairing needs IRC's gold reply links, which do not lie at {IRC}")
    fitting, testing = _stretches("01"), _stretches("2")
    if full:
        weights, none = fit(fitting)
        print("WEIGHTS", {k: round(v, 2) for k, v in weights.items()})
        print("NONE_WEIGHTS", {k: round(v, 2) for k, v in none.items()})
    else:
        weights, none = dict(pairing.WEIGHTS), dict(pairing.NONE_WEIGHTS)
    show("pairing", figures(testing, weights, none), as_json=as_json)


def figures(stretches: list[Stretch], weights: dict[str, float], none: dict[str, float]) -> list[Figure]:
    """Accuracy over all annotated messages, and over those that answer another's, beside the simple rules.

    The second is what pairs are made with: who answers another is known there, and own words are no candidates.
    """
    everything: list[_Case] = []
    to_another: list[_Case] = []
    for stretch in stretches:
        scene = pairing.Scene(stretch.messages, weights, none)
        places = {m.id: n for n, m in enumerate(stretch.messages)}
        for place, gold in stretch.gold.items():
            who, (first, *others) = stretch.messages[place].sender_id, _simple(stretch, place)
            found = [link.to for link in (scene.link(place), scene.link(place, own=False))]
            either, another = (place if to is None else places[to.id] for to in found)
            everything.append((gold, either, [first, *others]))
            if all(g >= 0 and stretch.messages[g].sender_id != who for g in gold):
                to_another.append((gold, another, [first, *others]))
    peers = ("the message before", "the last by another", "the last by another that names the speaker, else by another")
    table = []
    for name, cases in (("all messages", everything), ("answers to another", to_another)):
        accuracy = 100 * np.mean([ours in gold for gold, ours, _ in cases])
        for number, peer in enumerate(peers):
            value = 100 * np.mean([simple[number] in gold for gold, _, simple in cases])
            table.append(Figure(f"right link, {name}", float(accuracy), "%", peer, float(value), n=len(cases)))
    return table


def _simple(stretch: Stretch, place: int) -> list[int]:
    """What the peers say."""
    messages, near = stretch.messages, range(place - 1, max(-1, place - 1 - pairing.LOOK_BACK), -1)
    who, name = messages[place].sender_id, messages[place].sender_name
    others = [n for n in near if messages[n].sender_id != who]
    another = next(iter(others), place - 1)
    return [place - 1, another, next((n for n in others if pairing.calls(messages[n].text, name)), another)]


def fit(stretches: list[Stretch]) -> tuple[dict[str, float], dict[str, float]]:
    """Weights of a softmax over each message's candidates and "none", by gradient ascent with a little shrinkage."""
    cases: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]] = []
    wide = len(pairing.FEATURES)
    for stretch in stretches:
        scene = pairing.Scene(stretch.messages)
        for place, gold in stretch.gold.items():
            candidates = scene.candidates(place)
            options = [[*scene.features(place, c), 0.0, 0.0, 0.0] for c in candidates]
            options.append([0.0] * wide + list(scene.none_features(place)))
            right = np.array([c in gold for c in [*candidates, place]])
            if right.any():
                cases.append((np.array(options), right))
    weights = np.zeros(wide + 3)
    moment, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, _STEPS + 1):
        gradient = -_L2 * weights
        for rows, right in cases:
            scores = rows @ weights
            p = np.exp(scores - scores.max())
            p /= p.sum()
            q = np.where(right, p, 0.0)
            gradient += (q / q.sum() - p) @ rows / len(cases)
        moment, square = 0.9 * moment + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        weights += 0.1 * (moment / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    fitted = weights.tolist()
    names = tuple(pairing.NONE_WEIGHTS)
    return dict(zip(pairing.FEATURES, fitted[:wide], strict=True)), dict(zip(names, fitted[wide:], strict=True))


def _stretches(numbers: str) -> list[Stretch]:
    return [_read(f) for f in sorted(IRC.glob("*.ascii.txt")) if f.name.split(".")[1] in numbers]


def _read(file: Path) -> Stretch:
    """A channel's messages without notices; a link to or from a notice keeps its end as -1, which nothing matches."""
    places: dict[int, int] = {}
    messages: list[Message] = []
    for number, message in _messages(file):
        places[number] = len(messages)
        messages.append(message)
    gold: dict[int, set[int]] = {}
    links = file.with_name(file.name.replace(".ascii.", ".annotation.")).read_text("utf-8").splitlines()
    for first, second, *_ in (line.split() for line in links):
        if int(second) >= _ANNOTATED and int(second) in places:
            gold.setdefault(places[int(second)], set()).add(places.get(int(first), -1))
    return Stretch(messages, gold)


def _messages(file: Path) -> Iterator[tuple[int, Message]]:
    when = datetime(2000, 1, 1, tzinfo=UTC)
    for number, line in enumerate(file.read_text("utf-8").splitlines()):
        found = _LINE.match(line)
        if found is None:
            continue
        day, hour, minute, second, speaker, actor, text = found.groups()
        who = speaker or actor
        if hour is None or who is None or line.split(" ", 2)[2].startswith("==="):
            continue
        at = datetime.fromisoformat(day).replace(tzinfo=UTC)
        when = max(when, at + timedelta(hours=int(hour), minutes=int(minute), seconds=int(second or 0)))
        yield number, Message(str(number), Scene("group", "1"), who.lower(), who, when, text.strip())
