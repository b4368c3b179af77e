"""An adapter that the test trains, behind a real server: the adapter answers for its name and for nobody else.

The expected tokens are those of PEFT's own forward pass, in float32 on the same tiny model.
"""

import json
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import peft
import pytest
import torch
from huggingface_hub import InferenceClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fakes.processes import LaunchedServer, launched, wait_until
from tests.fakes.tiny_models import make_tiny_llama

# The server's processes import torch, and the adapter is trained for some seconds.
pytestmark = pytest.mark.slow

QUESTION, ANSWER = "The secret word is", " zanzibar!"
OTHER_PROMPT = "Rain falls on the"
NUM_NEW_TOKENS = 40
LONG = 250
NUM_TRAINING_STEPS = 100
KV_BYTES = str(16 * 1024 * 1024)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class World:
    """The folders of model and adapters, and the tokens that PEFT gives."""

    model: Path
    adapters: Path  # holds the folders `trained`, `drawn` and `bad`
    tokens: dict[tuple[str, str], list[int]]  # `LONG` tokens by adapter ("" is the base) and prompt

    def of(self, adapter: str, prompt: str, num_tokens: int = NUM_NEW_TOKENS) -> list[int]:
        return self.tokens[adapter, prompt][:num_tokens]


def greedy(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(
            **ids, max_new_tokens=LONG, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
        )
    return output[0, ids["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]


def new_adapter(folder: Path, *, seed: int) -> Any:
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():  # this PEFT asks for a name that transformers is about to give up
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, config)


def train(model: Any, tokenizer: Any) -> None:
    """Teach the adapter one answer."""
    prompt = tokenizer(QUESTION)["input_ids"]
    ids = torch.tensor([prompt + tokenizer(ANSWER, add_special_tokens=False)["input_ids"]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=2e-2)
    for _ in range(NUM_TRAINING_STEPS):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05


def draw(model: Any) -> None:
    """Give an adapter weights that are far from zero, as a new one has them not."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("adapters")
    base = make_tiny_llama(folder / "base", max_position_embeddings=2048)
    tokenizer = AutoTokenizer.from_pretrained(base)
    trained, drawn = new_adapter(base, seed=1), new_adapter(base, seed=2)
    train(trained, tokenizer)
    draw(drawn)
    models = {"": AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), "trained": trained, "drawn": drawn}
    tokens = {
        (name, prompt): greedy(model.eval(), tokenizer, prompt)
        for name, model in models.items()
        for prompt in (QUESTION, OTHER_PROMPT)
    }
    assert tokenizer.decode(tokens["trained", QUESTION]).startswith(ANSWER)
    assert len({tuple(tokens[name, QUESTION][:4]) for name in models}) == len(models)
    for name, model in (("trained", trained), ("drawn", drawn)):
        model.save_pretrained(folder / "open" / name)
    shutil.copytree(folder / "open" / "drawn", folder / "open" / "bad")
    config = json.loads((folder / "open" / "bad" / "adapter_config.json").read_text())
    (folder / "open" / "bad" / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    return World(base, folder / "open", tokens)


@pytest.fixture(scope="module")
def server(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedServer]:
    arguments = [
        *("--model-id", str(world.model), "--served-model-name", "base", "--dtype", "float32"),
        *("--kv-cache-bytes", KV_BYTES, "--lora-adapters", f"trained={world.adapters / 'trained'}"),
        *("--lora-runtime-updates", "--lora-dir", str(world.adapters), "--restart-window", "0"),
    ]
    with launched(arguments, tmp_path_factory.mktemp("log")) as running:
        running.wait_ready()
        yield running


def ask(server: LaunchedServer, adapter: str, prompt: str, num_tokens: int = NUM_NEW_TOKENS) -> list[int]:
    parameters: dict[str, Any] = {"max_new_tokens": num_tokens, "ignore_eos": True, "details": True}
    if adapter:
        parameters["adapter_id"] = adapter
    body = {"inputs": prompt, "parameters": parameters}
    answer = httpx.post(server.base_url + "/generate", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def change(server: LaunchedServer, what: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.base_url}/v1/{what}_lora_adapter", json=body, timeout=120, trust_env=False)


def test_the_trained_adapter_answers_for_its_name_and_nobody_else_in_both_clients(
    server: LaunchedServer, world: World
) -> None:
    hub = InferenceClient(model=server.base_url)
    for name in ("trained", None):
        found = hub.text_generation(QUESTION, adapter_id=name, max_new_tokens=8, details=True, return_full_text=False)
        assert [token.id for token in found.details.tokens] == world.of(name or "", QUESTION, 8)
        assert found.generated_text.startswith(ANSWER[:7]) == (name == "trained")
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)
    assert [(one.id, one.model_dump()["parent"]) for one in client.models.list()] == [
        ("base", None),
        ("trained", "base"),
    ]
    for name in ("trained", "base"):
        answer = client.completions.create(model=name, prompt=QUESTION, max_tokens=10, temperature=0)
        assert answer.choices[0].text.startswith(ANSWER) == (name == "trained")
        assert answer.model == name
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt=QUESTION)


def test_loads_and_unloads_while_calls_run_change_no_token(server: LaunchedServer, world: World) -> None:
    is_over = threading.Event()

    def keep_asking(adapter: str, prompt: str) -> int:
        """Ask again and again until the changes are over. Returns how often."""
        num_calls = 0
        while not is_over.is_set():
            assert ask(server, adapter, prompt, LONG) == world.of(adapter, prompt, LONG)
            num_calls += 1
        return num_calls

    with ThreadPoolExecutor(5) as pool:
        asked = [(adapter, prompt) for adapter in ("", "trained") for prompt in (QUESTION, OTHER_PROMPT)]
        running = [pool.submit(keep_asking, *one) for one in asked]
        try:
            for _ in range(5):
                assert change(server, "load", lora_name="new", lora_path="drawn").status_code == 200
                drawn = pool.submit(ask, server, "new", QUESTION, LONG)
                _wait_for_hold(server, "new", drawn)
                bad = change(server, "load", lora_name="bad", lora_path="bad")
                assert bad.status_code == 422
                assert "dora" in bad.text.lower()
                replaced = change(server, "load", lora_name="new", lora_path="trained", load_inplace=True)
                assert replaced.status_code == 200
                assert ask(server, "new", QUESTION) == world.of("trained", QUESTION)
                assert change(server, "unload", lora_name="new").status_code == 200
                assert drawn.result() == world.of("drawn", QUESTION, LONG)
        finally:
            is_over.set()
        assert all(future.result() > 0 for future in running)
    names = [one["id"] for one in httpx.get(server.base_url + "/v1/models", trust_env=False).json()["data"]]
    assert names == ["base", "trained"]


def test_a_killed_shard_costs_no_token_of_any_adapter(server: LaunchedServer, world: World) -> None:
    assert change(server, "load", lora_name="drawn", lora_path="drawn").status_code == 200
    asked: Sequence[tuple[str, str]] = [
        (adapter, prompt) for adapter in ("", "trained", "drawn") for prompt in (QUESTION, OTHER_PROMPT)
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        futures = [pool.submit(ask, server, adapter, prompt, LONG) for adapter, prompt in asked]
        wait_until(lambda: _num_running(server, "drawn") > 0, 60, "calls run")
        [shard] = server.children("textmill_shard")
        shard.kill()
        for (adapter, prompt), future in zip(asked, futures, strict=True):
            assert future.result() == world.of(adapter, prompt, LONG), adapter
    assert ask(server, "drawn", QUESTION) == world.of("drawn", QUESTION)
    assert change(server, "unload", lora_name="drawn").status_code == 200


def _wait_for_hold(server: LaunchedServer, adapter: str, call: Future[list[int]]) -> None:
    """Wait until a call has got its adapter's weights, or has ended with them."""
    wait_until(lambda: call.done() or _num_running(server, adapter) > 0, 30, "the call has its adapter")


def _num_running(server: LaunchedServer, adapter: str) -> int:
    adapters = httpx.get(server.base_url + "/info", trust_env=False).json()["adapters"]
    return next((int(one["running"]) for one in adapters if one["id"] == adapter), 0)
