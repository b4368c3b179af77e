"""The package `v1` of the protocol, generated from shard.proto. `PROTOCOL_VERSION` counts changes of meaning."""
