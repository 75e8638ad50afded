"""bot/daemon.py: how a line reaches the owners, whichever account is there."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from chats import ACCOUNT, ME, OTHER

from bot.budget import Budget
from bot.config import Chat, OneBot, Settings
from bot.daemon import owner_lines
from bot.errors import SendError, SendFailure, TwinError
from bot.message import Origin, Scene
from bot.onebot import OneBotTransport
from bot.twin import Twin

SECOND = "40002"


class Post:
    """Takes lines, and refuses those of some accounts."""

    def __init__(self, **failures: SendFailure) -> None:
        self.failures = failures
        self.sent: list[tuple[str, str, str]] = []
        self.recorded: list[tuple[str, str]] = []
        self.offline: set[str] = set()
        self.budget = Budget(Chat(account_per_minute=5))

    async def send(self, account: str, scene: Scene, segments: list[dict[str, Any]], origin: Origin) -> str:
        assert origin is Origin.SYSTEM, "else the model would learn from it"
        if failure := self.failures.get(f"of_{account}"):
            raise SendError(failure, "told to")
        self.sent.append((account, scene.id, segments[0]["data"]["text"]))
        return str(len(self.sent))

    async def tell(self, *accounts: str, owners: tuple[str, ...] = (ME,)) -> None:
        twin = SimpleNamespace(
            settings=Settings(onebot=OneBot(superusers=owners)),
            presence=SimpleNamespace(is_online=lambda a: a not in self.offline, budget=self.budget),
            record_own=lambda _, scene, account, __: self.recorded.append((scene.id, account)),
        )
        await owner_lines(cast(Twin, twin), cast(OneBotTransport, self), lambda: accounts)("一行")


async def test_a_line_leaves_from_an_account_that_is_logged_in_is_recorded_and_counted() -> None:
    post = Post()
    post.offline = {ACCOUNT}
    await post.tell(ACCOUNT, SECOND)
    assert post.sent == [(SECOND, ME, "一行")]
    assert post.recorded == [(ME, SECOND)]
    left = [post.budget.left(account, Scene("group", "1"), time.monotonic()) for account in (ACCOUNT, SECOND)]
    assert left[0] == left[1] + 1


async def test_an_account_that_cannot_is_followed_by_the_next() -> None:
    post = Post(**{f"of_{ACCOUNT}": SendFailure.REFUSED})
    await post.tell(ACCOUNT, SECOND, owners=(ME, OTHER))
    assert post.sent == [(SECOND, ME, "一行"), (SECOND, OTHER, "一行")]


async def test_what_may_have_arrived_is_not_sent_from_another_account() -> None:
    post = Post(**{f"of_{ACCOUNT}": SendFailure.UNKNOWN})
    with pytest.raises(TwinError, match="no owner was reached"):
        await post.tell(ACCOUNT, SECOND)
    assert post.sent == []


async def test_without_an_account_that_is_logged_in_it_is_kept_for_later() -> None:
    post = Post()
    post.offline = {ACCOUNT}
    for accounts in ((), (ACCOUNT,)):
        with pytest.raises(TwinError, match="no OneBot client is connected"):
            await post.tell(*accounts)
