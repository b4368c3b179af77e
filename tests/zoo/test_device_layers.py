"""With the layers that a GPU gets, each model of the zoo still has the logits of transformers' code.

The kernels are stood in for by the plain torch that they must agree with, and in one test by Triton's interpreter.
"""

import logging
from pathlib import Path

import pytest
from textmill_shard.model.runner import ModelRunner

from tests.fakes.kernel_cases import interpreted_kernels
from tests.fakes.plain_kernels import PlainKernels, load_by
from tests.zoo.drive import ZooModel, load_zoo_model, make_zoo_model, run_zoo_model
from tests.zoo.entry import ZooEntry
from tests.zoo.image_drive import make_image_model, run_image_model
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO
from tests.zoo.table import FLAT, STATE

# Models whose layers turn queries and keys in their own code, or not at all, with the reason. In all others the write
# of keys and values turns both.
OWN_TURNS = {
    "gpt2": "positions are embedded",
    "gpt_bigcode": "positions are embedded",
    "opt": "positions are embedded",
    "biogpt": "positions are embedded",
    "jamba": "there are no positions",
    "granitemoehybrid": "there are no positions",
    "mamba": "there is no attention",
    "mamba2": "there is no attention",
    "phi": "a part of the dims is cut off before the turn and joined again behind it",
    "stablelm": "a part of the dims is cut off before the turn and joined again behind it",
    "persimmon": "a part of the dims is cut off before the turn and joined again behind it",
    "deepseek_v2": "a part of the dims is cut off before the turn and joined again behind it",
    "deepseek_v3": "a part of the dims is cut off before the turn and joined again behind it",
    "hunyuan": "the queries and keys are normed behind the turn",
    "gemma3n": "queries and keys turn one by one",
    "llama4": "the function has another name, and computes with complex numbers",
    "glm4": "neighbouring dims turn by tables of halves",
    "helium": "neighbouring dims turn by tables of halves",
    "ernie4_5": "neighbouring dims turn by tables of halves",
    "gpt_oss": "the tables have half of the width",
}


# Which layers are found in some models of known form.
SWAPS = {
    "llama": "qkv 6, gate_up 4, rms_norm 5, rotary_turn 2, residual 2",
    "qwen3": "qkv 6, gate_up 4, rms_norm 9, rotary_turn 2, residual 2",  # heads are normed too
    "gemma": "qkv 6, gate_up 4, rms_norm 5, rotary_turn 2, residual 2",  # gelu by tanh, and a factor of 1 + weight
    "gemma2": "qkv 9, gate_up 6, rms_norm 13, rotary_turn 3",  # norms stand behind attention too
    "granite": "qkv 6, gate_up 4, rms_norm 5, rotary_turn 2",  # sums with a multiple of the residual
    "cohere": "qkv 6, gate_up 4, rotary_turn 2",  # norms with a mean; attention and MLP side by side
    "phi3": "rms_norm 5, rotary_turn 2",  # joined products of its own; dropout stands in the sums
    "mixtral": "qkv 6, rms_norm 5, rotary_turn 2, residual 2, experts 2",
    "deepseek_v3": "qkv 6, gate_up 6, rms_norm 13, residual 3, experts 2",  # beside one that all tokens take
    "qwen3_next": "qkv 6, gate_up 8, rms_norm 13, rotary_turn 2, experts 4",  # layers with a state between
    "gpt2": "none",
}


# For the interpreter, which takes a millisecond for each tile; the prompts have up to two chunks.
FEW_TOKENS = (17, 5, 13, 7)


def load(model: ZooModel, caplog: pytest.LogCaptureFixture) -> tuple[ModelRunner, str]:
    """Return the runner, and which swaps the only line of the log tells: a layout that does not fit has a warning."""
    with caplog.at_level(logging.INFO, "textmill_shard"):
        runner = load_zoo_model(model, native_cache_dir=None)
    [swaps] = [getattr(r, "module_swaps", r.message) for r in caplog.records if r.name.startswith("textmill")]
    return runner, swaps


@pytest.mark.parametrize("entry", [*FLAT, *STATE], ids=lambda entry: entry.name)
def test_logits_are_those_of_transformers(
    entry: ZooEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_by(monkeypatch, PlainKernels())
    model = make_zoo_model(entry, tmp_path)
    runner, swaps = load(model, caplog)
    assert ("rotary_turn" in swaps) == (entry.name not in OWN_TURNS), swaps
    assert swaps == SWAPS.get(entry.name, swaps)
    assert run_zoo_model(model, runner).difference <= entry.tolerance


@pytest.mark.parametrize("name", ["llama", "cohere"])  # halves turn with halves, or dims with their neighbours
def test_logits_by_the_kernels_in_the_interpreter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_by(monkeypatch, interpreted_kernels())
    [entry] = [entry for entry in FLAT if entry.name == name]
    model = make_zoo_model(entry, tmp_path)
    runner, swaps = load(model, caplog)
    assert "rotary_turn 2" in swaps
    assert "gate_up 4" in swaps
    assert run_zoo_model(model, runner, prompt_lengths=FEW_TOKENS).difference <= entry.tolerance


@pytest.mark.parametrize("entry", IMAGE_ZOO, ids=lambda entry: entry.name)
def test_logits_of_texts_with_images_are_those_of_transformers(
    entry: ImageEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_by(monkeypatch, PlainKernels())
    model = make_image_model(entry, tmp_path)
    with caplog.at_level(logging.INFO, "textmill_shard"):
        difference = run_image_model(model, native_cache_dir=None)
    [swaps] = [getattr(r, "module_swaps", r.message) for r in caplog.records if r.name.startswith("textmill")]
    assert "rotary_turn" in swaps
    assert difference <= entry.tolerance
