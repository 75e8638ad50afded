"""A page → its commands: the fenced blocks of one kind, and the `twin` lines in them."""

import re
from collections.abc import Iterator
from pathlib import Path

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, kind: str) -> list[str]:
    """Contents of a page's blocks of a kind: `sh`, `toml`."""
    return [body for _, found, body in _BLOCK.findall(page.read_text("utf-8")) if found == kind]


def commands(page: Path) -> Iterator[str]:
    """The `twin` lines of a page's `sh` blocks, in order."""
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            if line.strip().startswith("twin "):
                yield line.strip()
