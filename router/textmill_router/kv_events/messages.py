"""The messages, in the form that routers between machines read from vLLM and its like.

A message is an array of the time in seconds since 1970, the events, and the number of the replica (nil where there is
one). An event is a map with `type`. Hashes are 16 bytes.
"""

from dataclasses import dataclass

import msgspec

SEQUENCE_BYTES = 8
# Stands in the place of the sequence number behind the last message of a replay.
END_OF_REPLAY = (-1).to_bytes(SEQUENCE_BYTES, "big", signed=True)


class BlockStored(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="BlockStored"):
    """A run of full blocks. `token_ids` has `block_size` tokens for each of `block_hashes`.

    `extra_keys` has an entry for each block, with what besides the tokens decides about its content.
    """

    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    medium: str
    lora_id: int | None = None
    lora_name: str | None = None
    extra_keys: list[list[str]] | None = None


class BlockRemoved(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="BlockRemoved"):
    """Blocks that no request can reuse any more."""

    block_hashes: list[bytes]
    medium: str


class AllBlocksCleared(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="AllBlocksCleared"):
    """The cache is empty."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of one turn of the event loop, from one replica. `replica` is None where there is one replica."""

    time_s: float
    events: list[Event]
    replica: int | None = None


_ENCODER = msgspec.msgpack.Encoder()


def encode(batch: Batch) -> bytes:
    """Return the payload of a message."""
    return _ENCODER.encode((batch.time_s, batch.events, batch.replica))
