"""Scales of keys and values in a checkpoint are used, divided among ranks, or named; none is passed over in silence."""

# K key/value heads of the whole model

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_config import read_config
from textmill_shard.loader.model_files import find_weight_files
from textmill_shard.loader.model_filling import ModelSource, build_model, fill_model
from textmill_shard.loader.model_loader import load_model
from textmill_shard.loader.stored_form import StoredForm
from textmill_shard.loader.stored_kv_scales import ScaleSource, read_kv_scales
from textmill_shard.model.kv_pool import LayerKvSpec
from textmill_shard.model.kv_scales import KV_TYPES, KvScales
from textmill_shard.model.runner import ModelRunner
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from tests.fakes.paged_driver import PagedDriver
from tests.fakes.tiny_models import VOCAB_SIZE, make_tiny_llama
from tests.zoo.drive import make_zoo_model
from tests.zoo.image_drive import make_image_model
from tests.zoo.images import IMAGE_ZOO
from tests.zoo.table import FLAT

E4M3 = "fp8_e4m3fn"
NUM_LAYERS, NUM_KV_HEADS = 2, 2  # of the tiny llama
KEY_SCALE, VALUE_SCALE = 0.0037, 0.0021  # no powers of two
SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
# Sums in another order, of numbers with equal bits. A stored number near the middle of two may become either of them.
EQUAL = 2e-3


def with_scales(folder: Path, scales: dict[str, torch.Tensor], **config: object) -> Path:
    """Put tensors beside the weights, and fields into config.json."""
    file = folder / "model.safetensors"
    save_file({**load_file(file), **scales}, file)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def of_all_layers(**leaves: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a tensor for each layer; `__` in a name stands for a dot."""
    return {
        f"model.layers.{layer}.self_attn.{leaf.replace('__', '.')}": tensor.clone()
        for layer in range(NUM_LAYERS)
        for leaf, tensor in leaves.items()
    }


def load(folder: Path, kv_type: str = E4M3) -> ModelRunner:
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=4, kv_cache_dtype=kv_type)
    return load_model(options, lambda phase, share: None)


def scales_of(runner: ModelRunner) -> list[KvScales]:
    runner.allocate_kv(4)
    assert runner.kv_pool is not None
    return [scales for scales in runner.kv_pool.scales if scales is not None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_llama(tmp_path)


@pytest.fixture
def log_of(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "textmill_shard")
    return caplog


def record_of(log: pytest.LogCaptureFixture, begin: str) -> dict[str, Any]:
    [record] = [record for record in log.records if record.message.startswith(begin)]
    return record.__dict__


def by_transformers(
    folder: Path, tokens: list[int], keys_K: torch.Tensor, values_K: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return `[T, V]` by transformers' own code, whose attention rounds keys and values over scales to 8 bits."""

    def rounded(numbers: torch.Tensor, scales_K: torch.Tensor) -> torch.Tensor:
        scale = scales_K[None, :, None, None]
        largest = torch.finfo(dtype).max
        return (numbers / scale).clamp(-largest, largest).to(dtype).float() * scale

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **more: Any
    ) -> tuple[torch.Tensor, None]:
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (rounded(key, keys_K), rounded(value, values_K)))
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=more.get("scaling"))
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("scaled_bits_of_the_test", attend)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation("scaled_bits_of_the_test")
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_logits_are_those_of_transformers_with_the_scales_of_the_checkpoint(
    folder: Path, log_of: pytest.LogCaptureFixture, kv_type: str
) -> None:
    tokens = torch.randint(0, VOCAB_SIZE, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    keys_K, values_K = torch.tensor([KEY_SCALE, 2 * KEY_SCALE]), torch.tensor([VALUE_SCALE, 3 * VALUE_SCALE])
    expected = by_transformers(folder, tokens, keys_K, values_K, KV_TYPES[kv_type])
    with_scales(folder, of_all_layers(k_scale=keys_K.view(-1, 1, 1), v_scale=values_K.view(-1, 1, 1)))
    runner = load(folder, kv_type)
    for scales in scales_of(runner):
        assert torch.equal(scales.keys_K, keys_K)
        assert torch.equal(scales.values_K, values_K)
    driver = PagedDriver(runner, num_blocks=16, seed=0)
    sequence = driver.start(tokens, max_new_tokens=1)
    for length in (15, 9):
        driver.step([(sequence, length)], all_logits=True)
    found = torch.stack([sequence.logits[position] for position in range(24)])
    assert float((found - expected).abs().max() / expected.abs().max()) < EQUAL
    told = record_of(log_of, "keys and values are kept in 8 bits")
    assert (told["layers_scaled_by_checkpoint"], told["layers"]) == (NUM_LAYERS, NUM_LAYERS)


@pytest.mark.parametrize(
    "leaves",
    [
        {"k_scale": KEY_SCALE, "v_scale": VALUE_SCALE},
        {"attn__k_scale": KEY_SCALE, "attn__v_scale": VALUE_SCALE},
        {"k_proj__k_scale": KEY_SCALE, "v_proj__v_scale": VALUE_SCALE},
        {"k_scale": KEY_SCALE, "kv_scale": VALUE_SCALE},
    ],
)
def test_one_number_of_any_known_name_is_for_all_heads(folder: Path, leaves: dict[str, float]) -> None:
    with_scales(folder, of_all_layers(**{leaf: torch.tensor([number]) for leaf, number in leaves.items()}))
    for scales in scales_of(load(folder)):
        assert torch.equal(scales.keys_K, torch.full((NUM_KV_HEADS,), KEY_SCALE))
        assert torch.equal(scales.values_K, torch.full((NUM_KV_HEADS,), VALUE_SCALE))


def test_one_scale_may_stand_for_keys_and_values_and_without_one_they_are_measured(
    folder: Path, log_of: pytest.LogCaptureFixture
) -> None:
    measured = scales_of(load(folder))
    log_of.clear()
    with_scales(folder, {"model.layers.1.self_attn.kv_scale": torch.tensor(KEY_SCALE)})
    first, second = scales_of(load(folder))
    assert torch.equal(first.keys_K, measured[0].keys_K)
    assert torch.equal(second.keys_K, torch.full((NUM_KV_HEADS,), KEY_SCALE))
    assert torch.equal(second.values_K, second.keys_K)
    assert record_of(log_of, "keys and values are kept")["layers_scaled_by_checkpoint"] == 1


def test_a_model_with_images_has_scales_under_the_names_of_older_releases(tmp_path: Path) -> None:
    make_image_model(next(entry for entry in IMAGE_ZOO if entry.name == "Llava"), tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "language_model.model.layers.0.self_attn.kv_scale": torch.tensor(KEY_SCALE)}, file)
    first, *_ = scales_of(load(tmp_path))
    assert torch.equal(first.keys_K, torch.full_like(first.keys_K, KEY_SCALE))


def test_scales_are_told_where_no_keys_and_values_are_stored(folder: Path, log_of: pytest.LogCaptureFixture) -> None:
    """A model that classifies its texts computes them whole."""
    with_scales(folder, of_all_layers(kv_scale=torch.tensor(KEY_SCALE)))
    source = ModelSource(
        folder=folder,
        config=read_config(folder, trust_remote_code=False),
        files=find_weight_files(folder),
        form=StoredForm.PLAIN,
        dtype=torch.float32,
        device=torch.device("cpu"),
        parallel=TensorParallel(),
        trust_remote_code=False,
        auto_class=AutoModelForCausalLM,
    )
    fill_model(build_model(source), source, on_progress=lambda share: None)
    told = record_of(log_of, "scales of keys and values in the checkpoint are not needed")
    assert (told["reason"], told["num_tensors"]) == ("no keys and values are stored", NUM_LAYERS)


def test_a_scale_that_cuts_the_numbers_of_the_trial_is_told(folder: Path, log_of: pytest.LogCaptureFixture) -> None:
    with_scales(folder, of_all_layers(k_scale=torch.tensor(1e-7), v_scale=torch.tensor(VALUE_SCALE)))
    load(folder)
    warning = record_of(log_of, "scales of the checkpoint are too small for keys or values of a trial text")
    assert (warning["levelname"], warning["layers"]) == ("WARNING", NUM_LAYERS)


def test_scales_are_not_needed_for_the_type_of_the_weights(folder: Path, log_of: pytest.LogCaptureFixture) -> None:
    with_scales(folder, of_all_layers(k_proj__k_scale=torch.tensor(-1.0), v_scale=torch.tensor(1)))
    runner = load(folder, "auto")
    assert scales_of(runner) == []
    told = record_of(log_of, "scales of keys and values in the checkpoint are not needed")
    assert (told["levelname"], told["num_tensors"]) == ("INFO", 2 * NUM_LAYERS)
    assert not [record for record in log_of.records if "no place for" in record.message]


def test_scales_of_queries_and_of_weights_of_attention_are_told(folder: Path, log_of: pytest.LogCaptureFixture) -> None:
    one = torch.tensor(KEY_SCALE)
    with_scales(folder, of_all_layers(kv_scale=one, q_scale=one, prob_scale=one))
    assert len(scales_of(load(folder))) == NUM_LAYERS
    assert record_of(log_of, "scales of queries and of the weights of attention")["num_tensors"] == 2 * NUM_LAYERS


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"k_scale": torch.tensor(0.0)}, r"0\.self_attn\.k_scale with the number 0\.0: a scale is above 0"),
        ({"k_scale": torch.tensor(-1.0)}, r"k_scale with the number -1\.0"),
        ({"v_scale": torch.tensor(torch.nan)}, r"v_scale with the number nan"),
        ({"v_scale": torch.tensor([1.0, torch.inf])}, r"v_scale with the number inf"),
        ({"k_scale": torch.tensor(3)}, r"k_scale as int64, where a scale is a number with a point"),
        (
            {"k_scale": torch.ones(3)},
            r"k_scale with the shape \[3\], where one number is wanted, or one for each of 2 ",
        ),
        ({"k_scale": torch.ones(2, 16)}, r"k_scale with the shape \[2, 16\]"),
        ({"k_scale": torch.ones(0)}, r"k_scale with the shape \[0\]"),
        ({"attn.k_scale": torch.ones(1)}, r"k_scale and model\.layers\.0\.self_attn\.k_scale, two scales"),
        ({"k_zero_point": torch.tensor(1)}, r"k_zero_point: keys and values that were moved"),
    ],
)
def test_what_is_no_scale_is_refused_by_its_name(folder: Path, scales: dict[str, torch.Tensor], message: str) -> None:
    good = {"k_scale": torch.ones(1), "v_scale": torch.ones(1)}
    tensors = {f"model.layers.0.self_attn.{leaf}": tensor for leaf, tensor in {**good, **scales}.items()}
    with_scales(folder, tensors)
    with pytest.raises(ModelFilesError, match=message):
        load(folder)


def test_a_scale_without_its_other_half_or_its_layer_is_refused(folder: Path) -> None:
    with_scales(folder, {"model.layers.1.self_attn.v_scale": torch.ones(1)})
    with pytest.raises(ModelFilesError, match=r"layers\.1\.self_attn\.v_scale and no k_scale of the same layer"):
        load(folder)
    with_scales(folder, {"model.layers.7.self_attn.kv_scale": torch.ones(1)})
    with pytest.raises(ModelFilesError, match=r"layers\.7\.self_attn\.kv_scale, .* no attention layer of that name"):
        load(folder)


def test_a_zero_point_of_nothing_changes_nothing(folder: Path) -> None:
    with_scales(folder, of_all_layers(kv_scale=torch.tensor(KEY_SCALE), k_zero_point=torch.tensor(0)))
    assert len(scales_of(load(folder))) == NUM_LAYERS


def test_a_checkpoint_whose_keys_and_values_alone_are_quantised_is_plain(
    folder: Path, log_of: pytest.LogCaptureFixture
) -> None:
    """llm-compressor writes such a config for a recipe that has a `kv_cache_scheme` alone."""
    said = {"quant_method": "compressed-tensors", "kv_cache_scheme": SCHEME, "config_groups": {}, "format": "dense"}
    with_scales(folder, of_all_layers(kv_scale=torch.tensor(KEY_SCALE)), quantization_config=said)
    assert torch.equal(scales_of(load(folder))[0].keys_K, torch.full((NUM_KV_HEADS,), KEY_SCALE))


@pytest.mark.parametrize(
    "more",
    [
        {"config_groups": {"group_0": {}}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"kv_cache_scheme": None},
    ],
)
def test_other_checkpoints_of_compressed_tensors_are_refused_as_before(folder: Path, more: dict[str, object]) -> None:
    said = {"quant_method": "compressed-tensors", "kv_cache_scheme": SCHEME, "config_groups": {}, **more}
    with_scales(folder, {}, quantization_config=said)
    with pytest.raises(UnsupportedModelError, match="quantised by compressed-tensors cannot be served"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "int"}, "kv_cache_scheme says 8 bits of type int"),
        ({"num_bits": 4}, "kv_cache_scheme says 4 bits of type float"),
        ({"dynamic": True}, r"kv_cache_scheme says that scales follow the numbers \(dynamic\)"),
    ],
)
def test_scales_of_another_kind_of_number_are_measured_anew_with_a_warning(
    folder: Path, log_of: pytest.LogCaptureFixture, change: dict[str, object], reason: str
) -> None:
    said = {"quant_method": "compressed-tensors", "kv_cache_scheme": {**SCHEME, **change}}
    with_scales(folder, of_all_layers(kv_scale=torch.tensor(KEY_SCALE)), quantization_config=said)
    assert not torch.equal(scales_of(load(folder))[0].keys_K, torch.full((NUM_KV_HEADS,), KEY_SCALE))
    warning = record_of(log_of, "the scales of keys and values in the checkpoint are not used")
    assert warning["levelname"] == "WARNING"
    assert warning["reason"] == reason.replace("\\", "")


def test_a_scheme_without_scales_is_told(folder: Path, log_of: pytest.LogCaptureFixture) -> None:
    with_scales(folder, {}, quantization_config={"quant_method": "compressed-tensors", "kv_cache_scheme": SCHEME})
    load(folder)
    assert record_of(log_of, "kv_cache_scheme of config.json tells of scales")["levelname"] == "WARNING"


def test_scales_of_compressed_keys_are_not_used_for_keys_in_full(
    tmp_path: Path, log_of: pytest.LogCaptureFixture
) -> None:
    make_zoo_model(next(entry for entry in FLAT if entry.name == "deepseek_v3"), tmp_path)
    with_scales(tmp_path, {"model.layers.0.self_attn.k_scale": torch.ones(1)})
    load(tmp_path)
    assert "compressed keys" in record_of(log_of, "the scales of keys and values in the checkpoint")["reason"]


class OneLayer(nn.Module):
    """A model of one attention layer, for the scales alone."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Identity()


@pytest.mark.parametrize(
    ("num_heads", "world_size", "expected"),
    [
        (4, 2, [[1.0, 2.0], [3.0, 4.0]]),
        (4, 4, [[1.0], [2.0], [3.0], [4.0]]),
        (2, 4, [[1.0], [1.0], [2.0], [2.0]]),  # two ranks hold one head
        (1, 2, [[1.0], [1.0]]),
    ],
)
def test_each_rank_takes_the_scales_of_its_heads(
    tmp_path: Path, num_heads: int, world_size: int, expected: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = torch.arange(1.0, num_heads + 1)
    save_file({"attention.k_scale": scales, "attention.v_scale": scales * 10}, tmp_path / "model.safetensors")
    monkeypatch.setattr("textmill_shard.loader.stored_kv_scales.paged_layers", lambda model: {"attention": 0})
    spec = LayerKvSpec(num_local_kv_heads=max(1, num_heads // world_size), key_dim=8, value_dim=8)
    for rank, own in enumerate(expected):
        source = ScaleSource(
            tmp_path, AutoConfig.for_model("llama"), find_weight_files(tmp_path), TensorParallel(rank, world_size)
        )
        found = read_kv_scales(OneLayer(), source, [spec], kv_type=E4M3, device=torch.device("cpu"))[0]
        assert found.keys_K.tolist() == own
        assert found.values_K.tolist() == [10 * number for number in own]


@pytest.mark.parametrize("num_stored", [2, 5, 8])
def test_scales_of_another_number_of_heads_are_refused_on_every_rank(
    tmp_path: Path, num_stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"attention.kv_scale": torch.ones(num_stored)}, tmp_path / "model.safetensors")
    monkeypatch.setattr("textmill_shard.loader.stored_kv_scales.paged_layers", lambda model: {"attention": 0})
    for rank in range(2):
        source = ScaleSource(
            tmp_path, AutoConfig.for_model("llama"), find_weight_files(tmp_path), TensorParallel(rank, 2)
        )
        with pytest.raises(ModelFilesError, match="one for each of 4 key/value heads"):
            read_kv_scales(OneLayer(), source, [LayerKvSpec(2, 8, 8)], kv_type=E4M3, device=torch.device("cpu"))
