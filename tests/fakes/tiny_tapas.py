"""Writes tiny random models of TAPAS, which answer questions about tables."""

import json
from pathlib import Path

import torch
from transformers import TapasConfig, TapasForQuestionAnswering

from tests.fakes.vocabulary_files import write_word_pieces

AGGREGATIONS = {0: "NONE", 1: "SUM", 2: "AVERAGE", 3: "COUNT"}


def make_tapas(folder: Path, *, aggregates: bool = True, max_tokens: int = 128, seed: int = 0) -> Path:
    """Write config, weights and vocabulary, and return the folder. `max_tokens` is the longest row."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EMPTY]")
    write_word_pieces(folder / "vocab.txt", special)
    num_pieces = len((folder / "vocab.txt").read_text(encoding="utf-8").split("\n"))
    heads = {"num_aggregation_labels": 4, "aggregation_labels": AGGREGATIONS, "no_aggregation_label_index": 0}
    config = TapasConfig(
        vocab_size=num_pieces,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=max_tokens,
        **(heads if aggregates else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TapasForQuestionAnswering(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": max_tokens, "tokenizer_class": "TapasTokenizer"})
    )
    return folder
