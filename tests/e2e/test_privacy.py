"""/optout, /optin and /forgetme over a real websocket: not answered, not recorded, and gone from the files."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import napcat
import pytest
from daemon import OWNER, Daemon, persona, settings
from napcat import ACCOUNT, NapCat

from bot.message import Scene
from bot.optouts import Why

ON, SILENT, OFF = 203, 204, 301
"""Groups in which the twin answers, in which it never wants to, and in which it is off."""
SHE, HE = 880011223, 880044556
SECRET, NAME = "蓝鲸暗号只有我知道", "林小夏"


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[NapCat]:
    async with NapCat(daemon.url, daemon.token) as connected:
        yield connected


def spelled(words: str) -> list[bytes]:
    """A text as it may lie in a file: as it is, and as JSON writes it."""
    return [words.encode(), json.dumps(words)[1:-1].encode()]


def lies_in(daemon: Daemon, *words: str) -> list[str]:
    """The files of the installation in which one of these stands."""
    files = [p for p in daemon.folder.rglob("*") if p.is_file()]
    return [p.name for p in files if any(s in p.read_bytes() for w in words for s in spelled(w))]


async def say(client: NapCat, words: str, user: int = SHE, group: int | None = ON) -> int:
    return await client.say(words, user=user, name=NAME if user == SHE else "阿泽", group=group)


async def told(client: NapCat, words: str, marker: str, user: int = SHE, group: int | None = ON) -> str:
    """Say something, and give the answer that holds a marker, whatever else is said meanwhile."""
    before, deadline = len(client.bubbles), time.monotonic() + 30
    await say(client, words, user, group)
    while time.monotonic() < deadline:
        for bubble in client.bubbles[before:]:
            if marker in bubble.text:
                return bubble.text
        await asyncio.sleep(0.02)
    raise AssertionError(f"no answer with {marker!r}: {[b.text for b in client.bubbles[before:]]}")


async def decided(daemon: Daemon, n: int) -> None:
    """Until the twin has decided so often in the group where it answers."""
    await asyncio.to_thread(daemon.wait, lambda: len(daemon.outcomes(f"group:{ON}")) >= n, 20.0)
    assert daemon.outcomes(f"group:{ON}") == ["spoke"] * n


async def ignored(daemon: Daemon, client: NapCat, for_s: float = 1.5) -> None:
    """AssertionError if anything is said or decided in this time."""
    before = len(client.bubbles), daemon.outcomes(f"group:{ON}"), daemon.outcomes(f"group:{SILENT}")
    await asyncio.sleep(for_s)
    assert (len(client.bubbles), daemon.outcomes(f"group:{ON}"), daemon.outcomes(f"group:{SILENT}")) == before


async def test_whoever_opts_out_is_neither_answered_nor_recorded_until_they_opt_in(
    daemon: Daemon, client: NapCat
) -> None:
    await say(client, "晚安")
    await decided(daemon, 1)
    answer = await told(client, "/optout", "不记、不看、不学，也不回")
    assert "/forgetme" in answer
    await told(client, "/optout", "本来就没在记")
    await say(client, "在吗")
    await say(client, SECRET)
    await say(client, SECRET, group=None)
    await ignored(daemon, client)
    seen = [m.text for m in daemon.stored(f"group:{ON}")]
    assert "晚安" not in seen, "what was said before is not looked at, either"
    await say(client, "早", HE)
    await decided(daemon, 2)
    await client.close()
    daemon.end()
    daemon.start()
    await client.open()
    await say(client, SECRET)
    await ignored(daemon, client)
    assert lies_in(daemon, SECRET) == []
    await told(client, "/optin", "又会被记下")
    await say(client, "在吗")
    await decided(daemon, 3)
    said = [m.text for m in daemon.stored(f"group:{ON}") if m.sender_id == str(SHE)]
    assert said == ["晚安", "在吗"]


async def test_the_owner_may_for_a_number_and_nobody_against_somebody(daemon: Daemon, client: NapCat) -> None:
    await told(client, f"/optout {HE}", "只能替自己决定")
    await told(client, "/persona switch 石头", "石头", OWNER, SILENT)
    await say(client, "早", group=SILENT)
    await asyncio.to_thread(daemon.wait, lambda: daemon.outcomes(f"group:{SILENT}") == ["silent"], 20.0)
    await told(client, f"/optout {HE}", "这个号在任何群和私聊里", OWNER)
    await say(client, "早", HE)
    await say(client, "早", HE, SILENT)
    await ignored(daemon, client)  # nor are older words of others decided on anew
    await told(client, f"/optin {HE}", "这个号说的话又会被记下", OWNER)
    await told(client, "/optout", "你在任何群和私聊里", HE)
    await told(client, f"/optin {HE}", "只有本人能", OWNER)
    await told(client, "/optin", "你说的话又会被记下", HE)


async def test_whom_the_twin_imitates_is_told_what_it_means_and_still_holds_the_twin(
    daemon: Daemon, client: NapCat
) -> None:
    await told(client, f"/optout {ACCOUNT}", "我模仿的就是这个号", OWNER)
    await client.say_myself("我自己说的", group=ON)
    await asyncio.sleep(0.3)
    await say(client, "在吗", HE)
    await ignored(daemon, client)
    assert "我自己说的" not in [m.text for m in daemon.stored(f"group:{ON}")]
    await told(client, f"/optin {ACCOUNT}", "又会被记下", OWNER)


async def test_whoever_asks_to_be_forgotten_is(daemon: Daemon, client: NapCat) -> None:
    asked = await say(client, SECRET, group=OFF)
    await say(client, f"{SECRET}私下", group=None)
    at_her = {"type": "at", "data": {"qq": str(SHE), "name": NAME}}
    await client.say([at_her, napcat.text(" 你好")], user=HE, group=OFF, quotes=asked)
    await asyncio.to_thread(daemon.wait, lambda: len(daemon.stored(f"group:{OFF}")) == 2)
    assert all(lies_in(daemon, words) for words in (SECRET, NAME, str(SHE)))
    question = await told(client, "/forgetme", "删了找不回来", group=OFF)
    assert "删不掉的：已经训练好的模型" in question
    await told(client, "取消", "什么都没删", group=OFF)
    assert lies_in(daemon, SECRET)
    await told(client, "/forgetme", "删了找不回来", group=OFF)
    answer = await told(client, "确认", "忘掉了：", group=OFF)
    assert "数据库文件已重写" in answer
    owners = next(b for b in client.bubbles if "有人用了 /forgetme" in b.text)
    assert owners.scene == f"private:{OWNER}"
    assert str(SHE) not in owners.text + answer
    assert lies_in(daemon, SECRET, NAME, str(SHE)) == []
    assert "@某人 你好" in [m.text for m in daemon.stored(f"group:{OFF}")]

    # What they say later leaves a row that says neither who nor what, in private none.
    await say(client, f"{SECRET}以后", group=OFF)
    await say(client, f"{SECRET}以后", group=None)
    await client.say([napcat.at(SHE), napcat.text(" 又提到她")], user=HE, group=OFF)
    await told(client, "/optout", "本来就没在记", group=None)
    assert "@某人 又提到她" in [m.text for m in daemon.stored(f"group:{OFF}")]
    assert lies_in(daemon, SECRET, NAME, str(SHE)) == []

    # An old history does not bring them back.
    line = {
        "post_type": "message", "message_type": "group", "group_id": OFF, "self_id": int(ACCOUNT), "time": 1700000000,
        "message": [napcat.text(SECRET)], "sender": {"nickname": NAME},
    }  # fmt: skip
    file = daemon.folder.parent / f"history-{daemon.port}.jsonl"
    people = ((1, SHE), (2, HE))
    file.write_text("".join(json.dumps(line | {"message_id": n, "user_id": who}) + "\n" for n, who in people), "utf-8")
    done = await asyncio.to_thread(daemon.run, "import", str(file))
    assert "left out 1: by somebody, or in a private chat with somebody, who asked to be forgotten" in done.stdout
    with daemon.archive() as archive:
        old = archive.history(Scene("group", str(OFF)), recalled=True)[:2]
        assert [(m.sender_id, m.text) for m in old] == [("", ""), (str(HE), SECRET)]
        assert archive.optouts.why(str(SHE)) is Why.FORGOTTEN
    assert lies_in(daemon, str(SHE)) == []

    # By hand, for whoever has no chat with the twin.
    done = await asyncio.to_thread(daemon.run, "forget", str(HE), "--yes", "--json")
    shown = json.loads(done.stdout)
    assert shown["messages"] >= 2
    assert shown["left"]["versions"] == []
    assert lies_in(daemon, SECRET, str(HE)) == []


GIF = b"GIF89a" + b"x" * 500
MD5 = hashlib.md5(GIF, usedforsecurity=False).hexdigest().upper()
VOICE = [{"type": "record", "data": {"file": "a.amr", "path": "/tmp/a.amr", "file_size": "9"}}]


async def test_what_somebody_out_sends_is_neither_fetched_nor_put_into_words(tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    on = {"scenes": [f"group:{OFF}"]}  # where the twin is off no voice is put into words
    found = Daemon(tmp_path / "twin", settings(tmp_path / "none.gguf", stickers={"enabled": True}, chat=on))
    persona(found.data / "personas" / "xiaoman", "小满", [ACCOUNT])
    (tmp_path / "cache.gif").write_bytes(GIF)
    plain = napcat.image(sub_type=1)
    sticker = {**plain, "data": plain["data"] | {"file": f"{MD5}.gif"}}
    with found as daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            client.images[f"{MD5}.gif"] = str(tmp_path / "cache.gif")

            def asked() -> set[str]:
                return {c["action"] for c in client.calls} & {"get_image", "fetch_ptt_text"}

            await told(client, "/optout", "不记、不看", group=OFF)
            await told(client, f"/optout {ACCOUNT}", "不记、不看", OWNER, OFF)
            await client.say(VOICE, user=SHE, group=OFF)
            await client.say_myself([sticker], group=OFF)
            await asyncio.sleep(1.5)
            assert asked() == set()
            await told(client, "/optin", "又会被记下", group=OFF)
            await told(client, f"/optin {ACCOUNT}", "又会被记下", OWNER, OFF)
            await client.say(VOICE, user=SHE, group=OFF)
            await client.say_myself([sticker], group=OFF)
            await asyncio.to_thread(daemon.wait, lambda: (daemon.data / "stickers" / "index.json").exists())
            assert asked() == {"get_image", "fetch_ptt_text"}
        daemon.end()
