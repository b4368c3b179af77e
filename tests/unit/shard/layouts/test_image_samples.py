"""Sample images have about as many rows as are asked for, and the tower of each family takes them."""

from pathlib import Path

import pytest
from textmill_shard.layouts.image_families import FAMILIES
from textmill_shard.layouts.image_samples import sample_image
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from transformers import AutoConfig

from tests.zoo.image_drive import make_image_model
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO


@pytest.mark.parametrize("entry", IMAGE_ZOO, ids=lambda entry: entry.name)
def test_the_tower_of_each_family_takes_its_sample(entry: ImageEntry, tmp_path: Path) -> None:
    make_image_model(entry, tmp_path)
    runner = load_model(LoadOptions(model_dir=tmp_path, dtype="float32", block_size=4), lambda phase, share: None)
    small, large = (len(runner.encode_media(runner.sample_media(count)).rows_nD) for count in (1, 48))
    assert small <= large <= 96
    assert small >= 1


@pytest.mark.parametrize(
    ("model_type", "num_rows", "pixels", "rest"),
    [
        ("llava", 4096, (1, 3, 336, 336), {}),
        ("llava_next", 4096, (1, 5, 3, 336, 336), {"image_sizes": [[672, 672]]}),
        ("llava_next", 10, (1, 3, 3, 336, 336), {"image_sizes": [[336, 672]]}),
        ("qwen2_vl", 1225, (4 * 1225, 1176), {"image_grid_thw": [[1, 70, 70]]}),
        ("qwen3_vl", 4096, (4 * 4096, 1536), {"image_grid_thw": [[1, 128, 128]]}),
        ("internvl", 2600, (10, 3, 448, 448), {}),
        ("mistral3", 4096, (1, 3, 1540, 1540), {"image_sizes": [[1540, 1540]]}),
        ("mistral3", 100, (1, 3, 280, 280), {"image_sizes": [[280, 280]]}),
        ("gemma3", 4096, (1, 3, 224, 224), {}),
    ],
)
def test_sizes_follow_the_config(
    model_type: str, num_rows: int, pixels: tuple[int, ...], rest: dict[str, list[list[int]]]
) -> None:
    """A row of Qwen covers 2 x 2 patches, a row of Mistral3 28 x 28 pixels, a tile of InternVL 256 rows."""
    names = FAMILIES[model_type].tensors
    tensors = sample_image(AutoConfig.for_model(model_type), names, num_rows=num_rows)
    assert set(tensors) <= set(names)
    assert tuple(tensors["pixel_values"].shape) == pixels
    assert {name: tensor.tolist() for name, tensor in tensors.items() if name != "pixel_values"} == rest
