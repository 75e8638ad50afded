"""The twin as an API: any OpenAI client talks to it on the daemon's own port; off unless `[api] enabled`."""

from loguru import logger
from nonebot import get_app, get_driver
from nonebot.plugin import PluginMetadata

from bot import config
from bot.api.talks import Talks
from plugins.api.routes import router

__plugin_meta__ = PluginMetadata("api", "OpenAI's chat completions with a persona as the model", "/v1/chat/completions")

_twin = get_driver().config.twin
if _twin.settings.api.enabled:
    _token, _file = config.api_token(_twin.settings)
    get_app().include_router(router(Talks(_twin), _token))
    logger.info("programs talk to the twin at /v1; the token is {}", _file or "configured")
