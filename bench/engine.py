"""The engine beside the floor of what llama.cpp can do on this machine: rates, returning chats, silence, replies."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from bench import daemon, llama_server
from bench.figures import Figure, at_least, at_most, in_turn, show
from bench.llama_server import LlamaServer
from bot import base, checksum, config
from bot.archive import Archive
from bot.batching import Job
from bot.engine import Request, Voice
from bot.llama import Context, Model, Sampler
from bot.memory import Memory
from bot.message import Message, Origin, Scene
from bot.persona import Persona, Personas, Sampling
from bot.prompt import Piece, encode
from bot.reply import Replier
from bot.serving import LlamaEngine
from bot.twin import install_shipped

_RUNS = 5
_MADE = 48
_SCENES, _HISTORY = (1, 4, 16, 64), 400
"""Warm scenes that the layouts of the cache are compared with, and tokens each of them holds."""
_REPLY, _REPLIES, _WARM = 20, 40, 25
"""Tokens of a reply, how many there are, and messages answered before, so that the window is warm."""
_ACCOUNT, _MEMBERS = "10001", ("桃桃", "阿哲", "老K")
BURST = "今天下雨了，晚上一起去吃面吧，我请客，你把伞带上"
"""About 20 tokens."""


def main(settings: config.Settings, root: Path, *, full: bool, as_json: bool) -> None:
    """Measure everything and print it.

    Args:
        settings: bot.toml's; the engine's cache is made large enough for what is measured.
        root: its folder.
        full: also the library's high-level class and the layouts of the cache (minutes).
        as_json: for programs.
    """
    path = base.resolve(settings.engine.base, settings.data, root)
    install_shipped(settings.data / "personas")
    digest = checksum.digest(path)
    persona = Personas(settings.data / "personas", digest).find(settings.chat.persona)
    lora = persona.version.lora if persona.version else None
    chosen = settings.engine.model_copy(update={"n_ctx": 4096, "kv_tokens": 16384, "deadline_s": 600.0})
    stage = Stage(path, chosen, digest, lora)
    silence = stage.silence(600)  # while no other scenes fill the cache: attention passes over all that is in it
    figures = [
        *stage.rates(),
        *stage.returning(600, 2000),
        silence,
        *stage.replies(settings, persona),
        *stage.server(),
        daemon.without_model(settings),
    ]
    if full:
        figures += [*stage.high_level(600), *stage.layouts()]
    stage.close()
    show("engine", figures, as_json=as_json, of=stage.ran_with)


def _heard(number: int) -> Message:
    """A message of about 20 tokens by one of three members of a group, two minutes after the one before."""
    name = _MEMBERS[number % len(_MEMBERS)]
    when = datetime(2026, 9, 1, 12, 0, tzinfo=UTC) + timedelta(minutes=2 * number)
    text = f"{number % 10}{BURST[1:]}"
    return Message(f"h{number}", Scene("group", "30001"), str(20001 + number % 3), name, when, text)


def _said(number: int, heard: Message, text: str) -> Message:
    return replace(
        heard, id=f"s{number}", sender_id=_ACCOUNT, sender_name="小满", origin=Origin.TWIN,
        time=heard.time + timedelta(seconds=5), text=text,
    )  # fmt: skip


class Stage:
    """The engine and, beside it, a bare context on a model of its own.

    Args:
        path: the base GGUF.
        settings: `[engine]`, of both.
        digest: the base's hash.
        lora: what both evaluate with; None: the bare base.
        peer: whether there is a bare context: without one, the memory is the engine's alone.
    """

    def __init__(
        self, path: Path, settings: config.Engine, digest: str, lora: Path | None, *, peer: bool = True
    ) -> None:
        self.path, self.settings, self.lora = path, settings, lora
        self.loop = asyncio.new_event_loop()
        self.engine = LlamaEngine(path, settings, digest)
        self.format = self.engine.format
        self._numbers = iter(range(10**9))
        threads = self.engine.base.context.n_threads
        self.ran_with = settings.model_copy(update={"n_threads": threads, "base": path.name})
        """The settings with what was chosen for those left open, for results: without a path of this machine."""
        self.peer = peer
        if not peer:
            return
        self.model = Model.of(path, settings)
        self.bare = Context(
            self.model, settings.kv_tokens, 8, settings.n_batch, settings.n_threads, n_outputs=8,
            flash_attn=settings.flash_attn, type_k=settings.type_k, type_v=settings.type_v,
            n_threads_batch=settings.n_threads_batch,
        )  # fmt: skip
        self.handle = self.model.load_lora(lora) if lora else None
        self.bare.use(self.handle)

    def close(self) -> None:
        """Free what there is."""
        if self.peer:
            self.bare.use(None)
            self.bare.close()
            if self.handle is not None:
                self.model.free_lora(self.handle)
            self.model.close()
        self.loop.run_until_complete(self.engine.close())
        self.loop.close()

    # -- decode -----------------------------------------------------------------------------------

    def rates(self) -> list[Figure]:
        """Tokens drawn in a second: one chat, four chats, four one after another."""
        one, bare_one, spread = in_turn(_RUNS, lambda: self._engine_rate(1), lambda: self._bare_rate(1))
        four, bare_four, wide = in_turn(_RUNS, lambda: self._engine_rate(4), lambda: self._bare_rate(4))
        return [
            at_least("decode, one chat", "tokens/s", one, "bare llama_decode + sampler", bare_one, 0.97,
                     n=_RUNS, spread=spread),
            at_least("decode, four chats of a persona", "tokens/s", four, "bare batched loop", bare_four, 0.95,
                     n=_RUNS, spread=wide),
            at_least("decode, four chats of a persona", "tokens/s", four, "one after another", one, 1.4, n=_RUNS),
        ]  # fmt: skip

    def _engine_rate(self, chats: int) -> float:
        """From the first drawn token to the last, all chats begun at once."""
        asked = [self.request(f"rate{i}", ["在吗", "嗯", f"{i}{BURST}"]) for i in range(chats)]
        for request in asked:
            self.wait(self.engine.p_silent(request))
        jobs = self.draw(asked)
        return (sum(len(j.made) for j in jobs) - chats) / self._busy_s

    def draw(self, asked: Sequence[Request]) -> list[Job]:
        """The answers drawn to their limit by the engine's own thread."""
        ends = self.engine.base.model.ends
        self.engine.base.model.ends = frozenset()  # an end of turn would end the measurement: every token counts
        try:
            jobs: list[Job] = self.wait(self._drawn(asked))
            return jobs
        finally:
            self.engine.base.model.ends = ends

    async def _drawn(self, asked: Sequence[Request]) -> list[Job]:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        left = len(asked)

        def ended(_: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._ended = time.perf_counter()
                loop.call_soon_threadsafe(done.set)

        jobs = []
        for request in asked:
            ids, _ = encode(request.pieces, self.engine.base.model)
            jobs.append(Job(request, ids, lambda _: None, ended))
        for job in jobs:
            self.engine.base.batcher.submit(job)
        while not all(job.made for job in jobs):  # noqa: ASYNC110 - the thread tells of lines, not of tokens
            await asyncio.sleep(0.0005)
        began, ahead = time.perf_counter(), sum(len(job.made) for job in jobs) - len(jobs)
        await done.wait()
        total = sum(len(job.made) for job in jobs) - len(jobs)
        # What was drawn before all had begun is not counted.
        self._busy_s = (self._ended - began) * total / max(1, total - ahead)
        return jobs

    def _bare_rate(self, chats: int) -> float:
        ids = [self._ids(["在吗", "嗯", f"{i}{BURST}"]) for i in range(chats)]
        samplers = [Sampler(self.model, self._sampling, i) for i in range(chats)]
        for chat in range(chats):
            self.bare.keep(chat, 0)
            self.bare.decode([(t, chat, i, i == len(ids[chat]) - 1) for i, t in enumerate(ids[chat])])
        tokens = [self.bare.sample(samplers[-1])] * chats
        began = time.perf_counter()
        for step in range(_MADE - 1):
            rows = [(tokens[c], c, len(ids[c]) + step, True) for c in range(chats)]
            self.bare.decode(rows)
            tokens = [self.bare.sample(samplers[c], c) for c in range(chats)]
        seconds = time.perf_counter() - began
        for sampler in samplers:
            sampler.close()
        return chats * (_MADE - 1) / seconds

    def layouts(self) -> list[Figure]:
        """Tokens decoded in a second by warm scenes of 400 tokens, in cells of all and in cells of each one's own.

        The scenes hold the same tokens, each in cells of its own: one was read, the others are restored from it.
        """
        figures = []
        for scenes in _SCENES:
            contexts = [self._warm(scenes, kv_unified=unified) for unified in (True, False)]
            shared, apart, spread = in_turn(_RUNS, *(partial(self._warm_rate, c, scenes) for c in contexts))
            figures.append(
                Figure(f"decode, warm scenes: {scenes}, cells shared", shared, "tokens/s", "each its own", apart,
                       n=_RUNS, spread=spread)
            )  # fmt: skip
            for context in contexts:
                context.use(None)
                context.close()
        return figures

    def _warm(self, scenes: int, *, kv_unified: bool) -> Context:
        context = Context(
            self.model, scenes * 2 * _HISTORY, scenes, self.settings.n_batch, self.settings.n_threads,
            n_outputs=scenes, kv_unified=kv_unified,
        )  # fmt: skip
        context.use(self.handle)
        context.decode([(300 + i, 0, i, False) for i in range(_HISTORY)])
        state = context.save(0)
        for scene in range(1, scenes):
            assert context.restore(scene, state)
        return context

    def _warm_rate(self, context: Context, scenes: int) -> float:
        steps = max(4, 64 // scenes)
        for scene in range(scenes):
            context.keep(scene, _HISTORY)
        began = time.perf_counter()
        for step in range(steps):
            context.decode([(400 + step, scene, _HISTORY + step, True) for scene in range(scenes)])
            context.logits(scenes)  # waits for them
        return scenes * steps / (time.perf_counter() - began)

    # -- returning chats --------------------------------------------------------------------------

    def returning(self, short: int, long: int) -> list[Figure]:
        """The time to the first logits behind histories of two lengths in tokens, and the second's beside the first."""
        first, second = self._returning(short), self._returning(long)
        name = f"first logits of a returning chat, {long} tokens of history"
        beside = at_most(name, "ms", second.value or 0.0, f"{short} tokens", first.value or 0.0, 1.3, n=second.n)
        return [first, second, beside]

    def _returning(self, history_tokens: int) -> Figure:
        """P(silent), the time to the first logits, when 20 tokens follow a history, three others speaking in turn."""
        turns = [self.history(history_tokens, seed) for seed in range(4)]
        for seat in range(4):
            self.wait(self.engine.p_silent(self.request(f"back{seat}", turns[seat])))
        ids = self._ids(turns[0])
        self._hold(ids)
        new = len(self._ids([*turns[0], "嗯", BURST])) - len(ids)

        def ours() -> float:
            for seat in range(4):
                turns[seat] += ["嗯", f"{next(self._numbers) % 10}{BURST[1:]}"]
            times = []
            for seat in range(4):
                began = time.perf_counter()
                self.wait(self.engine.p_silent(self.request(f"back{seat}", turns[seat])))
                times.append(time.perf_counter() - began)
            return statistics.median(times) * 1e3

        value, peer, spread = in_turn(_RUNS, ours, lambda: self._alone(ids, new))
        name = f"first logits of a returning chat, {history_tokens} tokens of history"
        return at_most(name, "ms", value, f"evaluating its {new} tokens alone", peer, 1.15, n=_RUNS, spread=spread)

    def _alone(self, ids: Sequence[int], new: int) -> float:
        """Milliseconds to the logits behind `new` tokens in the bare context, which holds `ids`."""
        self.bare.keep(0, len(ids))
        began = time.perf_counter()
        self.bare.decode([(t, 0, len(ids) + i, i == new - 1) for i, t in enumerate(ids[:new])])
        self.bare.row(new - 1)
        return (time.perf_counter() - began) * 1e3

    def silence(self, history_tokens: int) -> Figure:
        """P(silent) of bursts of 20 tokens that come to one warm scene, each in place of the one before."""
        turns = [*self.history(history_tokens, 55), ""]
        one, other = (self._ids([*turns, f"{number}{BURST[1:]}"]) for number in (0, 1))
        held = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        self.wait(self.engine.p_silent(self.request("quiet", [*turns, f"9{BURST[1:]}"])))
        self._hold(one[:held])
        new = len(one) - held

        def ours() -> float:
            asked = self.request("quiet", [*turns, f"{next(self._numbers) % 10}{BURST[1:]}"])
            began = time.perf_counter()
            self.wait(self.engine.p_silent(asked))
            return (time.perf_counter() - began) * 1e3

        value, peer, spread = in_turn(4 * _RUNS, ours, lambda: self._alone(one[:held], new))
        name = f"P(silent) of a burst in a warm scene, {history_tokens} tokens of history"
        return at_most(name, "ms", value, f"evaluating its {new} tokens alone", peer, 1.05, n=4 * _RUNS, spread=spread)

    def _hold(self, ids: Sequence[int]) -> None:
        """Read tokens into the bare context's first sequence."""
        self.bare.keep(0, 0)
        for start in range(0, len(ids), self.settings.n_batch):
            part = ids[start : start + self.settings.n_batch]
            self.bare.decode([(t, 0, start + i, False) for i, t in enumerate(part)])

    def high_level(self, history_tokens: int) -> list[Figure]:
        """The same beside `llama_cpp.Llama`, which keeps one sequence and reads a chat again after any other."""
        import llama_cpp

        turns = [self.history(history_tokens, 10 + seed) for seed in range(2)]
        library = llama_cpp.Llama(
            str(self.path), n_ctx=4096, n_batch=512, n_threads=self.bare.n_threads, verbose=False,
            n_gpu_layers=self.settings.n_gpu_layers,
        )  # fmt: skip

        def theirs() -> float:
            times = []
            for turn in turns:
                ids = self._ids([*turn, "嗯", BURST])
                began = time.perf_counter()
                next(iter(library.generate(ids, temp=0.7)))
                times.append(time.perf_counter() - began)
            return statistics.median(times) * 1e3

        def ours() -> float:
            times = []
            for seat, turn in enumerate(turns):
                turn += ["嗯", BURST]
                began = time.perf_counter()
                self.wait(self.engine.p_silent(self.request(f"high{seat}", turn)))
                times.append(time.perf_counter() - began)
            return statistics.median(times) * 1e3

        value, peer, spread = in_turn(3, ours, theirs)
        library.close()
        name = f"first logits of a returning chat, {history_tokens} tokens of history"
        return [at_most(name, "ms", value, "llama_cpp.Llama, two chats in turn", peer, 0.1, n=3, spread=spread)]

    def server(self) -> list[Figure]:
        """First token and decode beside llama-server: same file, LoRA, threads, cache, prompts and sampling."""
        first = "first token of a returning chat, 600 tokens of history, three others in turn"
        rates = {1: "decode, one chat", 4: "decode, four chats of a persona"}
        peer = "llama-server -np 4"
        program = llama_server.binary()
        if program is None:
            peer += ", not installed"
            absent = [Figure(name, None, "tokens/s", peer) for name in rates.values()]
            return [Figure(first, None, "ms", peer, goal=1.0), *absent]
        turns = [self.history(600, 30 + seed) for seed in range(4)]
        prompts = [self._ids(["在吗", "嗯", BURST])] * 4
        drawn = self._sampling.model_dump(exclude={"max_tokens"})

        def ours() -> float:
            for turn in turns:
                turn += ["嗯", f"{next(self._numbers) % 10}{BURST[1:]}"]
            times = []
            for seat, turn in enumerate(turns):
                began = time.perf_counter()
                self.wait(self._said(self.request(f"served{seat}", turn, max_tokens=1)))
                times.append(time.perf_counter() - began)
            return statistics.median(times) * 1e3

        def theirs() -> float:
            times = []
            for slot, turn in enumerate(turns):
                ids = self._ids(turn)
                began = time.perf_counter()
                running.complete(slot, ids, 1, **drawn)
                times.append(time.perf_counter() - began)
            return statistics.median(times) * 1e3

        with LlamaServer(program, self.path, *self._server_options()) as running:
            value, their, spread = in_turn(_RUNS, ours, theirs)
            figures = [at_most(first, "ms", value, peer, their, 1.0, n=_RUNS, spread=spread)]
            for chats, name in rates.items():
                rate = partial(running.rate, prompts[:chats], _MADE, ignore_eos=True, **drawn)
                value, their, spread = in_turn(_RUNS, partial(self._engine_rate, chats), rate)
                figures.append(Figure(name, value, "tokens/s", peer, their, n=_RUNS, spread=spread))
        return figures

    def _server_options(self) -> list[str]:
        threads, batch = str(self.bare.n_threads), str(self.settings.n_batch)
        layers = "999" if self.settings.n_gpu_layers < 0 else str(self.settings.n_gpu_layers)
        options = ["-np", "4", "-c", str(self.settings.kv_tokens), "-t", threads, "-tb", threads, "-b", batch]
        # As our engine: any prefix of a chat is kept (--swa-full), and four chats never leave the cache.
        options += ["-ub", batch, "-ngl", layers, "--swa-full", "--cache-ram", "0"]
        return [*options, *(["--lora", str(self.lora)] if self.lora else [])]

    async def _said(self, request: Request) -> list[str]:
        return [bubble async for bubble in self.engine.bubbles(request)]

    # -- whole replies ----------------------------------------------------------------------------

    def replies(self, settings: config.Settings, persona: Persona) -> list[Figure]:
        """A reply of 20 tokens in a warm group chat, by the daemon's parts and beside the engine's part of it alone.

        From the message's arrival in the archive to the last token; the time that typing takes a person is not waited.
        """
        alone, whole = self._engine_alone(), self.wait(self._replies(settings, persona))
        figures = []
        for name, part, goal in (("p50", 0.5, 1000.0), ("p95", 0.95, 2000.0)):
            took, engine = (sorted(times)[int(len(times) * part)] for times in (whole, alone))
            title = f"reply of {_REPLY} tokens in a group, archived, looked at, decided, {name}"
            figures.append(
                Figure(title, took, "ms", "the engine's part", engine, goal=goal, met=took <= goal, n=len(whole))
            )
        return figures

    async def _replies(self, settings: config.Settings, persona: Persona) -> list[float]:
        sampling = persona.spec.sampling.model_copy(update={"max_tokens": _REPLY})
        reply = persona.spec.reply.model_copy(update={"bias": 50.0})
        persona = replace(persona, spec=persona.spec.model_copy(update={"sampling": sampling, "reply": reply}))
        times: list[float] = []
        ends, self.engine.base.model.ends = self.engine.base.model.ends, frozenset()  # every answer to its limit
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive(f"sqlite:///{folder}/archive.db")
            replier = Replier(settings, Memory(archive, settings), self.engine)
            try:
                for number in range(_WARM + _REPLIES):
                    heard = _heard(number)
                    began = time.perf_counter()
                    archive.append([heard], "bench")
                    look = await replier.look(heard.scene, persona, _ACCOUNT, lambda _: 0.5)
                    assert look is not None
                    assert look.verdict.speaks
                    if number < _WARM:
                        archive.append([_said(number, heard, "嗯嗯")], "bench")
                        continue
                    said = [bubble async for bubble in replier.bubbles(look)]
                    if look.request.ending.tokens == _REPLY:  # none cut short by a loop or by too many bubbles
                        times.append((time.perf_counter() - began) * 1e3)
                    archive.append([_said(number, heard, "，".join(said) or "嗯")], "bench")
            finally:
                self.engine.base.model.ends = ends
                archive.close()
        return times

    def _engine_alone(self) -> list[float]:
        turns, times = self.history(600, 77), []
        self.wait(self.engine.p_silent(self.request("reply", turns)))
        for _ in range(_REPLIES):
            turns += ["嗯", f"{next(self._numbers) % 10}{BURST[1:]}"]
            asked = self.request("reply", turns, max_tokens=_REPLY)
            began = time.perf_counter()
            self.wait(self.engine.p_silent(asked))
            self.draw([asked])
            times.append((time.perf_counter() - began) * 1e3)
        return times

    # -- below ------------------------------------------------------------------------------------

    @property
    def _sampling(self) -> Sampling:
        return Sampling(max_tokens=_MADE, repeat_penalty=1.3)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the bench's event loop."""
        return self.loop.run_until_complete(work)

    def _pieces(self, turns: Sequence[str]) -> list[Piece]:
        """User, assistant, user, …; ends with the open assistant header."""
        fmt = self.format
        pieces = [Piece(fmt.system_open, True), Piece("你是小满，说话随意。"), Piece(fmt.system_close, True)]
        for number, text in enumerate(turns):
            if number % 2:
                pieces += [Piece(text), Piece(fmt.end, True), Piece(fmt.after, True)]
            else:
                opening = fmt.user_open if number else fmt.first_user_open
                pieces += [*([Piece(opening, True)] if opening else []), Piece(text)]
                pieces += [Piece(fmt.user_close, True), Piece(fmt.assistant_open, True)]
        return [p for p in pieces if p.text]

    def request(
        self, seat: str, turns: Sequence[str], max_tokens: int = _MADE, lora: Path | None = None,
        voice: Voice | None = None,
    ) -> Request:  # fmt: skip
        """A look at a scene of these turns, in the persona's voice, another LoRA's or any other."""
        sampling = self._sampling.model_copy(update={"max_tokens": max_tokens})
        spoken = voice or Voice("bench", lora or self.lora, self.format)
        return Request(seat, spoken, self._pieces(turns), sampling, seed=1)

    def _ids(self, turns: Sequence[str]) -> list[int]:
        return encode(self._pieces(turns), self.engine.base.model)[0]

    def history(self, tokens: int, seed: int) -> list[str]:
        """Turns of about so many tokens, unlike those of any other seed."""
        turns = [f"第{seed}个人说：{BURST}"]
        while len(self._ids(turns)) < tokens:
            turns += [f"嗯{len(turns)}", f"{len(turns) + seed}{BURST}"]
        return turns
