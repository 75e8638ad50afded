"""/optout, /optin, /forgetme: what people wish of what is kept of them."""

from nonebot import get_driver
from nonebot.plugin import PluginMetadata

from bot.privacy import Privacy
from plugins.privacy import commands

__plugin_meta__ = PluginMetadata("privacy", "Learns nothing from whoever says so", "/optout /optin /forgetme")

privacy = Privacy(get_driver().config.twin)
commands.register(get_driver().config.twin, privacy)
get_driver().on_shutdown(privacy.close)
