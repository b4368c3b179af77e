"""Texts that the shard's own tokenizer makes ready for the model, outside of the model's thread."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from textmill_shard.media.decoder import DecodingHelpers
from textmill_shard.media.errors import MediaError
from textmill_shard.tasks.media_rows import ReadyRow
from textmill_shard.tasks.read_faults import failure_of, note_memory
from textmill_shard.tasks.rows import RowFailure, StringRow


class StringReader:
    """Makes texts ready, in helper threads. Any thread may call `read`.

    `read_text` returns the tensors of a text, and raises MediaError for a text that the model cannot read.
    """

    def __init__(self, read_text: Callable[[str], ReadyRow]) -> None:
        self._read_text = read_text
        self._helpers = DecodingHelpers()

    def read(self, rows: Sequence[StringRow]) -> list[ReadyRow | RowFailure]:
        """Return each text ready, or why it cannot be read."""
        found = self._helpers.decode(rows, lambda row: note_memory(lambda: self._read_text(row.text)))
        return [
            failure_of(each) if isinstance(each, MediaError) else replace(each, params=row.params)
            for each, row in zip(found, rows, strict=True)
        ]

    def close(self) -> None:
        """End the threads."""
        self._helpers.close()
