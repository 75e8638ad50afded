"""A folder → a seeded tiny language model with a real tokenizer, as a Hugging Face checkpoint and as the same GGUF.

Everything is made in process in about a second (after importing torch and transformers), offline: the tokenizer is
trained on the given texts, the weights are drawn, rounded to float16 (so checkpoint and F16 GGUF hold the same
numbers), and the GGUF is written by llama.cpp's own converter with the vocabulary put in by us. Both sides give the
same token ids for any text, control tokens parsed or not.

Architectures: gemma3 and gemma2 (SentencePiece-like, byte fallback, `<start_of_turn>`, BOS), qwen2, qwen3, qwen3moe
and llama (byte-level BPE with Qwen2's regex, `<|im_start|>`, no BOS); with the latter's tokenizer also mamba
(recurrent) and lfm2 (convolutions and attention). End of turn is an end-of-generation token of the GGUF in each. And
transformers reads the GGUF back as the same weights and ids (not tried with gemma2, qwen2 and qwen3moe).

What learns by heart: gemma3, hidden=128, layers=2, no pretraining; LoRA r=32, lora_alpha=64 on all linear layers, AdamW
with learning rate 5e-3, warm-up and cosine, 200 steps of 4 windows of 192 tokens; ten exchanges (three silences) in 30
shuffled rounds. In llama.cpp, greedy, 60 of 60 answers in new orders were right, P(silent) ≥ 0.97 where silence was
learned and < 0.001 elsewhere; 45 s on one busy core. Less did less, one run each, 150 steps: hidden=128 with 12 rounds
48 and 56 of 60, hidden=64 with 12 rounds 36 to 56, and with windows of 512 tokens 40.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils import logging as transformers_logging

Architecture = Literal[
    "gemma2", "gemma3", "qwen2", "qwen3", "qwen3moe", "llama", "mamba", "lfm2", "qwen35", "falcon-h1"
]

_QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GEMMA_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_ASCII = [chr(c) for c in range(32, 127)]

TEXTS = (
    "早呀，今天吃什么？", "昨晚又熬夜了，困死我了哈哈哈", "走不走，老地方见", "好耶！我也要去",
    "在忙，晚点说[捂脸]", "你们先吃，不用等我", "作业写完了吗", "还没有呢，明天再说吧", "周末去爬山怎么样？",
    "下雨就不去了", "这个表情包笑死我[图片]", "谁看见我的猫了", "它在沙发下面睡觉", "晚安，明天见",
    "user\nmodel\nassistant\nsystem\n", "现在是QQ群「周末去哪儿」。", "现在是你和阿泽的QQ私聊。", "你是小满。",
    "说话：短句，爱用语气词。", "【周五 23:10 · 隔了3小时】", "【周一 08:05 · 隔了2天】",
    "【周二周三周四周六周日 隔了40分钟】", "阿泽：收到", "[回复 阿泽：好的]", "hello ok bye, see you at 10:30!",
    "我觉得可以，不过要先问问老师", "哦哦", "嗯嗯，知道啦", "什么时候回来", "马上到↵等我五分钟",
)  # fmt: skip
"""What a tokenizer is trained on unless told: small talk and the words around it."""


@dataclass(frozen=True, slots=True)
class Tiny:
    """One model in two forms.

    Args:
        hf: folder of the Hugging Face checkpoint, with its tokenizer.
        gguf: the GGUF file with the same weights and ids.
    """

    hf: Path
    gguf: Path


def build(
    folder: Path,
    architecture: Architecture = "gemma3",
    texts: Sequence[str] = TEXTS,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    vocabulary: int = 1000,
    f32: bool = False,
    window: int = 512,
    markers: Sequence[str] = (),
) -> Tiny:
    """A new model.

    Args:
        folder: where `hf/` and `model.gguf` are put.
        architecture: GGUF's name of it.
        texts: what the tokenizer is trained on; characters it never saw become bytes.
        seed: of the weights.
        hidden: width; a multiple of 32.
        layers: decoder layers.
        vocabulary: tokens at most (gemma3: besides specials and bytes).
        f32: write the GGUF in F32 instead of F16.
        window: gemma3's sliding window; every sixth layer has none.
        markers: added tokens that are not special, as `<think>` of Qwen 3; user-defined ones of the GGUF.
    """
    transformers_logging.disable_progress_bar()
    hf = folder / "hf"
    hf.mkdir(parents=True, exist_ok=True)
    tokenizer = _spm_like(texts, vocabulary) if architecture.startswith("gemma") else _byte_level(texts, vocabulary)
    if markers:
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in markers])
    tokenizer.save_pretrained(hf)
    model = _model(architecture, tokenizer, hidden, layers, window)
    _draw(model, seed, architecture)
    model.save_pretrained(hf)
    return Tiny(hf, write_gguf(hf, folder / "model.gguf", f32))


def random_lora(tiny: Tiny, folder: Path, seed: int = 1, strength: float = 0.03, **config: Any) -> Path:
    """A PEFT LoRA folder whose B is drawn instead of zero, so that it changes what the model says.

    Args:
        tiny: the base.
        folder: where it is saved.
        seed: of both halves.
        strength: standard deviation of B.
        config: of `peft.LoraConfig`.
    """
    torch.manual_seed(seed)
    settings = {"r": 32, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny.hf, dtype=torch.float32), LoraConfig(**settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, strength)
    model.save_pretrained(str(folder))
    return folder


def _byte_level(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # After training: given to the trainer they would take the first ids and be matched inside words.
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in _CHATML_SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _spm_like(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    pieces = _learned_pieces(texts, size)
    specials = [*_GEMMA_SPECIALS, *(f"<0x{b:02X}>" for b in range(256))]
    vocab = {piece: i for i, piece in enumerate([*specials, *pieces])}
    # llama.cpp merges any two neighbours whose concatenation is a piece, the best score first: every split is a merge.
    merges = [
        (p[:k], p[k:]) for p in pieces if len(p) > 1 for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]  # type: ignore[no-untyped-call]
    )
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in _GEMMA_SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def _learned_pieces(texts: Sequence[str], size: int) -> list[str]:
    """Characters first, then merged pieces in the order they were learned."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    characters = sorted({*_ASCII[1:], "▁", "\n"})
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=characters, special_tokens=[], show_progress=False, max_token_length=4
    )
    learner.train_from_iterator(texts, trainer)
    found = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in found]


def _model(
    architecture: Architecture, tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, window: int
) -> Any:
    # Loading a GGUF, transformers takes the real models' head width for granted in gemma3 and qwen3.
    head_dim = {"gemma3": 256, "qwen3": 128, "lfm2": hidden // 2}.get(architecture, 32)
    if architecture == "mamba":
        return MambaForCausalLM(
            MambaConfig(
                vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, tie_word_embeddings=True
            )
        )
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": hidden * 5 // 2 // 32 * 32,
        "num_hidden_layers": layers, "num_attention_heads": 4 if architecture == "llama" else 2,
        "num_key_value_heads": 2 if architecture == "llama" else 1, "head_dim": head_dim, "tie_word_embeddings": True,
        "max_position_embeddings": 4096, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if architecture == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(query_pre_attn_scalar=256, sliding_window=window, **shape))
    if architecture == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(query_pre_attn_scalar=32, sliding_window=512, **shape))
    if architecture == "qwen3moe":
        # llama.cpp always normalizes the chosen experts' weights, as the real models do.
        mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**mixture, **shape))
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shape))
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape))
    if architecture == "qwen35":
        kinds = ["full_attention" if layer % 2 else "linear_attention" for layer in range(layers)]
        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]}
        linear = {f"linear_{k}": 32 for k in ("key_head_dim", "value_head_dim")}
        linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        return Qwen3_5ForCausalLM(
            Qwen3_5TextConfig(layer_types=kinds, full_attention_interval=2, rope_parameters=rope, **linear, **shape)
        )
    if architecture == "falcon-h1":
        mixer = {"mamba_d_ssm": 2 * hidden, "mamba_n_heads": 4, "mamba_d_head": hidden // 2, "mamba_d_state": 16}
        return FalconH1ForCausalLM(FalconH1Config(**mixer, **shape))
    if architecture == "lfm2":
        kinds = ["full_attention" if layer % 2 else "conv" for layer in range(layers)]
        return Lfm2ForCausalLM(Lfm2Config(block_auto_adjust_ff_dim=False, layer_types=kinds, **shape))
    return LlamaForCausalLM(LlamaConfig(**shape))


def _draw(model: Any, seed: int, architecture: Architecture) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "A_log" in name or name.endswith((".D", "dt_proj.bias", "dt_bias")):
                continue  # of recurrent layers: how they forget is not random
            if "norm" in name:
                adds_one = architecture.startswith("gemma") or (
                    architecture == "qwen35" and not name.endswith("linear_attn.norm.weight")
                )
                weight.normal_(0.0 if adds_one else 1.0, 0.1, generator=generator)
            else:
                weight.normal_(0.0, 0.08, generator=generator)
    round_weights(model)


def round_weights(model: Any) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())


def write_gguf(hf: Path, out: Path, f32: bool) -> Path:
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    # The converter and gguf warn of harmless matters ("Duplicated key name") through the root logger.
    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    hparams = ModelBase.load_hparams(hf, False)
    converter = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

    class WithOurVocabulary(converter):  # type: ignore[misc, valid-type]
        model_arch = converter.model_arch
        no_mtp = True  # of Qwen's newer models: the layers that guess ahead are no part of a checkpoint of ours

        def set_vocab(self) -> None:
            _write_vocabulary(self.gguf_writer, hf)

    kind = gguf.LlamaFileType.ALL_F32 if f32 else gguf.LlamaFileType.MOSTLY_F16
    with torch.inference_mode():
        WithOurVocabulary(hf, kind, out, hparams=hparams).write()
    return out


def _write_vocabulary(writer: gguf.GGUFWriter, hf: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(hf)
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=lambda t: vocab[t])
    markers = {token.content for token in tokenizer.added_tokens_decoder.values() if not token.special}
    types = [int(gguf.TokenType.USER_DEFINED) if token in markers else _type(token) for token in tokens]
    if "<start_of_turn>" in vocab:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([_score(t, i) for i, t in enumerate(tokens)])
        writer.add_token_types(types)
        writer.add_add_space_prefix(False)
        writer.add_bos_token_id(vocab["<bos>"])
        writer.add_unk_token_id(vocab["<unk>"])
    else:
        state = Tokenizer.from_file(str(hf / "tokenizer.json"))
        merges = _merges(state)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
    writer.add_add_bos_token("<start_of_turn>" in vocab)
    writer.add_eos_token_id(int(tokenizer.eos_token_id))
    writer.add_pad_token_id(int(tokenizer.pad_token_id))


def _merges(tokenizer: Tokenizer) -> list[str]:
    import json

    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _score(token: str, rank: int) -> float:
    if _type(token) != gguf.TokenType.NORMAL:
        return -1000.0
    return -1e6 if len(token) == 1 else -float(rank)


def _type(token: str) -> int:
    if token == "<unk>":
        return int(gguf.TokenType.UNKNOWN)
    if token in _GEMMA_SPECIALS or token in _CHATML_SPECIALS:
        return int(gguf.TokenType.CONTROL)
    if len(token) == 6 and token.startswith("<0x"):
        return int(gguf.TokenType.BYTE)
    return int(gguf.TokenType.NORMAL)
