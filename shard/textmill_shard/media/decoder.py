"""Decodes files in a few helper threads, so that decoding takes bounded memory and never the thread of the model."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from textmill_shard.media.errors import MediaError, NoMemory

NUM_HELPERS = 2
File = TypeVar("File")
Decoded = TypeVar("Decoded")


class DecodingHelpers:
    """The threads. Any thread may call `decode`, which waits for its own files."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=NUM_HELPERS, thread_name_prefix="decode")

    def decode(self, files: Sequence[File], read: Callable[[File], Decoded]) -> list[Decoded | MediaError]:
        """Return what `read` makes of each file, or the MediaError that it raised.

        A file for which there was no memory is read once more when all others are read, with no other file of the call
        beside it.
        """

        def try_read(file: File) -> Decoded | MediaError:
            try:
                return read(file)
            except MediaError as error:
                return error

        found = list(self._pool.map(try_read, files))
        for index, file in enumerate(files):
            if isinstance(found[index], NoMemory):
                found[index] = self._pool.submit(try_read, file).result()
        return found

    def close(self) -> None:
        """End the threads after the files that they read."""
        self._pool.shutdown(wait=True, cancel_futures=True)
