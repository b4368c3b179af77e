"""A server under faults and under every kind of client at once, for as long as wanted: `python -m tests.soak`."""
