"""What the router does with the notes of its launcher, which `router_notes.py` of the launcher writes."""

from typing import cast

from textmill_launcher.causes import Ending
from textmill_launcher.child_name import ChildName
from textmill_launcher.router_notes import shards_given_up, shards_lost
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.health.states import HealthState
from textmill_router.launcher_notes import take_note
from textmill_router.metrics.metrics import CacheNumbers, Metrics

KILLED = Ending(ChildName("shard", 1), -9, "serving", ())
HUNG = Ending(ChildName("shard", 0), -9, "serving", (), hang="has made no step within 1.2 s")
EXITED = Ending(ChildName("shard", 0), 3, "serving", ())


class GivenUp:
    """Stands for a set of replicas, and keeps which of them were given up."""

    def __init__(self) -> None:
        self.causes: dict[int, str] = {}

    def give_up(self, number: int, cause: str) -> None:
        self.causes[number] = cause


def test_restarts_are_counted_by_reason_and_lost_replicas_are_given_up() -> None:
    metrics, replicas = Metrics(), GivenUp()
    for note in (*(shards_lost(0, loss) for loss in (KILLED, HUNG, HUNG, EXITED)), shards_given_up(1, KILLED)):
        take_note(note.encode(), metrics, cast(ReplicaSet, replicas))
    text = metrics.expose(None, CacheNumbers(0, 0, 0), num_in_flight=0, state=HealthState.READY).decode()
    for reason, count in (("killed", 1), ("hung", 2), ("exited", 1)):
        assert f'textmill_shard_restarts_total{{reason="{reason}"}} {count}' in text
    assert replicas.causes == {1: "shard rank 1 was killed by SIGKILL while serving"}


def test_note_that_is_not_known_changes_nothing() -> None:
    metrics, replicas = Metrics(), GivenUp()
    take_note(b'{"note": "tea", "cause": "four o\'clock"}', metrics, cast(ReplicaSet, replicas))
    assert replicas.causes == {}
