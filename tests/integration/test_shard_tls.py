"""Router and shards talk over TCP, where each side shows a certificate; a shard that dies comes back on its address."""

import json
import socket
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import trustme
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

from tests.fakes.fault_calls import Answer, Call, ask_all, first_difference
from tests.fakes.processes import free_port, launched
from tests.fakes.reading import metric
from tests.fakes.tiny_models import make_tiny_llama

STORY = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 1500, "ignore_eos": True}}
LIMIT_S = 10.0


def write_files(folder: Path) -> list[str]:
    """Write a certificate for the loopback, its key and its authority, and return the launcher's flags."""
    authority = trustme.CA()
    pair = authority.issue_cert("127.0.0.1")
    pair.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "cert.pem").write_bytes(b"".join(part.bytes() for part in pair.cert_chain_pems))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    files = {"cert": "cert.pem", "key": "key.pem", "ca": "ca.pem"}
    return [word for name, file in files.items() for word in (f"--shard-tls-{name}", str(folder / file))]


@pytest.mark.slow  # some 20 s: starts a shard twice, which imports torch
def test_streams_go_on_over_tcp_when_the_shard_is_killed_and_strangers_get_nowhere(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", max_position_embeddings=2048)
    port = free_port()
    flags = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", str(8 << 20)]
    flags += ["--shard-address", f"127.0.0.1:{port}", *write_files(tmp_path)]
    calls = {
        "greedy": Call("/generate_stream", STORY),
        "seeded": Call(
            "/generate_stream", {**STORY, "parameters": {**STORY["parameters"], "seed": 3, "do_sample": True}}
        ),
    }
    with launched(flags, tmp_path) as server:
        server.wait_ready()
        (router,), (shard,) = server.children("textmill_router"), server.children("textmill_shard")
        assert port in {place.raddr.port for place in router.net_connections("tcp") if place.raddr}
        listening = [place.laddr for place in shard.net_connections("tcp") if place.status == psutil.CONN_LISTEN]
        # gRPC writes the address in IPv6's form.
        assert [(place.ip.removeprefix("::ffff:"), place.port) for place in listening] == [("127.0.0.1", port)]

        undisturbed = ask_all(server.base_url, calls)
        killed: dict[str, Answer] = ask_all(server.base_url, calls, after=20, then=shard.kill)
        for name in calls:
            assert killed[name].status == 200
            assert first_difference(undisturbed[name].meaning, killed[name].meaning, name) is None
        assert metric(server, "textmill_readmitted_requests") >= 1  # the shard was killed before the streams had ended
        assert server.children("textmill_shard")[0].pid != shard.pid

        for stranger in (
            grpc.insecure_channel(f"127.0.0.1:{port}"),
            grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes())),
        ):
            with stranger, pytest.raises(grpc.RpcError) as caught:
                shard_pb2_grpc.ShardStub(stranger).Info(shard_pb2.InfoRequest(), timeout=LIMIT_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with socket.create_connection(("127.0.0.1", port), LIMIT_S):
            answer = httpx.post(f"{server.base_url}/generate", json=STORY, timeout=60, trust_env=False)
        assert answer.json()["generated_text"] == undisturbed["greedy"].events[-1]["generated_text"]
        assert json.dumps(STORY["inputs"])[1:-1] not in server.log_text


@pytest.mark.slow  # starts a shard, which imports torch before it reads the files
def test_files_that_cannot_be_used_end_the_start_with_their_names(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    tls = write_files(tmp_path)
    (tmp_path / "key.pem").write_text("no key")
    with launched(["--model-id", str(model), "--shard-address", f"127.0.0.1:{free_port()}", *tls], tmp_path) as server:
        assert server.wait_exit(60) == 2
        assert "are no certificate, its key and an authority" in server.log_text
        assert "--shard-tls-key" in server.log_text
