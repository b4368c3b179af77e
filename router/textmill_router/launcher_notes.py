"""Reads what the launcher tells the router: one JSON object a line, on standard input (`--launcher-notes`)."""

import asyncio
import logging
import sys
from dataclasses import dataclass

import msgspec

from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.row_engine import RowEngine
from textmill_router.metrics.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Note:
    """A note. `reason` is one word for metrics, `cause` one line for people."""

    note: str  # "shards_lost": the group starts again; "shards_given_up": it does not
    cause: str
    replica: int = 0
    reason: str = ""


async def follow_notes(metrics: Metrics, engine: ReplicaSet | RowEngine) -> None:
    """Take notes until the launcher ends, which closes its end of the pipe."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        take_note(line, metrics, engine)


def take_note(line: bytes, metrics: Metrics, engine: ReplicaSet | RowEngine) -> None:
    """Count a restart, or end the requests that no group of shards will serve any more."""
    note = msgspec.json.decode(line, type=Note)
    match note.note:
        case "shards_lost":
            metrics.on_shard_restart(note.reason)
        case "shards_given_up":
            engine.give_up(note.replica, note.cause)
        case _:
            log.error("a note of the launcher is not understood", extra={"note": note.note})
