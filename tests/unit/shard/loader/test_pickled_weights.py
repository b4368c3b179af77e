"""Weights in `*.bin`: refused with the conversion named, read with --allow-pickle, and never run."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.loader.tensor_files import names_of_tensors
from textmill_shard.model.runner import ModelRunner
from transformers import AutoModelForCausalLM

from tests.fakes.tiny_models import make_tiny_llama, make_tiny_model

WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"


def load(folder: Path, *, allow_pickle: bool = True) -> ModelRunner:
    options = LoadOptions(model_dir=folder, dtype="float32", allow_pickle=allow_pickle)
    return load_model(options, lambda phase, share: None)


def parameters(runner: ModelRunner) -> dict[str, torch.Tensor]:
    return dict(next(iter(runner.modules())).named_parameters())


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a llama in `tmp_path` whose safetensors file is gone."""
    make_tiny_llama(tmp_path, tie=True)
    tensors = load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    return tensors


def assert_holds(runner: ModelRunner, stored: dict[str, torch.Tensor]) -> None:
    found = parameters(runner)
    for name, tensor in stored.items():
        assert torch.equal(found[name], tensor), name


def test_without_the_flag_the_error_names_the_conversion_and_the_flag(
    tmp_path: Path, stored: dict[str, torch.Tensor]
) -> None:
    torch.save(stored, tmp_path / PICKLE)
    with pytest.raises(ModelFilesError, match=r"pytorch_model\.bin.*save_pretrained.*--allow-pickle"):
        load(tmp_path, allow_pickle=False)


@pytest.mark.parametrize("is_zip", [True, False])
def test_single_file_is_read(tmp_path: Path, stored: dict[str, torch.Tensor], is_zip: bool) -> None:
    torch.save(stored, tmp_path / PICKLE, _use_new_zipfile_serialization=is_zip)
    torch.save({"optimizer": torch.ones(1)}, tmp_path / "training_args.bin")
    assert_holds(load(tmp_path), stored)


def test_index_names_the_files(tmp_path: Path, stored: dict[str, torch.Tensor]) -> None:
    names = sorted(stored)
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, half in halves.items():
        torch.save({name: stored[name] for name in half}, tmp_path / file)
    weight_map = {name: file for file, half in halves.items() for name in half}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_holds(load(tmp_path), stored)
    (tmp_path / "pytorch_model-2.bin").unlink()
    with pytest.raises(ModelFilesError, match=r"names 1 files that are not there, first pytorch_model-2\.bin"):
        load(tmp_path)
    index.write_text("{}")
    with pytest.raises(ModelFilesError, match="has no weight_map"):
        load(tmp_path)


def test_safetensors_are_taken_where_there_are_both(tmp_path: Path, stored: dict[str, torch.Tensor]) -> None:
    torch.save({name: torch.zeros_like(tensor) for name, tensor in stored.items()}, tmp_path / PICKLE)
    save_file(stored, tmp_path / WEIGHTS)
    assert_holds(load(tmp_path), stored)


def test_checkpoint_that_transformers_converts_on_the_way_is_read(tmp_path: Path) -> None:
    """Experts stored one by one, as checkpoints of Mixtral are."""
    make_tiny_model(tmp_path, "mixtral")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    stored = load_file(tmp_path / WEIGHTS)
    assert set(stored) != set(reference.state_dict())
    torch.save(stored, tmp_path / PICKLE)
    (tmp_path / WEIGHTS).unlink()
    assert_holds(load(tmp_path), dict(reference.named_parameters()))


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path: Path, stored: dict[str, torch.Tensor], is_zip: bool) -> None:
    sprung = tmp_path / "sprung"
    trap = {**stored, "model.norm.weight": _Trap(sprung)}
    torch.save(trap, tmp_path / PICKLE, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ModelFilesError, match=r"pytorch_model\.bin holds more than tensors"):
        load(tmp_path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(_Trap(sprung)))
    assert sprung.exists()  # the trap works where somebody steps into it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "not a plain list of named tensors"),
        ({"model": {"weight": torch.ones(1)}}, "not a plain list of named tensors"),
    ],
)
def test_file_that_is_no_state_dict_is_refused(
    tmp_path: Path, stored: dict[str, torch.Tensor], content: Any, message: str
) -> None:
    torch.save(content, tmp_path / PICKLE)
    with pytest.raises(ModelFilesError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut off"])
def test_damaged_file_is_refused(tmp_path: Path, stored: dict[str, torch.Tensor], content: bytes) -> None:
    (tmp_path / PICKLE).write_bytes(content)
    with pytest.raises(ModelFilesError, match=r"pytorch_model\.bin"):
        load(tmp_path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_file_that_was_cut_short_anywhere_is_refused(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / PICKLE
    torch.save({"a": torch.ones(3), "b": torch.ones(2)}, path, _use_new_zipfile_serialization=is_zip)
    data = path.read_bytes()
    assert names_of_tensors(path) == ("a", "b")
    for num_bytes in range(len(data)):
        path.write_bytes(data[:num_bytes])
        with pytest.raises(ModelFilesError, match=r"pytorch_model\.bin"):
            names_of_tensors(path)
