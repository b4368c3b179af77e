"""Runs the zoo and prints its table, for docs/models.md: `python -m tests.zoo.page > docs/models.md`."""

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
from tests.zoo.image_drive import make_image_model, run_image_model
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO
from tests.zoo.table import ZOO

HEAD = """# Models

The table is generated (`make models-page`) from the architecture zoo, `tests/zoo`. For each architecture a tiny
random model runs four requests of uneven lengths through the real step loop, with the native kernels. Prompts are
computed in chunks beside decodes of other requests, and the blocks of the KV cache are shuffled. Each logit is
compared with transformers' own uncached eager forward pass in fp32. *Difference* is the largest difference of a
logit, relative to the largest logit. *Bound* is the difference that the test allows, 2e-05 unless the row gives a
reason for more. The shard also loads a model type that is not listed here if its attention goes through transformers'
attention interface. At the start the shard compares the first steps of every model with a forward pass of
transformers' code alone, and refuses the model with the reason when they differ or when the model cannot run.
[other_models.md](other_models.md) shows the outcome for every other type that transformers knows.

"""
LAYOUTS = """
A layout is the way in which a step runs through a model's code:
- *flat*: all tokens of a step run as one row, and attention reads the paged KV cache. Every feature works.
- *state*: the model has layers that carry a state from token to token, and each slot has a row for its state. The
  decode tokens of a step run together, each chunk of a prompt runs on its own. There is no prefix cache, a preempted
  request computes its prompt again, and the model is not divided among shards.
- *padded*: the model has attention code of its own. This code gets whole contexts, gathered from the paged cache and
  padded on the left, which is slower. The prefix cache works; the model is not divided among shards.
- *encoder_decoder*: an encoder reads each prompt whole, on its own and once. The keys and values that the decoder
  looks back at are kept in the paged cache. The decoders of all requests run together, with gathered and padded
  contexts. The output is the decoder's text, without the prompt. There is no prefix cache, no log-probability of the
  prompt and no native layer; the encoder reads a preempted request again; the model is not divided among shards.

The shard refuses these models at start, with the reason: encoder-decoders whose decoder would be confused by another
position or cache (LED, FSMT, ProphetNet), encoders that share out experts by batch (Switch Transformers, NLLB-MoE),
an encoder that computes differently after it has read a short text (block-sparse BigBird-Pegasus), models whose past
is kept elsewhere than in transformers' cache of keys and values or states (openai-gpt, RWKV, xLSTM, MiniMax-Text-01,
RecurrentGemma), and models whose attention needs more than queries, keys and values (sparse indices of
DeepSeek-V3.2).

A GGUF file is converted once into a model of transformers. These architectures of the format (`general.architecture`)
are compared with the model that the file was made from: `llama` (Llama, Mistral, and Mixtral's experts), `qwen2`,
`qwen2moe`, `qwen3`, `qwen3moe`, `phi2`, `phi3`, `gemma`, `gemma2`, `gemma3`, `command-r`, `granite` and `granitemoe`.
Of others, those that transformers imports are tried. A tensor that is missing or left over, a key that changes what is
computed and that is read nowhere, and a tokenizer that cuts texts in an unknown way each end the conversion with a
sentence.
"""

IMAGES = """
## Images

The families of the second table take images. For each family a tiny random model computes prompts with two images,
one image and none, first whole and alone, and then in chunks that end inside images, beside a request that decodes.
The logits of all tokens, of the prompts and of the tokens decoded behind them, are compared with transformers' own
forward pass of the same model with the pixels. *Native* says that the native decoder computes the steps on a CPU;
other families run by transformers' code with native layers. Steps of text alone run as those of the text model.

- Attention of Gemma3 and PaliGemma lets the tokens of an image see each other. A step computes such an image whole, and
  an image of more tokens than the model's window is refused. PaliGemma's whole prompt is such a span, so that a prompt
  is computed in one step and has no prefix cache.
- Qwen's models give each token three rotary positions, and Qwen3-VL adds rows of the image to the first layers.
- With several shards the first shard alone has the tower, whole, and the other shards get the rows.

The shard refuses images of all other families at start, with the reason and exit code 16. The text layers of Mllama
look at an image by cross attention, for which Textmill keeps no keys and values. transformers has processors of images
for Llama 4 and Phi-4 multimodal that need torchvision. Images of the remaining types have not been compared.
`--text-only` serves such a model for texts alone where transformers has a causal language model of that type
([other_models.md](other_models.md)), and leaves out the tower of a family of the table. Each tensor of a checkpoint
with a tower is used, or the start ends with the name of the tensor.
"""


def describe_images(entry: ImageEntry) -> str:
    """Return the cells of a row of the second table that do not depend on a run."""
    bound = f"{entry.tolerance:.0e}" + (f": {entry.reason}" if entry.reason else "")
    native = "yes" if entry.is_native else "no"
    return f"| {entry.name} | `{entry.model_type}` | {native} | {entry.known_for} | {bound} |"


def render_images(entries: Sequence[ImageEntry], differences: Iterable[float]) -> str:
    rows = [f"{describe_images(entry)} {found:.0e} |" for entry, found in zip(entries, differences, strict=True)]
    head = ["| family | model_type | native | exercised | bound | difference |", "|---|---|---|---|---|---|"]
    return IMAGES + "\n" + "\n".join([*head, *rows]) + "\n"


def measure_images(entry: ImageEntry) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return run_image_model(make_image_model(entry, Path(folder)), native_cache_dir=native_cache_folder())


def describe(entry: ZooEntry) -> str:
    """Return the cells of a row that do not depend on a run."""
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
    sys.stdout.write(render_images(IMAGE_ZOO, [measure_images(entry) for entry in IMAGE_ZOO]))


if __name__ == "__main__":
    main()
