"""Headers of safetensors files, and files that are cut, damaged or missing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from textmill_launcher.errors import ModelFilesError
from textmill_launcher.plan.tensor_headers import TensorHeader, read_header, read_local_headers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}
    save_file(tensors, str(path), metadata={"format": "pt"})
    return path


def test_headers_are_those_of_the_library(file: Path) -> None:
    found = {header.name: header for header in read_header(file)}
    assert found == {"a": TensorHeader("a", "F32", (3, 5)), "b": TensorHeader("b", "BF16", (7,))}
    assert found["a"].num_elements == 15


@pytest.mark.parametrize("num_bytes", [0, 7, 50, -1])
def test_file_that_is_cut_is_refused(file: Path, num_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(ModelFilesError, match=r"no safetensors file|damaged or cut off"):
        read_header(file)


def test_file_that_holds_something_else_is_refused(file: Path) -> None:
    file.write_bytes((20).to_bytes(8, "little") + b"x" * 100)
    with pytest.raises(ModelFilesError, match="its header cannot be read"):
        read_header(file)


def test_index_names_the_files_that_count(file: Path) -> None:
    index = file.parent / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file.name, "b": file.name}}))
    (file.parent / "consolidated.safetensors").write_bytes(b"damaged")
    assert {header.name for header in read_local_headers(file.parent)} == {"a", "b"}
    index.write_text(json.dumps({"weight_map": {"a": file.name, "c": "model-2.safetensors"}}))
    with pytest.raises(ModelFilesError, match=r"lacks model-2\.safetensors"):
        read_local_headers(file.parent)
    index.write_text("[]")
    with pytest.raises(ModelFilesError, match="is no index"):
        read_local_headers(file.parent)


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"lacks \*\.safetensors"):
        read_local_headers(tmp_path)


@pytest.mark.parametrize(
    ("header", "num_bytes"),
    [
        (TensorHeader("w", "F32", (4, 8)), 64),
        (TensorHeader("w", "F8_E4M3", (4, 8)), 64),
        (TensorHeader("w.weight_scale_inv", "F32", (4, 8)), 0),
        (TensorHeader("experts.gate_up_proj_blocks", "U8", (4, 8)), 128),  # two numbers of 4 bits in a byte
        (TensorHeader("experts.gate_up_proj_scales", "U8", (4, 8)), 0),
        (TensorHeader("ids", "I64", (4,)), 32),
    ],
)
def test_loaded_numbers_have_the_type_of_the_model(header: TensorHeader, num_bytes: int) -> None:
    assert header.loaded_bytes(element_bytes=2) == num_bytes
