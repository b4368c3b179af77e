"""A router in a thread in front of a fake shard of rows, with the small WordPiece tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fakes.fake_row_shard import FakeRowShard, RowShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.word_tokenizer import write_word_tokenizer


@contextmanager
def task_router(
    folder: Path, task: str, options: RowShardOptions | None = None, **settings: Any
) -> Iterator[RunningRouter]:
    """Run the router of a task. The router's `shard` is the fake shard."""
    model = write_word_tokenizer(folder / "model")
    with RunningRouter(
        folder,
        model=model,
        make_shard=lambda socket, _: FakeRowShard(socket, options),
        task=task,
        **settings,
    ) as running:
        yield running
