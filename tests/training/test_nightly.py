"""Nights around their steps: skipped, locked out, failed and counted, gone on with. e2e/test_loop.py runs the steps."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import tinylora
import tinymodel
import torch
from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.modules.module import register_module_forward_pre_hook

from bot import corrections
from bot.archive import Archive
from bot.checksum import sha256
from bot.cli.training import train
from bot.config import Engine, Gate, Paths, Retrain, Settings, Training
from bot.errors import EngineError, ExportError, PersonaError, TrainingError
from bot.llama import Model
from bot.message import Message, Origin, Scene
from bot.persona import Base, Manifest, Personas, Version
from export.merged import IMATRIX_TOKENS_MAX
from training import evaluate, samples, selection
from training.likeness import silence, use
from training.lock import one_at_a_time
from training.nightly import ATTEMPTS_MAX, PARITY_WINDOWS, Night
from training.state import write_state

ME, SCENE = "10001", Scene("private", "20001")
SHA = "0" * 64


def silent(*_: object) -> None:
    """Progress nobody watches."""


def breaks(error: BaseException) -> Callable[..., None]:
    """Progress that breaks the night at its first step."""

    def told(*_: object) -> None:
        raise error

    return told


class Killed(BaseException):
    """Stands for the machine going down: no edge catches it."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A persona and three messages of theirs, in a real archive."""
    settings = Settings(paths=Paths(data=tmp_path / "data"), retrain=Retrain(min_new_messages=10))
    folder = settings.data / "personas" / "xiaoman"
    folder.mkdir(parents=True)
    (folder / "persona.toml").write_text(f'display_name = "小满"\npeople = ["{ME}"]\n', "utf-8")
    archive = Archive(settings.archive_url)
    archive.append([Message(str(i), SCENE, ME, "小满", datetime(2026, 3, 2, 4, i, tzinfo=UTC), "早") for i in range(3)])
    archive.close()
    return settings


def night(settings: Settings, progress: Callable[..., None] = silent, sha: str = SHA) -> Night:
    return Night(settings, "xiaoman", Path("base.gguf"), sha, progress, None)


def runs(settings: Settings) -> list[str]:
    return sorted(p.name for p in (settings.data / "runs" / "xiaoman").glob("*/"))


def checkpoint(run: Path) -> None:
    """A whole checkpoint in a run folder."""
    folder = run / "checkpoints" / "checkpoint-1"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    (folder / "trainer_state.json").write_text("{}", "utf-8")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / name)


def test_too_few_new_messages_skip_the_night_and_it_says_so(settings: Settings) -> None:
    outcome = night(settings).run()
    assert (outcome.kind, outcome.version) == ("skipped", None)
    assert "3 条" in outcome.summary
    assert "10 条" in outcome.summary
    assert runs(settings) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("too large"),
        OSError(28, "No space left on device"),
        KeyError("好耶"),
        TrainingError("the loss became nan"),
    ],
)
def test_any_error_is_a_counted_attempt_and_the_last_one_ends_the_night(settings: Settings, error: Exception) -> None:
    for attempt in range(1, ATTEMPTS_MAX + 1):
        outcome = night(settings, breaks(error)).run(force=True)
        assert outcome.kind == "failed"
        assert f"第 {attempt} 次" in outcome.summary
        assert "好耶" not in outcome.summary
    (name,) = runs(settings)
    done = json.loads((settings.data / "runs" / "xiaoman" / name / "done.json").read_text("utf-8"))
    assert done["outcome"] == "failed"
    assert night(settings).run().kind == "skipped"


def test_a_killed_night_is_gone_on_with_also_with_too_few_messages(settings: Settings) -> None:
    with pytest.raises(Killed):
        night(settings, breaks(Killed())).run(force=True)
    (name,) = runs(settings)
    assert night(settings, breaks(OSError(5, "Input/output error"))).run().kind == "failed"
    assert runs(settings) == [name]


def test_a_night_that_is_killed_every_time_is_given_up_and_the_owner_told_why(settings: Settings) -> None:
    for _ in range(ATTEMPTS_MAX):
        with pytest.raises(Killed):
            night(settings, breaks(Killed())).run(force=True)
    (name,) = runs(settings)
    outcome = night(settings, breaks(AssertionError("it is not tried again"))).run()
    assert outcome.kind == "failed"
    assert f"{ATTEMPTS_MAX} 次" in outcome.summary
    assert "内存不够" in outcome.summary
    assert "model_max_length" in outcome.summary
    done = json.loads((settings.data / "runs" / "xiaoman" / name / "done.json").read_text("utf-8"))
    assert (done["outcome"], done["summary"]) == ("failed", outcome.summary)
    assert night(settings).run().kind == "skipped"


def test_errors_and_kills_are_counted_together(settings: Settings) -> None:
    with pytest.raises(Killed):
        night(settings, breaks(Killed())).run(force=True)
    assert "第 2 次" in night(settings, breaks(MemoryError())).run().summary


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_night_that_is_stopped_is_no_failed_attempt(
    settings: Settings, number: int, request: pytest.FixtureRequest
) -> None:
    if number == signal.SIGINT:  # whoever runs the tests in the background has it ignored
        ignored = signal.signal(number, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(number, ignored))
    before = signal.getsignal(number)
    for _ in range(ATTEMPTS_MAX + 1):
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            night(settings, lambda *_: signal.raise_signal(number)).run(force=True)
    assert "第 1 次" in night(settings, breaks(MemoryError())).run().summary
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("file", ["snapshot.json", "attempts.json"])
def test_a_half_written_file_of_state_blocks_no_night(settings: Settings, file: str) -> None:
    assert night(settings, breaks(MemoryError())).run(force=True).kind == "failed"
    (name,) = runs(settings)
    (settings.data / "runs" / "xiaoman" / name / file).write_text('{"err', "utf-8")
    outcome = night(settings, breaks(MemoryError())).run(force=True)
    assert (outcome.kind, "第 1 次" in outcome.summary) == ("failed", True)


def test_a_training_by_hand_is_resumed_by_training_and_never_as_a_night(settings: Settings) -> None:
    first = night(settings).folder
    checkpoint(first)
    assert night(settings).folder == first
    assert night(settings).run().kind == "skipped", "not an unfinished night"
    (first / "train.json").write_text("{}", "utf-8")
    assert night(settings).folder != first, "a finished one is not resumed"


def test_a_training_that_came_to_no_checkpoint_hides_nothing_said_since(settings: Settings) -> None:
    first = night(settings)
    assert first.snapshot["own_messages"] == 3
    say(settings, 4, datetime(2026, 3, 3, tzinfo=UTC), "later")
    second = night(settings)
    assert second.snapshot["own_messages"] == 7
    assert runs(settings) == [second.folder.name]
    checkpoint(second.folder)
    third = night(settings)
    assert third.told.endswith("; it was broken off and goes on")
    assert "goes on" not in second.told
    until = datetime.fromisoformat(second.snapshot["until"]).astimezone()
    assert f"until {until:%Y-%m-%d %H:%M}" in third.told


def test_a_night_of_another_base_is_given_up(settings: Settings) -> None:
    with pytest.raises(Killed):
        night(settings, breaks(Killed())).run(force=True)
    assert night(settings, sha="1" * 64).run().kind == "skipped"
    (name,) = runs(settings)
    assert (settings.data / "runs" / "xiaoman" / name / "done.json").exists()


HOLD = """
import sys
from pathlib import Path
from training.lock import one_at_a_time
with one_at_a_time(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_night_at_a_time_and_the_lock_of_a_dead_one_is_free(settings: Settings) -> None:
    lock = settings.data / "runs" / "night.lock"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=f"another night runs .process {holder.pid}."):
            night(settings).run()
        holder.kill()
    assert night(settings).run().kind == "skipped"
    lock.write_text("1", "utf-8")  # the id of a process that lives, left by a machine that died
    assert night(settings).run().kind == "skipped"


def published(
    settings: Settings, name: str, corpus: dict[str, Any], base: str = SHA, lora: Path | None = None
) -> Version:
    """A serving version, as a night would have left it."""
    result = settings.data / "result"
    prompt = Personas(settings.data / "personas", base).find("xiaoman").spec.system_prompt
    result.mkdir()
    (result / "lora.gguf").write_bytes(lora.read_bytes() if lora else b"GGUF")
    manifest = Manifest(
        version=name, created="", base=Base(file="base.gguf", sha256=base, architecture="gemma3"), format="gemma",
        system_prompt=prompt, files={"lora.gguf": sha256(result / "lora.gguf")}, corpus=corpus,
    )  # fmt: skip
    (result / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    return Personas(settings.data / "personas", base).publish("xiaoman", result)


def say(settings: Settings, count: int, first: datetime, prefix: str) -> None:
    archive = Archive(settings.archive_url)
    times = [first + timedelta(minutes=i) for i in range(count)]
    archive.append([Message(f"{prefix}{i}", SCENE, ME, "小满", time, "早") for i, time in enumerate(times)])
    archive.close()


SNAPSHOT = datetime(2026, 3, 3, tzinfo=UTC)


@pytest.mark.parametrize(("corpus", "new"), [
    ({"own_messages": 3}, 4 + 2),
    ({}, 2),
    ({"own_messages": 100}, 2),
], ids=["counted", "made before it was counted", "much was taken back since"])  # fmt: skip
def test_older_history_imported_after_a_version_is_new_to_it(
    settings: Settings, corpus: dict[str, Any], new: int
) -> None:
    published(settings, "20260303-000000", {"until": SNAPSHOT.isoformat(), **corpus})
    say(settings, 4, SNAPSHOT - timedelta(days=300), "imported")
    say(settings, 2, SNAPSHOT + timedelta(days=1), "said")
    assert f"{new} 条" in night(settings).run().summary


def test_the_newest_day_waits_for_the_next_night_once_something_serves(settings: Settings) -> None:
    assert night(settings).snapshot["newest"] is None
    now = datetime.now(UTC)
    published(settings, "20260303-000000", {"until": SNAPSHOT.isoformat(), "own_messages": 3})
    say(settings, 20, now - timedelta(hours=2), "today")
    assert "说了 0 条" in night(settings).run().summary
    say(settings, 4, now - timedelta(hours=30), "yesterday")
    assert "说了 4 条" in night(settings).run().summary
    made = night(settings)
    made._whole = True
    assert made.snapshot["own_messages"] == 3 + 4, "what waits is new to the next night"
    assert now - timedelta(hours=25) < datetime.fromisoformat(made.snapshot["newest"]) < now - timedelta(hours=23)


def test_what_the_serving_version_learned_is_no_newest_day(settings: Settings) -> None:
    """It was the first, and learned all there was a few hours ago: on that it could only be judged too well."""
    learned = datetime.now(UTC) - timedelta(hours=5)
    published(settings, "20260303-000000", {"until": learned.isoformat(), "own_messages": 3})
    say(settings, 4, learned + timedelta(hours=1), "since")
    made = night(settings)
    assert datetime.fromisoformat(made.snapshot["newest"]) == learned
    assert made.snapshot["own_messages"] == 3
    assert "说了 0 条" in night(settings).run().summary


def test_a_day_that_waited_is_new_to_the_night_after_which_goes_on(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    training = Training(start="continue", replay=0, model_max_length=64)
    settings = settings.model_copy(update={"training": training})
    now, sha = datetime.now(UTC), sha256(tiny.gguf)
    for hours in range(30, 80):
        say(settings, 1, now - timedelta(hours=hours), f"{hours} hours ago ")
    before, day = now - timedelta(hours=26), timedelta(days=1)  # the night before
    learned = {"until": before.isoformat(), "learned_until": (before - day).isoformat()}
    folder = published(settings, "20260303-000000", learned, sha).folder
    tinymodel.random_lora(tiny, folder / "peft", seed=1)
    made = Night(settings, "xiaoman", tiny.gguf, sha, silent, None)
    selected = selection.select(made.windows, training, made._options().extra)
    in_train = [w for w in made.windows if samples.trained_positions(w)]
    waited = [w for w in in_train if w.newest is not None and w.newest > before - day]
    assert selected.counts["new"] == len(waited) > 5
    assert len(in_train) > len(waited) + 5, "what it learned is not new"


def test_a_night_whose_every_step_is_worse_changes_nothing_and_learns_it_the_night_after(
    settings: Settings, tmp_path: Path
) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    well = Training(precision="none", max_steps=30, learning_rate=1e-2, model_max_length=128, threads=1)
    badly = well.model_copy(
        update={"start": "continue", "max_steps": 3, "learning_rate": 30.0, "warmup_ratio": 0.0, "merge_and_save": True}
    )
    settings = settings.model_copy(update={"training": well, "gate": Gate(newest_h=0)})
    chat(settings, range(200))
    sha = sha256(tiny.gguf)
    learned = Night(settings, "xiaoman", tiny.gguf, sha, silent, None).train()
    folder = published(settings, "20260303-000000", {"until": "2026-01-01T00:00:00+00:00"}, sha).folder
    shutil.copytree(learned / "peft", folder / "peft")
    shutil.rmtree(learned)
    settings = settings.model_copy(update={"training": badly})
    made = Night(settings, "xiaoman", tiny.gguf, sha, silent, None)
    outcome = made.run(force=True)
    record = json.loads((made.folder / "train.json").read_text("utf-8"))
    assert record["best_step"] == 0
    assert [x["step"] for x in record["tune"]] == [0, 3]
    assert (outcome.kind, outcome.version) == ("skipped", None)
    assert "什么都没换" in outcome.summary
    assert not (made.folder / "merged").exists(), "it is the one from before"
    assert Personas(settings.data / "personas").current("xiaoman") == "20260303-000000"
    again = Night(settings, "xiaoman", tiny.gguf, sha, silent, None)
    assert again.folder != made.folder, "this night is over"
    assert again.snapshot["new_messages"] >= made.snapshot["new_messages"] > 0


def test_a_version_is_scored_with_the_prompt_it_answers_with(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "gemma3")
    made = Night(settings, "xiaoman", tiny.gguf, SHA, silent, None)
    other = made.windows_for("从前的提示")
    model = Model(tiny.gguf)
    shown = b"".join(model.piece(i) for i in other[0].ids).decode("utf-8", "ignore")
    model.close()
    assert "从前的提示" in shown
    assert made.persona.spec.system_prompt not in shown
    assert [x.message_id for w in other for x in w.labels] == [x.message_id for w in made.windows for x in w.labels]
    assert made.windows_for(made.persona.spec.system_prompt) is made.windows


def test_a_night_puts_the_base_where_the_engine_does(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    nowhere = settings.model_copy(update={"engine": Engine(tensor_split=(1.0,) * 999)})
    made = Night(nowhere, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)
    tinymodel.random_lora(tiny, made.folder / "peft", seed=1)
    write_state(made.folder / "train.json", {})
    assert made.windows, "the vocabulary needs no place"
    for work in (made.evaluate_version, made.prove, lambda: made._voices._stage.scored([], "base")):
        with pytest.raises(EngineError, match="tensor_split names 999 GPUs"):
            work()


def test_what_a_version_learned_is_counted_in_its_snapshot(settings: Settings) -> None:
    assert night(settings).snapshot["own_messages"] == 3


def test_a_night_killed_after_publishing_ends_as_published_without_judging_itself(settings: Settings) -> None:
    with pytest.raises(Killed):
        night(settings, breaks(Killed())).run(force=True)
    (name,) = runs(settings)
    published(settings, name, {"until": datetime(2026, 3, 3, tzinfo=UTC).isoformat()})
    outcome = night(settings, breaks(AssertionError("no step is done again"))).run()
    assert (outcome.kind, outcome.version) == ("published", name)
    assert night(settings).run().kind == "skipped"


def test_an_export_is_used_again_only_while_the_lora_is_the_same(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    steps: list[str] = []
    made = Night(settings, "xiaoman", tiny.gguf, sha256(tiny.gguf), lambda step, *_: steps.append(step), None)
    tinymodel.random_lora(tiny, made.folder / "peft", seed=1)
    first = sha256(made.export())
    assert sha256(made.export()) == first
    assert steps == ["snapshot", "export"], "the base is unpacked first, and that is told"
    tinymodel.random_lora(tiny, made.folder / "peft", seed=2)
    assert sha256(made.export()) != first
    assert steps == ["snapshot", "export", "export"]


def test_scores_and_answers_are_used_again_only_while_the_lora_is_the_same(settings: Settings, tmp_path: Path) -> None:
    archive = Archive(settings.archive_url)
    for i in range(40):
        first = SNAPSHOT + timedelta(hours=5 * i)
        heard = Message(f"heard{i}", SCENE, "20001", "阿泽", first, "在吗")
        archive.append([heard, Message(f"said{i}", SCENE, ME, "小满", first + timedelta(seconds=5), "在")])
    archive.close()
    tiny = tinymodel.build(tmp_path / "tiny")
    steps: list[str] = []

    def attempt(run: Path | None) -> Night:
        steps.clear()
        return Night(settings, "xiaoman", tiny.gguf, sha256(tiny.gguf), lambda step, *_: steps.append(step), run)

    made = attempt(None)
    tinymodel.random_lora(tiny, made.folder / "peft", seed=1)
    figures, answers = made.measure(), made._answers()
    assert len(figures.new.scored) >= 5
    assert answers
    assert steps == ["snapshot", "export", "evaluate", "evaluate", "gate"]
    made = attempt(made.folder)
    assert (made.measure(), made._answers()) == (figures, answers)
    assert steps == []
    made = attempt(made.folder)
    tinymodel.random_lora(tiny, made.folder / "peft", seed=2)
    changed = made.measure()
    assert changed.new.scored != figures.new.scored
    assert changed.bare == figures.bare
    made._answers()
    assert steps == ["export", "evaluate", "gate"]


def chat(settings: Settings, days: range) -> None:
    """A question and its answer a day."""
    archive = Archive(settings.archive_url)
    for day in days:
        when = SNAPSHOT + timedelta(days=day)
        heard = Message(f"heard{day}", SCENE, "20001", "阿泽", when, f"在吗{day}")
        archive.append([heard, Message(f"said{day}", SCENE, ME, "小满", when + timedelta(seconds=5), "在")])
    archive.close()


def test_what_did_not_change_since_an_earlier_night_is_not_scored_again(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    told: list[tuple[str, int]] = []
    small = settings.model_copy(update={"training": Training(model_max_length=96, threads=1), "gate": Gate(newest_h=0)})

    def made() -> Night:
        told.clear()
        found = Night(
            small, "xiaoman", tiny.gguf, sha256(tiny.gguf),
            lambda step, done, of, whose: told.append((whose, of)) if step == "evaluate" and not done else None, None,
        )  # fmt: skip
        found._run = found.new_folder()
        return found

    chat(settings, range(60))
    first = made()
    tinymodel.random_lora(tiny, first.folder / "peft", seed=1)
    before = first.measure()
    held_out = len({x.message_id for x in evaluate.held_out(first.windows)})
    assert [whose for whose, _ in told] == ["new", "base"]

    # The version is published, and some days later another one is made.
    lora = published(settings, "20260303-000000", {}, sha256(tiny.gguf), first.export()).lora
    assert lora is not None
    chat(settings, range(60, 90))
    second = made()
    tinymodel.random_lora(tiny, second.folder / "peft", seed=2)
    after = second.measure()
    added = len({x.message_id for x in evaluate.held_out(second.windows)}) - held_out
    assert added > 2
    scored = dict(told)
    assert scored["new"] >= scored["serving"] + scored["base"]
    assert scored["serving"] == scored["base"] <= added, "a window that grew is another one"
    assert after.serving is not None
    assert after.serving.scored[: held_out - 1] == before.new.scored[: held_out - 1]
    anew = second._scored("serving", tiny.gguf, lora, second.windows)
    assert after.serving.scored == anew


@pytest.mark.parametrize("unanswered", [0, 3])
def test_the_gate_judges_the_rule_that_will_serve(settings: Settings, tmp_path: Path, unanswered: int) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    chat(settings, range(40))
    archive = Archive(settings.archive_url)
    for day in range(unanswered):
        archive.append([Message(f"quiet{day}", SCENE, "20001", "阿泽", SNAPSHOT + timedelta(days=day, hours=5), "好")])
    archive.close()
    small = settings.model_copy(update={"training": Training(model_max_length=96, threads=1, silence_keep=0.5)})
    made = Night(small, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)
    tinymodel.random_lora(tiny, made.folder / "peft", seed=1)
    judged = made.measure()
    assert judged.calibration is None, "too little to fit one"
    brier = silence.brier(evaluate.points(judged.new.scored, judged.new.calibration))
    assert (judged.new.metrics.brier, judged.new.metrics.calibrated) == (brier, False)
    assert brier is not None
    version = published(settings, "20260303-000000", dict(made.learned.counts), sha256(tiny.gguf), made.export())
    serves = Night(small, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None).evaluate_version()
    assert (serves["brier"], serves["calibrated"]) == (serves["silence"]["brier"], False)
    keep = version.manifest.model_copy(update={"settings": {"silence_keep": 0.5}})
    assert judged.new.calibration == replace(version, manifest=keep).calibration
    assert (judged.new.calibration is None) is (unanswered == 0)


def test_parity_reads_windows_spread_over_the_history_and_no_more_than_it_needs(
    settings: Settings, tmp_path: Path
) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    chat(settings, range(-600, 0))
    small = settings.model_copy(update={"training": Training(model_max_length=96)})
    made = Night(small, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)
    held_out = [w.ids for w in made.windows if any(x.split is not samples.Split.TRAIN for x in w.labels)]
    read = [p.ids for p in made.held_out.passages]
    assert len(read) == PARITY_WINDOWS < len(held_out)
    assert read[0] == held_out[0]
    assert held_out.index(read[-1]) > len(held_out) * 0.9


def test_an_importance_matrix_is_made_of_the_whole_historys_tune_chats_and_of_no_other_word(
    settings: Settings, tmp_path: Path
) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    days = range(-900, 0)
    archive = Archive(settings.archive_url)
    for day in days:
        when = SNAPSHOT + timedelta(days=day)
        heard = Message(
            f"heard{day}", SCENE, "20001", "阿泽", when, f"<{day}>" + "鹿" * 80,
            reply_to=f"said{day - 1}",
        )  # fmt: skip
        said = Message(f"said{day}", SCENE, ME, "小满", when + timedelta(seconds=5), f"<{day}>", reply_to=heard.id)
        again = Message(f"again{day}", SCENE, "20001", "阿泽", when + timedelta(seconds=60), "哦", reply_to=said.id)
        archive.append([heard, said, again])
    archive.close()
    small = settings.model_copy(update={"training": Training(model_max_length=512)})
    made = Night(small, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)

    found = made.tune_texts

    vocabulary = Tokenizer.from_file(str(tiny.hf / "tokenizer.json"))
    texts = [vocabulary.decode(ids) for ids in found]
    read = [[int(x) for x in re.findall(r"<(-\d+)>", text)] for text in texts]
    of_tune = [day for day in days if samples.split_of(SCENE, f"heard{day}") is samples.Split.TUNE]
    assert all(len(set(named)) == 1 and len(named) == 3 for named in read), "no other chat, and its own quote"
    once = [named[0] for named in read]
    assert once == sorted(once)
    assert set(once) < set(of_tune), "there are more than a matrix is made of"
    assert once[0] == of_tune[0]
    assert of_tune.index(once[-1]) > len(of_tune) * 0.9
    tokens = sum(map(len, found))
    assert IMATRIX_TOKENS_MAX <= tokens < IMATRIX_TOKENS_MAX + 512
    assert {text.split("【")[0].count("现在是你和阿泽的QQ私聊。") for text in texts} == {1}, (
        "the system prompt comes first"
    )


def test_without_a_tune_chat_there_is_no_importance_matrix(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    made = Night(settings, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)
    assert samples.split_of(SCENE, "0") is not samples.Split.TUNE
    with pytest.raises(TrainingError, match=r"no conversation is in the tune split yet .* export without --imatrix"):
        _ = made.tune_texts


def test_a_merged_version_is_scored_with_its_own_weights_or_not_at_all(settings: Settings, tmp_path: Path) -> None:
    base, other = (tinymodel.build(tmp_path / n, seed=s) for s, n in enumerate(("base", "other")))

    def publish(name: str, merged_from: str) -> None:
        result = tmp_path / name
        result.mkdir()
        model = Path(shutil.copy2(other.gguf, result / "model.gguf"))
        manifest = Manifest(
            version=name, created="", base=Base(file="their.gguf", sha256=merged_from, architecture="gemma3"),
            format="gemma", system_prompt="你是小满。", files={"model.gguf": sha256(model)},
        )  # fmt: skip
        (result / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
        Personas(settings.data / "personas").publish("xiaoman", result)

    def made(steps: list[str]) -> Night:
        return Night(settings, "xiaoman", base.gguf, sha256(base.gguf), lambda step, *_: steps.append(step), None)

    bare = made([]).evaluate_version()
    publish("20260303-000000", sha256(base.gguf))
    found = made([]).evaluate_version()
    assert found["version"] == "20260303-000000"
    assert found["loss"] != pytest.approx(bare["loss"], abs=1e-4)
    publish("20260304-000000", "f" * 64)
    with pytest.raises(TrainingError, match=r"'20260304-000000' .* merged from another base \(their.gguf\)"):
        made([]).evaluate_version()
    steps: list[str] = []
    assert "their.gguf" in made(steps).run(force=True).summary
    assert steps == [], "told before anything is trained"


def smaller(settings: Settings) -> Settings:
    """For nights of a tiny model, asked at three places."""
    changed = {
        "engine": Engine(n_threads=1, n_gpu_layers=0, n_ctx=512, kv_tokens=4096),
        "training": Training(precision="none", model_max_length=200, threads=1),
        "gate": Gate(places=3),
    }
    return settings.model_copy(update=changed)


class Untrained(Night):
    """A night whose training made a random LoRA: what real training makes, tests/e2e/test_loop.py sees."""

    def train(self) -> Path:
        if not (self.folder / "train.json").exists():
            tinymodel.random_lora(self.tiny, self.folder / "peft", seed=1)  # type: ignore[attr-defined]
            state = {"settings": self.settings.training.model_dump(), "libraries": {}, "trained_tokens_per_s": 1.0}
            write_state(self.folder / "train.json", {**state, "seconds": 1.0, "peak_rss_bytes": 1})
        return self.folder


def test_a_refused_night_leaves_its_card_and_is_published_by_force_alone(settings: Settings, tmp_path: Path) -> None:
    archive = Archive(settings.archive_url)
    for i in range(120):
        first = SNAPSHOT + timedelta(hours=5 * i)
        heard = Message(f"heard{i}", SCENE, "20001", "阿泽", first, f"在吗{i}")
        archive.append([heard, Message(f"said{i}", SCENE, ME, "小满", first + timedelta(seconds=5), "在")])
    archive.close()
    tiny = tinymodel.build(tmp_path / "tiny")
    small = smaller(settings)
    made = Untrained(small, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)
    made.tiny = tiny  # type: ignore[attr-defined]

    outcome = made.run(force=True)

    assert outcome.kind == "refused", outcome.summary
    result = made.folder / "result"
    manifest = Manifest.model_validate_json((result / "manifest.json").read_text("utf-8"))
    assert manifest.gate["passed"] is False
    assert "not_better_than_base" in manifest.gate["reasons"]
    assert manifest.metrics["likeness"]["places"] == 3
    assert set(manifest.metrics["silence"]["rates"]) >= {"all", "not addressed"}
    report = (result / "report.md").read_text("utf-8")
    assert "| 光底座 |" in report
    assert "在吗" not in report, "no chat text where it may be given away"
    assert "在吗" in (made.folder / "samples.md").read_text("utf-8")
    assert not (result / "samples.md").exists()
    personas = Personas(settings.data / "personas", sha256(tiny.gguf))
    with pytest.raises(PersonaError, match="refused by the gate"):
        personas.publish("xiaoman", result)
    assert personas.publish("xiaoman", result, force=True).manifest.gate["forced"]


class BetterThanBase(Untrained):
    """One that the gate finds no other fault with: it is far better than its base, and says the person's words."""

    def measure(self) -> Any:
        figures = super().measure()
        worse = [replace(x, nll=x.nll + x.tokens) for x in figures.bare.scored]
        return replace(figures, bare=replace(figures.bare, scored=worse))

    def _answers(self) -> list[use.Answer]:
        return [use.Answer("在吗", "在的", "在")]


def test_a_night_whose_export_is_not_what_was_trained_is_refused(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    chat(settings, range(120))
    small = smaller(settings)
    made = BetterThanBase(small, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)
    made.tiny, made._whole = tiny, True  # type: ignore[attr-defined]
    made.train()
    assert made.prove().passed
    kept = json.loads((made.folder / "parity.json").read_text("utf-8"))
    kept["parity"] |= {"end_equal": False}
    write_state(made.folder / "parity.json", kept)

    outcome = made.run(force=True)

    reasons = Manifest.model_validate_json((made.folder / "manifest.json").read_text("utf-8")).gate["reasons"]
    versions = Personas(settings.data / "personas", sha256(tiny.gguf)).versions("xiaoman")
    assert (outcome.kind, reasons, versions) == ("refused", ["parity"], [])
    assert "导出的文件和训练的结果对不上" in outcome.summary


def test_how_far_the_serving_version_had_declined_is_handed_on(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    chat(settings, range(120))
    small = smaller(settings)

    def made() -> Manifest:
        night = BetterThanBase(small, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)
        night.tiny = tiny  # type: ignore[attr-defined]
        assert night.run(force=True).kind == "published"
        return Manifest.model_validate_json((night.folder / "result" / "manifest.json").read_text("utf-8"))

    first = made()
    assert first.gate["behind"] == 0
    personas = Personas(settings.data / "personas", sha256(tiny.gguf))
    file = personas.root / "xiaoman" / "versions" / first.version / "manifest.json"
    declined = first.model_copy(update={"gate": {**first.gate, "behind": 0.07}})
    file.write_text(declined.model_dump_json(), "utf-8")
    assert made().gate["behind"] == pytest.approx(0.07, abs=1e-3), "the same weights again: no nearer, no further"


def test_what_the_owner_went_back_from_is_refused_under_another_name(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    chat(settings, range(120))
    small, sha = smaller(settings), sha256(tiny.gguf)

    def made() -> BetterThanBase:
        night = BetterThanBase(small, "xiaoman", tiny.gguf, sha, silent, None)
        night.tiny = tiny  # type: ignore[attr-defined]
        return night

    first = made().run(force=True)
    assert first.kind == "published"
    older = tinylora.write(tmp_path / "older.gguf", tiny.gguf)
    published(settings, "20260101-000000", {}, sha, older)
    personas = Personas(settings.data / "personas", sha)
    personas.rollback("xiaoman", first.version)
    assert personas.rollback("xiaoman").name == "20260101-000000"
    night = made()
    outcome = night.run(force=True)
    reasons = Manifest.model_validate_json((night.folder / "manifest.json").read_text("utf-8")).gate["reasons"]
    assert outcome.kind == "refused"
    assert "taken_back" in reasons
    assert "went_back" not in reasons
    assert "它就是之前主人自己换下来的那一版" in outcome.summary


def test_evaluating_leaves_no_run_behind(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    found = Night(settings, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None).evaluate_version()
    assert found["version"] is None
    assert runs(settings) == []


def test_a_base_that_cannot_be_proven_here_is_told_before_hours_of_training(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    steps: list[str] = []
    made = Night(settings, "xiaoman", tiny.gguf, sha256(tiny.gguf), lambda step, *_: steps.append(step), None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000, total=1000))
    assert "0.0 GB are free" in made.run(force=True).summary
    assert "train" not in steps


def test_a_run_given_by_hand_must_be_one_of_this_base(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = Night(settings, "xiaoman", Path("base.gguf"), SHA, silent, run)
    with pytest.raises(TrainingError, match=r"is no run folder \(it has no readable snapshot\.json\)"):
        _ = given.folder
    run.mkdir()
    (run / "snapshot.json").write_text(json.dumps({"base_sha256": "1" * 64}))
    with pytest.raises(
        TrainingError, match=r"was trained on the base 1{12}…, .*'base\.gguf' \(0{12}…\); set that base"
    ):
        _ = given.folder


def test_a_run_of_another_persona_is_not_taken_for_ours(settings: Settings, tmp_path: Path) -> None:
    """Its held-out chats, prompt and name would be the other's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "snapshot.json").write_text(json.dumps({"base_sha256": SHA, "persona": "me"}))
    given = Night(settings, "xiaoman", Path("base.gguf"), SHA, silent, run)
    with pytest.raises(TrainingError, match="run 'run' is of persona 'me', not of 'xiaoman'"):
        _ = given.folder


def test_a_run_that_did_not_finish_is_not_exported(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "snapshot.json").write_text(json.dumps({"base_sha256": SHA}))
    given = Night(settings, "xiaoman", Path("base.gguf"), SHA, silent, run)
    with pytest.raises(TrainingError, match=r"did not finish \(it has no train\.json\); `twin train` goes on with it"):
        _ = given.trained
    assert given.manifest is None


def corrected(settings: Settings, tiny: tinymodel.Tiny) -> Night:
    """A training by hand whose owner corrected the twin every day, half of the times as another persona."""
    training = settings.training.model_copy(update={
        "precision": "none", "r": 4, "max_steps": 2, "model_max_length": 128, "threads": 1, "preference_min_pairs": 2,
        "preference_learning_rate": 1e-3, "preference_epochs": 1.0,
    })  # fmt: skip
    settings = settings.model_copy(update={"training": training})
    start, friend = datetime(2026, 3, 3, 4, 0, tzinfo=UTC), SCENE.id
    archive = Archive(settings.archive_url)
    for day in range(24):
        when = start + timedelta(days=day)
        archive.append([
            Message(f"a{day}", SCENE, friend, "阿泽", when, "早"),
            Message(f"b{day}", SCENE, ME, "小满", when + timedelta(seconds=5), "早呀"),
            Message(f"c{day}", SCENE, friend, "阿泽", when + timedelta(seconds=70), "在吗"),
            said := Message(f"d{day}", SCENE, ME, "小满", when + timedelta(seconds=75), "不在", Origin.TWIN),
        ])  # fmt: skip
        whose = "xiaoman" if day % 2 else "shitou"
        corrections.correct(
            archive, said, corrections.How.HUSH, (), by=ME, told=None, persona=whose, now=when + timedelta(minutes=9)
        )
    archive.close()
    return Night(settings, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)


def test_training_ends_with_the_owners_corrections_of_this_persona(settings: Settings, tmp_path: Path) -> None:
    run = corrected(settings, tinymodel.build(tmp_path / "tiny")).train()
    record = json.loads((run / "preferences.json").read_text("utf-8"))
    assert (record["outcome"], record["lora"]) == ("kept", sha256(run / "peft" / "adapter_model.safetensors"))
    in_train = [day for day in range(1, 24, 2) if samples.split_of(SCENE, f"a{day}") is samples.Split.TRAIN]
    assert record["pairs"] == len(in_train) > 6, "of another persona, or held out, none is trained"
    assert record["after"]["margin"] > record["before"]["margin"]


def test_the_corrections_pass_is_held_to_the_same_file_as_the_training(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "held-out.jsonl"
    turns = [{"role": "user", "content": "吃了吗"}, {"role": "assistant", "content": "还没有呢，明天再说吧"}]
    file.write_text(json.dumps({"messages": turns}) + "\n", "utf-8")
    given = settings.model_copy(update={"training": Training(eval_data_path=file)})
    made = corrected(given, tinymodel.build(tmp_path / "tiny"))
    run = made.train()
    measured = json.loads((run / "train.json").read_text("utf-8"))["tune"]
    before = json.loads((run / "preferences.json").read_text("utf-8"))["before"]
    assert before["tune"] == pytest.approx(min(x["loss"] for x in measured), abs=0.02)


def test_what_follows_the_training_holds_the_base_as_the_training_did(settings: Settings, tmp_path: Path) -> None:
    # As after a loss that was no number in 16-bit numbers, on a processor that has them.
    tiny = tinymodel.build(tmp_path / "tiny")
    made, held = corrected(settings, tiny), set()
    tinymodel.random_lora(tiny, made.folder / "peft", seed=1)
    write_state(made.folder / "train.json", {"precision": "nf4", "compute_dtype": "float32"})
    assert made.trained.nf4 is not None
    write_state(made.folder / "train.json", {"precision": "none", "compute_dtype": "float32"})

    def look(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, PeftModel):
            held.add(module.get_base_model().get_input_embeddings().weight.dtype)

    handle = register_module_forward_pre_hook(look)
    assert made.prefer()["pairs"] > 6
    handle.remove()
    assert held == {torch.float32}


def test_a_checkpoint_of_another_vocabulary_than_the_ggufs_is_refused(settings: Settings, tmp_path: Path) -> None:
    tiny, other = (tinymodel.build(tmp_path / name, name) for name in ("gemma3", "qwen2"))
    chat(settings, range(4))

    def made(base: Path) -> Night:
        training = Training(base=str(base), precision="none", r=4, model_max_length=128, threads=1)
        given = settings.model_copy(update={"training": training})
        return Night(given, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None)

    assert made(tiny.hf).targets()[-2].startswith("trainable ")
    with pytest.raises(TrainingError, match=r"another vocabulary than \[engine\] base 'model.gguf'"):
        made(other.hf).targets()
    assert runs(settings) == [], "a dry run leaves none"
    with pytest.raises(TrainingError, match=r"another vocabulary than \[engine\] base 'model.gguf'"):
        made(other.hf).train()


@pytest.fixture
def bot_toml(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bot.toml of these settings that trains a tiny base."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1")  # the command line sets them, too; put back afterwards
    tiny = tinymodel.build(tmp_path / "tiny")
    chat(settings, range(40))
    file = tmp_path / "bot.toml"
    file.write_text(
        f'[engine]\nbase = "{tiny.gguf.as_posix()}"\n[paths]\ndata = "data"\n[chat]\npersona = "xiaoman"\n[training]\n'
        f'base = "{tiny.hf.relative_to(tmp_path).as_posix()}"\nprecision = "none"\nr = 4\nmax_steps = 2\n'
        "model_max_length = 128\nthreads = 1\n", "utf-8",
    )  # fmt: skip
    return file


def test_two_trainings_of_a_persona_do_not_share_a_run(settings: Settings, bot_toml: Path) -> None:
    lock = settings.data / "runs" / "xiaoman" / "train.lock"
    with one_at_a_time(lock), pytest.raises(TrainingError, match=r"another training of persona 'xiaoman' runs"):
        train(config_path=bot_toml)
    assert runs(settings) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_training_on_a_terminal_shows_a_bar_and_ends_with_what_to_do(settings: Settings, bot_toml: Path) -> None:
    ours, theirs = os.openpty()
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-m", "bot", "train", "--config", str(bot_toml)], cwd=root, stdin=theirs, stdout=theirs,
        stderr=theirs, env={**os.environ, "PYTHONPATH": str(root), "TERM": "xterm", "COLUMNS": "300"},
    ) as process:  # fmt: skip
        os.close(theirs)
        told = b""
        with suppress(OSError):  # how Linux tells that nobody writes any more
            while read := os.read(ours, 65536):
                told += read
    os.close(ours)
    shown = told.decode("utf-8")
    assert process.returncode == 0, shown
    assert "━" in shown
    assert "Warning" not in shown
    (run,) = runs(settings)
    best = min(x["loss"] for x in json.loads((settings.data / "runs/xiaoman" / run / "train.json").read_text())["tune"])
    assert f"held-out loss: {best:.3f} nats per token at step " in shown
    assert f"next: twin export lora {settings.data / 'runs' / 'xiaoman' / run}" in shown


def test_a_run_leaves_a_merged_checkpoint_where_that_is_set(settings: Settings, tmp_path: Path) -> None:
    tiny = tinymodel.build(tmp_path / "tiny")
    chat(settings, range(40))
    training = Training(precision="none", r=4, max_steps=1, model_max_length=128, threads=1, merge_and_save=True)
    merging = settings.model_copy(update={"training": training})
    run = Night(merging, "xiaoman", tiny.gguf, sha256(tiny.gguf), silent, None).train()
    assert json.loads((run / "merged" / "parity.json").read_text("utf-8"))["parity"]["passed"]
    assert (run / "merged" / "config.json").is_file()


def test_a_merge_that_is_refused_costs_no_run_its_lora(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, told = tinymodel.build(tmp_path / "tiny"), []
    chat(settings, range(40))
    training = Training(precision="none", r=4, max_steps=1, model_max_length=128, threads=1, merge_and_save=True)
    merging = settings.model_copy(update={"training": training})

    def too_little(checkpoint: Path) -> None:
        raise ExportError("no room")

    monkeypatch.setattr("export.merged.require_memory", too_little)
    night = Night(merging, "xiaoman", tiny.gguf, sha256(tiny.gguf), lambda *words: told.append(words), None)
    run = night.train()
    assert (run / "peft" / "adapter_model.safetensors").is_file()
    assert not (run / "merged").exists()
    assert any(step == "merge" and words == "not saved: no room" for step, _, _, words in told)
