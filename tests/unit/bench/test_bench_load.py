"""The load generator with a scripted server: the tokens and times that it counts."""

import asyncio
import json
import random

import numpy as np
import pytest

from bench.dialects import Dialect, GenerationWish, OpenAiDialect, TgiDialect
from bench.http_stream import StreamRecord, stream_once
from bench.prompts import PromptMaker
from bench.summary import percentile, summarise
from bench.traffic import closed_loop, open_loop
from tests.fakes.byte_tokenizer import write_byte_tokenizer

TGI_EVENTS = [
    b'data: {"index":1,"token":{"id":5,"text":" a","logprob":-0.1,"special":false},"generated_text":null,'
    b'"details":null}\n\n',
    b'data: {"index":2,"token":{"id":6,"text":" b","logprob":-0.1,"special":false},"generated_text":" a b",'
    b'"details":{"finish_reason":"length","generated_tokens":2,"seed":null,"input_length":9}}\n\n',
]
OPENAI_EVENTS = [
    b'data: {"choices":[{"index":0,"text":" a","finish_reason":null}]}\r\n\r\n',
    b'data: {"choices":[{"index":0,"text":" b c","finish_reason":null}]}\r\n\r\n',
    b'data: {"choices":[{"index":0,"text":"","finish_reason":"length"}]}\r\n\r\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\r\n\r\n',
    b"data: [DONE]\r\n\r\n",
]


class ScriptedServer:
    """A server that answers each POST with the given chunks. `most_at_once` is the largest number of open requests."""

    def __init__(self, chunks: list[bytes], status: str = "200 OK") -> None:
        self.bodies: list[dict] = []
        self.most_at_once = 0
        self._open = 0
        self._chunks = chunks
        self._status = status

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        writer.write(f"HTTP/1.1 {self._status}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for chunk in self._chunks:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        self._open -= 1
        writer.close()


def ask(server: ScriptedServer, dialect: Dialect) -> StreamRecord:
    async def run() -> StreamRecord:
        async with server as url:
            return await stream_once(url, dialect, GenerationWish("hello", 7, ignore_eos=True))

    return asyncio.run(run())


def record(times: list[float], *, due_s: float = 0.0, error: str | None = None) -> StreamRecord:
    return StreamRecord(
        due_s=due_s,
        sent_s=due_s,
        token_times_s=tuple(times),
        done_s=times[-1] if times else due_s,
        status=200,
        num_prompt_tokens=10,
        num_output_tokens=len(times),
        text="",
        error=error,
    )


def test_tgi_stream_counts_one_token_per_event():
    server = ScriptedServer(TGI_EVENTS)
    found = ask(server, TgiDialect())
    assert found.error is None
    assert (len(found.token_times_s), found.num_output_tokens, found.num_prompt_tokens) == (2, 2, 9)
    assert found.text == " a b"
    assert server.bodies == [
        {
            "inputs": "hello",
            "parameters": {"max_new_tokens": 7, "do_sample": False, "details": True, "ignore_eos": True},
        }
    ]


def test_openai_stream_takes_the_servers_count_of_tokens():
    found = ask(ScriptedServer(OPENAI_EVENTS), OpenAiDialect("m"))
    assert found.error is None
    assert (len(found.token_times_s), found.num_output_tokens, found.num_prompt_tokens) == (2, 3, 9)
    assert found.text == " a b c"


@pytest.mark.parametrize("size", [1, 7, 50])
def test_events_may_be_cut_anywhere(size):
    whole = b"".join(TGI_EVENTS)
    found = ask(ScriptedServer([whole[start : start + size] for start in range(0, len(whole), size)]), TgiDialect())
    assert (found.error, found.num_output_tokens) == (None, 2)


@pytest.mark.parametrize(
    ("chunks", "status", "words"),
    [
        ([b'{"error":"too many","error_type":"overloaded"}'], "429 Too Many Requests", "too many"),
        ([TGI_EVENTS[0], b'data: {"error":"broken","error_type":"generation"}\n\n'], "200 OK", "broken"),
        ([TGI_EVENTS[0]], "200 OK", "ended early"),
    ],
)
def test_failures_are_told_in_the_record(chunks, status, words):
    found = ask(ScriptedServer(chunks, status), TgiDialect())
    assert found.error is not None
    assert words in found.error


def test_a_server_that_is_not_there_is_a_failed_request():
    async def run() -> StreamRecord:
        async with ScriptedServer([]) as url:
            pass
        return await stream_once(url, TgiDialect(), GenerationWish("x", 1))

    assert asyncio.run(run()).status == 0


def test_closed_loop_keeps_so_many_in_flight():
    server = ScriptedServer(TGI_EVENTS)

    async def run() -> list[StreamRecord]:
        async with server as url:
            return await closed_loop(url, TgiDialect(), [GenerationWish(str(i), 2) for i in range(12)], concurrency=3)

    assert len(asyncio.run(run())) == 12
    assert server.most_at_once <= 3
    assert sorted(int(body["inputs"]) for body in server.bodies) == list(range(12))


def test_open_loop_sends_at_random_times_of_the_asked_rate():
    async def run() -> list[StreamRecord]:
        async with ScriptedServer(TGI_EVENTS) as url:
            return await open_loop(url, TgiDialect(), [GenerationWish("x", 2)] * 50, rate_per_s=500, seed=3)

    records = asyncio.run(run())
    gaps = np.diff(sorted(entry.due_s for entry in records))
    expected = random.Random(3)
    np.testing.assert_allclose(gaps, [expected.expovariate(500) for _ in gaps], atol=1e-9)
    assert all(entry.sent_s >= entry.due_s for entry in records)


def test_percentiles_are_those_of_numpy():
    values = sorted(random.Random(1).random() for _ in range(37))
    for percent in (0, 50, 90, 99, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_summary_of_streams_checked_by_eye():
    figures = summarise([record([1.0, 1.5, 2.5]), record([3.0], due_s=2.0), record([], error="429")])
    assert (figures["num_requests"], figures["num_failed"]) == (3, 1)
    assert figures["duration_s"] == 3.0
    assert figures["output_tokens_per_s"] == pytest.approx(4 / 3, abs=0.01)
    assert figures["ttft_ms"]["p50"] == 1000.0
    assert figures["itl_ms"]["max"] == 1000.0
    assert figures["tpot_ms"]["mean"] == 750.0
    assert figures["e2e_ms"]["max"] == 2500.0


def test_summary_without_success_has_no_figures():
    figures = summarise([record([], error="no")])
    assert figures["num_failed"] == 1
    assert "ttft_ms" not in figures


def test_prompts_have_the_asked_length_and_share_only_the_prefix(tmp_path):
    maker = PromptMaker(write_byte_tokenizer(tmp_path), seed=1)
    first, second = maker.texts(2, 20, num_shared_tokens=10)
    assert maker.count(first) == maker.count(second) == 30
    assert first[:9] == second[:9]  # one of the ten is the special token at the start
    assert first != second
    assert PromptMaker(tmp_path, seed=1).texts(2, 20, num_shared_tokens=10) == [first, second]
    assert PromptMaker(tmp_path, seed=2).text(30) != first
