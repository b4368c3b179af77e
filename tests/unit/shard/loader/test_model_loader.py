"""What a model folder must hold, and what is said when it does not."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from textmill_shard.distributed.parallel import TensorParallel
from textmill_shard.errors import BackendRefused, ModelError, ModelFilesError, UnsupportedModelError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_config import pick_dtype
from textmill_shard.loader.model_files import WeightFiles, find_tokenizer_digest
from textmill_shard.loader.model_loader import load_model
from textmill_shard.loader.weight_reader import match_names
from textmill_shard.model.runner import ModelRunner
from textmill_shard.probing.probe import probe_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from tests.fakes.byte_tokenizer import END_ID
from tests.fakes.native_cases import native_cache_folder, native_kernels
from tests.fakes.tiny_models import make_random_model, make_tiny_llama, make_tiny_model

WEIGHTS = "model.safetensors"


def load(folder: Path, dtype: str = "float32", *, text_only: bool = False) -> ModelRunner:
    return load_model(LoadOptions(model_dir=folder, dtype=dtype, text_only=text_only), lambda phase, share: None)


def change_json(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **fields}))


def parameters(runner: ModelRunner) -> dict[str, torch.Tensor]:
    model = next(iter(runner.modules()))
    return dict(model.named_parameters())


def test_facts_come_from_the_folder(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama", eos=[END_ID, 5], vocab=300, max_position_embeddings=128)
    facts = load(folder).facts
    assert (facts.model_type, facts.dtype, facts.device, facts.vocab_size) == ("llama", "float32", "cpu", 300)
    assert (facts.eos_token_ids, facts.max_model_tokens, facts.block_size) == ((END_ID, 5), 128, 16)
    stored = load_file(folder / WEIGHTS)
    rotary_bytes = 2 * 8 * 4  # two tables of half the head dimension
    assert facts.weight_bytes == sum(tensor.nbytes for tensor in stored.values()) + rotary_bytes
    assert len(facts.tokenizer_digest) == 32
    assert facts.tokenizer_digest == find_tokenizer_digest(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_cast(tmp_path: Path, dtype: str) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    runner = load(folder, dtype)
    stored = load_file(folder / WEIGHTS)
    for name, parameter in parameters(runner).items():
        assert torch.equal(parameter, stored[name].to(getattr(torch, dtype)))


def test_progress_ends_with_each_phase(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    folder = make_tiny_llama(tmp_path / "llama")
    load_model(LoadOptions(model_dir=folder, dtype="float32"), lambda phase, share: seen.append((phase, share)))
    assert list(dict.fromkeys(phase for phase, _ in seen)) == ["config", "weights", "warmup"]
    assert ("weights", 1.0) in seen
    assert seen[-1] == ("warmup", 1.0)


def test_sharded_index_names_the_files(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama", tie=True)
    expected = parameters(load(folder))
    stored = load_file(folder / WEIGHTS)
    names = sorted(stored)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: stored[name] for name in half}, folder / file)
    weight_map = {name: file for file, half in halves.items() for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / WEIGHTS).unlink()
    for name, parameter in parameters(load(folder)).items():
        assert torch.equal(parameter, expected[name])

    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelFilesError, match=r"names 1 files that are not there, first model-2\.safetensors"):
        load(folder)


def test_tied_weights_are_one_tensor_whichever_name_is_stored(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama", tie=True)
    stored = load_file(folder / WEIGHTS)
    assert "lm_head.weight" not in stored
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        renamed = {key: tensor for key, tensor in stored.items() if key != "model.embed_tokens.weight"}
        save_file({**renamed, name: stored["model.embed_tokens.weight"]}, folder / WEIGHTS)
        model = next(iter(load(folder).modules()))
        assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")


def test_checkpoint_of_the_base_model_alone_is_read(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama", tie=True)
    expected = parameters(load(folder))
    stored = load_file(folder / WEIGHTS)
    save_file({name.removeprefix("model."): tensor for name, tensor in stored.items()}, folder / WEIGHTS)
    for name, parameter in parameters(load(folder)).items():
        assert torch.equal(parameter, expected[name])


def test_names_match_with_and_without_the_prefix_of_the_base_model(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    names = list(model.state_dict())
    shorter = {name: name.removeprefix("model.") for name in names}
    files = WeightFiles(dict.fromkeys(shorter.values(), folder / WEIGHTS))
    matching = match_names(model, files)
    assert matching.tensor_of_name == shorter
    assert (matching.missing, matching.unexpected) == ((), ())


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    stored = load_file(folder / WEIGHTS)
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, folder / WEIGHTS)
    with pytest.raises(ModelFilesError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_unexpected_tensor_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    stored = load_file(folder / WEIGHTS)
    save_file({**stored, "model.layers.0.spare": torch.zeros(1)}, folder / WEIGHTS)
    load(folder)
    assert "model.layers.0.spare" in caplog.text


def test_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "config.json", intermediate_size=95)
    with pytest.raises(ModelFilesError, match=r"has shape \[.*96.*\] in the files, config\.json asks for \[.*95.*\]"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "refused.*save_pretrained"),
        ("model.gguf", "textmill-shard convert --gguf"),
        (None, r"holds no weights: model\.safetensors or model\.safetensors\.index\.json is wanted"),
    ],
)
def test_folder_without_safetensors_says_what_to_do(tmp_path: Path, name: str | None, message: str) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    (folder / WEIGHTS).unlink()
    if name is not None:
        (folder / name).write_bytes(b"")
    with pytest.raises(ModelFilesError, match=message):
        load(folder)


@pytest.mark.parametrize("has_index", [False, True])
@pytest.mark.parametrize("num_bytes", [0, 50, 100_000])  # nothing, half a header, half the tensors
def test_a_file_that_was_cut_short_is_named(num_bytes: int, has_index: bool, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path)
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:num_bytes])
    if has_index:
        index = {"weight_map": dict.fromkeys(names, WEIGHTS)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFilesError, match=rf"{WEIGHTS} cannot be read .* {num_bytes} bytes; .*fetch it again"):
        load(folder)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "llama")
    change_json(folder / "config.json", model_type="abacus")
    with pytest.raises(UnsupportedModelError, match="abacus"):
        load(folder)


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dtype is int4, it can be auto, float32"):
        load(make_tiny_llama(tmp_path / "llama"), "int4")


@pytest.mark.parametrize(
    ("capabilities", "asked", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "auto", "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "auto", "bfloat16"),
        ({"bf16": True}, "auto", "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False}, "auto", "float32"),
        ({}, "auto", "float32"),
        ({}, "bfloat16", "bfloat16"),
        ({"avx512_bf16": True}, "float32", "float32"),
    ],
)
def test_processor_decides_the_dtype_unless_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], asked: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    config = AutoConfig.for_model("llama", dtype="float16")
    assert pick_dtype(asked, config=config, device=torch.device("cpu")) == expected


def make_small(folder: Path, model_type: str, **fields: object) -> Path:
    config = AutoConfig.for_model(model_type, **fields)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_kinds_of_layers_that_transformers_cache_does_not_know_are_no_hindrance(tmp_path: Path) -> None:
    """A model's own code may name them; where all of them attend, nothing is to be asked of that cache."""
    make_tiny_llama(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.config.layer_types = ["of_our_own"] * 2
    with pytest.raises(KeyError):
        DynamicCache(config=model.config)
    assert len(probe_model(model, texts=(torch.tensor([5, 6, 7]),), max_tokens=512).layers) == 2


def test_model_without_keys_and_values_in_a_cache_is_refused(tmp_path: Path) -> None:
    folder = make_small(tmp_path / "gpt", "openai-gpt", vocab_size=300, n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(UnsupportedModelError, match=r"openai-gpt cannot be served yet.* only 0 keep keys and values"):
        load(folder)


def test_model_that_counts_the_padding_of_a_batch_is_refused(tmp_path: Path) -> None:
    # A decoder whose positions come from the length of the cache: right alone, wrong beside a longer text.
    folder = make_small(
        tmp_path / "git",
        "git",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        initializer_range=0.25,
    )
    with pytest.raises(UnsupportedModelError, match="logits differ from those computed alone"):
        load(folder, text_only=True)


@pytest.fixture
def lfm2(tmp_path: Path) -> Path:
    return make_small(
        tmp_path / "lfm2",
        "lfm2",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    )


def test_rows_of_layers_that_carry_state_are_counted(lfm2: Path) -> None:
    runner = load_model(LoadOptions(model_dir=lfm2, dtype="float32", num_slots=5), lambda phase, share: None)
    assert runner.facts.layout == "state"
    assert len(runner.facts.kv_specs) == 1
    assert runner.facts.state_bytes == (5 + 1) * 32 * 3 * 4  # slots and scratch, channels, width, float32


def test_layers_that_carry_state_are_not_divided_among_shards(lfm2: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="--num-shard 1"):
        load_model(LoadOptions(model_dir=lfm2), lambda phase, share: None, TensorParallel(rank=0, world_size=2))


def test_dynamic_rotary_tables_are_fixed_for_the_longest_text(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "llama", "llama", max_position_embeddings=64)
    rope = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}
    change_json(folder / "config.json", rope_parameters=rope)
    runner = load(folder)
    assert runner.facts.max_model_tokens == 256
    # NTK scaling as transformers documents it, for 256 tokens of a head of 16.
    base = 1000.0 * (4.0 * 256 / 64 - 3.0) ** (16 / 14)
    frequencies = base ** (-torch.arange(0, 16, 2) / 16)
    tables = [module.inv_freq for module in runner.modules() if hasattr(module, "inv_freq")]
    assert len(tables) == 1
    torch.testing.assert_close(tables[0], frequencies)


def test_rotary_tables_with_two_borders_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "gemma", "gemma3_text")
    kind = {"rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    borders = {"sliding_attention": 64, "full_attention": 128}
    rope = {layer: {**kind, "original_max_position_embeddings": border} for layer, border in borders.items()}
    change_json(folder / "config.json", rope_parameters=rope)
    with pytest.raises(UnsupportedModelError, match=r"several borders \(\[64, 128\]\)"):
        load(folder)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class HouseConfig(LlamaConfig):
    model_type = "house_of_cards"

class HouseForCausalLM(LlamaForCausalLM):
    config_class = HouseConfig
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama whose code lies in its folder."""
    folder = make_tiny_llama(tmp_path / "house")
    (folder / "house.py").write_text(OWN_CODE)
    code = {"AutoConfig": "house.HouseConfig", "AutoModelForCausalLM": "house.HouseForCausalLM"}
    change_json(folder / "config.json", model_type="house_of_cards", auto_map=code)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_code_of_the_folder_runs_only_when_it_is_trusted(house: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"brings modelling code.*house\.HouseConfig.*--trust-remote-code"):
        load(house)
    options = LoadOptions(model_dir=house, dtype="float32", trust_remote_code=True)
    runner = load_model(options, lambda phase, share: None)
    assert runner.facts.model_type == "house_of_cards"


def test_known_model_type_needs_no_trust_in_the_code_beside_it(house: Path) -> None:
    change_json(house / "config.json", model_type="llama")
    assert load(house).facts.model_type == "llama"


def test_a_model_with_attention_of_its_own_refuses_a_backend(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bloom", vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    make_random_model(config, tmp_path)
    options = LoadOptions(model_dir=tmp_path, dtype="float32", attention_backend="reference")
    with pytest.raises(BackendRefused, match="reference: models of type bloom attend in their own code"):
        load_model(options, lambda phase, share: None)


def test_plain_attention_that_is_asked_for_is_taken_in_place_of_native_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = LoadOptions(
        model_dir=make_tiny_llama(tmp_path),
        dtype="float32",
        attention_backend="reference",
        native_cache_dir=native_cache_folder(),
    )
    native_kernels()
    with caplog.at_level(logging.INFO, "textmill_shard"):
        load_model(options, lambda phase, share: None)
    [loaded] = [record.__dict__ for record in caplog.records if record.message == "model loaded"]
    assert loaded["attention"] == "reference"
    assert loaded["native_decoder"] == "no: attention is computed by the backend reference"
    assert "packed_linear" in loaded["module_swaps"]
