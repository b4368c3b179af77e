"""Events that other threads send to the step loop. One queue holds them, so that they take effect in their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from textmill_shard.engine.adapter_desk import LoadWanted, UnloadWanted
from textmill_shard.engine.adapter_reader import ReadOutcome
from textmill_shard.engine.session import EndReason, Session
from textmill_shard.slots.plan import Plan
from textmill_shard.slots.plan_check import PlanRejected


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A router has connected, and its stream begins an epoch."""

    session: Session


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The stream of a session is over."""

    session: Session
    reason: EndReason
    message: str


@dataclass(frozen=True, slots=True)
class PlanArrived:
    """A plan to apply at the next step boundary."""

    session: Session
    plan: Plan | PlanRejected  # a rejection where the message could not be read
    data: bytes  # the serialised plan, for the other ranks


@dataclass(frozen=True, slots=True)
class GrammarCompiled:
    """The compilation of a grammar has ended, so that the loop looks which slot may go on."""


@dataclass(frozen=True, slots=True)
class StepArrived:
    """The tokens of a step have reached the host, so that the loop looks for the steps to collect."""


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """Every rank has read the adapter that is the first in the desk's queue."""

    outcomes: Sequence[ReadOutcome]


@dataclass(frozen=True, slots=True)
class ItemComputed:
    """The tower has run, so that the loop looks which slot may go on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The loop returns at the next step boundary."""


AdapterEvent: TypeAlias = LoadWanted | UnloadWanted | AdapterRead
Arrival: TypeAlias = (
    SessionOpened | SessionClosed | PlanArrived | GrammarCompiled | ItemComputed | StepArrived | AdapterEvent
)
EngineEvent: TypeAlias = Arrival | Stop
