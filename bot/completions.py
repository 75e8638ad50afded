"""An OpenAI-compatible server over httpx: a completion → its answer, whole or as a stream; a chat → its answer whole.

Every fault is an EngineError that says what, which server and what to do. It never holds the key, the prompt, or the
server's own words: some servers quote the request in them.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from loguru import logger

from bot.errors import EngineError

_BACK_OFF_S = (0.5, 1.5)
"""Pauses before a second and a third attempt."""
_BUSY = frozenset({429, 502, 503, 504})
_COUNTED = ("prompt", "completion")
_CODE = re.compile(r"[A-Za-z_]{1,40}")


class Refused(EngineError):
    """The server answered with an error.

    Args:
        message: what, and what to do.
        status: HTTP's number for it.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Named:
    """What the settings behind a client are called, for its errors."""

    url: str = "[engine] remote_url"
    model: str = "[engine] remote_model"
    key: str = "TWIN__ENGINE__REMOTE_API_KEY"
    timeout: str = "[engine] remote_timeout_s"
    deadline: str = "[engine] deadline_s"
    length: str = "[engine] n_ctx tokens"


@dataclass(frozen=True, slots=True)
class Told:
    """A chat's answer.

    Args:
        text: what the model said.
        cut: whether its context was full before it was done.
        prompt_tokens: tokens the server counted in the prompt; 0 where it does not say.
        completion_tokens: the same of the answer.
    """

    text: str
    cut: bool
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """An event of a streamed completion.

    Args:
        text: what came with it.
        finish: why the completion ended, `stop` or `length`; None before it has.
        completion_tokens: tokens the server counted in the whole of it; None where the event does not say.
    """

    text: str
    finish: str | None = None
    completion_tokens: int | None = None


class Completions:
    """A client of `<url>/completions`. Proxies of the environment are not used: chats go to the named server alone.

    Args:
        url: the API's root, such as http://127.0.0.1:8000/v1.
        api_key: sent as a bearer token.
        timeout_s: wait for the next byte.
        deadline_s: wait for a whole answer, time the reader of a stream takes not counted.
        named: what its errors call the settings.
        back_off_s: pauses before a second, a third … attempt (seconds).
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        timeout_s: float,
        deadline_s: float,
        named: Named = Named(),
        back_off_s: Sequence[float] = _BACK_OFF_S,
    ) -> None:
        self.url = url
        self._timeout_s, self.deadline_s = timeout_s, deadline_s
        self._named, self._back_off_s = named, back_off_s
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=url, headers=headers, timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            trust_env=False,
        )  # fmt: skip

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, body: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
        """The only choice of a completion, and the tokens the server counted in the prompt (None: it does not say).

        Raises:
            EngineError: of any fault; Refused when the server said no.
        """
        async with self.within():
            response = await self._send(body)
            try:
                raw = await response.aread()
            except httpx.HTTPError as e:
                raise self._cut(e) from e
            finally:
                await response.aclose()
        answer = self._parsed(raw, response)
        if (choice := self._choice(answer, response)) is None:
            raise self._not_understood(response)
        return choice, _counted(answer, "prompt")

    async def chat(self, body: dict[str, Any]) -> Told:
        """The answer to a chat. One that breaks off is asked for again, as is one of a busy server.

        Raises:
            EngineError: of any fault; Refused when the server said no.
        """
        response = await self._send(body, "chat/completions", whole=True)
        answer = self._parsed(response.content, response)
        choice = self._choice(answer, response)
        message = choice.get("message") if choice else None
        if choice is None or not isinstance(message, dict):
            raise self._not_understood(response)
        prompt, completion = (_counted(answer, kind) or 0 for kind in _COUNTED)
        return Told(str(message.get("content") or ""), choice.get("finish_reason") == "length", prompt, completion)

    async def models(self) -> list[str] | None:
        """Names of the models the server has; None where it does not say.

        Raises:
            EngineError: it does not answer, or refuses the key.
        """
        try:
            response = await self._send(None, "models", whole=True)
        except Refused as e:
            if e.status in (401, 403):
                raise
            return None
        told = self._parsed(response.content, response).get("data")
        listed = told if isinstance(told, list) else []
        names = [m["id"] for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)]
        return names or None

    async def loras(self) -> int | None:
        """How many LoRAs a llama-server has loaded; None where the server does not say."""
        try:
            response = await self._client.get(httpx.URL(self.url.rstrip("/")).join("lora-adapters"))
            told = response.json() if response.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None
        return len(told) if isinstance(told, list) else None

    async def stream(self, body: dict[str, Any], left_s: float | None = None) -> AsyncGenerator[Part, None]:
        """A completion as it comes; closing the iterator closes the connection, which stops the server.

        Args:
            body: the request.
            left_s: seconds left for it; None: the whole deadline.

        Raises:
            EngineError: of any fault; a stream that ends before the server said that it is finished is one.
        """
        left_s = self.deadline_s if left_s is None else left_s
        began = time.monotonic()
        async with self.within(left_s):
            response = await self._send({**body, "stream": True, "stream_options": {"include_usage": True}})
        try:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._not_understood(response)
            finished = False
            async with aclosing(self._events(response)) as events:
                while True:
                    async with self.within(left_s - (time.monotonic() - began)):
                        data = await anext(events, None)
                    if data is None or data == b"[DONE]":
                        break
                    answer = self._parsed(data, response)
                    choice = self._choice(answer, response) or {}
                    finish = choice.get("finish_reason")
                    finished = finished or finish is not None
                    paused = time.monotonic()
                    yield Part(str(choice.get("text") or ""), finish, _counted(answer, "completion"))
                    began += time.monotonic() - paused
            if data is None and not finished:
                raise self._cut(None)
        finally:
            await response.aclose()

    async def _events(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """Data of server-sent events. Lines end with a line feed only: JSON may hold U+2028 and U+0085 as they are."""
        rest = b""
        try:
            async for part in response.aiter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    # llama-server has told errors as `error: {…}`.
                    name, _, value = line.strip().partition(b":")
                    if name in (b"data", b"error"):
                        yield value.strip()
            name, _, value = rest.strip().partition(b":")
            if name == b"data" and _is_whole(value.strip()):  # its line feed was spared
                yield value.strip()
        except httpx.HTTPError as e:
            raise self._cut(e) from e

    async def _send(
        self, body: dict[str, Any] | None, path: str = "completions", *, whole: bool = False
    ) -> httpx.Response:
        """A response with status 200, read if `whole`, else open; busy and broken servers are asked again."""
        tried = 0
        while True:
            request = self._client.build_request("GET" if body is None else "POST", path, json=body)
            tried += 1
            try:
                response = await self._client.send(request, stream=True)
                if whole and response.status_code == 200:
                    await response.aread()
            except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as e:
                raise EngineError(
                    f"{self.url} did not answer within {self._named.timeout} = {self._timeout_s:g}; "
                    "is it overloaded, or a prompt long?"
                ) from e
            except httpx.HTTPError as e:
                if tried > len(self._back_off_s):
                    raise EngineError(
                        f"no server answers at {self.url} ({type(e).__name__}, tried {tried} times); start it, or mend "
                        f"{self._named.url}"
                    ) from e
            else:
                if response.status_code == 200:
                    return response
                refusal = await self._refusal(response, str((body or {}).get("model")), path, tried)
                if response.status_code not in _BUSY or tried > len(self._back_off_s):
                    raise refusal
            logger.debug("attempt {} at {} failed; trying again", tried, self.url)
            await asyncio.sleep(self._back_off_s[tried - 1])

    async def _refusal(self, response: httpx.Response, model: str, path: str, tried: int) -> Refused:
        status = response.status_code
        try:
            answer = json.loads(await response.aread())
            error = answer.get("error") if isinstance(answer.get("error"), dict) else answer
            named = next((v for v in (error.get("code"), error.get("type")) if isinstance(v, str)), "")
        except (httpx.HTTPError, ValueError, AttributeError):
            named = ""
        finally:
            await response.aclose()
        what = f"HTTP {status}" + (f", {named}" if _CODE.fullmatch(named) else "")
        if status in (401, 403):
            words = f"refuses the API key ({what}); set {self._named.key}"
        elif status == 404:
            words = f"knows no model {model!r} or no /{path} ({what}); mend {self._named.model} or {self._named.url}"
        elif status in _BUSY:
            words = f"is overloaded or still loading ({what}, tried {tried} times); wait, or ask less of it"
        elif status in (400, 413, 422):
            words = f"refuses the request ({what}); its context must hold {self._named.length}"
        else:
            words = f"failed ({what}); its own log says why"
        return Refused(f"{self.url} {words}", status)

    def _parsed(self, raw: bytes, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            raise self._not_understood(response) from None
        if not isinstance(answer, dict):
            raise self._not_understood(response)
        return answer

    def _choice(self, answer: dict[str, Any], response: httpx.Response) -> dict[str, Any] | None:
        """The first choice; None where there is none (the usage at the end of a stream)."""
        choices = answer.get("choices")
        if answer.get("error") or not isinstance(choices, list):
            if "error" in answer or "message" in answer:
                raise EngineError(f"{self.url} reported an error instead of an answer; its own log says why")
            raise self._not_understood(response)
        if choices and not isinstance(choices[0], dict):
            raise self._not_understood(response)
        return choices[0] if choices else None

    def _not_understood(self, response: httpx.Response) -> EngineError:
        kind = response.headers.get("content-type", "nothing").partition(";")[0]
        return EngineError(
            f"{self.url} answers with {kind[:40]!r}, not as a completion endpoint does; {self._named.url} usually "
            "ends in /v1"
        )

    def _cut(self, error: httpx.HTTPError | None) -> EngineError:
        if isinstance(error, httpx.TimeoutException):
            return EngineError(
                f"{self.url} fell silent in the middle of an answer for {self._named.timeout} = {self._timeout_s:g}"
            )
        return EngineError(f"{self.url} broke off in the middle of an answer; its own log says why")

    @asynccontextmanager
    async def within(self, left_s: float | None = None) -> AsyncIterator[None]:
        """What is done in it ends with the EngineError of a passed deadline; None: the whole one."""
        try:
            async with asyncio.timeout(self.deadline_s if left_s is None else max(0.0, left_s)):
                yield
        except TimeoutError:
            raise EngineError(
                f"{self.url} took longer for an answer than {self._named.deadline} = {self.deadline_s:g}"
            ) from None


def _counted(answer: dict[str, Any], kind: str) -> int | None:
    """Tokens of the prompt or the completion as the server counted them; None where it does not say."""
    usage = answer.get("usage")
    found = usage.get(f"{kind}_tokens") if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None


def _is_whole(data: bytes) -> bool:
    """Whether an event's data was not cut off."""
    try:
        return data == b"[DONE]" or isinstance(json.loads(data), dict)
    except ValueError:
        return False
