"""The wire contract between the router and the shards: generated stubs, no logic."""

PROTOCOL_VERSION = 2
"""Sent in `ShardInfo.protocol_version`; router and shard refuse each other when it differs."""
