"""A server under faults and under every kind of client at once, for as long as wanted: `python -m tests.soak`."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # as the launcher, before gRPC is imported
