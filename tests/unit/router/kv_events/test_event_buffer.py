"""What becomes of the changes of one turn, and what is told to nobody."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
from textmill_router.kv_events.event_buffer import BlockFacts, EventBuffer
from textmill_router.kv_events.messages import Batch, encode
from textmill_router.request import GenerationRequest, RequestId, token_array

FACTS = BlockFacts(block_size=2, medium="GPU", replica=3, rope_border=10)


def request(num_tokens: int = 4, salt: bytes = b"") -> GenerationRequest:
    return GenerationRequest(RequestId(1), token_array(range(num_tokens)), 1, 0.0, cache_salt=salt)


def told(change: Callable[[EventBuffer], None]) -> list[Any]:
    """Return the messages of one turn, as a subscriber decodes them."""
    batches: list[Batch] = []

    async def turn() -> None:
        change(EventBuffer(FACTS, batches.append))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(turn())
    return [msgspec.msgpack.decode(encode(batch)) for batch in batches]


def ids(*tokens: int) -> bytes:
    return token_array(tokens).tobytes()


def test_changes_of_a_turn_are_one_message() -> None:
    def change(buffer: EventBuffer) -> None:
        buffer.on_stored(request(), None, [b"a", b"b"], ids(1, 2, 3, 4))
        buffer.on_removed(b"b")
        buffer.on_removed(b"a")

    [[_, events, replica]] = told(change)
    assert replica == 3
    assert events == [
        {
            "type": "BlockStored",
            "block_hashes": [b"a", b"b"],
            "parent_block_hash": None,
            "token_ids": [1, 2, 3, 4],
            "block_size": 2,
            "medium": "GPU",
            "lora_id": None,
            "lora_name": None,
            "extra_keys": None,
        },
        {"type": "BlockRemoved", "block_hashes": [b"b", b"a"], "medium": "GPU"},
    ]


def test_a_cleared_index_makes_the_changes_before_it_needless() -> None:
    def change(buffer: EventBuffer) -> None:
        buffer.on_stored(request(), None, [b"a"], ids(1, 2))
        buffer.on_cleared()
        buffer.on_removed(b"a")  # of the old index
        buffer.on_stored(request(), b"p", [b"c"], ids(5, 6))

    [[_, events, _]] = told(change)
    assert [event["type"] for event in events] == ["AllBlocksCleared", "BlockStored"]


def test_salted_blocks_are_told_neither_when_they_come_nor_when_they_go() -> None:
    def change(buffer: EventBuffer) -> None:
        buffer.on_stored(request(salt=b"secret"), None, [b"s"], ids(1, 2))
        buffer.on_removed(b"s")

    assert told(change) == []


def test_blocks_of_an_adapter_have_its_name() -> None:
    adapted = replace(request(), adapter_digest=b"d" * 16, adapter_name="ada")
    [[_, [event], _]] = told(lambda buffer: buffer.on_stored(adapted, None, [b"a"], ids(1, 2)))
    assert event["lora_name"] == "ada"


def test_blocks_of_the_long_rotary_table_are_marked() -> None:
    def change(buffer: EventBuffer) -> None:
        buffer.on_stored(request(12), None, [b"a", b"b"], ids(1, 2, 3, 4))

    [[_, [event], _]] = told(change)
    assert event["extra_keys"] == [["long rope"], ["long rope"]]
