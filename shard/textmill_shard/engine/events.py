"""What reaches the step loop from other threads, through one queue: the order of arrival is the order of effect."""

from dataclasses import dataclass
from typing import TypeAlias

from textmill_shard.engine.session import EndReason, Session
from textmill_shard.slots.plan import Plan
from textmill_shard.slots.plan_check import PlanRejected


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A router has connected."""

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
    plan: Plan | PlanRejected  # rejected already when it could not be read
    data: bytes  # serialised, for the other ranks


@dataclass(frozen=True, slots=True)
class GrammarCompiled:
    """A compilation has ended: the loop is to look which slot may go on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The loop is to return."""


EngineEvent: TypeAlias = SessionOpened | SessionClosed | PlanArrived | GrammarCompiled | Stop
