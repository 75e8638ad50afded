"""Settings → the running daemon: NoneBot with our adapter, the plugins, the assembled twin."""

import gc
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import nonebot
from loguru import logger

from bot import config, log, port
from bot.errors import ConfigError, SendError, SendFailure, TwinError
from bot.message import Origin, Scene
from bot.onebot import OneBotTransport, Outbox, TwinAdapter
from bot.twin import Twin

PLUGINS = ("recorder", "chat", "persona", "retrain", "privacy", "api")
_WEBSOCKET_PING_S = 5
"""A half-open peer is noticed after two of these; without, after 39 s."""


def serve(settings: config.Settings, config_path: Path) -> None:
    """Run until SIGINT or SIGTERM.

    Args:
        settings: checked settings.
        config_path: bot.toml; relative paths in it count from its folder.

    Raises:
        TwinError: what cannot start, and the remedy.
    """
    log.setup(settings.log.level, settings.data / "logs", settings.log.retention_days)
    _be_alone(settings.onebot)
    token, file = config.access_token(settings)
    outbox = Outbox()
    transport = OneBotTransport(outbox, settings.onebot.api_timeout_s)
    twin = Twin.assemble(settings, config_path.parent, transport, only_record=True, spill=settings.data / "spill")
    twin.owner_lines = owner_lines(twin, transport, nonebot.get_bots)
    parts = {"twin": twin, "outbox": outbox, "transport": transport, "config_path": config_path}
    _start_nonebot(settings, token, parts)
    driver = nonebot.get_driver()
    # NoneBot stops in the reverse order: the twin stops speaking, then the plugins stop, then what they use is closed.
    driver.on_shutdown(twin.close)
    _load_plugins()
    driver.on_shutdown(twin.presence.close)
    driver.on_bot_connect(twin.greet)
    logger.info("OneBot clients connect to {}; the token is {}", config.websocket_url(settings), file or "configured")
    settle()
    nonebot.run(
        ws_ping_interval=_WEBSOCKET_PING_S, ws_ping_timeout=_WEBSOCKET_PING_S, access_log=False, log_level="warning"
    )


def settle() -> None:
    """Take what is loaded by now, and stays, out of the garbage collector's rounds.

    It looked at all of it again and again while messages came: without, a sixth less of them are taken in a second.
    """
    gc.collect()
    gc.freeze()


def _be_alone(onebot: config.OneBot) -> None:
    """The port must be free, before a model is loaded: uvicorn would end with nothing but an errno."""
    if why := port.hindrance(onebot.host, onebot.port):
        raise TwinError(
            f"{onebot.host}:{onebot.port} cannot be listened on ({why}): does the twin run already? "
            "Stop it, or set another [onebot] port in bot.toml"
        )


def _start_nonebot(settings: config.Settings, token: str, parts: dict[str, Any]) -> None:
    """`nonebot.init` from our settings alone: an .env or variables of other bots must not change what we checked."""
    for name in [n for n in os.environ if n.upper().startswith(("ONEBOT_", "ONEBOT_V11_"))]:
        logger.warning("{} in the environment is ignored; settings are bot.toml and TWIN__…", name)
        del os.environ[name]
    nonebot.init(
        _env_file=(os.devnull,),
        driver="~fastapi+~websockets",
        host=settings.onebot.host,
        port=settings.onebot.port,
        superusers=set(settings.onebot.superusers),
        api_timeout=settings.onebot.api_timeout_s,
        onebot_access_token=token or None,
        onebot_secret=secrets.token_urlsafe(24),
        onebot_ws_urls=list(settings.onebot.ws_urls),
        log_level=settings.log.level,
        **parts,
    )
    nonebot.get_driver().register_adapter(TwinAdapter)
    log.setup(settings.log.level, settings.data / "logs", settings.log.retention_days)


def _load_plugins() -> None:
    for name in PLUGINS:
        # A plugin that fails to import is only logged by NoneBot, and the bot starts deaf.
        if nonebot.load_plugin(f"plugins.{name}") is None:
            raise ConfigError(f"plugin {name!r} did not load; the log line above says why")


def owner_lines(
    twin: Twin, transport: OneBotTransport, accounts: Callable[[], Collection[str]]
) -> Callable[[str], Awaitable[None]]:
    """What sends a line to the owners: from the first account that can; TwinError if it reached none of them.

    Args:
        twin: the assembled twin.
        transport: sends.
        accounts: the connected accounts.
    """

    async def tell(text: str) -> None:
        online = [account for account in accounts() if twin.presence.is_online(account)]
        if not online:
            raise TwinError("no OneBot client is connected")
        owners = twin.settings.onebot.superusers
        reached = [await _told(twin, transport, online, Scene("private", owner), text) for owner in owners]
        if owners and not any(reached):
            raise TwinError("no owner was reached")

    return tell


async def _told(twin: Twin, transport: OneBotTransport, accounts: list[str], owner: Scene, text: str) -> bool:
    """Send a line from the first account that can; one that may have arrived is not sent from another."""
    for account in accounts:
        twin.presence.budget.spend(account, owner, time.monotonic())
        try:
            segments = [{"type": "text", "data": {"text": text}}]
            message_id = await transport.send(account, owner, segments, Origin.SYSTEM)
        except SendError as e:
            logger.warning("owner not reached: {}", e)
            if e.failure not in (SendFailure.REFUSED, SendFailure.OFFLINE):
                return False
        else:
            twin.record_own(message_id, owner, account, text)
            return True
    return False
