"""Runs texts with images through a loaded runner and through transformers, and compares the logits of all tokens."""

# L tokens of a text, V vocabulary, n rows of an image

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.forward_batch import MediaStep
from textmill_shard.model.media import MediaRows, TokenSpan
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.fakes.tiny_models import make_random_model
from tests.zoo.entry import VOCAB_SIZE
from tests.zoo.image_entry import ImageEntry

BLOCK_SIZE = 4
BLOCKS_PER_TEXT = 32
CHUNK_TOKENS = 5  # smaller than every image of the zoo, and no multiple of the block
NUMS_IMAGES = (2, 1, 0)  # of each text
NUM_DECODED = 4
NUM_DECODED_BESIDE = 12  # of a text without images
LENGTHS_BETWEEN = (3, 2, 4)  # tokens of text before, between and behind the images


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A tiny model on disk, and the model in memory, which transformers runs without code of ours."""

    entry: ImageEntry
    folder: Path
    reference: Any


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """One image of a text."""

    tensors: Mapping[str, torch.Tensor]
    rows: MediaRows
    spans: tuple[TokenSpan, ...]


@dataclass(slots=True)
class ImageText:
    """A prompt with images, and tokens that are decoded behind the prompt."""

    ids: list[int]
    num_prompt: int
    images: list[PlacedImage] = field(default_factory=list)

    @property
    def spans(self) -> list[tuple[TokenSpan, PlacedImage]]:
        return [(span, image) for image in self.images for span in image.spans]

    def is_image(self) -> torch.Tensor:
        marks_L = torch.zeros(len(self.ids), dtype=torch.bool)
        for span, _ in self.spans:
            marks_L[span.start : span.start + span.num_tokens] = True
        return marks_L


def make_image_model(entry: ImageEntry, folder: Path, *, seed: int = 0) -> ImageModel:
    config = AutoConfig.for_model(entry.model_type, **entry.config)
    model = make_random_model(
        config, folder, seed=seed, auto_class=AutoModelForImageTextToText, attn_implementation="eager"
    )
    return ImageModel(entry, folder, model)


def load_image_model(model: ImageModel, *, native_cache_dir: Path | None, dtype: str = "float32") -> ModelRunner:
    options = LoadOptions(model_dir=model.folder, dtype=dtype, block_size=BLOCK_SIZE, native_cache_dir=native_cache_dir)
    return load_model(options, lambda phase, share: None)


def run_image_model(model: ImageModel, *, native_cache_dir: Path | None, dtype: str = "float32") -> float:
    """Return the largest difference of a logit over all texts and both ways to cut them into steps."""
    runner = load_image_model(model, native_cache_dir=native_cache_dir, dtype=dtype)
    texts = [make_text(model.entry, runner, num_images=count, seed=seed) for seed, count in enumerate(NUMS_IMAGES)]
    expected = [reference_logits(model, text) for text in texts]
    return max(
        difference(found_LV, expected_LV)
        for steps in (whole_then_decoded(texts), chunked_beside(texts, runner))
        for found_LV, expected_LV in zip(run_steps(runner, texts, steps), expected, strict=True)
    )


def make_text(entry: ImageEntry, runner: ModelRunner, *, num_images: int, seed: int) -> ImageText:
    """Return a text with random words and images; the rows come from the runner."""
    words = np.random.default_rng(seed)
    pixels = torch.Generator().manual_seed(seed)
    text = ImageText(ids=[], num_prompt=0)

    def write(count: int) -> None:
        drawn = words.integers(0, VOCAB_SIZE - 1, count)
        text.ids.extend(int(token) + (token >= entry.image_id) for token in drawn)

    for number in range(num_images):
        write(LENGTHS_BETWEEN[number])
        tensors = entry.make_image(pixels)
        rows = runner.encode_media(tensors)
        num_rows = len(rows.rows_nD)
        parts = [num_rows // 3, num_rows - num_rows // 3] if entry.has_separators else [num_rows]
        spans: list[TokenSpan] = []
        for part in parts:
            if spans:
                write(1)
            spans.append(TokenSpan(start=len(text.ids), num_tokens=part, first_row=sum(parts[: len(spans)])))
            text.ids.extend([entry.image_id] * part)
        text.images.append(PlacedImage(tensors, rows, tuple(spans)))
    write(LENGTHS_BETWEEN[-1])
    text.num_prompt = len(text.ids)
    write(NUM_DECODED if num_images else NUM_DECODED_BESIDE)
    return text


def reference_logits(model: ImageModel, text: ImageText) -> torch.Tensor:
    """Return the logits `[L, V]` of the whole text by one forward pass of the outer model, pixels included."""
    entry = model.entry
    names = text.images[0].tensors.keys() if text.images else ()
    joined = {
        name: torch.cat(
            [image.tensors[name] for image in text.images], entry.joined_dim if name.startswith("pixel") else 0
        )
        for name in names
    }
    model.reference.base_model.rope_deltas = None  # survives between calls
    with torch.inference_mode():
        output = model.reference(
            input_ids=torch.tensor([text.ids]),
            use_cache=False,
            **joined,
            **entry.marks(text.is_image(), text.num_prompt),
        )
    logits: torch.Tensor = output.logits[0]
    return logits.float()


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens start .. stop - 1 of one text, in one step."""

    text: int
    start: int
    stop: int


def whole_then_decoded(texts: Sequence[ImageText]) -> list[list[Part]]:
    """Return steps that compute each prompt whole and alone, and then all texts token by token beside each other."""
    prompts = [[Part(index, 0, text.num_prompt)] for index, text in enumerate(texts)]
    return prompts + _decoded(texts, [text.num_prompt for text in texts])


def chunked_beside(texts: Sequence[ImageText], runner: ModelRunner) -> list[list[Part]]:
    """Return steps that compute a chunk of each prompt beside a token of the last text, which decodes and has no image.

    Then all texts are computed token by token.
    """
    *prompts, neighbour = texts
    assert not neighbour.images
    last = len(prompts)
    done = [*[0] * last, neighbour.num_prompt]
    steps = [[Part(last, 0, neighbour.num_prompt)]]
    while any(done[index] < text.num_prompt for index, text in enumerate(prompts)):
        parts = []
        for index, text in enumerate(prompts):
            if done[index] < text.num_prompt:
                stop = _cut(text, runner, done[index], min(done[index] + CHUNK_TOKENS, text.num_prompt))
                parts.append(Part(index, done[index], stop))
                done[index] = stop
        if done[last] < len(neighbour.ids):
            parts.append(Part(last, done[last], done[last] + 1))
            done[last] += 1
        steps.append(parts)
    return steps + _decoded(texts, done)


def _cut(text: ImageText, runner: ModelRunner, start: int, stop: int) -> int:
    """Return the end of a chunk. A span whose tokens see each other is never cut."""
    assert runner.media is not None
    if runner.media.is_prompt_span:
        return text.num_prompt
    if runner.media.uncut_spans:
        for span, _ in text.spans:
            if span.start < stop < span.start + span.num_tokens:
                return span.start + span.num_tokens if span.start == start else span.start
    return stop


def _decoded(texts: Sequence[ImageText], done: Sequence[int]) -> list[list[Part]]:
    """Return steps of one token of each text that has more tokens than are done."""
    most = max(len(text.ids) - start for text, start in zip(texts, done, strict=True))
    return [
        [
            Part(index, start + at, start + at + 1)
            for index, (text, start) in enumerate(zip(texts, done, strict=True))
            if start + at < len(text.ids)
        ]
        for at in range(most)
    ]


def run_steps(runner: ModelRunner, texts: Sequence[ImageText], steps: Sequence[Sequence[Part]]) -> list[torch.Tensor]:
    """Return the logits `[L, V]` of each text, computed in these steps with shuffled blocks."""
    num_blocks = len(texts) * BLOCKS_PER_TEXT
    runner.allocate_kv(num_blocks)
    blocks = np.random.default_rng(6).permutation(num_blocks).reshape(len(texts), -1).tolist()
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    for parts in steps:
        rows = [_row(runner, texts[part.text], part, blocks[part.text]) for part in parts]
        output = runner.forward(synthetic_batch(rows, block_size=BLOCK_SIZE, scratch_block=num_blocks, num_padding=2))
        for part, logits_nV in zip(
            parts, output.logits_NV.split([part.stop - part.start for part in parts]), strict=True
        ):
            found[part.text].append(logits_nV)
    return [torch.cat(parts) for parts in found]


def _row(runner: ModelRunner, text: ImageText, part: Part, blocks: Sequence[int]) -> SyntheticRow:
    media = runner.media
    assert media is not None
    places: list[int] = []
    rows: list[torch.Tensor] = []
    deepstack: list[torch.Tensor] = []
    ends_L = torch.zeros(len(text.ids), dtype=torch.int32)
    for span, image in text.spans:
        first, last = max(span.start, part.start), min(span.start + span.num_tokens, part.stop)
        if first < last:
            wanted = slice(span.first_row + first - span.start, span.first_row + last - span.start)
            places.extend(range(first - part.start, last - part.start))
            rows.append(image.rows.rows_nD[wanted])
            if image.rows.deepstack_knD is not None:
                deepstack.append(image.rows.deepstack_knD[:, wanted])
        if media.uncut_spans:
            ends_L[span.start : span.start + span.num_tokens] = span.start + span.num_tokens
    if media.is_prompt_span:
        ends_L[: text.num_prompt] = text.num_prompt
    positions = _positions(runner, text) if media.has_rope_positions else None
    tokens = slice(part.start, part.stop)
    return SyntheticRow(
        ids_n=torch.tensor(text.ids[tokens]),
        blocks=blocks,
        start=part.start,
        num_logits=part.stop - part.start,
        media=MediaStep(torch.tensor(places), torch.cat(rows), torch.cat(deepstack, dim=1) if deepstack else None)
        if places
        else None,
        rope_positions_3n=None if positions is None else positions[:, tokens],
        span_ends_n=ends_L[tokens] if ends_L[tokens].any() else None,
    )


def _positions(runner: ModelRunner, text: ImageText) -> torch.Tensor:
    """Return `[3, L]`: of the prompt by the model's rule, and behind the prompt the index and the delta."""
    found = runner.rope_positions(
        text.ids[: text.num_prompt],
        [span for span, _ in text.spans],
        [image.tensors for _, image in text.spans],
    )
    behind = torch.arange(text.num_prompt, len(text.ids)) + found.delta
    return torch.cat([found.positions_3P, behind.expand(3, -1)], dim=1)


def difference(found_LV: torch.Tensor, expected_LV: torch.Tensor) -> float:
    """Return the largest difference of a logit, relative to the largest logit; infinity where one is not finite."""
    error = (found_LV - expected_LV).abs().max() / expected_LV.abs().max()
    return float(error) if torch.isfinite(error) else float("inf")
