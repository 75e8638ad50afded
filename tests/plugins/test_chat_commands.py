"""plugins/chat/commands.py with a real archive and presence: what /twin and /why say, and what is kept of it."""

import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chats import ACCOUNT, FRIEND, GROUP, ME, OTHER
from plugged import plugged
from stage import Stage

from bot import base
from bot.archive import Archive, Decision
from bot.commands import Commands
from bot.config import Engine, PerScene
from bot.errors import SendFailure
from bot.memory import Memory
from bot.message import Message, Scene
from bot.persona import Persona, Personas, ReplyPolicy, Spec
from bot.twin import SHIPPED

NIGHT = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)


class Chat:
    """A group with a twin, and somebody who types."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.commands = Commands("/", (ME,))
        self.others = Persona("shitou", Path(), Spec(display_name="石头"), None)
        twin = SimpleNamespace(
            settings=stage.settings, archive=stage.archive, presence=stage.presence, commands=self.commands,
            memory=Memory(stage.archive, stage.settings), started=datetime.now(UTC) - timedelta(hours=2.5),
            odd=Counter(malformed=2, future=1), personas=Personas(SHIPPED, base.EMBEDDED_SHA256),
            next_night=lambda: NIGHT, persona_of=lambda _: stage.persona, switch_persona=self._switch,
        )  # fmt: skip
        plugged("chat.commands").register(twin)
        plugged("persona.commands").register(twin)

    def _switch(self, scene: Scene, wanted: str, now: datetime) -> Persona:
        self.stage.archive.note(scene, "persona", self.others.name, now)
        return self.others

    async def type(self, words: str, sender: str = ME, quotes: str | None = None, account: str = ACCOUNT) -> str | None:
        typed = Message("t", GROUP, sender, "", datetime.now(UTC), words, reply_to=quotes)
        return await self.commands.run(typed, "member", account)


@pytest.fixture
def chat(stage: Stage) -> Chat:
    return Chat(stage)


async def test_status_says_all_that_is_asked_of_it(chat: Chat, archive: Archive) -> None:
    chat.stage.hear("在吗")
    await chat.stage.quiet()
    chat.stage.persona = replace(chat.stage.persona, spec=Spec(display_name="小满", reply=ReplyPolicy(bias=-50)))
    chat.stage.hear("嗯", age_s=-1)
    await chat.stage.quiet()
    yesterday = datetime.now(UTC) - timedelta(days=1, minutes=1)
    archive.decide(Decision(GROUP, "x", yesterday, "xiaoman", None, "spoke", {"took_ms": {"look": 90_000}}))
    told = await chat.type("/twin")
    assert told is not None
    (decision,) = [d for d in archive.decisions(GROUP, 9) if d.outcome == "spoke" and d.message_id != "x"]
    assert told == await chat.type("/twin status")
    assert "这里开着，由「小满」（未训练的底模）回复；已运行 2.5 小时，收到看不懂的 3 条。" in told
    assert f"今天这里看了 2 次，说了 1 次，想出一句要 {sum(decision.why['took_ms'].values()) / 1000:.1f} 秒" in told
    assert f"现在还能发 {chat.stage.settings.chat.scene_per_minute - 1} 条" in told
    assert "话多话少 +0.0，安静时段 无，命令大家可用，下次夜训 11-22 04:00。" in told


async def test_status_tells_the_budget_of_the_account_that_is_asked(archive: Archive) -> None:
    chat = Chat(Stage(archive, account_per_minute=4))
    chat.stage.hear("在吗")
    await chat.stage.quiet()
    told = [await chat.type("/twin", account=account) for account in (ACCOUNT, "40002")]
    assert ["还能发 3 条" in str(told[0]), "还能发 4 条" in str(told[1])] == [True, True]


async def test_persona_info_tells_the_held_out_loss_of_what_a_night_trained(chat: Chat) -> None:
    version = Personas(SHIPPED, base.EMBEDDED_SHA256).load("xiaoman").version
    assert version is not None
    told = await chat.type("/persona info xiaoman")
    assert told is not None
    assert f"版本：{version.name}（共 1 个）" in told
    assert f"留出损失：{version.manifest.metrics['loss']['value']:.3f}" in told


async def test_why_says_all_that_is_asked_of_it(chat: Chat, archive: Archive) -> None:
    assert await chat.type("/why") == "这里还没有做过决定。"
    asked = chat.stage.hear("在吗", mentions=(ACCOUNT,))
    await chat.stage.quiet()
    (decision,) = archive.decisions(GROUP)
    archive.decide(replace(decision, version="20261101", why=decision.why | {"p_silent": 0.25}))
    told = await chat.type("/why")
    assert told is not None
    assert told == await chat.type("/why", quotes=asked.id)
    lines = told.split("\n")
    assert re.fullmatch(r"（\d\d-\d\d \d\d:\d\d:\d\d，xiaoman 20261101）：说了", lines[0])
    assert lines[1] == "不说话的概率：模型觉得 25%，按本人习惯和设置调整后 0%"
    assert lines[2] == f"抽签 {decision.why['draw']:.2f}，小于 1.00 才开口"
    assert "配置·偏置 +50.0，" in lines[3]
    assert "配置·被@ +2.0" in lines[3]
    took = decision.why["took_ms"]
    assert lines[4] == (
        f"读了 {decision.why['tokens']} 个 token；决定 {took['look']} 毫秒，想出第一句 {took['words']} 毫秒"
    )


@pytest.mark.parametrize("outcome", ["quiet", "budget", "muted", "paused", "offline", "stale", "held", "off", "busy"])
async def test_the_gate_that_stopped_it_is_said_in_words(chat: Chat, archive: Archive, outcome: str) -> None:
    archive.decide(Decision(GROUP, "m", datetime.now(UTC), "xiaoman", None, outcome))
    told = await chat.type("/why")
    assert told is not None
    assert "\n" not in told, "nobody looked, so there is no probability to tell"
    assert re.search(r"：[\u4e00-\u9fff]{2,}", told)
    assert not re.search(rf"{outcome}|底模", told)


@pytest.mark.parametrize("failure", list(SendFailure))
async def test_how_a_send_failed_is_said_in_words(chat: Chat, failure: SendFailure) -> None:
    chat.stage.wire.failures = [failure] * 2
    chat.stage.hear("在吗")
    await chat.stage.quiet()
    told = await chat.type("/why")
    assert "：想说，" in str(told)
    assert failure.value not in str(told) + str(chat.stage.told)


async def test_why_a_message_was_not_looked_at_is_told_by_what_was_set_then(chat: Chat) -> None:
    await chat.type("/twin off")
    unheard = chat.stage.hear("在吗")
    assert await chat.type("/why", quotes=unheard.id) == "那时这里关着，没有看这条消息。"
    assert await chat.type("/why") == "这里现在关着（/twin on 打开）。这里还没有做过决定。"
    await chat.type("/twin on")
    assert await chat.type("/why", quotes=unheard.id) == "那时这里关着，没有看这条消息。", "as it was then"
    chat.stage.hear("我自己来", sender=ACCOUNT)
    held = chat.stage.hear("好的", age_s=-1)
    assert await chat.type("/why", quotes=held.id) == "那时本人刚在这里说过话，没有看这条消息。"
    assert str(await chat.type("/why")).startswith("本人刚在这里说过话，先不插嘴。")
    assert await chat.type("/why", quotes="unknown") == "对这条消息没有做过决定。"


async def test_why_of_any_bubble_of_a_burst_is_the_bursts(chat: Chat) -> None:
    before = chat.stage.hear("昨天说的", age_s=4000, sender=OTHER)
    first, last = chat.stage.hear("在吗"), chat.stage.hear("出来玩")
    await chat.stage.quiet()
    told = {await chat.type("/why", quotes=m.id) for m in (first, last)}
    assert len(told) == 1
    assert "：说了" in told.pop()  # type: ignore[operator]
    assert "太久以前" in str(await chat.type("/why", quotes=before.id))


async def test_why_of_a_bubble_that_came_while_others_words_were_decided_is_its_own_bursts(chat: Chat) -> None:
    before = chat.stage.hear("昨天说的", age_s=30, sender=OTHER)
    first, last = chat.stage.hear("在吗", age_s=8), chat.stage.hear("出来玩", age_s=6)
    for of, outcome, ago_s, burst in ((before, "silent", 7, 1), (last, "spoke", 1, 2)):
        when = datetime.now(UTC) - timedelta(seconds=ago_s)
        chat.stage.archive.decide(Decision(GROUP, of.id, when, "xiaoman", None, outcome, {"burst": burst}))
    found = chat.stage.archive.decision_on(GROUP, first.id)
    assert found is not None
    assert (found.message_id, found.outcome) == (last.id, "spoke")


async def test_a_later_decision_is_not_taken_for_one_on_what_nobody_looked_at(chat: Chat) -> None:
    chat.stage.presence.switch(GROUP, False, datetime.now(UTC) - timedelta(seconds=200))
    unheard = chat.stage.hear("在吗", age_s=100)
    chat.stage.presence.switch(GROUP, True, datetime.now(UTC) - timedelta(seconds=50))
    later = chat.stage.hear("出来玩", sender=OTHER)
    await chat.stage.quiet()
    assert "：说了" in str(await chat.type("/why", quotes=later.id))
    assert await chat.type("/why", quotes=unheard.id) == "那时这里关着，没有看这条消息。"


async def test_speaking_first_is_explained_without_odds_that_were_never_asked(chat: Chat) -> None:
    chat.stage.presence.open(GROUP, ACCOUNT, "", "schedule")
    await chat.stage.quiet()
    told = str(await chat.type("/why"))
    assert "：说了（按计划先开口的）\n读了 " in told
    assert "抽签" not in told


async def test_commands_are_switched_off_for_others_where_it_is_typed_and_that_is_kept(archive: Archive) -> None:
    chat = Chat(Stage(archive, per_scene={str(GROUP): PerScene(commands=False)}))
    scenes = chat.stage.presence.scenes
    assert not scenes.commands(GROUP)
    assert await chat.type("/twin commands on") == "好，这里的命令大家都能用了。"
    assert scenes.commands(GROUP)
    assert await chat.type("/twin commands off") == "好，这里的命令只有主人能用了。"
    chat.stage.restart()
    assert not chat.stage.presence.scenes.commands(GROUP)
    assert "仅主人可用" in str(await chat.type("/twin"))
    assert "用法" in str(await chat.type("/twin commands maybe"))
    assert await chat.type("/twin commands on", sender=FRIEND) is None, "who is no admin changes nothing"


async def test_a_persona_is_switched_everywhere_by_the_owner_alone(chat: Chat, archive: Archive) -> None:
    elsewhere, scenes = Scene("group", "20002"), chat.stage.presence.scenes
    archive.note(elsewhere, "persona", "xiaoman", datetime.now(UTC))
    admin = Message("t", GROUP, FRIEND, "", datetime.now(UTC), "/persona switch 石头 全部")
    assert await chat.commands.run(admin, "admin", ACCOUNT) == "只有主人可以所有地方一起换。"
    assert scenes.persona(elsewhere) == "xiaoman"
    told = await chat.type("/persona switch 石头 全部")
    assert told == "好，所有地方现在都由「石头」（未训练）回复。"
    assert {scenes.persona(s) for s in (GROUP, elsewhere, Scene("private", FRIEND))} == {"shitou"}
    archive.note(elsewhere, "persona", "xiaoman", datetime.now(UTC) + timedelta(seconds=1))
    assert [scenes.persona(s) for s in (GROUP, elsewhere)] == ["shitou", "xiaoman"], "what is typed later goes first"
    assert "用法" in str(await chat.type("/persona switch 石头 明天"))


@pytest.mark.parametrize(("elsewhere", "trained", "told"), [
    (False, True, "用聊天记录训练的小模型，在主人自己的电脑上运行，数据不出本机。"),
    (False, False, "还没训练过的模型，在主人自己的电脑上运行，数据不出本机。"),
    (True, True, "用聊天记录训练的小模型，聊天内容会发到主人指定的服务器。"),
    (True, False, "还没训练过的模型，聊天内容会发到主人指定的服务器。"),
])  # fmt: skip
async def test_about_says_what_model_it_is_and_whether_words_leave_the_machine(
    archive: Archive, elsewhere: bool, trained: bool, told: str
) -> None:
    stage = Stage(archive)
    if elsewhere:
        remote = Engine(backend="remote", remote_url="http://192.168.1.5:8000/v1")
        stage.settings = stage.settings.model_copy(update={"engine": remote})
    if trained:
        version = Personas(SHIPPED, base.EMBEDDED_SHA256).load("xiaoman").version
        stage.persona = replace(stage.persona, version=version)
    said = await Chat(stage).type("/about", sender=OTHER)
    assert said is not None
    name = stage.persona.spec.display_name
    assert said.split("\n")[0] == f"我是「{name}」的数字分身（qqtwin），不是本人：{told}"


def test_every_outcome_has_its_words() -> None:
    """Each outcome that `Decision` names, and each failure."""
    texts: Any = plugged("chat.texts")
    doc = str(Decision.__doc__)
    named = re.findall(r"`([a-z ]+)`", doc[doc.index("outcome:") : doc.index("why:")])
    assert len(named) >= 17
    assert [o for o in (*named, *(f"failed: {f.value}" for f in SendFailure)) if o not in texts.OUTCOMES] == []
