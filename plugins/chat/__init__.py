"""Answers: the one message matcher of the bot. Commands are dispatched, everything else goes to the scene's task."""

from nonebot import get_bots, get_driver, on
from nonebot.adapters.onebot.v11.event import Event
from nonebot.plugin import PluginMetadata

from bot.onebot import raw_event
from plugins.chat import commands, correcting, guessing
from plugins.chat.listening import Listener
from plugins.chat.opening import Opener

__plugin_meta__ = PluginMetadata(
    "chat", "Answers as the persona would", "/twin on|off|status /why /memory /about /不像 /该闭嘴 /blind"
)

listener = Listener(get_driver().config.twin, get_driver().config.transport)
commands.register(get_driver().config.twin)
correcting.register(get_driver().config.twin)
guessing.register(get_driver().config.twin)
opener = Opener(get_driver().config.twin, get_bots)
get_driver().on_startup(opener.start)
get_driver().on_shutdown(opener.stop)
heard = on("message", priority=10, block=False)
sent = on("message_sent", priority=10, block=False)
poked = on("notice", rule=lambda event: getattr(event, "sub_type", "") == "poke", priority=10, block=False)


@heard.handle()
@sent.handle()
@poked.handle()
async def hear(event: Event) -> None:
    """Hand the message over and return: the answer is made in the scene's own task."""
    await listener.hear(raw_event(event))
