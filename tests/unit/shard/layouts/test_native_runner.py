"""The runner with native kernels: every tiny architecture against transformers' own uncached forward, in fp32."""

import logging
from pathlib import Path

import pytest
import torch
from textmill_shard.layouts.flat_decoder import TransformersDecoder
from textmill_shard.layouts.native_decoder import NativeDecoder
from textmill_shard.model.runner import ModelRunner
from transformers import AutoModelForCausalLM

from tests.fakes.native_cases import load_with_kernels
from tests.fakes.paged_driver import PagedDriver
from tests.fakes.tiny_models import ARCHITECTURES, VOCAB_SIZE, make_tiny_model

TOLERANCE = 2e-5  # relative to the largest logit: fp32 sums in another order
FAST = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})


def assert_uncached_logits(runner: ModelRunner, folder: Path) -> None:
    """Two prompts in chunks beside each other, then a decode step of both."""
    driver = PagedDriver(runner, num_blocks=48)
    generator = torch.Generator().manual_seed(3)
    first, second = (
        driver.start(torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist(), max_new_tokens=2)
        for length in (70, 21)
    )
    driver.step([(first, 33), (second, 20)], padding=2)
    driver.step([(second, 1), (first, 37)])
    for sequence in (first, second):
        sequence.tokens.append(int(sequence.logits[sequence.num_computed - 1].argmax()))
    driver.step([(first, 1), (second, 1)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for sequence in (first, second):
        with torch.inference_mode():
            expected = model(torch.tensor([sequence.tokens]), use_cache=False).logits[0]
        for position, logits in sequence.logits.items():
            difference = (logits - expected[position]).abs().max() / expected[position].abs().max()
            assert difference <= TOLERANCE, (position, difference)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_logits_with_native_kernels(tmp_path: Path, model_type: str) -> None:
    folder = make_tiny_model(tmp_path / model_type, model_type)
    runner = load_with_kernels(folder)
    assert isinstance(runner._decoder, NativeDecoder) == (model_type in FAST)
    assert_uncached_logits(runner, folder)


@pytest.mark.parametrize("model_type", sorted(FAST))
def test_native_decoder_can_be_left_out(tmp_path: Path, model_type: str) -> None:
    folder = make_tiny_model(tmp_path / model_type, model_type)
    runner = load_with_kernels(folder, native_decoder=False)
    assert isinstance(runner._decoder, TransformersDecoder)
    assert_uncached_logits(runner, folder)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("olmo2", "no: a layer is not norm, attention, norm and gated MLP"), ("qwen3", "yes")],
)
def test_one_line_says_whether_the_native_decoder_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model_type: str, reason: str
) -> None:
    folder = make_tiny_model(tmp_path / model_type, model_type)
    with caplog.at_level(logging.INFO, "textmill_shard"):
        load_with_kernels(folder)
    assert [getattr(record, "native_decoder", record.message) for record in caplog.records] == [reason]


def test_model_that_only_looks_like_a_llama_runs_by_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Granite has the modules of a llama and scales what goes through them."""
    folder = make_tiny_model(tmp_path / "granite", "granite")
    with caplog.at_level(logging.WARNING):
        runner = load_with_kernels(folder)
    assert [record.message for record in caplog.records] == [
        "the native decoder does not fit: loading again without it"
    ]
    assert isinstance(runner._decoder, TransformersDecoder)
    assert_uncached_logits(runner, folder)


def test_float16_runs_by_plain_torch(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "llama", "llama")
    assert isinstance(load_with_kernels(folder, dtype="float16")._decoder, TransformersDecoder)
