"""The demo model behind the whole system gives the tokens that transformers gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.fakes.processes import LaunchedServer
from tests.fakes.reading import generate, metric

NUM_NEW_TOKENS = 32
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "1, 2, 3, 5, 8, 13,",
    "Water boils at a temperature of",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Die Hauptstadt von Deutschland ist",
    "Q: What is 12 + 30?\nA:",
)


@dataclass(frozen=True, slots=True)
class Reference:
    """The demo model in transformers, in fp32 and one thread, because more threads wait for those of the server."""

    model: LlamaForCausalLM
    tokenizer: Any

    def logprobs(self, prompt: str, ids: tuple[int, ...]) -> torch.Tensor:
        """Return the log-probabilities from which each of the N output ids was chosen, [N, V]."""
        prompt_ids = self.tokenizer(prompt)["input_ids"]
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                logits_TV = self.model(torch.tensor([[*prompt_ids, *ids]])).logits[0].float()
        finally:
            torch.set_num_threads(num_threads)
        return torch.log_softmax(logits_TV[len(prompt_ids) - 1 : -1], dim=-1)


@pytest.fixture(scope="module")
def reference(demo_model_folder: Path) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(demo_model_folder, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(demo_model_folder))


def test_launcher_says_that_it_serves_the_demo_model(real_server: LaunchedServer) -> None:
    assert "no --model-id: serving the demo model SmolLM2-135M-Instruct" in real_server.log_text


def test_capital_of_france_is_paris(real_server: LaunchedServer) -> None:
    assert generate(real_server, "The capital of France is", max_new_tokens=8).text.startswith(" Paris")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_and_logprobs_are_those_of_transformers(
    real_server: LaunchedServer, reference: Reference, prompt: str
) -> None:
    """Each token is the best one after the tokens before it, so that together they are transformers' greedy output."""
    answer = generate(real_server, prompt, max_new_tokens=NUM_NEW_TOKENS)
    logprobs_NV = reference.logprobs(prompt, answer.ids)
    assert list(answer.ids) == logprobs_NV.argmax(dim=-1).tolist()
    end_ids = reference.model.generation_config.eos_token_id
    ends = [token_id in (end_ids if isinstance(end_ids, list) else [end_ids]) for token_id in answer.ids]
    assert not any(ends[:-1])
    assert len(answer.ids) == NUM_NEW_TOKENS or ends[-1]
    # The tolerance is for fp32 with sums in another order, in attention and in the normaliser.
    expected = [float(logprobs_NV[position, token_id]) for position, token_id in enumerate(answer.ids)]
    assert answer.logprobs == pytest.approx(expected, abs=1e-3)


def test_second_use_of_a_long_prompt_comes_from_the_prefix_cache(
    real_server: LaunchedServer, demo_model_folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    ids = tokenizer("".join(f" The number {i} comes before {i + 1}." for i in range(400)))["input_ids"][:1500]
    prompt = tokenizer.decode(ids)
    num_prompt_tokens = len(tokenizer(prompt)["input_ids"])
    assert num_prompt_tokens >= 1500
    hits_before = metric(real_server, "textmill_prefix_cache_hit_tokens")
    first = generate(real_server, prompt, max_new_tokens=4)
    hits_between = metric(real_server, "textmill_prefix_cache_hit_tokens")
    second = generate(real_server, prompt, max_new_tokens=4)
    assert int(first.headers["x-cached-prompt-tokens"]) == hits_between - hits_before == 0
    # All blocks are cached but the one in which a token must be computed.
    assert int(second.headers["x-cached-prompt-tokens"]) >= 1488
    assert metric(real_server, "textmill_prefix_cache_hit_tokens") - hits_between >= 1488
    assert second.ids == first.ids
