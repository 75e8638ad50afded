"""`twin bench chat`: what the daemon's own code costs beside NoneBot alone, and thirty simulated days of a person."""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect

from bench.chatpeer import DONE, GROUPS, SENT_AT
from bench.figures import Figure, at_least, show
from bot import config, log
from bot.archive import Archive

if TYPE_CHECKING:
    from bench.simulated import Day

PLOTS = Path(__file__).parents[1] / "docs" / "chat"
_PACED_S, _PACED = 0.01, 1500
"""Fifteen seconds of messages: a scene in which somebody writes on is looked at after ten (`bot.presence.GATHER_S`)."""
_RATE_GOAL, _ADDED_MS = 0.9, 5.0
_DAYS, _SHORT_DAYS = 30, 5


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure everything and print it.

    Args:
        settings: bot.toml's; nothing of them counts here.
        root: its folder.
        full: 5,000 messages five times and thirty days, with plots in docs/chat/; else 500, three times, and five days.
        as_json: for programs.
    """
    log.setup("WARNING")
    figures = asyncio.run(_cost(5000 if full else 500, 5 if full else 3))
    from bench.history import FAMILY  # with torch: not while costs are measured

    if FAMILY.is_file():
        figures += _days(_DAYS if full else _SHORT_DAYS, PLOTS if full else None)
    show("chat", figures, as_json=as_json)


# -- what it costs --------------------------------------------------------------------------------


async def _cost(n: int, rounds: int) -> list[Figure]:
    rates: dict[str, list[float]] = {"twin": [], "empty": []}
    late: dict[str, list[float]] = {"twin": [], "empty": []}
    with _child("twin") as ours, _child("empty") as theirs:
        for _ in range(rounds + 1):
            for kind, child in (("twin", ours), ("empty", theirs)):
                rates[kind].append(await child.flood(n))
                late[kind] += (await child.paced(_PACED))[_PACED // 10 :]
    rate, peer = (statistics.median(rates[k][1:]) for k in ("twin", "empty"))
    spread = (max(rates["twin"][1:]) - min(rates["twin"][1:])) / rate
    name = "messages recorded and decided on, model left out"
    figures = [at_least(name, "1/s", rate, "NoneBot, empty matchers", peer, _RATE_GOAL, n=rounds, spread=spread)]
    for quantile, label in ((50, "median"), (99, "p99")):
        ours_ms, theirs_ms = (1000 * _quantile(late[k], quantile) for k in ("twin", "empty"))
        added = ours_ms - theirs_ms
        goal = _ADDED_MS if quantile == 99 else None
        met = None if goal is None else added <= goal
        figures.append(
            Figure(f"latency added at {1 / _PACED_S:.0f} messages/s, {label} (peer: all of it)", added, "ms",
                   "NoneBot, empty matchers", theirs_ms, goal, met, len(late["twin"]))
        )  # fmt: skip
    return figures


def _quantile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


class _Child:
    """A flooded app."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process, self._port, self._n = process, port, 0

    async def flood(self, n: int) -> float:
        """Messages a second when as many come as it can take."""
        began = time.monotonic()
        return n / (float((await self._send(n, 0.0))["now"]) - began)

    async def paced(self, n: int) -> list[float]:
        """Seconds from sending a message until it was handled, at a steady rate."""
        late: list[float] = (await self._send(n, _PACED_S))["late_s"]
        return late

    async def _send(self, n: int, pause_s: float) -> dict[str, Any]:
        headers = {"X-Self-ID": "9", "Authorization": "Bearer bench", "x-client-role": "Universal"}
        url = f"ws://127.0.0.1:{self._port}/onebot/v11/ws"
        async with connect(url, additional_headers=headers, proxy=None, ping_interval=None) as socket:
            due = time.monotonic()
            for _ in range(n):
                await socket.send(json.dumps(self._frame()))
                if pause_s:
                    due += pause_s
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
            line = asyncio.create_task(asyncio.to_thread(self._told))
            while not line.done():
                await socket.send(json.dumps(self._heartbeat(n)))
                await asyncio.wait([line], timeout=0.02)
            return line.result()

    def _told(self) -> dict[str, Any]:
        """The child's next figures; what NoneBot prints before is passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit("the flooded app ended; run `python -m bench.chatpeer 8999 twin` to see why")

    def _frame(self) -> dict[str, Any]:
        self._n += 1
        user = self._n % 97 + 1000
        return {
            "time": int(time.time()), "self_id": 9, "post_type": "message", "message_type": "group",
            "sub_type": "normal",
            "user_id": user, "group_id": self._n % GROUPS + 1, "group_name": "测试群", "message_id": self._n,
            "real_seq": str(self._n), "raw_message": "在吗", "font": 14, "message_format": "array",
            "message": [{"type": "text", "data": {"text": f"在吗，第{self._n}次问了"}}],
            "sender": {"user_id": user, "nickname": f"群友{user}", "card": "", "role": "member"},
            SENT_AT: time.monotonic(),
        }  # fmt: skip

    def _heartbeat(self, n: int) -> dict[str, Any]:
        status = {"online": True, "good": True}
        return {"time": int(time.time()), "self_id": 9, "post_type": "meta_event", "meta_event_type": "heartbeat",
                "status": status, "interval": 30000, DONE: n}  # fmt: skip


@contextmanager
def _child(kind: str) -> Iterator[_Child]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "bench.chatpeer", str(port), kind]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                time.sleep(0.05)
        yield _Child(process, port)
    finally:
        process.kill()
        process.wait()


# -- thirty days ----------------------------------------------------------------------------------


def _days(days: int, plots: Path | None) -> list[Figure]:
    from bench.history import FAMILY
    from bench.simulated import compare, overlap
    from training import history

    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(f"sqlite:///{folder}/archive.db")
        result = history.load(FAMILY, archive)
        ((me, _),) = result.reading.owners.most_common(1)
        person, twin = compare(archive, (me,), days)
        archive.close()
    if plots is not None:
        _draw(plots, person, twin)
    name = f"in {days} simulated days"
    figures = [
        Figure(f"bubbles {name}", sum(twin.hours), "bubbles", "the person", sum(person.hours)),
        Figure(f"hours of the day shared {name}", overlap(twin.hours, person.hours), ""),
        Figure(f"bubbles of a turn {name}", _mean(twin.bubbles), "", "the person", _mean(person.bubbles)),
    ]
    for kind in ("private", "group"):
        rates = (d.answered[kind] / max(1, d.decisions[kind]) for d in (twin, person))
        figures.append(Figure(f"reply rate, {kind} {name}", next(rates), "", "the person", next(rates)))
        if twin.delays[kind] and person.delays[kind]:
            waits = (statistics.median(d.delays[kind]) for d in (twin, person))
            figures.append(Figure(f"median delay, {kind} {name}", next(waits), "s", "the person", next(waits)))
    return figures


def _mean(values: list[int]) -> float:
    return sum(values) / max(1, len(values))


def _draw(folder: Path, person: "Day", twin: "Day") -> None:
    """Four PNGs, the person beside the twin; English, since matplotlib ships no font with Chinese characters."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    sides = (("person", person), ("twin", twin))
    figure, axes = _figure("bubbles by local hour")
    for place, (name, day) in enumerate(sides):
        axes.bar(np.arange(24) + 0.4 * place, day.hours, 0.4, label=name)
    _save(figure, axes, folder / "hours.png")
    figure, axes = _figure("bubbles of a turn")
    for place, (name, day) in enumerate(sides):
        counts = np.bincount(np.minimum(day.bubbles, 8), minlength=9)[1:] / max(1, len(day.bubbles))
        axes.bar(np.arange(1, 9) + 0.4 * place, counts, 0.4, label=name)
    _save(figure, axes, folder / "bubbles.png")
    figure, axes = _figure("seconds until an answer (part of the answers up to x)")
    for name, day in sides:
        for kind, style in (("private", "-"), ("group", "--")):
            seconds = np.sort(np.maximum(day.delays[kind], 0.5))
            axes.step(seconds, np.arange(1, len(seconds) + 1) / max(1, len(seconds)), style, label=f"{name}, {kind}")
    axes.set_xscale("log")
    _save(figure, axes, folder / "delays.png")
    figure, axes = _figure("part of the bursts that were answered")
    for place, (name, day) in enumerate(sides):
        rates = [day.answered[k] / max(1, day.decisions[k]) for k in ("private", "group")]
        axes.bar(np.arange(2) + 0.4 * place, rates, 0.4, label=name)
    axes.set_xticks(np.arange(2) + 0.2, ["private", "group"])
    _save(figure, axes, folder / "reply-rate.png")


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _save(figure: Any, axes: Any, file: Path) -> None:
    axes.legend()
    figure.savefig(file)
