"""The words of speech, by Whisper: transformers' generation, also for audio that is longer than one window."""

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.loader.model_files import read_json
from textmill_shard.tasks.generation_numbers import SEARCH_RANGES, check_numbers
from textmill_shard.tasks.generation_signs import GenerationSigns, NotFinite
from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.rows import (
    Answer,
    FailureCode,
    RowFailure,
    SegmentMeasures,
    Timestamps,
    Transcript,
    TranscriptChunk,
    TranscriptParams,
)
from textmill_shard.tasks.window_measures import WindowMeasures

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
        measures = self._new_measures() if row.params.is_measured else None
        processors: list[Any] = [GenerationSigns(on_sign)]
        options = self._options(row.params, asked=asked, language=language)
        if measures is not None:
            processors.append(measures)
            options |= {"return_segments": True, "monitor_progress": measures.begin_window}
        try:
            with nullcontext() if measures is None else measures.watching(self._model.get_output_embeddings()):
                output = self._model.generate(
                    features,
                    attention_mask=inputs["attention_mask"].to(self._device),
                    return_timestamps=is_long or asked is not None or self._is_timed,
                    logits_processor=LogitsProcessorList(processors),
                    **options,
                )
        except NotFinite:
            return NOT_FINITE
        spoken: dict[str, Any] = {"tokens": output if torch.is_tensor(output) else output["sequences"]}
        if asked == "word":
            parts = output["segments"][0]
            spoken["token_timestamps"] = [torch.cat([part["token_timestamps"] for part in parts])] if parts else []
        text, chunks = self._read(spoken, asked)
        segments = () if measures is None else self._segments(output["segments"][0], measures, row.seconds)
        return Transcript(text, chunks, LANGUAGES.get(language, language), segments)

    def _new_measures(self) -> WindowMeasures:
        config = self._model.generation_config
        return WindowMeasures(
            start_id=int(config.decoder_start_token_id),
            end_id=int(config.eos_token_id),
            no_speech_id=int(config.no_timestamps_token_id) - 1,  # the place of the token in every Whisper
        )

    def _segments(
        self, found: Sequence[dict[str, Any]], measures: WindowMeasures, seconds: float
    ) -> tuple[TranscriptChunk, ...]:
        """Return the segments of a generation that have words. One without times ends with the audio."""
        firsts = [index for index in range(len(found)) if index == 0 or _begins_window(found[index - 1], found[index])]
        sequences = [_sequence(found[index]) for index in firsts]
        chunks = []
        for first, end, window, sequence in zip(
            firsts, [*firsts[1:], len(found)], measures.windows(sequences), sequences, strict=True
        ):
            text_of_window = self._text(sequence).strip().encode()
            ratio = len(text_of_window) / len(zlib.compress(text_of_window))
            for segment in found[first:end]:
                ids = tuple(segment["tokens"].tolist())
                text, start_s, end_s = self._text(ids), float(segment["start"]), float(segment["end"])
                if not text.strip():
                    continue
                if not self._is_time(ids[-1]):  # transformers gives such a segment the end of the window
                    end_s = max(start_s, min(end_s, seconds))
                numbers = SegmentMeasures(window.seek, ids, window.avg_logprob, ratio, window.no_speech_prob)
                chunks.append(TranscriptChunk(text, start_s, end_s, numbers))
        return tuple(chunks)

    def _text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without times and special tokens."""
        words = [each for each in ids if not self._is_time(each)]
        text: str = self._tokenizer.decode(words, skip_special_tokens=True)
        return text

    def _is_time(self, token_id: int) -> bool:
        return token_id > int(self._model.generation_config.no_timestamps_token_id)

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
    values = read_json(path)
    check_numbers(values, path, SEARCH_RANGES)  # nothing is drawn
    with as_model_error(lambda said: ModelFilesError(f"{path} cannot be read: {said}")):
        model.generation_config = GenerationConfig.from_dict(values)


def _begins_window(before: dict[str, Any], segment: dict[str, Any]) -> bool:
    """Whether the segment is the first of its window: it does not go on in the tokens of the segment before."""
    goes_on: bool = segment["idxs"][0] > before["idxs"][0]
    return not goes_on or _sequence(segment) != _sequence(before)


def _sequence(segment: dict[str, Any]) -> list[int]:
    """Return all tokens of the window of a segment, the first ones included."""
    result = segment["result"]
    ids: list[int] = (result if torch.is_tensor(result) else result["sequences"]).tolist()
    return ids


def _on_host(value: Any) -> Any:
    return value.cpu() if torch.is_tensor(value) else [each.cpu() for each in value]


def _chunk(found: Any) -> TranscriptChunk:
    start, end = found["timestamp"]
    return TranscriptChunk(found["text"], float(start or 0.0), None if end is None else float(end))
