"""A tiny llama whose own code breaks on demand, for tests of a whole server with `--trust-remote-code`.

A file in the model's folder breaks the next step of a rank, and words in a prompt break the request that brings them.
"""

import json
from pathlib import Path

from tests.fakes.tiny_models import make_tiny_llama

# Flags with which transformers' code, and so the model's own code, computes the steps.
ARGUMENTS = ("--trust-remote-code", "--no-native-decoder")

NOT_FINITE_WORD = "#NAN"  # the logits of a prompt with this word are NaN
NO_MEMORY_WORD = "#OOM"  # a step with such a prompt runs out of memory when it has more than MAX_TOKENS tokens
EXIT_WORD = "#EXIT"  # a step with such a prompt ends the process
MAX_TOKENS = 64

_CODE = """
import os
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(@FOLDER@)


class FaultyConfig(LlamaConfig):
    model_type = "faulty"


class FaultyForCausalLM(LlamaForCausalLM):
    config_class = FaultyConfig

    def forward(self, input_ids=None, position_ids=None, logits_to_keep=0, **kwargs):
        _break_once(int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else 0)
        text = bytes(min(token, 255) for token in input_ids[0].tolist())
        if b"#EXIT" in text:
            os._exit(7)
        if b"#OOM" in text and len(text) > @MAX_TOKENS@:
            raise torch.OutOfMemoryError("CUDA out of memory, says the faulty model")
        output = super().forward(
            input_ids=input_ids, position_ids=position_ids, logits_to_keep=logits_to_keep, **kwargs
        )
        if b"#NAN" in text and torch.is_tensor(logits_to_keep):
            for row, index in enumerate(logits_to_keep.tolist()):
                start = index  # of the row, whose first tokens may have come from the prefix cache
                while start and position_ids[0, start - 1] == position_ids[0, start] - 1:
                    start -= 1
                if b"#NAN" in text[start : index + 1]:
                    output.logits[0, row] = torch.nan
        return output


def _break_once(rank):
    order = FOLDER / f"fault-{rank}"
    if not order.exists():
        return
    word = order.read_text()
    order.unlink()
    if word == "hang":
        time.sleep(3600)
    if word == "exit":
        os._exit(5)
    raise RuntimeError("the faulty model was told to raise")
"""


def make_faulty_model(folder: Path) -> Path:
    """Write the model, and return the folder."""
    make_tiny_llama(folder, max_position_embeddings=32_768)
    code = _CODE.replace("@FOLDER@", repr(str(folder))).replace("@MAX_TOKENS@", str(MAX_TOKENS))
    (folder / "faulty.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    own_code = {"AutoConfig": "faulty.FaultyConfig", "AutoModelForCausalLM": "faulty.FaultyForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "faulty", "auto_map": own_code}))
    return folder


def order_fault(folder: Path, word: str, rank: int = 0) -> None:
    """Break the next step of a rank: "hang", "exit" or "raise"."""
    order = folder / f"order-{rank}"
    order.write_text(word)
    order.rename(folder / f"fault-{rank}")
