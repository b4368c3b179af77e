"""Compares the engine's first steps with the probe, to find layers that mix the tokens of neighbours or of chunks."""

# N rows whose logits are wanted, V vocabulary

import logging
import math
from collections.abc import Sequence

import torch

from textmill_shard.errors import UnsupportedModelError
from textmill_shard.model.forward_batch import ForwardBatch
from textmill_shard.model.runner import ModelRunner
from textmill_shard.model.synthetic_batch import SyntheticRow, synthetic_batch
from textmill_shard.probing.expert_routes import HeldRoutes, TextPart, TextRoutes
from textmill_shard.probing.probe import ProbeResult

log = logging.getLogger(__name__)

# Two texts of uneven length. Their ids are taken modulo the size of the vocabulary.
PROBE_TEXTS = ((11, 7, 202, 45, 98, 7, 13, 150), (64, 3, 77, 12, 190))
# The number of first tokens of each text that an encoder reads.
PROBE_ENCODER_LENS = (4, 2)
# Largest difference of a logit, relative to the largest logit. Half precision rounds in another order for other
# shapes: on a 135M model in bfloat16 the difference was 2 %. Layers that mix neighbours give tens of per cent.
TOLERANCE = {"float32": 1e-4, "float16": 3e-2, "bfloat16": 1e-1}
HALF_TYPES = ("float16", "bfloat16")  # in which rounding often decides between two experts


# Each text runs in chunks, a chunk runs beside a single token, and at last single tokens run of texts of uneven length.
# The order of the texts turns round.
_STEPS = (
    (TextPart(text=0, start=0, stop=4), TextPart(text=1, start=0, stop=3)),
    (TextPart(text=1, start=3, stop=4), TextPart(text=0, start=4, stop=7)),
    (TextPart(text=1, start=4, stop=5), TextPart(text=0, start=7, stop=8)),
)
# With an encoder: a text with tokens of the decoder, a text of the encoder alone beside a token of another text, and at
# last single tokens of decoders of uneven length over encoders of uneven length.
_ENCODER_STEPS = (
    (TextPart(text=0, start=0, stop=6),),
    (TextPart(text=1, start=0, stop=2), TextPart(text=0, start=6, stop=7)),
    (TextPart(text=1, start=2, stop=4),),
    (TextPart(text=1, start=4, stop=5), TextPart(text=0, start=7, stop=8)),
)
# Exceptions of modelling code that is called in a way for which the code was not written.
CALL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError)


def check_against_probe(
    runner: ModelRunner,
    *,
    texts: tuple[torch.Tensor, ...],
    expected_V_by_text: tuple[torch.Tensor, ...],
    routes_by_text: Sequence[TextRoutes] = (),
) -> None:
    """Run the texts beside each other in chunks, with a small pool.

    Where the logits differ in half precision, the texts run once more with the experts to which their tokens went in
    the probe (`routes_by_text`). Raises UnsupportedModelError where the logits differ from the logits of the probe.
    """
    tolerance = TOLERANCE[runner.facts.dtype]
    difference = _difference(runner, texts, expected_V_by_text)
    if difference <= tolerance:
        return
    if runner.facts.dtype in HALF_TYPES and any(routes_by_text):
        with HeldRoutes(runner.modules(), routes_by_text) as held:
            held_difference = _difference(runner, texts, expected_V_by_text, held)
        if held_difference <= tolerance and held.are_explained:
            log.info(
                "rounding decides between experts",
                extra={"num_others": held.num_others, "difference": round(difference, 3)},
            )
            return
    raise UnsupportedModelError(
        f"models of type {runner.facts.model_type} cannot be served yet: computed beside others in chunks, a "
        f"text's logits differ from those computed alone by {difference:.2g} of their size "
        f"(at most {tolerance:.2g} is rounding)"
    )


def _difference(
    runner: ModelRunner,
    texts: tuple[torch.Tensor, ...],
    expected_V_by_text: tuple[torch.Tensor, ...],
    held: HeldRoutes | None = None,
) -> float:
    """Run the steps, and return the largest difference of a logit, relative to the largest logit of its text."""
    blocks_per_text = -(-max(len(text) for text in texts) // runner.facts.block_size)
    runner.allocate_kv(blocks_per_text * len(texts))
    steps = _ENCODER_STEPS if runner.facts.decoder_prompt_ids else _STEPS
    try:
        for parts in steps:
            batch = _build_batch(runner, parts, texts, blocks_per_text)
            if held is not None:
                held.begin(parts)
            output = runner.forward(batch)
            asked, came = len(batch.logit_rows_N), output.logits_NV.shape[0]
            if came != asked:
                raise ValueError(f"{asked} rows of logits were asked for, {came} came")
    except CALL_ERRORS as error:
        raise UnsupportedModelError(
            f"models of type {runner.facts.model_type} cannot be served yet: beside others in chunks their code fails "
            f"({type(error).__name__}: {error})"
        ) from error
    differences: list[float] = [
        ((logits_V - expected_V_by_text[part.text]).abs().max() / expected_V_by_text[part.text].abs().max()).item()
        for part, logits_V in zip(steps[-1], output.logits_NV, strict=True)
    ]
    # A NaN is larger than every number, and Python's `max` would pass it over.
    return next((one for one in differences if math.isnan(one)), max(differences))


def check_image_against_probe(runner: ModelRunner, probe: ProbeResult) -> None:
    """Run the probe's text with an image, in two chunks where no span is cut, and beside another text.

    Raises UnsupportedModelError where the logits differ from those of the model's own code.
    """
    image = probe.image
    assert image is not None
    assert probe.image_logits_V is not None
    num_tokens, block_size = len(image.ids_L), runner.facts.block_size
    num_blocks = -(-num_tokens // block_size)
    runner.allocate_kv(2 * num_blocks)
    cuts = [num_tokens] if image.is_prompt_span else [image.span.stop, num_tokens - 1, num_tokens]
    ends_L = image.span_ends()
    try:
        start = 0
        for stop in cuts:
            is_first = start == 0
            row = SyntheticRow(
                ids_n=image.ids_L[start:stop],
                blocks=range(num_blocks),
                start=start,
                media=image.media if is_first else None,
                rope_positions_3n=None if image.positions_3L is None else image.positions_3L[:, start:stop],
                span_ends_n=ends_L[start:stop] if is_first else None,
            )
            beside = SyntheticRow(
                ids_n=image.ids_L[start : start + 1], blocks=range(num_blocks, 2 * num_blocks), start=0
            )
            output = runner.forward(synthetic_batch([beside, row], block_size=block_size, device=runner.device))
            start = stop
    except CALL_ERRORS as error:
        raise UnsupportedModelError(
            f"images of models of type {runner.facts.model_type} cannot be served yet: their code fails beside others "
            f"({type(error).__name__}: {error})"
        ) from error
    found_V, expected_V = output.logits_NV[1], probe.image_logits_V
    difference = ((found_V - expected_V).abs().max() / expected_V.abs().max()).item()
    if not difference <= TOLERANCE[runner.facts.dtype]:
        raise UnsupportedModelError(
            f"images of models of type {runner.facts.model_type} cannot be served yet: computed beside others in "
            f"chunks, the logits differ from those computed alone by {difference:.2g} of their size (at most "
            f"{TOLERANCE[runner.facts.dtype]:.2g} is rounding)"
        )


def can_project(runner: ModelRunner, *, texts: tuple[torch.Tensor, ...]) -> bool:
    """Whether the head makes the logits of a step of the step's hidden states. Call after `check_against_probe`."""
    if runner.facts.decoder_prompt_ids:  # the last hidden states are those of the decoder alone
        return False
    blocks_per_text = -(-max(len(text) for text in texts) // runner.facts.block_size)
    batch = _build_batch(runner, _STEPS[0], texts, blocks_per_text)
    try:
        output = runner.forward(batch, wants_hidden=True)
        assert output.hidden_TD is not None
        projected_NV = runner.project(output.hidden_TD[batch.logit_rows_N])
    except CALL_ERRORS:  # the head cannot be called alone
        return False
    if projected_NV.shape != output.logits_NV.shape:
        return False
    difference = ((projected_NV - output.logits_NV).abs().max() / output.logits_NV.abs().max()).item()
    return difference <= TOLERANCE[runner.facts.dtype]


def _build_batch(
    runner: ModelRunner, parts: tuple[TextPart, ...], texts: tuple[torch.Tensor, ...], blocks_per_text: int
) -> ForwardBatch:
    facts = runner.facts
    has_encoder = bool(facts.decoder_prompt_ids)
    rows = []
    for part in parts:
        first_block = part.text * blocks_per_text
        num_read = PROBE_ENCODER_LENS[part.text] if has_encoder else 0
        rows.append(
            SyntheticRow(
                ids_n=texts[part.text][part.start : part.stop],
                blocks=range(first_block, first_block + blocks_per_text),
                start=part.start,
                num_logits=int(part.stop > num_read),  # tokens that an encoder reads have no logits
                slot=part.text,
                is_long_rope=None if facts.rope_border is None else len(texts[part.text]) > facts.rope_border,
                num_encoder=num_read if has_encoder else None,
            )
        )
    return synthetic_batch(rows, block_size=facts.block_size, device=runner.device)
