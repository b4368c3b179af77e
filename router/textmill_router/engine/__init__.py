"""The loop around the scheduler, and the stream to the shard."""
