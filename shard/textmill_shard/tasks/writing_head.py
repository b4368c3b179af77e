"""Texts about images, by transformers' generation from the settings of the model's files."""

# R rows, B beams of all rows, V vocabulary

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from textmill_shard.errors import ModelFilesError
from textmill_shard.loader.library_errors import as_model_error
from textmill_shard.loader.model_config import max_model_tokens
from textmill_shard.loader.model_files import read_json
from textmill_shard.tasks.generation_numbers import DRAW_RANGES, SEARCH_RANGES, check_numbers
from textmill_shard.tasks.generation_signs import GenerationSigns, NotFinite
from textmill_shard.tasks.heads import NOT_FINITE
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.media_runner import stack
from textmill_shard.tasks.rows import Answer, FailureCode, RowFailure, Writing, WritingParams

GENERATION_FILE = "generation_config.json"
# The longest text where the model's files say nothing, as in the pipelines of transformers.
DEFAULT_NEW_TOKENS = 256
MOST_NEW_TOKENS = 4096  # of a model whose positions have no end
_NO_PROBABILITIES = RowFailure(
    FailureCode.NOT_FINITE,
    "the probabilities of a token to draw are not finite (NaN or infinity) with the parameters of this call; raise "
    "`temperature` or `repetition_penalty`, or set `do_sample` to false",
)
ReadText = Callable[[list[int]], str]


class WritingHead:
    """Writes a text about each image. Rows that ask for the same are written together.

    `read_text` makes of token ids the text of an answer. The model is one of transformers with `generate`.
    """

    def __init__(self, model: Any, read_text: ReadText, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        self._read_text = read_text
        self._device = device
        self._dtype = dtype
        config = writer_of(model).generation_config
        # Of a length in the files that counts the first tokens too, these are taken off where their number is known.
        self._max_new_tokens, self._max_length = config.max_new_tokens, config.max_length
        config.max_new_tokens = config.max_length = None
        self._is_drawn = bool(config.do_sample)
        self._temperature = 1.0 if config.temperature is None else float(config.temperature)
        # Models of BLIP end with the token that separates texts, whatever the settings say.
        text_config = model.config.get_text_config(decoder=True)
        ends = text_config.sep_token_id if model.config.model_type == "blip" else config.eos_token_id
        self._end_ids = tuple(ends) if isinstance(ends, list) else (ends,)
        self._num_places = max_model_tokens(text_config) or MOST_NEW_TOKENS

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]:
        groups: dict[WritingParams, list[int]] = {}
        for index, row in enumerate(rows):
            assert isinstance(row.params, WritingParams)
            groups.setdefault(row.params, []).append(index)
        answers: dict[int, Answer | RowFailure] = {}
        for params, indices in groups.items():
            found = self._write([rows[index] for index in indices], params, on_sign)
            answers.update(zip(indices, found, strict=True))
        return [answers[index] for index in range(len(rows))]

    @torch.inference_mode()
    def _write(
        self, rows: Sequence[ReadyRow], params: WritingParams, on_sign: Callable[[], None]
    ) -> list[Answer | RowFailure]:
        inputs = stack(rows, device=self._device, dtype=self._dtype)
        num_first = _num_first_tokens(self._model, inputs)
        is_drawn = self._is_drawn if params.do_sample is None else params.do_sample
        temperature = self._temperature if params.temperature is None else params.temperature
        signs = GenerationSigns(on_sign, temperature=temperature if is_drawn else None)
        try:
            output = self._model.generate(
                **inputs,
                **self._options(params, num_first),
                logits_processor=LogitsProcessorList([signs]),
                return_dict_in_generate=True,
                output_logits=params.with_probability,
            )
        except NotFinite:
            if len(rows) == 1:
                return [_NO_PROBABILITIES if is_drawn else NOT_FINITE]
            return [answer for row in rows for answer in self._write([row], params, on_sign)]
        probabilities: Sequence[float | None] = [None] * len(rows)
        if params.with_probability:
            probabilities = text_probabilities(
                output.logits, output.sequences, getattr(output, "beam_indices", None), end_ids=self._end_ids
            )
        written = output.sequences[:, num_first:].tolist()
        return [
            Writing(self._read_text(ids), probability, is_drawn=is_drawn)
            for ids, probability in zip(written, probabilities, strict=True)
        ]

    def _options(self, params: WritingParams, num_first: int) -> dict[str, Any]:
        """Return the arguments of `generate` that a row asks for, with a length that the positions allow."""
        if params.max_new_tokens is not None:
            longest = params.max_new_tokens
        elif params.max_length is not None:
            longest = params.max_length - num_first
        elif self._max_new_tokens is not None:
            longest = self._max_new_tokens
        else:
            longest = DEFAULT_NEW_TOKENS if self._max_length is None else self._max_length - num_first
        options: dict[str, Any] = {"max_new_tokens": max(1, min(longest, self._num_places - num_first))}
        asked = {
            "min_length": params.min_length,
            "min_new_tokens": params.min_new_tokens,
            "num_beams": params.num_beams,
            "do_sample": params.do_sample,
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "repetition_penalty": params.repetition_penalty,
            "length_penalty": params.length_penalty,
            "no_repeat_ngram_size": params.no_repeat_ngram_size,
            "max_time": params.max_time_s,
        }
        return options | {name: value for name, value in asked.items() if value is not None}


def writer_of(model: Any) -> Any:
    """Return the part of a model that generates: of BLIP the decoder of texts, else the model."""
    return model.text_decoder if model.config.model_type == "blip" else model


def read_settings(model: Any, folder: Path) -> None:
    """Give the model the settings of generation_config.json, or of config.json, where older folders have them.

    Raises ModelFilesError.
    """
    path = folder / GENERATION_FILE
    if path.is_file():
        check_numbers(read_json(path), path, {**SEARCH_RANGES, **DRAW_RANGES})
        with as_model_error(lambda said: ModelFilesError(f"{path} cannot be read: {said}")):
            writer_of(model).generation_config = GenerationConfig.from_pretrained(folder)
        return
    path = folder / "config.json"
    check_numbers(read_json(path), path, {**SEARCH_RANGES, **DRAW_RANGES})
    with as_model_error(lambda said: ModelFilesError(f"{path} has settings of generation that are no such: {said}")):
        writer_of(model).generation_config = GenerationConfig.from_model_config(dict(read_json(path)))


def text_probabilities(
    logits: Sequence[torch.Tensor],
    sequences: torch.Tensor,
    beams: torch.Tensor | None,
    *,
    end_ids: Sequence[int | None],
) -> list[float]:
    """Return the probability of each text: the product over its tokens, the end token's included.

    `logits` has a tensor `[B, V]` for each step, `sequences` are the token ids with the first tokens of the model, and
    `beams` says of which row of `logits` each token of a text comes, -1 behind the end; None: of the row of the text.
    """
    num_rows, num_steps = len(sequences), len(logits)
    if beams is not None:
        num_steps = int((beams >= 0).sum(dim=1).max())
        tokens = sequences[:, len(sequences[0]) - num_steps :]
    else:
        tokens = sequences[:, -num_steps:]
    found = torch.zeros(num_rows, dtype=torch.float64)
    is_alive = torch.ones(num_rows, dtype=torch.bool)
    for step in range(num_steps):
        sources = torch.arange(num_rows) if beams is None else beams[:, step].cpu()
        ids = tokens[:, step].cpu()
        is_alive &= sources >= 0
        logs = logits[step].float().log_softmax(dim=1)[sources.clamp(min=0).to(logits[step].device)].cpu()
        found += torch.where(is_alive, logs.gather(1, ids[:, None])[:, 0], 0.0).double()
        for end in end_ids:
            if end is not None:
                is_alive &= ids != end
    return [float(value) for value in found.exp()]


def _num_first_tokens(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """Return how many tokens the model is given before it writes the first one."""
    for name in ("decoder_input_ids", "input_ids"):
        # The words of a question are read by an encoder of texts where the model has one.
        if name in inputs and not (name == "input_ids" and hasattr(model, "text_encoder")):
            return int(inputs[name].shape[1])
    return 1
