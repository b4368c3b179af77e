"""The tower of a model with images is counted whole, on the first shard, as the shard itself counts the tower."""

from pathlib import Path

import pytest
from textmill_launcher.plan.estimate import RankNeeds, estimate
from textmill_launcher.plan.model_shape import read_shape
from textmill_launcher.plan.report import as_text, make_plan
from textmill_launcher.plan.source import read_folder
from textmill_launcher.plan.tensor_headers import TensorHeader
from textmill_launcher.plan.tower import split_tower
from textmill_launcher.settings import load_settings
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model

from tests.fakes.native_cases import native_cache_folder
from tests.zoo.image_drive import make_image_model
from tests.zoo.images import IMAGE_ZOO

MIB = 1024**2


def needs_of(folder: Path, *, num_shard: int = 1, text_only: bool = False, cache: int | None = None) -> RankNeeds:
    facts = read_folder(folder, "tiny")
    return estimate(
        read_shape(facts.config),
        facts.tensors,
        dtype="float32",
        device="cpu",
        num_shard=num_shard,
        num_slots=4,
        max_step_tokens=64,
        media_cache_bytes=cache,
        text_only=text_only,
    )


def test_names_of_old_and_new_checkpoints_are_told_apart() -> None:
    names = {
        "language_model.model.layers.0.mlp.up_proj.weight": True,
        "model.language_model.embed_tokens.weight": True,
        "model.text_model.norm.weight": True,
        "model.layers.0.self_attn.q_proj.weight": True,
        "model.norm.weight": True,
        "lm_head.weight": True,
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": False,
        "multi_modal_projector.linear_1.weight": False,
        "model.vision_model.encoder.layers.0.mlp.fc1.weight": False,
        "model.connector.modality_projection.proj.weight": False,
        "visual.blocks.0.mlp.fc1.weight": False,
        "image_newline": False,
    }
    text, tower = split_tower([TensorHeader(name, "F32", (1,)) for name in names])
    assert [tensor.name for tensor in text] == [name for name, is_text in names.items() if is_text]
    assert [tensor.name for tensor in tower] == [name for name, is_text in names.items() if not is_text]


@pytest.mark.parametrize("name", ["Llava-Next", "Idefics3", "Qwen2-VL", "Gemma3"])
def test_weights_are_those_that_the_shard_holds(name: str, tmp_path: Path) -> None:
    make_image_model(next(entry for entry in IMAGE_ZOO if entry.name == name), tmp_path)
    for text_only in (False, True):
        options = LoadOptions(
            model_dir=tmp_path, dtype="float32", native_cache_dir=native_cache_folder(), text_only=text_only
        )
        runner = load_model(options, lambda phase, share: None)
        assert needs_of(tmp_path, text_only=text_only).weight_bytes == pytest.approx(runner.facts.weight_bytes, rel=0.1)


def test_shards_divide_the_text_model_and_not_the_tower(tmp_path: Path) -> None:
    make_image_model(next(entry for entry in IMAGE_ZOO if entry.name == "Llava"), tmp_path)
    one, two, text = (
        needs_of(tmp_path),
        needs_of(tmp_path, num_shard=2),
        needs_of(tmp_path, num_shard=2, text_only=True),
    )
    assert one.tower_bytes == two.tower_bytes > 0
    assert two.weight_bytes - two.tower_bytes == text.weight_bytes < (one.weight_bytes - one.tower_bytes)
    assert (text.tower_bytes, text.media_bytes) == (0, 0)
    assert one.media_bytes == 256 * MIB
    assert needs_of(tmp_path, cache=5 * MIB).media_bytes == 5 * MIB


def test_the_plan_shows_the_cache_and_leaves_less_for_keys_and_values(tmp_path: Path) -> None:
    make_image_model(next(entry for entry in IMAGE_ZOO if entry.name == "Llava"), tmp_path)
    facts = read_folder(tmp_path, "tiny")
    plans = [
        make_plan(
            load_settings(["--device", "cpu", "--dtype", "float32", "--media-cache-bytes", str(cache)], {}),
            facts,
            num_shard=1,
            device_memory=500 * MIB,
        )
        for cache in (MIB, 3 * MIB)
    ]
    assert plans[0].fit.kv_bytes - plans[1].fit.kv_bytes == 2 * MIB
    text = as_text(plans[1])
    assert "encode images" in text
    assert "3.0 MiB  their cache" in text
