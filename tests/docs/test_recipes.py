"""docs/recipes: each command is one of the command line's, each setting one of bot.toml's, the notebook as written."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bot import config
from bot.__main__ import app
from bot.persona import Spec
from docs.recipes import notebook, pages

FOLDER = Path(pages.__file__).parent
PAGES = sorted(FOLDER.glob("*.md"))
NAMES = [p.stem for p in PAGES]
LEAST = {"README": 2, "group-member": 9, "rolebench": 21, "symptoms": 13, "three-friends": 12, "wechat-qwen3-0.6b": 20}
SETTINGS_LEAST = {"symptoms": 60, "group-member": 1, "rolebench": 1, "wechat-qwen3-0.6b": 2}
"""Commands and settings of each page: fewer are found only if the search is broken or a page lost its commands."""


UsageError: Any = typer.BadParameter.__mro__[1]
"""Of the click that typer brings along, which may be its own."""


def commands_of(command: Any) -> dict[str, Any]:
    """The commands of a group; none of a command."""
    return getattr(command, "commands", {})


def parsed(line: str) -> dict[str, Any]:
    """The arguments of the command that a line names, converted; a UsageError says what is wrong."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line, comments=True)
    assert words.pop(0) == "twin"
    while commands_of(command):
        name = words.pop(0) if words else "nothing"
        if name not in command.commands:
            raise UsageError(f"{command.name} has no command {name!r}")
        command = command.commands[name]
    return command.make_context(command.name, words).params


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_a_page_is_one_of_the_command_line(page: Path) -> None:
    lines = [*pages.commands(page), *inline(page)]
    assert len(lines) >= LEAST[page.stem]
    for line in lines:
        try:
            parsed(line)
        except UsageError as e:
            pytest.fail(f"{page.name}: `{line}`: {e.format_message()}")


@pytest.mark.parametrize(
    "line",
    ["twin tran --persona me", "twin train --persona", "twin train --epoch 2", "twin train --max-steps two",
     "twin train --max-steps 0", "twin corpus", "twin persona new", "twin import --persona me"],
)  # fmt: skip
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises(UsageError):
        parsed(line)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_setting_of_a_page_is_taken(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(pages.blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block, "utf-8")
        config.load(file)
        assert tomllib.loads(block), f"{page.name}: an empty block of settings"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_setting_a_page_names_exists(page: Path) -> None:
    """`[training] r`, `[sampling] temperature`, and lists of such: `[chat] mention_shift`, `quote_shift`."""
    named = list(settings_named(page))
    assert len(named) >= SETTINGS_LEAST.get(page.stem, 0)
    for section, key in named:
        assert key in fields(section), f"{page.name}: there is no [{section}] {key}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    found = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in found if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = (FOLDER / "README.md").read_text("utf-8")
    assert [p.name for p in PAGES if p.name != "README.md" and f"({p.name})" not in index] == []


def test_the_notebook_is_what_the_page_says() -> None:
    assert notebook.NOTEBOOK.read_text("utf-8") == notebook.made()
    cells = json.loads(notebook.made())["cells"]
    code = [line.rstrip() for c in cells if c["cell_type"] == "code" for line in c["source"]]
    commands = [line.removeprefix("!") for line in code if line.startswith("!twin ")]
    assert len(commands) >= 5
    for line in commands:
        parsed(line)
    assert not [line for line in code if not line.startswith("!")], "each line is a shell's"


def inline(page: Path) -> Iterator[str]:
    """Commands in the text and in tables, `twin …` in backticks; one that is only named must exist."""
    groups = commands_of(typer.main.get_command(app))
    for line in re.findall(r"`(twin [a-z][^`]*)`", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)):
        words = line.split()[1:]
        for depth, known in enumerate((groups, commands_of(groups.get(words[0])))):
            assert len(words) <= depth or not known or words[depth] in known, f"{page.name}: there is no `{line}`"
        if len(words) > 1 + bool(commands_of(groups[words[0]])):
            yield line


def settings_named(page: Path) -> Iterator[tuple[str, str]]:
    """(section, key) of `[training] r = 8`, and of `lora_dropout` or `r = 8` after it in the same line or cell."""
    for cell in re.split(r"\n|(?<!\\)\|", page.read_text("utf-8")):
        section = ""
        for words in re.findall(r"`([^`]+)`", cell):
            if named := re.match(r"\[(\w+)\] (\w+)", words):
                section = named[1]
                yield section, named[2]
            elif section and (more := re.fullmatch(r"(\w+) = .*|([a-z]+(?:_[a-z]+)+)", words)):
                yield section, more[1] or more[2]


def fields(section: str) -> set[str]:
    """Keys of a section of bot.toml, or of a table of persona.toml."""
    for model in (config.Settings, Spec):
        field = model.model_fields.get(section)
        if field is not None and hasattr(field.annotation, "model_fields"):
            return set(field.annotation.model_fields)
    return set()
