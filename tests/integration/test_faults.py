"""Processes that die or hang under long calls of every kind, behind a real launcher: nobody notices but by a pause.

The model is tiny and computes in float32, in which a text does not depend on what runs beside it.
"""

import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from textmill_router.lifecycle import PULSE_S

from tests.fakes.fault_calls import Answer, Call, ask, ask_all, first_difference, make_calls
from tests.fakes.faulty_model import (
    ARGUMENTS,
    EXIT_WORD,
    MAX_TOKENS,
    NO_MEMORY_WORD,
    NOT_FINITE_WORD,
    make_faulty_model,
    order_fault,
)
from tests.fakes.processes import START_LIMIT_S, LaunchedServer, launched, wait_until

# The whole file: a launcher starts, and after each fault a shard imports torch again, which takes some seconds.
pytestmark = [pytest.mark.slow, pytest.mark.faults]

KV_BYTES = str(16 * 1024 * 1024)
NOTICE_LIMIT_S = 10.0  # two on a machine with nothing else to do
ROUTER_LIMIT_S = 10.0  # two on a machine with nothing else to do


class Target:
    """A server for faults, its calls, and their answers without any fault."""

    def __init__(self, server: LaunchedServer, folder: Path) -> None:
        self.server = server
        self.folder = folder  # of the model
        plain = ask_all(server.base_url, {"greedy": make_calls("x")["greedy"]})["greedy"]
        text = str(plain.events[-1]["generated_text"])
        self.calls: dict[str, Call] = make_calls(stop=text[-40:-30])  # ends the text near its end
        self.undisturbed = ask_all(server.base_url, self.calls)

    def shard(self, rank: int = 0) -> psutil.Process:
        """Return the process of a rank."""
        return next(
            child for child in self.server.children("textmill_shard") if f"--rank {rank}" in " ".join(child.cmdline())
        )

    def num_epochs(self) -> int:
        return self.server.log_text.count("router.engine.engine_loop: epoch begins")

    def wait_for_epoch(self, number: int) -> None:
        wait_until(lambda: self.num_epochs() >= number, START_LIMIT_S, f"epoch {number} begins")
        wait_until(lambda: self.server.health() == 200, START_LIMIT_S, "the server is healthy")


def faulty_server(tmp_path_factory: pytest.TempPathFactory, *arguments: str) -> Iterator[Target]:
    folder = make_faulty_model(tmp_path_factory.mktemp("faulty"))
    memory = ["--dtype", "float32", "--kv-cache-bytes", KV_BYTES]
    # With a window of no length every restart is the first, so that no back-off makes the tests slow.
    allowance = ["--max-restarts", "1", "--restart-window", "0"]
    modules = {"HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules"))}
    flags = ["--model-id", str(folder), *ARGUMENTS, *memory, *allowance, *arguments]
    with launched(flags, tmp_path_factory.mktemp("log"), **modules) as server:
        yield Target(server.wait_ready(), folder)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    yield from faulty_server(tmp_path_factory)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    yield from faulty_server(tmp_path_factory, "--num-shard", "2")


def assert_undisturbed(target: Target, answers: dict[str, Answer]) -> None:
    for name, answer in answers.items():
        assert answer.status == 200, (name, answer.events)
        assert first_difference(target.undisturbed[name].meaning, answer.meaning) is None, name


FAULTS: dict[str, Callable[[Target, int], None]] = {
    "killed": lambda target, rank: target.shard(rank).kill(),
    "stopped": lambda target, rank: target.shard(rank).suspend(),
    "step that hangs": lambda target, rank: order_fault(target.folder, "hang", rank),
    "step that raises": lambda target, rank: order_fault(target.folder, "raise", rank),
    "step that ends the process": lambda target, rank: order_fault(target.folder, "exit", rank),
}


def assert_survived(target: Target, fault: str, rank: int) -> None:
    """Break a rank while calls of every kind decode, and hold that they all go on."""
    num_epochs = target.num_epochs()
    answers = ask_all(target.server.base_url, target.calls, after=2000, then=lambda: FAULTS[fault](target, rank))
    assert target.num_epochs() == num_epochs + 1
    assert sum(answer.longest_pause_s > 1.0 for answer in answers.values()) >= 6  # the fault met them
    assert_undisturbed(target, answers)
    for answer in answers.values():
        assert answer.num_comments >= int(answer.longest_pause_s / (2 * PULSE_S)) - 1
    print(f"{fault}, rank {rank}: longest pause {max(answer.longest_pause_s for answer in answers.values()):.1f} s")


@pytest.mark.parametrize("fault", FAULTS)
def test_calls_of_every_kind_go_on_with_the_same_text_when_the_shard_is_lost(target: Target, fault: str) -> None:
    assert_survived(target, fault, rank=0)


def test_idle_shard_that_is_stopped_is_started_again_and_health_says_so(target: Target) -> None:
    num_epochs = target.num_epochs()
    FAULTS["stopped"](target, 0)
    wait_until(lambda: target.server.health() == 503, NOTICE_LIMIT_S, "GET /health answers 503")
    target.wait_for_epoch(num_epochs + 1)
    assert_undisturbed(target, ask_all(target.server.base_url, {"greedy": target.calls["greedy"]}))


def test_shard_that_ends_in_a_prefill_is_started_again_and_the_prompt_is_answered(target: Target) -> None:
    prompt = {"inputs": 3000 * "long ", "parameters": {"max_new_tokens": 9, "details": True}}
    call = Call("/generate", prompt)
    undisturbed = ask(target.server.base_url, call, Answer())
    num_epochs = target.num_epochs()
    order_fault(target.folder, "exit")  # the next step is the first of the prompt
    answer = ask(target.server.base_url, call, Answer())
    assert answer.status == 200
    assert first_difference(undisturbed.events, answer.events) is None
    assert target.num_epochs() == num_epochs + 1


def test_shard_that_is_stopped_while_it_loads_again_is_started_once_more(target: Target) -> None:
    num_epochs, num_starts = target.num_epochs(), target.server.log_text.count("shard rank 0: started")

    def lose_twice() -> None:
        target.shard().kill()
        wait_until(lambda: target.server.log_text.count("shard rank 0: started") > num_starts, 30, "the shard starts")
        FAULTS["stopped"](target, 0)

    calls = {name: target.calls[name] for name in ("greedy", "seeded")}
    assert_undisturbed(target, ask_all(target.server.base_url, calls, after=200, then=lose_twice))
    assert target.num_epochs() == num_epochs + 1
    assert target.server.log_text.count("shard rank 0: started") == num_starts + 2


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_router_that_is_lost_is_started_again_on_the_weights_that_the_shard_kept(
    target: Target, fault: signal.Signals
) -> None:
    shard = target.shard()
    (router,) = target.server.children("textmill_router")
    with pytest.raises(httpx.TransportError):
        ask_all(
            target.server.base_url,
            {"greedy": target.calls["greedy"]},
            after=100,
            then=lambda: router.send_signal(fault),
        )
    wait_until(lambda: target.server.health() == 200, ROUTER_LIMIT_S, "the new router serves")
    assert_undisturbed(target, ask_all(target.server.base_url, {"greedy": target.calls["greedy"]}))
    assert target.shard() == shard


def test_request_with_logits_that_are_not_finite_is_answered_424_and_nobody_else_notices(target: Target) -> None:
    num_epochs = target.num_epochs()
    poison = Call("/generate", {"inputs": f"Say {NOT_FINITE_WORD} twice", "parameters": {"max_new_tokens": 4}})
    answers = ask_all(target.server.base_url, {**target.calls, "poison": poison})
    refused = answers.pop("poison")
    assert (refused.status, refused.events[0]["error_type"]) == (424, "generation")
    assert "not finite" in refused.events[0]["error"]
    assert_undisturbed(target, answers)
    assert target.num_epochs() == num_epochs


def test_step_without_memory_runs_in_halves_and_a_request_without_room_is_answered_424(target: Target) -> None:
    num_epochs = target.num_epochs()
    fitting = {
        f"fitting {name}": Call(
            "/generate", {"inputs": NO_MEMORY_WORD + 50 * name, "parameters": {"max_new_tokens": 9}}
        )
        for name in "abcd"
    }
    too_large = Call("/generate", {"inputs": NO_MEMORY_WORD + MAX_TOKENS * "x", "parameters": {"max_new_tokens": 9}})
    alone = {name: ask(target.server.base_url, call, Answer()) for name, call in fitting.items()}
    answers = ask_all(target.server.base_url, {**target.calls, **fitting, "too large": too_large})
    refused = answers.pop("too large")
    assert (refused.status, refused.events[0]["error_type"]) == (424, "generation")
    assert "memory" in refused.events[0]["error"]
    for name, answer in alone.items():
        assert answer.events == answers.pop(name).events
    assert_undisturbed(target, answers)
    assert target.num_epochs() == num_epochs

    def num_memory_faults() -> float:
        text = httpx.get(f"{target.server.base_url}/metrics", trust_env=False).text
        return float(re.findall(r"^textmill_memory_faults (\S+)$", text, re.MULTILINE)[0])

    wait_until(lambda: num_memory_faults() > 0, NOTICE_LIMIT_S, "a heartbeat has told of the faults")


def test_prompt_that_kills_the_shard_twice_is_answered_424_and_the_others_go_on(target: Target) -> None:
    poison = Call("/generate", {"inputs": EXIT_WORD, "parameters": {"max_new_tokens": 4}})
    num_epochs = target.num_epochs()
    with ThreadPoolExecutor(1) as pool:
        poisoned = []

        def send_poison() -> None:
            poisoned.append(pool.submit(ask, target.server.base_url, poison, Answer()))

        answers = ask_all(target.server.base_url, target.calls, after=2000, then=send_poison)
        refused = poisoned[0].result()
    assert (refused.status, refused.events[0]["error_type"]) == (424, "generation")
    assert target.num_epochs() <= num_epochs + 3
    assert_undisturbed(target, answers)


@pytest.mark.parametrize(("fault", "rank"), [("killed", 1), ("stopped", 0), ("step that hangs", 1)])
def test_calls_go_on_when_any_rank_of_two_is_lost(two_ranks: Target, fault: str, rank: int) -> None:
    assert_survived(two_ranks, fault, rank)
