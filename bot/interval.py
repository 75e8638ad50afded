"""Hits of so many → the interval the share lies in."""

import math


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) of nothing.

    Args:
        hits: how many.
        n: of how many.
        z: quantile of the normal distribution.
    """
    if n == 0:
        return 0.0, 1.0
    p, spread = hits / n, z * z / n
    middle, half = p + spread / 2, z * math.sqrt(p * (1 - p) / n + spread / n / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
