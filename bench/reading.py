"""Held-out moments of the demo history → what 小满 said and what her twin says, as a Markdown table to be read.

`python -m bench.reading [N]` prints the table; the grades in docs/reading.md were given by a reader.
"""

import sys
import tempfile
from pathlib import Path

from bot import base, config
from bot.archive import Archive
from bot.persona import Personas
from bot.prompt import FORMATS
from bot.twin import SHIPPED
from training import answers, corpus, history, samples

_ROOT = Path(__file__).parents[1]


def main(n: int) -> None:
    """Print the table of `n` moments of the tune and test splits."""
    persona = Personas(SHIPPED, base.EMBEDDED_SHA256).load("xiaoman")
    version = persona.version
    if version is None:
        raise SystemExit(persona.refused or "no version is shipped")
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(f"sqlite:///{folder}/archive.db")
        history.load(SHIPPED.parent / "history.jsonl", archive)
        built = corpus.build(archive, persona.spec.people, persona.spec.names, config.Conversation())
        archive.close()
    fmt, prompt = FORMATS[version.manifest.format], version.manifest.system_prompt
    asked = [q for s in (samples.Split.TEST, samples.Split.TUNE) for q in answers.questions(built, fmt, prompt, s)]
    asked = answers.spread(asked, n)
    path = base.resolve(base.EMBEDDED, _ROOT / "data", _ROOT)
    said = answers.answer(path, base.EMBEDDED_SHA256, version.lora, fmt, asked, persona.spec.sampling, config.Engine())
    print("| # | heard | 小满 | twin | P(silent) | grade |\n|---|---|---|---|---|---|")
    for number, (q, a) in enumerate(zip(asked, said, strict=True), 1):
        cells = [q.heard.replace("\n", " / "), q.real.replace("\n", " / "), a.text.replace("\n", " / ")]
        print(f"| {number} | {' | '.join(c.replace('|', '｜') for c in cells)} | {a.p_silent:.2f} | |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
