"""bot/interval.py against published figures."""

import pytest

from bot.interval import wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 0, 0.0, 1.0), (5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval(hits: int, n: int, low: float, high: float) -> None:
    # 81 of 263: R. Newcombe, Statistics in Medicine 17 (1998), table I.
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-4)
