"""The request of a client that does not read rests on a real shard, disturbs nobody, and goes on where it was."""

import json
import socket
from pathlib import Path

import httpx

from tests.fakes.processes import STOP_LIMIT_S, LaunchedServer, free_port, launched, wait_until
from tests.fakes.reading import metric
from tests.fakes.tiny_models import make_tiny_llama

NUM_TOKENS = 4000  # of which the buffers of the connection hold a part
NUM_LOOKS = 20
PARAMETERS = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "ignore_eos": True}
BODY = {"inputs": "Hello", "parameters": PARAMETERS}


def ask_with_a_small_window(port: int) -> socket.socket:
    data = json.dumps(BODY).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(STOP_LIMIT_S)
    connection.connect(("127.0.0.1", port))
    head = b"POST /generate_stream HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    connection.sendall(head % len(data) + data)
    return connection


def wait_until_rests(server: LaunchedServer) -> float:
    """Wait until many looks in a row find the same number of tokens, and return the number."""
    seen: list[float] = []

    def is_still() -> bool:
        seen.append(metric(server, "textmill_output_tokens"))
        return len(seen) > NUM_LOOKS and len(set(seen[-NUM_LOOKS:])) == 1

    wait_until(is_still, STOP_LIMIT_S, "no further token comes")
    return seen[-1]


def test_request_of_a_slow_reader_rests_and_goes_on(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", max_position_embeddings=8192)
    arguments = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", str(16 << 20)]
    arguments += ["--max-batch-prefill-tokens", "512"]  # so that the largest step of 8,192 tokens needs no memory
    port = free_port()
    with launched(arguments, tmp_path, port=port) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.base_url, timeout=STOP_LIMIT_S, trust_env=False) as client:
            expected = client.post("/generate", json=BODY).json()["generated_text"]
            connection = ask_with_a_small_window(port)
            with connection:
                num_tokens = wait_until_rests(server)
                assert metric(server, "textmill_starvations") > 0
                assert NUM_TOKENS < num_tokens < 2 * NUM_TOKENS
                short = {"inputs": "x", "parameters": {"max_new_tokens": 20, "ignore_eos": True}}
                assert client.post("/generate", json=short).status_code == 200
                assert client.get("/health/ready").json()["state"] == "ready"
                assert metric(server, "textmill_output_tokens") == num_tokens + 20, "the request still rests"
                received = b""
                while part := connection.recv(1 << 20):
                    received += part
    events = [json.loads(line[5:]) for line in received.split(b"\n") if line.startswith(b"data:")]
    assert len(events) == NUM_TOKENS
    assert events[-1]["generated_text"] == expected
