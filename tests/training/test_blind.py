"""training/blind.py through the real engine: pairs of held-out moments, each real answer on either side."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tinylora
import tinymodel

from bot.archive import Archive
from bot.checksum import sha256
from bot.config import Cleaning, Conversation, Engine, Paths, Settings
from bot.errors import TrainingError
from bot.message import Message, Scene
from bot.persona import Base, Manifest, Persona, Personas, new_persona
from bot.prompt import FORMATS
from training import answers, corpus
from training.blind import paired, prepare
from training.samples import Split, split_of

ROOT = Path(__file__).parents[2]
ME, FRIEND = "30001", "10001"
SCENE = Scene("private", FRIEND)
START = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    return tinymodel.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(tiny: tinymodel.Tiny, tmp_path: Path) -> Settings:
    engine = Engine(base=str(tiny.gguf), n_ctx=512, kv_tokens=1024, n_seq_max=4, n_threads=1, n_gpu_layers=0)
    return Settings(paths=Paths(data=tmp_path), engine=engine)


@pytest.fixture
def persona(settings: Settings, tiny: tinymodel.Tiny, tmp_path: Path) -> Persona:
    root = tmp_path / "personas"
    new_persona(root, "xiaoman", "小满", (ME,))
    made = tmp_path / "made"
    made.mkdir()
    tinylora.write(made / "lora.gguf", tiny.gguf)
    manifest = Manifest(
        version="v1", created="2026-12-01T00:00:00Z", format="gemma", system_prompt="你是小满。",
        base=Base(file="b", sha256=sha256(tiny.gguf), architecture="gemma3"),
        files={"lora.gguf": sha256(made / "lora.gguf")},
    )  # fmt: skip
    (made / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    Personas(root).publish("xiaoman", made)
    return Personas(root).load("xiaoman")


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    opened = Archive(settings.archive_url)
    yield opened
    opened.close()


def days(archive: Archive, n: int) -> dict[str, str]:
    """A day a conversation; gives the answers of the test split by what they answer."""
    held_out = {}
    for day in range(n):
        when = START + timedelta(days=day)
        said = "[图片]" if day % 10 == 0 else f"去{day}"
        archive.append([
            Message(f"a{day}", SCENE, FRIEND, "阿泽", when, f"去吗{day}"),
            Message(f"b{day}", SCENE, ME, "小满", when + timedelta(seconds=5), said),
        ])  # fmt: skip
        if split_of(SCENE, f"a{day}") is Split.TEST and day % 10:
            held_out[f"去吗{day}"] = said
    return held_out


def test_every_pair_is_held_out_and_the_real_one_is_on_either_side(
    settings: Settings, persona: Persona, archive: Archive, tiny: tinymodel.Tiny
) -> None:
    held_out = days(archive, 150)
    test = prepare(settings, persona, tiny.gguf, sha256(tiny.gguf), 100)
    assert (test.persona, test.version, len(test.id)) == ("xiaoman", "v1", 12)
    assert len(test.trials) == len(held_out) > 8
    for trial in test.trials:
        heard = trial.context[-1].removeprefix("阿泽：")
        assert trial.options[trial.real] == held_out[heard]
        assert trial.options[1 - trial.real] not in ("", held_out[heard])
        assert any(line.startswith("我：") for line in trial.context[:-1])
    assert {t.real for t in test.trials} == {0, 1}
    assert len(prepare(settings, persona, tiny.gguf, sha256(tiny.gguf), 3).trials) == 3


def test_what_nobody_learns_from_is_no_pair(
    settings: Settings, persona: Persona, archive: Archive, tiny: tinymodel.Tiny
) -> None:
    held_out = days(archive, 150)
    blocked = next(iter(held_out.values()))
    left_out = sum(blocked in said for said in held_out.values())
    strict = settings.model_copy(update={"corpus": Cleaning(blocked_words=(blocked,))})
    test = prepare(strict, persona, tiny.gguf, sha256(tiny.gguf), 100)
    assert len(test.trials) == len(held_out) - left_out > 5
    assert not any(blocked in trial.options[trial.real] for trial in test.trials)


def test_no_pair_shows_another_pairs_real_answer_and_equal_answers_are_counted(archive: Archive) -> None:
    for day in range(40):
        for turn in range(6):
            when = START + timedelta(days=day, minutes=turn)
            archive.append([
                Message(f"a{day}-{turn}", SCENE, FRIEND, "阿泽", when, f"去吗{day}-{turn}"),
                Message(f"b{day}-{turn}", SCENE, ME, "小满", when + timedelta(seconds=5), f"去{day}-{turn}"),
            ])  # fmt: skip
    learned = corpus.build(archive, [ME], ["小满"], Conversation())
    every = answers.questions(learned, FORMATS["gemma"], "", Split.TEST)
    asked = [q for n, q in enumerate(every) if n % 6 in (2, 3, 5)]
    said = ["", asked[1].real, *[f"不去{n}" for n in range(len(asked) - 2)]]
    trials, equal = paired(asked, said, learned.people, random.Random(1))
    assert equal == 1
    assert len(trials) == len(asked) - 2 > 6
    real = {f"我：{q.real}" for q in asked}
    assert not any(real & set(trial.context) for trial in trials)
    by_turn = {trial.context[-1][-1]: trial.context[:-1] for trial in trials}
    assert by_turn["3"] == (), "the moment before is asked too"
    assert [line[-1] for line in by_turn["5"]] == ["4", "4"], "back to what is asked, and no further"
    assert len(by_turn["2"]) == 6, "of the days before what was not asked"


def test_the_page_is_made_and_its_answers_taken_in_from_the_command_line(
    settings: Settings, persona: Persona, archive: Archive, tiny: tinymodel.Tiny, tmp_path: Path
) -> None:
    days(archive, 60)
    engine = "n_ctx = 512\nkv_tokens = 1024\nn_threads = 1\nn_gpu_layers = 0"
    config = tmp_path / "bot.toml"
    config.write_text(f"[paths]\ndata = '.'\n[engine]\nbase = '{tiny.gguf}'\n{engine}\n", "utf-8")

    def twin(*words: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-m", "bot", "eval", *words, "--config", str(config)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)

    page = tmp_path / "page.html"
    made = twin("--blind", "--persona", "xiaoman", "--pairs", "6", "--blind-out", str(page))
    assert made.returncode == 0, made.stderr
    (kept,) = (tmp_path / "blind").glob("*.json")
    assert kept.stem in page.read_text("utf-8")
    right = {str(n + 1): t["real"] + 1 for n, t in enumerate(json.loads(kept.read_text("utf-8"))["trials"])}
    n = len(right)  # what a tiny model draws may be empty, and is no trial then; on which machine is not known
    assert 2 <= n <= 6
    assert f"({n} pairs)" in made.stdout
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"blind": kept.stem, "picks": right | {str(n): 3 - right[str(n)]}}), "utf-8")
    told = json.loads(twin("--blind-result", str(answers)).stdout)
    assert (told["persona"], told["version"], told["right"], told["n"]) == ("xiaoman", "v1", n - 1, n)
    assert 0 < told["low"] < (n - 1) / n < told["high"] < 1
    stored = json.loads((persona.folder / "versions" / "v1" / "blind.json").read_text("utf-8"))
    assert [x["right"] for x in stored] == [n - 1]


def test_what_cannot_be_tested_is_told(
    settings: Settings, persona: Persona, archive: Archive, tiny: tinymodel.Tiny
) -> None:
    with pytest.raises(TrainingError, match="nothing is held out"):
        prepare(settings, persona, tiny.gguf, sha256(tiny.gguf), 5)
    (persona.folder / "current").unlink()
    with pytest.raises(TrainingError, match="has no version to test"):
        prepare(settings, Personas(persona.folder.parent).load("xiaoman"), tiny.gguf, sha256(tiny.gguf), 5)
