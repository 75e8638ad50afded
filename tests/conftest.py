"""An archive, and a presence with its parts. Properties are checked with the same examples every time, and without a
clock: machines differ."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings
from stage import Stage

from bot.archive import Archive

settings.register_profile("seeded", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("seeded")


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    opened = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield opened
    opened.close()


@pytest.fixture
async def stage(archive: Archive) -> AsyncIterator[Stage]:
    made = Stage(archive)
    yield made
    await made.presence.close()
