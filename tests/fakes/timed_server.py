"""A server with known timing, in three dialects: it notes when each request came and when each event left."""

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

LIMIT_S = 10.0
TOKENS_PER_WORD, FURTHER_TOKENS = 2, 5  # how this server counts the tokens of a prompt


@dataclass(slots=True)
class Served:
    """One request as the server saw it. Times are on the clock of `time.perf_counter`."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    came_s: float
    event_times_s: list[float] = field(default_factory=list)  # just before each event with output was written

    @property
    def prompt(self) -> str:
        """The text of the prompt, wherever the dialect has it."""
        messages = self.body.get("messages")
        found = messages[0]["content"] if messages else self.body.get("prompt") or self.body.get("inputs")
        assert isinstance(found, str)
        return found

    @property
    def num_prompt_tokens(self) -> int:
        """The tokens of the prompt, as the answer counts them."""
        return TOKENS_PER_WORD * len(self.prompt.split()) + FURTHER_TOKENS


class TimedServer:
    """A context manager. The first event comes after `first_s`, each further one after `gap_s`.

    `faults` maps the number of a request, from 0, to what becomes of its answer: `busy` (429), `cut` (the stream ends
    after one token), `error` (an event of an error after one token), `empty` (no output).
    """

    def __init__(self, *, first_s: float = 0.0, gap_s: float = 0.0, faults: Mapping[int, str] = {}) -> None:
        self.first_s, self.gap_s, self.faults = first_s, gap_s, dict(faults)
        self.served: list[Served] = []
        self.most_at_once = 0
        self._at_once = 0
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = self._started.result(LIMIT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self._started.set_result(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await self._leave.wait()
        server.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *fields = head.decode().split("\r\n")[:-2]
                headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in fields)}
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                path = line.split(" ")[1]
                if path == "/v1/models":
                    self._whole(writer, 200, {"data": [{"id": "timed/model"}]})
                elif not await self._answer(Served(path, headers, json.loads(data), time.perf_counter()), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, call: Served, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, and return whether its connection can be used again."""
        number = len(self.served)
        self.served.append(call)
        fault = self.faults.get(number)
        if fault == "busy":
            self._whole(writer, 429, {"error": {"message": "too busy"}})
            return True
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            return await self._stream(call, writer, fault)
        finally:
            self._at_once -= 1

    async def _stream(self, call: Served, writer: asyncio.StreamWriter, fault: str | None) -> bool:
        is_tgi, is_chat = call.path == "/generate_stream", call.path == "/v1/chat/completions"
        count = call.body["parameters"]["max_new_tokens"] if is_tgi else call.body["max_tokens"]
        if is_chat:
            self._event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for index in range(0 if fault == "empty" else count):
            await asyncio.sleep(self.gap_s if index else self.first_s)
            if index == 1 and fault == "cut":
                return False
            if index == 1 and fault == "error":
                self._event(writer, {"error": "out of luck", "error_type": "generation"})
                self._end(writer)
                return True
            call.event_times_s.append(time.perf_counter())
            if is_tgi:
                details = {"generated_tokens": count, "input_length": call.num_prompt_tokens}
                last = {"generated_text": "x" * count, "details": details} if index == count - 1 else {}
                token = {"id": 1, "text": "x", "logprob": 0.0, "special": False}
                self._event(writer, {"index": index + 1, "token": token, "generated_text": None, **last})
            else:
                part = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
                self._event(writer, {"choices": [{"index": 0, **part}]})
        if not is_tgi:
            self._event(writer, {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "length"}]})
            usage = {
                "prompt_tokens": call.num_prompt_tokens,
                "completion_tokens": 0 if fault == "empty" else count,
                "prompt_tokens_details": {"cached_tokens": 3},
            }
            self._event(writer, {"choices": [], "usage": usage})
            self._chunk(writer, b"data: [DONE]\n\n")
        self._end(writer)
        return True

    def _event(self, writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
        self._chunk(writer, b"data: " + json.dumps(content).encode() + b"\n\n")

    def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _end(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"0\r\n\r\n")

    def _whole(self, writer: asyncio.StreamWriter, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(data), data)
        )
