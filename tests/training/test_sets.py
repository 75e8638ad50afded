"""Training sets of a persona: stored once, rendered as chats are, their answers alone trained, learned in the night."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinymodel
from chats import FRIEND, ME, say
from tokenizers import Tokenizer

from bot.archive import Archive
from bot.config import Cleaning, Conversation, Paths, Settings, Training
from bot.errors import ImportFault, TrainingError
from bot.persona import Manifest, Personas, new_persona, sha256
from bot.prompt import FORMATS
from training import corpus, evaluate, history, samples, setimport, sets
from training.batches import IGNORED, rows_of
from training.corpus import Corpus
from training.dialogue import Dialogue, Turn
from training.hf import HFTokenizer
from training.importers.rolebench import Choice
from training.importers.sets import recognised
from training.nightly import Night
from training.qlora import train
from training.samples import Split, Window, trained_positions
from training.setimport import Taken

GEMMA = FORMATS["gemma"]
ROOT = Path(__file__).parents[2]
SETTINGS = Training(
    precision="none", r=4, lora_alpha=8, learning_rate=5e-3, max_steps=2, per_device_train_batch_size=4,
    model_max_length=160, logging_steps=1, threads=1,
)  # fmt: skip


class Characters:
    """One id a character; each control text is one id of its own."""

    bos: int | None = 1

    def __init__(self) -> None:
        self.controls: dict[str, int] = {}

    def tokens(self, text: str, control: bool) -> list[int]:
        if control:
            return [self.controls.setdefault(text, 0x110000 + len(self.controls))]
        return [ord(c) for c in text]

    def text(self, ids: Any) -> str:
        names = {i: t for t, i in self.controls.items()}
        return "".join("⏹" if names.get(i) == GEMMA.end else names[i] if i in names else chr(i) for i in ids)


def asked(n: int, **more: Any) -> dict[str, Any]:
    return {"instruction": f"问题{n}\n第二行", "output": f"回答{n}\n好耶", **more}


def a_set(folder: Path, count: int = 40, name: str = "chat.jsonl", **more: Any) -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(asked(n, **more), ensure_ascii=False) + "\n" for n in range(count)), "utf-8")
    return file


def take(path: Path, folder: Path, **more: Any) -> Taken:
    title = recognised(path)
    assert title is not None
    return setimport.take(path, title, folder, more.pop("choice", Choice()), **more)


def empty(tmp_path: Path) -> Corpus:
    archive = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    built = corpus.build(archive, [], [], Conversation())
    archive.close()
    return built


def learned(tmp_path: Path, folder: Path, at_most: int | None = None) -> Corpus:
    return sets.joined(empty(tmp_path), folder, sets.stored(folder), at_most)


# -- stored ---------------------------------------------------------------------------------------


def test_a_set_is_stored_once_whatever_its_file_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    first = take(a_set(tmp_path), folder)
    assert (first.new, first.dialogues, first.answers) == (True, 40, 40)
    before = (folder / f"{first.name}.jsonl").read_bytes()
    again = take(a_set(tmp_path), folder)
    renamed = take(a_set(tmp_path, name="other.jsonl"), folder)
    assert (again.new, renamed.new, again.name, renamed.name) == (False, False, first.name, first.name)
    rows = [{"prompt": asked(n)["instruction"], "response": asked(n)["output"]} for n in range(40)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), "utf-8")
    assert not take(tmp_path / "pairs.json", folder).new, "in another format, too"
    assert [p.name for p in folder.iterdir()] == [f"{first.name}.jsonl"]
    assert (folder / f"{first.name}.jsonl").read_bytes() == before
    assert take(a_set(tmp_path, 41), folder).name != first.name
    assert len(learned(tmp_path, folder).scenes) == 41, "what both sets hold is learned once"


def test_a_stored_set_is_neutral_jsonl(tmp_path: Path) -> None:
    taken = take(a_set(tmp_path, 2, system="你是小满。"), tmp_path / "sets")
    header, *rows = (tmp_path / "sets" / f"{taken.name}.jsonl").read_text("utf-8").splitlines()
    assert json.loads(header) == {
        "_type": "set", "format": "Alpaca", "dialogues": 2, "answers": 2, "own_prompts": False,
    }  # fmt: skip
    assert json.loads(rows[0]) == {"messages": [
        {"role": "system", "content": "你是小满。"}, {"role": "user", "content": "问题0\n第二行"},
        {"role": "assistant", "content": "回答0\n好耶"},
    ]}  # fmt: skip
    assert len(rows) == 2


def test_a_dry_run_stores_nothing_and_a_broken_import_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    assert take(a_set(tmp_path), folder, dry_run=True).dialogues == 40
    assert not folder.exists()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "response": ""}\n{"prompt": "b"', "utf-8")
    said = r"no dialogue to train on: 1 × no answer to a question \(bad.jsonl:1\); 1 × not JSON \(bad.jsonl:2\)"
    with pytest.raises(ImportFault, match=said):
        take(bad, folder)
    assert list(folder.iterdir()) == []
    (tmp_path / "blocked").write_text("", "utf-8")
    with pytest.raises(ImportFault, match="cannot be stored in"):
        take(a_set(tmp_path), tmp_path / "blocked")


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ((), "several roles: choose with --role NAME .* among 甲 \\(2\\)、乙 \\(1\\)"),
        (("丙",), "has no role 丙; it has 甲 \\(2\\)、乙 \\(1\\)"),
    ],
)
def test_roles_that_have_to_be_chosen_are_named(tmp_path: Path, roles: tuple[str, ...], said: str) -> None:
    file = tmp_path / "bench.jsonl"
    rows = [{"role": r, "question": "你好", "generated": ["好"]} for r in ("甲", "甲", "乙")]
    file.write_text("\n".join(json.dumps(r) for r in rows), "utf-8")
    with pytest.raises(ImportFault, match=said):
        take(file, tmp_path / "sets", choice=Choice(roles))
    with pytest.raises(ImportFault, match="has no roles: leave out --role"):
        take(a_set(tmp_path), tmp_path / "sets", choice=Choice(("甲",)))


@pytest.mark.parametrize("line", ["half {", "[]", '{"messages": 1}', '{"messages": []}', '{"messages": [{"role": 1}]}'])
def test_a_stored_set_that_was_spoiled_is_named(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "sets"
    taken = take(a_set(tmp_path, 1), folder)
    file = folder / f"{taken.name}.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + line.encode())
    with pytest.raises(TrainingError, match=f"{taken.name}.jsonl' line 3 is broken"):
        learned(tmp_path, folder)
    file.write_bytes(whole[:100] + b"x" + whole[100:])
    with pytest.raises(TrainingError, match="no readable header"):
        learned(tmp_path, folder)


def test_a_summary_says_what_was_mended_left_out_and_mixed(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    rows = [
        {"role": r, "question": "你好", "generated": [a]}
        for r, a in (("甲", "好"), ("乙", "好"), ("丙", ""), ("甲", ""))
    ]
    file.write_text("\n".join(json.dumps(r) for r in rows), "utf-8")
    taken = take(file, tmp_path / "sets", choice=Choice(("甲", "乙")))
    words = setimport.in_words(setimport.summary(taken), file.name, "me", tmp_path / "sets", dry_run=False)
    assert "bench.jsonl: training set, RoleBench; 2 dialogues, 2 answers taken\n" in words
    assert "left out 1: another role (bench.jsonl:3)" in words
    assert "left out 1: no answer to a question (bench.jsonl:4)" in words
    assert "--keep-prompts trains each under its own" in words
    assert f"it is {tmp_path / 'sets' / taken.name}.jsonl; delete it" in words
    gpt = tmp_path / "gpt.json"
    turns = [{"from": "gpt", "value": "你好"}, {"from": "human", "value": "在吗"}, {"from": "gpt", "value": "在"}]
    gpt.write_text(json.dumps([{"conversations": turns, "system": "别说你是AI。短句。"}]), "utf-8")
    shown = setimport.summary(take(gpt, tmp_path / "sets"))
    place = {"count": 1, "places": ["gpt.json record 1"]}
    assert shown["mended"] == {
        "what the assistant said first was left out": place,
        "a sentence that has it deny being a program was left out": place,
    }


# -- in the corpus ----------------------------------------------------------------------------------


def windows(learned: Corpus, length: int = 4096) -> tuple[list[Window], Characters]:
    tokenizer = Characters()
    return samples.windows(learned, tokenizer, GEMMA, "你是小满。", length), tokenizer


def test_a_dialogue_is_rendered_as_a_private_chat_and_its_answers_alone_are_trained(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    take(a_set(tmp_path, 1, history=[["一", "二\n三"], ["四", ""]], system="别的提示"), folder)
    (window,), tokenizer = windows(learned(tmp_path, folder))
    assert tokenizer.text(window.ids) == (
        "\x01<start_of_turn>user\n你是小满。\n现在是QQ私聊。\n\n一<end_of_turn>\n<start_of_turn>model\n二\n三⏹\n"
        "<start_of_turn>user\n四<end_of_turn>\n<start_of_turn>model\n⏹\n"
        "<start_of_turn>user\n问题0\n第二行<end_of_turn>\n<start_of_turn>model\n回答0\n好耶⏹\n"
    )
    assert [tokenizer.text([window.ids[i] for i in x.trained]) for x in window.labels] == [
        "二\n三⏹",
        "",
        "回答0\n好耶⏹",
    ]
    assert not any(x.decision for x in window.labels), "when to speak is nothing a set could tell"


def test_a_sets_own_prompt_is_trained_only_where_it_is_kept(tmp_path: Path) -> None:
    file, folder = a_set(tmp_path, 1, system="你是孙悟空。"), tmp_path / "sets"
    take(file, folder)
    (window,), tokenizer = windows(learned(tmp_path, folder))
    assert "你是小满。\n现在是QQ私聊。" in tokenizer.text(window.ids)
    kept = take(file, folder, own_prompts=True)
    assert kept.new
    assert sets.stored(folder) == [kept.name], "it takes the other's place"
    (window,), tokenizer = windows(learned(tmp_path, folder))
    text = tokenizer.text(window.ids)
    assert ("你是孙悟空。\n\n问题0" in text, "小满" in text, "QQ" in text) == (True, False, False)


def test_a_set_is_shown_to_the_model_as_the_archive_is(tmp_path: Path) -> None:
    file, folder = tmp_path / "set.jsonl", tmp_path / "sets"
    rows = [{"prompt": "号码多少\n[图片]", "response": "13812345678"}, {"prompt": "[图片]", "response": "好看"}]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    take(file, folder)
    redacted = learned(tmp_path, folder)
    found, tokenizer = windows(redacted)
    assert "号码多少\n[图片]<end_of_turn>\n<start_of_turn>model\n[手机号]⏹" in tokenizer.text(found[0].ids)
    plain = Cleaning(redact=False, strip_placeholders=True)
    stripped = sets.joined(empty(tmp_path), folder, sets.stored(folder), None, plain)
    (window,), tokenizer = windows(stripped)
    assert "号码多少<end_of_turn>\n<start_of_turn>model\n13812345678⏹" in tokenizer.text(window.ids)
    assert [x.counts["set_answers"] for x in (redacted, stripped)] == [2, 1], "what says nothing then asks nothing"
    assert redacted.fingerprint != stripped.fingerprint


def test_splits_are_drawn_by_what_is_asked_and_stay(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    rows = [{"instruction": f"问{n}", "output": f"答{n}{k}"} for n in range(300) for k in range(2)]
    file = tmp_path / "many.json"
    file.write_text(json.dumps(rows), "utf-8")
    take(file, folder)
    found, tokenizer = windows(learned(tmp_path, folder))
    splits: dict[str, set[Split]] = {}
    for window in found:
        question = tokenizer.text(window.ids).split("\n\n")[1].split("<")[0]
        splits.setdefault(question, set()).update(x.split for x in window.labels)
    assert len(splits) == 300
    assert all(len(s) == 1 for s in splits.values()), "no answer to a trained question is held out"
    drawn = [s.pop() for s in splits.values()]
    assert all(15 < drawn.count(split) < 50 for split in (Split.TUNE, Split.TEST))
    keys = [(x.scene, x.message_id) for w in found for x in w.labels]
    assert len(set(keys)) == len(keys) == 600


def test_more_dialogues_than_are_wanted_are_sampled_the_same_way_as_sets_grow(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    take(a_set(tmp_path, 100), folder)
    few = learned(tmp_path, folder, 30)
    assert (few.counts["set_dialogues"], few.counts["set_dialogues_left_out"], few.counts["set_answers"]) == (
        30,
        70,
        30,
    )
    take(a_set(tmp_path, 110, name="grown.jsonl"), folder)
    grown = learned(tmp_path, folder, 30)
    assert len({p.scene for p in few.scenes} & {p.scene for p in grown.scenes}) >= 22
    assert few.fingerprint != grown.fingerprint
    assert learned(tmp_path, folder, 30).fingerprint == grown.fingerprint


def test_without_sets_the_corpus_is_the_archives(tmp_path: Path) -> None:
    built = empty(tmp_path)
    assert sets.joined(built, tmp_path / "sets", [], 5) is built


def test_beside_an_archive_its_windows_stay_as_they_were(tmp_path: Path) -> None:
    archive = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    archive.append([say(0, FRIEND, "在吗"), say(8, ME, "在"), say(60, FRIEND, "没人理"), say(90000, FRIEND, "后来")])
    built = corpus.build(archive, [ME], ["小满"], Conversation())
    archive.close()
    folder = tmp_path / "sets"
    take(a_set(tmp_path, 3), folder)
    both = sets.joined(built, folder, sets.stored(folder), None)
    alone, with_sets = windows(built)[0], windows(both)[0]
    assert with_sets[: len(alone)] == alone
    assert len(with_sets) == len(alone) + 3
    assert {k: both.counts[k] for k in built.counts} == built.counts
    assert (both.contributors, both.span) == (built.contributors, built.span)


def test_a_sets_times_are_nobodys_pace(tmp_path: Path) -> None:
    take(a_set(tmp_path), tmp_path / "sets")
    assert evaluate.pacing(learned(tmp_path, tmp_path / "sets")) == evaluate.pacing(empty(tmp_path))


def test_a_dialogues_id_is_of_everything_and_its_question_of_the_users_words() -> None:
    one = Dialogue("", (Turn("user", "问"), Turn("assistant", "答")))
    two = Dialogue("", (Turn("user", "问"), Turn("assistant", "另答")))
    assert (one.question == two.question, one.id == two.id) == (True, False)


# -- trained ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tinymodel.Tiny:
    words = [*tinymodel.TEXTS, *(text for n in range(40) for text in (asked(n)["instruction"], asked(n)["output"]))]
    return tinymodel.build(tmp_path_factory.mktemp("tiny"), texts=words)


def test_a_model_trains_on_a_set_and_its_targets_are_the_answers_and_their_ends(
    tiny: tinymodel.Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / "sets"
    take(a_set(tmp_path), folder)
    tokenizer = HFTokenizer(tiny.hf)
    found = samples.windows(learned(tmp_path, folder), tokenizer, tokenizer.format, "你是小满。", 160)
    words = Tokenizer.from_file(str(tiny.hf / "tokenizer.json"))
    trained = [
        words.decode([t for t in row.targets if t != IGNORED], skip_special_tokens=False)
        for row in rows_of(found, Split.TRAIN)
    ]
    assert len(trained) == sum(bool(trained_positions(w)) for w in found) > 20
    assert set(trained) < {f"回答{n}\n好耶<end_of_turn>" for n in range(40)}
    run = train(found, tiny.hf, tmp_path / "run", SETTINGS)
    assert run.record["steps"] == 2
    assert (run.peft / "adapter_model.safetensors").is_file()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation whose persona learns from training sets alone."""
    made = Settings(paths=Paths(data=tmp_path / "data"), training=SETTINGS)
    new_persona(made.data / "personas", "wukong", "孙悟空", ())
    return made


def test_a_night_of_a_persona_with_sets_and_no_people(settings: Settings, tiny: tinymodel.Tiny, tmp_path: Path) -> None:
    folder = settings.data / "personas" / "wukong" / sets.FOLDER
    sha = sha256(tiny.gguf)

    def night() -> Night:
        return Night(settings, "wukong", tiny.gguf, sha, lambda *_: None, None)

    assert night().run().kind == "skipped"
    taken = take(a_set(tmp_path, 60), folder)
    outcome = night().run()
    assert outcome.kind in ("published", "refused"), outcome.summary
    assert "训练集里的 60 轮回答" in outcome.summary
    (run,) = (settings.data / "runs" / "wukong").glob("*/")
    manifest = Manifest.model_validate_json((run / "manifest.json").read_text("utf-8"))
    made = {key: manifest.corpus[key] for key in ("sets", "set_dialogues", "set_answers", "set_names", "turns")}
    assert made == {"sets": 1, "set_dialogues": 60, "set_answers": 60, "set_names": [taken.name], "turns": 0}
    assert (manifest.contributors, manifest.calibration, manifest.metrics["auc_text"]) == ((), None, None)
    assert manifest.metrics["loss"]["n"] > 0
    assert "训练集里的对话：60" in (run / "report.md").read_text("utf-8")


def test_what_a_version_learned_from_is_not_new_again(settings: Settings, tmp_path: Path) -> None:
    folder = settings.data / "personas" / "wukong" / sets.FOLDER
    first = take(a_set(tmp_path, 30), folder)
    night = Night(settings, "wukong", Path("base.gguf"), "0" * 64, lambda *_: None, None)
    assert night._new_messages() == 30
    assert night.snapshot["sets"] == [first.name]
    take(a_set(tmp_path, 5, name="later.jsonl"), folder)
    assert night.learned.counts["set_dialogues"] == 30, "a set that came after the snapshot waits for the next night"


# -- the command line ---------------------------------------------------------------------------------


def twin(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bot", *words, "--config", str(config)], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip


def test_a_training_set_given_as_history_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ImportFault, match=r"is a training set \(Alpaca\), not a chat log: .*--persona NAME"):
        history.recognised(a_set(tmp_path))


def test_sets_are_imported_by_the_command_line_and_shown_in_the_corpus(tmp_path: Path) -> None:
    config, file = tmp_path / "bot.toml", tmp_path / "train.jsonl"
    rows = [{"role": r, "question": f"{r}，你好", "generated": ["好", "好呀"]} for r in ("孙悟空", "李白")]
    file.write_text("\n".join(json.dumps(r) for r in rows) + "\nhalf {", "utf-8")
    profiles = tmp_path / "desc.json"
    profiles.write_text(json.dumps({"孙悟空": "机智勇敢。"}), "utf-8")
    words = ["persona", "new", "wukong", "--role", "孙悟空", "--profiles", str(profiles)]
    assert twin(config, *words).returncode == 0
    prompt = Personas(tmp_path / "data" / "personas").load("wukong").system_prompt
    assert prompt.startswith("你是孙悟空。你的特征描述是：机智勇敢。现在请你")

    done = twin(config, "import", str(file), "--persona", "wukong", "--role", "孙悟空", "--answers", "2", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["dialogues"], shown["roles"], shown["skipped"]["not JSON"]["places"]) == (
        2, {"孙悟空": 1}, ["train.jsonl:3"],
    )  # fmt: skip
    stats = json.loads(twin(config, "corpus", "stats", "--persona", "wukong", "--json").stdout)
    assert (stats["people"], stats["set_dialogues"]) == ([], 2)
