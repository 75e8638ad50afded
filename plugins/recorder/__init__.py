"""Stores what is said: every message and recall goes into the archive before any other plugin sees it."""

from loguru import logger
from nonebot import get_bots, get_driver, on
from nonebot.adapters import Bot
from nonebot.adapters.onebot.v11.event import Event
from nonebot.exception import IgnoredException
from nonebot.message import event_preprocessor
from nonebot.plugin import PluginMetadata

from bot.events import MalformedEvent, Mute, Online, Recall, read
from bot.message import Message
from bot.onebot import TwinBot, raw_event
from plugins.recorder.backfilling import Backfilling
from plugins.recorder.catching import Catcher
from plugins.recorder.collecting import Collector
from plugins.recorder.describing import Describer
from plugins.recorder.recording import Recorder


def accounts() -> set[str]:
    """The connected accounts, by every number their clients say."""
    return {number for bot in get_bots().values() if isinstance(bot, TwinBot) for number in bot.numbers}


__plugin_meta__ = PluginMetadata("recorder", "Stores messages and recalls in the archive", "/corpus backfill")

recorder = Recorder(get_driver().config.twin, get_driver().config.outbox, accounts)
collector = Collector(get_driver().config.twin)
describer = Describer(get_driver().config.twin, get_driver().config.transport.transcribed)
backfilling = Backfilling(get_driver().config.twin)
backfilling.register()
catcher = Catcher(get_driver().config.twin)
get_driver().on_shutdown(backfilling.close)
get_driver().on_shutdown(catcher.close)
get_driver().on_shutdown(collector.close)
get_driver().on_shutdown(describer.close)
on("message_sent", priority=99)


@get_driver().on_bot_connect
async def catch_up(bot: Bot) -> None:
    """Ask for what was said while the client was away."""
    catcher.connected(bot.self_id)


@event_preprocessor
async def record(event: Event) -> None:
    """Store what the event tells of; a replay is stored once and answered at most once."""
    raw = raw_event(event)
    try:
        item = read(raw, recorder.name_of)
    except MalformedEvent as e:
        logger.warning("a {} event is malformed: {}", raw.get("post_type"), e)
        recorder.odd("malformed")
        raise IgnoredException("malformed") from e
    if isinstance(item, Recall):
        await recorder.recall(item)
    elif isinstance(item, Mute):
        recorder.mute(item)
    elif isinstance(item, Online):
        recorder.online(item)
    elif isinstance(item, Message):
        account = str(raw.get("self_id", ""))
        if not await recorder.message(item, account):
            raise IgnoredException("replayed")
        if recorder.is_out(item.sender_id):
            return
        collector.look(item, account)
        await describer.describe(item, account)
