"""colab.ipynb from the WeChat page, between `<!-- colab -->` and `<!-- /colab -->`: `python -m docs.recipes.notebook`.

Text becomes text cells, each `sh` block a cell whose lines are the shell's. `--write` writes it, else it is checked.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "wechat-qwen3-0.6b.md"
NOTEBOOK = Path(__file__).parent / "colab.ipynb"
_INTRODUCTION = """\
# A twin from your WeChat history, on Qwen3-0.6B

From `docs/recipes/wechat-qwen3-0.6b.md`, which says how to make the two files this needs: `qqtwin.zip` and
`history.tar.gz`. Put them into the file pane on the left, choose a GPU (Runtime → Change runtime type), run the cells
in order. **What you put here is sent to Google.**
"""
_PART = re.compile(r"<!-- colab -->\n(.*)<!-- /colab -->", re.DOTALL)


def made() -> str:
    """The notebook as it should be, JSON."""
    part = _PART.search(PAGE.read_text("utf-8"))
    if part is None:
        raise ValueError(f"{PAGE.name} has no part between <!-- colab --> and <!-- /colab -->")
    cells = [_cell("markdown", _INTRODUCTION)]
    for number, text in enumerate(re.split(r"^```(?:sh)?\n", part[1], flags=re.MULTILINE)):
        body = text.strip()
        if body:
            code = "\n".join(f"!{line}" for line in body.splitlines())
            cells.append(_cell("code", code) if number % 2 else _cell("markdown", body))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    about = {"accelerator": "GPU", "kernelspec": {"display_name": "Python 3", "name": "python3"}}
    whole = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _cell(kind: str, text: str) -> dict[str, Any]:
    lines = {"cell_type": kind, "metadata": {}, "source": text.strip().splitlines(keepends=True)}
    return lines | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def main() -> int:
    """0 when the notebook is right, or was written."""
    if "--write" in sys.argv:
        NOTEBOOK.write_text(made(), "utf-8")
        return 0
    if not NOTEBOOK.exists() or NOTEBOOK.read_text("utf-8") != made():
        print(
            f"{NOTEBOOK.name} differs from {PAGE.name}; run: python -m docs.recipes.notebook --write", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
