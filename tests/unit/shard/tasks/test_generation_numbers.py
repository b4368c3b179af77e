"""Numbers of a model's files that no generation can obey end the start by their names."""

import json
from pathlib import Path
from typing import Any

import pytest
from textmill_shard.errors import ModelFilesError
from textmill_shard.tasks.media_loader import MediaLimits, load_media
from textmill_shard.tasks.task_loader import TaskOptions

from tests.fakes.tiny_answers import make_answering_model
from tests.fakes.tiny_media import make_whisper

LIMITS = MediaLimits(max_pixels=1000, max_seconds=60.0)


def load(folder: Path, task: str) -> object:
    return load_media(TaskOptions(folder, task), LIMITS, lambda phase, share: None)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **values}))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_beams": 10_000}, "must be a whole number from 1 to 64, found 10000"),
        ({"max_length": 0}, "must be a whole number from 1 to"),
        ({"length_penalty": -1000}, "must be -100 to 100, found -1000"),
        ({"no_repeat_ngram_size": 2.5}, "must be a whole number from 0 to"),
        ({"repetition_penalty": 0}, "must be 1e-06 to 100, found 0"),
        ({"num_return_sequences": 4}, "must be 1, found 4"),
    ],
)
def test_whisper_is_refused(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    make_whisper(tmp_path)
    change(tmp_path / "generation_config.json", **values)
    (name,) = values
    with pytest.raises(ModelFilesError) as found:
        load(tmp_path, "automatic-speech-recognition")
    assert f"`{name}` of {tmp_path / 'generation_config.json'} {sentence}" in str(found.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_beams": 65}, "must be a whole number from 1 to 64, found 65"),
        ({"temperature": -1}, "must be 0 to 100, found -1"),
        ({"top_k": "many"}, "must be a whole number from 0 to"),
        ({"top_p": 2}, "must be 0 to 1, found 2"),
        ({"min_length": -5}, "must be a whole number from 0 to"),
    ],
)
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_model_that_writes_about_images_is_refused(
    tmp_path: Path, file: str, values: dict[str, Any], sentence: str
) -> None:
    make_answering_model(tmp_path, "git", "image-to-text", settings={})
    if file == "config.json":
        (tmp_path / "generation_config.json").unlink(missing_ok=True)
    change(tmp_path / file, **values)
    (name,) = values
    with pytest.raises(ModelFilesError) as found:
        load(tmp_path, "image-to-text")
    assert f"`{name}` of {tmp_path / file} {sentence}" in str(found.value)


def test_numbers_in_their_ranges_are_taken(tmp_path: Path) -> None:
    make_whisper(tmp_path)
    change(tmp_path / "generation_config.json", num_beams=5, length_penalty=0.8, temperature=-1, max_new_tokens=None)
    load(tmp_path, "automatic-speech-recognition")  # Whisper draws nothing, so that its temperature does not count
