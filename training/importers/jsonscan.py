"""JSON text of any size → its members one by one, the broken ones told and passed over.

`json` reads one value from a window of the text that grows only when a value does not end in it. Chat logs and training
sets are both read so. A library for this (ijson) was used before: its first error (a control character in a string, a
NaN, a missing comma) was the end of the file, and it took twice the time (docs/decisions.md).
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from training.importers.source import Reading
from training.importers.text import decoded, lines, whole_lines

WINDOW_MAX = 16 << 20
"""Characters one value may have."""
TRUNCATED, BROKEN, DEEP = "the file ends in the middle", "broken JSON", "nested too deeply"
OPENED: Final = object()
"""Stands for the value of an array or object whose members follow."""
CLOSED: Final = object()
"""Says, where it is asked for, that an outermost one is whole."""
_SPACE = re.compile(r"[\s,]*")
_FIRST_KEY = re.compile(r'\{\s*"[^"\\]{1,64}"\s*:')
_TOKEN = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"|["{}\[\],]')
"""A text (of one line), a bracket, a comma; a quote that begins no text."""
_MEMBER, _MEMBER_CUT = re.compile(r',\s*\{\s*"'), re.compile(r",\s*(?:\{\s*)?")
_STEP, _SIGN, _TEXT_MAX = 4096, 256, 1 << 20
_SNIFFED_LINES = 20
_LITERAL = 16
"""Characters from its end within which a cut-off text fails, but for strings, which fail where they begin."""
_NUMBER_END = re.compile(r"[.eE]?[+-]?")
_decoder = json.JSONDecoder(strict=False)


class _Broken(ValueError):
    pass


@dataclass(slots=True)
class _Level:
    """An open array or object: its route, the first member's beginning (which tells members of this array apart)."""

    route: str
    array: bool
    sign: re.Pattern[str] | None = None


@dataclass(slots=True)
class _Window:
    pieces: Iterator[str]
    text: str = ""
    at: int = 0
    ended: bool = field(default=False)

    def more(self) -> bool:
        """Let the text grow by a piece, less what was read; False at its end."""
        piece = next(self.pieces, None)
        if piece is None:
            self.ended = True
            return False
        self.text, self.at = self.text[self.at :] + piece, 0
        return True

    def next(self) -> str:
        """The next character but for spaces and commas, not taken; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None
            if space.end() < len(self.text):
                self.at = space.end()
                return self.text[self.at]
            # What stands before a member tells it from members of its members: some of it is kept.
            self.at = max(self.at, space.end() - 64)
            if not self.more():
                self.at = len(self.text)
                return ""

    def value(self) -> Any:
        """Take the value that begins here; _Broken says why it cannot be."""
        while True:
            try:
                value, end = _decoder.raw_decode(self.text, self.at)
            except RecursionError as e:
                raise _Broken(DEEP) from e
            except json.JSONDecodeError as e:
                cut = e.pos >= len(self.text) - _LITERAL or e.msg.startswith("Unterminated string")
                if cut and len(self.text) - self.at < WINDOW_MAX and self.more():
                    continue
                raise _Broken(TRUNCATED if cut and self.ended else BROKEN) from e
            except ValueError as e:  # An integer of more digits than Python converts.
                raise _Broken(BROKEN) from e
            # A number may go on in the next piece: `1`, `1.`, `1e`, `1e-`.
            if type(value) in (int, float) and _NUMBER_END.fullmatch(self.text, end) and self.more():
                continue
            self.at = end
            return value

    def find(self, sign: re.Pattern[str], kept: int = 256) -> bool:
        """Go to the next match; False when there is none to the end."""
        while (found := sign.search(self.text, self.at)) is None:
            self.at = max(self.at, len(self.text) - kept)
            if not self.more():
                return False
        self.at = found.start()
        return True

    def find_member(self, sign: re.Pattern[str] | None, depth: int) -> bool:
        """Go to an array's next member: the first that follows, brackets counted, or that begins like `sign`.

        Args:
            sign: how the array's first member begins; it finds what counting misses where quotes are missing.
            depth: brackets open within the array.
        """
        counted, step = self.at, 0
        while True:
            end = min(self.at + _STEP * 2**step, len(self.text))
            counted, depth, member = self._count(counted, end, depth)
            signed = sign.search(self.text, self.at, end if member is None else member) if sign else None
            if signed is not None or member is not None:
                self.at = signed.start() if signed is not None else member or 0
                return True
            step += 1
            if end < len(self.text):
                continue
            # A text that begins here may end in the next piece; a sign, too.
            kept = max(self.at, min(counted, len(self.text) - _SIGN))
            counted, self.at, step = counted - kept, kept, 0
            if not self.more():
                return False

    def _count(self, at: int, end: int, depth: int) -> tuple[int, int, int | None]:
        """(where counting goes on, brackets open there, where a member begins) from `at` on, to `end` or little more.

        Brackets below the array's own are no longer counted: the array was closed.
        """
        while at < end and depth >= 0:
            found = _TOKEN.search(self.text, at)
            if found is None:
                return len(self.text), depth, None
            token, here = found[0], found.start()
            if token == '"' and not self.ended and len(self.text) - here < _TEXT_MAX and "\n" not in self.text[here:]:
                return here, depth, None
            if token == "," and depth == 0:
                if _MEMBER.match(self.text, here):
                    return here, depth, here
                if not self.ended and _MEMBER_CUT.fullmatch(self.text, here):
                    return here, depth, None
            depth += (token in "{[") - (token in "}]")
            at = found.end()
        return at if depth >= 0 else max(at, end), depth, None


def members(
    pieces: Iterable[str],
    opened: Collection[str],
    broken: Callable[[str], None],
    depth: int = 0,
    whole: Collection[str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Every member as (route, value): `messages.*` is one of the array `messages`, `*` one of a bare array.

    Of what is broken, `broken` is told why; reading goes on at the next member of the same array: the next object at
    its level, or what begins like its first one.

    Args:
        pieces: the text; several values may follow each other.
        opened: routes of the arrays and objects to look into; such a one itself comes as `OPENED`.
        broken: called with `TRUNCATED`, `BROKEN` or `DEEP`.
        depth: open everything down to here, too.
        whole: open an outermost object's arrays, too, but for these, and tell the end of what is outermost by `CLOSED`;
            None: as `opened` says.
    """
    window, levels = _Window(iter(pieces)), list[_Level]()
    window.more()
    window.text = window.text.removeprefix("﻿")
    while True:
        here = window.next()
        if not here:
            if levels:
                broken(TRUNCATED)
            return
        if here in "]}" and levels:
            levels.pop()
            window.at += 1
            if whole is not None and not levels:
                yield "", CLOSED
            continue
        level = levels[-1] if levels else None
        try:
            route = _route(window, level)
            here = window.text[window.at]
            listed = whole is not None and here == "[" and len(levels) == 1 and not levels[0].array
            if here in "{[" and (route in opened or len(levels) < depth or (listed and route not in (whole or ()))):
                window.at += 1
                levels.append(_Level(route, here == "["))
                yield route, OPENED
                continue
            value = window.value()
        except _Broken as why:
            again = _resume(window, levels, opened)
            broken(BROKEN if again and str(why) == TRUNCATED else str(why))
            if not again:
                return
            continue
        yield route, value


def _route(window: _Window, level: _Level | None) -> str:
    """Where the next value stands; takes an object's key."""
    if level is None:
        return ""
    prefix = f"{level.route}." if level.route else ""
    if level.array:
        if level.sign is None and (head := _FIRST_KEY.match(window.text, window.at)):
            before = window.text[max(0, window.at - 64) : window.at]
            level.sign = re.compile(re.escape(before[len(before.rstrip()) :] + head[0]))
        return f"{prefix}*"
    if window.text[window.at] != '"':
        raise _Broken(BROKEN)
    key = window.value()
    if window.next() != ":":
        raise _Broken(BROKEN if window.text[window.at :] else TRUNCATED)
    window.at += 1
    if not window.next():
        raise _Broken(TRUNCATED)
    return f"{prefix}{key}"


def _resume(window: _Window, levels: list[_Level], opened: Collection[str]) -> bool:
    """Go past what is broken: to the array's next member, or to the object's next array that is to be opened."""
    inside = window.text[window.at : window.at + 1] in ("{", "[")
    window.at = min(window.at + 1, len(window.text))
    if not levels:
        return False
    level = levels[-1]
    if level.array:
        return window.find_member(level.sign, int(inside))
    prefix = f"{level.route}." if level.route else ""
    keys = [r.removeprefix(prefix) for r in opened if r.startswith(prefix)]
    names = "|".join(re.escape(k) for k in keys if k and "." not in k and k != "*")
    return bool(names) and window.find(re.compile(rf'"(?:{names})"\s*:\s*[\[{{]'))


def values(texts: Iterable[str], reading: Reading) -> Iterator[Any]:
    """The values of lines that are JSON; other lines are counted, but for empty ones."""
    for line in texts:
        if not line.strip():
            continue
        try:
            value = json.loads(line, strict=False)
        except RecursionError:
            reading.skip(DEEP)
        except ValueError:
            reading.skip("not JSON")
        else:
            yield value


def objects(path: Path, reading: Reading) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one a line; other lines are counted, but for empty ones and `#` comments.

    Raises:
        ImportFault: the file cannot be read.
    """
    texts = whole_lines(lines(path, reading), reading)
    for value in values((line for line in texts if not line.startswith("#")), reading):
        if isinstance(value, dict):
            yield value
        else:
            reading.skip("not an object")


@lru_cache(maxsize=4)
def shapes(head: bytes) -> tuple[dict[str, Any], ...]:
    """What JSON values the beginning of a file holds: for each (a line of JSONL is one), values by their routes.

    Empty for what is no JSON. Of a value cut off by the end of `head`, what came before.
    """
    text = decoded(head)
    found = _shapes(text)
    # A broken line ends the reading of a text, not that of a file of lines.
    if len(found) < 2 and not any({"messages", "*"} & s.keys() for s in found):
        for line in text.splitlines()[:_SNIFFED_LINES]:
            if line.startswith("{"):
                found += _shapes(line)
    return tuple(found)


def _shapes(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if text.lstrip()[:1] in ("{", "["):
        for route, value in members([text], (), lambda _: None, depth=4):
            if not route:
                found.append({})
            found[-1].setdefault(route, value)
            if len(found) > _SNIFFED_LINES:
                break
    return found
