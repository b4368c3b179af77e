"""Checkpoints that differ have different digests, also where only large files differ."""

import os
from pathlib import Path

from textmill_launcher.nodes.fingerprint import WHOLE_BYTES, digests_of


def make_folder(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text(str(folder))
    (folder / "modeling.py").write_text(f"NAME = '{folder.name}'")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_equal_files_have_equal_digests_wherever_they_lie(tmp_path: Path) -> None:
    found = [digests_of(make_folder(tmp_path / name, b"weights")) for name in "ab"]
    assert found[0] == found[1]
    assert set(found[0]) == {"config.json", "tokenizer.json", "model.safetensors"}


def test_one_byte_of_a_small_file_counts(tmp_path: Path) -> None:
    first, second = (digests_of(make_folder(tmp_path / name, name.encode())) for name in "ab")
    assert {name for name in first if first[name] != second[name]} == {"model.safetensors"}


def test_two_trainings_differ_in_the_samples_of_a_large_file(tmp_path: Path) -> None:
    size = WHOLE_BYTES + 1_000_003
    head = b"h" * 1024**2  # the headers of two trainings are alike
    found = []
    for name in "ab":
        weights = head + os.urandom(size - len(head))
        found.append(digests_of(make_folder(tmp_path / name, weights))["model.safetensors"])
    assert found[0] != found[1]


def test_large_file_that_is_cut_off_differs(tmp_path: Path) -> None:
    weights = bytes(WHOLE_BYTES + 1000)
    whole = digests_of(make_folder(tmp_path / "a", weights))
    assert whole != digests_of(make_folder(tmp_path / "b", weights[:-1]))


def test_modelling_code_counts_where_it_runs(tmp_path: Path) -> None:
    first, second = (make_folder(tmp_path / name, b"") for name in "ab")
    assert digests_of(first) == digests_of(second)
    assert digests_of(first, with_code=True) != digests_of(second, with_code=True)


def test_pickled_weights_count_only_where_they_are_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", b"")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin" not in digests_of(folder, with_pickles=True)  # there are safetensors
    (folder / "model.safetensors").unlink()
    assert "pytorch_model.bin" in digests_of(folder, with_pickles=True)
    assert "pytorch_model.bin" not in digests_of(folder)
