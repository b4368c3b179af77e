"""Parameters of TGI's dialect over HTTP, on a tiny model in fp32, compared with transformers' processors and formulas.

The output ids of the server go through the model in this process, whose logits say which ids were allowed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID
from tests.fakes.processes import LaunchedServer, launched
from tests.fakes.tiny_models import make_tiny_llama

PROMPT = "The quick brown fox"
PROMPT_IDS = [BEGIN_ID, *PROMPT.encode()]
TWIN_ID = 319  # has the logits of the best first token
KV_BYTES = str(8 * 1024 * 1024)
TOLERANCE = 1e-3  # for fp32 with sums in another order
Allowed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a llama in which one token has a twin of equal logits."""
    folder = make_tiny_llama(tmp_path_factory.mktemp("parameters"), seed=5)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    best = int(logits_at(model, PROMPT_IDS)[-1].argmax())
    with torch.no_grad():
        model.lm_head.weight[TWIN_ID] = model.lm_head.weight[best]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchedServer]:
    arguments = ["--model-id", str(folder), "--dtype", "float32", "--kv-cache-bytes", KV_BYTES]
    with launched(arguments, tmp_path_factory.mktemp("parameters_server")) as server:
        yield server.wait_ready()


def logits_at(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """Return the logits, [T, V] fp32; each row is for the token that follows."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


def post(server: LaunchedServer, text: str = PROMPT, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": text, "parameters": {"max_new_tokens": 24, "details": True, **parameters}}
    answer = httpx.post(f"{server.base_url}/generate", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids_of(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["details"]["tokens"]]


def rows_of(model: LlamaForCausalLM, output: list[int], prompt: list[int] = PROMPT_IDS) -> torch.Tensor:
    """Return the logits from which each of the N output tokens was chosen, [N, V]."""
    return logits_at(model, [*prompt, *output])[len(prompt) - 1 : -1]


# ---- Greedy, with parameters that change the logits.


def repetition(penalty: float) -> Allowed:
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    return lambda sequence, row: processor(sequence[None], row[None])[0]


def counted(*, frequency: float = 0.0, presence: float = 0.0) -> Allowed:
    """`logit -= frequency x count + presence x (count > 0)`, output tokens only."""

    def process(sequence: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(sequence[len(PROMPT_IDS) :], minlength=len(row))
        return row - frequency * counts - presence * (counts > 0)

    return process


def biased(bias: dict[int, float]) -> Allowed:
    def process(sequence: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        row = row.clone()
        for token_id, value in bias.items():
            row[token_id] += value
        return row

    return process


@pytest.mark.parametrize(
    ("parameters", "process"),
    [
        ({}, counted()),
        ({"temperature": 0, "do_sample": True}, counted()),
        ({"repetition_penalty": 1.7}, repetition(1.7)),
        ({"repetition_penalty": 0.6}, repetition(0.6)),
        ({"frequency_penalty": 1.5}, counted(frequency=1.5)),
        ({"frequency_penalty": -2}, counted(frequency=-2.0)),
        ({"presence_penalty": 2}, counted(presence=2.0)),
        ({"frequency_penalty": 0.7, "presence_penalty": -0.5}, counted(frequency=0.7, presence=-0.5)),
        ({"logit_bias": {"65": 3.5, "66": -50}}, biased({65: 3.5, 66: -50.0})),
        ({"do_sample": True, "top_k": 1}, counted()),
        ({"do_sample": True, "top_p": 1e-4}, counted()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_best_token_after_the_processor_is_the_next(
    server: LaunchedServer, model: LlamaForCausalLM, parameters: dict[str, Any], process: Allowed
) -> None:
    answer = post(server, **parameters)
    output = ids_of(answer)
    rows = rows_of(model, output)
    for position, token in enumerate(output):
        sequence = torch.tensor([*PROMPT_IDS, *output[:position]])
        scores = process(sequence, rows[position])
        assert scores[token] >= scores.max() - TOLERANCE
    # Log-probabilities come from the model's own logits, before the changes that choose a token.
    logprobs = torch.log_softmax(rows, dim=-1)
    shown = [token["logprob"] for token in answer["details"]["tokens"]]
    expected = [float(logprobs[position, token]) for position, token in enumerate(output)]
    assert shown == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    "parameters", [{"repetition_penalty": 1.7}, {"frequency_penalty": 1.5}, {"presence_penalty": 2}]
)
def test_penalties_change_the_text(server: LaunchedServer, parameters: dict[str, Any]) -> None:
    assert ids_of(post(server, **parameters)) != ids_of(post(server))


# ---- Sampled: transformers' warpers let each token through.


@pytest.mark.parametrize(
    ("parameters", "warpers"),
    [
        ({"top_k": 3}, [TopKLogitsWarper(3)]),
        ({"top_p": 0.5}, [TopPLogitsWarper(0.5)]),
        ({"typical_p": 0.3}, [TypicalLogitsWarper(0.3)]),
        ({"min_p": 0.4, "do_sample": True}, [MinPLogitsWarper(0.4)]),
        (
            {"temperature": 1.8, "top_k": 12, "top_p": 0.8, "typical_p": 0.7},
            [TemperatureLogitsWarper(1.8), TopKLogitsWarper(12), TopPLogitsWarper(0.8), TypicalLogitsWarper(0.7)],
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_sampled_tokens_are_those_that_warpers_let_through(
    server: LaunchedServer, model: LlamaForCausalLM, parameters: dict[str, Any], warpers: list[Any]
) -> None:
    num_refused = 0
    drawn = []
    for seed in range(4):
        output = ids_of(post(server, seed=seed, max_new_tokens=40, **parameters))
        drawn.append(tuple(output))
        for token, row in zip(output, rows_of(model, output), strict=True):
            scores = row[None]
            for warper in warpers:
                scores = warper(torch.tensor([[0]]), scores)
            assert torch.isfinite(scores[0, token]), (parameters, seed, token)
            num_refused += int((~torch.isfinite(scores)).sum())
    assert num_refused > 0
    assert len(set(drawn)) > 1


def test_most_typical_token_is_the_one_nearest_to_the_entropy(server: LaunchedServer, model: LlamaForCausalLM) -> None:
    """A mass below that of any token leaves one token: the one with the least | -log p - entropy |."""
    output = ids_of(post(server, typical_p=1e-4, seed=1))
    logprobs = torch.log_softmax(rows_of(model, output), dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1, keepdim=True)
    distance = (-logprobs - entropy).abs()
    for position, token in enumerate(output):
        assert distance[position, token] <= distance[position].min() + TOLERANCE
    assert output != ids_of(post(server))


def test_seed_repeats_the_draw(server: LaunchedServer) -> None:
    first, again, other = (post(server, do_sample=True, seed=seed) for seed in (11, 11, 12))
    assert ids_of(first) == ids_of(again) != ids_of(other)
    assert first["details"]["seed"] == 11


# ---- Details.


def test_prompt_details_are_the_models_own_logprobs(server: LaunchedServer, model: LlamaForCausalLM) -> None:
    prefill = post(server, decoder_input_details=True, max_new_tokens=1)["details"]["prefill"]
    assert [token["id"] for token in prefill] == PROMPT_IDS
    logprobs = torch.log_softmax(logits_at(model, PROMPT_IDS), dim=-1)
    expected = [float(logprobs[position, token]) for position, token in enumerate(PROMPT_IDS[1:])]
    assert prefill[0]["logprob"] is None
    assert [token["logprob"] for token in prefill[1:]] == pytest.approx(expected, abs=TOLERANCE)


def test_top_tokens_are_the_best_with_all_ties(server: LaunchedServer, model: LlamaForCausalLM) -> None:
    logprobs = torch.log_softmax(logits_at(model, PROMPT_IDS)[-1], dim=-1)
    best = torch.topk(logprobs, 6)
    assert TWIN_ID in best.indices[:2].tolist()
    for wanted, num_shown in ((1, 2), (2, 2), (3, 3), (5, 5)):
        [top] = post(server, top_n_tokens=wanted, max_new_tokens=1)["details"]["top_tokens"]
        assert {token["id"] for token in top} == set(best.indices[:num_shown].tolist())
        shown = [token["logprob"] for token in top]
        assert shown == sorted(shown, reverse=True)
        assert shown == pytest.approx(best.values[:num_shown].tolist(), abs=TOLERANCE)


def test_top_tokens_of_each_step(server: LaunchedServer, model: LlamaForCausalLM) -> None:
    answer = post(server, top_n_tokens=4)
    rows = torch.log_softmax(rows_of(model, ids_of(answer)), dim=-1)
    for top, row in zip(answer["details"]["top_tokens"], rows, strict=True):
        assert [token["logprob"] for token in top[:4]] == pytest.approx(
            torch.topk(row, 4).values.tolist(), abs=TOLERANCE
        )


def test_truncate_computes_the_last_tokens_only(server: LaunchedServer, model: LlamaForCausalLM) -> None:
    answer = post(server, truncate=7, decoder_input_details=True)
    kept = PROMPT_IDS[-7:]
    assert [token["id"] for token in answer["details"]["prefill"]] == kept
    rows = rows_of(model, ids_of(answer), kept)
    for token, row in zip(ids_of(answer), rows, strict=True):
        assert row[token] >= row.max() - TOLERANCE


def test_full_text_is_prompt_and_output(server: LaunchedServer) -> None:
    text = post(server)["generated_text"]
    assert post(server, return_full_text=True)["generated_text"] == PROMPT + text


def test_stop_string_ends_the_text_where_it_ends(server: LaunchedServer) -> None:
    text = post(server)["generated_text"]
    start = next(i for i in range(4, len(text)) if text[i : i + 3] and text.index(text[i : i + 3]) == i)
    stop = text[start : start + 3]
    answer = post(server, stop=[stop, "never said"])
    assert answer["generated_text"] == text[: start + 3]
    assert answer["details"]["finish_reason"] == "stop_sequence"


# ---- The end of a sequence.


def test_end_token_ends_unless_told_otherwise(server: LaunchedServer) -> None:
    bias = {str(END_ID): 100}
    ended = post(server, logit_bias=bias)
    assert (ids_of(ended), ended["details"]["finish_reason"]) == ([END_ID], "eos_token")
    assert ended["generated_text"] == ""
    late = post(server, logit_bias=bias, min_new_tokens=5)
    assert (len(ids_of(late)), late["details"]["finish_reason"]) == (6, "eos_token")
    assert END_ID not in ids_of(late)[:-1]
    never = post(server, logit_bias=bias, ignore_eos=True, max_new_tokens=8)
    assert (ids_of(never), never["details"]["finish_reason"]) == ([END_ID] * 8, "length")
    # An end token at the limit counts as the end and not as the limit.
    assert post(server, logit_bias=bias, max_new_tokens=1)["details"]["finish_reason"] == "eos_token"


def test_best_of_is_the_best_by_mean_logprob(server: LaunchedServer, model: LlamaForCausalLM) -> None:
    answer = post(server, best_of=2, do_sample=True, temperature=1.5)
    details = answer["details"]
    sequences = [details, *details["best_of_sequences"]]
    means = []
    for sequence in sequences:
        output = [token["id"] for token in sequence["tokens"]]
        logprobs = torch.log_softmax(rows_of(model, output), dim=-1)
        means.append(float(sum(logprobs[position, token] for position, token in enumerate(output)) / len(output)))
    assert means == sorted(means, reverse=True)
    assert sequences[0]["seed"] != sequences[1]["seed"]


@pytest.mark.parametrize("seed", [3, 4])
def test_returned_sequences_are_those_of_their_seeds(server: LaunchedServer, seed: int) -> None:
    body = {
        "inputs": [PROMPT, "Once"],
        "parameters": {
            "max_new_tokens": 12,
            "do_sample": True,
            "seed": seed,
            "num_return_sequences": 2,
            "details": True,
        },
    }
    answers = httpx.post(f"{server.base_url}/generate", json=body, timeout=60, trust_env=False).json()
    alone = [
        ids_of(post(server, text, do_sample=True, seed=one, max_new_tokens=12))
        for text in (PROMPT, "Once")
        for one in (seed, seed + 1)
    ]
    assert [ids_of(answer) for answer in answers] == alone
