"""The tests. Some start processes by the launcher's own code, so they handle gRPC and forks as the launcher does."""

import os

# gRPC reads the variable at its import. `start_launcher` takes it away again, because a launcher sets it itself.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
