"""The HTTP side: /v1/models and /v1/chat/completions, whole or streamed as server-sent events."""

import secrets
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from loguru import logger
from pydantic import ValidationError

from bot.api.answers import events, finish, parts, used
from bot.api.talks import Talks
from bot.api.wire import ChatRequest, completion, failure
from bot.errors import PersonaError, TooLong, TwinError

_BODY_MAX = 4 << 20
"""Bytes of a request; a window of any model is far less."""


def router(talks: Talks, token: str) -> APIRouter:
    """The routes; every one asks for the bearer token."""
    routes = APIRouter(prefix="/v1")

    def refused(request: Request) -> Response | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(given.encode(), token.encode()):
            return None
        return _failed(401, "the bearer token is missing or wrong", "authentication_error", "invalid_api_key")

    @routes.get("/models")
    async def models(request: Request) -> Response:
        if (no := refused(request)) is not None:
            return no
        names = talks.twin.personas.names()
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "qqtwin"} for name in names]
        return JSONResponse({"object": "list", "data": listed})

    @routes.post("/chat/completions")
    async def completions(request: Request) -> Response:
        if (no := refused(request)) is not None:
            return no
        if (body := await _body(request)) is None:
            return _failed(413, f"a request is {_BODY_MAX >> 20} MB at most", "invalid_request_error")
        try:
            asked = ChatRequest.model_validate_json(body)
        except ValidationError as e:
            return _failed(400, _fault(e), "invalid_request_error")
        return await _answered(talks, asked)

    return routes


async def _answered(talks: Talks, asked: ChatRequest) -> Response:
    started = time.monotonic()
    if asked.model not in talks.twin.personas.names():
        return _failed(404, f"there is no persona {asked.model!r}", "invalid_request_error", "model_not_found")
    try:
        talk = await talks.understood(asked)
        head: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": asked.model,
        }  # fmt: skip
        if asked.stream:
            with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return StreamingResponse(
                events(talks.twin.replier, talk, head, with_usage=with_usage), media_type="text/event-stream"
            )
        text = "".join([part async for part in parts(talks.twin.replier, talk)])
    except TooLong as e:
        return _failed(400, str(e), "invalid_request_error", "context_length_exceeded")
    except PersonaError as e:
        return _failed(503, str(e), "server_error", "persona_unavailable")
    except TwinError as e:
        return _failed(503, str(e), "server_error", "engine_unavailable")
    logger.info("api: {} tokens as {} in {:.1f} s, end: {}", talk.request.ending.tokens, talk.request.voice.name,
                time.monotonic() - started, talk.request.ending.why or "none")  # fmt: skip
    return JSONResponse(completion(head, text, finish(talk), used(talk)))


async def _body(request: Request) -> bytes | None:
    """The request's body; None if it is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _BODY_MAX:
            return None
    return body


def _fault(error: ValidationError) -> str:
    """The first fault, without what was sent."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'request'}: {first['msg']}"


def _failed(status: int, message: str, kind: str, code: str | None = None) -> Response:
    return JSONResponse(failure(message, kind, code), status_code=status)
