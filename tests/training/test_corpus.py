"""What an archive teaches, and what it must not: whose silences count, whose words."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bot import forgetting
from bot.archive import Archive
from bot.config import Cleaning, Conversation
from bot.message import Message, Origin, Scene
from training import clean
from training.corpus import Corpus, build, twin_was_off

ME, FRIEND, OTHER, TWIN = "10001", "20001", "20002", "30001"
GROUP, PRIVATE, OWN = Scene("group", "900"), Scene("private", FRIEND), Scene("private", ME)
START = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)
RULES = Conversation()
DAY = 86400


def say(at: float, sender: str, text: str, scene: Scene = GROUP, **more: object) -> Message:
    """A message `at` seconds after `START`; its id tells scene, time and sender."""
    origin = Origin.TWIN if sender == TWIN else Origin.HUMAN
    fields = {
        "id": f"{scene.kind[0]}{at}-{sender}", "scene": scene, "sender_id": sender, "sender_name": f"n{sender}",
        "time": START + timedelta(seconds=at), "text": text, "origin": origin, **more,
    }  # fmt: skip
    return Message(**fields)  # type: ignore[arg-type]


LATER = say(400 * DAY, FRIEND, "很久以后", Scene("group", "901"))
"""Shows that the archive was kept on long after the rest, so nothing of it is still undecided."""


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield store
    store.close()


def corpus(archive: Archive, messages: Sequence[Message], until: datetime | None = None) -> Corpus:
    archive.append(messages)
    return build(archive, [ME], ["小满"], RULES, until)


def silences(found: Corpus) -> list[bool]:
    """Of the only scene: for each silent exchange, whether it counts."""
    (part,) = found.scenes
    return [c for c, e in zip(part.counted_silence, part.exchanges, strict=True) if not e.said]


def conversations(found: Corpus) -> dict[str, str]:
    """Of the only scene: the conversation of every message shown."""
    (part,) = found.scenes
    pairs = zip(part.exchanges, part.conversation, strict=True)
    return {m.id: c for e, c in pairs for m in (*e.heard, *e.said)}


def test_a_silence_of_imported_history_counts(archive: Archive) -> None:
    found = corpus(archive, [say(0, ME, "在"), say(60, FRIEND, "那个"), say(120, OTHER, "哦"), LATER])
    assert silences(found) == [True, True]
    assert found.counts["silences"] == 2


@pytest.mark.parametrize("state", ["on", "held"])
def test_no_silence_counts_while_the_twin_is_not_off(archive: Archive, state: str) -> None:
    archive.note(GROUP, "state", state, START + timedelta(seconds=50))
    archive.note(GROUP, "state", "off", START + timedelta(seconds=200))
    said = [say(0, ME, "在"), say(40, FRIEND, "甲"), say(100, FRIEND, "乙"), say(300, FRIEND, "丙"), LATER]
    found = corpus(archive, said)
    # 甲 was still open when the twin was switched on 10 s later: whose quiet it was cannot be told.
    assert silences(found) == [False, False, True]
    assert found.counts["silences_unlabelled"] == 2


@pytest.mark.parametrize(("scene", "on_after_s", "counts"), [
    (GROUP, 900, False), (GROUP, 1700, True), (PRIVATE, 900, False),
])  # fmt: skip
def test_the_twin_must_be_off_until_the_next_burst(
    archive: Archive, scene: Scene, on_after_s: int, counts: bool
) -> None:
    archive.note(scene, "state", "on", START + timedelta(seconds=60 + on_after_s))
    asked = [say(0, ME, "在", scene), say(60, FRIEND, "那个", scene), say(60 + 1500, FRIEND, "算了", scene)]
    assert silences(corpus(archive, [*asked, LATER])) == [counts, False]


@pytest.mark.parametrize(("scene", "on_after_s", "counts"), [
    (GROUP, 1000, False), (GROUP, 3600, True), (PRIVATE, 3600, False), (PRIVATE, 5 * 3600, True),
])  # fmt: skip
def test_at_the_end_of_a_scene_the_twin_must_be_off_while_an_answer_may_come(
    archive: Archive, scene: Scene, on_after_s: int, counts: bool
) -> None:
    archive.note(scene, "state", "on", START + timedelta(seconds=60 + on_after_s))
    assert silences(corpus(archive, [say(0, ME, "在", scene), say(60, FRIEND, "那个", scene), LATER])) == [counts]


@pytest.mark.parametrize("blank", [False, True], ids=["recalled", "blank"])
def test_an_answer_that_was_taken_back_or_has_no_words_is_no_label_at_all(archive: Archive, blank: bool) -> None:
    answer = say(70, ME, " " if blank else "秘密")
    said = [say(0, ME, "在"), say(60, FRIEND, "问题"), answer, say(120, OTHER, "哦"), LATER]
    archive.append(said)
    if not blank:
        archive.recall(GROUP, answer.id, START + timedelta(seconds=80))
    found = build(archive, [ME], ["小满"], RULES)
    (part,) = found.scenes
    assert [([m.text for m in e.heard], [m.text for m in e.said]) for e in part.exchanges] == [
        ([], ["在"]), (["问题"], []), (["哦"], []),
    ]  # fmt: skip
    assert part.counted_silence == [False, False, True]
    assert (found.counts["turns"], found.counts["silences_unlabelled"]) == (1, 1)
    assert "秘密" not in repr(part)


def test_an_answer_taken_back_in_the_middle_of_a_burst_leaves_no_silence(archive: Archive) -> None:
    answer = say(65, ME, "秘密")
    archive.append([say(0, ME, "在"), say(60, FRIEND, "问"), answer, say(70, FRIEND, "再问"), LATER])
    archive.recall(GROUP, answer.id, START + timedelta(seconds=80))
    assert silences(build(archive, [ME], [], RULES)) == [False]


def test_words_taken_back_in_a_later_conversation_leave_the_silence_before_it(archive: Archive) -> None:
    later = say(5 * 3600, ME, "早")
    archive.append([say(0, ME, "在"), say(60, FRIEND, "问"), later, say(5 * 3600 + 60, FRIEND, "早啊"), LATER])
    archive.recall(GROUP, later.id, START + timedelta(hours=6))
    assert silences(build(archive, [ME], [], RULES)) == [True, True]


@pytest.mark.parametrize("taken_back", [0, 1, 2, 3, 4])
def test_taking_a_message_back_moves_no_other_to_another_conversation(archive: Archive, taken_back: int) -> None:
    times = [(0, FRIEND), (20 * 60, ME), (40 * 60, OTHER), (60 * 60, FRIEND), (60 * 60 + 5, ME), (200 * 60, FRIEND)]
    said = [say(at, who, f"词{at}") for at, who in times]
    before = conversations(corpus(archive, [*said, LATER]))
    assert sorted(set(before.values())) == sorted([said[0].id, said[5].id])
    archive.recall(GROUP, said[taken_back].id, START + timedelta(days=1))
    after = conversations(build(archive, [ME], [], RULES))
    del before[said[taken_back].id]
    assert after == before


def test_what_was_taken_back_is_never_quoted(archive: Archive) -> None:
    first = say(0, FRIEND, "秘密")
    archive.append([first, say(5, FRIEND, "在吗"), say(10, ME, "答", reply_to=first.id), LATER])
    archive.recall(GROUP, first.id, START + timedelta(days=1))
    (part,) = build(archive, [ME], [], RULES).scenes
    assert part.quotes == {}
    assert "秘密" not in repr(part)


def test_the_persons_words_while_the_twin_is_on_are_kept(archive: Archive) -> None:
    archive.note(GROUP, "state", "on", START - timedelta(days=1))
    found = corpus(archive, [say(0, FRIEND, "吃了吗"), say(5, ME, "吃了"), LATER])
    assert [m.text for m in found.scenes[0].exchanges[0].said] == ["吃了"]
    assert (found.counts["turns"], found.contributors) == (1, (ME,))


@pytest.mark.parametrize(("quiet_s", "counts"), [(RULES.presence_s - 100, True), (RULES.presence_s + 100, False)])
def test_a_silence_counts_only_while_the_person_is_around(archive: Archive, quiet_s: int, counts: bool) -> None:
    found = corpus(archive, [say(0, ME, "在"), say(quiet_s, FRIEND, "有人吗"), LATER])
    assert silences(found) == [counts]


def test_the_twins_words_are_no_presence(archive: Archive) -> None:
    found = corpus(archive, [say(0, ME, "在"), say(4 * DAY, TWIN, "我在"), say(4 * DAY + 60, FRIEND, "嗯"), LATER])
    assert silences(found) == [False]
    assert found.counts["twin_turns"] == 1
    assert found.contributors == (ME,)
    assert TWIN in found.ids


@pytest.mark.parametrize(("delay_s", "answered"), [(3 * 3600, True), (5 * 3600, False)])
def test_a_late_private_answer_is_an_answer(archive: Archive, delay_s: int, answered: bool) -> None:
    asked = [say(0, ME, "早", PRIVATE), say(60, FRIEND, "在吗", PRIVATE)]
    said = [*asked, say(60 + delay_s, ME, "刚看到", PRIVATE), LATER]
    part = corpus(archive, said).scenes[0]
    assert [bool(e.heard) and bool(e.said) for e in part.exchanges] == ([False, True] if answered else [False] * 3)
    assert any(part.counted_silence) is not answered


def test_a_late_group_answer_is_a_silence_and_a_new_conversation(archive: Archive) -> None:
    part = corpus(archive, [say(0, ME, "早"), say(60, FRIEND, "在吗"), say(3 * 3600, ME, "刚看到"), LATER]).scenes[0]
    assert part.counted_silence == [False, True, False]
    assert len(set(part.conversation)) == 2


def test_nothing_is_learned_where_the_person_talks_with_their_own_twin(archive: Archive) -> None:
    said = [say(0, ME, "你好", OWN), say(5, TWIN, "你好呀", OWN), say(60, ME, "嗯", OWN), LATER]
    found = corpus(archive, said)
    assert found.scenes == []
    assert found.counts["scenes_with_own_twin"] == 1


def test_the_newest_burst_is_no_silence_while_an_answer_may_still_come(archive: Archive) -> None:
    early, late = START + timedelta(hours=1), START + timedelta(hours=5)
    said = [say(0, ME, "早", PRIVATE), say(60, FRIEND, "在吗", PRIVATE), LATER]
    assert silences(corpus(archive, said, until=early)) == [False]
    assert silences(corpus(archive, said, until=late)) == [True]


def test_nothing_after_until_is_seen(archive: Archive) -> None:
    said = [say(0, ME, "早"), say(60, FRIEND, "在吗"), say(70, ME, "在"), LATER]
    found = corpus(archive, said, until=START + timedelta(seconds=65))
    assert found.counts["messages"] == 2
    assert found.span == (START, START + timedelta(seconds=60))


def test_quotes_scene_names_and_blank_bubbles(archive: Archive) -> None:
    first = say(0, FRIEND, "问题", scene_name="旧群名")
    said = [
        first,
        say(5, ME, " "),
        say(10, ME, "答", reply_to=first.id, scene_name="新群名"),
        say(0, FRIEND, "嗨", PRIVATE, sender_name="旧名"),
        say(9, ME, "嗨", PRIVATE),
        say(20, FRIEND, "嗯", PRIVATE, sender_name="新名"),
        LATER,
    ]
    found = corpus(archive, said)
    parts = {p.scene: p for p in found.scenes}
    assert (parts[GROUP].name, parts[PRIVATE].name) == ("新群名", "新名")
    (answer,) = parts[GROUP].exchanges[0].said
    assert parts[GROUP].quoted(answer) == first
    assert found.counts["bubbles"] == 2


def test_the_fingerprint_follows_the_words_alone(archive: Archive, tmp_path: Path) -> None:
    said = [say(0, ME, "早"), say(60, FRIEND, "在吗"), LATER]
    one = corpus(archive, said)
    assert build(archive, [ME], ["别名"], RULES).fingerprint == one.fingerprint
    other = Archive(f"sqlite:///{tmp_path / 'other.db'}")
    assert corpus(other, [say(0, ME, "晚"), *said[1:]]).fingerprint != one.fingerprint
    other.close()


def test_an_empty_archive_gives_an_empty_corpus(archive: Archive) -> None:
    found = build(archive, [ME], [], RULES)
    assert (found.scenes, found.span, found.counts["turns"]) == ([], None, 0)


def test_a_masked_answer_stays_in_the_context_and_makes_no_silence(archive: Archive) -> None:
    said = [
        say(0, ME, "在"),
        say(60, FRIEND, "大家都来投票啊"),
        say(65, ME, "大家都来投票啊"),
        say(120, OTHER, "好"),
        LATER,
    ]
    found = corpus(archive, said)
    (part,) = found.scenes
    assert [[m.text for m in e.said] for e in part.exchanges] == [["在"], ["大家都来投票啊"], []]
    assert dict(part.masked) == {1: "repeat"}
    assert part.counted_silence == [False, False, True]
    assert (found.counts["masked_repeat"], found.counts["turns"]) == (1, 2)


def test_the_same_notice_in_many_scenes_is_trained_so_often_and_no_more(archive: Archive) -> None:
    notice = "各位好，明天晚上八点在老地方集合，收到请回复"
    groups = [Scene("group", str(910 + i)) for i in range(5)]
    said = [say(60 * i, ME, f"{notice}{'！' * i}", g) for i, g in enumerate(groups)]
    found = corpus(archive, [*said, LATER])
    assert found.counts["masked_duplicate"] == 2
    assert {str(p.scene) for p in found.scenes if p.masked} == {str(groups[3]), str(groups[4])}


def test_the_twin_is_off_from_the_moment_it_is_switched_off() -> None:
    timeline = [(START, "on"), (START + timedelta(seconds=60), "off")]
    asked = [START + timedelta(seconds=s) for s in (59, 60)]
    assert [twin_was_off(timeline, moment, moment + timedelta(seconds=9)) for moment in asked] == [False, True]


def test_an_answer_may_still_come_to_a_burst_that_others_talk_on_after(archive: Archive) -> None:
    archive.note(GROUP, "state", "on", START + timedelta(seconds=60 + 2 * RULES.burst_cap + 10))
    talk = [say(60 + 2 * n, FRIEND, f"话{n}") for n in range(RULES.burst_cap + 1)]
    assert silences(corpus(archive, [say(0, ME, "在"), *talk, LATER])) == [False, False], "on within the burst's gap"


def test_words_taken_back_late_in_the_same_conversation_are_no_silence(archive: Archive) -> None:
    kept_going, answer = say(1500, OTHER, "别人的"), say(3000, ME, "秘密")
    archive.append([say(0, ME, "在"), say(60, FRIEND, "问"), kept_going, answer, say(9000, FRIEND, "早"), LATER])
    for taken in (kept_going, answer):
        archive.recall(GROUP, taken.id, START + timedelta(hours=1))
    assert silences(build(archive, [ME], [], RULES)) == [False, True]


@pytest.mark.parametrize(("answer_s", "counts"), [(3600, False), (5 * 3600, True)])
def test_words_taken_back_in_a_later_private_conversation_answer_while_an_answer_may_come(
    archive: Archive, answer_s: int, counts: bool
) -> None:
    again, answer = say(answer_s - 600, FRIEND, "再问", PRIVATE), say(answer_s, ME, "秘密", PRIVATE)
    said = [say(0, ME, "在", PRIVATE), say(60, FRIEND, "问", PRIVATE), again, answer]
    archive.append([*said, say(20 * 3600, FRIEND, "早", PRIVATE), LATER])
    for taken in (again, answer):
        archive.recall(PRIVATE, taken.id, START + timedelta(hours=6))
    assert silences(build(archive, [ME], [], RULES))[0] is counts


def test_a_group_that_bears_the_persons_number_is_no_talk_with_their_twin(archive: Archive) -> None:
    found = corpus(archive, [say(0, ME, "在", Scene("group", ME)), say(5, FRIEND, "嗯", Scene("group", ME)), LATER])
    assert [str(p.scene) for p in found.scenes] == [f"group:{ME}"]


NOTICE = "各位好，明天晚上八点在老地方集合，收到请回复"


def test_the_oldest_of_alike_answers_stay_whatever_the_scenes_sizes(archive: Archive) -> None:
    small, large = Scene("group", "910"), Scene("group", "911")
    said = [say(4000 * i, ME, NOTICE, small) for i in range(3)]
    said += [say(20000 + i, FRIEND, f"话{i}", large) for i in range(9)] + [say(20100, ME, NOTICE, large)]
    found = corpus(archive, [*said, LATER])
    assert {str(p.scene): list(p.masked.values()) for p in found.scenes} == {str(large): ["duplicate"], str(small): []}


def test_an_answer_that_is_not_trained_uses_up_no_place_of_alike_ones(archive: Archive) -> None:
    repeats = [m for i in range(3) for m in (say(60 * i, FRIEND, NOTICE), say(60 * i + 30, ME, NOTICE))]
    found = corpus(archive, [*repeats, *(say(9000 + 4000 * i, ME, NOTICE) for i in range(3)), LATER])
    assert (found.counts["masked_repeat"], found.counts.get("masked_duplicate", 0)) == (3, 0)


def test_the_twins_bubbles_are_no_reason_to_mask_the_persons(archive: Archive) -> None:
    said = [say(0, FRIEND, "在吗"), say(5, TWIN, "好" * 500), say(6, ME, "在"), LATER]
    assert "masked_long" not in corpus(archive, said).counts


def test_the_bubble_right_before_is_what_a_repeat_repeats(archive: Archive) -> None:
    said = [say(0, FRIEND, "先说一句"), say(5, OTHER, "大家都来投票"), say(9, ME, "大家都来投票"), LATER]
    assert corpus(archive, said).counts["masked_repeat"] == 1


@pytest.mark.parametrize(("quiet_s", "counts"), [(RULES.presence_s, True), (RULES.presence_s + 1, False)])
def test_the_last_moment_of_presence_counts(archive: Archive, quiet_s: int, counts: bool) -> None:
    assert silences(corpus(archive, [say(0, ME, "在"), say(quiet_s, FRIEND, "有人吗"), LATER])) == [counts]


@pytest.mark.parametrize(
    ("after_s", "counts"), [(RULES.conversation_gap_s, False), (RULES.conversation_gap_s + 1, True)]
)
def test_while_an_answer_may_still_come_there_is_no_silence(archive: Archive, after_s: int, counts: bool) -> None:
    until = START + timedelta(seconds=60 + after_s)
    assert silences(corpus(archive, [say(0, ME, "在"), say(60, FRIEND, "那个"), LATER], until)) == [counts]


def test_who_spoke_in_the_very_second_of_a_decision_had_not_spoken_before_it(archive: Archive) -> None:
    (part,) = corpus(archive, [say(0, ME, "在"), say(60, FRIEND, "问"), say(60, ME, "答", id="z"), LATER]).scenes
    assert part.last_spoke[1] == START


@pytest.mark.parametrize("rules", [{"strip_placeholders": True}, {"merge": "bubbles"}], ids=["stripped", "merged"])
def test_an_answer_that_is_not_shown_where_it_was_given_is_no_silence(
    archive: Archive, rules: dict[str, object]
) -> None:
    archive.append([say(0, ME, "在"), say(30, FRIEND, "看到没"), say(50, ME, "[图片]"), say(120, OTHER, "哦"), LATER])
    found = build(archive, [ME], [], RULES, cleaning=Cleaning(**rules))  # type: ignore[arg-type]
    (part,) = found.scenes
    counted = [(e.heard[0].text, c) for e, c in zip(part.exchanges, part.counted_silence, strict=True) if not e.said]
    assert ("看到没", True) not in counted
    assert ("哦", True) in counted


def test_nobody_learns_a_number(archive: Archive) -> None:
    found = corpus(archive, [say(0, FRIEND, "电话？", sender_name="张13800001111"), say(5, ME, "13900002222"), LATER])
    assert "13" not in "".join(m.text + m.sender_name for e in found.scenes[0].exchanges for m in (*e.heard, *e.said))


def opt_out(archive: Archive, person: str, at: float) -> None:
    archive.optouts.note(person, "out", "self", START + timedelta(seconds=at))


def forget(archive: Archive, person: str, at: float) -> None:
    forgetting.from_archive(archive, person, START + timedelta(seconds=at))


@pytest.mark.parametrize("leave", [opt_out, forget], ids=["out", "forgotten"])
def test_words_of_somebody_who_left_are_no_context_and_answers_to_them_no_labels(
    archive: Archive, leave: Callable[[Archive, str, float], None]
) -> None:
    said = [
        say(0, OTHER, "她的问题"), say(5, ME, "答她"), say(60, FRIEND, "他的问题"), say(65, ME, "答他"),
        say(120, FRIEND, "再问"), say(125, OTHER, "她插话", reply_to="g60-20001"), say(127, ME, "答谁"), LATER,
    ]  # fmt: skip
    archive.append(said)
    before = conversations(build(archive, [ME], [], RULES))
    leave(archive, OTHER, 500 * DAY)
    found = build(archive, [ME], [], RULES)
    (part,) = found.scenes
    assert [([m.text for m in e.heard], [m.text for m in e.said]) for e in part.exchanges] == [
        ([], ["答她"]), (["他的问题"], ["答他"]), (["再问"], ["答谁"]),
    ]  # fmt: skip
    assert part.masked == {0: clean.Reason.WITHHELD, 2: clean.Reason.WITHHELD}
    assert found.counts["masked_withheld"] == 2
    assert "她" not in repr(part).replace("答她", "")
    after = conversations(found)
    assert after == {key: before[key] for key in after}, "nothing moves to another split"


@pytest.mark.parametrize("leave", [opt_out, forget], ids=["out", "forgotten"])
def test_the_person_who_leaves_is_no_label_and_their_answers_are_no_silences(
    archive: Archive, leave: Callable[[Archive, str, float], None]
) -> None:
    other_account = "10002"
    archive.append([
        say(0, other_account, "在"), say(60, FRIEND, "问"), say(65, ME, "我的话"), say(120, FRIEND, "再问"),
        say(125, other_account, "另一个号的话"), LATER,
    ])  # fmt: skip
    leave(archive, ME, 500 * DAY)
    found = build(archive, [ME, other_account], [], RULES)
    (part,) = found.scenes
    assert [([m.text for m in e.heard], [m.text for m in e.said]) for e in part.exchanges] == [
        ([], ["在"]), (["问"], []), (["再问"], ["另一个号的话"]),
    ]  # fmt: skip
    assert part.counted_silence == [False, False, False], "they answered"
    assert found.contributors == (other_account,)
    assert "我的话" not in repr(part)
