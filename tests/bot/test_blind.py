"""bot/blind.py: pairs without their key, picks taken in, a score with its interval beside the version."""

import json
import stat
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bot import blind
from bot.blind import BlindTest, Trial
from bot.errors import PersonaError
from bot.persona import Personas

NOW = datetime(2026, 12, 1, tzinfo=UTC)
BAD = '</div><script>alert("x")</script>'


def pairs_of(n: int = 10, test_id: str = "0123456789ab") -> BlindTest:
    trials = tuple(
        Trial((f"阿泽：第{i}句",), ("真的", f"假的{i}") if i % 2 == 0 else (f"假的{i}", "真的"), i % 2)
        for i in range(n)
    )
    return BlindTest(test_id, "xiaoman", "v1", NOW.isoformat(), trials, equal=3)


@pytest.fixture
def personas(tmp_path: Path) -> Personas:
    (tmp_path / "personas" / "xiaoman" / "versions" / "v1").mkdir(parents=True)
    return Personas(tmp_path / "personas")


def saved(tmp_path: Path, picks: dict[str, int], test_id: str = "0123456789ab") -> Path:
    file = tmp_path / "blind-x.json"
    file.write_text(json.dumps({"blind": test_id, "picks": picks}), "utf-8")
    return file


def test_what_was_kept_comes_back_and_is_the_owners_alone(tmp_path: Path) -> None:
    file = blind.save(tmp_path, pairs_of())
    assert blind.load(tmp_path, "0123456789ab") == pairs_of()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_score_is_how_often_the_real_one_was_picked(tmp_path: Path, personas: Personas) -> None:
    blind.save(tmp_path, pairs_of())
    # The real ones are 1, 2, 1, 2, …: eight of ten are found.
    picks = {str(n + 1): n % 2 + 1 for n in range(10)} | {"9": 2, "10": 1}
    test = blind.answered(tmp_path, saved(tmp_path, picks))
    score = blind.take(tmp_path, personas, test, NOW)
    assert (score["right"], score["n"], score["share"]) == (8, 10, 0.8)
    assert score["equal"] == 3, "nobody could tell them apart, and nobody was asked"
    assert (score["low"], score["high"]) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert blind.load(tmp_path, test.id).score == score
    (kept,) = blind.results(personas, "xiaoman", "v1")
    assert kept == {"id": test.id, "time": "2026-12-01T00:00:00+00:00", **score}


def test_a_test_that_was_removed_meanwhile_does_not_come_back(tmp_path: Path, personas: Personas) -> None:
    file = blind.save(tmp_path, pairs_of())
    asked = blind.load(tmp_path, "0123456789ab").picked(0, 1)
    file.unlink()  # as /forgetme does
    with pytest.raises(PersonaError, match="there is no blind test"):
        blind.take(tmp_path, personas, asked, NOW)
    assert not file.exists()
    assert blind.results(personas, "xiaoman", "v1") == []


def test_picks_taken_in_again_replace_the_score_and_another_test_has_its_own(
    tmp_path: Path, personas: Personas
) -> None:
    for test_id in ("0123456789ab", "aaaaaaaaaaaa"):
        blind.save(tmp_path, pairs_of(4, test_id))
        for picks in ({"1": 2}, {"1": 1, "2": 1}):
            blind.take(tmp_path, personas, blind.answered(tmp_path, saved(tmp_path, picks, test_id)), NOW)
    assert [(x["id"], x["right"], x["n"]) for x in blind.results(personas, "xiaoman", "v1")] == [
        ("0123456789ab", 1, 2), ("aaaaaaaaaaaa", 1, 2),
    ]  # fmt: skip


def test_the_newest_test_with_pairs_left_is_gone_on_with(tmp_path: Path) -> None:
    assert blind.newest(tmp_path, "xiaoman", "v1") is None
    test = pairs_of(2)
    blind.save(tmp_path, test.picked(0, 1))
    found = blind.newest(tmp_path, "xiaoman", "v1")
    assert found is not None
    assert found.next == 1
    assert blind.newest(tmp_path, "xiaoman", "v2") is None
    blind.save(tmp_path, found.picked(1, 1))
    assert blind.newest(tmp_path, "xiaoman", "v1") is None


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"blind": "0123456789ab", "picks": {}}', '{"blind": "0123456789ab", "picks": {"11": 1}}',
        '{"blind": "0123456789ab", "picks": {"1": 3}}', '{"blind": "0123456789ab", "picks": {"a": 1}}',
        '{"blind": "../../../x", "picks": {"1": 1}}', '{"blind": "bbbbbbbbbbbb", "picks": {"1": 1}}',
    ],
)  # fmt: skip
def test_a_file_that_the_page_did_not_save_is_refused(tmp_path: Path, text: str) -> None:
    blind.save(tmp_path, pairs_of())
    file = tmp_path / "mine.json"
    file.write_text(text, "utf-8")
    with pytest.raises(PersonaError, match=r"mine\.json|there is no blind test"):
        blind.answered(tmp_path, file)


class Page(HTMLParser):
    """Radio buttons by name, tags, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.radios: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        assert not {"src", "href", "action", "onclick"} & set(given)
        if tag == "input":
            self.radios.append((str(given["name"]), str(given["value"])))

    def handle_data(self, data: str) -> None:
        self.said.append(data.strip())


def test_the_page_asks_every_pair_holds_no_key_and_runs_nothing_that_was_said() -> None:
    test = pairs_of(3)
    trial = Trial((f"阿泽：{BAD}",), (BAD, "假的"), 0)
    made = blind.page(BlindTest(test.id, test.persona, test.version, test.created, (*test.trials, trial)))
    read = Page()
    read.feed(made)
    assert read.radios == [(str(n), c) for n in (1, 2, 3, 4) for c in ("1", "2")]
    assert read.tags.count("script") == 1
    assert BAD in read.said
    assert test.id in made
    # The same page whichever of the two is real: the key is not in it.
    swapped = tuple(Trial(t.context, t.options, 1 - t.real) for t in (*test.trials, trial))
    assert blind.page(BlindTest(test.id, test.persona, test.version, test.created, swapped)) == made
