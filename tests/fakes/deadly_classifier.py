"""A tiny BERT classifier whose own code ends the process at a planted text, for servers with `--trust-remote-code`."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.fakes.word_tokenizer import vocabulary, write_word_tokenizer

DEADLY_TEXT = "london london london"  # no trial of the start has a token three times in a row, but for token 1

_CODE = """
import os

from transformers import BertForSequenceClassification


class DeadlyForSequenceClassification(BertForSequenceClassification):
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **kwargs):
        deadly = input_ids == @DEADLY_ID@
        if bool((deadly[:, :-2] & deadly[:, 1:-1] & deadly[:, 2:]).any()):
            os._exit(7)
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, **kwargs
        )
"""


def make_deadly_classifier(folder: Path) -> Path:
    """Write the model, and return the folder."""
    write_word_tokenizer(folder)
    tokens = list(dict.fromkeys(vocabulary()))
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
    )
    AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).save_pretrained(folder)
    (folder / "deadly.py").write_text(_CODE.replace("@DEADLY_ID@", str(tokens.index("london"))))
    name = "DeadlyForSequenceClassification"
    written = json.loads((folder / "config.json").read_text())
    written |= {"architectures": [name], "auto_map": {"AutoModelForSequenceClassification": f"deadly.{name}"}}
    (folder / "config.json").write_text(json.dumps(written))
    return folder
