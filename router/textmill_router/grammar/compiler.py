"""Tells before a request is admitted whether its grammar can be used. Processes that can be killed do the work."""

import asyncio
import contextlib
import hashlib
import json
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from textmill_router.errors import Overloaded, ShuttingDown, ValidationFailed
from textmill_router.grammar.worker import WorkerSetup
from textmill_router.request import Grammar
from textmill_router.worker_process import WorkerProcess

MAX_GRAMMAR_BYTES = 128 * 1024
COMPILE_TIMEOUT_S = 5.0
MAX_WORKERS = 2
MAX_WAITING = 64  # grammars in work or before it; more get 429
MAX_KEPT_VERDICTS = 1024
WORKER_MEMORY_BYTES = 4 << 30  # address space, most of it never touched
START_TIMEOUT_S = 60.0


class _WorkerDied(Exception):
    """The worker process ended, or was killed because a grammar took too long."""


class _CannotStart(Exception):
    """The worker cannot read the tokenizer; the text of the exception says why."""


class _Worker(WorkerProcess):
    """A process that has read the tokenizer and answers one question at a time. Threads of the pool ask."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "textmill_router.grammar.worker"])

    def ask(self, line: bytes) -> str | None:
        """Return the reason of a refusal, or None where the grammar compiles. The call blocks.

        Raises _WorkerDied, at once after `kill`.
        """
        with contextlib.suppress(BrokenPipeError):  # dead: the answer says so
            self.stdin.write(line + b"\n")
            self.stdin.flush()
        answer = self.stdout.readline()
        if not answer.endswith(b"\n"):
            raise _WorkerDied
        reason: str | None = json.loads(answer)["reason"]
        return reason


@dataclass(slots=True)
class _Pool:
    """The idle workers, and the bound on all workers."""

    idle: list[_Worker] = field(default_factory=list)
    has_room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_WORKERS))
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(MAX_WORKERS, "grammar"))


class GrammarCompiler:
    """Asks workers about grammars and keeps their verdicts by the digest of each grammar's text, for each salt apart.

    The backend has one compiler for its whole life, and all methods run in the event loop.
    """

    def __init__(
        self,
        *,
        tokenizer_file: str,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        refusal: str | None = None,
        timeout_s: float = COMPILE_TIMEOUT_S,
        max_bytes: int = MAX_GRAMMAR_BYTES,
    ) -> None:
        """`refusal`: why this server takes no grammar at all; None = it does."""
        self._setup = WorkerSetup(
            tokenizer_file=tokenizer_file,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            cpu_s=max(1, round(timeout_s)),
            memory_bytes=WORKER_MEMORY_BYTES,
        )
        self._refusal = refusal
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._pool = _Pool()
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._running: dict[bytes, asyncio.Task[str | None]] = {}
        self._is_closed = False

    async def check(self, grammar: Grammar, *, field: str = "grammar", salt: bytes = b"") -> None:
        """Return when the grammar compiles. `field` is the part of the body that the grammar comes from.

        `salt`, of at most 64 bytes, is that of the caller, so that the time tells nothing of the grammars of others.

        Raises ValidationFailed with the field and the reason, Overloaded when too many wait.
        """
        if self._refusal is not None:
            raise ValidationFailed(f"`{field}` cannot be used: {self._refusal}", field=field)
        if self._is_closed:
            raise ShuttingDown("the server is stopping", retry_after_s=1)
        try:
            text = grammar.text.encode()
        except UnicodeEncodeError as error:
            message = f"`{field}` must be text, found half a surrogate pair at character {error.start}"
            raise ValidationFailed(message, field=field) from None
        if len(text) > self._max_bytes:
            message = f"`{field}` must have at most {self._max_bytes} bytes, found {len(text)}; make it smaller"
            raise ValidationFailed(message, field=field)
        key = hashlib.blake2b(text, digest_size=16, key=salt).digest()
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
            reason = self._verdicts[key]
        else:
            # A client that leaves does not stop the work: it may not be the only one that waits for it.
            task = self._task_of(key, grammar)
            try:
                reason = await asyncio.shield(task)
            except asyncio.CancelledError:
                if not (self._is_closed and task.cancelled()):
                    raise
                raise ShuttingDown("the server is stopping", retry_after_s=1) from None
        if reason is not None:
            raise ValidationFailed(f"`{field}` does not compile: {reason}", field=field)

    async def close(self) -> None:
        """End the workers. Calls that wait for a verdict are told that the server stops."""
        self._is_closed = True
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        while self._pool.idle:
            self._pool.idle.pop().reap()
        self._pool.threads.shutdown(wait=False)

    def _task_of(self, key: bytes, grammar: Grammar) -> "asyncio.Task[str | None]":
        task = self._running.get(key)
        if task is None:
            if len(self._running) >= MAX_WAITING:
                raise Overloaded("Model is overloaded: too many grammars are being compiled", retry_after_s=1)
            task = self._running[key] = asyncio.create_task(self._compile(key, grammar))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return task

    async def _compile(self, key: bytes, grammar: Grammar) -> str | None:
        async with self._pool.has_room:
            reason, is_final = await self._ask_worker(grammar)
        if is_final:
            self._verdicts[key] = reason
            if len(self._verdicts) > MAX_KEPT_VERDICTS:
                self._verdicts.popitem(last=False)
        return reason

    async def _ask_worker(self, grammar: Grammar) -> tuple[str | None, bool]:
        """Return the reason of a refusal, and whether another try would end in the same way."""
        try:
            worker = self._pool.idle.pop() if self._pool.idle else await self._start()
        except _CannotStart as error:
            return str(error), True
        line = json.dumps({"text": grammar.text}).encode()
        try:
            reason = await self._ask(worker, line, self._timeout_s)
        except (_WorkerDied, TimeoutError):
            return f"it takes more than {self._timeout_s:g} s or too much memory; make it simpler", False
        self._pool.idle.append(worker)
        return reason, True

    async def _start(self) -> _Worker:
        worker = _Worker()
        try:
            reason = await self._ask(worker, json.dumps(asdict(self._setup)).encode(), START_TIMEOUT_S)
        except (_WorkerDied, TimeoutError):
            raise _CannotStart("the compiler does not start; the log may say why") from None
        if reason is not None:
            worker.reap()
            raise _CannotStart(reason)
        return worker

    async def _ask(self, worker: _Worker, line: bytes, timeout_s: float) -> str | None:
        """Ask in a thread. A worker that does not answer in time, or whose answer nobody awaits any more, is killed."""
        answer = asyncio.get_running_loop().run_in_executor(self._pool.threads, worker.ask, line)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(answer)
        except BaseException:
            worker.kill()  # so the thread comes back
            with contextlib.suppress(_WorkerDied):
                await answer
            worker.reap()
            raise
