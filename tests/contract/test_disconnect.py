"""A client that leaves ends its request, streamed or not, in the queue, in prefill and in decode."""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import WAIT_TIMEOUT_S, RunningRouter

Leave = Callable[[socket.socket], None]
# Without max_new_tokens the answer fills the window, which at 5 ms a token takes longer than any test.
ENDLESS = {"inputs": "hi", "parameters": {}}


@pytest.fixture(scope="module")
def slow_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    options = FakeShardOptions(step_s=0.005, num_slots=2, num_blocks=512)
    with RunningRouter(tmp_path_factory.mktemp("slow"), options, max_total_tokens=4096) as running:
        yield running


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/"])
def test_client_that_leaves_while_decoding_frees_its_slot(slow_router: RunningRouter, route: str) -> None:
    connection = slow_router.send(route, ENDLESS)
    slow_router.wait_until_counts(running=1, waiting=0)
    if route == "/generate_stream":
        assert connection.recv(10)
    connection.close()
    slow_router.wait_until_free()


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
def test_client_that_leaves_while_queued_leaves_the_queue(slow_router: RunningRouter, route: str) -> None:
    keepers = [slow_router.send("/generate", ENDLESS) for _ in range(2)]
    slow_router.wait_until_counts(running=2, waiting=0)
    connection = slow_router.send(route, ENDLESS)
    slow_router.wait_until_counts(running=2, waiting=1)
    connection.close()
    slow_router.wait_until_counts(running=2, waiting=0)
    for keeper in keepers:
        keeper.close()
    slow_router.wait_until_free()


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
def test_client_that_leaves_before_the_first_token_frees_its_slot(slow_router: RunningRouter, route: str) -> None:
    slow_router.shard.pause()
    try:
        connection = slow_router.send(route, ENDLESS)
        slow_router.wait_until_counts(running=1, waiting=0)
        connection.close()
        slow_router.wait_until(lambda: slow_router.service.permits.held == 0, "its permit is back")
    finally:
        slow_router.shard.resume()
    slow_router.wait_until_free()


def test_all_sequences_of_best_of_end_with_the_client(slow_router: RunningRouter) -> None:
    connection = slow_router.send("/generate", {"inputs": "hi", "parameters": {"best_of": 2, "do_sample": True}})
    slow_router.wait_until_counts(running=2, waiting=0)
    connection.close()
    slow_router.wait_until_free()


def test_client_that_sends_half_a_body_and_leaves_costs_nothing(tmp_path: Path) -> None:
    with RunningRouter(tmp_path) as router, router.client() as client:
        connection = socket.create_connection(("127.0.0.1", router.port), WAIT_TIMEOUT_S)
        connection.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        router.wait_until(lambda: router.service.metrics.num_requests == 1, "the router reads the body")
        connection.close()
        left = 'textmill_http_requests{route="/generate",method="POST",status="499"} 1'
        router.wait_until(lambda: left in router.service.expose_metrics().decode(), "the call has ended")
        router.wait_until_free()
        text = client.get("/metrics").text
        assert "\ntgi_request_count 1\n" in text
        assert '\ntgi_request_failure{err="dropped"} 1\n' in text
        assert "\ntextmill_output_tokens 0\n" in text


def test_dropped_requests_are_counted(tmp_path: Path) -> None:
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.005)) as router, router.client() as client:
        connection = router.send("/generate", ENDLESS)
        router.wait_until_counts(running=1, waiting=0)
        connection.close()
        router.wait_until_free()
        text = client.get("/metrics").text
        assert 'tgi_request_failure{err="dropped"} 1\n' in text
        assert 'textmill_http_requests{route="/generate",method="POST",status="499"} 1\n' in text


def reset(connection: socket.socket) -> None:
    """End a connection with a reset, as a client that crashes does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/v1/completions"])
def test_blocks_of_a_client_that_left_are_free_two_steps_later(tmp_path: Path, route: str, leave: Leave) -> None:
    body = {"prompt": "hi", "max_tokens": 4000, "stream": True} if route.startswith("/v1") else ENDLESS
    with RunningRouter(tmp_path, FakeShardOptions(step_s=0.1), max_total_tokens=4096) as router:
        connection = router.send(route, body)
        router.wait_until(lambda: router.shard.num_sampled >= 3, "tokens come")
        before = router.shard.num_steps
        leave(connection)
        router.wait_until_free()
        # The step under way when the client leaves, and two more until the plan that drops the slot is applied.
        assert router.shard.num_steps - before <= 3


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
def test_client_that_leaves_in_its_prefill_costs_no_token(tmp_path: Path, route: str, leave: Leave) -> None:
    with RunningRouter(tmp_path) as router:
        router.shard.pause()
        connection = router.send(route, ENDLESS)
        router.wait_until_counts(running=1, waiting=0)
        router.wait_until(lambda: bool(router.shard.history[-1].seats), "the shard has the request")
        leave(connection)
        router.wait_until_counts(running=0, waiting=0)
        router.wait_until(lambda: not router.shard.history[-1].seats, "the shard has dropped the request")
        router.shard.resume()
        router.wait_until_free()
        assert router.shard.num_sampled <= 1


def stalling(router: RunningRouter, route: str, num_tokens: int) -> socket.socket:
    """Ask for a stream with a small window, and return the connection, from which nothing has been read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    connection.settimeout(WAIT_TIMEOUT_S)
    connection.connect(("127.0.0.1", router.port))
    if route == "/v1/completions":
        body: dict[str, object] = {"prompt": "hi", "max_tokens": num_tokens, "stream": True}
    else:
        body = {"inputs": "hi", "parameters": {"max_new_tokens": num_tokens, "details": True}}
    data = json.dumps(body).encode()
    head = b"POST %b HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    connection.sendall(head % (route.encode(), len(data)) + data)
    return connection


def wait_until_rests(router: RunningRouter) -> int:
    """Wait until no further token comes, and return the number of tokens."""
    seen = [-1]

    def is_still() -> bool:
        engine = router.service.open_backend().engine
        [replica] = engine.replicas
        scheduler = replica.scheduler
        assert scheduler is not None
        before, seen[0] = seen[0], router.stats().num_output_tokens_total
        return bool(router.stats().num_running) and scheduler.num_unpaused == 0 and before == seen[0]

    router.wait_until(is_still, "the requests of clients that do not read rest")
    return seen[0]


def test_reader_that_pauses_misses_nothing(tmp_path: Path) -> None:
    """The buffers fill and writing pauses, then the request rests. Later all tokens follow in order."""
    num_tokens = 6000
    with RunningRouter(tmp_path, max_total_tokens=8192) as router:
        connection = stalling(router, "/generate_stream", num_tokens)
        assert wait_until_rests(router) < num_tokens
        data = b""
        while part := connection.recv(1 << 20):
            data += part
        connection.close()
    events = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]
    assert [event["index"] for event in events] == list(range(1, num_tokens + 1))
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)


@pytest.mark.parametrize("route", ["/generate_stream", "/v1/completions"])
def test_clients_that_never_read_cost_a_bounded_number_of_tokens_and_are_cut_off(tmp_path: Path, route: str) -> None:
    num_clients = 2
    options = FakeShardOptions(num_slots=4, num_blocks=4096)
    with RunningRouter(tmp_path, options, max_total_tokens=16_000, stall_timeout=5.0) as router:
        stalled = [stalling(router, route, 15_000) for _ in range(num_clients)]
        num_tokens = wait_until_rests(router)
        # The buffers of the connection hold some 1,500 events of 100 bytes; 256 events wait, and 64 places are granted.
        assert num_tokens < num_clients * 3000
        # A client beside them is served while they rest.
        with router.client() as client:
            answer = client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 200}})
            assert answer.status_code == 200
        router.wait_until_free()
        for connection in stalled:
            connection.close()
        with router.client() as client:
            assert f'tgi_request_failure{{err="dropped"}} {num_clients}\n' in client.get("/metrics").text
