"""The wire contract between the router and the shards: generated stubs, no logic."""

PROTOCOL_VERSION = 4
"""The version in `ShardInfo.protocol_version`. The router stops when the shard's version differs."""
