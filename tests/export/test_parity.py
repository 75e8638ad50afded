import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tinymodel
import torch
from nasty import TEXTS
from transformers import AutoTokenizer

from bot.checksum import sha256
from bot.errors import ExportError
from bot.llama import Model
from bot.persona import Base
from bot.prompt import Piece, clean
from bot.scorer import Scorer
from export.lora import export
from export.parity import (
    LOSS_GAP_MAX,
    Passage,
    Scores,
    Vocabulary,
    compare,
    differing_pieces,
    same_end,
    scores,
)
from export.probes import PROBES
from export.reference import Reference
from export.tensors import checkpoint_tensors
from training.hf import HFTokenizer

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ARCHITECTURES = ("gemma3", "qwen3", "llama")
PIECES = [
    Piece("<start_of_turn>user\n", control=True),
    Piece("你好呀 今天\n<end_of_turn>"),
    Piece("<|im_end|>\n", True),
]


@pytest.fixture(scope="module")
def tinies(tmp_path_factory):
    return {a: tinymodel.build(tmp_path_factory.mktemp(a), a) for a in ARCHITECTURES}


@pytest.fixture(scope="module")
def exported(tinies, tmp_path_factory):
    """Architecture → (PEFT folder, LoRA GGUF)."""
    found = {}
    for architecture, tiny in tinies.items():
        folder = tmp_path_factory.mktemp("lora")
        peft = tinymodel.random_lora(tiny, folder / "peft")
        base = Base(file=tiny.gguf.name, sha256=sha256(tiny.gguf), architecture=architecture)
        found[architecture] = (peft, export(peft, tiny.hf, base, folder / "lora.gguf").path)
    return found


@pytest.fixture(scope="module")
def models(tinies):
    found = {a: Model(t.gguf) for a, t in tinies.items()}
    yield found
    for model in found.values():
        model.close()


def passages(seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(300, 600, (5, 60), generator=generator).tolist()
    return [Passage(tuple(r), wanted=tuple(range(20, 60, 2)), decisions=(20, 40)) for r in rows]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_models_give_the_same_ids_in_hugging_face_and_llama_cpp(tinies, models, architecture):
    ours, theirs = HFTokenizer(tinies[architecture].hf), models[architecture]
    assert len(TEXTS) >= 100
    for text in map(clean, TEXTS):
        for control in (False, True):
            assert ours.tokens(text, control) == theirs.tokens(text, control), (text, control)
    assert ours.bos == theirs.bos


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tiny_gguf_read_by_transformers_is_the_checkpoint_it_was_made_of(tinies, architecture):
    tiny = tinies[architecture]
    again = AutoTokenizer.from_pretrained(tiny.gguf.parent, gguf_file=tiny.gguf.name)
    ours = HFTokenizer(tiny.hf)
    for text in map(clean, TEXTS):
        assert again.backend_tokenizer.encode(text, add_special_tokens=False).ids == ours.tokens(text, True), text


@pytest.mark.parametrize(("architecture", "end"), [("gemma3", 5), ("qwen3", -1), ("llama", -1)])
def test_end_of_turn_is_one_equal_token_that_ends_generation(tinies, models, architecture, end):
    model = models[architecture]
    assert same_end(model.format, HFTokenizer(tinies[architecture].hf), model)
    assert model.end_id in model.end_ids
    assert model.end_id == (end if end >= 0 else model.n_vocab + end)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_faithful_export_passes_with_every_figure_well_inside_its_limit(tinies, models, exported, architecture):
    tiny, (peft, lora) = tinies[architecture], exported[architecture]
    model = models[architecture]
    scorer = Scorer(tiny.gguf, lora, 512, n_threads=1)
    served = scores(scorer, passages(), model.end_id)
    scorer.close()
    trained = scores(Reference(tiny.hf, peft), passages(), model.end_id)
    tokenizer = HFTokenizer(tiny.hf)

    found = Vocabulary(*differing_pieces(PIECES, tokenizer, model), same_end(model.format, tokenizer, model))
    parity = compare(trained, served, found, kind="F16", merged=False)

    assert parity.passed
    assert parity.faults == []
    assert (parity.n_tokens, parity.n_decisions) == (100, 10)
    assert (parity.pieces, parity.pieces_differing) == (len(PROBES) + 3, 0)
    assert abs(parity.loss_gap) < 0.001
    assert parity.token_gap < 0.005
    assert parity.silence_gap < 0.0005
    shown = json.loads(parity.model_dump_json())
    assert shown["passed"] is True
    assert shown["loss_gap"] == pytest.approx(parity.loss_served - parity.loss_trained)


def test_a_lora_left_out_of_the_export_does_not_pass(tinies, models, exported):
    tiny, (peft, _), end_id = tinies["gemma3"], exported["gemma3"], models["gemma3"].end_id
    ids = passages()[0].ids
    everywhere = [Passage(ids, tuple(range(1, 60)))]
    gain = (
        scores(Reference(tiny.hf, peft), everywhere, end_id).log_p
        - scores(Reference(tiny.hf, None), everywhere, end_id).log_p
    )
    # The words the LoRA makes likelier, as trained words are; over random ones its effect is 0 on average.
    learned = [Passage(ids, tuple(i + 1 for i in range(59) if gain[i] > 0.05))]
    scorer = Scorer(tiny.gguf, None, 512, n_threads=1)
    parity = compare(
        scores(Reference(tiny.hf, peft), learned, end_id),
        scores(scorer, learned, end_id),
        Vocabulary(1, 0, True),
        kind="F16",
        merged=False,
    )
    scorer.close()
    assert not parity.passed
    assert "held-out loss differs" in parity.faults[0]


def test_logits_in_chunks_equal_logits_in_one(tinies, models):
    tiny = tinies["gemma3"]
    ids = torch.randint(300, 600, (200,), generator=torch.Generator().manual_seed(3)).tolist()
    whole = scores(Reference(tiny.hf, None), [Passage(tuple(ids), tuple(range(1, 200)))], 5)
    single = [scores(Reference(tiny.hf, None), [Passage(tuple(ids), (i,))], 5).log_p[0] for i in (1, 64, 65, 128, 199)]
    assert whole.log_p[[0, 63, 64, 127, 198]] == pytest.approx(single, abs=1e-5)
    assert whole.loss == pytest.approx(-whole.log_p.mean())


def given(log_p, p_silent=()):
    return Scores(np.array(log_p, dtype=float), np.array(p_silent, dtype=float), np.empty(0))


ON_BASE = {"kind": "Q4_K_M", "merged": False}
LIMITS = [
    (given([-2.0] * 10), given([-2.0 - 0.0299] * 10), True),
    (given([-2.0] * 10), given([-2.0 - 0.0301] * 10), False),
    (given([-2.0] * 10), given([-2.0 + 0.0301] * 10), False),
    (given([-2.0], [0.5, 0.5]), given([-2.0], [0.5 + 0.0199, 0.5 - 0.0199]), True),
    (given([-2.0], [0.5, 0.5]), given([-2.0], [0.5 + 0.0201, 0.5 - 0.0201]), False),
    (given([-2.0] * 4), given([-2.13, -2.13, -1.87, -2.13]), True),
    (given([-2.0] * 400), given([-2.13, -2.13, -1.87, -2.13] * 100), False),
    (given([-2.0, math.nan]), given([-2.0, -2.0]), False),
    (given([-2.0]), given([-math.inf]), False),
    (given([-2.0], [0.5]), given([-2.0], [math.nan]), False),
]


@pytest.mark.parametrize(("trained", "served", "passes"), LIMITS)
def test_limits_hold_on_both_sides_and_no_number_never_passes(trained, served, passes):
    assert compare(trained, served, Vocabulary(1, 0, True), **ON_BASE).passed is passes


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_no_number_never_passes_where_single_tokens_are_not_judged(broken):
    parity = compare(given([-2.0]), given([broken]), Vocabulary(1, 0, True), kind="Q4_K_M", merged=True)
    assert not parity.passed
    assert parity.token_gap_limit is None


@pytest.mark.parametrize(("gap", "passes"), [(0.49, True), (0.51, False)])
def test_what_others_said_counts_among_the_single_tokens(gap, passes):
    trained, served = (replace(given([-2.0]), heard=np.array([-2.0 - x])) for x in (0.0, gap))
    assert compare(trained, served, Vocabulary(1, 0, True), **ON_BASE).passed is passes  # half of the tokens: 0.25


def test_one_differing_text_or_another_end_of_turn_does_not_pass():
    equal = given([-2.0])
    assert not compare(equal, equal, Vocabulary(100, 1, True), **ON_BASE).passed
    assert not compare(equal, equal, Vocabulary(100, 0, False), **ON_BASE).passed


def test_other_stops_or_another_template_do_not_pass():
    equal = given([-2.0])
    assert not compare(equal, equal, Vocabulary(100, 0, True, stops_differing=1), **ON_BASE).passed
    assert not compare(equal, equal, Vocabulary(100, 0, True, templates_differing=1), **ON_BASE).passed


@pytest.mark.parametrize(
    ("kind", "merged", "gap", "passes"),
    [
        ("F16", False, 0.019, True), ("F16", False, 0.021, False), ("BF16", True, 0.021, False),
        ("Q4_K_M", False, 0.24, True), ("Q4_K_M", False, 0.26, False), ("Q4_K_M", True, 0.26, True),
    ],
)  # fmt: skip
def test_single_tokens_must_agree_where_the_weights_are_the_same(kind, merged, gap, passes):
    trained, served = given([-2.0, -2.0]), given([-2.0 - gap, -2.0 + gap])
    assert compare(trained, served, Vocabulary(1, 0, True), kind=kind, merged=merged).passed is passes


def test_a_merged_model_may_lose_what_its_type_is_known_to_cost_and_shows_it():
    trained, served = given([-2.0]), given([-2.08])
    assert not compare(trained, served, Vocabulary(1, 0, True), kind="Q8_0", merged=True).passed
    parity = compare(trained, served, Vocabulary(1, 0, True), kind="Q4_K_M", merged=True)
    assert parity.passed
    shown = json.loads(parity.model_dump_json())
    assert shown["loss_gap_published"] == pytest.approx(math.log((6.2316 + 0.1754) / 6.2316))
    assert shown["loss_gap_limit"] == pytest.approx(LOSS_GAP_MAX + 2 * shown["loss_gap_published"])
    assert not compare(trained, served, Vocabulary(1, 0, True), **ON_BASE).passed


def test_no_type_excuses_that_what_was_learned_is_gone():
    trained, served = given([-2.0] * 9), given([-2.8] * 9)
    alone = compare(trained, served, Vocabulary(1, 0, True), kind="Q2_K", merged=True)
    assert alone.passed
    assert alone.learned_lost is None
    parity = compare(trained, served, Vocabulary(1, 0, True), kind="Q2_K", merged=True, loss_base=3.0)
    assert parity.learned_lost == pytest.approx(0.8)
    assert parity.faults == ["80% of what was learned is gone (limit 50%)"]
    young = compare(trained, given([-2.03] * 9), Vocabulary(1, 0, True), kind="Q8_0", merged=True, loss_base=2.05)
    assert young.faults == ["60% of what was learned is gone (limit 50%)"], "well within the type's own limit"
    noisy = young.model_copy(update={"loss_gap_se": 0.01})
    assert noisy.passed, "it may be 20 %"
    assert compare(trained, served, Vocabulary(1, 0, True), kind="Q2_K", merged=True, loss_base=4.0).passed
    nothing = compare(trained, trained, Vocabulary(1, 0, True), kind="Q2_K", merged=True, loss_base=1.0)
    assert nothing.passed
    assert nothing.learned_lost is None


@pytest.mark.parametrize(("n", "gap"), [(20, 0.6), (60, 0.35), (160, 0.2)])
def test_damage_that_scatters_single_tokens_does_not_pass_for_noise(n, gap):
    rng = np.random.default_rng(n)
    scattered = rng.normal(0.0, 1.5, n)
    scattered += gap - scattered.mean()
    parity = compare(given([-2.0] * n), given(-2.0 - scattered), Vocabulary(1, 0, True), kind="Q8_0", merged=True)
    assert abs(parity.loss_gap) < 2 * parity.loss_gap_se + 0.5, "by its own scatter it would be noise"
    assert not parity.passed


def test_no_type_excuses_a_decision_that_turned_around():
    sides = given([-2.0] * 50, [0.99, 0.5]), given([-3.0] * 50, [0.80, 0.45])
    parity = compare(*sides, Vocabulary(1, 0, True), kind="IQ1_S", merged=True)
    assert parity.silence_gap_limit == 0.1
    assert parity.faults == ["P(silent) differs by 0.1200 on average (limit 0.100)"]


@pytest.mark.parametrize(
    ("kind", "served", "silent", "as_judged"),
    [("Q8_0", -2.02, 0.5, True), ("Q4_K_M", -2.08, 0.5, False), ("Q4_K_M", -2.02, 0.523, False)],
)
def test_a_verdict_holds_for_what_is_as_near_as_a_lora_must_be(kind, served, silent, as_judged):
    sides = given([-2.0] * 9, [0.5]), given([served] * 9, [silent])
    parity = compare(*sides, Vocabulary(1, 0, True), kind=kind, merged=True)
    assert (parity.passed, parity.as_judged) == (True, as_judged)


def test_what_nf4_adds_is_shown_and_not_judged():
    parity = compare(given([-2.0]), given([-2.0]), Vocabulary(1, 0, True), **ON_BASE, loss_nf4=9.0)
    assert parity.passed
    assert json.loads(parity.model_dump_json())["loss_nf4"] == 9.0


MARKERS = ("</s>", "<think>", "</think>", "<tool_call>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<EOT>")
"""Added tokens that are not special, as real vocabularies have them; llama.cpp ends answers at some."""


@pytest.fixture(scope="module", params=["gemma3", "qwen3"])
def marked(request, tmp_path_factory):
    tiny = tinymodel.build(tmp_path_factory.mktemp("marked"), request.param, markers=MARKERS)
    model = Model(tiny.gguf)
    yield tiny, HFTokenizer(tiny.hf), model
    model.close()


def test_what_somebody_types_is_never_a_marker_and_the_same_ids_on_both_sides(marked):
    _, ours, theirs = marked
    ids = {ours.tokens(m, True)[0] for m in MARKERS}
    assert len(ids) == len(MARKERS)
    assert {"</s>", "<|fim_pad|>", "<EOT>"} <= {m for m in MARKERS if ours.tokens(m, True)[0] in theirs.ends}
    for text in (*MARKERS, *(f"你看</s>{m} {m}哈哈" for m in MARKERS), "</s></s>", "<</s>>", "<|", "a<", "1 < 2"):
        assert not ids & set(theirs.tokens(text, False)), text
        assert ours.tokens(text, False) == theirs.tokens(text, False), text
        assert ours.text(ours.tokens(text, False)) == text
    said = [Piece(f"再见{m}") for m in MARKERS]
    assert differing_pieces(said, ours, theirs) == (len(PROBES) + len(MARKERS), 0)


def test_another_token_in_front_is_found(tinies, models):
    ours, theirs = HFTokenizer(tinies["gemma3"].hf), models["gemma3"]
    assert differing_pieces(PIECES, ours, theirs) == (len(PROBES) + len(PIECES), 0)
    without = HFTokenizer(tinies["gemma3"].hf)
    without.bos = None
    assert differing_pieces(PIECES, without, theirs) == (len(PROBES) + len(PIECES), 1)


class Says:
    """A vocabulary that holds the same ids for everything."""

    bos = None

    def __init__(self, *ids):
        self._ids = list(ids)

    def tokens(self, text, control):
        return self._ids


@pytest.mark.parametrize(
    ("trained", "served", "equal"),
    [([5], [5], True), ([5], [6], False), ([5, 6], [5, 6], False), ([5], [5, 6], False), ([], [], False)],
)
def test_the_end_of_turn_is_one_token_and_the_same(models, trained, served, equal):
    assert same_end(models["gemma3"].format, Says(*trained), Says(*served)) is equal


def test_texts_of_another_vocabulary_are_counted(tinies, models):
    compared, differing = differing_pieces(PIECES, HFTokenizer(tinies["qwen3"].hf), models["gemma3"])
    assert differing > compared / 2


def test_nothing_held_out_is_an_error_and_so_are_different_passages():
    with pytest.raises(ExportError, match="no held-out token"):
        compare(given([]), given([]), Vocabulary(1, 0, True), **ON_BASE)
    with pytest.raises(ExportError, match="same passages"):
        compare(replace(given([-1.0]), heard=np.zeros(2)), given([-1.0]), Vocabulary(1, 0, True), **ON_BASE)
    with pytest.raises(ExportError, match="same passages"):
        compare(given([-1.0]), given([-1.0, -1.0]), Vocabulary(1, 0, True), **ON_BASE)


def test_a_checkpoint_that_memory_does_not_hold_in_float32_is_refused_before_it_is_read(tinies, monkeypatch):
    hf = tinies["llama"].hf
    numbers = sum(t.n_numbers for t in checkpoint_tensors(hf).values())
    for free, said in ((4 * numbers, None), (4 * numbers - 1, "is held in float32: that takes")):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        if said is None:
            Reference(hf, None)
        else:
            with pytest.raises(ExportError, match=said):
                Reference(hf, None)


def test_a_missing_checkpoint_is_an_export_error(tmp_path):
    with pytest.raises(ExportError, match="cannot be loaded for parity"):
        scores(Reference(tmp_path / "nowhere", None), passages(), 5)
