"""onebot://HOST:PORT[/group/ID|/private/ID], a OneBot client's server → the archive; bot/backfill.py pages it."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from bot.archive import Archive
from bot.backfill import COUNT, PAUSE_S, Backfill, Call, Filled
from bot.errors import ImportFault
from bot.message import Scene

ANSWER_S = 30.0
"""Wait for an answer; NapCat gives up a call of its own after 10 s."""
CONNECT_S = 10.0
_PATH = re.compile(r"/?|/(group|private)/(\d{1,20})/?")
_FORM = "onebot://HOST:PORT/group/ID, /private/ID, or nothing after the port for all scenes"


def url_of(path: Path) -> str | None:
    """The address in a command line's argument, which a `Path` has squeezed (`onebot:/host`); None for a file."""
    found = re.fullmatch(r"onebot:/+(.+)", path.as_posix())
    return f"onebot://{found[1]}" if found else None


async def fill(
    url: str, token: str, archive: Archive, progress: Callable[[int, int], None], pause_s: float = PAUSE_S
) -> dict[str, Any]:
    """Read one scene, or all of the account's, into the archive.

    Args:
        url: as in the module's first line.
        token: of the client's WebSocket server; empty for none.
        archive: the message store.
        progress: called with messages read and that with one page more: how many there are is not known.
        pause_s: seconds between two pages.

    Returns:
        By scene: messages read, new ones, the oldest time, whether nothing older is to be had.

    Raises:
        ImportFault: the address is none, the client is not there, refuses the token or goes.
    """
    host, scene = parsed(url)
    summary: dict[str, Any] = {}
    read = 0
    async with calling(host, token) as call:
        backfill = Backfill(call, archive, pause_s)
        for place in [scene] if scene else await backfill.scenes():
            before = read

            def told(filled: Filled, before: int = before) -> None:
                nonlocal read
                read = before + filled.messages
                progress(read, read + COUNT)

            done = await backfill.fill(place, told)
            summary[str(place)] = {
                "messages": done.messages, "added": done.added, "skipped": done.skipped,
                "oldest": done.oldest.isoformat() if done.oldest else None, "complete": done.done,
            }  # fmt: skip
    return summary


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
        ImportFault: it cannot be had, goes, or an answer does not come in time.
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
    number = 0

    async def call(action: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal number
        number += 1
        echo = f"backfill-{number}"
        answers[echo] = asyncio.get_running_loop().create_future()
        try:
            await socket.send(json.dumps({"action": action, "params": params, "echo": echo}))
            await asyncio.wait([answers[echo], reader], timeout=ANSWER_S, return_when="FIRST_COMPLETED")
            if answers[echo].done():
                return dict(answers[echo].result())
        except WebSocketException:
            pass
        finally:
            answers.pop(echo).cancel()
        gone = "went" if reader.done() else f"did not answer {action} within {ANSWER_S:.0f} s"
        raise ImportFault(f"the OneBot client at {host} {gone}; what came is kept, import again to go on")

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
