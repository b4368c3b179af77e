"""Every family of models with images through the real layouts, compared with transformers' full forward in fp32."""

from pathlib import Path

import pytest

from tests.fakes.native_cases import native_cache_folder
from tests.zoo.entry import TOLERANCE
from tests.zoo.image_drive import (
    chunked_beside,
    difference,
    load_image_model,
    make_image_model,
    make_text,
    reference_logits,
    run_steps,
    whole_then_decoded,
)
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO


@pytest.mark.parametrize("entry", IMAGE_ZOO, ids=lambda entry: entry.name)
def test_texts_with_images_have_the_logits_of_transformers(
    entry: ImageEntry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_image_model(entry, tmp_path)
    expected = None
    for native_cache_dir in (native_cache_folder(), None):
        with caplog.at_level("INFO"):
            runner = load_image_model(model, native_cache_dir=native_cache_dir)
        native = caplog.records[-1].__dict__["native_decoder"]
        assert (native == "yes") == (entry.is_native and native_cache_dir is not None), native
        assert runner.media is not None
        assert runner.media.kinds == (entry.model_type,)
        assert runner.facts.layout == "flat"
        texts = [make_text(entry, runner, num_images=count, seed=seed) for seed, count in enumerate((2, 1, 0))]
        expected = expected or [reference_logits(model, text) for text in texts]
        for steps in (whole_then_decoded(texts), chunked_beside(texts, runner)):
            found = run_steps(runner, texts, steps)
            assert max(map(difference, found, expected)) <= entry.tolerance


def test_a_looser_tolerance_of_images_has_a_reason() -> None:
    assert [entry.name for entry in IMAGE_ZOO if (entry.tolerance > TOLERANCE) != bool(entry.reason)] == []
