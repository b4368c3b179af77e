"""The table of health: the states, what each probe answers in each state, and the edges between states.

`page.py` makes docs/health.md of the table. The table knows facts and no clock, so a test can drive every edge.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class HealthState(StrEnum):
    """The states of a server's life, from its start to its end."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    SATURATED = "saturated"
    DRAINING = "draining"
    RECOVERING = "recovering"
    DEGRADED = "degraded"
    DEAD = "dead"


class Start(StrEnum):
    """How far the first start of the shards has come."""

    SILENT = "silent"  # no shard answers yet
    LOADING = "loading"
    WARMING = "warming"
    DONE = "done"  # the server has been ready once; later restarts of shards change nothing here


@dataclass(frozen=True, slots=True)
class HealthFacts:
    """Everything that decides the state.

    `num_away` of the `num_groups` groups of shards do not serve, because they are lost, load again or hang. `is_full`
    says that a further call would get 429, and `has_room` that enough of the permits are back. `is_beyond_help` says
    that nothing but a new start of the server helps.
    """

    start: Start = Start.SILENT
    num_groups: int = 1
    num_away: int = 0
    is_full: bool = False
    has_room: bool = True
    is_leaving: bool = False
    is_beyond_help: bool = False


@dataclass(frozen=True, slots=True)
class StateRow:
    """A state, its meaning, and whether each probe answers 200 in the state, or else 503."""

    state: HealthState
    meaning: str
    health: bool  # GET /health, /ping and /
    live: bool  # GET /health/live
    ready: bool  # GET /health/ready
    startup: bool  # GET /health/startup


@dataclass(frozen=True, slots=True)
class Edge:
    """A change of state, which happens when `is_due`. `because` is the reason, for the log and the page."""

    source: HealthState
    target: HealthState
    because: str
    is_due: Callable[[HealthFacts], bool]


_S = HealthState
ROWS: tuple[StateRow, ...] = (
    StateRow(_S.STARTING, "no shard answers yet", health=False, live=True, ready=False, startup=False),
    StateRow(
        _S.LOADING,
        "the shards read the model; `percent` tells how much of the weights is there",
        health=False,
        live=True,
        ready=False,
        startup=False,
    ),
    StateRow(
        _S.WARMING,
        "the shards try the model and make the KV pool, then the router makes its tables",
        health=False,
        live=True,
        ready=False,
        startup=False,
    ),
    StateRow(_S.READY, "calls are served", health=True, live=True, ready=True, startup=True),
    StateRow(
        _S.SATURATED,
        "calls are served, and a further call gets 429 until one of them ends",
        health=True,
        live=True,
        ready=True,
        startup=True,
    ),
    StateRow(
        _S.DRAINING,
        "the server leaves: running calls end, new calls get 503",
        health=False,
        live=True,
        ready=False,
        startup=True,
    ),
    StateRow(
        _S.RECOVERING,
        "no group of shards serves; running requests are held and go on when a group is back",
        health=False,
        live=True,
        ready=False,
        startup=True,
    ),
    StateRow(
        _S.DEGRADED,
        "calls are served, but some of the groups of shards are away",
        health=True,
        live=True,
        ready=True,
        startup=True,
    ),
    StateRow(
        _S.DEAD,
        "only a new start of the server helps: the start failed, the engine stopped, or a watchdog gave up a shard",
        health=False,
        live=False,
        ready=False,
        startup=False,
    ),
)
ROW_OF = {row.state: row for row in ROWS}


def _is_leaving(facts: HealthFacts) -> bool:
    return facts.is_leaving


def _is_beyond_help(facts: HealthFacts) -> bool:
    return facts.is_beyond_help


def _is_loading(facts: HealthFacts) -> bool:
    return facts.start is Start.LOADING


def _is_warming(facts: HealthFacts) -> bool:
    return facts.start is Start.WARMING


def _is_silent(facts: HealthFacts) -> bool:
    return facts.start is Start.SILENT


def _is_loaded(facts: HealthFacts) -> bool:
    return facts.start is Start.DONE


def _all_serve(facts: HealthFacts) -> bool:
    return facts.num_away == 0


def _some_serve(facts: HealthFacts) -> bool:
    return 0 < facts.num_away < facts.num_groups


def _none_serves(facts: HealthFacts) -> bool:
    return facts.num_away >= facts.num_groups


def _is_full(facts: HealthFacts) -> bool:
    return facts.is_full


def _has_room(facts: HealthFacts) -> bool:
    return facts.has_room


def _starts_again(facts: HealthFacts) -> bool:
    return facts.start is not Start.DONE and not facts.is_beyond_help


def _recovers(facts: HealthFacts) -> bool:
    return facts.start is Start.DONE and not facts.is_beyond_help


_LEAVES = "SIGTERM"
_DIES = "only a new start helps"


def _ends(source: HealthState) -> tuple[Edge, Edge]:
    """The two edges that every state but draining and dead has, and that come before its other edges."""
    return (Edge(source, _S.DRAINING, _LEAVES, _is_leaving), Edge(source, _S.DEAD, _DIES, _is_beyond_help))


# The edges of a state stand in their order: the first that is due is taken. No edge leads out of draining.
EDGES: tuple[Edge, ...] = (
    *_ends(_S.STARTING),
    Edge(_S.STARTING, _S.LOADING, "a shard reads the model", _is_loading),
    Edge(_S.STARTING, _S.WARMING, "a shard warms up", _is_warming),
    Edge(_S.STARTING, _S.READY, "the shards were ready before the router looked", _is_loaded),
    *_ends(_S.LOADING),
    Edge(_S.LOADING, _S.STARTING, "the shards start again", _is_silent),
    Edge(_S.LOADING, _S.WARMING, "the weights are read", _is_warming),
    Edge(_S.LOADING, _S.READY, "the shards are ready", _is_loaded),
    *_ends(_S.WARMING),
    Edge(_S.WARMING, _S.STARTING, "the shards start again", _is_silent),
    Edge(_S.WARMING, _S.LOADING, "the shards start again and read the model", _is_loading),
    Edge(_S.WARMING, _S.READY, "the shards are ready", _is_loaded),
    *_ends(_S.READY),
    Edge(_S.READY, _S.RECOVERING, "no group of shards serves", _none_serves),
    Edge(_S.READY, _S.DEGRADED, "a group of shards is away", _some_serve),
    Edge(_S.READY, _S.SATURATED, "all permits are given out", _is_full),
    *_ends(_S.SATURATED),
    Edge(_S.SATURATED, _S.RECOVERING, "no group of shards serves", _none_serves),
    Edge(_S.SATURATED, _S.DEGRADED, "a group of shards is away", _some_serve),
    Edge(_S.SATURATED, _S.READY, "a quarter of the permits is free", _has_room),
    *_ends(_S.RECOVERING),
    Edge(_S.RECOVERING, _S.READY, "all groups of shards serve", _all_serve),
    Edge(_S.RECOVERING, _S.DEGRADED, "a group of shards is back", _some_serve),
    *_ends(_S.DEGRADED),
    Edge(_S.DEGRADED, _S.RECOVERING, "the last group of shards is away", _none_serves),
    Edge(_S.DEGRADED, _S.READY, "all groups of shards serve", _all_serve),
    Edge(_S.DEAD, _S.DRAINING, _LEAVES, _is_leaving),
    Edge(_S.DEAD, _S.STARTING, "the shards start again", _starts_again),
    Edge(_S.DEAD, _S.RECOVERING, "a shard answers again", _recovers),
)


def next_edge(state: HealthState, facts: HealthFacts) -> Edge | None:
    """Return the edge on which the facts lead out of the state, or None where the state stays."""
    return next((edge for edge in EDGES if edge.source is state and edge.is_due(facts)), None)
