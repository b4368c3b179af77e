"""The facts of a shard in the router's type, by default those of a small model with few slots."""

from typing import Any

from textmill_proto import PROTOCOL_VERSION
from textmill_proto.v1 import shard_pb2
from textmill_router.engine.shard_facts import ShardFacts, facts_from_proto


def router_facts(**changed: Any) -> ShardFacts:
    """Return facts with 4 slots, 64 blocks of 4 tokens and steps of 64 tokens. `changed` are fields of `ShardInfo`."""
    info = {
        "protocol_version": PROTOCOL_VERSION,
        "model_id": "m",
        "model_type": "t",
        "dtype": "float32",
        "device": "cpu",
        "world_size": 1,
        "block_size": 4,
        "num_blocks": 64,
        "num_slots": 4,
        "max_step_tokens": 64,
        "vocab_size": 100,
        "layout": "flat",
        "features": ["prefix_cache"],
    }
    return facts_from_proto(shard_pb2.ShardInfo(**{**info, **changed}))
