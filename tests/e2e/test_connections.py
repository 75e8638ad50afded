"""A real daemon and the connections of its accounts: lost and found again, several at once, in either direction.

There is no base: a look that fails leaves a decision, so that what was looked at can be told.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import napcat
from daemon import OWNER, Daemon, free_port, persona, settings
from napcat import ACCOUNT, NapCat

GROUP = 201


def history(n: int, ago_s: float) -> dict[str, Any]:
    """A message as the client's history tells it."""
    return {
        "self_id": int(ACCOUNT), "user_id": 101, "time": int(time.time() - ago_s), "message_id": 5000 + n,
        "real_seq": str(70 + n), "message_type": "group", "group_id": GROUP, "message": [napcat.text(f"断线时{n}")],
        "sender": {"user_id": 101, "nickname": "阿泽"},
    }  # fmt: skip


async def test_what_was_said_during_an_outage_is_recorded_and_not_answered(tmp_path: Path) -> None:
    daemon, scene = Daemon(tmp_path, settings(tmp_path / "none.gguf")), f"group:{GROUP}"
    persona(daemon.data / "personas" / "xiaoman", "小满", [ACCOUNT])
    with daemon:
        async with NapCat(daemon.url, daemon.token) as client:
            await client.say("在吗", user=101, group=GROUP, time=int(time.time()) - 60)
            await asyncio.to_thread(daemon.wait, lambda: len(daemon.outcomes(scene)) == 1, 60.0)
            await client.drop()
        missed = {scene: [history(n, 30 - n) for n in range(3)]}
        async with NapCat(daemon.url, daemon.token, events=client.events, history=missed) as back:
            await asyncio.to_thread(daemon.wait, lambda: len(daemon.stored(scene)) == 4, 60.0)
            assert [m.text for m in daemon.stored(scene)] == ["在吗", "断线时0", "断线时1", "断线时2"]
            await back.quiet(1.0)
            assert len(daemon.outcomes(scene)) == 1, "nothing of it was looked at"
            await back.say("现在呢", user=101, group=GROUP)
            await asyncio.to_thread(daemon.wait, lambda: len(daemon.outcomes(scene)) == 2, 60.0)
        daemon.end()


async def test_several_accounts_are_served_at_once_in_either_direction(tmp_path: Path) -> None:
    ports, token = (free_port(), free_port()), "forward-token-77"
    onebot = {"superusers": [str(OWNER)], "ws_urls": [f"ws://127.0.0.1:{p}/" for p in ports], "access_token": token}
    daemon = Daemon(tmp_path, settings(tmp_path / "none.gguf", onebot=onebot))
    persona(daemon.data / "personas" / "xiaoman", "小满", [ACCOUNT])
    first, second = (NapCat("", token, account=f"388900078{n}") for n in range(2))
    with daemon:
        async with (
            first.serving(ports[0]), second.serving(ports[1]),
            NapCat(daemon.url, token, account="3889000782") as third,
        ):  # fmt: skip
            async with asyncio.timeout(60):
                while not (first.connected and second.connected):  # noqa: ASYNC110 - a connection has no event
                    await asyncio.sleep(0.05)
            await first.say("字" * 400_000, user=101, group=999)  # more than websockets takes unless it is told
            await asyncio.to_thread(daemon.wait, lambda: len(daemon.stored("group:999")) == 1, 60.0)
            assert first.connected == 1
            for number, client in enumerate((first, second, third)):
                await client.say("/about", user=101 + number)
                while (said := (await client.expect(1, within_s=60))[0]).scene != f"private:{101 + number}":
                    pass  # the owner is told that there is no base
                assert "数字分身" in said.text
                assert {b.scene for b in client.bubbles} <= {f"private:{OWNER}", f"private:{101 + number}"}
        daemon.end()
