"""A real shard in the test's process: a model from a folder, the step loop and the gRPC side, on a Unix socket."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from textmill_shard.engine.media_desk import MediaDesk
from textmill_shard.engine.media_rope import rope_rule
from textmill_shard.engine.media_rows import OwnRows
from textmill_shard.engine.media_store import MediaStore
from textmill_shard.engine.rank_channel import SoloChannel
from textmill_shard.engine.status import ShardStatus
from textmill_shard.engine.step_executor import StepExecutor
from textmill_shard.lifecycle import features_of
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.runner import ModelRunner
from textmill_shard.server.server import LoadedShard, ShardService, start_server

from tests.fakes.shard_facts import facts_of
from tests.fakes.step_engine import make_engine

BLOCK_SIZE = 16
NUM_BLOCKS = 128
NUM_SLOTS = 8
MEDIA_BYTES = 8 * 1024**2
WAIT_S = 60.0


class RealShard:
    """A context manager that serves the model in fp32, with one thread of torch."""

    def __init__(self, uds_path: Path, model_dir: Path, *, num_blocks: int = NUM_BLOCKS) -> None:
        self._uds_path = uds_path
        torch.set_num_threads(1)
        options = LoadOptions(model_dir=model_dir, dtype="float32", block_size=BLOCK_SIZE)
        runner = load_model(options, lambda phase, part: None)
        runner.allocate_kv(num_blocks)
        media = runner.media
        self._facts = facts_of(
            runner,
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks,
            num_slots=NUM_SLOTS,
            max_step_tokens=256,
            features=features_of(runner.facts, media),
            media_kinds=() if media is None else media.kinds,
            media_cache_bytes=0 if media is None else MEDIA_BYTES,
            media_row_bytes=0 if media is None else media.row_bytes,
            uncut_spans=media is not None and media.uncut_spans,
            uncut_prompts=media is not None and media.is_prompt_span,
        )
        status = ShardStatus()
        self._service = ShardService(status)
        desk = _media_desk(runner, status)
        executor = StepExecutor(
            runner=runner,
            facts=self._facts,
            media=None if desk is None else OwnRows(desk.store, SoloChannel()),
            rope=rope_rule(runner),
        )
        self._engine = make_engine(executor, self._facts, status=status, media=desk)
        self._thread = threading.Thread(target=self._engine.run)

    def __enter__(self) -> Self:
        self._server = start_server(self._service, self._uds_path)
        self._thread.start()
        self._service.set_loaded(LoadedShard(facts=self._facts, engine=self._engine))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.stop()
        self._thread.join(WAIT_S)
        self._server.stop(0).wait(WAIT_S)
        self._uds_path.unlink(missing_ok=True)
        assert not self._thread.is_alive()


def _media_desk(runner: ModelRunner, status: ShardStatus) -> MediaDesk | None:
    """Return the desk of a model with images, whose tower runs beside the steps."""
    if runner.media is None:
        return None
    store = MediaStore(max_bytes=MEDIA_BYTES, row_bytes=runner.media.row_bytes, on_change=status.report_media_bytes)
    return MediaDesk(
        store,
        runner.media,
        runner.encode_media,
        device=runner.device,
        runs_beside_steps=True,
        on_encoded=status.report_media_encode,
    )
