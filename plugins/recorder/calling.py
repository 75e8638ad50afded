"""An account → what calls its client, for `bot.backfill`."""

from collections.abc import Mapping
from typing import Any

import nonebot
from nonebot.adapters.onebot.v11.exception import ActionFailed, ApiNotAvailable, NetworkError

from bot.backfill import Call
from bot.errors import ImportFault


def caller(account: str) -> Call:
    """The account's client, as `bot.backfill` calls it."""

    async def call(action: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        bot = nonebot.get_bots().get(account)
        if bot is None:
            raise ImportFault(f"account {account} is not connected; backfill again when it is")
        try:
            return {"status": "ok", "retcode": 0, "data": await bot.call_api(action, **params)}
        except ActionFailed as e:
            return {"status": "failed", **e.info}
        except (NetworkError, ApiNotAvailable) as e:
            raise ImportFault(f"the OneBot client did not answer {action}; backfill again to go on") from e

    return call
