"""Whisper's head at what a pipeline of transformers does not show: words without times, scores that are no numbers."""

from pathlib import Path

import pytest
import torch
from textmill_shard.errors import ModelFilesError
from textmill_shard.tasks.media_loader import LoadedMedia, MediaLimits, load_media
from textmill_shard.tasks.rows import FailureCode, MediaRow, RowFailure, Timestamps, Transcript, TranscriptParams
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq

from tests.fakes.tiny_media import RATE, make_whisper, sound, sound_file

SHORT = 6


def load(folder: Path) -> LoadedMedia:
    limits = MediaLimits(max_pixels=1000, max_seconds=60.0)
    return load_media(TaskOptions(folder, "automatic-speech-recognition"), limits, lambda phase, share: None)


def transcribe(loaded: LoadedMedia, **params: object) -> object:
    rows = loaded.runner.read([MediaRow(sound_file(0.5), TranscriptParams(max_new_tokens=SHORT, **params))])  # type: ignore[arg-type]
    (answer,) = loaded.runner.run(loaded.head, rows)
    return answer


def test_languages_are_those_of_the_files(tmp_path: Path) -> None:
    make_whisper(tmp_path / "many")
    make_whisper(tmp_path / "english", is_multilingual=False)
    assert load(tmp_path / "many").languages == ("en", "de", "fr", "english", "german", "french")
    english = load(tmp_path / "english")
    assert english.languages == ("en", "english")
    assert isinstance(transcribe(english, language="en"), Transcript)


def test_the_language_is_the_one_that_the_model_hears(tmp_path: Path) -> None:
    """The expected language has the best of the scores after the first token, by transformers' class alone."""
    names = {"<|en|>": "english", "<|de|>": "german", "<|fr|>": "french"}
    heard = set()
    for seed in (0, 4):
        folder = tmp_path / str(seed)
        make_whisper(folder, seed=seed)
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        features = extractor(sound(0.5), sampling_rate=RATE, return_tensors="pt")["input_features"]
        start = torch.tensor([[model.generation_config.decoder_start_token_id]])
        with torch.inference_mode():
            scores = model(input_features=features, decoder_input_ids=start).logits[0, -1]
        ids = model.generation_config.lang_to_id
        expected = names[max(ids, key=lambda name: float(scores[ids[name]]))]
        loaded = load(folder)
        found = [transcribe(loaded), transcribe(loaded, language="fr"), transcribe(loaded, timestamps=Timestamps.WORDS)]
        assert [one.language for one in found if isinstance(one, Transcript)] == [expected, "french", expected]
        heard.add(expected)
    assert len(heard) == 2
    make_whisper(tmp_path / "english", is_multilingual=False)
    told = transcribe(load(tmp_path / "english"))
    assert isinstance(told, Transcript)
    assert told.language == "english"


def test_words_without_alignment_heads_are_refused_by_name(tmp_path: Path) -> None:
    make_whisper(tmp_path, has_words=False)
    found = transcribe(load(tmp_path), timestamps=Timestamps.WORDS)
    assert isinstance(found, RowFailure)
    assert found.code is FailureCode.BAD_MEDIA
    assert "alignment_heads" in found.message


def test_scores_that_are_no_numbers_end_the_row(tmp_path: Path) -> None:
    make_whisper(tmp_path)
    loaded = load(tmp_path)
    head = loaded.runner._heads[loaded.head]
    with torch.no_grad():
        head._model.model.decoder.layer_norm.weight.fill_(float("nan"))  # type: ignore[attr-defined]
    found = transcribe(loaded)
    assert isinstance(found, RowFailure)
    assert found.code is FailureCode.NOT_FINITE


def test_a_sign_is_given_at_each_token(tmp_path: Path) -> None:
    make_whisper(tmp_path, seed=4)
    loaded = load(tmp_path)
    signs: list[int] = []
    rows = loaded.runner.read([MediaRow(sound_file(0.5), TranscriptParams(max_new_tokens=SHORT))])
    loaded.runner.run(loaded.head, rows, on_part=signs.append)
    assert len(signs) > SHORT  # one before the file, one at each token


def test_a_folder_without_generation_config_is_refused(tmp_path: Path) -> None:
    make_whisper(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(ModelFilesError, match=r"generation_config\.json"):
        load(tmp_path)
