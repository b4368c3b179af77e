"""Waits until a shard or the router says that it is ready, and logs each phase with its seconds.

Loading has no deadline, because a large model may take many minutes. A child that dies ends the wait (`supervisor.py`).
While a child stays in one phase, the log says so every `STILL_WAITING_S`.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

from textmill_launcher import progress_bar
from textmill_launcher.child_name import ChildName
from textmill_launcher.errors import LaunchError
from textmill_launcher.sockets import close_to_others

POLL_INTERVAL_S = 0.1
HEALTH_TIMEOUT_S = 5.0  # of one call
STILL_WAITING_S = 10.0
# Without these options the channel waits up to minutes between its tries while the shard has no socket yet.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)

log = logging.getLogger(__name__)
progress_log = logging.getLogger(progress_bar.LOGGER)


class ShardFailed(LaunchError):
    """A shard answers that it cannot serve."""


class PhaseLog:
    """Logs each phase that a child leaves, with its seconds, and a phase in which the child stays long."""

    def __init__(self, child: ChildName, clock: Callable[[], float] = time.monotonic) -> None:
        self._child = child
        self._clock = clock
        self._phase = "starting"
        self._phase_began_s = self._logged_s = self._began_s = clock()

    def enter(self, phase: str, progress: float = 0.0) -> None:
        """Note that the child is in `phase`, with a `progress` from 0 to 1. A new phase and a long stay are logged."""
        now_s = self._clock()
        progress_log.debug("", extra={"child": str(self._child), "phase": phase, "share": progress})
        if phase != self._phase:
            log.info("%s: %s took %.1f s", self._child, self._phase, now_s - self._phase_began_s)
            self._phase, self._phase_began_s, self._logged_s = phase, now_s, now_s
        elif now_s - self._logged_s >= STILL_WAITING_S:
            self._logged_s = now_s
            share = f" ({100 * progress:.0f} %)" if progress else ""  # few phases know how far they are
            log.info("%s: %s for %.0f s now%s", self._child, phase, now_s - self._phase_began_s, share)

    def end(self) -> None:
        """Log the last phase and the whole time."""
        self.enter("ready")
        progress_log.debug("", extra={"child": str(self._child), "phase": "ready", "share": None})
        log.info("%s: ready after %.1f s", self._child, self._clock() - self._began_s)


async def wait_for_shard(child: ChildName, socket: Path) -> None:
    """Return when the shard behind `socket` is ready to serve. Raises `ShardFailed` when the shard reports failure."""
    phases = PhaseLog(child)
    while not os.path.exists(socket):  # noqa: ASYNC240 - microseconds, on a local temporary folder
        phases.enter("starting")
        await asyncio.sleep(POLL_INTERVAL_S)
    close_to_others(socket)
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS) as channel:
        stub = shard_pb2_grpc.ShardStub(channel)
        while True:
            try:
                report = await stub.Health(shard_pb2.HealthRequest(), timeout=HEALTH_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                phases.enter("starting")  # the socket is there before the server; `supervisor.py` sees a dead child
            else:
                if report.state == shard_pb2.SHARD_STATE_READY:
                    phases.end()
                    return
                if report.state == shard_pb2.SHARD_STATE_FAILED:
                    raise ShardFailed(f"{child} cannot serve: {report.detail or 'it gives no reason'}")
                phases.enter(report.phase or "starting", report.progress)
            await asyncio.sleep(POLL_INTERVAL_S)


def local_url(hostname: str, port: int, *, has_tls: bool = False) -> str:
    """Return the URL under which this machine reaches a server that listens on `hostname`."""
    scheme = "https" if has_tls else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(hostname, hostname)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def wait_for_router(child: ChildName, base_url: str) -> None:
    """Return when `GET /health` answers 200."""
    phases = PhaseLog(child)
    # The call goes to the same machine, so it uses no proxy of the environment, and a certificate for the name that
    # clients know is not checked against the address of this machine. The call carries no secret.
    async with httpx.AsyncClient(base_url=base_url, timeout=HEALTH_TIMEOUT_S, trust_env=False, verify=False) as client:
        while True:
            try:
                answer = await client.get("/health")
            except httpx.TransportError:
                phases.enter("starting")
            else:
                if answer.status_code == httpx.codes.OK:
                    phases.end()
                    return
                phases.enter("waiting for the shards (answers 503)")
            await asyncio.sleep(POLL_INTERVAL_S)
