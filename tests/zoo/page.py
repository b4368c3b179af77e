"""Writes docs/models.md: runs the zoo and prints its table. `python -m tests.zoo.page > docs/models.md`."""

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import transformers
from transformers.utils.logging import disable_progress_bar

from tests.fakes.native_cases import native_cache_folder
from tests.zoo.drive import load_zoo_model, make_zoo_model, run_zoo_model
from tests.zoo.entry import ZooEntry
from tests.zoo.table import ZOO

HEAD = """# Models

The table is generated (`make models-page`) from the architecture zoo, `tests/zoo`: for each architecture a tiny random
model runs four requests of uneven lengths through the real step loop, prompts in chunks beside decodes of others, over
shuffled blocks, with the native kernels. Each logit is compared with transformers' own uncached eager forward in fp32.
*Difference* is the largest one, relative to the largest logit; *bound* is what the test allows (2e-05 unless the row
says why it is more). A model type that is not listed here is loaded too when its attention goes through transformers'
attention interface; at start its first steps are compared with a forward of transformers' code alone, and it is refused
with the reason when they differ or when it cannot run. What became of every other type that transformers knows is in
[other_models.md](other_models.md).

"""
LAYOUTS = """
Layouts: *flat* runs all tokens of a step as one row, attention reads the paged KV cache; everything works. *state*
models have layers that carry a state from token to token, kept in a row per slot: the tokens of a step that decode run
together, each chunk of a prompt on its own; there is no prefix cache, a preempted request computes its prompt again,
and the model is not divided among shards. *padded* models have attention code of their own: it is given whole contexts,
gathered from the paged cache and padded on the left; slower, the prefix cache works, not divided among shards.
*encoder_decoder* models read a prompt with an encoder: each prompt whole and on its own, once; what their decoders look
back at is kept in the paged cache, and the decoders of all requests run together, their contexts gathered and padded.
The output is what the decoder writes, without the prompt. There is no prefix cache, no log-probability of the prompt
and no native layer; a preempted request is read again; not divided among shards.

Not served, and refused at start with the reason: encoders whose decoders another position or cache would confuse (LED,
FSMT, ProphetNet), that share out experts by batch (Switch Transformers, NLLB-MoE) or remember short texts (block-sparse
BigBird-Pegasus), models whose past is kept elsewhere than in transformers' cache of keys and values or states
(openai-gpt, RWKV, xLSTM, MiniMax-Text-01, RecurrentGemma), and models whose attention needs more than queries, keys and
values (sparse indices of DeepSeek-V3.2).
"""


def describe(entry: ZooEntry) -> str:
    """The cells of a row that do not depend on a run."""
    bound = f"{entry.tolerance:.0e}" + (f": {entry.reason}" if entry.reason else "")
    return f"| {entry.name} | `{entry.type_of_config}` | {entry.layout} | {entry.known_for} | {bound} |"


def render(entries: Sequence[ZooEntry], differences: Iterable[float]) -> str:
    rows = [f"{describe(entry)} {difference:.0e} |" for entry, difference in zip(entries, differences, strict=True)]
    head = ["| architecture | model_type | layout | exercised | bound | difference |", "|---|---|---|---|---|---|"]
    made_with = f"Measured with transformers {transformers.__version__} and torch {torch.__version__}.\n"
    return HEAD + made_with + LAYOUTS + "\n" + "\n".join([*head, *rows]) + "\n"


def measure(entry: ZooEntry) -> float:
    with tempfile.TemporaryDirectory() as folder:
        model = make_zoo_model(entry, Path(folder))
        return run_zoo_model(model, load_zoo_model(model, native_cache_dir=native_cache_folder())).difference


def main() -> None:
    disable_progress_bar()
    torch.set_num_threads(1)
    sys.stdout.write(render(ZOO, [measure(entry) for entry in ZOO]))


if __name__ == "__main__":
    main()
