"""bot/budget.py: what keeps the accounts alive."""

import math

import pytest
from chats import ACCOUNT, GROUP, PRIVATE

from bot.budget import Budget
from bot.config import Chat
from bot.errors import SendFailure
from bot.message import Scene


def test_a_scene_is_full_after_its_minute_and_free_again_later() -> None:
    budget = Budget(Chat(scene_per_minute=3, account_per_minute=100))
    for second in range(3):
        assert budget.hindrance(ACCOUNT, GROUP, second) is None
        budget.spend(ACCOUNT, GROUP, second)
    assert budget.hindrance(ACCOUNT, GROUP, 59) == "budget"
    assert budget.hindrance(ACCOUNT, PRIVATE, 59) is None
    assert budget.hindrance(ACCOUNT, GROUP, 60.5) is None


def test_hours_and_days_are_full_too() -> None:
    budget = Budget(Chat(scene_per_minute=2, scene_per_hour=3, scene_per_day=5, account_per_day=6))
    sent = [
        n
        for n in range(0, 80_000, 10)
        if budget.hindrance(ACCOUNT, GROUP, n) is None and budget.spend(ACCOUNT, GROUP, n) is None
    ]
    assert sent == [0, 10, 70, 3610, 3620]
    assert budget.left(ACCOUNT, GROUP, 80_000) == 0
    assert budget.left(ACCOUNT, PRIVATE, 80_000) == 1
    assert budget.left(ACCOUNT, GROUP, 86_405) == 1, "the first was sent more than a day ago"


def test_bubbles_of_the_account_are_spread() -> None:
    budget = Budget(Chat(account_gap_s=0.5))
    assert [
        budget.wait_s(ACCOUNT, 10.0),
        budget.wait_s(ACCOUNT, 10.1),
        budget.wait_s(ACCOUNT, 10.2),
        budget.wait_s(ACCOUNT, 20.0),
    ] == pytest.approx([0.0, 0.4, 0.8, 0.0])


def test_the_account_is_full_whatever_the_scene() -> None:
    budget = Budget(Chat(scene_per_minute=3, account_per_minute=4))
    scenes = [Scene("group", str(i)) for i in range(4)]
    for scene in scenes:
        assert budget.hindrance(ACCOUNT, scene, 0) is None
        budget.spend(ACCOUNT, scene, 0)
    assert {budget.hindrance(ACCOUNT, s, 30) for s in [*scenes, PRIVATE]} == {"budget"}
    assert budget.hindrance(ACCOUNT, PRIVATE, 61) is None


def test_every_refusal_halves_a_scenes_budget_for_ten_minutes() -> None:
    budget = Budget(Chat(scene_per_minute=4, account_per_minute=100))

    def left(now: float) -> int:
        count = 0
        while budget.hindrance(ACCOUNT, GROUP, now) is None:
            budget.spend(ACCOUNT, GROUP, now)
            count += 1
        return count

    assert left(0) == 4
    budget.failed(ACCOUNT, GROUP, 100, SendFailure.REFUSED)
    assert left(100) == 2
    budget.failed(ACCOUNT, GROUP, 200, SendFailure.REFUSED)
    budget.failed(ACCOUNT, GROUP, 200, SendFailure.REFUSED)
    assert left(300) == 0
    assert left(701) == 1
    assert left(900) == 4
    assert budget.hindrance(ACCOUNT, PRIVATE, 900) is None


@pytest.mark.parametrize(
    ("failure", "left"),
    [(SendFailure.REFUSED, 2), (SendFailure.UNKNOWN, 2), (SendFailure.OFFLINE, 4), (SendFailure.BUG, 4)],
)
def test_what_never_reached_qq_costs_no_budget(failure: SendFailure, left: int) -> None:
    budget = Budget(Chat(scene_per_minute=4))
    budget.failed(ACCOUNT, GROUP, 0, failure)
    for _ in range(left):
        assert budget.hindrance(ACCOUNT, GROUP, 0) is None
        budget.spend(ACCOUNT, GROUP, 0)
    assert budget.hindrance(ACCOUNT, GROUP, 0) == "budget"


def test_a_message_never_confirmed_pauses_the_whole_account() -> None:
    budget = Budget(Chat(shadowed_pause_s=300))
    budget.failed(ACCOUNT, GROUP, 100, SendFailure.SHADOWED)
    assert [budget.hindrance(ACCOUNT, s, 399) for s in (GROUP, PRIVATE)] == ["paused", "paused"]
    assert [budget.hindrance(ACCOUNT, s, 401) for s in (GROUP, PRIVATE)] == [None, None]


def test_a_mute_holds_for_its_group_alone_until_it_ends_or_is_lifted() -> None:
    budget = Budget(Chat())
    budget.mute(ACCOUNT, GROUP, 60)
    asked = [(GROUP, 59), (PRIVATE, 59), (GROUP, 61)]
    assert [budget.hindrance(ACCOUNT, scene, now) for scene, now in asked] == ["muted", None, None]
    budget.mute(ACCOUNT, GROUP, math.inf)
    assert budget.hindrance(ACCOUNT, GROUP, 1e9) == "muted"
    budget.mute(ACCOUNT, GROUP, 0)
    assert budget.hindrance(ACCOUNT, GROUP, 1) is None


SECOND = "40002"


def test_each_account_has_a_budget_of_its_own_and_a_scene_one_for_all() -> None:
    budget = Budget(Chat(scene_per_minute=3, account_per_minute=2, account_gap_s=1.0))
    for _ in range(2):
        budget.spend(ACCOUNT, PRIVATE, 0)
    assert [budget.left(a, GROUP, 0) for a in (ACCOUNT, SECOND)] == [0, 2]
    assert [budget.hindrance(a, GROUP, 0) for a in (ACCOUNT, SECOND)] == ["budget", None]
    assert budget.left(SECOND, PRIVATE, 0) == 1, "what the other one said there counts there"
    assert [budget.wait_s(a, 0) for a in (ACCOUNT, SECOND, ACCOUNT)] == [0, 0, 1.0]


def test_what_befalls_one_account_does_not_silence_the_other() -> None:
    budget = Budget(Chat(scene_per_minute=4))
    budget.mute(ACCOUNT, GROUP, math.inf)
    budget.failed(ACCOUNT, PRIVATE, 0, SendFailure.SHADOWED)
    assert [budget.hindrance(ACCOUNT, s, 1) for s in (GROUP, PRIVATE)] == ["muted", "paused"]
    assert [budget.hindrance(SECOND, s, 1) for s in (GROUP, PRIVATE)] == [None, None]
    assert [budget.left(a, PRIVATE, 1) for a in (ACCOUNT, SECOND)] == [2, 4]


def test_what_was_sent_before_a_restart_counts_for_the_account_that_sent_it() -> None:
    budget = Budget(Chat(scene_per_hour=3, account_per_hour=2))
    budget.restore([(ACCOUNT, GROUP, -4000.0), (ACCOUNT, GROUP, -3000.0), (ACCOUNT, PRIVATE, -2000.0)])
    asked = ((ACCOUNT, GROUP), (SECOND, GROUP), (SECOND, PRIVATE))
    assert [budget.left(*of, 0) for of in asked] == [0, 2, 2]


def test_what_was_sent_more_than_a_day_ago_is_not_kept() -> None:
    budget = Budget(Chat())
    for n in range(100):
        budget.spend(ACCOUNT, GROUP, n)
    budget.left(ACCOUNT, GROUP, 86_450)
    assert [len(budget._of(GROUP)), len(budget._of(ACCOUNT))] == [50, 50]
