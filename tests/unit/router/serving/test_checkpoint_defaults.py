"""Numbers of a checkpoint's files that no generation can obey are refused, or count for nothing, by their names."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from textmill_router.serving.checkpoint_defaults import CheckpointError, read_checkpoint_writing

BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 10_000}, "`num_beams` of {file} must be a whole number from 1 to 64, found 10000"),
    ({"num_beams": 2.5}, "`num_beams` of {file} must be a whole number from 1 to 64, found 2.5"),
    ({"num_beams": "four"}, "`num_beams` of {file} must be a whole number from 1 to 64, found 'four'"),
    ({"num_beams": True}, "`num_beams` of {file} must be a whole number from 1 to 64, found True"),
    ({"temperature": -1}, "`temperature` of {file} must be 0 to 100, found -1"),
    ({"temperature": float("nan")}, "`temperature` of {file} must be 0 to 100, found nan"),
    ({"max_new_tokens": 0}, "`max_new_tokens` of {file} must be a whole number from 1 to 4294967295, found 0"),
    ({"max_length": 10**40}, "`max_length` of {file} must be a whole number from 1 to 4294967295, found 1000"),
    ({"min_length": -3}, "`min_length` of {file} must be a whole number from 0 to 4294967295, found -3"),
    ({"length_penalty": 1e9}, "`length_penalty` of {file} must be -100 to 100, found 1e+09"),
    ({"no_repeat_ngram_size": -1}, "`no_repeat_ngram_size` of {file} must be a whole number from 0 to 2147483647"),
    ({"repetition_penalty": -0.5}, "`repetition_penalty` of {file} must be 0 to 100, found -0.5"),
    ({"top_k": -1}, "`top_k` of {file} must be a whole number from 0 to 2147483647, found -1"),
    ({"top_p": 1.5}, "`top_p` of {file} must be 0 to 1, found 1.5"),
]


def write(folder: Path, generation: dict[str, Any] | None, config: dict[str, Any] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config or {}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(("values", "sentence"), BAD)
def test_a_number_out_of_range_is_refused_by_its_name(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    write(tmp_path, values)
    with pytest.raises(CheckpointError) as found:
        read_checkpoint_writing(tmp_path, must_fit=True)
    assert str(found.value).startswith(sentence.format(file=tmp_path / "generation_config.json"))
    assert str(found.value).endswith("; correct the file")


def test_older_folders_and_tasks_are_checked_in_config_json(tmp_path: Path) -> None:
    write(tmp_path, None, {"num_beams": 100})
    with pytest.raises(CheckpointError, match=r"`num_beams` of .*/config\.json must be"):
        read_checkpoint_writing(tmp_path, must_fit=True)
    write(tmp_path, {}, {"num_beams": 100, "task_specific_params": {"summarization": {"length_penalty": -101}}})
    with pytest.raises(CheckpointError, match=r"`length_penalty` of task_specific_params\.summarization in .*config"):
        read_checkpoint_writing(tmp_path, must_fit=True)


@pytest.mark.parametrize(("values", "sentence"), BAD)
def test_where_values_need_not_fit_a_bad_one_counts_for_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: dict[str, Any], sentence: str
) -> None:
    write(tmp_path, {"max_new_tokens": 7, "length_penalty": 2.0, "num_beams": 3, **values})
    with caplog.at_level(logging.WARNING):
        defaults = read_checkpoint_writing(tmp_path, must_fit=False).defaults_of("text-generation")
    (name,) = values
    assert sentence.format(file=tmp_path / "generation_config.json") in caplog.text
    expected = {"max_new_tokens": 7, "length_penalty": 2.0, "num_beams": 3}
    assert defaults.numbers == {other: value for other, value in expected.items() if other != name}
    assert [one.split()[0] for one in defaults.not_served] == [name]


def test_values_of_published_checkpoints_fit(tmp_path: Path) -> None:
    generation = {
        **{"num_beams": 12, "max_length": 1_000_000_000, "min_length": 0, "length_penalty": 0.6, "top_k": 0},
        **{
            "temperature": 0.0,
            "top_p": 1.0,
            "repetition_penalty": 1,
            "no_repeat_ngram_size": 3,
            "max_new_tokens": None,
        },
    }
    found = read_checkpoint_writing(write(tmp_path, generation), must_fit=True).defaults_of("summarization")
    assert found.numbers == {name: value for name, value in generation.items() if value is not None}
    assert found.not_served == ()
