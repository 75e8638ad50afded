"""A talk → its answer as it comes: parts, a whole text, or server-sent events."""

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from bot.api.talks import Talk
from bot.api.wire import chunk, failure, usage
from bot.engine import End
from bot.errors import TwinError
from bot.reply import Replier


async def events(replier: Replier, talk: Talk, head: dict[str, Any], *, with_usage: bool) -> AsyncGenerator[str, None]:
    """A stream; it ends early, and the generation with it, when the client goes."""
    each = {**head, "usage": None} if with_usage else head
    yield _event(chunk(each, {"role": "assistant", "content": ""}))
    try:
        async with aclosing(parts(replier, talk)) as found:
            async for part in found:
                yield _event(chunk(each, {"content": part}))
    except TwinError as e:
        yield _event(failure(str(e), "server_error", "engine_unavailable"))
        return
    yield _event(chunk(each, {}, finish(talk)))
    if with_usage:
        yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": used(talk)})
    yield "data: [DONE]\n\n"


async def parts(replier: Replier, talk: Talk) -> AsyncGenerator[str, None]:
    """The answer as it comes, a bubble at a time with its line break, up to the first stop text.

    What a stop text may begin with is held back until the next bubble tells.
    """
    if not talk.speaks:
        return
    text, given = "", 0
    async with aclosing(replier.words(talk.request, repeats=talk.repeats)) as bubbles:
        async for bubble in bubbles:
            line = bubble.replace("↵", "\n")
            text += f"\n{line}" if text else line
            ends = [at for stop in talk.stops if (at := text.find(stop)) >= 0]
            upto = min(ends) if ends else len(text) - _begun(text, talk.stops)
            if upto > given:
                yield text[given:upto]
                given = upto
            if ends:
                return
    if given < len(text):
        yield text[given:]


def finish(talk: Talk) -> str:
    """Why it ended: `length` where `max_tokens` or the window's end cut it off, else `stop`."""
    return "length" if talk.request.ending.why is End.LENGTH else "stop"


def used(talk: Talk) -> dict[str, int]:
    """Tokens of the prompt, and those the engine made."""
    return usage(talk.prompt_tokens, talk.request.ending.tokens)


def _begun(text: str, stops: Iterable[str]) -> int:
    """Characters at the end of a text that a stop text begins with, at most."""
    ends = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
    return max(ends, default=0)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
