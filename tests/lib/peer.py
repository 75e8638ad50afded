"""A real HTTP server on loopback whose answers a test writes: what other servers than llama_cpp.server say."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One response.

    Args:
        parts: the body, sent part by part.
        status: HTTP's number.
        kind: its content type.
        pause_s: wait before each part.
        cut: close the connection where the body should go on.
    """

    parts: Sequence[bytes]
    status: int = 200
    kind: str = "application/json"
    pause_s: float = 0.0
    cut: bool = False


@dataclass
class Peer:
    """What reached the server.

    Args:
        answer: gives the response to a request's JSON.
    """

    answer: Callable[[dict[str, Any]], Answer]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client closes in the middle of an answer."""

    loras: int | None = None
    """How many /lora-adapters tells of; None: it is not found."""
    models: Sequence[str] | None = None
    """What /v1/models tells of; None: it is not found."""
    active: int = 0
    """Requests under way."""
    most: int = 0
    """And the most at once."""

    def got(self, path: str, writer: asyncio.StreamWriter) -> None:
        found: Any = None if self.loras is None else [{"id": i} for i in range(self.loras)]
        if path.endswith("/models"):
            found = None if self.models is None else {"data": [{"id": name} for name in self.models]}
        told, status = json.dumps(found).encode(), 404 if found is None else 200
        writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(told)}\r\nConnection: close\r\n\r\n".encode() + told)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = ""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if head.startswith("GET"):
                self.got(head.split()[1], writer)
                return
            length = next(int(line.split(":")[1]) for line in head.lower().split("\r\n") if "content-length" in line)
            self.heads.append(head)
            self.asked.append(json.loads(await reader.readexactly(length)))
            self.active += 1
            self.most = max(self.most, self.active)
            answer = self.answer(self.asked[-1])
            writer.write(
                f"HTTP/1.1 {answer.status} -\r\nContent-Type: {answer.kind}\r\nConnection: close\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            gone = asyncio.create_task(reader.read())
            gone.add_done_callback(lambda read: read.cancelled() or read.exception())  # a reset is no fault here
            for part in answer.parts:
                await asyncio.wait([gone], timeout=answer.pause_s)
                if gone.done():
                    self.left.set()
                    return
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                await writer.drain()
            gone.cancel()
            if not answer.cut:
                writer.write(b"0\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            self.active -= bool(head) and not head.startswith("GET")
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(answer: Callable[[dict[str, Any]], Answer]) -> AsyncIterator[Peer]:
    """A peer that listens."""
    peer = Peer(answer)
    server = await asyncio.start_server(peer.talk, "127.0.0.1", 0)
    peer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield peer


def whole(text: str = "", logprobs: Any = None, finish: str = "length", prompt_tokens: int | None = None) -> Answer:
    """A completion at once."""
    choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish}
    usage = {} if prompt_tokens is None else {"usage": {"prompt_tokens": prompt_tokens}}
    return Answer([json.dumps({"object": "text_completion", "choices": [choice], **usage}).encode()])


def chatted(text: str, finish: str = "stop", prompt_tokens: int = 7, completion_tokens: int = 3, **how: Any) -> Answer:
    """The answer to a chat."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return Answer([json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()], **how)


def streamed(
    *texts: str, finish: str | None = "stop", done: bool = True, completion_tokens: int | None = None, **how: Any
) -> Answer:
    """A completion as server-sent events, as vLLM and llama-server write them: UTF-8 that is not escaped."""
    choices = [{"text": text, "finish_reason": None} for text in texts]
    if finish:
        choices.append({"text": "", "finish_reason": finish})
    told: list[dict[str, Any]] = [{"choices": [c], "usage": None} for c in choices]
    if completion_tokens is not None:
        told.append({"choices": [], "usage": {"completion_tokens": completion_tokens}})
    events = [f"data: {json.dumps(each, ensure_ascii=False)}\n\n".encode() for each in told]
    end = [b"data: [DONE]\n\n"] if done else []
    return Answer([b": ping\n\n", *events, *end], kind="text/event-stream; charset=utf-8", **how)
