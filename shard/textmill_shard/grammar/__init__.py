"""Which token may follow."""
