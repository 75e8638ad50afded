"""The reply engine over an OpenAI-compatible server: vLLM, llama-server, Ollama, llama_cpp.server.

The prompt is rendered here, by the one renderer, and sent to the raw completion endpoint; a chat endpoint would render
a second time. What the base's tokenizer must do – name the format, count, keep typed markers plain text, name the end
of turn – is done with the vocabulary of `[engine] base`, read without its weights: the server runs the same base, so
token ids mean the same on both sides. A model whose GGUF is not here is named by `[engine] remote_format` instead: then
the prompt is sent as text, typed markers are broken up, and tokens are estimated.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

from loguru import logger

from bot import config
from bot.completions import Completions, Refused
from bot.engine import End, Ending, Measure, Request, Voice
from bot.errors import EngineError
from bot.firsttoken import Alternative, alternatives, missing
from bot.llama import Model
from bot.looping import kept, looping
from bot.persona import Sampling
from bot.prompt import FORMATS, ChatFormat, Piece, broken_up, encode

_TOP = 20
"""Alternatives of the first token asked for: what vLLM allows unless told otherwise."""
_BAN = -100.0
"""Bias of a token that must not be drawn."""
_MEET_AGAIN_S = 600.0
"""Seconds for which what was found out about the server is believed."""
_PROBE = "早呀，今天吃什么？\nhello, see you at 10:30! 周末去爬山怎么样😀"
_CONTROL = re.compile(r"<[^<>]+>")
_CERTAIN = Sampling(temperature=0, top_p=1, top_k=0, min_p=0, repeat_penalty=1, max_tokens=1)


class RemoteEngine:
    """A `bot.engine.ReplyEngine` over a server.

    Args:
        settings: `[engine]`, with `remote_url`.
        base: GGUF of what the server runs, for its vocabulary; None: `remote_format` names the format.
        base_sha256: the base's hash; empty without one: then versions of any base are served.

    Raises:
        EngineError: the base cannot be read.
    """

    def __init__(self, settings: config.Engine, base: Path | None, base_sha256: str = "") -> None:
        if settings.remote_url is None or (base is None and settings.remote_format is None):
            raise EngineError("a remote engine needs [engine] remote_url, and base or remote_format")
        self._settings = settings
        self._vocabulary = None if base is None else Model(base, 0, vocab_only=True)
        self._format = self._vocabulary.format if self._vocabulary else FORMATS[str(settings.remote_format)]
        self.base_sha256 = base_sha256
        key = settings.remote_api_key.get_secret_value() if settings.remote_api_key else None
        self._server = Completions(settings.remote_url, key, settings.remote_timeout_s, settings.deadline_s)
        self._meeting = asyncio.Lock()
        self._refusals, self._refused, self._refusal = 0, "", ""
        """How often the server could not be met, and the last time: for whom, and why."""
        self._told_of_bias = False
        self.takes_ids: bool | None = None
        """Whether the server takes token ids for a prompt; None before the first request."""
        self._met_at = time.monotonic()
        """When that was found out, or else minus infinity: something went wrong since, and it may be another server."""

    @property
    def format(self) -> ChatFormat:
        """Chat format of the bare base."""
        return self._format

    @property
    def n_ctx(self) -> int:
        """Tokens of one window, the reply included; the server's context must hold as many."""
        return self._settings.n_ctx

    async def measure(self, voice: Voice) -> Measure:
        """The same for every voice: the server runs one model."""
        return Measure(self.n_ctx, self.count)

    def count(self, pieces: Sequence[Piece]) -> int:
        """Tokens of pieces, without BOS; without a vocabulary a third of the UTF-8 bytes, which is a little too much.

        (A Chinese character then counts for one token, an English word for two.)
        """
        if self._vocabulary is None:
            return sum(-(-len(piece.text.encode()) // 3) for piece in pieces)
        return len(encode(pieces, self._vocabulary, bos=False)[0])

    async def p_silent(self, request: Request) -> float:
        """P(end-of-turn as the first token), from the server's log-probabilities.

        Raises:
            EngineError: the server gives none, or none that could be the end of turn's; all that it was asked together
                took longer than `deadline_s`.
        """
        with self._watched():
            async with self._server.within():
                return await self._p_silent(request)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A server that failed is met anew: it may come back with another model, to which token ids say other words."""
        try:
            yield
        except EngineError:
            self._met_at = -math.inf
            raise

    async def _p_silent(self, request: Request) -> float:
        body = {**await self._body(request, _CERTAIN), "logprobs": _TOP}
        if self._vocabulary is not None:
            # vLLM: name candidates by id, and this one whatever its rank.
            body |= {"return_tokens_as_token_ids": True, "logprob_token_ids": [self._end_id(request)]}
        try:
            choice, _ = await self._server.ask(body)
        except Refused as e:
            if e.status not in (400, 422, 500, 501):
                raise
            raise EngineError(
                f"{e}. It did so when asked for log-probabilities, which P(silent) is read from: allow {_TOP} of them "
                "(vLLM: --max-logprobs; llama_cpp.server: --logits_all true)"
            ) from e
        found = alternatives(choice)
        if found is None:
            raise EngineError(
                f"{self._server.url} gives no logprobs with a completion, which P(silent) is read from; use a server "
                "that does (vLLM, llama-server), or backend = 'llama'"
            )
        for one in found:
            if one.text == request.voice.format.end or (self._vocabulary and one.id == self._end_id(request)):
                return min(1.0, math.exp(one.log_p))
        if not found or any(not one.text and (one.id is None or self._vocabulary is None) for one in found):
            return await self._p_unnamed(request, body, found)
        return self._p_missing(found)

    async def bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        """Bubbles of the answer as their lines complete.

        The first token is never end-of-turn: vLLM is told so (`min_tokens`); of the others an empty answer is taken
        back, a first word is drawn with the end of turn banned, and the answer goes on from it. That is the model's own
        distribution over words. Without a vocabulary nothing can be banned: the answer is drawn once more.

        Nothing of the chat format is ever said: a server shows some of its markers and hides others, and what follows
        a hidden one (`user`, a next turn) is text. So they are banned, an answer stops at one, and one that comes all
        the same is cut off with what follows it.

        Raises:
            EngineError: of any fault of the server, or two empty answers; what was asked before the first bubble and
                the stream together took longer than `deadline_s`.
        """
        with self._watched():
            async with aclosing(self._bubbles(request)) as bubbles:
                async for bubble in bubbles:
                    yield bubble

    async def _bubbles(self, request: Request) -> AsyncGenerator[str, None]:
        began = time.monotonic()
        markers = markers_of(request.voice.format)
        async with self._server.within():
            body = await self._body(request, request.sampling)
        if ban := self._ban(request, markers):
            body["logit_bias"] = {**body.get("logit_bias", {}), **ban}
        stops = {"stop": markers, "stop_token_ids": self._ends(request)}
        try:
            left_s = self._server.deadline_s - (time.monotonic() - began)
            async with aclosing(self._said({**body, **stops, "min_tokens": 1}, request.ending, left_s)) as lines:
                async for line in lines:
                    yield line
            return
        except _NothingSaidError:
            async with self._server.within(self._server.deadline_s - (time.monotonic() - began)):
                opening = await self._first_word(body, request)
        if opening:
            body["prompt"] = self._extended(body["prompt"], opening)
            body["max_tokens"] = max(1, body["max_tokens"] - 1)
        else:
            body["seed"] = (body["seed"] + 1) & 0xFFFFFFFF
        try:
            left_s = self._server.deadline_s - (time.monotonic() - began)
            async with aclosing(self._said({**body, **stops}, request.ending, left_s, opening)) as lines:
                async for line in lines:
                    yield line
        except _NothingSaidError:
            raise EngineError(
                f"{self._server.url} answered with nothing twice; set [engine] base to the GGUF of its model, so that "
                "its end of turn can be banned from the first word"
            ) from None

    async def forget(self, wanted: Callable[[str], bool]) -> None:
        """Nothing is held here; what the server keeps of prompts is the server's, and falls out of its cache."""

    async def close(self) -> None:
        """Close the connections and the vocabulary."""
        await self._server.close()
        if self._vocabulary is not None:
            self._vocabulary.close()

    # -- the request ------------------------------------------------------------------------------

    async def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """What is sent; samplers under each server's own name, since unknown ones are ignored."""
        await self._meet(request.voice)
        left = self._settings.n_ctx - self.count(request.pieces) - 1  # BOS
        if left < 1:
            raise EngineError(f"a prompt is longer than [engine] n_ctx = {self._settings.n_ctx} tokens")
        return {
            **self._speaker(request.voice), "prompt": self._prompt(request.pieces),
            "max_tokens": min(sampling.max_tokens, left), "seed": request.seed & 0xFFFFFFFF,
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
            "min_p": sampling.min_p, "repeat_penalty": sampling.repeat_penalty,
            "repetition_penalty": sampling.repeat_penalty, "dry_multiplier": sampling.dry_multiplier,
            **self._bias(sampling),
        }  # fmt: skip

    def _bias(self, sampling: Sampling) -> dict[str, Any]:
        """OpenAI's `logit_bias`, by token id; without a vocabulary no id is known, and it is left out."""
        if not sampling.logit_bias:
            return {}
        if self._vocabulary is None:
            if not self._told_of_bias:
                self._told_of_bias = True
                logger.warning(
                    "[sampling] logit_bias is left out: it needs [engine] base, the GGUF of the server's model"
                )
            return {}
        return {"logit_bias": {str(i): bias for i, bias in self._vocabulary.biases(sampling.logit_bias).items()}}

    def _speaker(self, voice: Voice) -> dict[str, Any]:
        """Model and LoRA of a voice, in vLLM's way (a model a persona) or llama-server's (a LoRA a request)."""
        persona, loras = voice.name.partition("/")[0], self._settings.remote_loras
        if voice.model is not None and (loras or self._vocabulary is not None):
            raise EngineError(
                f"persona {persona!r} is a merged model of its own, whose vocabulary [engine] base need not have: let "
                "the server load it under that name and set remote_format, or use backend = 'llama'"
            )
        named: dict[str, Any] = {"model": self._settings.remote_model.replace("{persona}", persona)}
        if loras:
            if voice.lora is not None and persona not in loras:
                raise EngineError(
                    f"persona {persona!r} is not in [engine] remote_loras; add it where its --lora stands"
                )
            # Each by name: llama-server takes an empty list, and --lora-init-without-apply, for all of them at 1
            # (https://github.com/ggml-org/llama.cpp/issues/28674).
            speaks = None if voice.lora is None else persona
            named["lora"] = [{"id": i, "scale": float(name == speaks)} for i, name in enumerate(loras)]
        return named

    def _prompt(self, pieces: Sequence[Piece]) -> list[int] | str:
        if self._vocabulary is not None and self.takes_ids:
            return encode(pieces, self._vocabulary)[0]
        return "".join(piece.text if piece.control else plain(piece.text) for piece in pieces)

    def _extended(self, prompt: list[int] | str, text: str) -> list[int] | str:
        if isinstance(prompt, str):
            return prompt + text
        assert self._vocabulary is not None
        return prompt + self._vocabulary.tokens(text, control=False)

    async def _meet(self, voice: Voice) -> None:
        """Whether the server takes token ids, and whether they mean the same there.

        Asked before the first request, after one that failed, and every ten minutes: a server may be started anew with
        another model, and nothing tells. Nothing of a chat is sent. A server of another vocabulary is told by the
        tokens it counts in a known text.
        """
        probe = {**self._speaker(voice), "max_tokens": 1, "temperature": 0}
        refusals = self._refusals
        async with self._meeting:
            if self.takes_ids is not None and time.monotonic() - self._met_at < _MEET_AGAIN_S:
                return
            if self._refusals > refusals and self._refused == voice.name:  # while this one waited, for the same name
                raise EngineError(self._refusal)
            try:
                self.takes_ids = await self._probed(probe)
                self._met_at = time.monotonic()
            except EngineError as e:
                self._refusals, self._refused, self._refusal = self._refusals + 1, voice.name, str(e)
                raise

    async def _probed(self, probe: dict[str, Any]) -> bool:
        if self._settings.remote_loras:
            await self._count_loras()
        if self._vocabulary is None:
            return False
        ids = encode([Piece(_PROBE)], self._vocabulary)[0]
        _, counted = await self._server.ask({**probe, "prompt": _PROBE})
        if counted is not None and abs(counted - len(ids)) > 1:
            raise EngineError(
                f"{self._server.url} counts {counted} tokens where [engine] base counts {len(ids)}: it runs "
                "another model. Set base to the GGUF of that model, or remote_format"
            )
        takes_ids = False
        try:
            _, counted = await self._server.ask({**probe, "prompt": ids})
            takes_ids = counted is None or counted == len(ids)
        except Refused as e:
            if e.status not in (400, 422, 500):
                raise
        if not takes_ids:
            logger.warning("{} takes no token ids: prompts go as text, typed markers broken up", self._server.url)
        return takes_ids

    async def _count_loras(self) -> None:
        """llama-server passes over a LoRA it has not loaded: the bare base would speak in its place."""
        wanted, loaded = self._settings.remote_loras, await self._server.loras()
        if loaded is not None and loaded < len(wanted):
            raise EngineError(
                f"{self._server.url} has {loaded} LoRAs where [engine] remote_loras names {len(wanted)}; start "
                "llama-server with --lora and a file for each, in that order, with commas between"
            )

    # -- the first token --------------------------------------------------------------------------

    def _end_id(self, request: Request) -> int:
        assert self._vocabulary is not None
        return self._vocabulary.tokens(request.voice.format.end, control=True)[0]

    def _ends(self, request: Request) -> list[int]:
        """Ids that end a turn; none are known without a vocabulary."""
        return [] if self._vocabulary is None else sorted({*self._vocabulary.ends, self._end_id(request)})

    def _ban(self, request: Request, markers: Sequence[str]) -> dict[str, float]:
        """The biases that keep an answer from opening a turn of its own; none without a vocabulary."""
        if self._vocabulary is None:
            return {}
        alone = (self._vocabulary.tokens(marker, control=True) for marker in markers)
        return {str(ids[0]): _BAN for ids in alone if len(ids) == 1 and ids[0] not in self._ends(request)}

    async def _p_unnamed(self, request: Request, body: dict[str, Any], found: Sequence[Alternative]) -> float:
        """P(end-of-turn) from a server that gives control tokens no text (llama_cpp.server), so cannot point at it.

        Where it wins the first place, it is the only one told beside a word drawn with it banned. Elsewhere the bias is
        looked for with which it just beats that word: the difference of their log-probabilities, to 0.01.
        """
        if self._vocabulary is None:
            raise EngineError(
                f"{self._server.url} does not name the end of turn among its logprobs; set [engine] base to the GGUF "
                "of its model (only the vocabulary is read)"
            )
        end = str(self._end_id(request))
        asked = {key: value for key, value in body.items() if "logprob" not in key}

        async def wins(bias: float) -> bool:
            choice, _ = await self._server.ask({**asked, "logit_bias": {end: bias}})
            return not choice.get("text") and choice.get("finish_reason") == "stop"

        if found:
            word, low, high = found[0].log_p, 0.0, found[0].log_p - min(one.log_p for one in found)
            if not await wins(high + 0.01):
                return self._p_missing(found)
        else:
            choice, _ = await self._server.ask({**body, "logprobs": 1, "logit_bias": {end: _BAN}})
            told = alternatives(choice)
            if not told:
                raise EngineError(
                    f"{self._server.url} ends its turn even where that is banned; does it take logit_bias?"
                )
            if len(told) == 2 and told[0].text and not told[1].text:
                return min(1.0, math.exp(told[1].log_p))
            word, low, high = told[0].log_p, -40.0, 0.0
        while high - low > 0.01:
            middle = (low + high) / 2
            low, high = (low, middle) if await wins(middle) else (middle, high)
        return min(1.0, math.exp(word - (low + high) / 2))

    def _p_missing(self, found: Sequence[Alternative]) -> float:
        if (p := missing(found)) is None:
            raise EngineError(
                f"{self._server.url} gives {len(found)} logprobs of the first token, the end of turn not among them; "
                "P(silent) needs more"
            )
        return p

    async def _first_word(self, body: dict[str, Any], request: Request) -> str:
        """The text of a first token that is a word, no end of turn and no blank; empty where nothing can be banned."""
        if self._vocabulary is None:
            return ""
        none = {*self._ends(request), *self._vocabulary.no_first_word}
        bias = {**body.get("logit_bias", {}), **{str(i): _BAN for i in none}}
        for n in (1, 4):  # a token may be part of a character
            choice, _ = await self._server.ask({**body, "max_tokens": n, "logit_bias": bias})
            if word := str(choice.get("text") or "").partition("\ufffd")[0]:
                return word
        raise EngineError(
            f"{self._server.url} draws no word even with the end of turn banned; does it take logit_bias?"
        )

    async def _said(
        self, body: dict[str, Any], ending: Ending, left_s: float, opening: str = ""
    ) -> AsyncGenerator[str, None]:
        """Lines of a streamed answer that begins with `opening`; raises _NothingSaidError when there is none.

        It ends where the newest parts only repeat, as the local engine's do; a part is a token where servers do not
        put some together. Where the server counts no tokens, those of the text are told.
        """
        marker = re.compile("|".join(map(re.escape, body["stop"])))
        parts, text, said = [opening], opening, False
        finish = End.TURN
        counted: int | None = None
        ending.why = None
        try:
            async with aclosing(self._server.stream(body, left_s)) as stream:
                async for part in stream:
                    finish = End.LENGTH if part.finish == "length" else finish
                    counted = counted if part.completion_tokens is None else part.completion_tokens
                    if not part.text:
                        continue
                    parts.append(part.text)
                    if looping(parts, "".join):
                        if row := kept(text).strip():
                            yield row
                        ending.why = End.LOOP
                        return
                    text, *cut = marker.split(text + part.text, maxsplit=1)
                    *lines, text = text.split("\n")
                    for line in filter(None, map(str.strip, lines)):
                        said = True
                        yield line
                    if cut:
                        finish = End.TURN
                        break
            if text.strip():
                yield text.strip()
            elif not said:
                raise _NothingSaidError
            ending.why = finish
        finally:
            if counted is None:
                ending.tokens = self.count([Piece("".join(parts))])
            else:
                ending.tokens = self.count([Piece(opening)]) + counted


class _NothingSaidError(Exception):
    """An answer ended before its first character that is no blank."""


def markers_of(form: ChatFormat) -> list[str]:
    """The markers of a chat format, each once: four at most, as many as OpenAI takes for `stop`."""
    return sorted(set(_CONTROL.findall(form.system_open + form.user_open + form.assistant_open + form.end)))


def plain(text: str) -> str:
    """What people wrote, with a zero-width space in whatever a server could read as a control token (`<|im_end|>`)."""
    return "\u200b".join(broken_up(text))
