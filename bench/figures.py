"""Measured figures → a table for people, JSON for programs."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

_MET = {True: "met", False: "not met", None: "not measured"}
_PACKAGES = ("qqtwin", "llama-cpp-python", "torch", "transformers", "peft", "trl", "nonebot2", "sqlalchemy")


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Args:
        name: what.
        value: median; None where it was not measured, for want of the peer.
        unit: of value and peer_value.
        peer: what it stands beside, measured in the same run.
        peer_value: its median.
        goal: what was aimed at, where something was: of the ratio if there is a peer, else of the value.
        met: whether it was reached.
        n: measurements.
        spread: (max - min) / median.
    """

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    goal: float | None = None
    met: bool | None = None
    n: int = 1
    spread: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value / peer_value."""
        if self.value is None or not self.peer_value:
            return None
        return self.value / self.peer_value


def medians(n: int, measure: Callable[[], float]) -> tuple[float, float]:
    """Median and spread ((max - min) / median) of n measurements, after one that is not counted."""
    measure()
    values = [measure() for _ in range(n)]
    middle = statistics.median(values)
    return middle, (max(values) - min(values)) / middle if middle else 0.0


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of a call in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(n: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of two measurements taken in turn, n times each after one that is not counted, and the first's spread.

    Taken in turn, what else the machine does falls on both alike.
    """
    pairs = [(ours(), theirs()) for _ in range(n + 1)][1:]
    first, second = zip(*pairs, strict=True)
    middle = statistics.median(first)
    return middle, statistics.median(second), (max(first) - min(first)) / middle if middle else 0.0


def at_least(name: str, unit: str, value: float, peer: str, peer_value: float, goal: float, **more: Any) -> Figure:
    """A figure whose ratio to its peer's should be `goal` or more."""
    return Figure(name, value, unit, peer, peer_value, goal, value >= goal * peer_value, **more)


def at_most(name: str, unit: str, value: float, peer: str, peer_value: float, goal: float, **more: Any) -> Figure:
    """A figure whose ratio to its peer's should be `goal` or less."""
    return Figure(name, value, unit, peer, peer_value, goal, value <= goal * peer_value, **more)


def show(bench: str, figures: list[Figure], *, as_json: bool, of: BaseModel | None = None) -> None:
    """Print the figures.

    Args:
        bench: its name.
        figures: what was measured.
        as_json: for programs, with date, machine, versions and settings.
        of: the settings it ran with, where bot.toml has any for it.
    """
    if as_json:
        ran = {
            "bench": bench, "date": datetime.now(UTC).date().isoformat(), "machine": machine(), "versions": versions(),
            "settings": of.model_dump(mode="json") if of is not None else None,
        }  # fmt: skip
        print(json.dumps({**ran, "figures": [{**asdict(f), "ratio": f.ratio} for f in figures]}, indent=1))
        return
    table = Table(title=f"{bench} on {machine()}")
    for column in ("figure", "value", "unit", "peer", "peer value", "ratio", "goal", "n", "spread"):
        table.add_column(column)
    for f in figures:
        goal = "" if f.goal is None else f"{_round(f.goal)} {_MET[f.met]}"
        table.add_row(
            f.name, _round(f.value), f.unit, f.peer or "", _round(f.peer_value), _round(f.ratio), goal, str(f.n),
            "" if f.spread is None else f"{f.spread:.0%}",
        )  # fmt: skip
    Console(width=150).print(table)


def machine() -> str:
    """The machine in words: processor and cores."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            name = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, CPython {platform.python_version()}"


def versions() -> dict[str, str]:
    """Versions of the libraries that matter."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _round(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
