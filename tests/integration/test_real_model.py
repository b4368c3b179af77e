"""The demo model behind the whole system says what transformers says."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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


@pytest.fixture(scope="module")
def reference(demo_model_folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Greedy ids and their log-probabilities by transformers' own generate, in fp32, one prompt at a time."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    model = AutoModelForCausalLM.from_pretrained(demo_model_folder, dtype=torch.float32)
    found = {}
    for prompt in PROMPTS:
        encoding = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                **encoding,
                do_sample=False,
                max_new_tokens=NUM_NEW_TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
            )
        ids = out.sequences[0, encoding["input_ids"].shape[1] :].tolist()
        rows = [torch.log_softmax(logits[0].float(), dim=-1) for logits in out.logits]
        found[prompt] = (ids, [float(row[token]) for row, token in zip(rows, ids, strict=True)])
    return found


def test_launcher_says_that_it_serves_the_demo_model(real_server: LaunchedServer) -> None:
    assert "no --model-id: serving the demo model SmolLM2-135M-Instruct" in real_server.log_text


def test_capital_of_france_is_paris(real_server: LaunchedServer) -> None:
    assert generate(real_server, "The capital of France is", max_new_tokens=8).text.startswith(" Paris")


# 256 tokens by transformers and 256 by the server, on two cores.
@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_and_logprobs_are_those_of_transformers(
    real_server: LaunchedServer, reference: dict[str, tuple[list[int], list[float]]], prompt: str
) -> None:
    ids, logprobs = reference[prompt]
    answer = generate(real_server, prompt, max_new_tokens=NUM_NEW_TOKENS)
    assert list(answer.ids) == ids
    # fp32, another order of summation in attention and in the normaliser.
    assert answer.logprobs == pytest.approx(logprobs, abs=1e-3)


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
    # All blocks but the one in which a token has to be computed.
    assert int(second.headers["x-cached-prompt-tokens"]) >= 1488
    assert metric(real_server, "textmill_prefix_cache_hit_tokens") - hits_between >= 1488
    assert second.ids == first.ids
