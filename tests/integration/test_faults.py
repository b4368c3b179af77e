"""Processes that die or hang under long calls of every kind, behind a real launcher: nobody notices but by a pause.

The model is tiny and computes in float32, in which a text does not depend on what runs beside it.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.fault_calls import Answer, Call, ask_all, first_difference, make_calls
from tests.fakes.processes import LaunchedServer, launched, wait_until
from tests.fakes.tiny_models import make_tiny_llama

KV_BYTES = str(16 * 1024 * 1024)
ROUTER_LIMIT_S = 10.0  # two on a machine with nothing else to do


class Target:
    """A server for faults, its calls, and their answers without any fault."""

    def __init__(self, server: LaunchedServer) -> None:
        self.server = server
        plain = ask_all(server.base_url, {"greedy": make_calls("x")["greedy"]})["greedy"]
        text = str(plain.events[-1]["generated_text"])
        self.calls: dict[str, Call] = make_calls(stop=text[-40:-30])  # ends the text near its end
        self.undisturbed = ask_all(server.base_url, self.calls)

    def shards(self) -> list[int]:
        """Return the process ids of the shards."""
        return [child.pid for child in self.server.children("textmill_shard")]

    def kill_shard(self) -> None:
        """Send SIGKILL to rank 0."""
        self.server.children("textmill_shard")[0].kill()


# The whole file: a launcher starts, and after each fault a shard imports torch again, which takes some seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny_llama"), max_position_embeddings=32_768)


@pytest.fixture(scope="module")
def target(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    arguments = ["--model-id", str(tiny_model), "--dtype", "float32", "--kv-cache-bytes", KV_BYTES]
    # With a window of no length every restart is the first, so that no back-off makes the tests slow.
    allowance = ["--max-restarts", "1", "--restart-window", "0"]
    with launched([*arguments, *allowance], tmp_path_factory.mktemp("log")) as server:
        yield Target(server.wait_ready())


def assert_undisturbed(target: Target, answers: dict[str, Answer]) -> None:
    for name, answer in answers.items():
        assert answer.status == 200, (name, answer.events)
        assert first_difference(target.undisturbed[name].meaning, answer.meaning) is None, name


def test_calls_of_every_kind_go_on_with_the_same_text_when_the_shard_is_killed(target: Target) -> None:
    num_epochs = target.server.log_text.count("epoch begins")
    answers = ask_all(target.server.base_url, target.calls, after=2000, then=target.kill_shard)
    assert target.server.log_text.count(" epoch begins") > num_epochs
    assert sum(answer.longest_pause_s > 1.0 for answer in answers.values()) >= 6  # the fault met them all
    assert_undisturbed(target, answers)


def test_router_that_is_killed_serves_again_on_the_weights_that_the_shard_kept(
    target: Target,
) -> None:
    shards = target.shards()
    (router,) = target.server.children("textmill_router")

    def kill_router() -> None:
        router.kill()

    with pytest.raises(httpx.TransportError):
        ask_all(target.server.base_url, {"greedy": target.calls["greedy"]}, after=100, then=kill_router)
    wait_until(lambda: target.server.health() == 200, ROUTER_LIMIT_S, "the new router serves")
    assert_undisturbed(target, ask_all(target.server.base_url, {"greedy": target.calls["greedy"]}))
    assert target.shards() == shards
