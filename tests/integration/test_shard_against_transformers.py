"""The step loop over a tiny random llama in float32, compared with transformers' own `generate`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from textmill_shard.model.runner import ModelRunner
from textmill_shard.slots.plan import Admit, Budget, StepResult
from textmill_shard.slots.sampling_params import SamplingParams
from transformers import AutoModelForCausalLM

from tests.fakes.dry_formula import dry_losses
from tests.fakes.shard_facts import shard_facts
from tests.fakes.step_harness import Shard, ids
from tests.fakes.tiny_models import VOCAB_SIZE, make_tiny_llama

BLOCK_SIZE = 4
NUM_BLOCKS = 512
NUM_SLOTS = 17
NUM_NEW = 12
TOLERANCE = 1e-4  # for float32 with sums in another order

FACTS = shard_facts(
    block_size=BLOCK_SIZE,
    num_blocks=NUM_BLOCKS,
    num_slots=NUM_SLOTS,
    max_step_tokens=256,
    vocab_size=VOCAB_SIZE,
)


def make_prompts(num_prompts: int, *, seed: int) -> list[list[int]]:
    """Return random prompts of 1 to 40 tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCAB_SIZE, random.integers(1, 41)).tolist() for _ in range(num_prompts)]


PROMPTS = make_prompts(8, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def runner(folder: Path) -> ModelRunner:
    torch.set_num_threads(1)
    options = LoadOptions(model_dir=folder, dtype="float32", block_size=BLOCK_SIZE)
    loaded = load_model(options, lambda phase, progress: None)
    loaded.allocate_kv(NUM_BLOCKS)
    return loaded


@pytest.fixture(scope="module")
def oracle(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def generate(oracle: torch.nn.Module, prompt: Sequence[int], num_new: int = NUM_NEW) -> list[int]:
    """Return transformers' greedy tokens."""
    with torch.inference_mode():
        tokens = oracle.generate(  # type: ignore[operator]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
        )
    return tokens[0, len(prompt) :].tolist()


def request(
    slot: int, prompt: Sequence[int], *, num_new: int = NUM_NEW, sampling: SamplingParams | None = None
) -> Admit:
    """Return a request with blocks of its own for all its tokens."""
    first = slot * 30
    return Admit(
        request_id=1000 + slot,
        slot=slot,
        prompt_ids=ids(prompt),
        output_ids=ids([]),
        num_cached_tokens=0,
        block_ids=np.arange(first, first + -(-(len(prompt) + num_new) // BLOCK_SIZE)),
        max_new_tokens=num_new,
        sampling=sampling or SamplingParams(),
        ignore_eos=True,
    )


def run(runner: ModelRunner, *admits: Admit, budget: Budget | None = None) -> dict[int, list[int]]:
    """Run these requests in an epoch of their own, and return the tokens by slot."""
    with Shard(facts=FACTS, runner=runner) as shard:
        shard.send(admits=admits, budget=budget)
        return shard.run_to_end(*(admit.slot for admit in admits))


def test_greedy_tokens_are_those_of_transformers(runner: ModelRunner, oracle: torch.nn.Module) -> None:
    for prompt in PROMPTS:
        assert run(runner, request(0, prompt))[0] == generate(oracle, prompt)


def generate_dry(oracle: torch.nn.Module, prompt: Sequence[int], params: SamplingParams, num_new: int) -> list[int]:
    """Return transformers' greedy tokens, with scores less the losses by DRY's definition, plus the bias."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(num_new):
            scores_V = oracle(torch.tensor([tokens])).logits[0, -1]
            scores_V -= torch.tensor(dry_losses(tokens, params, len(scores_V)))
            for token, bias in params.logit_bias:
                scores_V[token] += bias
            tokens.append(int(scores_V.argmax()))
    return tokens[len(prompt) :]


def test_dry_ends_the_loops_that_greedy_tokens_run_into(runner: ModelRunner, oracle: torch.nn.Module) -> None:
    num_new = 60
    # A random model seldom loops by itself, but repeats a token for ever that gets so large a bias.
    plain = SamplingParams(logit_bias=((10, 15.0),))
    dry = replace(plain, dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=2, dry_breaker_ids=(3, 4))
    prompts = PROMPTS[:3]
    looping, found = (
        run(runner, *(request(slot, prompt, num_new=num_new, sampling=params) for slot, prompt in enumerate(prompts)))
        for params in (plain, dry)
    )
    assert found == {slot: generate_dry(oracle, prompt, dry, num_new) for slot, prompt in enumerate(prompts)}
    assert [longest_repetition(looping[slot]) for slot in range(3)] == [num_new - 1] * 3
    assert all(longest_repetition(found[slot]) < 10 for slot in range(3))  # 2 ** 7 logits are more than any lead


def test_bad_sequences_and_allowed_ids_give_the_tokens_of_transformers(
    runner: ModelRunner, oracle: torch.nn.Module
) -> None:
    prompt = PROMPTS[0]
    plain = generate(oracle, prompt)
    # The first token of the answer alone, and two pairs in a row, of which none begins with the last id of the prompt.
    sequences = ((plain[0],), tuple(plain[3:5]), tuple(plain[6:9]))
    assert prompt[-1] not in {sequence[0] for sequence in sequences}
    allowed = sorted({*plain, 1, 2, 3} - {plain[5]})
    with torch.inference_mode():
        bad, only = (
            oracle.generate(  # type: ignore[operator]
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=NUM_NEW,
                min_new_tokens=NUM_NEW,
                do_sample=False,
                pad_token_id=0,
                **options,
            )[0, len(prompt) :].tolist()
            for options in (
                {"bad_words_ids": [list(sequence) for sequence in sequences]},
                {"prefix_allowed_tokens_fn": lambda batch, ids: allowed},
            )
        )
    assert plain not in (bad, only)
    found = run(
        runner,
        request(0, prompt, sampling=SamplingParams(bad_sequences=sequences)),
        request(1, prompt, sampling=SamplingParams(allowed_ids=tuple(allowed))),
        request(2, prompt),
    )
    assert found == {0: bad, 1: only, 2: plain}


def longest_repetition(tokens: Sequence[int]) -> int:
    """Return the length of the longest stretch that stands twice in a text. The two may overlap."""
    stretches = [
        size
        for size in range(1, len(tokens))
        if len({tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)})
        < len(tokens) - size + 1
    ]
    return max(stretches, default=0)


def test_batched_requests_give_the_tokens_of_transformers(runner: ModelRunner, oracle: torch.nn.Module) -> None:
    found = run(runner, *(request(slot, prompt) for slot, prompt in enumerate(PROMPTS)))
    assert found == {slot: generate(oracle, prompt) for slot, prompt in enumerate(PROMPTS)}


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunked_prefill_gives_the_tokens_of_transformers(
    runner: ModelRunner, oracle: torch.nn.Module, chunk: int
) -> None:
    budget = Budget(max_step_tokens=NUM_SLOTS + 2 * chunk, max_prefill_tokens=2 * chunk, max_chunk_tokens=chunk)
    found = run(runner, *(request(slot, prompt) for slot, prompt in enumerate(PROMPTS)), budget=budget)
    assert found == {slot: generate(oracle, prompt) for slot, prompt in enumerate(PROMPTS)}


def test_a_readmitted_request_goes_on_as_in_transformers(runner: ModelRunner, oracle: torch.nn.Module) -> None:
    for prompt in PROMPTS[:3]:
        undisturbed = generate(oracle, prompt)
        for cut in (1, 6, NUM_NEW - 1):
            again = replace(request(2, prompt), output_ids=ids(undisturbed[:cut]))
            assert run(runner, request(1, PROMPTS[5]), again)[2] == undisturbed[cut:]


def test_reused_prefix_blocks_change_nothing(runner: ModelRunner, oracle: torch.nn.Module) -> None:
    prompt = make_prompts(1, seed=9)[0][:2] + PROMPTS[1] + PROMPTS[2]
    with Shard(facts=FACTS, runner=runner) as shard:
        first = request(0, prompt)
        shard.send(admits=[first])
        output = shard.run_to_end(0)[0]
        assert output == generate(oracle, prompt)
        # A follow-up turn finds in the blocks all tokens of the first turn but the one sampled last.
        follow_up = [*prompt, *output, 5, 6]
        num_shared = (len(prompt) + NUM_NEW - 1) // BLOCK_SIZE
        second = request(1, follow_up)
        blocks = np.concatenate([first.block_ids[:num_shared], second.block_ids[num_shared:]])
        shard.send(admits=[replace(second, block_ids=blocks, num_cached_tokens=num_shared * BLOCK_SIZE)])
        assert shard.run_to_end(1)[1] == generate(oracle, follow_up)


def test_a_seeded_sampled_request_draws_the_same_alone_and_among_others(runner: ModelRunner) -> None:
    sampling = SamplingParams(do_sample=True, temperature=1.3, top_p=0.95, seed=42, repetition_penalty=1.1)
    alone = run(runner, request(0, PROMPTS[0], sampling=sampling))[0]
    assert alone != run(runner, request(0, PROMPTS[0], sampling=replace(sampling, seed=43)))[0]
    others = [
        request(slot, prompt, sampling=SamplingParams(do_sample=slot % 2 == 0, seed=slot))
        for slot, prompt in enumerate(make_prompts(16, seed=8), start=1)
    ]
    mine = replace(request(0, PROMPTS[0], sampling=sampling))
    assert run(runner, *others[:9], mine, *others[9:])[0] == alone


def test_logprobs_and_alternatives_are_those_of_the_model(runner: ModelRunner, oracle: torch.nn.Module) -> None:
    asks = SamplingParams(wants_logprobs=True, top_n_tokens=3)
    with Shard(facts=FACTS, runner=runner) as shard:
        shard.send(admits=[request(0, PROMPTS[1]), request(1, PROMPTS[0], sampling=asks)])
        tokens = shard.run_to_end(0, 1)[1]
        results = shard.results
    with torch.inference_mode():
        logits_TV = oracle(torch.tensor([[*PROMPTS[0], *tokens]])).logits[0]
    expected_TV = logits_TV.log_softmax(-1)[len(PROMPTS[0]) - 1 : -1]
    assert logprobs_of(results, 1) == pytest.approx(
        expected_TV.gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist(), abs=TOLERANCE
    )
    tops = [top for result in results for top in result.top_tokens]
    assert [top.ids.tolist() for top in tops] == expected_TV.topk(3).indices.tolist()


def logprobs_of(results: Sequence[StepResult], slot: int) -> list[float]:
    return [
        float(result.logprobs[result.slots.tolist().index(slot)])
        for result in results
        if result.logprobs is not None and slot in result.slots
    ]


@pytest.mark.parametrize("chunk", [5, 200])
def test_prompt_logprobs_are_those_of_the_model(runner: ModelRunner, oracle: torch.nn.Module, chunk: int) -> None:
    prompt = make_prompts(1, seed=21)[0] + PROMPTS[3]
    budget = Budget(max_step_tokens=256, max_prefill_tokens=chunk, max_chunk_tokens=chunk)
    with Shard(facts=FACTS, runner=runner) as shard:
        shard.send(admits=[replace(request(0, prompt), prompt_logprobs_from=1)], budget=budget)
        shard.run_to_end(0)
        found = [value for result in shard.results for piece in result.prompt_logprobs for value in piece.logprobs]
    with torch.inference_mode():
        expected_TV = oracle(torch.tensor([prompt])).logits[0].log_softmax(-1)
    expected = expected_TV[:-1].gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert found == pytest.approx(expected.tolist(), abs=TOLERANCE)
