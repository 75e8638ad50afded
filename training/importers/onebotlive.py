"""onebot://HOST:PORT[/group/ID|/private/ID], a OneBot client's server → the archive; bot/backfill.py pages it."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from bot.archive import Archive
from bot.backfill import COUNT, PAUSE_S, Backfill, Call, Filled
from bot.errors import ArchiveBusy, ImportFault
from bot.message import Scene
from training.speakers import many

ANSWER_S = 30.0
"""Wait for an answer; NapCat gives up a call of its own after 10 s."""
UNANSWERED = 3
"""Calls in a row without an answer, after which the client counts as gone."""
CONNECT_S = 10.0
_PATH = re.compile(r"/?|/(group|private)/(\d{1,20})/?")
_FORM = "onebot://HOST:PORT/group/ID, /private/ID, or nothing after the port for all scenes"


def url_of(path: Path) -> str | None:
    """The address in a command line's argument, which a `Path` has squeezed (`onebot:/host`); None for a file."""
    found = re.fullmatch(r"onebot:/+(.+)", path.as_posix())
    return f"onebot://{found[1]}" if found else None


async def fill(
    url: str, token: str, archive: Archive, progress: Callable[[int, int], None], pause_s: float = PAUSE_S
) -> tuple[dict[str, Any], ImportFault | None]:
    """Read one scene, or all of the account's, into the archive; a scene that is refused keeps no other from it.

    Args:
        url: as in the module's first line.
        token: of the client's WebSocket server; empty for none.
        archive: the message store.
        progress: called with messages read and that with one page more: how many there are is not known.
        pause_s: seconds before every page but the first, whatever its scene.

    Returns:
        By scene: messages read, new ones, what was left out by reason with its first places, the oldest time, whether
        nothing older is to be had, and why it was not read to its end, where it was not. And what the import is to
        end with, where a scene was not.

    Raises:
        ImportFault: the address is none, the client is not there, refuses the token, or goes before any scene.
    """
    host, scene = parsed(url)
    summary: dict[str, Any] = {}
    read, faults = 0, list[ImportFault]()
    async with calling(host, token) as call:
        backfill = Backfill(call, archive, pause_s)
        await backfill.login()
        places = [scene] if scene else list(await backfill.scenes())
        for place in places:
            done, fault = await _filled(backfill, place, partial(_further, progress, read))
            read += done.messages
            summary[str(place)] = {
                "messages": done.messages, "added": done.added,
                "skipped": {why: {"count": n, "places": done.places[why]} for why, n in done.skipped.most_common()},
                "oldest": done.oldest.isoformat() if done.oldest else None, "complete": done.done,
                **({"fault": str(fault)} if fault else {}),
            }  # fmt: skip
            if fault is not None:
                faults.append(fault)
                if isinstance(fault.__cause__, ConnectionError | ArchiveBusy):  # which would be every scene's
                    return summary, fault
    if not faults or scene:
        return summary, next(iter(faults), None)
    return summary, ImportFault(
        f"{len(faults)} of {len(places)} scenes were not read to their end, for what is said with each; mend that, or "
        "wait, and import again: what came is kept, and nothing is added twice"
    )


def _further(progress: Callable[[int, int], None], before: int, now: int) -> None:
    progress(before + now, before + now + COUNT)


async def _filled(
    backfill: Backfill, scene: Scene, progress: Callable[[int], None]
) -> tuple[Filled, ImportFault | None]:
    """What came of a scene, and what was in the way of more."""
    filled = Filled()

    def told(now: Filled) -> None:
        nonlocal filled
        filled = now
        progress(filled.messages)

    try:
        return await backfill.fill(scene, told), None
    except ImportFault as e:
        return filled, e


def in_words(summary: Mapping[str, Any]) -> str:
    """What `fill` gives as a person reads it."""
    lines = []
    for scene, shown in summary.items():
        back = f", back to {shown['oldest']}" if shown["oldest"] else ""
        lines.append(f"{scene}: {many(shown['messages'], 'message')} read, {shown['added']} new{back}")
        lines += left_out(shown["skipped"], "  ")
        if "fault" in shown:
            lines.append(f"  not read to its end: {shown['fault']}")
    return "\n".join(lines) or "no scene: the account has neither groups nor friends"


def left_out(skipped: Mapping[str, Any], indent: str) -> list[str]:
    """What was left out, a line for each reason."""
    return [f"{indent}left out {left['count']}: {why} ({', '.join(left['places'])})" for why, left in skipped.items()]


def parsed(url: str) -> tuple[str, Scene | None]:
    """`HOST:PORT`, and the scene named behind it.

    Raises:
        ImportFault: it is no such address.
    """
    parts = urlsplit(url)
    try:
        found, port = _PATH.fullmatch(parts.path), parts.port
    except ValueError:
        found, port = None, None
    if found is None or not parts.hostname or port is None or parts.query:
        raise ImportFault(f"{url!r} is no address of a OneBot client: {_FORM}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}", Scene(found[1], found[2]) if found[1] else None


@asynccontextmanager
async def calling(host: str, token: str) -> AsyncIterator[Call]:
    """A connection to the client's WebSocket server, as a function that calls its actions.

    Raises:
        ImportFault: it cannot be had, goes, or an answer does not come in time; from a ConnectionError where nothing
            more will come.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        socket = await connect(
            f"ws://{host}/", additional_headers=headers, proxy=None, max_size=None, open_timeout=CONNECT_S
        )
    except InvalidStatus as e:
        raise ImportFault(
            f"{host} refuses the connection ({e.response.status_code}): is the token the client's?"
        ) from e
    except (OSError, TimeoutError, WebSocketException) as e:
        raise ImportFault(
            f"no OneBot client listens on {host} ({type(e).__name__}): switch on its WebSocket server (NapCat: 3001)"
        ) from e
    answers: dict[str, asyncio.Future[Any]] = {}
    reader: asyncio.Future[Any] = asyncio.create_task(_read(socket, answers))
    number = unanswered = 0

    async def call(action: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal number, unanswered
        number += 1
        echo = f"backfill-{number}"
        answers[echo] = asyncio.get_running_loop().create_future()
        try:
            await socket.send(json.dumps({"action": action, "params": params, "echo": echo}))
            await asyncio.wait([answers[echo], reader], timeout=ANSWER_S, return_when="FIRST_COMPLETED")
            if answers[echo].done():
                unanswered = 0
                return dict(answers[echo].result())
            went = reader.done()
        except WebSocketException:
            went = True
        finally:
            answers.pop(echo).cancel()
        unanswered += 1
        gone = "went" if went else f"did not answer {action} within {ANSWER_S:.0f} s"
        lost = ConnectionError() if went or unanswered == UNANSWERED else TimeoutError()
        raise ImportFault(f"the OneBot client at {host} {gone}; what came is kept, import again to go on") from lost

    try:
        yield call
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
        await socket.close()


async def _read(socket: ClientConnection, answers: Mapping[str, "asyncio.Future[Any]"]) -> None:
    """Hand answers to their calls until the connection ends; events are the daemon's."""
    with contextlib.suppress(WebSocketException):
        async for frame in socket:
            try:
                answer = json.loads(frame)
            except (ValueError, RecursionError):
                continue
            waiting = answers.get(str(answer.get("echo"))) if isinstance(answer, dict) else None
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)
