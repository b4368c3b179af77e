"""Models with images: which are refused, which tensors must be there, and the text part alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import BAD_FILES, UNSUPPORTED_MODEL, ModelFilesError, UnsupportedModelError, exit_code_of
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.media import MediaFault
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from transformers import AutoConfig

from tests.fakes.native_cases import native_cache_folder
from tests.zoo.image_drive import ImageModel, make_image_model
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO

ENTRIES = {entry.name: entry for entry in IMAGE_ZOO}
Tensors = dict[str, torch.Tensor]


def load(folder: Path, *, text_only: bool = False, parallel: TensorParallel | None = None) -> ModelRunner:
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=4, text_only=text_only)
    return load_model(options, lambda phase, share: None, parallel)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    return make_image_model(ENTRIES["Llava"], tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mllama", "cross attention"),
        ("llama4", "torchvision alone"),
        ("phi4_multimodal", "torchvision alone"),
        ("aya_vision", "nobody has compared their images"),
    ],
)
def test_another_family_is_refused_at_the_start_with_the_reason(tmp_path: Path, model_type: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(AutoConfig.for_model(model_type).to_dict()))
    with pytest.raises(UnsupportedModelError, match=f"type {model_type} take images.*{reason}.*--text-only") as refusal:
        load(tmp_path)
    assert exit_code_of(refusal.value) == UNSUPPORTED_MODEL == 16


def test_text_only_leaves_the_tower_out_and_keeps_the_text_model(llava: ImageModel) -> None:
    runner, whole = load(llava.folder, text_only=True), load(llava.folder)
    assert runner.media is None
    tower = sum(
        parameter.nbytes
        for name, parameter in llava.reference.named_parameters()
        if "language_model" not in name and "lm_head" not in name
    )
    assert tower > 0
    # The tower's buffers, numbers of its positions, go too.
    assert tower <= whole.facts.weight_bytes - runner.facts.weight_bytes <= tower + 8 * 17
    ids = torch.tensor([5, 99, 31, 7, 250])
    runner.allocate_kv(2)
    found = runner.forward(synthetic_batch([SyntheticRow(ids, [0, 1], num_logits=5)], block_size=4)).logits_NV
    with torch.inference_mode():
        expected = llava.reference(input_ids=ids.unsqueeze(0), use_cache=False).logits[0]
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def change(model: ImageModel, folder: Path, edit: Callable[[Tensors], object]) -> None:
    for path in model.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda tensors: tensors.update({"vision_tower.gate.weight": torch.ones(3)}), "vision_tower.gate.weight"),
        (lambda tensors: tensors.pop("multi_modal_projector.linear_1.bias"), "multi_modal_projector.linear_1.bias"),
    ],
    ids=["unknown", "missing"],
)
def test_a_tensor_of_the_tower_that_does_not_fit_is_named(
    llava: ImageModel, tmp_path: Path, edit: Callable[[Tensors], object], named: str
) -> None:
    change(llava, tmp_path, edit)
    with pytest.raises(ModelFilesError, match=named) as refusal:
        load(tmp_path)
    assert exit_code_of(refusal.value) == BAD_FILES


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_tensor_under_the_names_of_the_hub_is_read_without_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints have the names of older releases. Ranks read their part of each tensor under those names too."""
    model = make_image_model(ENTRIES[name], tmp_path)
    monkeypatch.setattr(type(model.reference), "from_pretrained", None)
    runner = load(tmp_path)
    tensors = {id(tensor): tensor for tensor in (*model.reference.parameters(), *model.reference.buffers())}
    assert runner.facts.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "missing: .'pixel_values'."),
        ({"pixel_values": torch.ones(1, 3, 16, 16), "grid": torch.ones(1)}, "unknown: .'grid'."),
        ({"pixel_values": torch.ones(3, 16, 16)}, "pixel_values has 3 dimensions of float32, wanted are 4"),
        ({"pixel_values": torch.ones(1, 3, 16, 16).long()}, "of int64, wanted are 4 of float32 or bfloat16"),
        ({"pixel_values": torch.ones(1, 3, 20, 16)}, "cannot be encoded from pixel_values .1, 3, 20, 16."),
        ({"pixel_values": torch.full((1, 3, 16, 16), torch.nan)}, "not finite"),
    ],
    ids=["missing", "unknown", "dimensions", "dtype", "size", "not finite"],
)
def test_tensors_that_are_no_image_are_a_fault_of_the_item(llava: ImageModel, tensors: Tensors, message: str) -> None:
    with pytest.raises(MediaFault, match=message):
        load(llava.folder).encode_media(tensors)


def with_text(name: str, **fields: object) -> ImageEntry:
    """Return an entry whose text config has other values."""
    config = ENTRIES[name].config
    return replace(ENTRIES[name], config={**config, "text_config": {**config["text_config"], **fields}})


@pytest.mark.parametrize(("window", "is_refused"), [(4, False), (3, True)])
def test_an_image_longer_than_a_window_is_refused_at_the_start(tmp_path: Path, window: int, is_refused: bool) -> None:
    """Each image has 4 tokens, which see each other."""
    make_image_model(with_text("Gemma3", sliding_window=window), tmp_path)
    if not is_refused:
        assert load(tmp_path).media is not None
        return
    with pytest.raises(UnsupportedModelError, match=r"each image 4 tokens.*a window of 3"):
        load(tmp_path)


def test_a_prompt_that_is_one_span_is_not_longer_than_a_window(tmp_path: Path) -> None:
    runner = load(make_image_model(with_text("PaliGemma 2", sliding_window=40), tmp_path).folder)
    assert runner.media is not None
    assert runner.media.is_prompt_span
    assert runner.facts.max_model_tokens == runner.media.max_span_tokens == 40


@pytest.mark.parametrize("native", [False, True])
def test_adapters_reach_the_text_layers_and_not_the_tower(llava: ImageModel, native: bool) -> None:
    cache = native_cache_folder() if native else None
    options = LoadOptions(model_dir=llava.folder, dtype="float32", block_size=4, native_cache_dir=cache)
    runner = load_model(options, lambda phase, share: None)
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    layers = {f"model.language_model.layers.{layer}.{part}" for layer in range(2) for part in parts}
    assert set(runner.targets.linears) == {*layers, "lm_head"}
    assert runner.facts.can_project
