"""Images as the runner sees them: the tensors of an item, the rows that a tower makes of them, and rotary positions."""

# n rows of one item, D width of the embeddings, k layers that get rows of their own, P tokens of a prompt

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

FLOATS = ("float32", "bfloat16", "float16")


class MediaFault(Exception):
    """An item cannot be computed. The message says what was wanted and found, and is shown to the client."""


@dataclass(frozen=True, slots=True)
class TensorRule:
    """The form of one tensor of an item, which transformers' processor of the family gives this name."""

    dtypes: tuple[str, ...]  # as torch names them; the tower casts floats to the model's dtype
    num_dims: int
    is_required: bool = True


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """The facts of a model that takes images. They are equal on every rank."""

    kinds: tuple[str, ...]  # kinds of items, each the `model_type` of the family
    row_bytes: int  # bytes that one token of an item takes, with its rows for further layers
    num_deepstack: int  # first layers that add rows of their own to their output
    uncut_spans: bool  # the tokens of a span see each other, so that one step computes a whole span
    has_rope_positions: bool  # steps need `rope_positions_3T`
    tensor_names: Mapping[str, TensorRule]
    position_tensors: tuple[str, ...] = ()  # tensors that `rope_positions` reads, to be kept beside the rows
    is_prompt_span: bool = False  # the whole prompt is one span, also a prompt without an item
    max_span_tokens: int = 0  # longest span that attention computes; 0 = unbounded


@dataclass(frozen=True, slots=True)
class MediaRows:
    """The rows of one item, in the order of its placeholders, in the dtype of the model."""

    rows_nD: torch.Tensor
    deepstack_knD: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return self.rows_nD.nbytes + (0 if self.deepstack_knD is None else self.deepstack_knD.nbytes)


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """The placeholders start .. start + num_tokens - 1 of a prompt, which take rows of one item from `first_row` on."""

    start: int
    num_tokens: int
    first_row: int = 0


@dataclass(frozen=True, slots=True)
class RopePositions:
    """The rotary positions of a prompt. A token at index i behind it has three times the position i + delta."""

    positions_3P: torch.Tensor  # int64, on the CPU
    delta: int


class MediaTower(Protocol):
    """The parts of a model that make rows of items (`layouts/image_tower.py`)."""

    @property
    def has_weights(self) -> bool: ...

    def sample(self, num_rows: int) -> Mapping[str, torch.Tensor]: ...

    def encode(self, tensors: Mapping[str, torch.Tensor]) -> MediaRows: ...

    def rope_positions(
        self, token_ids: Sequence[int], spans: Sequence[TokenSpan], facts: Sequence[Mapping[str, torch.Tensor]]
    ) -> RopePositions: ...
