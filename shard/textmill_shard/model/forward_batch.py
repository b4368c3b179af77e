"""The tensors of one forward pass, which the step loop builds and the model runner and the attention backends read.

A new tensor of a batch is a field here and a line in `select`; `engine/batch_builder.py` and `synthetic_batch.py`
fill the field.
"""

# T tokens of the step, R sequences, B blocks of the widest table, N rows whose logits are wanted,
# V vocabulary, D width of the hidden states, m tokens that take a row of an item, k layers that add rows

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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
    logit_rows_N: torch.Tensor  # int64: indices into T
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

    def select(self, rows: Sequence[int]) -> "SelectedRows":
        """Return the batch of some of the sequences, in the order of `rows`, without the padding.

        On a GPU the call waits for the device, unless the numbers of the rows are on the host (`on_host`).
        """
        starts = self.starts()
        wanted = self.logit_rows_N.tolist() if self.on_host is None else list(self.on_host.logit_rows)
        lengths = [starts[row + 1] - starts[row] for row in rows]
        tokens_of_rows = [token for row in rows for token in range(starts[row], starts[row + 1])]
        place_of_token = {token: place for place, token in enumerate(tokens_of_rows)}
        logit_rows = tuple(index for index, token in enumerate(wanted) if token in place_of_token)
        device = self.input_ids_T.device
        tokens = torch.tensor(tokens_of_rows, dtype=torch.int64, device=device)
        rows_R = torch.tensor(rows, dtype=torch.int64, device=device)
        selected = ForwardBatch(
            input_ids_T=self.input_ids_T[tokens],
            position_ids_T=self.position_ids_T[tokens],
            kv_places_T=self.kv_places_T[tokens],
            query_starts=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
            context_lens_R=self.context_lens_R[rows_R],
            block_tables_RB=self.block_tables_RB[rows_R],
            logit_rows_N=torch.tensor(
                [place_of_token[wanted[index]] for index in logit_rows], dtype=torch.int64, device=device
            ),
            max_query_len=max(lengths),
            max_context_len=self.max_context_len,
            slots_R=None if self.slots_R is None else self.slots_R[rows_R],
            is_long_rope_T=None if self.is_long_rope_T is None else self.is_long_rope_T[tokens],
            adapters_R=None if self.adapters_R is None else self.adapters_R[rows_R],
            adapters_on_host=tuple(self.adapters_on_host[row] for row in rows) if self.adapters_on_host else (),
            encoder_lens_R=None if self.encoder_lens_R is None else self.encoder_lens_R[rows_R],
            media=None if self.media is None else _select_media(self.media, tokens, num_tokens=len(self.input_ids_T)),
            rope_positions_3T=None if self.rope_positions_3T is None else self.rope_positions_3T[:, tokens],
            span_ends_T=None if self.span_ends_T is None else self.span_ends_T[tokens],
            on_host=HostRows(
                query_starts=(0, *accumulate(lengths)),
                logit_rows=tuple(place_of_token[wanted[index]] for index in logit_rows),
            ),
        )
        return SelectedRows(batch=selected, tokens=tokens, logit_rows=logit_rows)


def _select_media(media: MediaStep, tokens: torch.Tensor, *, num_tokens: int) -> MediaStep | None:
    """Return the rows of the chosen `tokens` (int64), or None where no chosen token takes a row. Waits for a GPU."""
    place_of_token = torch.full((num_tokens,), -1, dtype=torch.int64, device=tokens.device)
    place_of_token[tokens] = torch.arange(len(tokens), device=tokens.device)
    places_m = place_of_token[media.places_m]
    kept = (places_m >= 0).nonzero().squeeze(1)
    kept = kept[places_m[kept].argsort()]
    if not len(kept):
        return None
    deepstack = media.deepstack_kmD
    return MediaStep(places_m[kept], media.rows_mD[kept], None if deepstack is None else deepstack[:, kept])


@dataclass(frozen=True, slots=True)
class HostRows:
    """Numbers of a batch that the host knows before they are copied to the device."""

    query_starts: tuple[int, ...]  # [R + 1]
    logit_rows: tuple[int, ...]  # [N]


@dataclass(frozen=True, slots=True)
class SelectedRows:
    """The batch of some sequences of a step, and where the parts of this batch stand in the step."""

    batch: ForwardBatch
    tokens: torch.Tensor  # [tokens of `batch`] int64: indices into T of the step
    logit_rows: tuple[int, ...]  # indices into N of the step, rising; `batch` wants the logits of these and no others


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
