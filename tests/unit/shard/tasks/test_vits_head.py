"""Speech by a tiny random VITS against transformers' own model with the same seed: to the bit, before it is a file."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from textmill_shard.errors import ModelFilesError, UnsupportedModelError
from textmill_shard.tasks.rows import FailureCode, RowFailure, Sound, SoundFormat, SoundParams, StringRow
from textmill_shard.tasks.speaking_loader import LoadedSpeaker, load_speaker
from textmill_shard.tasks.task_loader import TaskOptions
from transformers import SpeechT5Config, VitsTokenizer

from tests.fakes.tiny_vits import RATE, make_vits, spoken

TEXT = "Good morning, everybody!"
STEP = 1 / 32768  # of PCM of 16 bits: what a file loses of a sample at most


def load(folder: Path, max_seconds: float = 60.0) -> LoadedSpeaker:
    return load_speaker(TaskOptions(folder, "text-to-audio"), max_seconds, lambda phase, share: None)


def speak(loaded: LoadedSpeaker, text: str, **params: Any) -> Any:
    rows = loaded.reader.read([StringRow(text, SoundParams(sound_format=SoundFormat.WAV, **params))])
    (answer,) = loaded.runner.run(next(iter(loaded.runner._heads)), rows)
    return answer


def samples_of(answer: Any) -> "np.ndarray[Any, np.dtype[np.float32]]":
    assert isinstance(answer, Sound), answer
    samples, rate = soundfile.read(io.BytesIO(answer.file), dtype="float32")
    assert rate == RATE
    assert answer.seconds == pytest.approx(len(samples) / RATE)
    return samples


def same(found: Any, expected: torch.Tensor) -> None:
    samples = samples_of(found)
    assert samples.shape == expected.shape
    assert np.abs(samples - expected.numpy()).max() <= STEP
    assert np.abs(samples).max() > 100 * STEP


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    make_vits(folder)
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> LoadedSpeaker:
    return load(folder)


@pytest.mark.parametrize("seed", [0, 7, 2**63, 2**64 - 1])
def test_a_seed_gives_the_speech_of_transformers(folder: Path, one: LoadedSpeaker, seed: int) -> None:
    same(speak(one, TEXT, seed=seed), spoken(folder, TEXT, seed=seed))
    assert (one.num_speakers, one.model_type, one.dtype) == (1, "vits", "float32")


def test_a_text_has_the_tokens_of_transformers(folder: Path, one: LoadedSpeaker) -> None:
    (ready,) = one.reader.read([StringRow(TEXT, SoundParams())])
    assert not isinstance(ready, RowFailure)
    assert ready.num_own_tokens == len(VitsTokenizer.from_pretrained(folder)(TEXT).input_ids) > len(TEXT)


def test_another_seed_gives_other_speech_and_torchs_own_generator_stays(one: LoadedSpeaker) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (speak(one, TEXT, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.file == again.file != other.file


@pytest.mark.parametrize(
    "asked",
    [
        {"speaking_rate": 0.5},
        {"speaking_rate": 2.0},
        {"noise_scale": 0.0},
        {"noise_scale": 2.0, "noise_scale_duration": 0.0},
        {"noise_scale": 0.0, "noise_scale_duration": 0.0, "speaking_rate": 1.5},
    ],
)
def test_numbers_of_a_call_hold_for_that_call_alone(folder: Path, one: LoadedSpeaker, asked: dict[str, float]) -> None:
    given = {"rate" if name == "speaking_rate" else name: value for name, value in asked.items()}
    same(speak(one, TEXT, seed=3, **asked), spoken(folder, TEXT, seed=3, **given))
    same(speak(one, TEXT, seed=3), spoken(folder, TEXT, seed=3))


def test_speed_is_a_factor_of_the_rate(folder: Path, one: LoadedSpeaker) -> None:
    same(speak(one, TEXT, seed=3, speed=0.5), spoken(folder, TEXT, seed=3, rate=0.5))
    same(speak(one, TEXT, seed=3, speed=0.5, speaking_rate=4.0), spoken(folder, TEXT, seed=3, rate=2.0))


def test_each_voice_is_that_of_transformers(tmp_path: Path) -> None:
    make_vits(tmp_path, num_speakers=3)
    loaded = load(tmp_path)
    assert loaded.num_speakers == 3
    found = [speak(loaded, TEXT, seed=3, speaker=number) for number in range(3)]
    for number, answer in enumerate(found):
        same(answer, spoken(tmp_path, TEXT, seed=3, speaker=number))
    assert len({answer.file for answer in found}) == 3


def test_a_long_text_is_spoken_in_parts_with_the_noise_of_one_seed(folder: Path, one: LoadedSpeaker) -> None:
    """The first part is a call of its own with the seed; the parts together have the length of the whole."""
    sentence = "this is a sentence of some words that are spoken one after the other. "
    text = sentence * 9
    samples = samples_of(speak(one, text, seed=4))
    first = spoken(folder, sentence * 4, seed=4).numpy()
    assert np.abs(samples[: len(first)] - first).max() <= STEP
    assert len(samples) > 2 * len(first)


def test_speech_beyond_the_limit_is_refused_before_it_is_made(folder: Path, one: LoadedSpeaker) -> None:
    length = len(spoken(folder, TEXT, seed=1)) / RATE
    loaded = load(folder, max_seconds=20.0)
    repeated = TEXT * 160
    found = speak(loaded, repeated, seed=1, speaking_rate=0.25)
    assert isinstance(found, RowFailure)
    assert (found.code, "longer than 20 seconds" in found.message) == (FailureCode.BAD_MEDIA, True)
    assert length < 20
    same(speak(loaded, TEXT, seed=1), spoken(folder, TEXT, seed=1))


@pytest.mark.parametrize("text", ["?!", "日本語", "  \n ", "12"])
def test_a_text_without_a_letter_that_the_model_knows_is_refused(one: LoadedSpeaker, text: str) -> None:
    found = speak(one, text)
    assert isinstance(found, RowFailure)
    assert (found.code, "no character" in found.message) == (FailureCode.BAD_MEDIA, True)


def test_letters_that_are_not_latin_need_uroman(tmp_path: Path) -> None:
    make_vits(tmp_path, is_uroman=True)
    loaded = load(tmp_path)
    found = speak(loaded, "доброе утро")
    assert isinstance(found, RowFailure)
    assert "uroman" in found.message
    assert isinstance(speak(loaded, "dobroe utro"), Sound)


def test_samples_that_are_no_numbers_end_the_row(folder: Path) -> None:
    loaded = load(folder)
    head = loaded.runner._heads[next(iter(loaded.runner._heads))]
    with torch.no_grad():
        head._model.decoder.conv_post.weight.fill_(float("nan"))  # type: ignore[attr-defined]
    found = speak(loaded, TEXT)
    assert isinstance(found, RowFailure)
    assert found.code is FailureCode.NOT_FINITE


def test_phonemes_and_other_models_are_refused_at_the_start(tmp_path: Path) -> None:
    make_vits(tmp_path / "phonemes", phonemize=True)
    with pytest.raises(UnsupportedModelError, match="phonemizer"):
        load(tmp_path / "phonemes")
    SpeechT5Config().save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedModelError, match="speecht5 cannot be served as text-to-audio"):
        load(tmp_path / "other")
    make_vits(tmp_path / "empty")
    (tmp_path / "empty" / "vocab.json").unlink()
    with pytest.raises(ModelFilesError, match="tokenizer"):
        load(tmp_path / "empty")
