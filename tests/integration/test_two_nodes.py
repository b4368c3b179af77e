"""One model on two machines, which are two network namespaces of this one: the same tokens, and every loss."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.fakes.network_namespaces import FakeMachine, cut, listening_addresses, two_machines
from tests.fakes.processes import LaunchedServer, launched, start_launcher, wait_until
from tests.fakes.reading import generate
from tests.fakes.tiny_models import make_tiny_llama

KV_BYTES = str(8 * 1024 * 1024)
NODE_PORT = 29_517
NODE_PORT_OF_CUT_PAIR = 29_518  # the other pair may still hold its own
PROMPTS = ("Hello", "The quick brown fox jumps over the lazy dog. " * 5)
WAYS = {"greedy": {}, "seeded": {"do_sample": True, "seed": 7}}
NODE_LOST, NO_SUCH_MODEL = 19, 11
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[FakeMachine, FakeMachine]]:
    with two_machines() as pair:
        yield pair


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("two_nodes"), hidden=128, layers=4, heads=8, kv_heads=4, seed=3)


def arguments(
    model: Path, node: int, machines: tuple[FakeMachine, FakeMachine], timeout_s: float = 60, port: int = NODE_PORT
) -> list[str]:
    flags = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", KV_BYTES, "--num-shard", "1"]
    flags += ["--num-nodes", "2", "--node-rank", str(node), "--node-timeout", str(timeout_s)]
    return [*flags, "--master-addr", machines[0].address, "--master-port", str(port)]


@dataclass(slots=True)
class Pair:
    """Two launchers that serve one model."""

    machines: tuple[FakeMachine, FakeMachine]
    node_0: LaunchedServer
    node_1: LaunchedServer


def start_node_1(model: Path, machines: tuple[FakeMachine, FakeMachine], folder: Path) -> LaunchedServer:
    return start_launcher(arguments(model, 1, machines), folder, within=machines[1].within)


@pytest.fixture(scope="module")
def pair(
    model: Path, machines: tuple[FakeMachine, FakeMachine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("nodes")
    with launched(
        arguments(model, 0, machines), folder, within=machines[0].within, host=machines[0].seen_from_test
    ) as node_0:
        both = Pair(machines, node_0, start_node_1(model, machines, folder))
        try:
            node_0.wait_ready()
            yield both
        finally:
            if both.node_1.process.poll() is None:
                both.node_1.process.kill()
                both.node_1.process.wait()


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedServer]:
    flags = ["--model-id", str(model), "--dtype", "float32", "--kv-cache-bytes", KV_BYTES, "--num-shard", "1"]
    with launched(flags, tmp_path_factory.mktemp("alone")) as server:
        yield server.wait_ready()


def rank_of(node: LaunchedServer) -> psutil.Process:
    [shard] = node.children("textmill_shard")
    return shard


def assert_same_tokens(pair: Pair, alone: LaunchedServer, way: str) -> None:
    for prompt in PROMPTS:
        expected = generate(alone, prompt, max_new_tokens=24, **WAYS[way])
        found = generate(pair.node_0, prompt, max_new_tokens=24, **WAYS[way])
        assert found.ids == expected.ids
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)  # the sums have another order


@pytest.mark.parametrize("way", WAYS)
def test_two_nodes_give_the_tokens_of_one(pair: Pair, alone: LaunchedServer, way: str) -> None:
    assert_same_tokens(pair, alone, way)


def test_one_rank_and_only_node_0_with_a_router(pair: Pair) -> None:
    assert [len(node.children("textmill_shard")) for node in (pair.node_0, pair.node_1)] == [1, 1]
    assert [len(node.children("textmill_router")) for node in (pair.node_0, pair.node_1)] == [1, 0]
    command = rank_of(pair.node_1).cmdline()
    told = {flag: command[command.index(flag) + 1] for flag in ("--rank", "--world-size", "--local-rank")}
    assert told == {"--rank": "1", "--world-size": "2", "--local-rank": "0"}


def test_ranks_and_launchers_listen_on_the_interface_between_the_nodes_alone(pair: Pair) -> None:
    for node, machine in zip((pair.node_0, pair.node_1), pair.machines, strict=True):
        assert listening_addresses(rank_of(node).pid) == {machine.address}
    assert listening_addresses(pair.node_0.process.pid) == {pair.machines[0].address}
    assert listening_addresses(pair.node_1.process.pid) == set()


def test_death_of_a_rank_on_node_1_is_told_and_both_nodes_start_again(pair: Pair, alone: LaunchedServer) -> None:
    before = rank_of(pair.node_0).pid
    rank_of(pair.node_1).kill()
    pair.node_0.wait_for_log("shards: ready again after", LIMIT_S)
    assert "shard rank 1 of node 1 was killed by SIGKILL while serving" in pair.node_0.log_text
    assert rank_of(pair.node_0).pid != before
    assert_same_tokens(pair, alone, "greedy")


@pytest.mark.faults
@pytest.mark.slow
def test_node_that_is_lost_may_come_back(pair: Pair, model: Path, alone: LaunchedServer, tmp_path: Path) -> None:
    """Slow because the group loads a second time."""
    pair.node_1.process.kill()
    pair.node_1.process.wait()
    # A connection whose end had something unread is reset, and else closed.
    lost = re.compile(r"node 1 at \S+ (has closed the connection|is gone \(Connection reset by peer\)) while serving")
    wait_until(
        lambda: lost.search(pair.node_0.log_text) is not None, 30, "node 0 says so", lambda: pair.node_0.log_text
    )
    wait_until(lambda: pair.node_0.health() == 503, 30, "node 0 says that no shard serves")
    pair.node_1 = start_node_1(model, pair.machines, tmp_path)
    wait_until(lambda: pair.node_0.health() == 200, LIMIT_S, "node 0 serves", lambda: pair.node_0.log_text)
    assert_same_tokens(pair, alone, "greedy")


def test_signal_to_both_nodes_lets_a_request_end(pair: Pair) -> None:
    """A cluster stops all pods of a group at once. Node 1 stays until node 0 has answered."""
    pair.node_1.process.terminate()
    pair.node_1.wait_for_log("stays until node 0 stops")
    assert len(generate(pair.node_0, "Hello", max_new_tokens=24).ids) == 24
    assert pair.node_0.stop() == 0
    assert pair.node_1.wait_exit() == 0
    assert "node 0 has ended the service" in pair.node_1.log_text


@pytest.mark.faults
@pytest.mark.slow
def test_cut_cable_ends_both_nodes_within_the_limit(
    model: Path, machines: tuple[FakeMachine, FakeMachine], tmp_path: Path
) -> None:
    """Neither node hears that the other is gone. Slow because 10 s of silence count. The cable stays cut."""
    if not machines[0].is_isolated:
        pytest.skip("two addresses of one machine have no cable")
    quick = ["--max-restarts", "0"]
    host = machines[0].seen_from_test
    flags = [*arguments(model, 0, machines, 3, NODE_PORT_OF_CUT_PAIR), *quick]
    with (
        launched(flags, tmp_path / "0", within=machines[0].within, host=host) as node_0,
        launched(
            [*arguments(model, 1, machines, 3, NODE_PORT_OF_CUT_PAIR), *quick],
            tmp_path / "1",
            within=machines[1].within,
        ) as node_1,
    ):
        node_0.wait_ready()
        cut(machines[0])
        assert node_0.wait_exit(60) == NODE_LOST
        assert node_1.wait_exit(60) == NODE_LOST
        assert re.search(r"node 1 at \S+ has said nothing for 10 s while serving", node_0.log_text)
        assert "node 0 does not take this node" in node_1.log_text


def test_model_that_is_missing_on_node_1_ends_both_nodes(model: Path, tmp_path: Path) -> None:
    here = FakeMachine((), "127.0.0.1", "lo", "127.0.0.1", is_isolated=False)
    machines = (here, here)
    wrong = arguments(model, 1, machines)
    wrong[1] = str(tmp_path / "no-such-model")
    with (
        launched(arguments(model, 0, machines), tmp_path / "0") as node_0,
        launched(wrong, tmp_path / "1") as node_1,
    ):
        assert node_1.wait_exit(60) == NO_SUCH_MODEL
        assert node_0.wait_exit(60) == NO_SUCH_MODEL
        assert "node 1 at 127.0.0.1 cannot start: --model-id" in node_0.log_text
