"""The shard's gRPC service, and its messages."""
