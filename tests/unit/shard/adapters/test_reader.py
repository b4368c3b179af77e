"""A folder that PEFT wrote becomes an adapter of this rank, and a stranger's folder is refused with the reason."""

import json
import logging
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from textmill_shard.adapters.reader import AdapterLimits, read_adapter
from textmill_shard.model.adapter import AdapterRefused, AdapterTargets, AdapterTooLarge, LinearPart

LIMITS = AdapterLimits(max_rank=16, max_bytes=100_000, base_model="org/base")
Q, DOWN, HEAD = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "lm_head"
PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


def whole(num_inputs: int, num_outputs: int) -> LinearPart:
    return LinearPart(num_inputs, num_outputs, slice(0, num_inputs), slice(0, num_outputs))


LINEARS = {Q: whole(8, 6), DOWN: whole(10, 8), HEAD: whole(8, 20)}
TARGETS = AdapterTargets(linears=LINEARS, module_names=frozenset({*LINEARS, "model.embed_tokens", "model"}))


def tensors_of(*, rank: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for path in (Q, DOWN):
        part = LINEARS[path]
        for name, shape in (("lora_A", (rank, part.in_features)), ("lora_B", (part.out_features, rank))):
            found[f"{PREFIX}{path}.{name}.weight"] = torch.randn(shape, generator=generator).to(dtype)
    return found


def write(folder: Path, config: Mapping[str, Any] | None = None, tensors: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG if config is None else config))
    save_file(dict(tensors_of() if tensors is None else tensors), folder / "adapter_model.safetensors")
    return folder


def test_matrices_scale_and_names_are_those_of_the_file(tmp_path: Path) -> None:
    adapter = read_adapter(write(tmp_path), TARGETS, LIMITS)
    tensors = tensors_of()
    assert set(adapter.modules) == {Q, DOWN}
    assert adapter.target_names == ("down_proj", "q_proj")
    for path, low in adapter.modules.items():
        assert torch.equal(low.a_rI, tensors[f"{PREFIX}{path}.lora_A.weight"])
        assert torch.equal(low.b_Or, tensors[f"{PREFIX}{path}.lora_B.weight"])
        assert (low.scale, low.rank) == (8 / 4, 4)


def test_ranks_hold_their_parts_under_one_digest(tmp_path: Path) -> None:
    folder = write(tmp_path)
    one = read_adapter(folder, TARGETS, LIMITS)
    halves = []
    for rank in (0, 1):
        columns, rows = slice(5 * rank, 5 * rank + 5), slice(3 * rank, 3 * rank + 3)
        linears = {**LINEARS, Q: LinearPart(8, 6, slice(0, 8), rows), DOWN: LinearPart(10, 8, columns, slice(0, 8))}
        halves.append(read_adapter(folder, AdapterTargets(linears, frozenset(linears)), LIMITS))
    assert {half.digest for half in halves} == {one.digest}
    for path, dim, name in ((Q, 0, "b_Or"), (DOWN, 1, "a_rI")):
        parts = [getattr(half.modules[path], name) for half in halves]
        assert torch.equal(torch.cat(parts, dim=dim), getattr(one.modules[path], name))
    assert torch.equal(halves[1].modules[Q].a_rI, one.modules[Q].a_rI)
    assert torch.equal(halves[1].modules[DOWN].b_Or, one.modules[DOWN].b_Or)


def test_digest_tells_what_is_computed_and_nothing_else(tmp_path: Path) -> None:
    digest = read_adapter(write(tmp_path / "0"), TARGETS, LIMITS).digest
    assert len(digest) == 16
    history = {**CONFIG, "task_type": "CAUSAL_LM", "lora_dropout": 0.5, "base_model_name_or_path": "elsewhere"}
    assert read_adapter(write(tmp_path / "1", history), TARGETS, LIMITS).digest == digest
    others = [
        write(tmp_path / "2", {**CONFIG, "lora_alpha": 9}),
        write(tmp_path / "3", {**CONFIG, "use_rslora": True}),
        write(tmp_path / "4", tensors=tensors_of(seed=1)),
        write(tmp_path / "5", tensors={name: tensor for name, tensor in tensors_of().items() if "q_proj" in name}),
    ]
    found = {read_adapter(folder, TARGETS, LIMITS).digest for folder in others}
    assert len(found) == 4
    assert digest not in found


def test_half_precision_files_are_cast_to_the_dtype_of_the_model(tmp_path: Path) -> None:
    folder = write(tmp_path, tensors=tensors_of(dtype=torch.float16))
    targets = AdapterTargets(LINEARS, TARGETS.module_names, dtype=torch.bfloat16)
    low = read_adapter(folder, targets, LIMITS).modules[Q]
    assert torch.equal(low.a_rI, tensors_of(dtype=torch.float16)[f"{PREFIX}{Q}.lora_A.weight"].to(torch.bfloat16))


@pytest.mark.parametrize(
    ("trained", "served"),
    [
        ("model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
        ("model.language_model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("language_model.model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
    ],
)
def test_names_of_wrappers_are_found(trained: str, served: str, tmp_path: Path) -> None:
    tensors = {
        f"{PREFIX}{trained}.{letter}.weight": torch.ones(shape)
        for letter, shape in (("lora_A", (4, 8)), ("lora_B", (6, 4)))
    }
    targets = AdapterTargets({served: whole(8, 6)}, frozenset({served}))
    assert set(read_adapter(write(tmp_path, tensors=tensors), targets, LIMITS).modules) == {served}


def test_files_of_an_index_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path)
    digest = read_adapter(folder, TARGETS, LIMITS).digest
    (folder / "adapter_model.safetensors").unlink()
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors_of().items()):
        save_file({name: tensor}, folder / f"part-{number}.safetensors")
        weight_map[name] = f"part-{number}.safetensors"
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert read_adapter(folder, TARGETS, LIMITS).digest == digest
    for outside in ("../x.safetensors", "/etc/x.safetensors"):
        content = json.dumps({"weight_map": {**weight_map, "more": outside}})
        (folder / "adapter_model.safetensors.index.json").write_text(content)
        with pytest.raises(AdapterRefused, match="no name of a file"):
            read_adapter(folder, TARGETS, LIMITS)


def test_another_name_of_the_base_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_adapter(write(tmp_path, {**CONFIG, "base_model_name_or_path": "/mirror/base"}), TARGETS, LIMITS)
        assert caplog.messages == []
        read_adapter(write(tmp_path, {**CONFIG, "base_model_name_or_path": "org/other"}), TARGETS, LIMITS)
    assert len(caplog.messages) == 1


BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type"),
    ({"peft_type": None}, "peft_type"),
    ({"use_dora": True}, "use_dora"),
    ({"lora_bias": True}, "lora_bias"),
    ({"bias": "all"}, "bias"),
    ({"bias": "lora_only"}, "bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    ({"use_qalora": True}, "use_qalora"),
    ({"use_bdlora": {"x": 1}}, "use_bdlora"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"arrow_config": {"x": 1}}, "arrow_config"),
    ({"monteclora_config": {"x": 1}}, "monteclora_config"),
    ({"kasa_config": {"x": 1}}, "kasa_config"),
    ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
    ({"init_lora_weights": "olora"}, "init_lora_weights"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights"),
    ({"init_lora_weights": "corda"}, "init_lora_weights"),
    ({"init_lora_weights": "lora_ga"}, "init_lora_weights"),
    ({"init_lora_weights": "made_up"}, "init_lora_weights"),
    ({"made_up_field": 3}, "made_up_field"),
    ({"r": 0}, "r = 0"),
    ({"r": -1}, "r = -1"),
    ({"r": 17}, "--max-lora-rank"),
    ({"r": 10**30}, "--max-lora-rank"),
    ({"r": True}, "r = true"),
    ({"r": "4"}, "r ="),
    ({"r": 3}, "shape"),
    ({"lora_alpha": "x"}, "lora_alpha"),
    ({"lora_alpha": 1e30}, "lora_alpha"),
    ({"use_rslora": "yes"}, "use_rslora"),
    ({"rank_pattern": {"q_proj": 99}}, "rank_pattern"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    ({"rank_pattern": {"(": 4}}, "is no pattern"),
    ({"alpha_pattern": {"x" * 2000: 4}}, "alpha_pattern"),
    ({"alpha_pattern": {str(number): 4 for number in range(10_001)}}, "10001 keys"),
]


@pytest.mark.parametrize(("fields", "said"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_config_that_would_compute_something_else_is_refused_by_name(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused) as refused:
        read_adapter(write(tmp_path, {**CONFIG, **fields}), TARGETS, LIMITS)
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_start_values_that_leave_the_base_alone_are_taken(kind: Any, tmp_path: Path) -> None:
    assert read_adapter(write(tmp_path, {**CONFIG, "init_lora_weights": kind}), TARGETS, LIMITS).modules


def with_tensor(name: str, shape: tuple[int, ...] = (2, 2)) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {**tensors_of(), f"{PREFIX}{name}": torch.ones(shape)}


def without(end: str) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {name: tensor for name, tensor in tensors_of().items() if not name.endswith(end)}


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], dict[str, torch.Tensor]]:
    name = f"{PREFIX}{Q}.lora_A.weight"
    return lambda: {**tensors_of(), name: change(tensors_of()[name])}


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def fill(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, 0] = value
        return tensor

    return fill


BAD_TENSORS: list[tuple[Callable[[], dict[str, torch.Tensor]], str]] = [
    (with_tensor("model.embed_tokens.lora_embedding_A"), "embedding"),
    (with_tensor(f"{Q}.lora_magnitude_vector"), "DoRA"),
    (with_tensor(f"{Q}.lora_B.bias"), "lora_bias"),
    (with_tensor("lm_head.weight"), "lm_head.weight"),
    (with_tensor("model.layers.0.mlp.experts.lora_A.weight"), "experts"),
    (with_tensor("model.layers.0.mlp.gate.base_layer.lora_A.weight"), "target_parameters"),
    (with_tensor(f"{Q}.bias"), "bias"),
    (with_tensor(f"{Q}.something"), "something"),
    (lambda: {"x.lora_A.weight": torch.ones(2, 2)}, "x.lora_A.weight"),
    (lambda: {}, "no tensors"),
    (without(f"{Q}.lora_B.weight"), "lora_B.weight is missing"),
    (without(f"{Q}.lora_A.weight"), "lora_A.weight is missing"),
    (changed(lambda tensor: tensor[:, :7].contiguous()), "shape [4, 7]"),
    (changed(lambda tensor: tensor[:3].contiguous()), "shape [3, 8]"),
    (changed(lambda tensor: tensor.reshape(-1)), "shape [32]"),
    (changed(lambda tensor: tensor.double()), "float64"),
    (changed(lambda tensor: tensor.to(torch.int8)), "int8"),
    (changed(filled(float("nan"))), "not finite"),
    (changed(filled(float("inf"))), "not finite"),
]


@pytest.mark.parametrize(("make", "said"), BAD_TENSORS, ids=[said for _, said in BAD_TENSORS])
def test_tensor_that_cannot_be_used_is_refused_by_name(
    make: Callable[[], dict[str, torch.Tensor]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterRefused) as refused:
        read_adapter(write(tmp_path, tensors=make()), TARGETS, LIMITS)
    assert said in str(refused.value)


def test_names_that_match_nothing_are_refused_with_the_nearest_layer(tmp_path: Path) -> None:
    tensors = {name.replace("layers.0.self_attn", "h.0.attn"): tensor for name, tensor in tensors_of().items()}
    with pytest.raises(AdapterRefused, match=r"no layer model\.h\.0\.attn\.q_proj.*self_attn\.q_proj"):
        read_adapter(write(tmp_path, tensors=tensors), TARGETS, LIMITS)


def cut_header(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def lie_of_header(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def pickle_alone(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def link(folder: Path) -> None:
    target = folder.parent / "elsewhere.safetensors"
    (folder / "adapter_model.safetensors").rename(target)
    (folder / "adapter_model.safetensors").symlink_to(target)


def pipe(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


def directory(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()


def config_text(text: str) -> Callable[[Path], None]:
    def write_config(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(text)

    return write_config


BAD_FOLDERS: list[tuple[Callable[[Path], None], str]] = [
    (cut_header, "damaged"),
    (lie_of_header, "damaged"),
    (pickle_alone, "pickle"),
    (link, "is a link"),
    (pipe, "no regular file"),
    (directory, "no regular file"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    (config_text("{"), "no JSON"),
    (config_text("[]"), "JSON object"),
    (config_text("{" + '"a":' + "[" * 100_000), "no JSON"),
    (config_text('{"a":' + "[" * 70 + "]" * 70 + "}"), "64 levels"),
    (config_text(" " * (1 << 20) + "{}"), "1048576"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD_FOLDERS, ids=[said for _, said in BAD_FOLDERS])
def test_hostile_folder_is_refused_and_not_waited_for(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter")
    spoil(folder)
    with pytest.raises(AdapterRefused) as refused:
        read_adapter(folder, TARGETS, LIMITS)
    assert said in str(refused.value)


def test_file_beyond_the_memory_of_adapters_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(AdapterTooLarge, match="--lora-memory-bytes"):
        read_adapter(write(tmp_path), TARGETS, AdapterLimits(max_rank=16, max_bytes=100))


def test_patterns_without_end_are_killed(tmp_path: Path) -> None:
    config = {**CONFIG, "rank_pattern": {"(.*.*)*z": 4}}
    name = f"{PREFIX}model." + "a" * 40
    tensors = {f"{name}.lora_A.weight": torch.ones(4, 8), f"{name}.lora_B.weight": torch.ones(6, 4)}
    long_path = "model." + "a" * 40
    targets = AdapterTargets({long_path: whole(8, 6)}, frozenset({long_path}))
    with pytest.raises(AdapterRefused, match="to match"):
        read_adapter(write(tmp_path, config, tensors), targets, LIMITS)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="no folder"):
        read_adapter(tmp_path / "nothing", TARGETS, LIMITS)
