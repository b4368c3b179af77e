"""The tensors of one forward pass, which the step loop builds and the model runner and the attention backends read.

A new tensor of a batch is a field here and a line in `select`; `engine/batch_builder.py` and `synthetic_batch.py`
fill the field.
"""

# T tokens of the step, R sequences, B blocks of the widest table, N rows whose logits are wanted,
# V vocabulary, D width of the hidden states, m tokens that take a row of an item, k layers that add rows

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class MediaStep:
    """The rows of images that take the place of embeddings in a step."""

    places_m: torch.Tensor  # int64, rising: indices into T
    rows_mD: torch.Tensor  # in the dtype of the model
    deepstack_kmD: torch.Tensor | None = None  # added to the outputs of the first k layers


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Any mix of decode rows and prefill chunks, laid end to end. All tensors are on the model's device.

    The tokens of sequence r are `query_starts[r] : query_starts[r + 1]`, the last tokens of the sequence's context.
    Tokens beyond `query_starts[R]` are padding. Their places lie in the scratch block, and their outputs are not
    defined.
    """

    input_ids_T: torch.Tensor  # int64
    position_ids_T: torch.Tensor  # int64, position of each token in its own sequence
    kv_places_T: torch.Tensor  # int64: block * block_size + offset
    query_starts: torch.Tensor  # [R + 1] int32, rising, begins with 0
    context_lens_R: torch.Tensor  # int32: tokens of the sequence up to and including this step
    block_tables_RB: torch.Tensor  # int32, padded with the scratch block
    logit_rows_N: torch.Tensor  # int64, rising: indices into T
    max_query_len: int
    max_context_len: int
    slots_R: torch.Tensor | None = None  # int64, slot of each sequence; None where only sizes matter (model/memory.py)
    is_long_rope_T: torch.Tensor | None = None  # bool; None for a model with one table (layouts/rope_tables.py)
    adapters_R: torch.Tensor | None = (
        None  # int32, place of each sequence's adapter, 0 = none; None: no sequence has one
    )
    encoder_lens_R: torch.Tensor | None = None  # int64, number of first tokens that the encoder reads; None: no encoder
    # The next three are None in a step without images, and in a model that takes none.
    media: MediaStep | None = None
    rope_positions_3T: torch.Tensor | None = None  # int64; None: `position_ids_T` three times
    span_ends_T: torch.Tensor | None = (
        None  # int32: a token sees all keys before this index of its context; 0 = no span
    )
    # The numbers of `adapters_R`. Empty where the host does not know them, as while a graph is recorded.
    adapters_on_host: tuple[int, ...] = ()
    # Whether ranks that share a vocabulary leave the logits in their parts, instead of laying whole rows together.
    keeps_parts: bool = False
    logits_out_NV: torch.Tensor | None = None  # float32 memory to which the logits are written; None: new memory
    on_host: "HostRows | None" = None  # None: who needs these numbers reads them from the tensors, and waits on a GPU

    def starts(self) -> list[int]:
        """Return `query_starts` as numbers of the host."""
        return self.query_starts.tolist() if self.on_host is None else list(self.on_host.query_starts)

    def select(self, first: int, stop: int) -> "ForwardBatch":
        """Return the batch of the sequences from `first` up to `stop`, without the padding.

        No number goes to a GPU. The call waits for one only where the host lacks the numbers of the rows (`on_host`),
        and for the rows of images. Each tensor has memory of its own, because a part of another one may begin at a
        place for which kernels would be compiled anew.
        """
        starts = self.starts()
        begin, end = starts[first], starts[stop]
        lengths = [after - before for before, after in pairwise(starts[first : stop + 1])]
        wanted = self.logit_rows_N.tolist() if self.on_host is None else self.on_host.logit_rows
        low, high = bisect_left(wanted, begin), bisect_left(wanted, end)

        def rows(tensor_R: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor_R is None else tensor_R[first:stop].clone()

        def tokens(tensor_T: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor_T is None else tensor_T[begin:end].clone()

        rope = self.rope_positions_3T
        return ForwardBatch(
            input_ids_T=self.input_ids_T[begin:end].clone(),
            position_ids_T=self.position_ids_T[begin:end].clone(),
            kv_places_T=self.kv_places_T[begin:end].clone(),
            query_starts=self.query_starts[first : stop + 1] - begin,
            context_lens_R=self.context_lens_R[first:stop].clone(),
            block_tables_RB=self.block_tables_RB[first:stop].clone(),
            logit_rows_N=self.logit_rows_N[low:high] - begin,
            max_query_len=max(lengths),
            max_context_len=self.max_context_len,
            slots_R=rows(self.slots_R),
            is_long_rope_T=tokens(self.is_long_rope_T),
            adapters_R=rows(self.adapters_R),
            adapters_on_host=self.adapters_on_host[first:stop],
            encoder_lens_R=rows(self.encoder_lens_R),
            media=None if self.media is None else _select_media(self.media, begin, end),
            rope_positions_3T=None if rope is None else rope[:, begin:end].contiguous(),
            span_ends_T=tokens(self.span_ends_T),
            on_host=HostRows(
                query_starts=tuple(start - begin for start in starts[first : stop + 1]),
                logit_rows=tuple(row - begin for row in wanted[low:high]),
            ),
        )


def _select_media(media: MediaStep, begin: int, end: int) -> MediaStep | None:
    """Return the rows of the tokens from `begin` up to `end`, or None where none takes a row. Waits for a GPU."""
    kept = ((media.places_m >= begin) & (media.places_m < end)).nonzero().squeeze(1)
    if not len(kept):
        return None
    deepstack = media.deepstack_kmD
    return MediaStep(
        media.places_m[kept] - begin, media.rows_mD[kept], None if deepstack is None else deepstack[:, kept]
    )


@dataclass(frozen=True, slots=True)
class HostRows:
    """Numbers of a batch that the host knows before they are copied to the device."""

    query_starts: tuple[int, ...]  # [R + 1]
    logit_rows: tuple[int, ...]  # [N]


@dataclass(frozen=True, slots=True)
class RowScan:
    """Facts of each row of scores, on the device of the scores. `best_N` of a row with NaN means nothing."""

    best_N: torch.Tensor  # int64: the first id with the highest score
    not_finite_N: torch.Tensor  # bool: whether the row holds NaN or an infinity
    log_mass_N: torch.Tensor | None  # float32: logsumexp of the row; None = not computed

    def rows(self, chosen: slice) -> "RowScan":
        """Return the facts of some rows."""
        mass_N = self.log_mass_N
        return RowScan(self.best_N[chosen], self.not_finite_N[chosen], None if mass_N is None else mass_N[chosen])


@dataclass(frozen=True, slots=True)
class HostScan:
    """The facts of `RowScan`, and the best scores, of logits that the native step has computed on the host."""

    best_N: npt.NDArray[np.int64]
    best_scores_N: npt.NDArray[np.float32]
    not_finite_N: npt.NDArray[np.bool_]
    log_mass_N: npt.NDArray[np.float32]

    def as_row_scan(self) -> RowScan:
        """Return the facts as tensors that share the arrays' memory."""
        return RowScan(
            best_N=torch.from_numpy(self.best_N),
            not_finite_N=torch.from_numpy(self.not_finite_N),
            log_mass_N=torch.from_numpy(self.log_mass_N),
        )


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    """The outputs of one forward pass."""

    logits_NV: torch.Tensor  # float32, one row per entry of `logit_rows_N`; of this rank's ids alone in a kept part
    hidden_TD: torch.Tensor | None  # dtype of the model, after the last norm; None unless the caller wants them
    scan: HostScan | None = None  # facts of these logits, where the forward pass has found them already
