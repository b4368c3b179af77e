"""A real shard of rows in the test's process: a model from a folder, the loop of batches and the gRPC side."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from textmill_shard.engine.status import ShardStatus
from textmill_shard.row_start import start_rows
from textmill_shard.server.row_service import RowService
from textmill_shard.server.server import start_server
from textmill_shard.settings import load_settings

WAIT_S = 10.0


class RealRowShard:
    """A context manager that serves the model of a task in fp32, with one thread of torch."""

    def __init__(self, uds_path: Path, model_dir: Path, task: str, *flags: str) -> None:
        self._uds_path = uds_path
        torch.set_num_threads(1)
        words = ["--model-dir", str(model_dir), "--model-id", "tiny", "--uds-path", str(uds_path), "--task", task]
        settings = load_settings(["serve", *words, "--dtype", "float32", "--num-threads", "1", *flags], {})
        status = ShardStatus()
        self._service = RowService(status)
        self._started = start_rows(settings, "cpu", status)
        self._loop = self._started.loop
        self._thread = threading.Thread(target=self._loop.run)

    def __enter__(self) -> Self:
        self._server = start_server(self._service, self._uds_path)
        self._thread.start()
        self._service.set_loaded(self._started.facts, self._loop, self._started.reader)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.stop()
        self._thread.join(WAIT_S)
        self._server.stop(0).wait(WAIT_S)
        self._uds_path.unlink(missing_ok=True)
        assert not self._thread.is_alive()
