"""The embedded base with the shipped LoRA, once through every step: PEFT → LoRA GGUF, and merge → Q8_0, proven."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from bench import peft
from bot import base
from bot.llama import Model
from bot.message import Scene
from bot.persona import Base, Personas, Version
from bot.prompt import Piece, encode, scene_line
from bot.scorer import Scorer
from bot.twin import SHIPPED
from export import lora, merged, proof
from export.parity import Passage, scores
from training.base import checkpoint
from training.hf import HFTokenizer

ROOT = Path(__file__).parents[2]
TALKS = (
    (
        ("没事啦 就是做噩梦了！！", "抱抱\n梦到什么了捏"),
        ("梦到剪头发剪成光头～", "hhhh\n那我给你织帽子"),
        ("哈哈哈哈等你织完我头发都长出来了", ""),
    ),
    (
        ("睡袋要是不到怎么办呀～", "问题不大\n林一有备用的\n还有我的被子捏"),
        ("我好怕耽误大家！！", "不会的\n少谁都不能少你"),
        ("呜呜呜满满～", "真的捏"),
        ("哈哈哈哈也是！！", ""),
    ),
)
"""Of the test split of data/demo/history.jsonl, which she did not learn."""

# peft 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def embedded() -> Path:
    # Where the daemon keeps it: assembled, and dequantized for half a minute, once a checkout.
    return base.resolve(base.EMBEDDED, ROOT / "data", ROOT)


@pytest.fixture(scope="module")
def xiaoman() -> Version:
    version = Personas(SHIPPED, base.EMBEDDED_SHA256).load("xiaoman").version
    assert version is not None
    return version


@pytest.fixture(scope="module")
def trained(embedded: Path, xiaoman: Version, tmp_path_factory: pytest.TempPathFactory) -> proof.Trained:
    folder = checkpoint(embedded, ROOT / "data" / "models")
    assert xiaoman.lora is not None
    made = peft.write(xiaoman.lora, tmp_path_factory.mktemp("lora") / "peft")
    tokenizer = HFTokenizer(folder)
    return proof.Trained(folder, made, tokenizer.format, tokenizer)


@pytest.fixture(scope="module")
def held_out(trained: proof.Trained, xiaoman: Version) -> proof.HeldOut:
    system = f"{xiaoman.manifest.system_prompt}\n{scene_line(Scene('private', '1'), '桃桃')}"
    found = [_passage(talk, system, trained) for talk in TALKS]
    passages = [passage for passage, _ in found]
    prompt = passages[0].ids[: passages[0].decisions[0]]
    return proof.HeldOut(passages, [piece for _, pieces in found for piece in pieces], [prompt], 512)


def _passage(talk: Sequence[tuple[str, str]], system: str, trained: proof.Trained) -> tuple[Passage, list[Piece]]:
    fmt = trained.format
    pieces = [Piece(fmt.system_open, True), Piece(system), Piece(fmt.system_close, True)]
    wanted: list[int] = []
    decisions: list[int] = []
    for number, (heard, said) in enumerate(talk):
        opening = fmt.first_user_open if number == 0 else fmt.user_open
        pieces += [Piece(x, True) for x in (opening,) if x]
        pieces += [Piece(heard), Piece(fmt.user_close, True), Piece(fmt.assistant_open, True)]
        start = len(encode(pieces, trained.tokenizer)[0])
        pieces += [*([Piece(said)] if said else []), Piece(fmt.end, True)]
        wanted += range(start, len(encode(pieces, trained.tokenizer)[0]))
        decisions.append(start)
        pieces.append(Piece(fmt.after, True))
    ids = tuple(encode(pieces, trained.tokenizer)[0])
    return Passage(ids, tuple(wanted), tuple(decisions), tuple(range(1, decisions[0], 3))), pieces


def test_the_shipped_lora_comes_back_bit_by_bit(
    embedded: Path, xiaoman: Version, trained: proof.Trained, tmp_path: Path
) -> None:
    named = Base(file=embedded.name, sha256=base.EMBEDDED_SHA256, architecture="gemma3")
    out = lora.export(trained.peft, trained.checkpoint, named, tmp_path / "lora.gguf").path
    assert xiaoman.lora is not None
    ours, theirs = ({t.name: np.array(t.data) for t in gguf.GGUFReader(f).tensors} for f in (out, xiaoman.lora))
    assert len(ours) == 252
    assert all(np.array_equal(ours[name], values) for name, values in theirs.items())


def test_the_lora_on_the_quantized_base_is_what_was_trained(
    embedded: Path, trained: proof.Trained, held_out: proof.HeldOut, tmp_path: Path
) -> None:
    named = Base(file=embedded.name, sha256=base.EMBEDDED_SHA256, architecture="gemma3")
    out = lora.export(trained.peft, trained.checkpoint, named, tmp_path / "lora.gguf").path
    found = proof.prove(trained, embedded, out, held_out)
    parity = found.parity
    assert parity.faults == []
    assert (parity.kind, parity.merged, parity.pieces_differing, parity.end_equal) == ("Q4_K_M", False, 0, True)
    assert abs(parity.loss_gap) <= parity.loss_gap_limit
    assert (parity.n_decisions, parity.greedy) == (sum(map(len, TALKS)), 1)
    assert all(text for pair in found.texts for text in pair)
    scorer = Scorer(embedded, None, held_out.n_ctx)
    bare = scores(scorer, held_out.passages, scorer.model.end_id).loss
    scorer.close()
    assert bare - parity.loss_served > 10 * parity.loss_gap_limit, "what is compared holds the LoRA"


def test_merged_and_quantized_it_is_still_her(
    embedded: Path, trained: proof.Trained, held_out: proof.HeldOut, tmp_path: Path
) -> None:
    about = merged.about(trained, embedded, base.EMBEDDED_SHA256, "小满", "merged-q8_0", {})
    steps = []
    # Not Q4_K_M: on this base the gate refused it, 1.5 nats worse on a talk of four turns.
    found = merged.export(
        trained, embedded, about, "Q8_0", tmp_path / "merged", held_out, lambda step, *_: steps.append(step)
    )
    parity = found.parity
    assert parity.passed
    assert parity.greedy == 1
    assert all(text for pair in found.texts for text in pair)
    assert (parity.kind, parity.pieces_differing, parity.stops_differing) == ("Q8_0", 0, 0)
    assert set(steps) == {"convert", "quantize", "parity"}
    model = Model(tmp_path / "merged" / "model.gguf")
    assert (model.metadata("general.license"), model.metadata("general.name")) == ("gemma", "小满")
    assert model.metadata("general.base_model.0.name") == "Gemma 3 270m"
    assert model.bos == 2
    model.close()
