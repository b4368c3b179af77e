"""Computes batches of files, or of strings: rows whose tensors have one shape run together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from textmill_shard.device import is_device_gone
from textmill_shard.engine.memory_faults import is_out_of_memory
from textmill_shard.model.system_memory import free_device_memory
from textmill_shard.probing.start_check import CALL_ERRORS
from textmill_shard.tasks.media_rows import MediaReader, ReadyRow
from textmill_shard.tasks.rows import Answer, FailureCode, HeadName, RowFailure
from textmill_shard.tasks.string_rows import StringReader

MAX_TOGETHER = 8  # files of one forward pass


class MediaHead(Protocol):
    """Computes the answers of some rows of one shape, in their order. `on_sign` is called while that goes on."""

    def compute(self, rows: Sequence[ReadyRow], on_sign: Callable[[], None]) -> list[Answer | RowFailure]: ...


class MediaRunner:
    """The heads of a model of images, audio or strings. One thread calls `run`."""

    def __init__(
        self, heads: Mapping[HeadName, MediaHead], reader: MediaReader | StringReader, *, device: torch.device
    ) -> None:
        self.reader = reader
        self._heads = heads
        self._device = device
        self._what = "text" if isinstance(reader, StringReader) else "file"
        self.num_memory_faults = 0

    @torch.inference_mode()
    def run(
        self, head: HeadName, rows: Sequence[Any], *, on_part: Callable[[int], None] = lambda num_tokens: None
    ) -> list[Answer | RowFailure]:
        """Return the answers in the order of the rows. A row that could not be read keeps its failure."""
        answers: dict[int, Answer | RowFailure] = {
            index: row for index, row in enumerate(rows) if isinstance(row, RowFailure)
        }
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, row in enumerate(rows):
            if isinstance(row, ReadyRow):
                groups.setdefault(row.shape, []).append(index)
        for indices in groups.values():
            for start in range(0, len(indices), MAX_TOGETHER):
                part = indices[start : start + MAX_TOGETHER]
                found = self._compute(self._heads[head], [rows[index] for index in part], lambda: on_part(0))
                answers.update(zip(part, found, strict=True))
        return [answers[index] for index in range(len(rows))]

    def read(self, rows: Sequence[Any]) -> list[ReadyRow | RowFailure]:
        """Decode files, or tokenise strings. Any thread may call this."""
        return self.reader.read(rows)

    def _compute(
        self, head: MediaHead, rows: Sequence[ReadyRow], on_sign: Callable[[], None]
    ) -> list[Answer | RowFailure]:
        """Compute the files together. Where that fails, compute each half by itself, down to single files."""
        on_sign()
        try:
            return head.compute(rows, on_sign)
        except Exception as error:
            has_no_memory = is_out_of_memory(error)
            if not has_no_memory and (not isinstance(error, CALL_ERRORS) or is_device_gone(error)):
                raise
            self.num_memory_faults += has_no_memory
            failure = RowFailure(
                FailureCode.NO_MEMORY if has_no_memory else FailureCode.INTERNAL,
                f"the model cannot read this {self._what} ({type(error).__name__}: {error})",
            )
        if len(rows) == 1:
            return [failure]
        free_device_memory(self._device)
        middle = len(rows) // 2
        return [*self._compute(head, rows[:middle], on_sign), *self._compute(head, rows[middle:], on_sign)]


def stack(rows: Sequence[ReadyRow], *, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the inputs of files of one shape as a batch on the device, numbers with a point in the model's dtype."""
    batch = {name: torch.stack([row.inputs[name] for row in rows]) for name in rows[0].inputs}
    return {
        name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in batch.items()
    }
