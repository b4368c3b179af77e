"""Every family of models with images through the real layouts, compared with transformers' full forward in fp32."""

from pathlib import Path

import pytest
import torch

from tests.fakes.native_cases import native_cache_folder
from tests.zoo.entry import TOLERANCE
from tests.zoo.image_drive import load_image_model, make_image_model, run_image_model
from tests.zoo.image_entry import ImageEntry, noise
from tests.zoo.images import IMAGE_ZOO


@pytest.mark.parametrize("entry", IMAGE_ZOO, ids=lambda entry: entry.name)
def test_texts_with_images_have_the_logits_of_transformers(
    entry: ImageEntry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_image_model(entry, tmp_path)
    for native_cache_dir in (native_cache_folder(), None):
        with caplog.at_level("INFO"):
            found = run_image_model(model, native_cache_dir=native_cache_dir)
        loaded = caplog.records[-1].__dict__
        native = loaded["native_decoder"]
        assert (native == "yes") == (entry.is_native and native_cache_dir is not None), native
        assert loaded["layout"] == "flat"
        assert found <= entry.tolerance


@pytest.mark.parametrize("name", ["Llava", "Qwen3-VL", "Gemma3"])  # native, with rows for layers, with spans
def test_images_in_sixteen_bits_differ_from_fp32_by_rounding(name: str, tmp_path: Path) -> None:
    """The reference computes in fp32. bfloat16 keeps 8 bits of each number, and fp16 11 bits."""
    entry = next(entry for entry in IMAGE_ZOO if entry.name == name)
    model = make_image_model(entry, tmp_path)
    assert run_image_model(model, native_cache_dir=native_cache_folder(), dtype="bfloat16") <= 0.1
    assert run_image_model(model, native_cache_dir=None, dtype="float16") <= 0.02


def test_an_image_of_one_row_is_that_of_the_model_beside_another_image(tmp_path: Path) -> None:
    """transformers' Mistral3 takes the only row of an image for the batch, and fails; two images show its rows."""
    entry = next(entry for entry in IMAGE_ZOO if entry.name == "Mistral3")
    model = make_image_model(entry, tmp_path)
    tensors = {
        "pixel_values": noise(torch.Generator().manual_seed(1), 1, 3, 8, 8),
        "image_sizes": torch.tensor([[8, 8]]),
    }
    other = {**tensors, "pixel_values": noise(torch.Generator().manual_seed(2), 1, 3, 8, 8)}
    with torch.inference_mode():
        expected, _ = model.reference.model.get_image_features(
            **{name: torch.cat([tensors[name], other[name]]) for name in tensors}, return_dict=True
        ).pooler_output
    rows_nD = load_image_model(model, native_cache_dir=None).encode_media(tensors).rows_nD
    assert rows_nD.shape == (1, 64)
    assert (rows_nD - expected).abs().max() <= entry.tolerance * expected.abs().max()


def test_a_looser_tolerance_of_images_has_a_reason() -> None:
    assert [entry.name for entry in IMAGE_ZOO if (entry.tolerance > TOLERANCE) != bool(entry.reason)] == []
