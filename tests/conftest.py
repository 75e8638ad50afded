"""Properties are checked with the same examples every time, and without a clock: machines differ."""

from hypothesis import settings

settings.register_profile("seeded", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("seeded")
