"""The messages between the router and a worker of images: a line of JSON, and then the bytes that the line counts."""

import json
from collections.abc import Iterable
from typing import IO, Any

NUM_BYTES = "num_bytes"  # the key of the line that counts the bytes behind the line


class BrokenFrame(Exception):
    """The other side has closed its end in the middle of a message, or before one."""


def write_frame(file: IO[bytes], head: dict[str, Any], blobs: Iterable[bytes | memoryview] = ()) -> None:
    """Write one message. Raises OSError where the other side is gone."""
    parts = [memoryview(blob).cast("B") for blob in blobs]
    line = json.dumps({**head, NUM_BYTES: sum(part.nbytes for part in parts)})
    file.write(line.encode() + b"\n")
    for part in parts:
        file.write(part)
    file.flush()


def read_head(file: IO[bytes]) -> dict[str, Any]:
    """Read the line of a message. Raises BrokenFrame at the end of the file."""
    line = file.readline()
    if not line.endswith(b"\n"):
        raise BrokenFrame
    head: dict[str, Any] = json.loads(line)
    return head


def read_bytes(file: IO[bytes], num_bytes: int) -> bytes:
    """Read bytes behind a line. Raises BrokenFrame where fewer come."""
    data = file.read(num_bytes)
    if len(data) != num_bytes:
        raise BrokenFrame
    return data
