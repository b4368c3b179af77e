"""Hostile clients of one server: each attack is drawn from a seed, and says when the server's answer was not right."""

import asyncio
import contextlib
import json
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

from tests.fakes.hostile_calls import HEAD, KEY, ROWS, call, generate

ANSWER_LIMIT_S = 60.0  # on a machine that is busy with other work
NUM_FLOOD = 40  # connections at once
MAX_MUTATIONS = 6  # of one call
STREAM = call(
    json.dumps({"inputs": "hi", "parameters": {"max_new_tokens": 60, "ignore_eos": True}}).encode(),
    HEAD.replace(b"/generate", b"/generate_stream"),
)
WHOLE = call(json.dumps({"inputs": "hi", "parameters": {"max_new_tokens": 4}}).encode())
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 seconds


class Attackers:
    """Clients that attack a server without a pause longer than `rest_s`. `counts` counts the attacks by kind.

    `faults` holds a sentence for each answer that another one should have been.
    """

    def __init__(self, port: int, seed: int, rest_s: float) -> None:
        self._port = port
        self._rng = Random(seed)
        self._rest_s = rest_s
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._kinds: list[tuple[str, int, Callable[[], Awaitable[None]]]] = [
            ("a call of the table", 12, self._send_row),
            ("a call with changed bytes", 12, self._send_changed),
            ("a flood of connections", 1, self._flood),
            ("a call in single bytes", 2, self._send_slowly),
            ("a reset in the call", 3, self._reset_call),
            ("a reset in the answer", 3, self._reset_answer),
            ("a half-closed connection", 3, self._half_close),
            ("a reader that stops", 2, self._stop_reading),
            ("a grammar never seen before", 3, self.send_grammar),
        ]

    async def run(self, seconds: float, num_clients: int) -> None:
        """Attack for so long, with so many clients."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(self._go_on() for _ in range(num_clients)))

    async def send_all_rows(self) -> None:
        """Send each call of the table once."""
        for row in ROWS:
            await self._check_row(*row)

    async def send_grammar(self) -> None:
        """Send a regular expression that nobody has sent before, which need not be a good one."""
        parts = self._rng.choices(["a{1,9}", "(b|c)*", "[^d]+", "x?", "(", ")", "[", "\\d{3}", "é", "(?i)"], k=6)
        value = f"{self._rng.getrandbits(64):x}{''.join(parts)}"
        async with self._connection() as (reader, writer):
            writer.write(generate(grammar={"type": "regex", "value": value}))
            found = await _first_answer(reader)
        if found not in ((200, ""), (422, "validation")):
            self.faults.append(f"the grammar {value!r}: {found}")

    async def _go_on(self) -> None:
        kinds, weights, acts = zip(*self._kinds, strict=True)
        while True:
            number = self._rng.choices(range(len(kinds)), weights)[0]
            await acts[number]()
            self.counts[kinds[number]] += 1
            await asyncio.sleep(self._rng.uniform(0, self._rest_s))

    @contextlib.asynccontextmanager
    async def _connection(self, *, reset: bool = False):  # type: ignore[no-untyped-def]
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            yield reader, writer
        finally:
            if reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _send_row(self) -> None:
        await self._check_row(*self._rng.choice(ROWS))

    async def _check_row(self, name: str, data: bytes, status: int, error_type: str) -> None:
        async with self._connection() as (reader, writer):
            with contextlib.suppress(ConnectionError):  # of a server that has answered and reads no further
                writer.write(data)
                await writer.drain()
            found = await _first_answer(reader)
        if found != (status, error_type):
            self.faults.append(f"{name}: {found}, wanted {(status, error_type)}")

    async def _send_changed(self) -> None:
        """Change, cut or repeat some bytes of a call. The server may answer anything, and must end the connection."""
        data = bytearray(self._rng.choice([row[1] for row in ROWS if len(row[1]) < 4000] + [WHOLE, STREAM]))
        for _ in range(self._rng.randint(1, MAX_MUTATIONS)):
            place = self._rng.randrange(len(data))
            match self._rng.randrange(4):
                case 0:
                    data[place] = self._rng.randrange(256)
                case 1:
                    del data[place : place + self._rng.randint(1, 9)]
                case 2:
                    data[place:place] = data[place : place + self._rng.randint(1, 60)]
                case 3:
                    data[place:place] = self._rng.choice([b"\r\n", b"\0", b"{", b"\xff", b": ", b"9" * 30])
            if not data:
                return
        async with self._connection() as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(bytes(data))
                await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()
            try:
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    await reader.read()
            except ConnectionError:
                return
            except TimeoutError:
                self.faults.append(f"no end after {ANSWER_LIMIT_S} s: {bytes(data[:200])!r}")

    async def _flood(self) -> None:
        async def visit() -> None:
            async with self._connection(reset=self._rng.random() < 0.5) as (_, writer):
                writer.write(self._rng.choice([b"", b"G", HEAD, STREAM[:-5]]))
                await asyncio.sleep(self._rng.uniform(0, 0.3))

        with contextlib.suppress(OSError):
            await asyncio.gather(*(visit() for _ in range(NUM_FLOOD)))

    async def _send_slowly(self) -> None:
        async with self._connection() as (reader, writer):
            with contextlib.suppress(ConnectionError):
                for byte in WHOLE:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.004)
            status, _ = await _first_answer(reader)
        if status not in (200, 408):
            self.faults.append(f"a call in single bytes: {status}")

    async def _reset_call(self) -> None:
        async with self._connection(reset=True) as (_, writer):
            writer.write(STREAM[: self._rng.randrange(1, len(STREAM))])
            await writer.drain()
            await asyncio.sleep(self._rng.uniform(0, 0.02))

    async def _reset_answer(self) -> None:
        async with self._connection(reset=True) as (reader, writer):
            writer.write(STREAM)
            await writer.drain()
            with contextlib.suppress(ConnectionError):
                for _ in range(self._rng.randint(0, 5)):
                    await reader.readline()

    async def _half_close(self) -> None:
        async with self._connection() as (reader, writer):
            writer.write(WHOLE)
            writer.write_eof()
            found = await _first_answer(reader)
        if found != (200, ""):
            self.faults.append(f"a half-closed connection: {found}")

    async def _stop_reading(self) -> None:
        async with self._connection(reset=self._rng.random() < 0.5) as (_, writer):
            writer.transport.pause_reading()
            writer.write(STREAM.replace(KEY, KEY + b"connection: close\r\n"))
            await writer.drain()
            await asyncio.sleep(self._rng.uniform(0.1, 4.0))


async def _first_answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Return status and `error_type` of the first answer, or 0 and the reason why there is none."""
    try:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            while head.split()[1].startswith(b"1"):  # the server asks whether a half-closed client is there
                head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            body = await reader.readexactly(int(fields[b"content-length"]))
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
        return 0, repr(error)
    said = json.loads(body)
    return int(head.split()[1]), said.get("error_type", "") if isinstance(said, dict) else ""
