"""Windows: whose silence is a label, the same rendering as live, every label once."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.archive import Archive
from bot.config import Conversation
from bot.events import read
from bot.message import Message, Origin, Scene
from bot.prompt import FORMATS, Exchange, Piece, encode, exchanges, render
from training.corpus import Corpus, SceneCorpus, build
from training.samples import Label, Split, Window, renderer_for, split_of, trained_positions, windows

ME, FRIEND, OTHER, TWIN = "10001", "20001", "20002", "30001"
GROUP, PRIVATE = Scene("group", "900"), Scene("private", FRIEND)
START = datetime(2026, 3, 2, 4, 0, tzinfo=UTC)
RULES = Conversation()
SHORT_BURSTS = Conversation(burst_cap=2)
GEMMA = FORMATS["gemma"]
SYSTEM = "你是小满。"


class Characters:
    """One id a character; each control text is one id of its own, above all characters."""

    bos: int | None = 1

    def __init__(self) -> None:
        self.controls: dict[str, int] = {}

    def tokens(self, text: str, control: bool) -> list[int]:
        """Ids of a text."""
        if control:
            return [self.controls.setdefault(text, 0x110000 + len(self.controls))]
        return [ord(c) for c in text]

    def text(self, ids: Sequence[int]) -> str:
        """The text behind ids, `⏹` for end of turn."""
        names = {i: t for t, i in self.controls.items()}
        return "".join("⏹" if names.get(i) == GEMMA.end else names[i] if i in names else chr(i) for i in ids)


def say(at: float, sender: str, text: str, scene: Scene = GROUP, **more: object) -> Message:
    """A message `at` seconds after `START`."""
    fields = {
        "id": f"{at}-{sender}", "scene": scene, "sender_id": sender, "sender_name": f"n{sender[-1]}",
        "time": START + timedelta(seconds=at), "text": text,
        "origin": Origin.TWIN if sender == TWIN else Origin.HUMAN, **more,
    }  # fmt: skip
    return Message(**fields)  # type: ignore[arg-type]


LATER = say(400 * 86400, FRIEND, "很久以后", Scene("group", "901"))


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    store = Archive(f"sqlite:///{tmp_path / 'archive.db'}")
    yield store
    store.close()


def made(archive: Archive, messages: Sequence[Message], length: int = 4096) -> tuple[list[Window], Characters]:
    archive.append([*messages, LATER])
    tokenizer = Characters()
    return windows(build(archive, [ME], ["小满"], RULES), tokenizer, GEMMA, SYSTEM, length), tokenizer


def learned(found: Sequence[Window], tokenizer: Characters) -> list[str]:
    """The trained text of every label, whatever its split."""
    return [tokenizer.text([w.ids[i] for i in label.trained]) for w in found for label in w.labels]


def test_only_the_persons_words_and_counting_silences_are_labels(archive: Archive) -> None:
    archive.note(GROUP, "state", "on", START + timedelta(seconds=201))
    said = [
        say(0, ME, "我先说"),
        say(40, FRIEND, "听"),
        say(45, ME, "答"),
        say(47, ME, "再答"),
        say(100, FRIEND, "没人理"),
        say(200, FRIEND, "问机器"),
        say(205, TWIN, "机器答"),
        say(300, OTHER, "又问"),
        say(400, FRIEND, "还问"),
        say(405, ME, "本人答"),
    ]
    found, tokenizer = made(archive, said)
    assert learned(found, tokenizer) == ["我先说⏹", "答\n再答⏹", "⏹", "", "", "本人答⏹"]
    assert "机器答⏹" in tokenizer.text(found[0].ids)
    labels = found[0].labels
    assert [x.decision for x in labels] == [False, True, True, False, False, False], "none where the twin was on"
    assert [x.silence for x in labels] == [False, False, True, False, True, False]
    assert [x.message_id for x in labels][:2] == ["0-10001", "40-20001"]


def test_poking_back_is_learned_as_often_as_the_person_does_it(archive: Archive) -> None:
    """Each poke is decided on, and what the person did about it is its label."""

    def poke(at: float, who: str, whom: str) -> Message:
        notice = {
            "post_type": "notice", "notice_type": "notify", "sub_type": "poke", "self_id": int(ME), "user_id": int(who),
            "target_id": int(whom), "sender_id": int(who), "time": int((START + timedelta(seconds=at)).timestamp()),
        }  # fmt: skip
        seen = read(notice, lambda number: f"n{number[-1]}")
        assert isinstance(seen, Message)
        return seen

    said = [
        poke(0, FRIEND, ME), poke(9, ME, FRIEND),
        poke(400, FRIEND, ME),
        poke(800, FRIEND, ME), poke(805, ME, FRIEND), say(806, ME, "干嘛", PRIVATE),
        poke(1200, FRIEND, ME),
        say(1600, FRIEND, "睡了", PRIVATE),
    ]  # fmt: skip
    found, tokenizer = made(archive, said)
    assert learned(found, tokenizer) == ["[戳一戳]⏹", "⏹", "[戳一戳]\n干嘛⏹", "⏹", "⏹"]
    assert [x.silence for w in found for x in w.labels] == [False, True, False, True, True]


def test_in_a_turn_shared_with_the_twin_only_the_persons_part_is_trained(archive: Archive) -> None:
    said = [
        say(0, FRIEND, "一"), say(5, TWIN, "代答"), say(9, ME, "补一句"),
        say(60, FRIEND, "二"), say(65, ME, "先答"), say(69, TWIN, "代补"),
    ]  # fmt: skip
    found, tokenizer = made(archive, said)
    assert learned(found, tokenizer) == ["\n补一句⏹", "先答"]
    assert [x.decision for x in found[0].labels] == [False, True]


def test_label_bounds_hold_the_whole_answer_and_its_end(archive: Archive) -> None:
    found, tokenizer = made(archive, [say(0, FRIEND, "在吗", PRIVATE), say(5, ME, "在", PRIVATE)])
    (label,) = found[0].labels
    assert tokenizer.text(found[0].ids[label.start : label.stop]) == "在⏹"
    assert tokenizer.text(found[0].ids[: label.start]).endswith(f"\n在吗{GEMMA.user_close}{GEMMA.assistant_open}")
    assert "现在是你和n1的QQ私聊。" in tokenizer.text(found[0].ids)


def test_moments_hold_what_the_text_does_not_show(archive: Archive) -> None:
    said = [say(0, ME, "早"), say(60, FRIEND, "@我"), say(61, OTHER, "小满？", mentions=(ME,), reply_to="0-10001")]
    found, _ = made(archive, said)
    moment = found[0].labels[-1].moment
    assert (moment.p_silent, moment.since_spoke_s, moment.burst) == (None, 61.0, 2)
    assert (moment.mentioned, moment.quoted, moment.named, moment.private) == (True, True, True, False)


def test_splits_hold_about_a_tenth_each_and_are_fixed_for_ever() -> None:
    drawn = [split_of(GROUP, str(i)) for i in range(4000)]
    assert abs(drawn.count(Split.TEST) - 400) < 60
    assert abs(drawn.count(Split.TUNE) - 400) < 60
    # Written down: a change of these would let a model be tested on what it was trained on.
    assert "".join(split_of(PRIVATE, str(i)).value[1] for i in range(12)) == "eeuerrrrrrru"


def test_splits_and_trained_words_stay_when_history_grows(archive: Archive) -> None:
    history = _busy(60)
    before, tokenizer = made(archive, history[:80], 200)
    old = {x.message_id: (x.split, t) for x, t in zip(_labels(before), learned(before, tokenizer), strict=True)}
    after, tokenizer = made(archive, history, 200)
    new = {x.message_id: (x.split, t) for x, t in zip(_labels(after), learned(after, tokenizer), strict=True)}
    stable = list(old)[:-1]  # the last burst was still open
    assert len(stable) > 20
    assert {k: new[k] for k in stable} == {k: old[k] for k in stable}


def test_one_conversation_is_in_one_split(archive: Archive) -> None:
    found, _ = made(archive, _busy(60), 200)
    splits: dict[int, set[Split]] = {}
    for label in _labels(found):
        splits.setdefault(int(float(label.message_id.split("-")[0])) // 7200, set()).add(label.split)
    assert len(splits) > 20
    assert all(len(s) == 1 for s in splits.values())
    assert len(set().union(*splits.values())) == 3


def test_overflow_drops_the_oldest_half_and_keeps_the_rest_as_context(archive: Archive) -> None:
    pairs = ((say(60 * i, FRIEND, f"问{i:02}"), say(60 * i + 5, ME, f"答{i:02}")) for i in range(24))
    said = list(itertools.chain.from_iterable(pairs))
    found, tokenizer = made(archive, said, 200)
    assert len(found) > 2
    assert all(len(w.ids) <= 200 for w in found)
    assert [t for t in learned(found, tokenizer) if t] == [f"答{i:02}⏹" for i in range(24)]
    first, second = tokenizer.text(found[0].ids), tokenizer.text(found[1].ids)
    context = [i for i in range(24) if f"答{i:02}" in first and f"答{i:02}" in second]
    in_first = sum(f"答{i:02}" in first for i in range(24))
    assert len(context) in (in_first // 2, in_first // 2 + 1)


def test_a_burst_too_long_for_a_window_loses_its_oldest_bubbles_never_the_answer(archive: Archive) -> None:
    said = [*(say(i, FRIEND, f"{i}" + "长" * 50) for i in range(10)), say(20, ME, "答案")]
    found, tokenizer = made(archive, said, 220)
    assert [len(w.ids) <= 220 for w in found] == [True]
    assert learned(found, tokenizer) == ["答案⏹"]
    text = tokenizer.text(found[0].ids)
    assert ("9长" in text, "0长" in text) == (True, False)


def test_an_answer_too_long_for_a_window_is_left_out_and_the_rest_goes_on(archive: Archive) -> None:
    said = [say(0, FRIEND, "问"), say(5, ME, "答" * 500), say(60, FRIEND, "再问"), say(65, ME, "短")]
    found, tokenizer = made(archive, said, 220)
    assert learned(found, tokenizer) == ["短⏹"]


def test_subsampled_silences_lose_their_label_and_keep_their_turn(archive: Archive) -> None:
    said = [say(0, ME, "早"), *(say(60 * i, FRIEND, f"问{i}") for i in range(1, 200))]
    found, tokenizer = made(archive, said)
    everything = [replace(w, labels=tuple(replace(x, split=Split.TRAIN) for x in w.labels)) for w in found]
    kept = [len(trained_positions(w, silence_keep=0.25, seed=3)) for w in everything]
    assert sum(len(trained_positions(w)) for w in everything) == 199 + 2
    assert 30 < sum(kept) - 2 < 70
    assert kept == [len(trained_positions(w, silence_keep=0.25, seed=3)) for w in everything]
    assert tokenizer.text(found[0].ids).count("⏹") == 200


def test_only_the_train_split_is_trained(archive: Archive) -> None:
    found, _ = made(archive, _busy(60), 200)
    for window in found:
        allowed = {p for x in window.labels if x.split is Split.TRAIN for p in x.trained}
        assert set(trained_positions(window)) == allowed
    assert {x.split for x in _labels(found)} == set(Split) - {Split.NEWEST}


def test_the_newest_conversations_wait_and_what_is_held_out_stays_so(archive: Archive) -> None:
    found, tokenizer = made(archive, _busy(60), 200)
    built = build(archive, [ME], ["小满"], RULES)
    opened = sorted(e.opened for part in built.scenes for e in part.exchanges if e.opened)
    since = opened[len(opened) // 2]
    later = windows(built, tokenizer, GEMMA, SYSTEM, 200, since)
    before, after = ({(x.scene, x.message_id): x.split for x in _labels(w)} for w in (found, later))
    moved = {key for key in before if before[key] is not after[key]}
    assert moved
    assert {before[key] for key in moved} == {Split.TRAIN}
    assert {after[key] for key in moved} == {Split.NEWEST}
    assert Split.TRAIN in after.values(), "the older half is trained"
    assert [w.ids for w in found] == [w.ids for w in later], "they stand in the context all the same"


_bubble = st.tuples(
    st.sampled_from([1, 5, 19, 20, 60, 1900, 20000]),
    st.sampled_from([ME, FRIEND, OTHER, TWIN]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8),
    st.booleans(),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_bubble, min_size=1, max_size=40), st.sampled_from([GROUP, PRIVATE]), st.sampled_from([180, 300, 4096]))
def test_what_is_trained_is_rendered_as_live(bubbles: list[tuple], scene: Scene, length: int) -> None:  # type: ignore[type-arg]
    messages: list[Message] = []
    at = 0
    for gap, sender, text, quotes in bubbles:
        at += gap
        quoted = messages[-1].id if quotes and messages else None
        messages.append(say(at, sender, text, scene, reply_to=quoted))
    part = _scene(messages, scene)
    corpus = Corpus(frozenset([ME]), (), frozenset([ME]), [part], RULES, _ZONE, "")
    tokenizer = Characters()
    found = windows(corpus, tokenizer, GEMMA, SYSTEM, length)
    renderer = renderer_for(part, corpus, GEMMA, SYSTEM)
    places = {(e.heard[-1] if e.heard else e.said[0]).id: i for i, e in enumerate(part.exchanges)}
    whole = {i for i, e in enumerate(part.exchanges) if _size(render(renderer, [e], part.quoted), e) <= length}
    for window in found:
        assert len(window.ids) <= length
        for label in window.labels:
            last = places[label.message_id]
            if not whole.issuperset(range(last + 1)):
                continue  # a burst cut to fit stands in this window, as it may live
            heads = (encode(render(renderer, part.exchanges[k : last + 1], part.quoted), tokenizer)[0]
                     for k in range(last + 1))  # fmt: skip
            assert any(tuple(head) == window.ids[: label.start] for head in heads)
    ids = [x.message_id for x in _labels(found)]
    assert len(ids) == len(set(ids))
    assert {places[i] for i in ids} >= whole


def _size(pieces: list[Piece], exchange: Exchange) -> int:
    """At most so many tokens, its answer included."""
    answer = sum(len(m.text) + 1 for m in exchange.said)
    return len(encode(pieces, Characters())[0]) + answer + 2


def _scene(messages: list[Message], scene: Scene) -> SceneCorpus:
    cut = exchanges(messages, frozenset([ME]), SHORT_BURSTS)
    by_id = {m.id: m for m in messages}
    return SceneCorpus(
        scene, "名", cut, [not e.said for e in cut], [True] * len(cut), [None] * len(cut),
        [messages[0].id] * len(cut), by_id,
    )  # fmt: skip


def _busy(conversations: int) -> list[Message]:
    """Conversations two hours apart: a question, an answer, a question nobody answers."""
    found: list[Message] = []
    for i in range(conversations):
        t = 7200 * i
        found += [say(t, FRIEND, f"问{i}"), say(t + 9, ME, f"答{i}"), say(t + 60, OTHER, f"闲{i}")]
    return found


def _labels(found: Sequence[Window]) -> list[Label]:
    return [x for w in found for x in w.labels]


_ZONE = ZoneInfo(RULES.timezone)


def test_a_masked_answer_is_rendered_as_ever_and_trains_nothing_but_stays_a_decision(archive: Archive) -> None:
    said = [
        say(0, ME, "早"),
        say(60, FRIEND, "大家都来投票"),
        say(65, ME, "大家都来投票"),
        say(120, FRIEND, "谢谢"),
        say(125, ME, "嗯"),
    ]
    found, tokenizer = made(archive, said)
    assert learned(found, tokenizer) == ["早⏹", "", "嗯⏹"]
    assert "model\n大家都来投票⏹" in tokenizer.text(found[0].ids).replace("<start_of_turn>", "")
    assert [(x.silence, x.decision) for x in found[0].labels] == [(False, False), (False, True), (False, True)]


def test_media_among_the_words_is_seen_and_trains_nothing(archive: Archive) -> None:
    said = [say(0, FRIEND, "在哪"), say(5, ME, "[图片]"), say(6, ME, "这里"), say(7, ME, "[语音]")]
    found, tokenizer = made(archive, said)
    assert learned(found, tokenizer) == ["\n这里⏹"]
    (label,) = found[0].labels
    assert tokenizer.text(found[0].ids[label.start : label.stop]) == "[图片]\n这里\n[语音]⏹"
    assert (label.silence, label.decision) == (False, True)
