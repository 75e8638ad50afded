import re
from dataclasses import replace

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bot.prompt import FORMATS
from export.template import PROBES, chat, differing, differing_formats, go, jinja, rendered

FORMAT_NAMES = sorted(FORMATS)


@pytest.mark.parametrize("bos", ["", "<bos>", "<｜begin▁of▁sentence｜>", "<🌟>"])
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_the_jinja_template_renders_what_the_prompt_renders(name, bos):
    assert differing(jinja(FORMATS[name], bos), FORMATS[name], bos) == 0


CHANGES = {
    "another header": {"user_open": "user: "},
    "no end of turn": {"end": ""},
    "a blank more behind it": {"after": " \n"},
    "no system turn": {"system_open": ""},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_any_other_template_is_found_out(name, change):
    wrong = jinja(replace(FORMATS[name], **change), "")
    assert differing(wrong, FORMATS[name], "") > 0
    assert differing_formats(FORMATS[name], replace(FORMATS[name], **change)) > 0


@pytest.mark.parametrize("broken", ["", "{{ messages", "{{ nothing.at.all }}", "{{ raise_exception('x') }}"])
def test_a_template_that_does_not_run_differs_in_every_probe(broken):
    assert differing(broken, FORMATS["gemma"], "") == len(PROBES)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_no_content_is_a_silence_and_a_developer_is_the_system(name):
    ours = [
        {"role": "system", "content": "你是小满。"}, {"role": "user", "content": "在吗"},
        {"role": "assistant", "content": ""}, {"role": "user", "content": ""},
    ]  # fmt: skip
    theirs = [
        {"role": "developer", "content": "你是小满。"}, ours[1], {"role": "assistant", "content": None},
        {"role": "user"},
    ]  # fmt: skip
    run = ImmutableSandboxedEnvironment().from_string(jinja(FORMATS[name], "<bos>")).render
    assert run(messages=theirs, add_generation_prompt=True) == run(messages=ours, add_generation_prompt=True)


@pytest.mark.parametrize("role", ["tool", "function", "observation"])
def test_a_role_that_was_never_trained_is_refused(role):
    def raise_exception(words: str) -> None:  # as transformers and vLLM have it
        raise TemplateError(words)

    environment = ImmutableSandboxedEnvironment()
    environment.globals["raise_exception"] = raise_exception
    run = environment.from_string(jinja(FORMATS["chatml"], "")).render
    with pytest.raises(TemplateError, match="no role but system, developer, user and assistant was trained"):
        run(messages=[{"role": role, "content": "23 °C"}], add_generation_prompt=True)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_the_go_template_renders_what_the_prompt_renders(name):
    for talk in PROBES:
        assert run_go(go(FORMATS[name]), chat(talk)) == rendered(FORMATS[name], talk)


def test_a_chat_that_ends_with_the_assistant_is_gone_on_with():
    fmt = FORMATS["chatml"]
    messages = [{"role": "user", "content": "在吗"}, {"role": "assistant", "content": "在"}]
    assert run_go(go(fmt), messages) == "<|im_start|>user\n在吗<|im_end|>\n<|im_start|>assistant\n在"


def run_go(template: str, messages: list[dict[str, str]]) -> str:
    """The part of Go's text/template that `go` uses; actions trim the text before them where they begin with `{{-`."""
    parts = re.split(r"\s*\{\{- (.*?) \}\}|\{\{ (.*?) \}\}", template)
    nodes = [("text", x) if i % 3 == 0 else ("do", x) for i, x in enumerate(parts) if x]
    assert all(not x.strip() or kind == "do" for kind, x in nodes), "text between actions"
    actions = [x for kind, x in nodes if kind == "do"]
    body = actions[actions.index("range $i, $message := .Messages") + 1 : -1]
    assert actions[0] == "$first := false"
    out, known = [], {"$first": False}
    for number, message in enumerate(messages):
        known["$last"] = number == len(messages) - 1
        stack = [True]  # whether each open branch is taken
        taken = [True]  # whether one of an if's branches was
        for action in body:
            word, _, rest = action.partition(" ")
            if word == "if":
                truth = holds(rest, message, known)
                stack.append(stack[-1] and truth)
                taken.append(truth)
            elif word == "else":
                truth = not taken[-1] and (not rest or holds(rest.removeprefix("if "), message, known))
                stack[-1] = stack[-2] and truth
                taken[-1] = taken[-1] or truth
            elif word == "end":
                stack.pop()
                taken.pop()
            elif stack[-1]:
                if action in ("$first = true", "$first = false"):
                    known["$first"] = action.endswith("true")
                elif action == ".Content":
                    out.append(message["content"])
                elif action.startswith("$last :="):
                    assert action == "$last := eq (len (slice $.Messages $i)) 1"
                else:
                    out.append(unquoted(action))
    return "".join(out)


def holds(condition: str, message: dict[str, str], known: dict[str, bool]) -> bool:
    if condition.startswith("eq .Role "):
        return message["role"] == unquoted(condition.removeprefix("eq .Role "))
    return not known[condition.removeprefix("not ")] if condition.startswith("not ") else known[condition]


def unquoted(text: str) -> str:
    assert re.fullmatch(r'"([^"\\]|\\n)*"', text), text
    return text[1:-1].replace("\\n", "\n")
