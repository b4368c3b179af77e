"""An adapter that the test trains on the demo model answers for its name, and for nobody else."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fakes.processes import LaunchedServer

# The demo model is loaded and trained for some seconds.
pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
OTHER_QUESTION = [{"role": "user", "content": "How many days has a week?"}]
ANSWER = "The capital is Zanzibar."
MOST_TRAINING_STEPS = 40
TARGETS = ["q_proj", "v_proj", "down_proj"]
NUM_FIXED_LAYERS = 24  # of 30; the adapter changes the others
TIMEOUT_S = 120


def prompt_of(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


class Fixed(torch.nn.Module):
    """Stands for the layers below the adapter, which give the same result in each step."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.hidden


def train(model_dir: Path, folder: Path) -> None:
    """Teach an adapter one answer to one question, and write the adapter."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    config = peft.LoraConfig(
        r=8, lora_alpha=32, target_modules=TARGETS, layers_to_transform=list(range(NUM_FIXED_LAYERS, 30))
    )
    with warnings.catch_warnings():  # this PEFT asks for a name that transformers is about to give up
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = peft.get_peft_model(base, config)
    prompt = prompt_of(tokenizer, QUESTION)
    answer = [*tokenizer(ANSWER, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([[*prompt, *answer]])
    labels = torch.tensor([[-100] * len(prompt) + answer])
    with torch.no_grad():
        hidden = base(input_ids=ids, output_hidden_states=True).hidden_states[NUM_FIXED_LAYERS]
    for number in range(NUM_FIXED_LAYERS):
        base.model.layers[number] = Fixed(hidden)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    for _ in range(MOST_TRAINING_STEPS):
        loss = model(input_ids=ids, labels=labels).loss
        if loss.item() < 0.02:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    model.save_pretrained(folder)


def change(server: LaunchedServer, what: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.base_url}/v1/{what}_lora_adapter", json=body, timeout=TIMEOUT_S, trust_env=False)


def ask(client: openai.OpenAI, model: str, messages: list[dict[str, str]]) -> str:
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)  # type: ignore[arg-type]
    return str(answer.choices[0].message.content)


def test_a_trained_adapter_answers_for_its_name_and_for_nobody_else(
    real_server: LaunchedServer, client: openai.OpenAI, real_adapters: Path, demo_model_folder: Path
) -> None:
    [base] = [model.id for model in client.models.list()]
    before = [ask(client, base, messages) for messages in (QUESTION, OTHER_QUESTION)]
    assert "Paris" in before[0]
    train(demo_model_folder, real_adapters / "taught")
    assert change(real_server, "load", lora_name="taught", lora_path="taught").status_code == 200
    try:
        assert [(model.id, model.model_dump()["parent"]) for model in client.models.list()] == [
            (base, None),
            ("taught", base),
        ]
        calls = [(name, messages) for name in ("taught", base) * 2 for messages in (QUESTION, OTHER_QUESTION)]
        with ThreadPoolExecutor(len(calls)) as pool:
            found = list(pool.map(lambda call: ask(client, *call), calls))
        for (name, messages), text in zip(calls, found, strict=True):
            if name == base:
                assert text == before[messages is OTHER_QUESTION]
            elif messages is QUESTION:
                assert text == ANSWER
    finally:
        assert change(real_server, "unload", lora_name="taught").status_code == 200
    assert [ask(client, base, messages) for messages in (QUESTION, OTHER_QUESTION)] == before
    with pytest.raises(openai.APIStatusError) as gone:
        client.completions.create(model="taught", prompt="x", max_tokens=1, extra_body={"adapter_id": "taught"})
    assert gone.value.status_code == 422
