"""plugins/recorder/describing.py: whose voice messages are put into words."""

from types import SimpleNamespace
from typing import Any

from chats import ACCOUNT, GROUP
from plugged import plugged
from stage import Stage

from bot.message import Scene

ELSEWHERE = Scene("group", "20002")


async def test_voice_is_put_into_words_only_where_the_twin_is_on(stage: Stage) -> None:
    asked: list[tuple[str, str]] = []

    async def transcribed(account: str, message_id: str) -> str:
        asked.append((account, message_id))
        return "到哪了"

    twin = SimpleNamespace(settings=stage.settings, archive=stage.archive, presence=stage.presence)
    describer: Any = plugged("recorder.describing").Describer(twin, transcribed)
    here, there = (stage.hear("[语音]", scene=scene) for scene in (GROUP, ELSEWHERE))
    for voice in (here, there):
        await describer.describe(voice, ACCOUNT)
    assert asked == [(ACCOUNT, here.id)]
    assert [stage.archive.window(scene, 1)[0].text for scene in (GROUP, ELSEWHERE)] == ["[语音]到哪了", "[语音]"]
    await describer.close()
    await stage.presence.close()
