"""The engine of rows and its model, once a shard has been ready."""

from dataclasses import dataclass

from textmill_router.engine.row_engine import RowEngine
from textmill_router.tasks.model import TaskModel


@dataclass(frozen=True, slots=True)
class RowBackend:
    """An engine of rows that has been ready at least once, and what tasks know of its model."""

    engine: RowEngine
    model: TaskModel
