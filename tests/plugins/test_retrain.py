"""Nights as children of the daemon, and when they start. The child is a real process; what it does is a script."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nonebot
import psutil
import pytest
from apscheduler.triggers.cron import CronTrigger

from bot import corrections
from bot.archive import Archive, Decision
from bot.checksum import sha256
from bot.child import TUNABLES, environment
from bot.commands import Commands
from bot.config import Paths, Retrain, Settings, Training
from bot.doctor import missing_for_training
from bot.drift import STYLE
from bot.message import Message, Origin, Scene
from bot.persona import Persona, Personas, Spec, new_persona
from bot.probation import RATE
from bot.processors import usable

pytestmark = pytest.mark.skipif(bool(missing_for_training()), reason="nights need what trains")

NIGHT = """
import json, os, sys, time
print(json.dumps({"step": "train", "done": 3, "total": 9, "text": f"pid {os.getpid()}"}), flush=True)
print("7", flush=True)
while not os.path.exists(GO):
    time.sleep(0.02)
print(json.dumps({"outcome": "published", "version": "v", "summary": " ".join(sys.argv[1:4])}), flush=True)
"""


STARTED_WITH = """
import json, os, sys
summary = json.dumps([sys.argv[1:], dict(os.environ)])
print(json.dumps({"outcome": "published", "version": "v", "summary": summary}), flush=True)
"""
"""Tells what it was started with: its arguments, and its environment."""


class Owner:
    """A twin as the plugin sees it: settings, commands that its owner types, and someone to tell."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.commands = Commands("/", ("10001",))
        self.told: list[str] = []

    async def tell_owner(self, text: str) -> None:
        self.told.append(text)

    def persona_of(self, scene: Scene) -> Persona:
        return Persona(f"of-{scene.id}", Path(), Spec(display_name="小满"), None)

    async def types(self, words: str, sender: str = "10001") -> str | None:
        typed = Message("t", Scene("group", "20001"), sender, "", datetime.now(UTC), words)
        return await self.commands.run(typed, "admin", "40001")


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    settings = Settings(paths=Paths(data=tmp_path), retrain=Retrain(cron="0 4 * * *", jitter_s=600))
    return Owner(settings)


@pytest.fixture
def retrain(owner: Owner) -> SimpleNamespace:
    """The plugin's modules; importing a plugin asks NoneBot for its driver."""
    nonebot.init(_env_file=None, driver="~none")
    config: Any = nonebot.get_driver().config
    if not hasattr(config, "twin"):
        config.twin, config.config_path = owner, Path("bot.toml")
    names = ("commands", "nights", "probation", "schedule", "texts")
    return SimpleNamespace(**{n: import_module(f"plugins.retrain.{n}") for n in names})


@pytest.fixture
def nights(owner: Owner, retrain: SimpleNamespace, tmp_path: Path) -> Any:
    script = NIGHT.replace("GO", repr(str(tmp_path / "go")))
    return retrain.nights.Nights(owner, tmp_path / "bot.toml", (sys.executable, "-c", script))


@pytest.fixture
async def telling(owner: Owner, retrain: SimpleNamespace, tmp_path: Path) -> AsyncIterator[Any]:
    """Nights whose child tells what it was started with, and `/train` for them."""
    nights = retrain.nights.Nights(owner, tmp_path / "bot.toml", (sys.executable, "-c", STARTED_WITH))
    retrain.commands.register(owner, nights)
    yield nights
    await nights.close()


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is awaited is a child process
            await asyncio.sleep(0.02)


def child(nights: Any) -> int:
    return int(nights.status().rpartition("pid ")[2])


async def test_progress_comes_over_the_pipe_and_the_report_goes_to_the_owner(
    nights: Any, owner: Owner, tmp_path: Path
) -> None:
    assert nights.start("xiaoman") is None
    await until(lambda: "pid" in nights.status())
    assert nights.status().startswith("训练 3/9")
    refused = nights.start("xiaoman")
    assert "3/9" in refused, "one at a time"
    (tmp_path / "go").touch()
    await until(lambda: not nights.running)
    assert owner.told == ["night --persona xiaoman"]
    assert owner.told[0] in nights.status()


async def test_cancel_ends_the_child(nights: Any, owner: Owner) -> None:
    assert not await nights.cancel()
    nights.start("xiaoman")
    await until(lambda: "pid" in nights.status())
    process = child(nights)
    assert await nights.cancel()
    assert not psutil.pid_exists(process)
    assert (nights.running, owner.told) == (False, [])


async def test_a_child_that_fails_without_a_report_is_told_in_its_last_words(
    retrain: SimpleNamespace, owner: Owner
) -> None:
    failing = retrain.nights.Nights(owner, Path("bot.toml"), (sys.executable, "-c", "raise SystemExit('no base')"))
    failing.start("xiaoman")
    await until(lambda: not failing.running)
    assert owner.told == [retrain.texts.FAILED.format(why="no base")]


async def started_with(nights: Any, owner: Owner) -> tuple[list[str], dict[str, str]]:
    """The child's arguments and its environment, when it has ended."""
    await until(lambda: not nights.running)
    words, found = json.loads(owner.told.pop())
    return words, found


@pytest.mark.parametrize("threads", [os.cpu_count(), None])
async def test_a_night_is_started_idle_and_with_the_environment_and_threads_of_a_training(
    telling: Any, owner: Owner, tmp_path: Path, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (TUNABLES, "OMP_NUM_THREADS", "TWIN__TRAINING__THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    owner.settings = Settings(paths=owner.settings.paths, training=Training(threads=threads))
    assert telling.start("xiaoman") is None
    words, found = await started_with(telling, owner)
    assert words == ["night", "--persona", "xiaoman", "--json", "--idle", "--config", str(tmp_path / "bot.toml")]
    limit = str(owner.settings.training.threads or max(1, usable() - 1))
    assert (found["OMP_NUM_THREADS"], found["TWIN__TRAINING__THREADS"]) == (limit, limit)
    assert found[TUNABLES] == environment()[TUNABLES]


# -- /train ---------------------------------------------------------------------------------------


async def test_train_now_trains_who_answers_there_however_little_is_new_and_the_clock_does_not(
    telling: Any, retrain: SimpleNamespace, owner: Owner
) -> None:
    assert await owner.types("/train now") == retrain.texts.STARTED.format(persona="小满")
    words, _ = await started_with(telling, owner)
    assert words[1:3] == ["--persona", "of-20001"]
    assert "--force" in words
    await retrain.schedule.Schedule(owner, telling).night()
    words, _ = await started_with(telling, owner)
    assert words[1:3] == ["--persona", owner.settings.chat.persona]
    assert "--force" not in words


async def test_train_says_how_far_it_is_and_stops_it(nights: Any, retrain: SimpleNamespace, owner: Owner) -> None:
    retrain.commands.register(owner, nights)
    assert await owner.types("/train cancel") == retrain.texts.NOTHING
    assert await owner.types("/train status") == await owner.types("/train") == retrain.texts.IDLE.format(last="")
    await owner.types("/train now")
    await until(lambda: "pid" in nights.status())
    process = child(nights)
    told = await owner.types("/train status")
    assert told == await owner.types("/train") == f"训练 3/9 pid {process}"
    assert await owner.types("/train now") == retrain.texts.RUNNING.format(state=told)
    assert await owner.types("/train cancel") == retrain.texts.CANCELLED
    assert not psutil.pid_exists(process)
    assert await owner.types("/train status") == retrain.texts.IDLE.format(last="")


@pytest.mark.parametrize("words", ["/train stop", "/train now now", "/train 现在"])
async def test_train_typed_wrong_says_how_and_starts_nothing(
    telling: Any, retrain: SimpleNamespace, owner: Owner, words: str
) -> None:
    assert await owner.types(words) == retrain.texts.USAGE
    assert not telling.running


async def test_train_is_the_owners_alone(telling: Any, owner: Owner) -> None:
    assert await owner.types("/train now", sender="10002") is None
    assert not telling.running


# -- without what trains --------------------------------------------------------------------------


@pytest.fixture
def not_installed(retrain: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two of the packages cannot be found; gives what is said then."""
    for name in ("torch", "peft"):
        monkeypatch.setitem(sys.modules, name, None)
    missing = missing_for_training()
    assert sorted(missing) == ["peft", "torch"]
    return str(retrain.texts.NOT_INSTALLED.format(missing="、".join(missing)))


async def test_train_now_says_what_is_not_installed_and_starts_nothing(
    telling: Any, owner: Owner, not_installed: str
) -> None:
    assert await owner.types("/train now") == not_installed
    assert (telling.running, owner.told) == (False, [])


@pytest.mark.parametrize("enabled", [True, False])
async def test_where_no_night_can_run_none_is_planned_and_the_owner_is_told_at_the_start(
    retrain: SimpleNamespace, owner: Owner, not_installed: str, enabled: bool
) -> None:
    owner.settings = Settings(paths=owner.settings.paths, retrain=Retrain(enabled=enabled))
    jobs, schedule = await started(retrain, owner)
    assert (jobs, schedule.next_night()) == ({}, None), "nothing is left that would say it again"
    assert owner.told == ([not_installed] if enabled else [])


# -- the clock ------------------------------------------------------------------------------------


class Started:
    """Nights that only note what was started."""

    def __init__(self, refused: str | None = None) -> None:
        self.refused, self.personas = refused, list[str]()

    def start(self, persona: str, *, force: bool = False) -> str | None:
        self.personas.append(persona)
        return self.refused


async def started(retrain: SimpleNamespace, owner: Owner) -> tuple[dict[str, Any], Any]:
    """The jobs of a schedule that was started and stopped, by their ids."""
    schedule = retrain.schedule.Schedule(owner, Started())
    await schedule.start()
    jobs = {job.id: job for job in schedule._scheduler.get_jobs()}
    await schedule.stop()
    return jobs, schedule


async def test_the_clock_is_the_crontab_line_with_jitter_and_a_late_night_still_runs(
    retrain: SimpleNamespace, owner: Owner
) -> None:
    jobs, _ = await started(retrain, owner)
    (job,) = jobs.values()
    assert (job.misfire_grace_time, job.coalesce) == (None, True)
    now = datetime(2026, 3, 2, 12, 0, tzinfo=owner.settings.zone)
    due = [job.trigger.get_next_fire_time(None, now) for _ in range(20)]
    four = datetime(2026, 3, 3, 4, 0, tzinfo=owner.settings.zone)
    assert all(four <= moment <= four + timedelta(seconds=600) for moment in due)
    assert len(set(due)) > 1
    assert owner.told == []


@pytest.mark.parametrize(("days", "missed"), [(2, True), (0, False)])
async def test_a_missed_night_runs_after_the_start(
    retrain: SimpleNamespace, owner: Owner, days: int, missed: bool
) -> None:
    zone = owner.settings.zone
    note = {"started": (datetime.now(zone) - timedelta(days=days)).isoformat()}
    (owner.settings.data / "last_night.json").write_text(json.dumps(note), "utf-8")
    jobs, _ = await started(retrain, owner)
    assert ("missed" in jobs) == missed


@pytest.mark.parametrize(
    ("night", "done", "resumed"), [(True, False, True), (True, True, False), (False, False, False)]
)
async def test_an_unfinished_night_is_gone_on_with_after_the_start(
    retrain: SimpleNamespace, owner: Owner, night: bool, done: bool, resumed: bool
) -> None:
    run = owner.settings.data / "runs" / "shitou" / "20260302-040000"
    run.mkdir(parents=True)
    (run / "snapshot.json").write_text(json.dumps({"night": night}), "utf-8")
    if done:
        (run / "done.json").write_text("{}", "utf-8")
    jobs, schedule = await started(retrain, owner)
    assert ("missed" in jobs) == resumed
    if resumed:
        await schedule.night(*jobs["missed"].args)
        assert schedule._nights.personas == ["shitou"]


@pytest.mark.parametrize("refused", [None, "another night runs"])
async def test_a_refused_start_is_not_noted_as_a_night(
    retrain: SimpleNamespace, owner: Owner, refused: str | None
) -> None:
    schedule = retrain.schedule.Schedule(owner, Started(refused))
    await schedule.night()
    assert (owner.settings.data / "last_night.json").exists() == (refused is None)
    trigger = CronTrigger.from_crontab("0 4 * * *", timezone=owner.settings.zone)
    assert schedule.missed(trigger, datetime.now(owner.settings.zone)) is False


async def test_a_night_with_too_few_messages_is_skipped_and_the_owner_is_told_so(
    retrain: SimpleNamespace, owner: Owner, tmp_path: Path
) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    (tmp_path / "bot.toml").write_text("[engine]\nbase = 'base.gguf'\n[paths]\ndata = 'data'\n", "utf-8")
    folder = tmp_path / "data" / "personas" / "xiaoman"
    folder.mkdir(parents=True)
    (folder / "persona.toml").write_text('display_name = "小满"\npeople = ["10001"]\n', "utf-8")
    nights = retrain.nights.Nights(owner, tmp_path / "bot.toml")
    nights.start("xiaoman")
    # The one child here that is a night indeed: idle, it imports what trains only when nothing else wants the processor
    # (6 s alone, minutes beside two busy processes on two cores). The wait asserts nothing: what is told does.
    await until(lambda: not nights.running, within_s=900.0)
    (told,) = owner.told
    assert told.startswith("小满今晚没有训练：上次之后本人只说了 0 条")


# -- the serving version, looked at ---------------------------------------------------------------


def serving(settings: Settings, versions: str) -> Any:
    """An owner whose persona 小满 has those versions, the last of them serving."""
    owner: Any = Owner(settings)
    owner.archive, owner.personas = Archive(settings.archive_url), Personas(settings.data / "personas")
    new_persona(settings.data / "personas", "xiaoman", "小满", ("30001",))
    for version in versions:
        made = settings.data / version
        made.mkdir()
        (made / "lora.gguf").write_bytes(version.encode())
        manifest = {
            "version": version, "created": "", "format": "gemma", "system_prompt": "",
            "base": {"file": "", "sha256": "", "architecture": ""},
            "files": {"lora.gguf": sha256(made / "lora.gguf")},
        }  # fmt: skip
        (made / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        owner.personas.publish("xiaoman", made)
    return owner


@pytest.mark.parametrize(("roll_back", "versions"), [(True, "12"), (False, "12"), (True, "2")])
async def test_what_does_worse_goes_back_where_it_may_and_can_and_the_owner_is_told_once(
    retrain: SimpleNamespace, tmp_path: Path, roll_back: bool, versions: str
) -> None:
    owner = serving(Settings(paths=Paths(data=tmp_path), retrain=Retrain(roll_back=roll_back)), versions)
    scene, now = Scene("private", "777"), datetime.now(UTC).replace(microsecond=0)
    for n in range(6):
        heard = Message(f"h{n}", scene, "777", "阿泽", now + timedelta(seconds=n * 2 - 60), "在吗", seq=n)
        said = Message(f"s{n}", scene, "9", "小满", heard.time, "不在", Origin.TWIN, seq=n)
        owner.archive.append([heard, said])
        owner.archive.decide(Decision(scene, f"h{n}", heard.time, "xiaoman", "2", "spoke"))
        how: dict[str, Any] = {"by": "9", "told": None, "persona": "xiaoman", "now": now}
        corrections.correct(owner.archive, said, corrections.How.HUSH, (), **how)
    probation = retrain.probation.Probation(owner)
    told = await probation.look("xiaoman")
    went = roll_back and versions == "12"
    assert owner.personas.current("xiaoman") == ("1" if went else "2")
    assert ("换回了 1" if went else "没有自动撤下") in told
    assert "6 次回答被纠正了 6 次" in told
    assert await probation.look("xiaoman") is None
    assert owner.told == [told]
    owner.archive.close()


def test_every_measure_has_words(retrain: SimpleNamespace) -> None:
    assert set(retrain.texts.MEASURES) == {*STYLE, *RATE.values()}


STYLES = {
    "log_chars": ["走吧这条路一直走下去就到了{n:02d}"], "bubbles": ["走{n:03d}", "吧{n:03d}", "嗯{n:03d}"],
    "punctuation": ["吧{n:02d}。"], "faces": ["{n:02d}[捂脸]"], "laughter": ["{n:02d}哈哈"], "distinct": ["走吧啊啊"],
}  # fmt: skip
"""Answers that leave, among others, the band of somebody who says 走吧00, 走吧01 and so on."""


@pytest.mark.parametrize("measure", [*STYLE, *RATE.values()])
async def test_what_answers_unlike_the_person_goes_back_and_the_owner_is_told_by_how_much(
    retrain: SimpleNamespace, tmp_path: Path, measure: str
) -> None:
    settings = Settings(paths=Paths(data=tmp_path), retrain=Retrain(watch_answers=10))
    owner = serving(settings, "12")
    private = measure != "rate_group"
    scene, now = Scene("private" if private else "group", "777"), datetime.now(UTC).replace(microsecond=0)
    began, swapped = now - timedelta(days=20), now - timedelta(hours=3)
    written = []
    for n in range(800):  # the person answers every second moment
        when = began + timedelta(minutes=5 * n)
        written.append(Message(f"a{n}", scene, "777", "阿泽", when, "在吗", seq=n))
        if n % 2:
            said = f"走吧{n % 100:02d}"
            written.append(Message(f"b{n}", scene, "30001", "小满", when + timedelta(seconds=5), said, seq=n))
    owner.archive.append(written)
    owner.archive.note(scene, "state", "on", swapped - timedelta(days=1))
    rate = measure in RATE.values()
    why = {"terms": {"intercept": 9.0 if rate else 0.0}}
    for n in range(85 if rate else 25):  # two blocks, and a few
        when = swapped + timedelta(minutes=n)
        written = [Message(f"h{n}", scene, "777", "阿泽", when, "在吗", seq=n)]
        for k, text in enumerate(STYLES.get(measure, ["走吧{n:02d}"])):
            at = when + timedelta(seconds=2 + k)
            written.append(Message(f"s{n}-{k}", scene, "9", "小满", at, text.format(n=n), Origin.TWIN, seq=n))
        owner.archive.append(written)
        owner.archive.decide(Decision(scene, f"h{n}", when, "xiaoman", "2", "spoke", why))
    told = await retrain.probation.Probation(owner).look("xiaoman")
    owner.archive.close()
    assert owner.personas.current("xiaoman") == "1"
    assert owner.told == [told]
    words = re.escape(retrain.texts.MEASURES[measure])
    found = re.search(rf"{words} (-?\d+\.\d\d)，本人一向在 (-?\d+\.\d\d) 到 (-?\d+\.\d\d)", told)
    assert found is not None, told
    value, low, high = map(float, found.groups())
    assert low < high
    assert not low <= value <= high
