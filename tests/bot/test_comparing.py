"""bot/comparing.py and `twin compare` through the real engine on a tiny model."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import tinylora
import tinymodel

from bot import comparing
from bot.checksum import sha256
from bot.comparing import Answer, Comparison, Prompt
from bot.config import Engine
from bot.errors import ConfigError, PersonaError
from bot.persona import Base, Manifest, Persona, Personas, Sampling, new_persona
from bot.serving import LlamaEngine

ROOT = Path(__file__).parents[2]
ZONE = ZoneInfo("Asia/Shanghai")
SAMPLING = Sampling(temperature=0.9, max_tokens=12)
PROMPTS = [Prompt("安慰", "好难受"), Prompt("短问", "在吗")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    return tinymodel.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def personas(tiny: tinymodel.Tiny, tmp_path: Path) -> Personas:
    """a and b, each with a LoRA of its own."""
    root = tmp_path / "data" / "personas"
    for seed, name in enumerate("ab"):
        new_persona(root, name, f"人{name}", ("30001",))
        made = tmp_path / name
        made.mkdir()
        tinylora.write(made / "lora.gguf", tiny.gguf, seed=seed)
        manifest = Manifest(
            version=f"v{name}", created="2026-12-01T00:00:00Z", format="gemma", system_prompt=f"你是人{name}。",
            base=Base(file="b", sha256=sha256(tiny.gguf), architecture="gemma3"),
            files={"lora.gguf": sha256(made / "lora.gguf")},
        )  # fmt: skip
        (made / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
        Personas(root).publish(name, made)
    return Personas(root)


async def asked(
    tiny: tinymodel.Tiny, who: list[Persona], *, short: int = 0, expand: bool = False
) -> list[list[Answer]]:
    engine = LlamaEngine(tiny.gguf, Engine(n_ctx=512, kv_tokens=1024, n_seq_max=4, n_threads=1, n_gpu_layers=0), "")
    try:
        rows = await comparing.compare(
            engine, who, PROMPTS, SAMPLING, 7, short_chars=short, expand=expand, zone=ZONE
        )  # fmt: skip
    finally:
        await engine.close()
    assert [prompt for prompt, _ in rows] == PROMPTS
    return [list(answers) for _, answers in rows]


async def test_the_same_seed_gives_the_same_answers_and_each_speaks_with_its_own_lora(
    tiny: tinymodel.Tiny, personas: Personas
) -> None:
    who = comparing.speakers([personas.find("a"), personas.find("b")], ["a", "base", "b"])
    assert [(p.name, p.version and p.version.name, p.system_prompt) for p in who] == [
        ("a", "va", "你是人a。"), ("base", None, "你是人a。"), ("b", "vb", "你是人b。"),
    ]  # fmt: skip
    rows = await asked(tiny, who)
    assert rows == await asked(tiny, who)
    for row in rows:
        assert len({a.text for a in row}) == len({a.p_silent for a in row}) == 3
        assert all(a.text and not a.short and a.more is None for a in row)


async def test_who_is_compared_beside_changes_no_answer(tiny: tinymodel.Tiny, personas: Personas) -> None:
    a, b = personas.find("a"), personas.find("b")
    assert [row[0].text for row in await asked(tiny, [b])] == [row[1].text for row in await asked(tiny, [a, b])]


async def test_short_answers_are_marked_and_asked_once_more(tiny: tinymodel.Tiny, personas: Personas) -> None:
    who = [personas.find("a")]
    plain, marked, again = (
        await asked(tiny, who),
        await asked(tiny, who, short=99),
        await asked(tiny, who, short=99, expand=True),
    )
    for one, two, three in zip(plain, marked, again, strict=True):
        assert one[0].text == two[0].text == three[0].text
        assert (one[0].short, two[0].short, three[0].short) == (False, True, True)
        assert two[0].more is None
        assert three[0].more not in (None, three[0].text)


def test_a_trained_persona_that_does_not_verify_is_not_played_by_the_base(personas: Personas) -> None:
    (personas.root / "a" / "versions" / "va" / "lora.gguf").write_bytes(b"broken")
    with pytest.raises(PersonaError, match="va"):
        comparing.speakers([personas.find("a")], ["a", "base"])


def test_the_shipped_prompts_are_five_of_each_kind() -> None:
    found = comparing.prompts(comparing.SHIPPED)
    assert {kind: sum(p.kind == kind for p in found) for kind in dict.fromkeys(p.kind for p in found)} == {
        "安慰": 5, "建议": 5, "斗嘴": 5, "闲聊": 5, "短问": 5,
    }  # fmt: skip
    assert len({p.text for p in found}) == 25


@pytest.mark.parametrize("text", [None, "# 只有标题\n\n", b"\xff\xfe\x00"])
def test_a_file_without_prompts_is_told_so(tmp_path: Path, text: str | bytes | None) -> None:
    file = tmp_path / "mine.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"mine\.txt.*a prompt a line|mine\.txt.*write one a line"):
        comparing.prompts(file)


class Tags(HTMLParser):
    """Start tags and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [v for k, v in attrs if k in ("src", "href")], "nothing from elsewhere"

    def handle_data(self, data: str) -> None:
        self.said.append(data.strip())


def test_what_is_said_can_do_nothing_to_the_pages() -> None:
    bad = "<script>alert(1)</script>|a\n**b** `c` \\| &amp;"
    found = Comparison(
        {"日期": "2026-12-01", "底模": bad}, ("a", bad),
        ((Prompt("安慰", bad), (Answer(bad, 0.25, True, bad), Answer("", 1.0, True))),),
    )  # fmt: skip
    tags = Tags()
    tags.feed(comparing.page(found))
    assert "script" not in tags.tags
    assert tags.said.count(bad) >= 4
    assert {"太短", "沉默 25%", "（没说）"} <= set(tags.said)
    told = comparing.markdown(found)
    assert "<script" not in told
    table = [line for line in told.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table} == {4}, "each row keeps its columns"
    assert "**（太短）**" in told


def test_the_command_writes_both_pages_with_the_settings_on_top(
    tiny: tinymodel.Tiny, personas: Personas, tmp_path: Path
) -> None:
    config = tmp_path / "bot.toml"
    config.write_text(f"[engine]\nbase = '{tiny.gguf}'\nn_threads = 1\n[chat]\npersona = 'a'\n", "utf-8")
    (tmp_path / "mine.txt").write_text("# 我的\n在吗\n去吗\n", "utf-8")
    words = ["compare", "--personas", "a,base,b", "--prompts", str(tmp_path / "mine.txt"), "--out", str(tmp_path / "o")]

    def run(*more: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-m", "bot", *words, *more, "--config", str(config)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    done = run("--seed", "3", "--max-tokens", "8", "--short", "99")
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "o" / "compare.md").read_text("utf-8")
    for part in (
        "## 我的",
        "a (va)",
        "base (底模)",
        "b (vb)",
        "3 起",
        "最多 8 token",
        "mine.txt",
        sha256(tiny.gguf)[:12],
    ):
        assert part in told.replace("\\_", "_")
    assert told.count("太短）") == 6
    assert "太短" in (tmp_path / "o" / "compare.html").read_text("utf-8")
    words[2] = "a,nobody"
    assert (
        run()
        .stderr.strip()
        .endswith("no persona 'nobody' in " + repr(str(personas.root)) + " (there are: a、b、xiaoman)")
    )
