"""The daemon as a child process, a client playing NapCat over a real websocket, nothing patched.

The base knows ten exchanges by heart (tests/lib/lessons.py), so answers are known words. Personas here have no
trained version: 小满 always speaks and 石头 never does, by their bias. Learned silence is test_loop.py's.
"""

import asyncio
import json
import signal
import time
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import lessons
import napcat
import pytest
import tinylora
from daemon import OWNER, Daemon, free_port, persona, settings
from napcat import ACCOUNT, NapCat
from websockets.exceptions import InvalidStatus

from bot import blind, corrections
from bot.archive import Decision
from bot.checksum import sha256
from bot.message import Message, Origin, Scene
from bot.persona import Base, Manifest, Personas

GROUP = 201


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[NapCat]:
    async with NapCat(daemon.url, daemon.token) as connected:
        yield connected


# -- who may speak --------------------------------------------------------------------------------


@pytest.mark.parametrize(("token", "how"), [("wrong-token-9", "Bearer"), (None, "Bearer"), ("wrong-token-9", "query")])
async def test_a_wrong_token_is_refused(daemon: Daemon, token: str | None, how: str) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        await NapCat(daemon.url, token, authorization=how).open()


@pytest.mark.parametrize("path", ["/onebot/v11/", "/onebot/v11/http", "/onebot/v11/http/"])
async def test_the_http_route_is_closed(daemon: Daemon, path: str) -> None:
    event = {"post_type": "message", "message_type": "private", "user_id": OWNER, "message_id": 1, "time": 1,
             "self_id": 1, "message": [napcat.text("/twin on")]}  # fmt: skip
    headers = {"X-Self-ID": ACCOUNT, "Authorization": f"Bearer {daemon.token}"}
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"http://127.0.0.1:{daemon.port}{path}", json=event, headers=headers)
    assert answer.status_code in (404, 405)
    assert daemon.stored(f"private:{OWNER}") == []


# -- turns ----------------------------------------------------------------------------------------


async def test_three_bubbles_get_one_answer(daemon: Daemon, client: NapCat) -> None:
    for bubble in ("睡了没", "喂", "理我一下"):
        await client.say(bubble, user=101)
        await asyncio.sleep(0.1)
    (answer,) = await client.expect(1)
    await client.quiet(1.5)
    assert answer.segments == [napcat.text("刚睡醒"), {"type": "face", "data": {"id": "14"}}]
    daemon.wait(lambda: daemon.outcomes("private:101")[-1:] == ["spoke"])
    assert daemon.outcomes("private:101").count("spoke") == 1


async def test_an_answer_of_two_lines_is_two_bubbles_in_order(daemon: Daemon, client: NapCat) -> None:
    await client.say("吃什么", group=GROUP)
    assert [b.text for b in await client.expect(2)] == ["吃面", "加个蛋"]
    await client.quiet(0.5)
    daemon.wait(lambda: len(daemon.stored(f"group:{GROUP}")) == 3)
    assert [m.origin for m in daemon.stored(f"group:{GROUP}")] == [Origin.HUMAN, Origin.TWIN, Origin.TWIN]


async def test_what_the_persona_ignores_gets_no_answer_and_why_says_so(daemon: Daemon, client: NapCat) -> None:
    await client.say("/persona switch 石头", user=OWNER, group=202)
    assert "石头" in (await client.expect(1))[0].text
    await client.say("在吗", group=202)
    await client.quiet(1.5)
    daemon.wait(lambda: daemon.outcomes("group:202") == ["silent"])
    why = await client.ask("/why", user=OWNER, group=202)
    assert "看到了，没说话" in why
    assert "配置·偏置 -30.0" in why


async def test_why_of_one_message_is_told_where_it_is_quoted(daemon: Daemon, client: NapCat) -> None:
    await client.say("/twin on", user=OWNER, group=292)
    await client.expect(1)
    asked = await client.say("在吗", group=292)
    (answer,) = await client.expect(1)
    daemon.wait(lambda: daemon.outcomes("group:292") == ["spoke"])
    await client.say("/twin quiet 00:00-00:00", user=OWNER, group=292)
    assert "00:00-00:00 不说话" in (await client.expect(1))[0].text
    unanswered = await client.say("晚安", group=292)
    daemon.wait(lambda: daemon.outcomes("group:292") == ["spoke", "quiet"])
    told = []
    for quoted in (asked, answer.id, unanswered):
        await client.say("/why", user=OWNER, group=292, quotes=quoted)
        told.append((await client.expect(1))[0].text)
    assert ["：说了\n" in text for text in told] == [True, True, False]
    assert "想说，但现在是安静时段" in told[2]
    assert "个 token；决定 " in told[0]
    status = await client.ask("/twin status", user=OWNER, group=292)
    assert "今天这里看了 2 次，说了 1 次" in status
    assert "安静时段 00:00-00:00" in status


@pytest.mark.parametrize("words", ["/twin bias nan", "/twin bias 21", "/twin quiet 25:00-26:00", "/twin what"])
async def test_a_command_typed_wrong_says_how(client: NapCat, words: str) -> None:
    assert "用法：/twin on|off|status" in await client.ask(words, user=OWNER, group=GROUP)


async def test_a_poke_is_heard_and_answered_like_words(daemon: Daemon, client: NapCat) -> None:
    await client.emit(
        post_type="notice", notice_type="notify", sub_type="poke", user_id=126, sender_id=126, target_id=int(ACCOUNT)
    )
    assert (await client.expect(1))[0].scene == "private:126"
    daemon.wait(lambda: [m.text for m in daemon.stored("private:126")][:1] == ["[戳一戳]"])


async def test_what_was_read_is_shown_once_where_the_client_cannot(daemon: Daemon) -> None:
    async with NapCat(daemon.url, daemon.token, account="3889000775") as client:
        for text, bubbles in (("在吗", 1), ("吃什么", 2)):
            await client.say(text, user=127)
            await client.expect(bubbles)
        daemon.wait(lambda: len(daemon.outcomes("private:127")) == 2)
    shown = [call["params"] for call in client.calls if call["action"] == "mark_msg_as_read"]
    assert len(shown) == 1, "a client without it is asked once"
    assert isinstance(shown[0]["message_id"], int)


async def test_two_accounts_in_a_group_store_a_message_once_and_do_not_talk_to_each_other(
    daemon: Daemon, client: NapCat
) -> None:
    other_account = "3889000776"
    async with NapCat(daemon.url, daemon.token, account=other_account) as other:
        await client.ask("/twin on", user=OWNER, group=296)
        await other.say("/twin on", user=OWNER, group=296, real_seq=client.events[max(client.events)]["real_seq"])
        asked = await client.say("在吗", user=101, group=296, real_seq="41", time=int(time.time()))
        daemon.wait(lambda: any(m.text == "在吗" for m in daemon.stored("group:296")))
        await other.say("在吗", user=101, group=296, real_seq="41", time=client.events[asked]["time"])
        (answer,) = await client.expect(1)
        await other.say(answer.text, user=int(ACCOUNT), name="小满", group=296, real_seq="42")
        await other.quiet(2.0)
    stored = [(m.text, m.origin) for m in daemon.stored("group:296") if m.origin is not Origin.SYSTEM]
    assert stored == [("在吗", Origin.HUMAN), (answer.text, Origin.TWIN)]


async def test_cq_code_in_the_models_text_is_not_said(client: NapCat) -> None:
    await client.say("叫大家", user=103)
    (answer,) = await client.expect(1)
    assert answer.segments == [napcat.text("来")]


async def test_a_quote_overtaken_by_its_successor_is_put_in_order(daemon: Daemon, client: NapCat) -> None:
    client.delays["get_msg"] = 5.0
    now = int(time.time())
    quoted = await client.say("晚安", user=OWNER, group=290, time=now)
    first = await client.say("看这条", user=OWNER, group=290, quotes=quoted, time=now, deliver=False)
    second = await client.say("第二句", user=OWNER, group=290, time=now)
    await client.deliver(first)
    daemon.wait(lambda: len(daemon.stored("group:290")) == 3)
    ids = [int(m.id) for m in daemon.stored("group:290")]
    assert ids == [quoted, first, second]
    assert daemon.stored("group:290")[1].reply_to == str(quoted)
    assert all(call["action"] != "get_msg" for call in client.calls)


async def test_an_answer_to_words_that_were_talked_over_quotes_them(daemon: Daemon, client: NapCat) -> None:
    await client.say("/twin on", user=OWNER, group=293)
    await client.expect(1)
    asked = await client.say([napcat.at(ACCOUNT), napcat.text("在吗")], group=293, user=141)
    await client.say("晚安", group=293, user=142)
    first = (await client.expect(1))[0]
    assert first.segments[0] == {"type": "reply", "data": {"id": str(asked)}}
    assert first.text
    daemon.wait(lambda: any(m.origin is Origin.TWIN and m.reply_to == str(asked) for m in daemon.stored("group:293")))


async def test_a_recall_before_the_answer_leaves_no_answer(daemon: Daemon, client: NapCat) -> None:
    message_id = await client.say("在吗", user=104)
    await client.recall(message_id)
    await client.quiet(1.5)
    assert daemon.stored("private:104") == []
    with daemon.archive() as archive:
        kept = archive.get(Scene("private", "104"), str(message_id))
    assert kept is not None
    assert (kept.recalled, kept.text, kept.segments) == (True, "", ())


async def test_a_recall_of_one_bubble_leaves_the_rest_answered(client: NapCat) -> None:
    slip = await client.say("吃什么", user=105)
    await client.say("在吗", user=105)
    await client.recall(slip)
    assert [b.text for b in await client.expect(1)] == ["在的"]
    await client.quiet(0.5)


async def test_a_message_sent_again_is_answered_once(daemon: Daemon, client: NapCat) -> None:
    message_id = await client.say("在吗", user=106)
    await client.expect(1)
    await client.deliver(message_id)
    await client.quiet(1.0)
    daemon.wait(lambda: len(daemon.stored("private:106")) == 2)


async def test_a_message_of_long_ago_is_kept_and_not_answered(daemon: Daemon, client: NapCat) -> None:
    await client.say("在吗", user=107, time=int(time.time()) - 3600)
    await client.quiet(1.0)
    daemon.wait(lambda: len(daemon.stored("private:107")) == 1)


# -- on, off, personas ----------------------------------------------------------------------------


async def test_a_scene_that_is_off_stays_quiet_until_switched_on(daemon: Daemon, client: NapCat) -> None:
    await client.say("在吗", group=291)
    await client.quiet(1.0)
    assert (len(daemon.stored("group:291")), daemon.outcomes("group:291")) == (1, [])
    await client.say("/twin on", user=10002, group=291)
    await client.quiet(0.5)
    assert "开" in await client.ask("/twin on", user=OWNER, group=291)
    assert await client.ask("在吗", group=291) == "在的"
    assert "关" in await client.ask("/twin off", user=10002, role="admin", group=291)
    await client.say("在吗", group=291)
    await client.quiet(1.0)
    with daemon.archive() as archive:
        assert [state for _, state in archive.timeline(Scene("group", "291"), "state")] == ["on", "off"]


async def test_persona_switch_changes_who_answers_here_alone(daemon: Daemon, client: NapCat) -> None:
    assert "小满" in await client.ask("/persona info", user=OWNER, group=203)
    assert "石头" in await client.ask("/persona switch shitou", user=OWNER, group=203)
    await client.say("在吗", group=203)
    await client.quiet(1.0)
    assert await client.ask("在吗", group=204) == "在的"
    assert "小满" in await client.ask("/persona switch 小满", user=OWNER, group=203)
    await asyncio.sleep(4)  # the burst must be over: another bubble would join it
    assert await client.ask("早", group=203) == "早呀"
    assert "做不到" in await client.ask("/persona switch 没这人", user=OWNER, group=203)
    commands = [m.text for m in daemon.stored("group:203") if m.text.startswith("/")]
    assert commands == []


# -- corrections ----------------------------------------------------------------------------------


async def test_the_owner_corrects_answers_where_they_stand(daemon: Daemon, client: NapCat) -> None:
    scene = Scene("group", "294")
    assert "开" in await client.ask("/twin on", user=OWNER, group=294)
    asked = await client.say("吃什么", group=294)
    first, second = await client.expect(2)
    daemon.wait(lambda: daemon.outcomes("group:294") == ["spoke"])
    # In groups QQ mentions whom it quotes, in front of what is typed.
    words = [napcat.at(ACCOUNT), napcat.text(" /不像 不吃\n减肥呢")]
    assert first.id is not None
    assert second.id is not None
    await client.say(words, user=10002, group=294, quotes=first.id)
    await client.quiet(0.5)
    await client.say(words, user=OWNER, group=294, quotes=second.id)
    assert "不该说「吃面 加个蛋」，该说「不吃 减肥呢」" in (await client.expect(1))[0].text
    with daemon.archive() as archive:
        (kept,) = corrections.current(archive, scene)
    assert (kept.on, kept.rejected, kept.wanted) == (str(asked), ("吃面", "加个蛋"), ("不吃", "减肥呢"))
    assert (kept.persona, kept.version, kept.by) == ("xiaoman", None, str(OWNER))
    command = await client.say("/该闭嘴", user=OWNER, group=294)
    assert "不该说" in (await client.expect(1))[0].text
    with daemon.archive() as archive:
        assert [c.wanted for c in corrections.current(archive, scene)] == [()]
    await client.recall(command)
    await client.quiet(0.5)
    with daemon.archive() as archive:
        assert corrections.current(archive, scene) == []
    assert [m.text for m in daemon.stored("group:294")] == ["吃什么", "吃面", "加个蛋"]


async def test_an_answer_taken_back_on_the_account_ends_there_and_does_not_stand_as_said(
    daemon: Daemon, client: NapCat
) -> None:
    client.delays["send_private_msg"] = 0.6
    await client.say("吃什么", user=129)
    (first,) = await client.expect(1)
    daemon.wait(lambda: len(daemon.stored("private:129")) == 2)
    await client.emit(post_type="notice", notice_type="friend_recall", user_id=int(ACCOUNT), message_id=first.id)
    daemon.wait(lambda: [m.text for m in daemon.stored("private:129")][:1] == ["吃什么"])
    daemon.wait(lambda: daemon.outcomes("private:129") == ["cut short"])
    with daemon.archive() as archive:
        (kept,) = corrections.current(archive, Scene("private", "129"))
    assert (kept.how, kept.rejected[0], kept.wanted) == (corrections.How.RECALLED, "吃面", None)
    assert "吃面" not in [m.text for m in daemon.stored("private:129")]


def versioned(daemon: Daemon, base: Path, *versions: str) -> Path:
    """小满 with versions that hardly change what the base says; gives her folder."""
    folder = daemon.data / "personas" / "xiaoman"
    persona(folder, lessons.NAME, [ACCOUNT], bias=30)
    for version in versions:
        publish(daemon, base, version)
    return folder


def publish(daemon: Daemon, base: Path, version: str) -> None:
    """Publish a version of 小满, as a night does: in another process than the daemon, which may be running."""
    made = daemon.folder / version
    made.mkdir()
    tinylora.write(made / "lora.gguf", base, strength=1e-3)
    manifest = Manifest(
        version=version, created="2026-12-01T00:00:00Z", format="gemma", system_prompt=f"你是{lessons.NAME}。",
        base=Base(file="b", sha256=sha256(base), architecture="gemma3"),
        files={"lora.gguf": sha256(made / "lora.gguf")},
    )  # fmt: skip
    (made / "manifest.json").write_text(manifest.model_dump_json(), "utf-8")
    Personas(daemon.data / "personas").publish("xiaoman", made)


async def test_answers_under_way_end_as_their_version_says_and_the_next_are_the_published_ones(
    learned_base: Path, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path, settings(learned_base))
    versioned(daemon, learned_base)
    words = ("吃面", "加个蛋")  # of both versions: tests/bot/test_serving.py tells two LoRAs apart

    async def answered(user: int) -> tuple[str | None, tuple[str, ...]]:
        """Which version answered a friend, and what."""
        scene = f"private:{user}"
        await asyncio.to_thread(daemon.wait, lambda: bool(daemon.outcomes(scene)), 20.0)
        with daemon.archive() as archive:
            (decision,) = archive.decisions(Scene.parse(scene))
        return decision.version, tuple(m.text for m in daemon.stored(scene) if m.origin is Origin.TWIN)

    with daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            publish(daemon, learned_base, "v1")
            client.delays["send_private_msg"] = 5.0
            under_way, next_ones = range(102, 105), range(105, 108)
            for user in under_way:
                await client.say("吃什么", user=user)
            async with asyncio.timeout(30):
                while not {*under_way} <= {call["params"].get("user_id") for call in client.calls}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            publish(daemon, learned_base, "v2")
            assert [daemon.outcomes(f"private:{user}") for user in under_way] == [[]] * len(under_way)
            client.delays.clear()
            for user in next_ones:
                await client.say("吃什么", user=user)
            assert [await answered(user) for user in under_way] == [("v1", words)] * len(under_way)
            assert [await answered(user) for user in next_ones] == [("v2", words)] * len(next_ones)
        daemon.end()


def test_a_stop_while_the_archive_is_read_in_a_thread_closes_it_all_the_same(
    learned_base: Path, tmp_path: Path
) -> None:
    retrain = {"enabled": False, "watch_every_s": 1.0, "watch_answers": 10}
    daemon = Daemon(tmp_path, settings(learned_base, retrain=retrain))
    versioned(daemon, learned_base, "v1")
    now, group = datetime.now(UTC), Scene("group", "20001")
    began = now - timedelta(days=400)
    with daemon.archive() as archive:
        who = (("101", "阿泽"), ("102", "桃桃"), (ACCOUNT, lessons.NAME))
        for day in range(200):
            times = [(i, began + timedelta(days=day, seconds=60 * i)) for i in range(1000)]
            archive.append([Message(f"{day}-{i}", group, *who[i % 3], time, "嗯嗯") for i, time in times], "a history")
        for i in range(60):
            archive.decide(Decision(group, f"0-{i}", now - timedelta(minutes=60 - i), "xiaoman", "v1", "silent"))
    with daemon:
        time.sleep(1.8)  # the look at v1 begins a second after the start, and reads for longer
        daemon.end()


async def test_the_owner_plays_the_blind_test_and_none_of_it_is_talk(learned_base: Path, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, settings(learned_base))
    folder = versioned(daemon, learned_base, "v1")
    trials = (
        blind.Trial(("阿泽：吃什么",), ("吃面\n加个蛋", "吃饭吧"), 0),
        blind.Trial(("阿泽：在吗",), ("嗯嗯", "在的"), 1),
        blind.Trial(("阿泽：早",), ("早呀", "早上"), 0),
    )  # fmt: skip
    with daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            assert "twin eval --blind --persona xiaoman" in await client.ask("/blind", user=OWNER)
            blind.save(daemon.data, blind.BlindTest("0123456789ab", "xiaoman", "v1", "2026-12-01", trials))
            assert "私聊我" in await client.ask("/blind", user=OWNER, group=GROUP)
            asked = await client.ask("/blind", user=OWNER)
            assert "第 1/3 题\n阿泽：吃什么" in asked
            assert "1）吃面\n加个蛋\n\n2）吃饭吧" in asked
            right = await client.ask("1", user=OWNER)
            assert right.startswith("对。\n第 2/3 题")
            assert (await client.ask("1", user=OWNER)).startswith("错，那是分身。\n第 3/3 题")
            stopped = await client.ask("0", user=OWNER)
            assert "猜对 1/2，50%（95% 区间 9% 到 91%）" in stopped
            assert "第 3/3 题" in await client.ask("/blind", user=OWNER), "it goes on where it was stopped"
            assert "题做完了。猜对 2/3" in await client.ask("1", user=OWNER)
            assert daemon.stored(f"private:{OWNER}") == [], "none of it is talk"
            await client.say("1", user=OWNER)
            daemon.wait(lambda: [m.text for m in daemon.stored(f"private:{OWNER}")][:1] == ["1"])
        (kept,) = json.loads((folder / "versions" / "v1" / "blind.json").read_text("utf-8"))
        assert (kept["right"], kept["n"]) == (2, 3)
        daemon.end()


async def test_a_version_that_the_owner_keeps_correcting_goes_back_by_itself(
    learned_base: Path, tmp_path: Path
) -> None:
    retrain = {"enabled": False, "watch_every_s": 1.0}
    daemon = Daemon(tmp_path, settings(learned_base, retrain=retrain))
    folder = versioned(daemon, learned_base, "v1", "v2")
    with daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            for user in range(101, 105):
                await client.say("在吗", user=user)
                (answer,) = await client.expect(1)
                daemon.wait(lambda user=user: daemon.outcomes(f"private:{user}") == ["spoke"])
                assert answer.id is not None
                await client.say_myself([napcat.reply(answer.id), napcat.text("/该闭嘴")], to=user)
                assert "不该说" in (await client.expect(1))[0].text
            (told,) = await client.expect(1)
        assert told.scene == f"private:{OWNER}"
        assert "新版本 v2 我撤下来了，换回了 v1" in told.text
        assert "次回答被纠正了" in told.text
        assert (folder / "current").read_text("utf-8") == "v1\n"
        async with NapCat(daemon.url, daemon.token) as client:
            await client.say("早", user=107)
            await client.expect(1)
            daemon.wait(lambda: daemon.outcomes("private:107") == ["spoke"])
            with daemon.archive() as archive:
                assert archive.decisions(Scene("private", "107"))[0].version == "v1"
            await client.quiet(2.5)
        daemon.end()


# -- the person's own account ---------------------------------------------------------------------


@pytest.mark.parametrize(("when", "user"), [("before", 108), ("after", 109)])
async def test_the_echo_of_our_own_bubble_is_not_the_persons(
    daemon: Daemon, client: NapCat, when: str, user: int
) -> None:
    client.reports_own = when
    assert await client.ask("在吗", user=user) == "在的"
    await client.say("早", user=user)
    assert (await client.expect(1))[0].text == "早呀"

    def ours() -> list[Origin]:
        return [m.origin for m in daemon.stored(f"private:{user}") if m.sender_id == ACCOUNT]

    daemon.wait(lambda: len(ours()) == 2)
    await client.quiet(0.5)
    assert ours() == [Origin.TWIN, Origin.TWIN]
    with daemon.archive() as archive:
        assert "held" not in [state for _, state in archive.timeline(Scene("private", str(user)), "state")]


@pytest.mark.parametrize(("when", "group"), [("before", 205), ("after", 206)])
async def test_the_echo_of_a_commands_answer_is_nobodys_words(
    daemon: Daemon, client: NapCat, when: str, group: int
) -> None:
    client.reports_own = when
    assert "数字分身" in await client.ask("/about", group=group)
    await asyncio.sleep(0.3)
    assert daemon.stored(f"group:{group}") == []
    assert await client.ask("在吗", group=group) == "在的"


async def test_the_persons_own_message_holds_the_twin(daemon: Daemon, client: NapCat) -> None:
    await client.say("吃什么", user=110)
    await client.say_myself("我在外面", to=110)
    await client.quiet(1.0)
    await client.say("在吗", user=110)
    await client.quiet(0.9)
    await asyncio.sleep(3.5)
    assert await client.ask("早", user=110) == "早呀"
    daemon.wait(lambda: daemon.stored("private:110")[-1].text == "早呀")
    own = [m for m in daemon.stored("private:110") if m.sender_id == ACCOUNT]
    assert [(m.text, m.origin) for m in own] == [("我在外面", Origin.HUMAN), ("早呀", Origin.TWIN)]
    with daemon.archive() as archive:
        assert [s for _, s in archive.timeline(Scene("private", "110"), "state")] == ["default", "held", "default"]


@pytest.mark.parametrize(("when", "user"), [("before", 116), ("after", 117), (None, 118)])
async def test_words_between_two_bubbles_are_answered_whatever_is_echoed(
    daemon: Daemon, client: NapCat, when: str | None, user: int
) -> None:
    client.reports_own = when
    client.delays["send_private_msg"] = 1.2
    await client.say("吃什么", user=user)
    await daemon_sends(client, 1)
    await client.say("早", user=user)
    assert [b.text for b in await client.expect(3)] == ["吃面", "加个蛋", "早呀"]
    told = ["吃什么", "吃面", "加个蛋", "早", "早呀"]
    daemon.wait(lambda: [m.text for m in daemon.stored(f"private:{user}")] == told)


async def daemon_sends(client: NapCat, n: int) -> None:
    async with asyncio.timeout(10):
        while sum(call["action"].startswith("send_") for call in client.calls) < n:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- what goes wrong ------------------------------------------------------------------------------


async def test_a_refused_bubble_is_sent_once_more(client: NapCat) -> None:
    client.failures["send_private_msg"] = deque([napcat.REFUSED])
    await client.say("在吗", user=111)
    refused, sent = await client.expect(2)
    assert (refused.id, refused.text, sent.text) == (None, "在的", "在的")
    await client.quiet(0.5)


async def test_a_bubble_that_was_not_confirmed_is_never_repeated_and_the_owner_is_told(
    daemon: Daemon, client: NapCat
) -> None:
    client.failures["send_group_msg"] = deque([napcat.SHADOWED])
    client.reports_own = "after"
    await client.say("吃什么", group=207)
    lost, told = await client.expect(2)
    assert (lost.id, lost.text) == (None, "吃面")
    assert told.scene == f"private:{OWNER}"
    assert "没发出去（QQ 收下了却没有确认）" in told.text
    await client.quiet(1.0)
    daemon.wait(lambda: daemon.outcomes("group:207") == ["failed: shadowed"])
    assert [m.text for m in daemon.stored(told.scene) if "没发出去" in m.text] == []
    with daemon.archive() as archive:
        kept = archive.get(Scene.parse(told.scene), str(told.id))
    assert kept is not None
    assert (kept.origin, kept.text) == (Origin.SYSTEM, told.text), "else an import would take it for the person's words"


async def test_a_group_that_mutes_the_account_gets_nothing_until_it_lifts_it(daemon: Daemon, client: NapCat) -> None:
    ban = {"post_type": "notice", "notice_type": "group_ban", "group_id": 208, "user_id": int(ACCOUNT),
           "operator_id": 10002}  # fmt: skip
    await client.emit(**ban, sub_type="ban", duration=600)
    await client.say("在吗", group=208)
    await client.quiet(1.5)
    daemon.wait(lambda: daemon.outcomes("group:208") == ["muted"])
    tried = len(client.bubbles)
    await client.say("/why", user=OWNER, group=208)
    await client.quiet(1.5)
    assert len(client.bubbles) == tried, "not even the owner is answered there"
    await client.emit(valid=False, **ban, sub_type="lift_ban", duration=0)  # the schema knows only its `ban`
    assert await client.ask("早", group=208) == "早呀"


async def test_a_command_of_long_ago_is_not_obeyed(daemon: Daemon, client: NapCat) -> None:
    await client.say("/twin off", user=OWNER, group=209, time=int(time.time()) - 400)
    await client.quiet(0.5)
    assert await client.ask("在吗", group=209) == "在的"


def test_a_second_daemon_on_the_port_says_so_in_one_line(daemon: Daemon) -> None:
    second = daemon.run("run")
    assert second.returncode == 1
    (line,) = [x for x in second.stderr.splitlines() if x.startswith("twin: ")]
    assert f"127.0.0.1:{daemon.port} cannot be listened on" in line
    assert "[onebot] port" in line


async def test_corpus_backfill_reads_what_the_client_still_knows_and_tells_the_owner(
    daemon: Daemon, client: NapCat
) -> None:
    event = {
        "self_id": int(ACCOUNT), "user_id": 10002, "message_type": "group", "group_id": 301,
        "sender": {"user_id": 10002, "nickname": "阿泽"},
    }  # fmt: skip
    client.history["group:301"] = [
        event | {"time": 1_700_000_000 + n, "message_id": 5000 + n, "message": [napcat.text(f"旧话{n}")]}
        for n in range(60)
    ]
    client.history["group:301"] += [
        event | {"time": 1_700_000_100, "message_id": 5100, "message": []},
        event | {"time": 1_700_000_101, "message_id": 5101, "message": []},
        event | {"time": None, "message_id": 5102, "message": [napcat.text("没有时间")]},
    ]
    assert await client.ask("/corpus backfill status", user=OWNER, group=301) == "现在没有在补。"
    await client.say("/corpus backfill", user=10002, group=301)
    await client.quiet(0.5)
    assert (await client.ask("/corpus backfill", user=OWNER, group=301)).startswith("开始补")
    (report,) = await client.expect(1, within_s=15)
    assert report.scene == f"private:{OWNER}"
    told = "group:301 的旧记录补完了：翻了 2 页，62 条里新的 60 条，到 2023-11-15"
    assert f"{told}；没收进来：空消息 2 条、读不懂的（field 'time' is not unix seconds） 1 条。" in report.text
    assert [m.text for m in daemon.stored("group:301") if m.text.startswith("旧话")] == [f"旧话{n}" for n in range(60)]


async def test_a_malformed_event_stops_nothing(daemon: Daemon, client: NapCat) -> None:
    await client.raw("{")
    await client.emit(valid=False, post_type="message", message_type="private", user_id=990, message="在吗")
    await client.emit(valid=False, post_type="message", message_type="private", user_id=990, message_id=5, message=[7])
    await client.emit(valid=False, post_type="notice", notice_type="group_recall", group_id=201)
    assert await client.ask("在吗", user=113) == "在的"
    assert "malformed" in daemon.log()


async def test_after_a_cut_connection_the_next_one_is_answered(daemon: Daemon) -> None:
    async with NapCat(daemon.url, daemon.token) as first:
        message_id = await first.say("在吗", user=114)
        await first.expect(1)
        await first.drop()
    async with NapCat(daemon.url, daemon.token, events=first.events) as back:
        await back.deliver(message_id)
        await back.quiet(1.0)
        assert await back.ask("早", user=114) == "早呀"


async def test_a_client_that_names_another_number_in_its_frames_is_answered(daemon: Daemon, client: NapCat) -> None:
    await client.say("在吗", user=119, self_id=3889000999)
    assert [b.text for b in await client.expect(1)] == ["在的"]
    daemon.wait(lambda: daemon.outcomes("private:119") == ["spoke"])


async def test_a_onebot_server_is_connected_to_with_the_token_and_again_when_it_has_gone(
    learned_base: Path, tmp_path: Path
) -> None:
    port, token = free_port(), "forward-token-77"
    onebot = {"superusers": [str(OWNER)], "ws_urls": [f"ws://127.0.0.1:{port}/"], "access_token": token}
    daemon = Daemon(tmp_path, settings(learned_base, onebot=onebot))
    persona(daemon.data / "personas" / "xiaoman", lessons.NAME, [ACCOUNT], bias=30)
    server = NapCat("", token)
    with daemon:
        for number, (words, answer) in enumerate((("在吗", "在的"), ("早", "早呀"))):
            async with server.serving(port):
                async with asyncio.timeout(20):
                    while server.connected == number:  # noqa: ASYNC110 - a connection has no event
                        await asyncio.sleep(0.02)
                assert await server.ask(words, user=101) == answer
            await asyncio.sleep(2.5)  # the burst must be over
        daemon.end()


async def test_a_onebot_server_that_never_says_lifecycle_is_answered_from_its_first_event(tmp_path: Path) -> None:
    port, token = free_port(), "forward-token-77"
    onebot = {"superusers": [str(OWNER)], "ws_urls": [f"ws://127.0.0.1:{port}/"], "access_token": token}
    daemon = Daemon(tmp_path, settings(tmp_path / "none.gguf", onebot=onebot))
    persona(daemon.data / "personas" / "xiaoman", lessons.NAME, [ACCOUNT])
    server = NapCat("", token)
    with daemon:
        async with server.serving(port, greets=False):
            async with asyncio.timeout(20):
                while not server.connected:  # noqa: ASYNC110 - a connection has no event
                    await asyncio.sleep(0.02)
            await server.say("/about", user=101)
            while (said := (await server.expect(1, within_s=20))[0]).scene != "private:101":
                pass  # the owner is told that there is no base
            assert "数字分身" in said.text
        daemon.end()


async def test_a_killed_daemon_forgets_nothing_and_answers_nothing_twice(learned_base: Path, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, settings(learned_base))
    persona(daemon.data / "personas" / "xiaoman", lessons.NAME, [ACCOUNT], bias=30)
    with daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            answered = await client.say("在吗", user=101)
            await client.expect(1)
            unanswered = await client.say("早", user=101)
            daemon.wait(lambda: len(daemon.stored("private:101")) == 3)
            daemon.stop(signal.SIGKILL)
        daemon.start()
        async with NapCat(daemon.url, daemon.token, events=client.events) as back:
            await back.deliver(answered)
            await back.deliver(unanswered)
            await back.quiet(1.0)
            await asyncio.sleep(2.5)  # the burst must be over: another bubble would join it
            assert await back.ask("晚安", user=101) == "晚安，明天见"
        told = ["在吗", "在的", "早", "晚安", "晚安，明天见"]
        daemon.wait(lambda: [m.text for m in daemon.stored("private:101")] == told)
        daemon.end()


async def test_no_words_and_no_token_are_ever_logged(daemon: Daemon, client: NapCat) -> None:
    await client.say("悄悄话七七八八", user=115, name="张三丰")
    await client.expect(1)
    with pytest.raises(InvalidStatus):
        await NapCat(daemon.url, "wrong-token-9", authorization="query").open()
    log = daemon.log()
    assert len(log.splitlines()) > 5
    said = {"悄悄话七七八八", "张三丰", "wrong-token-9", daemon.token}
    with daemon.archive() as archive:
        for scene in archive.scenes():
            said |= {m.text for m in archive.history(scene.scene) if len(m.text) > 1}
    assert len(said) > 5
    assert [words for words in said if words in log] == []
