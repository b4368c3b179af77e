"""Depths of images in tiny random models, against transformers' own pipeline."""

import io
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.tasks.depth_head import pick_resize
from textmill_shard.tasks.media_loader import LoadedMedia, MediaLimits, load_media
from textmill_shard.tasks.rows import Depth, FailureCode, HeadName, MediaRow, RowFailure
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline

from tests.fakes.tiny_media import picture_file
from tests.fakes.tiny_zero_shot import DEPTHS, lent_resize, make_picture_model

LIMITS = MediaLimits(max_pixels=50_000_000, max_seconds=100.0)
TOLERANCE = 1e-5
FILES = [picture_file(96, 70, seed=1), picture_file(64, 64, seed=2, kind="JPEG"), picture_file(65, 140, seed=3)]


def load(folder: Path) -> LoadedMedia:
    return load_media(TaskOptions(model_dir=folder, task="depth-estimation"), LIMITS, lambda phase, share: None)


def compute(loaded: LoadedMedia, files: list[bytes]) -> list[Any]:
    return loaded.runner.run(loaded.head, loaded.runner.read([MediaRow(file) for file in files]))


@pytest.mark.parametrize("model_type", DEPTHS)
def test_depths_are_those_of_the_pipeline(tmp_path: Path, model_type: str) -> None:
    make_picture_model(tmp_path, model_type, AutoModelForDepthEstimation)
    loaded = load(tmp_path)
    assert (loaded.head, loaded.media, loaded.labels, loaded.max_batch_files) == (HeadName.DEPTHS, "image", (), 1)
    peer = pipeline("depth-estimation", model=str(tmp_path))
    for file, found in zip(FILES, compute(loaded, FILES), strict=True):
        with lent_resize() if model_type == "zoedepth" else nullcontext():
            expected = peer(Image.open(io.BytesIO(file)).convert("RGB"))
        assert isinstance(found, Depth)
        assert found.depths_HW.shape == expected["predicted_depth"].shape
        np.testing.assert_allclose(found.depths_HW, expected["predicted_depth"].numpy(), atol=TOLERANCE)
        assert found.depths_HW.max() > found.depths_HW.min()
        picture = Image.open(io.BytesIO(found.picture))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", Image.open(io.BytesIO(file)).size)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected["depth"]))


@pytest.mark.parametrize("model_type", ["dpt", "zoedepth", "prompt_depth_anything"])
@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1)])
def test_an_image_of_one_pixel_in_width_or_height_has_depths_of_its_size(
    tmp_path: Path, model_type: str, size: tuple[int, int]
) -> None:
    """The pipeline loses such a side."""
    model = make_picture_model(tmp_path, model_type, AutoModelForDepthEstimation)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings |= {"keep_aspect_ratio": False, "do_pad": False}  # else the model would read a side of no pixel
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    file = picture_file(*size, seed=4)
    (found,) = compute(load(tmp_path), [file])
    assert isinstance(found, Depth)
    inputs = AutoImageProcessor.from_pretrained(tmp_path)(Image.open(io.BytesIO(file)).convert("RGB"))
    with torch.no_grad():
        depths = model(torch.as_tensor(np.array(inputs["pixel_values"]))).predicted_depth
    width, height = size
    expected = torch.nn.functional.interpolate(depths[None], size=(height, width), mode="bicubic")[0, 0]
    np.testing.assert_allclose(found.depths_HW, expected.numpy(), atol=TOLERANCE)
    assert Image.open(io.BytesIO(found.picture)).size == size


@pytest.mark.parametrize("model_type", ["glpn", "depth_anything", "prompt_depth_anything", "zoedepth"])
def test_an_image_that_is_too_narrow_for_the_processor_fails_alone(tmp_path: Path, model_type: str) -> None:
    make_picture_model(tmp_path, model_type, AutoModelForDepthEstimation)
    narrow, good = compute(load(tmp_path), [picture_file(1, 60), picture_file(64, 64)])
    assert isinstance(narrow, RowFailure)
    assert narrow.code is FailureCode.BAD_MEDIA
    assert narrow.message.startswith(
        "an image of 1 x 60 pixels is too narrow or too small for this model; send an image"
    )
    assert isinstance(good, Depth)


def test_an_image_of_more_pixels_than_an_answer_has_is_refused_before_it_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_picture_model(tmp_path, "dpt", AutoModelForDepthEstimation)
    loaded = load(tmp_path)
    monkeypatch.setattr("textmill_shard.tasks.depth_head.MAX_PIXELS", 64 * 64)
    too_large, good = compute(loaded, [picture_file(64, 65), picture_file(64, 64)])
    assert isinstance(too_large, RowFailure)
    assert too_large.code is FailureCode.BAD_MEDIA
    assert "64 x 65 pixels, and depths are answered for at most 4096" in too_large.message
    assert isinstance(good, Depth)


def test_depths_that_are_not_finite_fail_the_row(tmp_path: Path) -> None:
    make_picture_model(tmp_path, "dpt", AutoModelForDepthEstimation)
    loaded = load(tmp_path)
    (ready,) = loaded.runner.read([MediaRow(FILES[0])])
    assert not isinstance(ready, RowFailure)
    ready.inputs["pixel_values"][0, 0, 0] = float("nan")
    (found,) = loaded.runner.run(loaded.head, [ready])
    assert isinstance(found, RowFailure)
    assert found.code is FailureCode.NOT_FINITE


def test_depths_of_a_model_in_bfloat16_are_enlarged_in_float32(tmp_path: Path) -> None:
    make_picture_model(tmp_path, "depth_anything", AutoModelForDepthEstimation)
    options = TaskOptions(model_dir=tmp_path, task="depth-estimation", dtype="bfloat16")
    (found,) = compute(load_media(options, LIMITS, lambda phase, share: None), FILES[:1])
    depths_HW = torch.from_numpy(found.depths_HW)
    assert (depths_HW != depths_HW.bfloat16().float()).any()


def test_an_image_of_one_depth_gives_a_black_picture(tmp_path: Path) -> None:
    """The pipeline divides by 0 there."""
    model = make_picture_model(tmp_path, "dpt", AutoModelForDepthEstimation)
    for parameter in model.head.parameters():
        parameter.data.zero_()
    model.save_pretrained(tmp_path)
    (found,) = compute(load(tmp_path), FILES[:1])
    assert np.asarray(Image.open(io.BytesIO(found.picture))).max() == 0


def test_a_processor_that_gives_no_depths_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="the processor SimpleNamespace gives no depths"):
        pick_resize(SimpleNamespace())
