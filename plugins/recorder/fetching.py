"""A link of a message's file → its content."""

import httpx
from loguru import logger

TIMEOUT_S = 20.0


async def download(url: object, max_bytes: int) -> bytes | None:
    """A file from its link, at most one part more than `max_bytes` of it; None if it cannot be had."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        return None
    content = bytearray()
    try:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S, follow_redirects=True) as http,
            http.stream("GET", url) as answer,
        ):
            if answer.status_code != 200:
                return None
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > max_bytes:
                    break
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        logger.info("a file's link does not work: {}", type(e).__name__)
        return None
    return bytes(content)
