"""`twin compare`: the base and personas side by side."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bot import config
from bot.cli.options import CONFIG, ConfigOption, personas_of
from bot.errors import ConfigError


def compare(
    personas: Annotated[
        str | None, typer.Option(help="Comma-separated; `base` is the bare base. Default: [chat] persona,base.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line, `# …` names a kind; default: 25 shipped ones.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for compare.md and compare.html.")] = Path("compare"),
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; each further one has the next number.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="The same for all; 0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="The same for all.")] = 0.9,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one answer at most.")] = 120,
    short: Annotated[int, typer.Option(min=0, help="Answers of fewer characters are marked as too short.")] = 4,
    expand_short: Annotated[
        bool, typer.Option("--expand-short", help="Ask once more after those, and show both answers.")
    ] = False,
    config_path: ConfigOption = CONFIG,
) -> None:
    """Base and personas on the same prompts with the same seeds and settings → Markdown and one HTML page."""
    from bot import comparing, doctor
    from bot.comparing import Comparison
    from bot.persona import Personas, Sampling
    from bot.twin import start_engine

    settings = config.load(config_path)
    names = [n.strip() for n in (personas or f"{settings.chat.persona},{comparing.BASE}").split(",") if n.strip()]
    if len(set(names)) != len(names) or not names:
        raise ConfigError(f"--personas {personas!r}: name each persona once, such as xiaoman,base")
    asked = comparing.prompts(prompts or comparing.SHIPPED)
    root = personas_of(settings).root
    engine = start_engine(settings, config_path.resolve().parent)
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens)

    async def ask() -> Comparison:
        try:
            known = Personas(root, engine.base_sha256 or None)
            found = [known.find(n) for n in names if n != comparing.BASE] or [known.find(settings.chat.persona)]
            who = comparing.speakers(found, names)
            lines = doctor.plain_progress()
            rows = await comparing.compare(
                engine, who, asked, sampling, seed, short_chars=short, expand=expand_short, zone=settings.zone,
                told=lambda done, total: lines("compare", done, total, ""),
            )  # fmt: skip
            heads = tuple(f"{p.name} ({p.version.name if p.version else '底模'})" for p in who)
            return Comparison(
                _told(settings, engine.base_sha256, sampling, seed, short, prompts, found[0]), heads, rows
            )
        finally:
            await engine.close()

    found = asyncio.run(ask())
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("compare.md", comparing.markdown(found)), ("compare.html", comparing.page(found))):
        (out / name).write_text(text, "utf-8")
        typer.echo(f"wrote {out / name}")


def _told(
    settings: config.Settings, base_sha256: str, sampling: Any, seed: int, short: int, prompts: Path | None, first: Any
) -> dict[str, str]:
    return {
        "日期": datetime.now(settings.zone).strftime("%Y-%m-%d %H:%M"),
        "底模": f"{settings.engine.base}（sha256 {base_sha256[:12]}）",
        "采样": f"temperature {sampling.temperature:g}，top_p {sampling.top_p:g}，top_k {sampling.top_k}，"
        f"min_p {sampling.min_p:g}，repeat_penalty {sampling.repeat_penalty:g}，最多 {sampling.max_tokens} token",
        "种子": f"{seed} 起，每题加一",
        "题目": prompts.name if prompts else "自带 25 题",
        "太短": f"少于 {short} 个字",
        "底模用的人设": first.system_prompt,
    }
