"""How weights are stored: what transformers turns into plain values is served so, all else is refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import ModelError, ModelFilesError, UnsupportedModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_config import read_config
from textmill_shard.loader.model_files import find_weight_files
from textmill_shard.loader.model_loader import load_model
from textmill_shard.loader.stored_form import find_stored_form
from textmill_shard.model.runner import ModelRunner
from transformers import AutoConfig, AutoModelForCausalLM

from tests.fakes.tiny_models import make_random_model, make_tiny_llama
from tests.zoo.experts import EXPERTS

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


def load(folder: Path, dtype: str = "float32") -> ModelRunner:
    return load_model(LoadOptions(model_dir=folder, dtype=dtype), lambda phase, share: None)


def change_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rewrite(folder: Path, store: Callable[[str, torch.Tensor], Tensors], config: dict[str, Any] | None) -> Tensors:
    """Store the weights of all linear layers of the blocks as `store` says; gives the plain ones."""
    plain = load_file(folder / WEIGHTS)
    stored: Tensors = {}
    for name, tensor in plain.items():
        stored |= store(name, tensor) if name.endswith("proj.weight") else {name: tensor}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    if config is not None:
        change_json(folder / "config.json", quantization_config=config)
    return plain


def in_blocks(size: int) -> Callable[[str, torch.Tensor], Tensors]:
    def store(name: str, tensor: torch.Tensor) -> Tensors:
        rows, columns = tensor.shape
        blocks = tensor.reshape(rows // size, size, columns // size, size)
        scales = blocks.abs().amax(dim=(1, 3)) / 448
        stored = (blocks / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        return {name: stored, f"{name}_scale_inv": scales}

    return store


def in_one(suffix: str) -> Callable[[str, torch.Tensor], Tensors]:
    def store(name: str, tensor: torch.Tensor) -> Tensors:
        scale = tensor.abs().max() / 448
        stem = name.removesuffix("weight")
        stored = {name: (tensor / scale).to(torch.float8_e4m3fn), f"{stem}{suffix}": scale.reshape(())}
        return {**stored, f"{stem}input_scale": torch.tensor(0.5)}

    return store


def as_integers(name: str, tensor: torch.Tensor) -> Tensors:
    scales = tensor.abs().amax(dim=1) / 127
    return {name: (tensor / scales[:, None]).round().to(torch.int8), name.replace("weight", "SCB"): scales}


def packed(name: str, tensor: torch.Tensor) -> Tensors:
    stem = name.removesuffix("weight")
    rows, columns = tensor.shape
    return {
        f"{stem}qweight": torch.zeros((columns, rows // 8), dtype=torch.int32),
        f"{stem}qzeros": torch.zeros((columns // 16, rows // 8), dtype=torch.int32),
        f"{stem}scales": torch.ones((columns // 16, rows)),
    }


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


@pytest.mark.parametrize(
    ("store", "config"),
    [
        (in_blocks(32), {**FP8, "weight_block_size": [32, 32]}),
        (in_one("weight_scale_inv"), {**FP8, "weight_block_size": None, "activation_scheme": "static"}),
    ],
    ids=["blocks", "tensor"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scaled_weights_are_those_of_transformers(
    tmp_path: Path, store: Callable[[str, torch.Tensor], Tensors], config: dict[str, Any], dtype: str
) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    plain = rewrite(folder, store, config)
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).state_dict()
    ours = dict(next(iter(load(folder, dtype).modules())).named_parameters())
    for name, value in ours.items():
        # In bfloat16 transformers leaves the weights in the precision of their scales.
        assert torch.equal(value, read[name].to(value.dtype)), name
        assert str(value.dtype) == f"torch.{dtype}"
        # Float8 keeps four significant bits.
        torch.testing.assert_close(value.float(), plain[name], rtol=0.07, atol=0.01)


def test_blocks_of_fp4_are_those_of_transformers(tmp_path: Path) -> None:
    entry = next(entry for entry in EXPERTS if entry.name == "gpt_oss")
    config = AutoConfig.for_model("gpt_oss", **{**entry.config, "hidden_size": 64, "intermediate_size": 64})
    folder = tmp_path / "oss"
    make_random_model(config, folder)
    generator = torch.Generator().manual_seed(3)
    stored: Tensors = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inner, outer = tensor.shape
            blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(120, 126, (experts, outer, inner // 32), generator=generator, dtype=torch.uint8)
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            stored[name] = tensor
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    change_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    ours = dict(next(iter(load(folder).modules())).named_parameters())
    assert {name for name in ours if "experts" in name}
    for name, value in ours.items():
        assert torch.equal(value, read[name]), name
    # The table of FP4 (OCP Microscaling Formats 1.0, 5.3.3), two values to a byte, times a power of two per 32 values.
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
    name = "model.layers.0.mlp.experts.down_proj"
    blocks, scales = stored[f"{name}_blocks"].long(), stored[f"{name}_scales"].float()
    values = table[torch.stack([blocks & 15, blocks >> 4], dim=-1)].flatten(-2) * 2 ** (scales - 127)[..., None]
    torch.testing.assert_close(ours[name], values.flatten(-2).transpose(1, 2), rtol=1e-2, atol=0)


@pytest.mark.parametrize("kv_type", ["auto", "fp8_e4m3fn"])
def test_scales_of_keys_and_values_beside_scaled_weights_are_no_strangers(tmp_path: Path, kv_type: str) -> None:
    def store(name: str, tensor: torch.Tensor) -> Tensors:
        stored = in_blocks(32)(name, tensor)
        stem = name.removesuffix("weight")
        for kind in ("k", "v"):
            if stem.endswith(f"{kind}_proj."):
                stored[f"{stem}{kind}_scale"] = torch.tensor(0.03)
        return stored

    folder = make_tiny_llama(tmp_path / "llama")
    rewrite(folder, store, {**FP8, "weight_block_size": [32, 32], "kv_cache_scheme": {"num_bits": 8, "type": "float"}})
    options = LoadOptions(model_dir=folder, dtype="float32", kv_cache_dtype=kv_type)
    runner = load_model(options, lambda phase, share: None)
    runner.allocate_kv(1)
    assert runner.kv_pool is not None
    found = [scales.keys_K.tolist() for scales in runner.kv_pool.scales if scales is not None]
    assert found == ([] if kv_type == "auto" else [pytest.approx([0.03, 0.03])] * 2)


@pytest.mark.parametrize(
    ("store", "config", "words"),
    [
        (packed, {"quant_method": "awq", "bits": 4, "group_size": 16}, "quantised by awq cannot be served"),
        (packed, {"quant_method": "gptq", "bits": 4, "group_size": 16}, "quantised by gptq cannot be served"),
        (as_integers, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantised by bitsandbytes cannot"),
        (as_integers, {"load_in_4bit": True}, "quantised by bitsandbytes cannot be served"),
        (in_one("weight_scale"), {"quant_method": "compressed-tensors"}, "quantised by compressed-tensors cannot"),
        (in_one("weight_scale"), {"quant_method": "a-new-one"}, "quantised by a-new-one cannot be served"),
        (in_one("weight_scale"), {"quant_method": "torchao"}, "quantised by torchao .*serve the model that was quant"),
        (in_one("weight_scale"), {}, "quantization_config without the quant_method"),
        (in_one("weight_scale"), {"bits": 4}, "quantization_config without the quant_method"),
    ],
)
def test_other_forms_are_refused_by_name(
    tmp_path: Path, store: Callable[[str, torch.Tensor], Tensors], config: dict[str, Any], words: str
) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    rewrite(folder, store, config)
    with pytest.raises(ModelError, match=words):
        load(folder)


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (in_blocks(32), r"q_proj\.weight_scale_inv|down_proj\.weight_scale_inv"),
        (in_one("weight_scale"), r"_proj\.(input|weight)_scale"),
        (as_integers, r"_proj\.SCB"),
        (lambda name, tensor: {name: tensor, f"{name}.absmax": torch.ones(1)}, r"_proj\.weight\.absmax"),
        (lambda name, tensor: {name: tensor, f"{name[:-6]}bias": torch.ones(1)}, r"_proj\.bias"),
        (lambda name, tensor: {name: tensor.to(torch.int8)}, "as int8, and config.json has no quantization_config"),
    ],
)
def test_forms_that_no_config_names_are_refused(
    tmp_path: Path, store: Callable[[str, torch.Tensor], Tensors], words: str
) -> None:
    """Before, such scales were only logged as left over, and the layers computed with unscaled numbers."""
    folder = make_tiny_llama(tmp_path / "llama")
    rewrite(folder, store, None)
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_forms_are_found_where_older_configs_say_them_and_are_not_divided(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "config.json", compression_config={"quant_method": "compressed-tensors"})
    config = read_config(folder, trust_remote_code=False)
    with pytest.raises(UnsupportedModelError, match="compressed-tensors"):
        find_stored_form(config, folder, num_ranks=1)
    change_json(folder / "config.json", compression_config=None, quantization_config=FP8)
    config = read_config(folder, trust_remote_code=False)
    with pytest.raises(UnsupportedModelError, match="stored as fp8 cannot be divided"):
        find_stored_form(config, folder, num_ranks=2)
    with pytest.raises(UnsupportedModelError, match="use --num-shard 1"):
        load_model(
            LoadOptions(model_dir=folder, dtype="float32"), lambda phase, share: None, TensorParallel(0, world_size=2)
        )


# ---- which of several files


def test_of_several_files_those_are_read_that_transformers_reads(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    stored = load_file(folder / WEIGHTS)
    files = {"model.safetensors": 1.0, "part.safetensors": 2.0, "other.safetensors": 3.0}
    for name, factor in files.items():
        save_file({key: value * factor for key, value in stored.items()}, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(stored, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def check(expected: str) -> None:
        config = read_config(folder, trust_remote_code=False)
        named = getattr(config, "transformers_weights", None)
        assert set(find_weight_files(folder, named=named).file_of_tensor.values()) == {folder / expected}
        read = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        name = "model.layers.0.mlp.up_proj.weight"
        torch.testing.assert_close(read[name].float(), stored[name] * files[expected])

    check("model.safetensors")
    change_json(folder / "config.json", transformers_weights="other.safetensors")
    check("other.safetensors")
    change_json(folder / "config.json", transformers_weights="model.safetensors.index.json")
    check("part.safetensors")
    change_json(folder / "config.json", transformers_weights=None)
    (folder / "model.safetensors").unlink()
    check("part.safetensors")
    for named in ("../model.safetensors", "absent.safetensors", "config.json"):
        with pytest.raises(ModelFilesError, match=r"as transformers_weights: no (file of the folder|safetensors file)"):
            find_weight_files(folder, named=named)


def test_an_index_that_names_tensors_which_its_files_lack_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    stored = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "part.safetensors")
    weight_map = dict.fromkeys([*stored, "model.layers.9.mlp.up_proj.weight"], "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFilesError, match=r"model\.layers\.9.* is in part\.safetensors, which holds no tensor of"):
        load(folder)
