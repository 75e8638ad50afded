"""Hours of the day as people write them: `23:30-07:00`."""

from datetime import time


def in_hours(hours: str, now: time) -> bool:
    """Whether a local time lies in hours such as `23:30-07:00`; with equal ends it is the whole day, empty never.

    Raises:
        ValueError: the hours are written otherwise.
    """
    if not hours:
        return False
    first, last = (time.fromisoformat(part.strip()) for part in hours.split("-"))
    return first <= now < last if first < last else now >= first or now < last
