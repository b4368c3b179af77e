"""Makes tiny random models with an encoder, in the folder layout of real models, with small tokenizers."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from tests.fakes.byte_tokenizer import BEGIN, BEGIN_ID, END, END_ID, make_byte_tokenizer
from tests.fakes.tiny_models import make_random_model

PAD_ID, T5_END_ID = 0, 1
WORDS = ("the", "quick", "brown", "fox", "a", "summary", "of", "texts")
PIECES = ("<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), *(chr(code) for code in range(33, 127)))
PAD_ID_OF_BART = END_ID + 1


def make_tiny_t5(folder: Path) -> Path:
    """Write a T5 model, and return its folder.

    Tokens are pieces of words, with a mark for a space. The encoder reads `text </s>`, and the decoder begins with
    `<pad>`.
    """
    config = AutoConfig.for_model(
        "t5",
        vocab_size=len(PIECES),
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_max_distance=24,
        initializer_factor=1.5,
        tie_word_embeddings=False,  # a random model with tied embeddings gives one token over and over
        pad_token_id=PAD_ID,
        eos_token_id=T5_END_ID,
        decoder_start_token_id=PAD_ID,
    )
    _make(folder, config, _piece_tokenizer())
    _write_json(folder / "tokenizer_config.json", {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})
    return folder


def make_tiny_bart(folder: Path, *, max_position_embeddings: int = 64) -> Path:
    """Write a Bart model whose tokens are bytes, and return its folder.

    The encoder reads `<begin> text <end>`. The decoder begins with `<end>`, and its first output must be `<begin>`.
    """
    config = AutoConfig.for_model(
        "bart",
        vocab_size=PAD_ID_OF_BART + 1,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=80,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=False,
        init_std=0.6,  # with the usual 0.02 all logits would be nearly equal
        bos_token_id=BEGIN_ID,
        pad_token_id=PAD_ID_OF_BART,
        eos_token_id=END_ID,
        decoder_start_token_id=END_ID,
    )
    tokenizer = make_byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, BEGIN_ID), (END, END_ID)]
    )
    _make(folder, config, tokenizer)
    _write_json(folder / "tokenizer_config.json", {"bos_token": BEGIN, "eos_token": END})
    beginning = {"decoder_start_token_id": END_ID, "forced_bos_token_id": BEGIN_ID}
    _write_json(
        folder / "generation_config.json", {**beginning, "eos_token_id": END_ID, "pad_token_id": PAD_ID_OF_BART}
    )
    return folder


def _make(folder: Path, config: Any, tokenizer: tokenizers.Tokenizer) -> None:
    make_random_model(config, folder, auto_class=AutoModelForSeq2SeqLM)
    tokenizer.save(str(folder / "tokenizer.json"))


def _piece_tokenizer() -> tokenizers.Tokenizer:
    scored = [(piece, -1.0 if len(piece) > 1 else -5.0) for piece in PIECES]
    tokenizer = tokenizers.Tokenizer(models.Unigram(scored, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", T5_END_ID)])
    return tokenizer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
