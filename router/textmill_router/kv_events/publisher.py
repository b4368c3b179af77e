"""The two sockets of ZeroMQ. This file imports ZeroMQ, so it is imported only where events are asked for."""

import contextlib
import logging
import queue
import threading
from collections import deque
from dataclasses import dataclass

import zmq

from textmill_router.kv_events.messages import END_OF_REPLAY, SEQUENCE_BYTES, Batch, encode

log = logging.getLogger(__name__)

MAX_KEPT = 10_000  # messages that a replay can give again
LINGER_MS = 500  # in which the last messages may leave at the end
_WAKE = "inproc://kv-events"


class AddressInUse(Exception):
    """A socket cannot listen on its address. The message names the address and the reason."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the sockets listen; a port of 0 takes a free one."""

    host: str
    port: int
    replay_port: int


class EventPublisher:
    """Publishes batches from a thread of its own, and answers those who missed some.

    A message has three frames: the topic, its sequence number as 8 bytes with the highest first, and the payload. The
    replay socket takes a sequence number and answers with the messages from this number on, as far as they are kept,
    each as number and payload, and with `END_OF_REPLAY` at their end. A subscriber that reads too slowly loses
    messages, which the gap in the numbers shows. Raises AddressInUse.
    """

    def __init__(self, addresses: Addresses, topic: str) -> None:
        self._topic = topic.encode()
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()  # None ends the thread
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=MAX_KEPT)  # number and payload
        self._next_number = 0
        self._context = zmq.Context()
        try:
            self._news = self._bound(zmq.PUB, addresses.host, addresses.port)
            self._replay = self._bound(zmq.ROUTER, addresses.host, addresses.replay_port)
        except AddressInUse:
            self._context.destroy(linger=0)
            raise
        self._replay.sndhwm = 2 * MAX_KEPT  # a replay is queued at once
        self.port, self.replay_port = _port_of(self._news), _port_of(self._replay)
        self._woken = self._context.socket(zmq.PULL)
        self._woken.bind(_WAKE)
        self._waker = self._context.socket(zmq.PUSH)
        self._waker.connect(_WAKE)
        self._thread = threading.Thread(target=self._run, name="kv events", daemon=True)
        self._thread.start()

    def publish(self, batch: Batch) -> None:
        """Take a batch and return at once. Batches leave in their order; call this from one thread."""
        self._batches.put(batch)
        self._wake()

    def close(self, timeout_s: float) -> bool:
        """Send what waits, close the sockets, and return whether all was done in time."""
        self._batches.put(None)
        self._wake()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _bound(self, kind: int, host: str, port: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.linger = LINGER_MS
        socket.ipv6 = ":" in host
        address = f"tcp://[{host}]:{port or '*'}" if ":" in host else f"tcp://{host}:{port or '*'}"
        try:
            socket.bind(address)
        except zmq.ZMQError as error:
            socket.close()
            raise AddressInUse(f"{address}: {error}") from error
        return socket

    def _wake(self) -> None:
        with contextlib.suppress(zmq.ZMQError):  # so many wakes wait that one more changes nothing, or the end has come
            self._waker.send(b"", zmq.NOBLOCK)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._woken, zmq.POLLIN)
        poller.register(self._replay, zmq.POLLIN)
        goes_on = True
        while goes_on:
            ready = dict(poller.poll())
            if self._woken in ready:
                self._woken.recv()
                goes_on = self._send_all()
            if self._replay in ready:
                self._answer(self._replay.recv_multipart())
        for socket in (self._waker, self._woken, self._news, self._replay):
            socket.close()
        self._context.term()

    def _send_all(self) -> bool:
        """Send all batches that wait, and return whether more may come."""
        while True:
            try:
                batch = self._batches.get_nowait()
            except queue.Empty:
                return True
            if batch is None:
                return False
            number = self._next_number.to_bytes(SEQUENCE_BYTES, "big")
            self._next_number += 1
            payload = encode(batch)
            self._kept.append((number, payload))
            self._news.send_multipart((self._topic, number, payload))

    def _answer(self, frames: list[bytes]) -> None:
        """Answer a request for messages from a number on. Other requests are told in the log and get no answer."""
        if len(frames) != 3 or len(frames[2]) != SEQUENCE_BYTES:
            log.warning("a request for events is not understood", extra={"num_frames": len(frames)})
            return
        asker, separator, first = frames
        for number, payload in list(self._kept):
            if number >= first:
                self._replay.send_multipart((asker, separator, number, payload))
        self._replay.send_multipart((asker, separator, END_OF_REPLAY, b""))


def _port_of(socket: "zmq.Socket[bytes]") -> int:
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").decode().rpartition(":")[2])
