"""/persona list | switch | info | rollback."""

from nonebot import get_driver
from nonebot.plugin import PluginMetadata

from plugins.persona import commands

__plugin_meta__ = PluginMetadata("persona", "Shows and switches personas", "/persona list|switch|info|rollback")

commands.register(get_driver().config.twin)
