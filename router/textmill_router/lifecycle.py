"""The life of the router's process: bind, load, serve, drain, exit."""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from textmill_router.api.routes import build_app
from textmill_router.chat.call_trial import warn_of_unread_calls
from textmill_router.chat.template_files import load_chat_templates
from textmill_router.engine.adapter_calls import AdapterRefused, ShardAway
from textmill_router.engine.replica_set import ReplicaSet
from textmill_router.engine.row_engine import RowEngine
from textmill_router.engine.shard_client import ShardClientOptions
from textmill_router.engine.shard_link import ShardLink, ShardTls, ShardTlsError
from textmill_router.engine.status import EnginePhase
from textmill_router.file_watch import FileWatch
from textmill_router.health.loop_watchdog import LoopWatchdog
from textmill_router.http.guard import GuardLimits, guarded_protocol
from textmill_router.http.tls import TlsFiles, TlsFilesError
from textmill_router.kv_events.start import CannotListen
from textmill_router.launcher_notes import follow_notes
from textmill_router.outlets import open_outlets
from textmill_router.serving.service import Service, scheduler_config
from textmill_router.settings import Settings, SettingsError
from textmill_router.tasks.model import TaskModel, read_prompts
from textmill_router.tasks.names import is_text_task
from textmill_router.tasks.text_reader import TextReader
from textmill_router.text.tokenization import Tokenizer

log = logging.getLogger(__name__)

LISTEN_BACKLOG = 2048
# Time after the drain, for answers whose last events wait for a slow client.
GRACEFUL_SHUTDOWN_S = 5
PULSE_S = 2.0  # between two comments in a stream while no shard serves
# Collections are rare after the start, because the objects of a request die with their last reference.
GC_THRESHOLDS = (50_000, 20, 50)


class AddressTaken(Exception):
    """The router cannot listen on its address. The message names address and flags."""


class BackendLost(Exception):
    """The engine has stopped for good; the text says why."""


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers, because this file handles the process's signals.

    `tls_watch` takes changes of the files of TLS; it is None where the server speaks plain HTTP.
    """

    def __init__(self, config: uvicorn.Config, tls_watch: FileWatch | None) -> None:
        super().__init__(config)
        self.tls_watch = tls_watch

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def make_server(service: Service) -> HttpServer:
    """Return the HTTP server of this service, which does not serve yet. Raises SettingsError for bad files of TLS."""
    settings = service.settings
    tls, tls_watch = _load_tls(settings)
    limits = GuardLimits(
        max_header_bytes=settings.max_header_bytes,
        max_header_fields=settings.max_header_fields,
        header_timeout_s=settings.header_timeout,
        body_timeout_s=settings.body_timeout,
        stall_timeout_s=settings.stall_timeout,
    )
    app = build_app(service)
    config = uvicorn.Config(
        app,
        http=guarded_protocol(limits, service.metrics.on_refused_connection, app.styles),
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(settings.keep_alive_timeout)),
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        ssl_context_factory=None if tls is None else lambda config, default: tls.context,
    )
    return HttpServer(config, tls_watch)


def _load_tls(settings: Settings) -> tuple[TlsFiles | None, FileWatch | None]:
    """Return the files of TLS and their watch, or twice None. Raises SettingsError for files that cannot be used."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None, None

    async def reload() -> None:
        try:
            tls.reload()
        except TlsFilesError as error:
            log.error("the files of TLS are not taken, the ones before stay: %s", error)
        else:
            log.info("the files of TLS are read again")

    watch = FileWatch([settings.tls_cert, settings.tls_key], reload)  # before the files are read: no change is missed
    try:
        tls = TlsFiles(settings.tls_cert, settings.tls_key)
    except TlsFilesError as error:
        raise SettingsError(f"--tls-cert, --tls-key: {error}") from None
    return tls, watch


async def follow_files(service: Service, server: HttpServer) -> None:
    """Take changes of the key file and of the files of TLS, until cancelled."""
    watches = [watch for watch in (service.access.watch, server.tls_watch) if watch is not None]
    await asyncio.gather(*(watch.run() for watch in watches))


def bind(settings: Settings) -> socket.socket:
    """Return the listening socket. Raises AddressTaken when the address is taken or not one of this machine."""
    family = socket.AF_INET6 if ":" in settings.hostname else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.hostname, settings.port))
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressTaken(
            f"cannot listen on {settings.hostname}:{settings.port}: {error.strerror} (--hostname, --port)"
        ) from error
    listener.setblocking(False)
    return listener


def _shard_links(settings: Settings) -> list[ShardLink]:
    """Return the way to rank 0 of each replica. Raises SettingsError for files of TLS that cannot be used."""
    certificate, key, authority = settings.shard_tls_cert, settings.shard_tls_key, settings.shard_tls_ca
    if certificate is None or key is None or authority is None:
        return [ShardLink(path) for path in settings.shard_uds_path]
    tls = ShardTls(Path(certificate), Path(key), Path(authority))
    try:
        tls.check()
    except ShardTlsError as error:
        raise SettingsError(str(error)) from None
    return [ShardLink(address, tls) for address in settings.shard_address]


async def start_backend(service: Service) -> ReplicaSet | RowEngine:
    """Start the engine of the model's task, and wait for one replica. Raises SettingsError or BackendLost."""
    return await (start_rows(service) if service.is_of_rows else start_generation(service))


async def start_rows(service: Service) -> RowEngine:
    """Load the tokenizer of a model of texts, connect to the shards of rows, and wait for one replica.

    Raises SettingsError or BackendLost.
    """
    settings = service.settings
    reader = None
    if is_text_task(settings.task):
        reader = await asyncio.to_thread(TextReader.load, settings.model_dir, settings.validation_workers)
    options = [ShardClientOptions(link) for link in _shard_links(settings)]
    engine = RowEngine(
        options,
        "" if reader is None else reader.digest,
        batch_window_s=service.settings.batch_window_ms / 1000,
        on_change=service.health.look,
    )
    service.attach_rows(engine)
    await engine.start()
    try:
        status = await engine.wait_for_phase(EnginePhase.READY, EnginePhase.STOPPED)
        facts = engine.facts
        if status.phase is EnginePhase.STOPPED or facts is None:
            raise BackendLost(status.error or "the engine stopped")
        prompts = read_prompts(Path(settings.model_dir))
        service.become_ready_for_rows(
            TaskModel(facts, reader, settings.model_names[0], prompts, max_rows=service.max_task_rows)
        )
    except BaseException:
        await engine.stop()
        raise
    log.info("ready", extra={"model_id": settings.model_id, "task": settings.task})
    return engine


async def start_generation(service: Service) -> ReplicaSet:
    """Load the tokenizer, connect to the shards, wait for one replica. Raises SettingsError or BackendLost."""
    settings = service.settings
    tokenizer = await asyncio.to_thread(Tokenizer.load, settings.model_dir, settings.validation_workers)
    config_path = None if settings.tokenizer_config_path is None else Path(settings.tokenizer_config_path)
    chat_templates = await asyncio.to_thread(load_chat_templates, Path(settings.model_dir), config_path)
    warn_of_unread_calls(chat_templates, service.format_flags)
    options = [ShardClientOptions(link) for link in _shard_links(settings)]
    engine = ReplicaSet(
        options,
        partial(scheduler_config, settings),
        tokenizer.digest,
        on_change=service.health.look,
        new_watcher=service.new_watcher,
        adapters=service.adapters.registry,
    )
    service.attach(engine, tokenizer, chat_templates)
    await engine.start()
    try:
        status = await engine.wait_for_phase(EnginePhase.READY, EnginePhase.STOPPED)
        if status.phase is EnginePhase.STOPPED:
            raise BackendLost(status.error or "the engine stopped")
        await load_adapters(service)
        backend = service.become_ready(await service.open_images())
    except BaseException:
        await engine.stop()
        raise
    log.info(
        "ready",
        extra={
            "model_id": settings.model_id,
            "max_input_tokens": backend.limits.max_input_tokens,
            "max_total_tokens": backend.limits.max_total_tokens,
            "num_slots": backend.facts.num_slots,
            "num_blocks": backend.facts.num_blocks,
        },
    )
    return engine


async def load_adapters(service: Service) -> None:
    """Load the adapters of the start. Raises SettingsError for files that the shards refuse, and BackendLost."""
    loads = service.adapters.loads
    assert loads is not None
    try:
        await loads.load_registered()
    except AdapterRefused as error:
        raise SettingsError(f"--lora-adapters: {error}") from None
    except ShardAway as error:
        raise BackendLost(f"the adapters could not be loaded: {error}") from None


def freeze_garbage() -> None:
    """Exempt all objects that live now from garbage collection, because a full collection stops the loop for 70 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def run(settings: Settings) -> None:
    """Serve until a signal, then drain. Raises SettingsError, TokenizerError, CheckpointError or BackendLost."""
    try:
        outlets = open_outlets(settings)
    except CannotListen as error:
        raise AddressTaken(str(error)) from None
    service = Service(settings, outlets.spans, outlets.watcher_of)
    server = make_server(service)
    listener = bind(settings)
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    loop.add_signal_handler(signal.SIGUSR1, _report, service)
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)  # the stacks come even where the loop hangs
    log.info("listening", extra={"hostname": settings.hostname, "port": listener.getsockname()[1]})
    async with LoopWatchdog(on_beat=service.health.look):
        try:
            await _serve(service, server, listener, leave)
        finally:
            await outlets.close()
    log.info("stopped")


def _report(service: Service) -> None:
    """Write queue, slots and blocks to the log."""
    log.info("report", extra=service.report())


async def _serve(service: Service, server: HttpServer, listener: socket.socket, leave: asyncio.Event) -> None:
    http = asyncio.create_task(server.serve(sockets=[listener]))
    backend = asyncio.create_task(_serve_backend(service))
    signalled = asyncio.create_task(leave.wait())
    files = asyncio.create_task(follow_files(service, server))
    try:
        await asyncio.wait({http, backend, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if not signalled.done():
            return  # `finally` raises the error that ended the backend
        leave.clear()
        await _drain(service, leave)
    finally:
        backend.cancel()
        signalled.cancel()
        files.cancel()
        # First the engine ends and gives every call that still waits an error, then the server sends the errors.
        outcome, _ = await asyncio.gather(backend, files, return_exceptions=True)
        server.should_exit = True
        await http
        if isinstance(outcome, Exception):
            raise outcome


async def _serve_backend(service: Service) -> None:
    """Run the engine until cancelled.

    Raises the errors of `start_backend`, and BackendLost when the engine stops by itself.
    """
    engine = await start_backend(service)
    pulse = asyncio.create_task(_comment_while_away(service, engine))
    end = asyncio.create_task(engine.wait_for_phase(EnginePhase.STOPPED))
    tasks: list[asyncio.Task[Any]] = [pulse, end]
    if service.settings.launcher_notes:
        tasks.append(asyncio.create_task(follow_notes(service.metrics, engine)))
    try:
        freeze_garbage()
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise BackendLost(engine.status.error or "the engine stopped" if end.done() else "the launcher has ended")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.stop()
        await service.close_backend()


async def _comment_while_away(service: Service, engine: ReplicaSet | RowEngine) -> None:
    """Send comments to all streams while no shard serves, so that neither clients nor proxies give them up."""
    while True:
        await asyncio.sleep(PULSE_S)
        if engine.back_in_s() is not None:
            service.open_streams.comment_all()


async def _drain(service: Service, hurry: asyncio.Event) -> None:
    """Say that the server leaves, then take no new call, and let running requests end.

    The server takes calls for the shutdown delay, in which load balancers notice. A second signal ends both waits.
    """
    delay_s, timeout_s = service.settings.shutdown_delay, service.settings.drain_timeout
    service.leave()
    if delay_s:
        log.info("not ready any more", extra={"delay_s": delay_s})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), delay_s)
    log.info("draining", extra={"num_running": service.permits.held, "timeout_s": timeout_s})
    service.permits.close()
    waits = {asyncio.create_task(service.permits.wait_idle()), asyncio.create_task(hurry.wait())}
    _, unfinished = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in unfinished:
        task.cancel()
    if service.permits.held:
        log.warning("requests are cut off", extra={"num_running": service.permits.held})
