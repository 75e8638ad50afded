"""A talk → its answer as it comes: parts, a whole text, or server-sent events."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from bot.api.talks import Talk
from bot.api.wire import chunk, failure, usage
from bot.errors import TwinError
from bot.reply import Replier


async def events(replier: Replier, talk: Talk, head: dict[str, Any], *, with_usage: bool) -> AsyncGenerator[str, None]:
    """A stream; it ends early, and the generation with it, when the client goes."""
    text = ""
    yield _event(chunk(head, {"role": "assistant", "content": ""}))
    try:
        async with aclosing(parts(replier, talk)) as found:
            async for part in found:
                text += part
                yield _event(chunk(head, {"content": part}))
    except TwinError as e:
        yield _event(failure(str(e), "server_error", "engine_unavailable"))
        return
    used = usage(talk.prompt_tokens, talk.count(text))
    yield _event(chunk(head, {}, finish(talk, used)))
    if with_usage:
        yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": used})
    yield "data: [DONE]\n\n"


async def parts(replier: Replier, talk: Talk) -> AsyncGenerator[str, None]:
    """The answer as it comes, a bubble at a time with its line break, up to the first stop text."""
    if not talk.speaks:
        return
    text = ""
    async with aclosing(replier.words(talk.request, repeats=talk.repeats)) as bubbles:
        async for bubble in bubbles:
            line = bubble.replace("↵", "\n")
            part = f"\n{line}" if text else line
            ends = [at for stop in talk.stops if (at := (text + part).find(stop)) >= 0]
            if ends:
                if rest := (text + part)[len(text) : min(ends)]:
                    yield rest
                return
            text += part
            yield part


def finish(talk: Talk, used: dict[str, int]) -> str:
    """Why it ended: `length` where `max_tokens` did, else `stop`."""
    return "length" if used["completion_tokens"] >= talk.request.sampling.max_tokens else "stop"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
