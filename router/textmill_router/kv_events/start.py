"""Starts the publisher where the settings ask for it. Nothing of ZeroMQ is imported before."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textmill_router.extras import check_installed

if TYPE_CHECKING:
    from textmill_router.kv_events.publisher import EventPublisher


class CannotListen(Exception):
    """A port of the events cannot be listened on. The message names address and flags."""


@dataclass(frozen=True, slots=True)
class EventSettings:
    """Where events are published; `port` None: nowhere."""

    host: str
    port: int | None
    replay_port: int | None  # None: the next port
    topic: str


def start_publisher(settings: EventSettings) -> "EventPublisher | None":
    """Return the publisher, or None without a port. Raises ExtraMissing and CannotListen."""
    if settings.port is None:
        return None
    check_installed(("zmq",), extra="kv-events", setting=f"--kv-events-port {settings.port}")
    from textmill_router.kv_events.publisher import Addresses, AddressInUse, EventPublisher

    replay_port = (settings.port + 1 if settings.port else 0) if settings.replay_port is None else settings.replay_port
    try:
        return EventPublisher(Addresses(settings.host, settings.port, replay_port), settings.topic)
    except AddressInUse as error:
        raise CannotListen(f"cannot listen on {error} (--kv-events-port, --kv-events-replay-port)") from None
