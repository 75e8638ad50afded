"""A picture → a few words of what it shows, by a vision model of an OpenAI-compatible server."""

from __future__ import annotations

import base64
import re
from typing import Any

import httpx

from bot import config
from bot.errors import EngineError

_ASKED = "用不超过二十个字的中文说出图里是什么，只写内容。"
_WORDS_MAX, _TOKENS_MAX = 40, 60


class Captions:
    """A client of `<url>/chat/completions`.

    Args:
        url: the API's root.
        model: the vision model.
        api_key: sent as a bearer token.
        timeout_s: wait for the whole answer.
    """

    def __init__(self, url: str, model: str, api_key: str | None, timeout_s: float) -> None:
        self._url, self._model = url, model
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)

    @classmethod
    def of(cls, engine: config.Engine) -> Captions | None:
        """The one `[engine] caption_model` names; None where it is unset."""
        if engine.caption_model is None or engine.remote_url is None:
            return None
        key = engine.remote_api_key.get_secret_value() if engine.remote_api_key else None
        return cls(engine.remote_url, engine.caption_model, key, engine.remote_timeout_s)

    async def caption(self, picture: bytes) -> str | None:
        """What a picture shows, fit for `[图片:…]`; None where the model says nothing.

        Raises:
            EngineError: the server cannot be reached, refuses, or answers something else. It never holds its words.
        """
        encoded = base64.b64encode(picture).decode()
        content: list[dict[str, Any]] = [
            {"type": "text", "text": _ASKED},
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}},
        ]
        body = {
            "model": self._model, "max_tokens": _TOKENS_MAX, "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }  # fmt: skip
        try:
            answer = await self._http.post("chat/completions", json=body)
            answer.raise_for_status()
            said = answer.json()["choices"][0]["message"]["content"]
        except httpx.HTTPStatusError as e:
            raise EngineError(f"{self._url} refused a picture (HTTP {e.response.status_code})") from e
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as e:
            raise EngineError(f"{self._url} gave no words for a picture ({type(e).__name__}): see caption_model") from e
        return re.sub(r"[\[\]\s]+", " ", str(said or "")).strip()[:_WORDS_MAX] or None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
