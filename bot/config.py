"""bot.toml and the environment → frozen settings, or every fault at once.

Precedence: the defaults below < bot.toml < environment (`TWIN__ENGINE__N_CTX=4096`; values are read as TOML,
else as a string). Secrets come from the environment or a file, never from bot.toml's shipped text.
"""

import ipaddress
import os
import re
import secrets
import tomllib
from collections.abc import Mapping
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ValidationInfo

from bot import processors
from bot.errors import ConfigError
from bot.hours import in_hours
from bot.message import Scene

ENV_PREFIX = "TWIN__"
_SECRETS = ("access_token", "remote_api_key", "api_key", "judge_api_key", "token")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"), "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"), "less_than": ("less than", "lt"),
}  # fmt: skip
_UNITS = {"n_ctx": "tokens", "_tokens": "tokens", "_length": "tokens", "_s": "seconds", "_days": "days"}


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as e:
        raise ValueError(f"{name!r} is not an IANA time zone such as 'Asia/Shanghai'") from e
    return name


def _known_scene(text: str) -> str:
    return str(Scene.parse(text))


def _known_cron(line: str) -> str:
    from apscheduler.triggers.cron import CronTrigger

    # crontab counts weekdays from Sunday (0 or 7), APScheduler from Monday: names mean the same to both.
    head, _, weekdays = line.strip().rpartition(" ")
    named = f"{head} {re.sub(r'(?<![/0-9])[0-7](?![0-9])', lambda m: _WEEKDAYS[int(m[0])], weekdays)}".strip()
    try:
        CronTrigger.from_crontab(named)
    except ValueError as e:
        raise ValueError(f"{line!r} is not a crontab line such as '0 4 * * *' ({e})") from e
    return named


def _known_hours(text: str) -> str:
    try:
        in_hours(text, time())
    except ValueError as e:
        raise ValueError(f"{text!r} is not hours such as '23:30-07:00', or empty") from e
    return text


def _url(url: str | None) -> str | None:
    if url is not None and not re.match(r"https?://[^/@\s]+(/\S*)?$", url):
        raise ValueError("must be a URL such as http://127.0.0.1:8000/v1, without a name or password in it")
    return url


Zone = Annotated[str, AfterValidator(_known_zone)]
Hours = Annotated[str, AfterValidator(_known_hours)]
SceneName = Annotated[str, AfterValidator(_known_scene)]
Cron = Annotated[str, AfterValidator(_known_cron)]


class Section(BaseModel):
    """A table of bot.toml: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Paths(Section):
    """Where things lie; relative paths count from bot.toml's folder."""

    data: Path = Path("data")
    """Everything the bot writes: archive, personas, runs, models, token. Back up this folder."""
    archive_url: str | None = None
    """SQLAlchemy URL of the message store; unset: SQLite at data/archive.db (WAL)."""


class OneBot(Section):
    """How QQ is reached."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback by default: the OneBot client usually runs on the same machine."""
    port: int = Field(8080, ge=1, le=65535)
    """TCP port of the reverse WebSocket, /onebot/v11/ws."""
    access_token: SecretStr | None = None
    """Token the client must send. Unset: one is made at the first start and kept in data/access_token."""
    ws_urls: tuple[str, ...] = ()
    """Forward WebSockets to connect to, such as ws://127.0.0.1:3001; besides the reverse one."""
    superusers: tuple[str, ...] = ()
    """QQ numbers of the owners: they get reports, may run every command, and are answered from the start."""
    command_prefix: str = Field("/", min_length=1)
    """What a command begins with."""
    api_timeout_s: float = Field(30.0, ge=20.0)
    """Wait for the client's answer to a call. NapCat itself gives up after 10 s; below 20 its reason would be lost."""


CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class Engine(Section):
    """The model and how it is run."""

    backend: Literal["llama", "remote"] = "llama"
    """llama: the base is evaluated in this process; remote: by an OpenAI-compatible server, at remote_url."""
    base: str = "embedded"
    """Path of the base GGUF all personas share; "embedded" is Gemma 3 270M Q4_K_M from its PyPI package."""
    n_ctx: int = Field(2048, ge=512)
    """Window of one scene in tokens, the reply included."""
    kv_tokens: int = Field(8192, ge=512, validate_default=True)
    """Cells of the KV cache all scenes of a model share, in tokens. Gemma 3 270M: 18 KB a token, so 147 MB."""
    n_seq_max: int = Field(64, ge=2, le=256)
    """Scenes kept warm at once; llama.cpp's limit is 256. A recurrent base sets a whole state aside for each."""
    n_parallel: int = Field(8, ge=1, le=64)
    """Requests evaluated at once; the rest wait their turn. Each takes one row of logits (Gemma 3: 1 MB)."""
    spill_mb: int = Field(256, ge=0)
    """Memory for scenes that had to leave a model's cache (megabytes); they come back in milliseconds, not re-read."""
    spill_disk_mb: int = Field(0, ge=0)
    """Files in data/spill/ for each model's scenes beyond spill_mb (megabytes), deleted at start and stop. 0: none.
    They hold what was said, readable by the owner alone. Gemma 3 270M: about 10 MB a scene, back in 20 ms."""
    lora_mb: int = Field(256, ge=0)
    """Memory for loaded LoRAs (megabytes); beyond it the ones used least recently are freed."""
    models_mb: int = Field(2048, ge=0)
    """Memory for loaded merged models, files and caches (megabytes); beyond it the ones used least recently are freed.

    Gemma 3 270M counts 404 and takes 545 with llama.cpp's buffers: five stay loaded. The one used last always does.
    """
    n_batch: int = Field(512, ge=32, validate_default=True)
    """Tokens evaluated in one call, at least n_parallel; a request can be cancelled between calls (and within)."""
    n_threads: int | None = Field(None, ge=1)
    """CPU threads; unset: as many processors as the process may use, beyond four of them half, as most machines
    count two for a core."""
    n_threads_batch: int | None = Field(None, ge=1)
    """CPU threads for prompts and for several chats at once; unset: n_threads."""
    n_gpu_layers: int = Field(-1, ge=-1)
    """Layers put on a GPU where llama.cpp was built with one; -1 is all of them, 0 none."""
    split_mode: Literal["none", "layer", "row", "tensor"] = "layer"
    """How a model is put on several GPUs, in llama.cpp's words; none: all of it on main_gpu."""
    main_gpu: int = Field(0, ge=0)
    """The GPU used where the model is not split, counted from 0."""
    tensor_split: tuple[NonNegativeFloat, ...] = ()
    """Part of the model for each GPU, as [3, 1]; empty: by their free memory."""
    load_mode: Literal["auto", "none", "mmap", "mlock", "mmap_mlock"] = "auto"
    """How the base is loaded, in llama.cpp's words; mlock keeps it from being swapped out."""
    flash_attn: Literal["auto", "on", "off"] = "auto"
    """Flash attention; auto is llama.cpp's own choice by device."""
    type_k: CacheType = "f16"
    """Type of the cached keys; q8_0 halves their memory and may change answers a little."""
    type_v: CacheType = "f16"
    """Type of the cached values; other than f16 it needs flash attention."""
    deadline_s: float = Field(120.0, gt=0)
    """A reply that takes longer is given up (seconds)."""
    remote_url: str | None = Field(None, validate_default=True)
    """Root of the server's API, such as http://127.0.0.1:8000/v1. What people write in QQ is sent there."""
    remote_model: str = Field("{persona}", min_length=1)
    """Model to ask it for; {persona} is the persona's folder name (vLLM serves each LoRA under its own name)."""
    remote_loras: tuple[str, ...] = ()
    """Personas in the order of llama-server's --lora files: each request then names its own. Empty elsewhere."""
    remote_format: Literal["chatml", "qwen3", "gemma", "llama3"] | None = None
    """Chat format of a model whose GGUF is not here. Unset: the server runs [engine] base, whose vocabulary is read."""
    remote_api_key: SecretStr | None = None
    """Key the server asks for; from the environment: TWIN__ENGINE__REMOTE_API_KEY."""
    remote_timeout_s: float = Field(60.0, gt=0)
    """Wait for the server's next byte (seconds); a long prompt is read before the first one comes."""

    caption_model: str | None = None
    """Vision model asked at remote_url what a picture shows, for `[图片:…]`. The pictures people send go there, and
    history has no such words. Unset: `[图片]`."""

    @field_validator("caption_model")
    @classmethod
    def _somewhere(cls, model: str | None, info: ValidationInfo) -> str | None:
        if model is not None and info.data.get("remote_url") is None:
            raise ValueError("needs remote_url, the server that runs it")
        return model

    @property
    def reads_base(self) -> bool:
        """Whether [engine] base is needed here: its weights, or its vocabulary alone."""
        return self.backend == "llama" or self.remote_format is None

    @field_validator("remote_url")
    @classmethod
    def _reachable(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None and info.data.get("backend") == "remote":
            raise ValueError("must be set with backend = 'remote', such as http://127.0.0.1:8000/v1")
        return _url(url)

    @field_validator("n_batch")
    @classmethod
    def _holds_a_token_of_each(cls, tokens: int, info: ValidationInfo) -> int:
        if tokens < info.data.get("n_parallel", 0):
            raise ValueError(f"must be at least n_parallel = {info.data['n_parallel']}: each request takes one token")
        return tokens

    @field_validator("kv_tokens")
    @classmethod
    def _holds_a_window(cls, cells: int, info: ValidationInfo) -> int:
        if cells < info.data.get("n_ctx", 0):
            raise ValueError(f"must be at least n_ctx = {info.data['n_ctx']} tokens: one scene fills a whole window")
        return cells


class Conversation(Section):
    """How a scene is cut into bursts and conversations. Changing these changes what was learned: retrain."""

    timezone: Zone = "Asia/Shanghai"
    """The person's time zone, for hours in prompts and in the nightly schedule."""
    conversation_gap_s: int = Field(1800, ge=60)
    """A scene silent for longer begins a new conversation (seconds)."""
    burst_gap_s: int = Field(20, ge=2)
    """Seconds within which somebody's further bubble belongs to the same burst, whoever of the others says it. In chats
    between strangers half of the further bubbles come within 10 s, nine of ten within 38."""
    burst_cap: int = Field(12, ge=1)
    """Bubbles after which a burst is looked at even if it goes on."""
    answer_within_s: int = Field(14400, ge=0)
    """In private chats an answer this late is still an answer (seconds)."""
    presence_s: int = Field(259200, ge=3600)
    """A silence is a label only if the person spoke in the scene within this time before (seconds; 3 days)."""
    max_turns: int = Field(60, ge=2)
    """Turns the window holds at most, even when more tokens would fit."""


class PerScene(Section):
    """What is otherwise in one scene."""

    persona: str | None = None
    """Persona that answers there."""
    bias: float = 0.0
    """Added to the log-odds of speaking there."""
    quiet_hours: Hours | None = None
    """Quiet hours there; "" for none."""
    commands: bool = True
    """Whether commands are answered there for others than the owners."""


class Chat(Section):
    """When the twin answers, and how fast."""

    persona: str = "xiaoman"
    """Persona that answers where no other was chosen with /persona switch."""
    scenes: tuple[SceneName, ...] = ()
    """Scenes answered from the start, as "group:ID" or "private:ID"; others after /twin on there."""
    per_scene: dict[SceneName, PerScene] = {}
    """What is otherwise in a scene: { "group:1" = { persona = "me", bias = -1.0, quiet_hours = "23:00-07:00", commands
    = false } }, each of the four or some; what is typed there goes first."""
    quiet_hours: Hours = ""
    """Hours in which nothing is said, "23:30-07:00"; empty: none, since when the person sleeps is learned."""
    debounce_s: float = Field(1.5, ge=0)
    """Wait after each bubble before the twin looks, so that a run of bubbles is one turn (seconds)."""
    debounce_max_s: float = Field(5.0, ge=0)
    """Longest such wait (seconds): it grows to the time within which four of five further bubbles of that speaker come.
    Whoever mentions the twin or quotes somebody is waited for debounce_s."""
    mark_as_read: bool = True
    """Show what was looked at as read, answered or not, where the client can. Turn it off on an account you read
    yourself."""
    show_typing: bool = True
    """Show in private chats that something is being typed, where the client can."""
    voice_to_text: bool = True
    """Where the twin is on, ask the client for the words of voice messages (QQ's own speech-to-text); without, they
    read `[语音]`."""
    max_redecisions: int = Field(2, ge=0)
    """How often newer words may make it decide anew before the first bubble is out."""
    hold_s: float = Field(600, ge=0)
    """On the person's own account: how long their own message keeps the twin quiet there (seconds)."""
    delay_scale: float = Field(1.0, ge=0)
    """Factor on the learned delays; 0 answers at once."""
    delay_cap_s: float = Field(45.0, ge=0)
    """Longest wait before an answer (seconds), however long the person would have taken."""
    stale_after_s: float = Field(300.0, gt=0)
    """Messages older than this on arrival (after a reconnect) are recorded and not answered (seconds)."""
    max_bubbles: int = Field(6, ge=1)
    """Bubbles of one answer at most."""
    scene_per_minute: int = Field(12, ge=1)
    """Bubbles sent into one scene in a minute at most; well under what gets accounts limited."""
    scene_per_hour: int = Field(200, ge=1)
    """Bubbles sent into one scene in an hour at most."""
    scene_per_day: int = Field(1000, ge=1)
    """Bubbles sent into one scene in a day at most."""
    account_per_minute: int = Field(30, ge=1)
    """Bubbles sent by one account in a minute at most."""
    account_per_hour: int = Field(400, ge=1)
    """Bubbles sent by one account in an hour at most."""
    account_per_day: int = Field(2000, ge=1)
    """Bubbles sent by one account in a day at most."""
    account_gap_s: float = Field(0.7, ge=0)
    """Least time between two bubbles of one account, whatever the scenes: answers are spread, not sent at once."""
    shadowed_pause_s: float = Field(600.0, ge=0)
    """After a message that QQ took and never confirmed (risk control), nothing is sent for so long (seconds)."""
    mention_shift: float = 2.0
    """Added to the log-odds of speaking when mentioned, beyond what was learned."""
    quote_shift: float = 1.5
    """Added to the log-odds of speaking when one of our messages is quoted."""
    name_shift: float = 1.0
    """Added to the log-odds of speaking when the display name or a nickname occurs in the text."""


class Scheduled(Section):
    """One message by the clock."""

    cron: Cron
    """When, as a crontab line in [conversation] timezone."""
    scene: SceneName
    """Where."""
    prompt: str = Field(min_length=1, max_length=200)
    """What it is about; the persona says it in its own words."""


class Opening(Section):
    """Speaking first. Quiet hours, budgets, /twin off and holds forbid it like any other word."""

    enabled: bool = False
    """Open conversations as the person does: in each scene and hour as often as they did while the twin was off."""
    scale: float = Field(1.0, ge=0)
    """Factor on how often."""
    per_day: int = Field(3, ge=0)
    """Conversations opened in one scene in a day at most."""
    late_s: float = Field(1800.0, ge=0)
    """How late a message by the clock may be said where quiet hours, a budget, a mute, a lost connection or a
    conversation stand in its way (seconds); then it is dropped, and the owner told."""
    schedule: tuple[Scheduled, ...] = ()
    """Messages by the clock, whether enabled or not: { cron = "0 8 * * 1-5", scene = "group:1", prompt = "叫大家起床"
    }, each said in the persona's own words."""


class Stickers(Section):
    """The library of image stickers the imitated people send."""

    enabled: bool = False
    """Keep the files of image stickers they send (data/stickers/), call them `[动画表情:name]`, and send them where the
    model says so. Off: nothing is downloaded, and no image sticker is sent."""
    max_mb: int = Field(50, ge=1)
    """Size of the library (megabytes); beyond it the stickers not sent for longest go."""
    max_file_kb: int = Field(1024, ge=1)
    """Size of one sticker (kilobytes); larger ones are not kept, since every sending carries the whole file."""


class Training(Section):
    """QLoRA, under its libraries' names. What is unset is chosen from the data and the device, and said."""

    base: str | None = None
    """Checkpoint to train on: a Hugging Face folder, or an id on the hub. Unset: [engine] base itself, dequantized
    once. It must be the very model the GGUF was made from."""
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where an id is fetched from; ModelScope is the mirror in China."""
    trust_remote_code: bool = False
    """Run Python that a checkpoint brings along. Only for authors you trust: it may do anything you may."""
    precision: Literal["auto", "nf4", "int8", "fp8", "none"] = "auto"
    """Base weights while training: 4-bit NormalFloat with double quantization, 8-bit integers or floats, or none: as
    computed. auto: nf4 on CUDA, none on a CPU, where NF4 saves memory but costs time."""
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What is computed in. auto: bfloat16 where the device has it, else float16. A loss of 0 or NaN: on in
    float32."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel; auto: flash_attention_2 where it is installed on CUDA, else sdpa."""
    use_liger_kernel: bool = False
    """Liger's fused norms, rotations and activations, where liger-kernel is installed (CUDA)."""
    r: int | None = Field(None, ge=1, le=1024)
    """LoRA rank. Unset: 8 under 50 answers, 32 from 5,000 on, else 16; when going on from a LoRA, that one's."""
    lora_alpha: int | None = Field(None, ge=1)
    """LoRA strength is lora_alpha / r. Unset: 2r, the usual choice; when going on from a LoRA, that one's."""
    lora_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout on the LoRA's input. Unset: 0.05; 0 where experts or routers are trained, which PEFT cannot drop out;
    when going on from a LoRA, that one's."""
    target_modules: tuple[str, ...] = Field(("all-linear",), min_length=1)
    """Layers that get a LoRA, by the last part of their names; "all-linear": all linear layers but the output layer."""
    use_rslora: bool = False
    """Rank-stabilized LoRA: strength is lora_alpha / sqrt(r)."""
    use_dora: bool = False
    """Weight-decomposed LoRA. No GGUF can hold it: for models that are not served by llama.cpp."""
    moe_scope: Literal["off", "expert_only", "router_only", "all"] = "off"
    """What of a mixture gets a LoRA. off: target_modules outside experts and routers; all: target_modules and both.
    Routers are not exported to GGUF."""
    expert_patterns: tuple[str, ...] = (r"\.experts\.",)
    """Regular expressions: modules and fused parameters that belong to experts."""
    router_patterns: tuple[str, ...] = (r"\.gate\.weight$", r"\.router\.", r"\.router$", r"\.gate$")
    """Regular expressions: modules and parameters that are routers."""
    max_experts_per_layer: int | None = Field(None, ge=1)
    """Experts of a layer that get a LoRA, the first ones. Only where experts are layers of their own, not fused."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; cosine after warm-up. Unset: 2e-4, half of it when going on from a LoRA."""
    num_train_epochs: float | None = Field(None, gt=0)
    """Passes over the samples. Unset: 5 under 25 answers, 3 under 100, 2 under 5,000, else 1; 1 when going on from a
    LoRA."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps, whatever num_train_epochs says; unset: as the epochs give."""
    early_stopping_patience: int | None = Field(1, ge=1)
    """Measurements of the held-out loss without a new best after which a run ends. The best LoRA is kept either way."""
    per_device_train_batch_size: int | None = Field(None, ge=1)
    """Windows of a batch, which a processor reads in passes of 512 tokens. Unset: 4, or what memory holds."""
    gradient_accumulation_steps: int | None = Field(None, ge=1)
    """Batches in one optimizer step. Unset: the most of 16, 8, 4 and 2 with which a step has at most 16 windows and the
    run at least 60 steps; else 1. With batches of 4 that is 4, 2 or 1."""
    gradient_checkpointing: bool | None = None
    """Recompute activations: a third slower, several GB less. Unset: where they do not fit in memory."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Part of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay on the LoRA."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping by norm."""
    optim: Literal["auto", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = "auto"
    """Optimizer. auto: paged 8-bit AdamW on CUDA, else fused AdamW."""
    model_max_length: int | None = Field(None, ge=64)
    """Tokens of a training window, and of a live prompt of what was trained; longer histories are read in several
    windows. Unset: 2048 on a GPU with 16 GB or more, else 512."""
    max_samples: int | None = Field(None, ge=2)
    """Windows trained on at most, the newest ones; unset: all."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Put the windows of a batch behind one another instead of padding them. auto: with flash attention, which
    keeps them apart at no cost; elsewhere the larger attention costs more than padding."""
    eval_data_path: Path | None = None
    """A training-set file whose answers are the held-out loss; unset: the tune split."""
    silence_keep: float = Field(1.0, gt=0, le=1)
    """Part of the silences that are trained; the probability is corrected by it when used."""
    max_set_dialogues: int | None = Field(5000, ge=1)
    """Dialogues of training sets trained on, chosen by a hash; 5,000 short ones are some hours on two cores."""
    start: Literal["fresh", "continue"] = "fresh"
    """fresh: a new LoRA from all of the history; continue: the serving version's LoRA goes on with what is new."""
    replay: float = Field(0.25, ge=0, le=1)
    """Part of the older windows that are trained again when going on; which ones, a hash of the night decides."""
    general_chat: tuple[Path, ...] = ()
    """Training-set files of general chat that keep the language; none of it is the persona's."""
    general_share: float = Field(0.1, gt=0, lt=1)
    """Part of the trained windows that is general chat, where there is some."""
    seed: int = Field(42, ge=0, lt=1 << 32)
    """Seed of everything random in a run."""
    logging_steps: int = Field(5, ge=1)
    """Optimizer steps between progress lines."""
    eval_steps: int | None = Field(None, ge=1)
    """Optimizer steps between measurements of the held-out loss; unset: at the end of each epoch."""
    save_steps: int = Field(25, ge=1)
    """Optimizer steps between checkpoints; what a kill costs at most."""
    save_total_limit: int = Field(2, ge=1)
    """Checkpoints kept; the older ones go."""
    merge_and_save: bool = False
    """Also write the base with the LoRA in it, `merged/` in the run folder: as large as the base."""
    preference_min_pairs: int = Field(20, ge=1)
    """The owner's corrections that a preference pass after training needs; fewer say more of the day than of them."""
    preference_loss: Literal["dpo", "kto"] = "dpo"
    """dpo needs what should have been said; kto also learns from a bare /不像 or recall, and needs more of them."""
    preference_beta: float = Field(0.1, gt=0)
    """Weight of staying near the LoRA before the pass; 0.1 is the usual choice, larger changes less."""
    preference_learning_rate: float = Field(2e-5, gt=0)
    """Learning rate of the pass: a tenth of the training's, since it corrects what was learned."""
    preference_epochs: float = Field(3.0, gt=0)
    """Passes over the corrections; there are few."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a run; unset: all when started by hand, all but one (at least one) in the daemon's night."""

    @field_validator("threads")
    @classmethod
    def _there(cls, threads: int | None) -> int | None:
        return None if threads is None else min(threads, processors.usable())

    @field_validator("expert_patterns", "router_patterns")
    @classmethod
    def _expressions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as e:
                raise ValueError(f"{pattern!r} is not a regular expression ({e})") from e
        return patterns


class Cleaning(Section):
    """What of the history is shown to the model, and which answers it learns from. The first four hold live, too."""

    redact: bool = True
    """Numbers, addresses, passwords and the like become placeholders such as [手机号]: a model keeps no secrets."""
    strip_mentions: bool = False
    """Take `@昵称` out of the text, as corpora of the field do. Off: whom somebody speaks to is part of it."""
    strip_placeholders: bool = False
    """Take `[图片]`, `[动画表情]` and the like out of the text. Off: that a picture came is often answered."""
    system_senders: tuple[str, ...] = ("10000", "2854196310")
    """QQ numbers whose messages are not shown: QQ's own notices and its group manager (Q群管家); add other bots."""
    merge: Literal["off", "bubbles", "，"] = "off"
    """Join one speaker's bubbles that others' messages stand between; as bubbles, or one text joined by ，. Off: no
    such order was ever lived, and an answer comes to stand before what it answers; meant for training sets."""
    merge_interleaved: int = Field(2, ge=0)
    """Others' messages that may stand between two bubbles to be merged; more is another turn."""
    merge_gap_s: int = Field(60, ge=0)
    """Seconds between two bubbles to be merged at most; the merged ones stand at their mean time. After a minute of
    others' words somebody answers anew."""
    drop_repeats: bool = True
    """Do not train an answer that only repeats the message before it (复读): a small model learns to parrot from it.
    Up to 4 characters (好, 晚安) it is manners, and trained; a face, a sticker or a poke counts as one."""
    drop_media: bool = True
    """Do not train an answer of nothing but pictures, voices, files or cards, nor such a bubble of another answer: the
    twin has none to send."""
    drop_broken: bool = True
    """Do not train an answer that was decoded wrongly (锟斤拷) or is cut off in the middle."""
    min_chars: int = Field(1, ge=1)
    """Characters of an answer to be trained at least. 1: a short answer is an answer."""
    max_chars: int = Field(400, ge=1)
    """Characters of an answer to be trained at most: longer ones are pasted, not typed."""
    blocked_words: tuple[str, ...] = ()
    """An answer with one of these is not trained; upper and lower case are the same. Empty: which words a twin must not
    learn is yours to say."""
    duplicate_cap: int = Field(3, ge=1)
    """Answers that read nearly alike are trained so often and no more, the first ones."""
    duplicate_min_chars: int = Field(16, ge=1)
    """Shorter answers are never capped: saying 哈哈哈 often is a habit, sending one notice to ten groups is not."""
    pairing: Literal["scored", "previous", "mentioned", "empty", "model"] = "scored"
    """Which message an answer in a group answers, for `twin corpus export --pairs` and `stats`, where no quote or @
    says it: by a fitted rule; the message before; only where the person was @-ed; none; or as the model of [cleaning]
    chose."""


class ModelCleaning(Section):
    """A language model that judges the history, asked by `twin corpus clean --model`; nights use what it has said."""

    url: str | None = None
    """Root of an OpenAI-compatible API, such as http://127.0.0.1:8080/v1. Unset: no model is asked, and nothing one has
    said is used. Samples of the history are sent there, redacted if [corpus] redact says so."""
    model: str | None = None
    """The model to ask, as the server names it; a wrong name is answered with the names it has."""
    allow_remote: bool = Field(False, validate_default=True)
    """Confirms that url may be another machine than this one: what people wrote leaves this machine."""
    api_key: SecretStr | None = None
    """Key the server asks for; from the environment: TWIN__CLEANING__API_KEY."""
    tasks: tuple[Literal["score", "question", "fragments"], ...] = ("score",)
    """score: answers below threshold are not trained. question: an answer to nothing is given a line to answer, which
    is not trained. fragments: bubbles that are pieces of one sentence become one. Their words: data/prompts/."""
    threshold: int = Field(2, ge=1, le=5)
    """Least score, of 1 to 5, of an answer that is trained; masked answers stay in the context. WeClone's default."""
    batch_size: int = Field(16, ge=1, le=64)
    """Samples in one request; 15 to 20 is usual. What is too long for the model's context is split."""
    concurrency: int = Field(4, ge=1, le=64)
    """Requests under way at once; a server of its own on two cores does not gain from more than 1."""
    timeout_s: float = Field(300.0, gt=0)
    """Wait for the server's next byte (seconds): of a whole batch, since answers are not streamed."""

    @field_validator("url")
    @classmethod
    def _reachable(cls, url: str | None) -> str | None:
        return _url(url)

    @field_validator("allow_remote")
    @classmethod
    def _meant(cls, allowed: bool, info: ValidationInfo) -> bool:
        url = info.data.get("url")
        if url is not None and not allowed and not loopback(urlsplit(url).hostname or ""):
            raise ValueError(
                f"must be true for {url!r}, which is not this machine: what people wrote would be sent there; set it "
                "if that is meant, or run a model here"
            )
        return allowed


class Retrain(Section):
    """The night."""

    enabled: bool = True
    """Whether nights run by themselves; /train now works either way."""
    cron: Cron = "0 4 * * *"
    """When, as a crontab line in [conversation] timezone."""
    jitter_s: int = Field(600, ge=0)
    """Random shift of the start (seconds)."""
    min_new_messages: int = Field(50, ge=0)
    """A night with fewer new messages of the person since the last version is skipped and says so."""
    timeout_s: int = Field(6 * 3600, ge=60)
    """A night that takes longer is stopped (seconds); what it finished is kept for the next."""
    roll_back: bool = True
    """Whether a new version that does worse where it lives is rolled back by itself; else the owner is only told."""
    watch_every_s: float = Field(3600.0, ge=1)
    """How often the serving version is looked at (seconds)."""
    watch_days: float = Field(7.0, gt=0)
    """How long after its first decision a version is looked at (days); later the owner has got used to it."""
    watch_answers: int = Field(30, ge=10)
    """Answers in a block: it goes back where two blocks in a row lie outside, so after twice as many at the soonest;
    the person's own are compared in blocks of that many. At 30 all 60 pairs of blocks of other speakers on the demo
    lay outside, from eight blocks of the person's on, and none of the person's own later blocks."""
    corrected_max: float = Field(0.1, gt=0, lt=1)
    """Part of its answers that the owner may correct: a version goes back where four or more were, and the 95 %
    interval of their part lies above this and above the part of the version before. Low, since an owner corrects only
    some of what is wrong."""
    drift_sigmas: float = Field(3.5, gt=0)
    """Half-width of the person's band in standard deviations of their own blocks, were there very many; with fewer it
    is a prediction interval at that level: 4.0 of them at 30 blocks, 6.6 at eight. Of versions that were the person
    (simulated, 30 answers a day) 0.2 % at most went back within the week, at 3 up to 1.5 %; at 4 half of the other
    speakers stayed inside eight blocks."""


class Api(Section):
    """The twin for other programs: OpenAI's chat completions on [onebot]'s port, `model` being the persona."""

    enabled: bool = False
    """Whether /v1/chat/completions and /v1/models are answered."""
    token: SecretStr | None = Field(None, min_length=1)
    """What programs must send as `Authorization: Bearer`. Unset: one is made and kept in data/api_token."""
    silences: bool = True
    """An answer may be empty, where the person would have said nothing; off: something is always said."""


class Gate(Section):
    """What a new version has to keep to be published."""

    places: int = Field(60, ge=1)
    """Held-out moments at which the new version, the serving one and the baselines answer. More narrow the intervals
    and take longer: 60 are three to four minutes on two cores."""
    words_worse_max: float = Field(0.1, gt=0)
    """Nats per token. A version that looks worse than the serving one passes only if it is surely not worse by more
    than this: without the bound, a small test split would let a slow decline through night after night. Nor may
    the loss have risen by more, version upon version, since the best of them."""
    silence_worse_max: float = Field(0.02, gt=0)
    """The same for the Brier score of P(speak): a tenth of what saying the mean rate costs (0.2 to 0.25)."""
    style_worse_max: float = Field(0.12, gt=0)
    """The same for the mean style distance (0 to 1). At 60 moments equal versions differ by 0.025 (standard deviation)
    and the interval is 0.06 to each side: with 0.08 every fourth of them was refused, with 0.12 one in a hundred."""
    reply_rate_min: float = Field(0.5, ge=0, le=1)
    """Part of the person's replies that a version has to give at least; one that is surely below is mute."""
    bad_answers_max: float = Field(0.15, ge=0, le=1)
    """Part of the sample answers that may loop, copy or speak for others, and part that may be empty: at temperature
    0.7 a small model does so now and then, and an empty answer is not sent."""
    leak_chars: int = Field(30, ge=8)
    """A leak is a run of at least so many characters of a training answer, said again word for word or in its letters
    and digits alone, that nobody but the person wrote, and they in one or two wordings. Shorter runs are how people
    speak."""
    leaks_max: int = Field(0, ge=0)
    """Leaks a version may have: such runs, and numbers of the corpus that are told unasked."""
    newest_h: int = Field(24, ge=0)
    """Conversations of these last hours are not trained yet: the old and the new version are scored on them first
    (hours). They join the night after; without a serving version there is nothing to compare and all is trained."""
    judge_url: str | None = None
    """Root of an OpenAI-compatible API whose model judges character and knowledge, such as http://127.0.0.1:8000/v1;
    unset: nobody is asked. The persona's prompt and held-out moments are sent there."""
    judge_model: str | None = None
    """The judge's name there."""
    judge_api_key: SecretStr | None = None
    """Sent to the judge as a bearer token."""


class Log(Section):
    """What is written down; message text never is."""

    level: Literal["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity shown."""
    retention_days: int = Field(14, ge=1)
    """Days data/logs/ keeps."""


class Settings(Section):
    """Everything in bot.toml."""

    paths: Paths = Paths()
    onebot: OneBot = OneBot()
    engine: Engine = Engine()
    conversation: Conversation = Conversation()
    corpus: Cleaning = Cleaning()
    cleaning: ModelCleaning = ModelCleaning()
    chat: Chat = Chat()
    opening: Opening = Opening()
    stickers: Stickers = Stickers()
    training: Training = Training()
    retrain: Retrain = Retrain()
    gate: Gate = Gate()
    api: Api = Api()
    log: Log = Log()

    @property
    def data(self) -> Path:
        """The data folder, absolute once loaded by `load`."""
        return self.paths.data

    @property
    def archive_url(self) -> str:
        """SQLAlchemy URL of the message store."""
        return self.paths.archive_url or f"sqlite:///{self.data / 'archive.db'}"

    @property
    def stays_here(self) -> bool:
        """Whether what people write stays on this machine: no server of a model is another one, nor the archive's."""
        from sqlalchemy import make_url

        engine, gate = self.engine, self.gate
        servers = (
            engine.remote_url if engine.backend == "remote" or engine.caption_model is not None else None,
            self.cleaning.url,
            gate.judge_url if gate.judge_model is not None else None,
        )
        archive = make_url(self.archive_url)
        at = archive.query.get("host", archive.host)  # a folder there is a socket of this machine
        hosts = [urlsplit(url).hostname for url in servers if url is not None]
        hosts.append(at if isinstance(at, str) and not at.startswith("/") else None)
        return all(host is None or loopback(host) for host in hosts)

    @property
    def zone(self) -> ZoneInfo:
        """The person's time zone."""
        return ZoneInfo(self.conversation.timezone)


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read bot.toml (a missing file means all defaults) and the environment.

    Raises:
        ConfigError: with one line per fault, `bot.toml [engine] n_ctx = 10: …`.
    """
    tree: dict[str, Any] = {}
    if path.exists():
        try:
            tree = tomllib.loads(path.read_text("utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path.name}: not readable as TOML ({e}); mend that line") from e
    from_environment = _overlay(tree, environ)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as e:
        raise ConfigError(_faults(e, path.name, from_environment)) from None
    root = path.parent
    data = (root / settings.paths.data).resolve()
    chosen = settings.training
    held_out = None if chosen.eval_data_path is None else (root / chosen.eval_data_path).resolve()
    general = tuple((root / file).resolve() for file in chosen.general_chat)
    base = chosen.base
    if base is not None and (root / base).is_dir():  # else an id on the hub
        base = str((root / base).resolve())
    found = {
        "paths": settings.paths.model_copy(update={"data": data}),
        "training": chosen.model_copy(update={"base": base, "eval_data_path": held_out, "general_chat": general}),
    }
    return settings.model_copy(update=found)


def _overlay(tree: dict[str, Any], environ: Mapping[str, str]) -> set[tuple[str, ...]]:
    """Write `TWIN__SECTION__KEY` variables into `tree`; gives the places that came from there."""
    places = set()
    for name, value in sorted(environ.items()):
        if not name.upper().startswith(ENV_PREFIX):
            continue
        place = tuple(name[len(ENV_PREFIX) :].lower().split("__"))
        table = tree
        for part in place[:-1]:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                break
            table = inner
        else:
            table[place[-1]] = _literal(value, text_only=place[-1] in _SECRETS)
            places.add(place)
    return places


def _literal(value: str, *, text_only: bool) -> Any:
    """A variable's value: TOML, else the text itself; a secret of digits alone is still text."""
    try:
        read = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return value
    return value if text_only and not isinstance(read, str) else read


def _faults(error: ValidationError, file: str, from_environment: set[tuple[str, ...]]) -> str:
    lines = []
    for fault in error.errors():
        place = tuple(str(p) for p in fault["loc"])
        section, key = place[0], ".".join(place[1:])
        source = (
            f"environment {ENV_PREFIX}{'__'.join(place).upper()}"
            if place in from_environment
            else f"{file} [{section}] {key}".rstrip()
        )
        if fault["type"] == "extra_forbidden":
            lines.append(f"{source}: no such setting; see the shipped bot.toml for all of them")
            continue
        shown = "***" if key in _SECRETS else re.sub(r"//[^/@\s]+@", "//***@", repr(fault["input"]))
        lines.append(f"{source} = {shown}: {_reason(fault, key)}")
    return "\n".join(lines)


def _reason(fault: ErrorDetails, key: str) -> str:
    """What was expected, with the unit of the setting's name: `must be at least 512 tokens`."""
    context = fault.get("ctx", {})
    if fault["type"] in _BOUNDS:
        words, bound = _BOUNDS[fault["type"]]
        unit = next((f" {unit}" for ending, unit in _UNITS.items() if key.endswith(ending)), "")
        return f"must be {words} {context[bound]:.12g}{unit}"
    if fault["type"] == "value_error":
        return str(context["error"])
    return f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"


def websocket_url(settings: Settings) -> str:
    """Where OneBot clients connect to (reverse WebSocket)."""
    host = f"[{settings.onebot.host}]" if ":" in settings.onebot.host else settings.onebot.host
    return f"ws://{host}:{settings.onebot.port}/onebot/v11/ws"


def access_token(settings: Settings) -> tuple[str, Path | None]:
    """The token OneBot clients must send, and the file it lies in (None when it was configured).

    Made once and kept readable by the owner alone.

    Raises:
        ConfigError: an empty token was configured while listening beyond loopback.
    """
    if settings.onebot.access_token is not None:
        token = settings.onebot.access_token.get_secret_value()
        if not token and not loopback(settings.onebot.host):
            raise ConfigError(
                f"bot.toml [onebot] access_token is empty while host = {settings.onebot.host!r} is reachable from "
                "other machines: anyone could speak as the owner. Set a token, or host = '127.0.0.1'"
            )
        return token, None
    return _kept_token(settings.data / "access_token")


def api_token(settings: Settings) -> tuple[str, Path | None]:
    """The token of `[api]`, and the file it lies in (None when it was configured); made once."""
    if settings.api.token is not None:
        return settings.api.token.get_secret_value(), None
    return _kept_token(settings.data / "api_token")


def _kept_token(file: Path) -> tuple[str, Path]:
    # An empty file, left by a crash or by hand, would let anyone in.
    if not file.exists() or not file.read_text("utf-8").strip():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.tmp")
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as f:
            f.write(secrets.token_urlsafe(24) + "\n")
        os.replace(beside, file)
    return file.read_text("utf-8").strip(), file


def loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
