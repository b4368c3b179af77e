"""Two shards give the answers of one shard, and each holds about half of the weights."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from textmill_proto.v1 import shard_pb2, shard_pb2_grpc

from tests.fakes.processes import LaunchedServer, launched
from tests.fakes.reading import Answer, generate, metric
from tests.fakes.tiny_models import make_tiny_llama

PROMPTS = ("Hello", "The quick brown fox jumps over the lazy dog. " * 5, "1 2 3", "x" * 40)
KV_BYTES = str(8 * 1024 * 1024)
NUM_NEW_TOKENS = 24
DRY = {"dry_multiplier": 9.0, "dry_allowed_length": 1, "dry_sequence_breakers": ["\n"]}
DIGITS = {"type": "regex", "value": "([0-9]{2}:){4,6}[a-f]{3}"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model whose heads and KV heads divide by two, with layers that weigh more than the embeddings."""
    return make_tiny_llama(
        tmp_path_factory.mktemp("two_ranks"), hidden=128, layers=4, heads=8, kv_heads=4, mlp=384, seed=3
    )


def serve(model: Path, folder: Path, num_shards: int) -> Iterator[LaunchedServer]:
    arguments = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", KV_BYTES]
    arguments += ["--num-shard", str(num_shards), "--shard-uds-path", str(folder / "s"), "--max-restarts", "0"]
    with launched(arguments, folder) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def one_rank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedServer]:
    yield from serve(model, tmp_path_factory.mktemp("one"), num_shards=1)


@pytest.fixture(scope="module")
def two_rank_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two_ranks(model: Path, two_rank_folder: Path) -> Iterator[LaunchedServer]:
    yield from serve(model, two_rank_folder, num_shards=2)


def info(socket: Path) -> shard_pb2.ShardInfo:
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        return shard_pb2_grpc.ShardStub(channel).Info(shard_pb2.InfoRequest(), timeout=20)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "how",
    [{}, {"do_sample": True, "seed": 7}, {"do_sample": True, "seed": 7, "watermark": True, "grammar": DIGITS}, DRY],
    ids=["greedy", "seeded", "grammar", "dry"],
)
def test_two_ranks_give_the_tokens_of_one(
    one_rank: LaunchedServer, two_ranks: LaunchedServer, prompt: str, how: dict[str, object]
) -> None:
    def ask(server: LaunchedServer) -> Answer:
        return generate(server, prompt, max_new_tokens=NUM_NEW_TOKENS, **how)

    alone, together = ask(one_rank), ask(two_ranks)
    assert together.ids == alone.ids
    if "grammar" in how:
        assert re.fullmatch(DIGITS["value"], together.text)
    # The tolerance is for fp32, because the partial sums of the ranks are added in another order.
    assert together.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


@pytest.mark.parametrize("num_beams", [2, 5])
def test_two_ranks_find_by_beams_what_one_finds(
    one_rank: LaunchedServer, two_ranks: LaunchedServer, num_beams: int
) -> None:
    def ask(server: LaunchedServer) -> list[str]:
        parameters = {"num_beams": num_beams, "num_return_sequences": 2, "max_new_tokens": NUM_NEW_TOKENS}
        found = []
        for prompt in PROMPTS:
            body = {"inputs": prompt, "parameters": {**parameters, "return_full_text": False}}
            answer = httpx.post(f"{server.base_url}/", json=body, timeout=60, trust_env=False)
            assert answer.status_code == 200, answer.text
            found += [one["generated_text"] for one in answer.json()]
        return found

    assert ask(two_ranks) == ask(one_rank)
    together = generate(two_ranks, PROMPTS[0], max_new_tokens=NUM_NEW_TOKENS)
    assert together.ids == generate(one_rank, PROMPTS[0], max_new_tokens=NUM_NEW_TOKENS).ids


def test_ranks_that_meet_on_the_loopback_listen_nowhere_else(two_ranks: LaunchedServer) -> None:
    listening = [
        connection.laddr.ip
        for shard in two_ranks.children("textmill_shard")
        for connection in shard.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening, "the ranks meet over TCP"
    assert all(ipaddress.ip_address(address).is_loopback for address in listening), listening


def test_two_ranks_copy_a_prompt_to_its_further_sequences(two_ranks: LaunchedServer) -> None:
    """Of 20 tokens, a further sequence shares a block, copies three places on both ranks, and computes one token."""
    how = {"max_new_tokens": NUM_NEW_TOKENS, "do_sample": True, "details": True}
    prompt = "Some twenty tokens."
    before = metric(two_ranks, "textmill_prompt_tokens_computed")
    body = {"inputs": prompt, "parameters": {**how, "seed": 7, "num_return_sequences": 3}}
    answers = httpx.post(f"{two_ranks.base_url}/generate", json=body, timeout=60, trust_env=False).json()
    assert metric(two_ranks, "textmill_prompt_tokens_computed") - before == 20 + 2
    alone = [generate(two_ranks, prompt, **{**how, "seed": seed}).text for seed in (7, 8, 9)]
    assert [answer["generated_text"] for answer in answers] == alone
    assert len(set(alone)) == 3


def test_each_rank_holds_at_most_60_percent_of_the_weights(
    model: Path, two_ranks: LaunchedServer, two_rank_folder: Path
) -> None:
    whole = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    for rank in range(2):
        facts = info(two_rank_folder / f"s-{rank}")
        assert (facts.rank, facts.world_size) == (rank, 2)
        assert 0 < facts.weight_bytes <= 0.6 * whole


# This test is the last of the file, because it ends the server that all tests share.
def test_death_of_rank_1_is_told_as_rank_1(two_ranks: LaunchedServer, two_rank_folder: Path) -> None:
    (rank_1,) = [child for child in two_ranks.children("textmill_shard") if _value(child.cmdline(), "--rank") == "1"]
    rank_1.kill()
    assert two_ranks.wait_exit() == 137
    assert "shard rank 1 was killed by SIGKILL while serving" in two_ranks.log_text
    assert list(two_rank_folder.glob("s-*")) == []


def _value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]
