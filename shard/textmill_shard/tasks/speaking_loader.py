"""Makes of a model folder a runner that speaks texts, with its facts."""

import logging
import time
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForTextToWaveform
from transformers.utils import is_phonemizer_available

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.heap import trim_heap
from textmill_shard.loader.load_options import OnProgress
from textmill_shard.loader.model_config import read_config
from textmill_shard.loader.model_filling import ModelSource, build_model, fill_model
from textmill_shard.tasks.file_facts import find_tokenizer
from textmill_shard.tasks.media_runner import MediaRunner
from textmill_shard.tasks.rows import HeadName, RowFailure, SoundParams, StringRow
from textmill_shard.tasks.string_rows import StringReader
from textmill_shard.tasks.task_loader import TaskOptions, row_source
from textmill_shard.tasks.vits_head import MAX_PART_CHARACTERS, VitsHead, vits_read

log = logging.getLogger(__name__)

# Half of the longest part: a pass of the longest part stays within the time that a late batch has.
_TRIAL_CHARACTERS = MAX_PART_CHARACTERS // 2


@dataclass(frozen=True, slots=True)
class LoadedSpeaker:
    """A runner, and the facts of its model."""

    runner: MediaRunner
    reader: StringReader
    model_type: str
    dtype: str
    weight_bytes: int
    num_speakers: int
    batch_s: float  # seconds of a text of _TRIAL_CHARACTERS


def load_speaker(options: TaskOptions, max_seconds: float, on_progress: OnProgress) -> LoadedSpeaker:
    """Return the runner. Raises ModelError with a sentence for the operator."""
    started = time.monotonic()
    on_progress("config", 0.0)
    source = _read(options)
    tokenizer = find_tokenizer(source.folder)
    if tokenizer.phonemize and not is_phonemizer_available():
        raise UnsupportedModelError(
            f"the tokenizer of {source.folder} writes texts as phonemes, which needs the package phonemizer and the "
            "program espeak-ng; neither comes with Textmill"
        )
    on_progress("weights", 0.0)
    model = fill_model(build_model(source), source, on_progress=lambda share: on_progress("weights", share)).model
    on_progress("warmup", 0.0)
    head = VitsHead(model, max_seconds=max_seconds, device=source.device)
    reader = StringReader(vits_read(tokenizer))
    runner = MediaRunner({HeadName.SOUNDS: head}, reader, device=source.device)
    batch_s = _warm_up(runner, reader, _trial_text(tokenizer))
    trim_heap()
    weight_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    facts = {"model_type": source.config.model_type, "dtype": str(source.dtype).removeprefix("torch.")}
    log.info(
        "model loaded",
        extra={
            **facts,
            "task": options.task,
            "weight_bytes": weight_bytes,
            "load_s": round(time.monotonic() - started, 3),
        },
    )
    return LoadedSpeaker(
        runner, reader, **facts, weight_bytes=weight_bytes, num_speakers=head.num_speakers, batch_s=batch_s
    )


def _read(options: TaskOptions) -> ModelSource:
    folder = options.model_dir
    config = read_config(folder, trust_remote_code=options.trust_remote_code)
    if config.model_type != "vits":
        raise UnsupportedModelError(
            f"models of type {config.model_type} cannot be served as {options.task}: texts are spoken by VITS alone, "
            "because other models need a vocoder, a voice sample or a search for sounds"
        )
    return row_source(options, folder, config, AutoModelForTextToWaveform)


def _trial_text(tokenizer: Any) -> str:
    """Return a text of letters that the model knows. Raises UnsupportedModelError where there is none."""
    letters = "".join(sorted(key for key in tokenizer.get_vocab() if len(key) == 1 and key.isalnum()))
    if not letters:
        raise UnsupportedModelError("the model's vocabulary has no letter")
    return (letters * _TRIAL_CHARACTERS)[:_TRIAL_CHARACTERS]


def _warm_up(runner: MediaRunner, reader: StringReader, text: str) -> float:
    """Speak a text twice, and return the seconds of the second time. Raises UnsupportedModelError."""
    seconds = 0.0
    for _ in range(2):
        began_s = time.monotonic()
        (answer,) = runner.run(HeadName.SOUNDS, reader.read([StringRow(text, SoundParams())]))
        seconds = time.monotonic() - began_s
        if isinstance(answer, RowFailure):
            raise UnsupportedModelError(f"the model cannot be served: it fails at a plain text: {answer.message}")
    return seconds
