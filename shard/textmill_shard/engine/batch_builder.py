"""Turns the rows of a step into the tensors of its forward pass.

The arrays of a step reach the device in one copy (`upload.py`). Only the stages of the sampler copy something else: the
state of a slot when a request takes the slot, and the mask of a grammar, which does not exist before the forward pass
begins.
"""

# T tokens of the step, R rows, B blocks of the widest table, N rows that sample, m tokens that take a row of an item

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from textmill_shard.engine.apart_pass import ApartRows
from textmill_shard.engine.media_rows import RowPiece, RowSource
from textmill_shard.engine.token_feed import TokenFeed
from textmill_shard.engine.upload import HostArray, Upload
from textmill_shard.model.decode_graphs import DecodeGraphs, SeatedStep
from textmill_shard.model.decode_rows import DecodeRows
from textmill_shard.model.forward_batch import ForwardBatch, HostRows, MediaStep
from textmill_shard.slots.plan import NO_IDS, IdArray
from textmill_shard.slots.slot_table import SlotTable
from textmill_shard.slots.step_composer import ComposedStep


class BatchBuilder:
    """Builds the flat batch of a step from the slot table."""

    def __init__(
        self,
        *,
        block_size: int,
        device: torch.device,
        has_two_rope_tables: bool = False,
        has_encoder: bool = False,
        has_host_rows: bool = False,
        media: RowSource | None = None,
        has_span_ends: bool = False,
        shares_vocabulary: bool = False,
    ) -> None:
        """`has_host_rows`: the layout cuts batches, and takes the numbers of the rows from the host (`HostRows`).

        `media` is None for a model of text. `has_span_ends`: the tokens of an uncut range see one another.
        `shares_vocabulary`: each rank computes some of the logits, and steps keep them in these parts.
        """
        self._block_size = block_size
        self._has_two_rope_tables = has_two_rope_tables
        self._has_encoder = has_encoder
        self._has_host_rows = has_host_rows
        self._media = media
        self._has_span_ends = has_span_ends
        self._shares_vocabulary = shares_vocabulary
        self._device = device
        self._row_numbers = np.arange(
            1
        )  # grows with the largest step; a batch takes a view of it and only reads the view
        self._row_numbers_i32 = self._row_numbers.astype(np.int32)

    def build(
        self, table: SlotTable, step: ComposedStep, upload: Upload | None = None, feed: TokenFeed | None = None
    ) -> ForwardBatch:
        """Return the tensors of `step`. The table already holds each token that the step computes, unless `feed` does.

        `upload` may hold further arrays, which are sent to the device with those of the batch.
        """
        arrays = self._decode_arrays(table, step) if step.is_decode else self._mixed_arrays(table, step)
        adapters_on_host: tuple[int, ...] = ()
        if (adapters_R := _adapters(table, step.slots_R)) is not None:
            arrays["adapters_R"], adapters_on_host = adapters_R, tuple(adapters_R.tolist())
        pieces: list[RowPiece] = []
        if self._media is not None and not step.is_decode and table.num_with_media:
            pieces, places_m = _find_pieces(table, step)
            if pieces:
                arrays["media_places_m"] = places_m
        if table.num_roped:
            arrays["rope_positions_3T"] = _rope_positions(table, step)
        if self._has_span_ends and not step.is_decode and table.has_uncut[step.slots_R].any():
            arrays["span_ends_T"] = _span_ends(table, step)
        upload = upload or Upload(self._device)
        numbers = {name: upload.add(values) for name, values in arrays.items()}
        if feed is not None:
            feed.stage(table, step, upload)
        upload.send()
        media = None
        if self._media is not None and pieces:
            rows = self._media.take(pieces)
            media = MediaStep(upload.tensor(numbers.pop("media_places_m")), rows.rows_nD, rows.deepstack_knD)
        is_single = step.is_decode
        tensors: dict[str, Any] = {name: upload.tensor(number) for name, number in numbers.items()}
        if feed is not None:
            tensors["input_ids_T"] = feed.take(tensors["input_ids_T"], tensors["slots_R"])
        return ForwardBatch(
            **tensors,
            max_query_len=1 if is_single else int(step.counts_R.max()),
            max_context_len=int(step.starts_R.max()) + 1 if is_single else int((step.starts_R + step.counts_R).max()),
            adapters_on_host=adapters_on_host,
            on_host=self._on_host(arrays),
            media=media,
            keeps_parts=self._shares_vocabulary,
        )

    def seat(
        self, graphs: DecodeGraphs, table: SlotTable, step: ComposedStep, upload: Upload, feed: TokenFeed | None
    ) -> SeatedStep | None:
        """Send a step of decodes to the memory of its graph, or return None for a step that no graph holds.

        The caller builds such a step. The table holds each token that the step computes, unless `feed` does.
        """
        slots_R = step.slots_R
        rows = self._decode_rows(
            table,
            slots_R,
            step.starts_R,
            tokens_R=table.last_tokens[slots_R] if feed is None else None,
            block_tables_RB=table.block_tables_SB[slots_R, : self._num_blocks(step.starts_R)],
        )
        seated = graphs.seat(rows, keeps_parts=self._shares_vocabulary)
        if seated is not None:
            upload.send_behind(seated.packed, graphs.memory)
            if feed is not None:
                feed.stage_graph(seated.slots_R)
        return seated

    def seat_apart(self, graphs: DecodeGraphs, table: SlotTable, rows: ApartRows) -> SeatedStep | None:
        """Send sequences beside the tables of their slots to the memory of a graph. None: no graph holds them."""
        seated = graphs.seat(
            self._decode_rows(
                table,
                rows.slots_R,
                rows.starts_R,
                tokens_R=rows.tokens_R,
                block_tables_RB=self._tables_apart(table, rows),
            )
        )
        if seated is not None:
            Upload(self._device).send_behind(seated.packed, graphs.memory)
        return seated

    def _decode_rows(
        self,
        table: SlotTable,
        slots_R: IdArray,
        starts_R: IdArray,
        *,
        tokens_R: IdArray | None,
        block_tables_RB: npt.NDArray[np.int32],
    ) -> DecodeRows:
        """Return one token per row in the form that graphs take, with what the table says of the slots."""
        return DecodeRows(
            slots_R=slots_R,
            starts_R=starts_R,
            tokens_R=tokens_R,
            block_tables_RB=block_tables_RB,
            adapters_R=_adapters(table, slots_R),
            is_long_rope_R=table.is_long_rope[slots_R] if self._has_two_rope_tables else None,
            rope_deltas_R=table.rope_deltas[slots_R] if table.num_roped else None,
        )

    def _num_blocks(self, starts_R: IdArray) -> int:
        """Return the blocks that the longest of the contexts takes with one more token."""
        return -(-(int(starts_R.max()) + 1) // self._block_size)

    def _tables_apart(self, table: SlotTable, rows: ApartRows) -> npt.NDArray[np.int32]:
        """Return the block tables `[R, B]` of sequences beside the tables of their slots."""
        num_blocks = self._num_blocks(rows.starts_R)
        block_tables_RB = np.full((len(rows.slots_R), num_blocks), table.num_blocks, dtype=np.int32)
        start = 0
        for tables_WB in rows.tables:
            width = min(num_blocks, tables_WB.shape[1])
            block_tables_RB[start : start + len(tables_WB), :width] = tables_WB[:, :width]
            start += len(tables_WB)
        return block_tables_RB

    def build_apart(self, table: SlotTable, rows: ApartRows) -> ForwardBatch:
        """Return the tensors of one token of each of these sequences, which lie beside the tables of their slots."""
        max_context_len = int(rows.starts_R.max()) + 1
        block_tables_RB = self._tables_apart(table, rows)
        arrays = self._single_arrays(table, rows.slots_R, rows.starts_R, rows.tokens_R, block_tables_RB)
        if rows.states_R is not None:
            arrays["slots_R"] = rows.states_R
        adapters_on_host: tuple[int, ...] = ()
        if (adapters_R := _adapters(table, rows.slots_R)) is not None:
            arrays["adapters_R"], adapters_on_host = adapters_R, tuple(adapters_R.tolist())
        if table.num_roped:
            arrays["rope_positions_3T"] = np.tile(rows.starts_R + table.rope_deltas[rows.slots_R], (3, 1))
        upload = Upload(self._device)
        numbers = {name: upload.add(values) for name, values in arrays.items()}
        upload.send()
        tensors: dict[str, Any] = {name: upload.tensor(number) for name, number in numbers.items()}
        return ForwardBatch(
            **tensors,
            max_query_len=1,
            max_context_len=max_context_len,
            adapters_on_host=adapters_on_host,
            on_host=self._on_host(arrays),
        )

    def _on_host(self, arrays: Mapping[str, HostArray]) -> HostRows | None:
        """Return the numbers of the rows that a layout takes from the host, or None for one that takes none."""
        if not self._has_host_rows:
            return None
        starts, logit_rows = arrays["query_starts"].tolist(), arrays["logit_rows_N"].tolist()
        return HostRows(query_starts=tuple(starts), logit_rows=tuple(logit_rows))

    def _mixed_arrays(self, table: SlotTable, step: ComposedStep) -> dict[str, HostArray]:
        """Return the arrays of a step of any rows, by the field of the batch."""
        counts_R = step.counts_R
        query_ends_R = np.cumsum(counts_R)
        query_starts_R = query_ends_R - counts_R
        rows_T = np.repeat(np.arange(len(counts_R)), counts_R)
        position_ids_T = np.arange(int(query_ends_R[-1])) + (step.starts_R - query_starts_R)[rows_T]
        context_lens_R = step.starts_R + counts_R
        num_table_blocks = -(-int(context_lens_R.max()) // self._block_size)
        block_tables_RB = table.block_tables_SB[step.slots_R, :num_table_blocks]
        blocks_T = block_tables_RB[rows_T, position_ids_T // self._block_size].astype(np.int64)
        arrays = {
            "input_ids_T": _gather_tokens(table, step, query_starts_R),
            "position_ids_T": position_ids_T,
            "kv_places_T": blocks_T * self._block_size + position_ids_T % self._block_size,
            "query_starts": np.concatenate([[0], query_ends_R]).astype(np.int32),
            "context_lens_R": context_lens_R.astype(np.int32),
            "block_tables_RB": block_tables_RB,
            "logit_rows_N": query_ends_R[step.samples_R] - 1,
            "slots_R": step.slots_R,
        }
        if self._has_two_rope_tables:
            arrays["is_long_rope_T"] = table.is_long_rope[step.slots_R][rows_T]
        if self._has_encoder:
            arrays["encoder_lens_R"] = table.num_encoder[step.slots_R]
        return arrays

    def _decode_arrays(self, table: SlotTable, step: ComposedStep) -> dict[str, HostArray]:
        """Return the arrays of a step of one token per row, in fewer operations than `_mixed_arrays` takes."""
        slots_R, starts_R = step.slots_R, step.starts_R
        tables_RB = table.block_tables_SB[slots_R, : self._num_blocks(starts_R)]
        return self._single_arrays(table, slots_R, starts_R, table.last_tokens[slots_R], tables_RB)

    def _single_arrays(
        self,
        table: SlotTable,
        slots_R: IdArray,
        starts_R: IdArray,
        tokens_R: IdArray,
        block_tables_RB: npt.NDArray[np.int32],
    ) -> dict[str, HostArray]:
        """Return the arrays of one token per row. `block_tables_RB` reaches as far as the longest context."""
        num_rows, block_size = len(slots_R), self._block_size
        if len(self._row_numbers) <= num_rows:
            self._row_numbers = np.arange(2 * num_rows + 1)
            self._row_numbers_i32 = self._row_numbers.astype(np.int32)
        rows_R = self._row_numbers[:num_rows]
        block_R, offset_R = np.divmod(starts_R, block_size)
        arrays: dict[str, HostArray] = {
            "input_ids_T": tokens_R,
            "position_ids_T": starts_R,
            "kv_places_T": block_tables_RB[rows_R, block_R] * np.int64(block_size) + offset_R,
            "query_starts": self._row_numbers_i32[: num_rows + 1],
            "context_lens_R": (starts_R + 1).astype(np.int32),
            "block_tables_RB": block_tables_RB,
            "logit_rows_N": rows_R,
            "slots_R": slots_R,
        }
        if self._has_two_rope_tables:
            arrays["is_long_rope_T"] = table.is_long_rope[slots_R]
        if self._has_encoder:
            arrays["encoder_lens_R"] = table.num_encoder[slots_R]
        return arrays

    def to_device(self, values: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> torch.Tensor:
        """Return a copy of `values` on the device. On a CPU, the tensor shares the memory of `values` instead."""
        return torch.from_numpy(values).to(self._device)


def _gather_tokens(table: SlotTable, step: ComposedStep, query_starts_R: IdArray) -> IdArray:
    """Return the input ids of the step: the last token of each decode, and a piece of the text of each prefill."""
    input_ids_T = np.empty(step.num_tokens, dtype=np.int64)
    is_decode_R = ~table.is_prefilling[step.slots_R]
    input_ids_T[query_starts_R[is_decode_R]] = table.last_tokens[step.slots_R[is_decode_R]]
    for row in np.flatnonzero(~is_decode_R).tolist():
        start, count, first = int(step.starts_R[row]), int(step.counts_R[row]), int(query_starts_R[row])
        piece = table.tokens_of(int(step.slots_R[row]), start=start, end=start + count)
        input_ids_T[first : first + count] = piece
    return input_ids_T


def _find_pieces(table: SlotTable, step: ComposedStep) -> tuple[list[RowPiece], IdArray]:
    """Return the rows of items that the step reads, and the indices `[m]` into T of the tokens that take them."""
    pieces: list[RowPiece] = []
    places: list[IdArray] = [NO_IDS]
    query_start = 0
    for slot, start, count in zip(step.slots_R.tolist(), step.starts_R.tolist(), step.counts_R.tolist(), strict=True):
        for span in table.admit_of(slot).media if start < table.num_prompt[slot] else ():
            first, end = max(span.start, start), min(span.end, start + count)
            if first < end:
                pieces.append(RowPiece(span.digest, span.first_row + first - span.start, end - first))
                places.append(np.arange(first, end) + (query_start - start))
        query_start += count
    return pieces, np.concatenate(places)


def _rope_positions(table: SlotTable, step: ComposedStep) -> IdArray:
    """Return the rotary positions `[3, T]` of a step with a slot whose positions are not its indices."""
    if step.is_decode:
        positions_R = step.starts_R + table.rope_deltas[step.slots_R]
        return np.tile(positions_R, (3, 1))
    rows = zip(step.slots_R.tolist(), step.starts_R.tolist(), step.counts_R.tolist(), strict=True)
    parts = [table.rope_positions(slot, start=start, end=start + count) for slot, start, count in rows]
    return np.concatenate(parts, axis=1)


def _span_ends(table: SlotTable, step: ComposedStep) -> npt.NDArray[np.int32]:
    """Return for each token `[T]` the end, in its request, of the uncut range that holds the token, or 0."""
    ends_T = np.zeros(step.num_tokens, dtype=np.int32)
    query_start = 0
    for slot, start, count in zip(step.slots_R.tolist(), step.starts_R.tolist(), step.counts_R.tolist(), strict=True):
        for tokens in table.uncut_of(slot):
            first, end = max(tokens.start, start), min(tokens.end, start + count)
            if first < end:
                ends_T[query_start + first - start : query_start + end - start] = tokens.end
        query_start += count
    return ends_T


def _adapters(table: SlotTable, slots_R: IdArray) -> npt.NDArray[np.int32] | None:
    """Return the place of the adapter of each row, or None where no row has one."""
    if not table.num_adapted:
        return None
    adapters_R: npt.NDArray[np.int32] = table.adapters[slots_R]
    return adapters_R if adapters_R.any() else None
