"""bot/loras.py: as many as fit stay loaded, and what is in use always does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinylora
import tinymodel

from bot.errors import EngineError
from bot.llama import Context, Model
from bot.loras import Loras


@pytest.fixture
def base(tinies: dict[str, tinymodel.Tiny]) -> Iterator[tuple[Model, Context]]:
    model = Model(tinies["gemma3"].gguf, 0)
    context = Context(model, 128, 1, 32, 1)
    yield model, context
    context.close()
    model.close()


@pytest.fixture
def files(tinies: dict[str, tinymodel.Tiny], tmp_path: Path) -> list[Path]:
    return [tinylora.write(tmp_path / f"{i}.gguf", tinies["gemma3"].gguf, seed=i) for i in range(4)]


def loaded(loras: Loras, files: list[Path]) -> list[int]:
    return [i for i, file in enumerate(files) if file in loras]


def test_beyond_the_bytes_the_one_used_least_recently_is_freed(base: tuple[Model, Context], files: list[Path]) -> None:
    loras = Loras(*base, "", 2 * files[0].stat().st_size)
    for i, kept in ((0, [0]), (1, [0, 1]), (0, [0, 1]), (2, [0, 2]), (3, [2, 3])):
        loras.load(files[i])
        assert loaded(loras, files) == kept
    loras.close()
    assert loaded(loras, files) == []


def test_what_is_in_use_stays_and_what_is_set_is_unset_before_it_goes(
    base: tuple[Model, Context], files: list[Path]
) -> None:
    _, context = base
    loras = Loras(*base, "", 0)
    loras.load(files[0])
    context.use(loras.handle(files[0]))
    loras.load(files[1], {files[0], None})
    assert loaded(loras, files) == [0, 1]
    loras.load(files[2])
    assert loaded(loras, files) == [2]
    assert context.lora is None, "freed while it is set, the next decode gives NaN"
    assert context.decode([(300, 0, 0, True)])
    loras.close()


def test_a_lora_that_is_gone_is_told_and_the_others_stay(base: tuple[Model, Context], files: list[Path]) -> None:
    loras = Loras(*base, "", 10**9)
    loras.load(files[0])
    files[1].unlink()
    with pytest.raises(EngineError, match=r"1\.gguf' cannot be read \(No such file"):
        loras.load(files[1])
    assert loaded(loras, files) == [0]
    loras.close()
