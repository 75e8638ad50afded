"""docs/recipes/rolebench.md as a user types it, line by line, on a tiny base and made-up files in RoleBench's form."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tinymodel
from daemon import ROOT

from bot.persona import Manifest, Personas
from docs.recipes import pages

ROLES = {"孙悟空": "机智勇敢，爱打抱不平。", "李白": "豪放不羁，好酒，出口成诗。", "张飞": "粗中有细，嗓门大。"}
SAYS = {
    "孙悟空": "俺老孙一个筋斗就到，妖怪哪里逃！", "李白": "且饮一杯，明月为伴，何愁无诗。",
    "张飞": "燕人张翼德在此，谁敢来战！",
}  # fmt: skip
QUESTIONS = 40
LINE_S = 600.0
"""A night here takes ten seconds on an idle machine."""
SETTINGS = """
[engine]
base = "model/model.gguf"
[training]
learning_rate = 5e-3
max_steps = 30
model_max_length = 256
threads = 1
"""


def rolebench(folder: Path) -> None:
    """The three files that matter, with the folders they have on the hub."""
    for kind, asked in (("general", "第{n}件事你怎么看？"), ("role_specific", "{role}，第{n}座山在哪里？")):
        file = folder / "rolebench-zh" / kind / "train.jsonl"
        file.parent.mkdir(parents=True)
        rows = [
            {"role": role, "question": asked.format(n=n, role=role), "generated": [SAYS[role], f"{n}？{SAYS[role]}"],
             "type": kind}
            for role in ROLES for n in range(QUESTIONS)
        ]  # fmt: skip
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    (folder / "profiles-zh").mkdir()
    (folder / "profiles-zh" / "desc.json").write_text(json.dumps(ROLES, ensure_ascii=False), "utf-8")


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder after the whole recipe, and what each of its commands printed."""
    folder = tmp_path_factory.mktemp("recipe")
    rolebench(folder / "RoleBench")
    tinymodel.build(folder / "model", texts=[*tinymodel.TEXTS, *SAYS.values(), *ROLES.values()], hidden=128)
    (folder / "bot.toml").write_text(SETTINGS, "utf-8")
    printed: dict[str, str] = {}
    # 李白's own LoRA is made as 孙悟空's is.
    for line in (x for x in pages.commands(Path(pages.__file__).parent / "rolebench.md") if "libai" not in x):
        run = max((folder / "data" / "runs" / "cast").glob("*/"), default=folder).name
        words = shlex.split(line.replace("/RUN/", f"/{run}/"))[1:]
        if words[0] == "chat":
            words += ["--temperature", "0"]  # the likeliest answer, not one drawn
        done = subprocess.run(
            [sys.executable, "-m", "bot", *words], cwd=folder, capture_output=True, text=True,
            input="第3件事你怎么看？\n/quit\n", timeout=LINE_S, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
        printed[line] = done.stdout
    return folder, printed


def found(printed: dict[str, str], beginning: str) -> list[str]:
    return [text for line, text in printed.items() if line.startswith(beginning)]


def test_the_roles_files_become_a_persona_with_its_prompt(typed: tuple[Path, dict[str, str]]) -> None:
    folder, printed = typed
    wukong = Personas(folder / "data" / "personas").load("wukong")
    assert wukong.spec.system_prompt.startswith("你是孙悟空。你的特征描述是：机智勇敢，爱打抱不平。现在请你")
    general, specific, more = found(printed, "twin import RoleBench/rolebench-zh")[:3]
    for text in (general, specific):
        assert f"RoleBench; {QUESTIONS} dialogues, {QUESTIONS} answers taken" in text
        assert f"left out {2 * QUESTIONS}: another role" in text
    assert f"{2 * QUESTIONS} dialogues" in more, "two of each question's answers"
    preview = found(printed, "twin corpus preview --persona wukong")[0]
    assert f"⟦{SAYS['孙悟空']}<end_of_turn>⟧" in preview or f"？{SAYS['孙悟空']}<end_of_turn>⟧" in preview
    assert SAYS["李白"] not in preview


def test_the_role_answers_as_trained_and_the_bare_base_does_not(typed: tuple[Path, dict[str, str]]) -> None:
    folder, printed = typed
    assert "训练好了，已经换上" in found(printed, "twin night --persona wukong")[0]
    version = Personas(folder / "data" / "personas").load("wukong").version
    assert version is not None
    manifest = Manifest.model_validate_json((version.folder / "manifest.json").read_text("utf-8"))
    assert manifest.corpus["set_answers"] == 3 * QUESTIONS, "an answer that two sets hold counts once"
    figures = json.loads("{" + found(printed, "twin eval --persona wukong")[0].partition("{")[2])
    assert (figures["version"], figures["decisions"]) == (version.name, 0)
    assert figures["loss"]["value"] < 2
    with_role = found(printed, "twin chat --persona wukong --seed 1")[0]
    bare = found(printed, "twin chat --persona wukong --merged")[0]
    assert "妖怪哪里逃" in with_role
    assert "未训练的底模" in bare
    assert "妖怪哪里逃" not in bare


def test_several_roles_in_one_lora_keep_their_prompts_and_each_becomes_a_persona(
    typed: tuple[Path, dict[str, str]],
) -> None:
    folder, printed = typed
    imported = found(printed, "twin import RoleBench/rolebench-zh/general/train.jsonl --persona cast")[0]
    assert f"{2 * QUESTIONS} dialogues" in imported
    assert "mixture" not in imported
    preview = found(printed, "twin corpus preview --persona cast")[0]
    for said in ("你是孙悟空，你的特征描述是：机智勇敢", "你是张飞，你的特征描述是：粗中有细"):
        assert said in preview
    assert "训练集里的 80 轮回答" in found(printed, "twin night --persona cast")[0]
    assert any(words in found(printed, "twin chat --persona cast")[0] for words in ("妖怪", "张翼德"))
    cast, zhangfei = (Personas(folder / "data" / "personas").load(name) for name in ("cast", "zhangfei"))
    assert cast.version is not None
    assert zhangfei.version is not None
    shared = [v.folder / "peft" / "adapter_model.safetensors" for v in (cast.version, zhangfei.version)]
    assert shared[0].read_bytes() == shared[1].read_bytes()
    assert zhangfei.system_prompt.startswith("你是张飞。你的特征描述是：粗中有细")
