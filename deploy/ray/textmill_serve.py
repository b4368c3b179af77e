"""Textmill under Ray Serve: each replica starts a launcher with the replica's GPUs, and hands calls on to the launcher.

    serve run --working-dir deploy/ray --app-dir deploy/ray textmill_serve:build model_id=org/model num_shard=4

The file needs `ray[serve]` alone. Textmill may live in another Python environment; `launcher` names its command there.
Each replica passes every path, header and status on as they are, and an answer's bytes as they come.
"""

import asyncio
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

START_LIMIT_S = 1200.0  # a download and the weights of a large model fit in
STOP_LIMIT_S = 110.0  # 90 s for running calls (--graceful-termination-timeout), 10 s for the shards, and some more
HEALTH_PERIOD_S = 5.0
POLL_INTERVAL_S = 0.2
PORT_TAKEN = 10  # exit code of a launcher that cannot listen (docs/exit-codes.md)
NUM_PORT_TRIES = 5
# A field of one connection, which must not be handed on to the next (RFC 9110, section 7.6.1).
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
# Fields that Serve's proxy adds to each answer. The launcher takes the id of a call from Serve, so both ids are equal.
ADDED_BY_SERVE = frozenset((b"date", b"server", b"x-request-id"))
# Run before the launcher, so that the kernel sends it SIGTERM when the process of the replica ends (prctl(2)).
DIE_WITH_REPLICA = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""

log = logging.getLogger("ray.serve")


class Options(BaseModel):
    """The arguments of `build`: `key=value` of `serve run`, or `args` of an application in a Serve configuration."""

    model_config = ConfigDict(extra="forbid")

    model_id: str | None = None  # --model-id of the launcher; without it the launcher's variable or default
    num_replicas: int = Field(1, ge=1)
    num_shard: int = Field(1, ge=1)
    num_gpus: int | None = Field(None, ge=0)  # of one replica: one for each shard; 0 computes on processors
    num_cpus: float = Field(4, gt=0)  # that Ray reserves for one replica
    launcher: str = "launcher"
    arguments: str = ""  # further flags of the launcher, as in a shell

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.num_shard if self.num_gpus is None else self.num_gpus

    def command(self) -> list[str]:
        """The launcher's command line without its address."""
        model = [] if self.model_id is None else ["--model-id", self.model_id]
        device = "cuda" if self.gpus else "cpu"
        words = [self.launcher, *model, "--device", device, "--num-shard", str(self.num_shard)]
        return [*words, *shlex.split(self.arguments)]


class HandOn:
    """An ASGI application that hands each call on to the launcher of the replica that runs this code."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "http":
            await serve.get_replica_context().servable_object.hand_on(scope, receive, send)
        else:
            raise NotImplementedError(f"Textmill speaks HTTP, not {scope['type']}")


# Textmill bounds its own queue and refuses with a 429 that says how long to wait, so Serve holds nothing back.
@serve.deployment(
    name="textmill",
    max_ongoing_requests=4096,
    health_check_period_s=HEALTH_PERIOD_S,
    graceful_shutdown_timeout_s=STOP_LIMIT_S + 10,
)
@serve.ingress(HandOn())
class Textmill:
    """One replica: a launcher with its shards and its router, and the way there."""

    async def __init__(self, options: Options) -> None:
        """Start the launcher and wait until calls are served. Raises RuntimeError when the launcher ends before."""
        for attempt in range(1, NUM_PORT_TRIES + 1):
            self._port = _free_port()
            self._launcher = await _start(options.command(), self._port)
            # A connection for each call: an idle connection may end at the moment when the next call begins.
            self._client = aiohttp.ClientSession(
                f"http://127.0.0.1:{self._port}",
                connector=aiohttp.TCPConnector(force_close=True, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                auto_decompress=False,
                trust_env=False,
            )
            try:
                exit_code = await self._wait_ready()
            except BaseException:
                await self._stop()
                raise
            if exit_code is None:
                self._watch = asyncio.create_task(self._leave_with_launcher())
                return
            await self._client.close()
            if exit_code != PORT_TAKEN or attempt == NUM_PORT_TRIES:
                raise RuntimeError(f"the launcher ended with exit code {exit_code}; its log above says why")

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica after three calls that raise."""
        status = await self._status("/health/live")
        if status != 200:
            raise RuntimeError(f"GET /health/live of the launcher answers {status}")

    async def __del__(self) -> None:
        """Called by Serve when the replica's calls have ended."""
        if hasattr(self, "_watch"):
            self._watch.cancel()
            await self._stop()

    async def hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand one call on. When Serve cancels a call whose client left, the launcher sees its client leave."""
        answered = False
        try:
            async with self._client.request(
                scope["method"],
                _target(scope),
                headers=_headers(scope["headers"]),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                data=_body(receive) if _has_body(scope["headers"]) else None,
                allow_redirects=False,
            ) as answer:
                headers = [
                    (n.lower(), v) for n, v in answer.raw_headers if n.lower() not in HOP_BY_HOP | ADDED_BY_SERVE
                ]
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                answered = True
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except aiohttp.ClientError as error:
            if answered:
                raise  # Serve breaks the connection off, so that nobody takes half an answer for a whole one
            log.warning("a call did not reach the launcher: %r", error)
            await _refuse(send)

    async def _wait_ready(self) -> int | None:
        """Return None when the launcher serves, or its exit code when it ends before."""
        deadline_s = time.monotonic() + START_LIMIT_S
        while self._launcher.returncode is None:
            if await self._status("/health/ready") == 200:
                return None
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the launcher was not ready after {START_LIMIT_S:.0f} s; its log above says why")
            await asyncio.sleep(POLL_INTERVAL_S)
        return self._launcher.returncode

    async def _status(self, path: str) -> int | None:
        """Status of a GET, or None without an answer."""
        try:
            async with self._client.get(path, timeout=aiohttp.ClientTimeout(total=5)) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def _leave_with_launcher(self) -> None:
        """End this process with the launcher, so that Serve makes a new replica at once."""
        code = await self._launcher.wait()
        log.error("the launcher ended with exit code %s, and this replica ends with it", code)
        logging.shutdown()
        os._exit(1)

    async def _stop(self) -> None:
        if self._launcher.returncode is None:
            self._launcher.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._launcher.wait(), STOP_LIMIT_S)
            except TimeoutError:
                self._launcher.kill()  # its children die with it
                await self._launcher.wait()
        await self._client.close()


def build(args: Options) -> Application:
    """Return the application that `serve run` and `serve deploy` start.

    Ray gives each replica its GPUs by CUDA_VISIBLE_DEVICES, all of one machine. A replica's variables, such as HF_TOKEN
    and API_KEY, come from the environment in which Ray was started, or from a `runtime_env`.
    """
    actor = {"num_cpus": args.num_cpus, "num_gpus": args.gpus}
    return Textmill.options(num_replicas=args.num_replicas, ray_actor_options=actor).bind(args)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _start(command: list[str], port: int) -> asyncio.subprocess.Process:
    """Start a launcher on the loopback; its log goes to the log of the replica.

    For the kernel the parent is the thread that started the launcher, and that thread runs all of this file.
    """
    wrapped = [sys.executable, "-c", DIE_WITH_REPLICA, str(os.getpid()), *command]
    return await asyncio.create_subprocess_exec(
        *wrapped, "--hostname", "127.0.0.1", "--port", str(port), stdin=asyncio.subprocess.DEVNULL
    )


def _target(scope: Scope) -> str:
    """Path and query of the call below the route prefix of the application, still quoted."""
    path = (scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0].decode("latin-1")
    prefix = scope.get("root_path", "")
    path = path.removeprefix(quote(prefix)) if prefix not in ("", "/") else path
    query = scope["query_string"].decode("latin-1")
    return f"{path or '/'}?{query}" if query else path or "/"


def _headers(pairs: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(n.decode("latin-1"), v.decode("latin-1")) for n, v in pairs if n.lower() not in HOP_BY_HOP]


def _has_body(pairs: list[tuple[bytes, bytes]]) -> bool:
    return any(n.lower() == b"transfer-encoding" or (n.lower() == b"content-length" and v != b"0") for n, v in pairs)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    """The call's body as it comes; a client that leaves before its end breaks the call off."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        if body := message.get("body", b""):
            yield body
        if not message.get("more_body", False):
            return


async def _refuse(send: Send) -> None:
    """Answer as Textmill does while no shard serves."""
    body = b'{"error":"the launcher of this replica does not answer, try again","error_type":"unavailable"}'
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    for event in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{event}"
        await send({"type": f"lifespan.{event}.complete"})
