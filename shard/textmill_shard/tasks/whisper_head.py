"""The words of speech, by Whisper: transformers' generation, also for audio that is longer than one window."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.tasks.generation_signs import GenerationSigns, NotFinite
from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.rows import (
    Answer,
    FailureCode,
    RowFailure,
    Timestamps,
    Transcript,
    TranscriptChunk,
    TranscriptParams,
)

GENERATION_FILE = "generation_config.json"
ENGLISH = ("en", "english")
_BEFORE = "<|startofprev|>"  # stands before a prompt
_NO_WORDS = RowFailure(
    FailureCode.BAD_MEDIA,
    f"words of this model have no times, because its {GENERATION_FILE} has no `alignment_heads`; ask for "
    "`return_timestamps` true",
)


class WhisperHead:
    """Writes speech down, greedily unless beams are asked for.

    Audio beyond one window is read in windows that the model's timestamps divide.
    """

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._extractor = extractor
        self._tokenizer = tokenizer
        self._device = device
        self._dtype = dtype
        config = model.generation_config
        self._is_multilingual = bool(getattr(config, "is_multilingual", False) and getattr(config, "lang_to_id", None))
        self._has_words = bool(getattr(config, "alignment_heads", None))
        self._is_timed = bool(getattr(config, "return_timestamps", False))
        self.languages = self._find_languages()

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        return [self._transcribe(row, on_sign) for row in rows]

    def _find_languages(self) -> tuple[str, ...]:
        """Return the codes of the languages that a call may name, and their English names."""
        if not self._is_multilingual:
            return ENGLISH
        codes = [token.strip("<|>") for token in self._model.generation_config.lang_to_id]
        return (*codes, *(name for name, code in TO_LANGUAGE_CODE.items() if code in codes))

    def _transcribe(self, row: ReadyRow, on_sign: Callable[[], None]) -> Answer | RowFailure:
        assert isinstance(row.params, TranscriptParams)
        assert row.samples is not None
        if row.params.timestamps is Timestamps.WORDS and not self._has_words:
            return _NO_WORDS
        is_long = len(row.samples) > self._extractor.n_samples
        shape: dict[str, Any] = {"truncation": False, "padding": "longest"} if is_long else {}
        inputs = self._extractor(
            row.samples,
            sampling_rate=self._extractor.sampling_rate,
            return_tensors="pt",
            return_attention_mask=True,
            **shape,
        )
        asked = {Timestamps.NONE: None, Timestamps.WORDS: "word"}.get(row.params.timestamps, True)
        features = inputs["input_features"].to(self._device, self._dtype)
        language = self._language(row.params, features)
        try:
            output = self._model.generate(
                features,
                attention_mask=inputs["attention_mask"].to(self._device),
                return_timestamps=is_long or asked is not None or self._is_timed,
                logits_processor=LogitsProcessorList([GenerationSigns(on_sign)]),
                **self._options(row.params, asked=asked, language=language),
            )
        except NotFinite:
            return NOT_FINITE
        spoken: dict[str, Any] = {"tokens": output if torch.is_tensor(output) else output["sequences"]}
        if asked == "word":
            parts = output["segments"][0]
            spoken["token_timestamps"] = [torch.cat([part["token_timestamps"] for part in parts])] if parts else []
        text, chunks = self._read(spoken, asked)
        segments = self._read({"tokens": spoken["tokens"]}, True)[1] if asked == "word" else ()
        return Transcript(text, chunks, LANGUAGES.get(language, language), segments)

    def _read(self, spoken: dict[str, Any], asked: "bool | str | None") -> "tuple[str, tuple[TranscriptChunk, ...]]":
        """Return the text of tokens, and its parts where times are asked for."""
        text, more = self._tokenizer._decode_asr(
            [{name: _on_host(value) for name, value in spoken.items()}],
            return_timestamps=asked,
            return_language=None,
            time_precision=self._extractor.chunk_length / self._model.config.max_source_positions,
        )
        return text, tuple(_chunk(each) for each in more.get("chunks", ()))

    def _language(self, params: TranscriptParams, features: torch.Tensor) -> str:
        """Return the code of the language that is asked for, or that the model hears in the first window.

        `generate` would find the language in the same way, and would not tell.
        """
        if not self._is_multilingual:
            return ENGLISH[0]
        if params.language:
            return str(TO_LANGUAGE_CODE.get(params.language, params.language))
        (found,) = self._model.detect_language(
            input_features=features, num_segment_frames=self._extractor.nb_max_frames
        ).tolist()
        codes = {number: token.strip("<|>") for token, number in self._model.generation_config.lang_to_id.items()}
        return str(codes[found])

    def _options(self, params: TranscriptParams, *, asked: "bool | str | None", language: str) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self._is_multilingual:
            options["task"] = "translate" if params.translates else "transcribe"
            options["language"] = language
        prompt = self._prompt_ids(params.prompt)
        if prompt:
            options["prompt_ids"] = torch.tensor(prompt, device=self._device)
        if params.max_new_tokens:
            options["max_new_tokens"] = min(params.max_new_tokens, self._room() - len(prompt))
        if params.num_beams:
            options["num_beams"] = params.num_beams
        if asked == "word":
            options |= {"return_token_timestamps": True, "return_segments": True}
        return options

    def _prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, of which the end alone fits the half of the room that Whisper keeps for it."""
        words = prompt.strip()
        if not words:
            return []
        most = int(self._model.config.max_target_positions) // 2 - 2
        ids = self._tokenizer(" " + words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [self._tokenizer.convert_tokens_to_ids(_BEFORE), *ids[-most:]]

    def _room(self) -> int:
        """Return the tokens of a window beside the model's first ones: language, task and timestamps."""
        return max(1, int(self._model.config.max_target_positions) - 4)


def read_generation_config(model: Any, folder: Path) -> None:
    """Give the model the settings of its folder's generation_config.json. Raises ModelFilesError without the file."""
    path = folder / GENERATION_FILE
    if not path.is_file():
        raise ModelFilesError(f"{folder} has no {GENERATION_FILE}, which says how Whisper begins to write")
    with as_model_error(lambda said: ModelFilesError(f"{path} cannot be read: {said}")):
        model.generation_config = GenerationConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _on_host(value: Any) -> Any:
    return value.cpu() if torch.is_tensor(value) else [each.cpu() for each in value]


def _chunk(found: Any) -> TranscriptChunk:
    start, end = found["timestamp"]
    return TranscriptChunk(found["text"], float(start or 0.0), None if end is None else float(end))
