"""Adapters behind launcher, router and shards: the texts of PEFT's unmerged forward, with one rank and with two.

Calls with two adapters and with none run beside each other while other adapters come and go and a shard is killed.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tokenizers
import torch
from huggingface_hub import InferenceClient

from tests.fakes.lora import PeftReference, make_adapter
from tests.fakes.processes import LaunchedServer, launched, wait_until
from tests.fakes.reading import TIMEOUT_S, generate, metric
from tests.fakes.tiny_models import make_tiny_llama

NUM_NEW = 12
KV_BYTES = str(8 * 1024 * 1024)
PROMPTS = ("Hello", "The quick brown fox jumps over the lazy dog. " * 2, "1 2 3", "x" * 40)
NAMES = ("poet", "clerk")
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class World:
    """The model of the servers with its adapters, and the folder below which callers may load adapters."""

    model: Path
    adapters: dict[str, Path]
    folder: Path
    peft: PeftReference
    tokenizer: tokenizers.Tokenizer

    @cache  # noqa: B019 - the world lives as long as the tests
    def greedy(self, prompt: str, name: str | None) -> tuple[int, ...]:
        """Return the greedy tokens by PEFT, each from a whole forward pass."""
        tokens = self.tokenizer.encode(prompt).ids
        start = len(tokens)
        for _ in range(NUM_NEW):
            number = None if name is None else list(self.adapters).index(name)
            tokens.append(int(self.peft.logits(tokens, number)[-1].argmax()))
        return tuple(tokens[start:])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, because the servers of the tests need the other processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("adapters")
    model = make_tiny_llama(folder / "model", hidden=128, layers=4, heads=8, kv_heads=4, mlp=384, seed=3)
    (folder / "shelf").mkdir()
    adapters = {
        "poet": make_adapter(model, folder / "poet", seed=1, target_modules="all-linear"),
        "clerk": make_adapter(model, folder / "clerk", seed=2, target_modules=["q_proj", "down_proj"], r=3),
    }
    shutil.copytree(adapters["clerk"], folder / "shelf" / "clerk")
    for name in ("late", "other"):
        adapters[name] = make_adapter(model, folder / "shelf" / name, seed=len(name), target_modules="all-linear", r=4)
    return World(
        model=model,
        adapters=adapters,
        folder=folder / "shelf",
        peft=PeftReference(model, list(adapters.values())),
        tokenizer=tokenizers.Tokenizer.from_file(str(model / "tokenizer.json")),
    )


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def server(
    world: World, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LaunchedServer]:
    folder = tmp_path_factory.mktemp("served")
    adapters = ",".join(f"{name}={world.adapters[name]}" for name in NAMES)
    arguments = ["--model-id", str(world.model), "--dtype", "float32", "--kv-cache-bytes", KV_BYTES]
    arguments += ["--num-shard", str(request.param), "--shard-uds-path", str(folder / "s"), "--hostname", "127.0.0.1"]
    arguments += ["--lora-adapters", adapters, "--lora-runtime-updates", "--lora-dir", str(world.folder)]
    arguments += ["--lora-memory-bytes", str(4 * 1024 * 1024)]
    with launched(arguments, folder) as server:
        yield server.wait_ready()


def ids_of(server: LaunchedServer, prompt: str, name: str | None, **parameters: Any) -> tuple[int, ...]:
    how = {} if name is None else {"adapter_id": name}
    return generate(server, prompt, max_new_tokens=NUM_NEW, ignore_eos=True, **how, **parameters).ids


def change(server: LaunchedServer, route: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.base_url}/v1/{route}", json=body, timeout=TIMEOUT_S, trust_env=False)


def test_calls_side_by_side_get_the_tokens_of_peft(server: LaunchedServer, world: World) -> None:
    calls = [(prompt, name) for prompt in PROMPTS for name in (None, *NAMES)]
    with ThreadPoolExecutor(len(calls)) as pool:
        found = list(pool.map(lambda call: ids_of(server, *call), calls))
    for (prompt, name), ids in zip(calls, found, strict=True):
        assert ids == world.greedy(prompt, name), (prompt[:20], name)
    assert len(set(found)) == len(calls)


def test_base_and_adapters_share_no_block_of_a_prompt(server: LaunchedServer) -> None:
    prompt = "a prompt of several blocks that nobody has sent before. " * 3

    def num_cached(name: str | None) -> int:
        how = {} if name is None else {"adapter_id": name}
        return int(generate(server, prompt, max_new_tokens=1, **how).headers["x-cached-prompt-tokens"])

    assert [num_cached(name) for name in (None, "poet", "clerk")] == [0, 0, 0]
    assert min(num_cached(name) for name in (None, "poet", "clerk")) >= 64


def test_seeds_and_grammars_hold_beside_adapters(server: LaunchedServer) -> None:
    how: dict[str, Any] = {"do_sample": True, "seed": 5, "temperature": 1.5}
    alone = [ids_of(server, "dice", name, **how) for name in (None, *NAMES)]
    with ThreadPoolExecutor(6) as pool:
        beside = list(pool.map(lambda name: ids_of(server, "dice", name, **how), (None, *NAMES, *NAMES, None)))
    assert beside == [*alone, *alone[1:], alone[0]]
    digits = {"type": "regex", "value": "[0-9]{3}-[a-f]{2}"}
    text = generate(server, "x", max_new_tokens=NUM_NEW, adapter_id="poet", grammar=digits).text
    assert len(text) == 6
    assert text[:3].isdigit()


def test_clients_name_adapters_in_their_ways(server: LaunchedServer, world: World) -> None:
    hub = InferenceClient(model=server.base_url, timeout=TIMEOUT_S)
    answer = hub.text_generation("Hello", max_new_tokens=NUM_NEW, adapter_id="poet", details=True, do_sample=False)
    wanted = world.greedy("Hello", "poet")
    num_tokens = answer.details.generated_tokens
    assert tuple(token.id for token in answer.details.tokens) == wanted[:num_tokens]
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="-", timeout=TIMEOUT_S) as client:
        models = {model.id for model in client.models.list()}
        assert {*NAMES} <= models
        completion = client.completions.create(model="clerk", prompt="Hello", max_tokens=NUM_NEW, temperature=0)
        assert completion.model == "clerk"
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nobody", prompt="Hello", max_tokens=1)


def test_adapters_come_and_go_while_calls_run(server: LaunchedServer, world: World) -> None:
    wanted = {name: world.greedy("Hello", name) for name in (None, "poet", "late", "other")}
    assert change(server, "load_lora_adapter", lora_name="late", lora_path="late").status_code == 200
    with ThreadPoolExecutor(12) as pool:
        running: list[tuple[str | None, Future[tuple[int, ...]]]] = []
        for name in ("late", None, "poet") * 4:
            running.append((name, pool.submit(ids_of, server, "Hello", name)))
        for name, answer in running:
            assert answer.result(TIMEOUT_S) == wanted[name]
        replaced = change(server, "load_lora_adapter", lora_name="late", lora_path="other", load_inplace=True)
        assert replaced.status_code == 200, replaced.text
        assert ids_of(server, "Hello", "late") == wanted["other"]
        hub = InferenceClient(model=server.base_url, timeout=TIMEOUT_S)
        stream = hub.text_generation(
            "Hello", max_new_tokens=NUM_NEW, adapter_id="late", stream=True, details=True, do_sample=False
        )
        events = iter(stream)
        first = next(events)
        bad = change(server, "load_lora_adapter", lora_name="bad", lora_path="nowhere")
        assert bad.status_code == 422
        assert change(server, "unload_lora_adapter", lora_name="late").status_code == 200
        ids = (first.token.id, *(event.token.id for event in events))
        assert ids == wanted["other"][: len(ids)]
        gone = httpx.post(
            f"{server.base_url}/generate",
            json={"inputs": "Hello", "parameters": {"adapter_id": "late"}},
            timeout=TIMEOUT_S,
            trust_env=False,
        )
        assert gone.status_code == 422
    assert metric(server, "textmill_adapters_loaded") >= len(NAMES)


@pytest.mark.faults
def test_killed_router_comes_back_with_the_adapters_of_now(server: LaunchedServer, world: World) -> None:
    assert change(server, "load_lora_adapter", lora_name="late", lora_path="late").status_code == 200
    assert change(server, "load_lora_adapter", lora_name="brief", lora_path="other").status_code == 200
    assert change(server, "unload_lora_adapter", lora_name="clerk").status_code == 200
    shutil.copytree(world.folder / "other", world.folder / "torn", dirs_exist_ok=True)
    assert change(server, "load_lora_adapter", lora_name="torn", lora_path="torn").status_code == 200
    shutil.copy(world.folder / "late" / WEIGHTS, world.folder / "torn" / WEIGHTS)  # other weights than were loaded
    [router] = server.children("textmill_router")
    router.kill()
    router.wait(TIMEOUT_S)
    wait_until(lambda: server.health() == 200, TIMEOUT_S, "the router serves again")
    names = [one["id"] for one in httpx.get(f"{server.base_url}/info", trust_env=False).json()["adapters"]]
    assert names == ["poet", "late", "brief"]
    for name, weights in ((None, None), ("poet", "poet"), ("late", "late"), ("brief", "other")):
        assert ids_of(server, "Hello", name) == world.greedy("Hello", weights)
    for name in ("late", "brief"):
        assert change(server, "unload_lora_adapter", lora_name=name).status_code == 200
    clerk = change(server, "load_lora_adapter", lora_name="clerk", lora_path="clerk")
    assert clerk.status_code == 200, clerk.text


@pytest.mark.faults
def test_killed_shard_reads_its_adapters_again_and_streams_go_on(server: LaunchedServer, world: World) -> None:
    before = metric(server, "textmill_shard_restarts_total", 'reason="killed"')
    calls = [(prompt, name) for prompt in PROMPTS[:2] for name in (None, *NAMES)]
    how: dict[str, Any] = {"max_new_tokens": 250, "ignore_eos": True}
    with ThreadPoolExecutor(len(calls)) as pool:

        def ask(call: tuple[str, str | None]) -> tuple[int, ...]:
            prompt, name = call
            return generate(server, prompt, **how, **({} if name is None else {"adapter_id": name})).ids

        alone = list(pool.map(ask, calls))
        running = [pool.submit(ask, call) for call in calls]
        while metric(server, "textmill_requests_running") < len(calls):
            assert not any(answer.done() for answer in running), "the calls ended before a shard was killed"
        server.children("textmill_shard")[-1].kill()
        assert [answer.result(TIMEOUT_S) for answer in running] == alone
    assert metric(server, "textmill_shard_restarts_total", 'reason="killed"') == before + 1
    for (prompt, name), ids in zip(calls, alone, strict=True):
        assert ids[:NUM_NEW] == world.greedy(prompt, name)
