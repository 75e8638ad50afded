"""A chat format → the Jinja template of a checkpoint or GGUF, and the Go template of an Ollama Modelfile.

Both render a list of messages to the very text of `bot.prompt`'s pieces. Every control text stands in them as a quoted
literal and all layout is trimmed, so no blank slips in. What cannot be equal: here pieces are encoded one by one, a
server encodes the whole text, so a token may span two of them; and it parses what people type, `<|im_end|>` too. Who
needs that safe talks to the daemon.
"""

import json
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bot.message import Message, Scene
from bot.prompt import ChatFormat, Exchange, Renderer, render

Talk = tuple[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]]
"""A system prompt, and (bubbles heard, bubbles said) in turn; the last is not answered yet."""

PROBES: tuple[Talk, ...] = (
    ("你是小满。\n现在是QQ私聊。", ((("在吗",), ()),)),
    (
        "  你是小满。 ",
        (
            (("【周五 23:10】", "吃什么", " "), ("吃面", "加个蛋")),
            (("{{ 哈哈哈 }} {% if %} \\n \"'",), ()),
            ((" 睡了没",), ()),
        ),
    ),
)
"""Talks both renderings must agree on: blanks at the edges, a silence, and what looks like a template."""


def jinja(fmt: ChatFormat, bos: str) -> str:
    """The Jinja template of a format.

    A developer is the system by another name; no content is a silence; a role that was never trained is refused.

    Args:
        fmt: the format.
        bos: text of the token that opens a prompt, empty where the model has none. It is part of the template, as
            transformers and vLLM expect; llama-server leaves a second one out.
    """
    say = {name: "{{- " + json.dumps(text, ensure_ascii=False) + " -}}" for name, text in _texts(fmt).items()}
    system = "message['role'] == 'system' or message['role'] == 'developer'"
    content = "{%- if message['content'] -%}{{- message['content'] -}}{%- endif -%}"
    return (
        ("{{- " + json.dumps(bos, ensure_ascii=False) + " -}}" if bos else "")
        + "{%- set ns = namespace(first=false) -%}"
        "{%- for message in messages -%}"
        f"{{%- if {system} -%}}"
        f"{say['system_open']}{content}{say['system_close']}{{%- set ns.first = true -%}}"
        "{%- elif message['role'] == 'user' -%}"
        f"{{%- if ns.first -%}}{say['first_user_open']}{{%- else -%}}{say['user_open']}{{%- endif -%}}"
        f"{{%- set ns.first = false -%}}{content}{say['user_close']}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{say['assistant_open']}{content}{say['end']}{say['after']}"
        "{%- else -%}"
        "{{- raise_exception('no role but system, developer, user and assistant was trained') -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{say['assistant_open']}{{%- endif -%}}"
    )


def go(fmt: ChatFormat) -> str:
    """The Go template of a format, over Ollama's `.Messages`; BOS is Ollama's to add.

    A JSON string is a Go string. Ollama puts the Modelfile's SYSTEM in front as a message of its own, joins messages of
    one role, and lets the model go on with a last assistant message, which is therefore left open.
    """
    say = {name: "{{- " + json.dumps(text, ensure_ascii=False) + " }}" for name, text in _texts(fmt).items()}
    lines = [
        "{{- $first := false }}",
        "{{- range $i, $message := .Messages }}",
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
        '{{- if eq .Role "system" }}',
        f"{say['system_open']}{{{{ .Content }}}}{say['system_close']}{{{{- $first = true }}}}",
        '{{- else if eq .Role "user" }}',
        f"{{{{- if $first }}}}{say['first_user_open']}{{{{- else }}}}{say['user_open']}{{{{- end }}}}",
        "{{- $first = false }}{{ .Content }}" + say["user_close"],
        f"{{{{- if $last }}}}{say['assistant_open']}{{{{- end }}}}",
        "{{- else }}",
        f"{say['assistant_open']}{{{{ .Content }}}}{{{{- if not $last }}}}{say['end']}{say['after']}{{{{- end }}}}",
        "{{- end }}",
        "{{- end }}",
    ]
    return "\n".join(lines)


def chat(talk: Talk) -> list[dict[str, str]]:
    """A talk as messages, as OpenAI has them; a silence is empty content."""
    system, turns = talk
    messages = [{"role": "system", "content": system}]
    for heard, said in turns:
        messages.append({"role": "user", "content": "\n".join(heard)})
        messages.append({"role": "assistant", "content": "\n".join(said)})
    return messages[:-1]


def rendered(fmt: ChatFormat, talk: Talk) -> str:
    """A talk as `bot.prompt` renders it, assistant header open."""
    system, turns = talk
    renderer = Renderer(fmt, system, ZoneInfo("UTC"), group=False)
    history = [Exchange(heard=[_message(x) for x in heard], said=[_message(x) for x in said]) for heard, said in turns]
    return "".join(piece.text for piece in render(renderer, history, lambda _: None))


def differing(template: str, fmt: ChatFormat, bos: str) -> int:
    """How many probes a Jinja template renders otherwise than the format; all of them when it does not run."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        run = environment.from_string(template).render
        return sum(run(messages=chat(t), add_generation_prompt=True) != bos + rendered(fmt, t) for t in PROBES)
    except TemplateError:
        return len(PROBES)


def differing_formats(ours: ChatFormat, theirs: ChatFormat) -> int:
    """How many probes two formats render differently."""
    return sum(rendered(ours, t) != rendered(theirs, t) for t in PROBES)


def _message(text: str) -> Message:
    return Message("0", Scene("private", "0"), "0", "", datetime.fromtimestamp(0, UTC), text)


def _texts(fmt: ChatFormat) -> dict[str, str]:
    names = (
        "system_open", "system_close", "first_user_open", "user_open", "user_close", "assistant_open", "end", "after",
    )  # fmt: skip
    return {name: getattr(fmt, name) for name in names}
