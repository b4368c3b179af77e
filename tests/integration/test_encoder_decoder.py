"""Tiny T5 and BART behind launcher, shard and router, in fp32, compared with transformers' own `generate`.

The KV cache holds a few requests only, so some of eight are preempted, and the encoder reads their texts again.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
import torch
from transformers import AutoModelForSeq2SeqLM

from tests.fakes.byte_tokenizer import BEGIN_ID, END_ID
from tests.fakes.processes import LaunchedServer, launched
from tests.fakes.tiny_encoders import PAD_ID, make_tiny_bart, make_tiny_t5

NUM_NEW = 32
# More than the 64 places granted ahead, so that three or four such requests begin together and outgrow the pool.
NUM_LONG = 100
MAX_KV_TOKENS = {"t5": 26 * 16, "bart": 22 * 16}
MAX_PREFILL_TOKENS = 128
MAX_POSITIONS = 120  # of BART
TEXTS = (
    "the quick brown fox",
    "a summary of texts",
    "a",
    "fox of the quick texts, the brown ones",
    "texts!",
    "the the the the a a",
    "of what?",
    "quick summary: brown fox",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model behind the server, and the model in transformers."""

    name: str
    server: LaunchedServer
    reference: Any
    tokenizer: tokenizers.Tokenizer
    first_ids: tuple[int, ...]  # of the decoder
    max_input_tokens: int
    limit: str  # the words of a refusal that name the reason of `max_input_tokens`

    def generate(self, text: str, *, num_new: int = NUM_NEW, num_least: int = 0, **options: Any) -> list[int]:
        """Return transformers' output ids without the decoder's first ids, greedy unless `options` say otherwise."""
        ids = torch.tensor([self.tokenizer.encode(text).ids])
        num_forced = len(self.first_ids) - 1  # transformers counts these ids as new
        with torch.inference_mode():
            output = self.reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_new + num_forced,
                min_new_tokens=num_least + num_forced,
                num_beams=1,
                do_sample=False,
                **options,
            )
        found: list[int] = output[0].tolist()
        assert tuple(found[: len(self.first_ids)]) == self.first_ids
        return found[len(self.first_ids) :]

    def text_of(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def post(self, route: str, body: dict[str, Any], status: int = 200) -> httpx.Response:
        answer = httpx.post(f"{self.server.base_url}{route}", json=body, timeout=60, trust_env=False)
        assert answer.status_code == status, answer.text
        return answer

    def ask(self, text: str, **parameters: Any) -> dict[str, Any]:
        body = {"inputs": text, "parameters": {"max_new_tokens": NUM_NEW, "details": True, **parameters}}
        found: dict[str, Any] = self.post("/generate", body).json()
        return found

    def metric(self, name: str) -> float:
        page = httpx.get(f"{self.server.base_url}/metrics", timeout=10, trust_env=False).text
        line = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
        assert line is not None, name
        return float(line[1])


def ids_of(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["details"]["tokens"]]


@pytest.fixture(scope="module", params=["t5", "bart"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder: Path = tmp_path_factory.mktemp(request.param) / "model"
    if request.param == "t5":
        make_tiny_t5(folder)
        first_ids, limit = (PAD_ID,), (MAX_PREFILL_TOKENS, "the encoder reads a prompt in one step")
    else:
        make_tiny_bart(folder, max_position_embeddings=MAX_POSITIONS)
        first_ids, limit = (END_ID, BEGIN_ID), (MAX_POSITIONS, "where the positions of the encoder end")
    arguments = [
        "--model-id",
        str(folder),
        "--dtype",
        "float32",
        "--max-batch-total-tokens",
        str(MAX_KV_TOKENS[request.param]),
    ]
    arguments += ["--kv-cache-bytes", "8000000", "--max-batch-prefill-tokens", str(MAX_PREFILL_TOKENS)]
    torch.set_num_threads(1)
    reference = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    with launched(arguments, tmp_path_factory.mktemp("server")) as server:
        yield Case(request.param, server.wait_ready(), reference, tokenizer, first_ids, *limit)


def test_greedy_tokens_are_those_of_transformers(case: Case) -> None:
    for text in TEXTS[:3]:
        expected = case.generate(text)
        answer = case.ask(text, decoder_input_details=True)
        assert ids_of(answer) == expected
        assert answer["generated_text"] == case.text_of(expected)
        assert [token["id"] for token in answer["details"]["prefill"]] == list(case.first_ids)


def test_eight_at_once_with_preemptions_and_hang_ups_give_the_same_tokens(case: Case) -> None:
    expected = [case.generate(text, num_new=NUM_LONG, num_least=NUM_LONG) for text in TEXTS]
    assert len({tuple(ids) for ids in expected}) > len(TEXTS) / 2  # so that exchanged answers would show
    before = case.metric("textmill_preemptions")

    def leave_early(text: str) -> None:
        body = {"inputs": text, "parameters": {"max_new_tokens": NUM_NEW, "ignore_eos": True}}
        with httpx.stream(
            "POST", f"{case.server.base_url}/generate_stream", json=body, timeout=60, trust_env=False
        ) as answer:
            next(answer.iter_lines())

    def ask_for_long(text: str) -> dict[str, Any]:
        return case.ask(text, max_new_tokens=NUM_LONG, min_new_tokens=NUM_LONG)

    with ThreadPoolExecutor(16) as pool:
        leaving = [pool.submit(leave_early, text) for text in reversed(TEXTS)]
        answers = list(pool.map(ask_for_long, TEXTS))
        for future in leaving:
            future.result()
    assert [ids_of(answer) for answer in answers] == expected
    assert case.metric("textmill_preemptions") > before


def test_penalties_see_what_the_decoder_has_written_alone(case: Case) -> None:
    text = TEXTS[3]
    expected = case.generate(text, repetition_penalty=1.6)
    assert expected != case.generate(text)
    assert ids_of(case.ask(text, repetition_penalty=1.6)) == expected


def test_a_stream_gives_the_same_text_and_counts_the_input(case: Case) -> None:
    text = TEXTS[1]
    body = {"inputs": text, "parameters": {"max_new_tokens": NUM_NEW, "details": True}}
    lines = case.post("/generate_stream", body).text.split("\n\n")
    events = [json.loads(line.removeprefix("data:")) for line in lines if line]
    assert [event["token"]["id"] for event in events] == case.generate(text)
    assert events[-1]["generated_text"] == case.text_of(case.generate(text))
    assert events[-1]["details"]["input_length"] == len(case.tokenizer.encode(text).ids)


def test_completions_are_answered_and_counted(case: Case) -> None:
    text = TEXTS[0]
    body = {"model": "m", "prompt": text, "max_tokens": NUM_NEW, "temperature": 0, "n": 2}
    answer = case.post("/v1/completions", body).json()
    assert [choice["text"] for choice in answer["choices"]] == [case.text_of(case.generate(text))] * 2
    assert answer["usage"]["prompt_tokens"] == len(case.tokenizer.encode(text).ids)


def test_a_chat_has_no_template(case: Case) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert "template" in case.post("/v1/chat/completions", body, status=422).text


def test_seeded_draws_are_the_same_alone_and_among_others(case: Case) -> None:
    drawn = {"do_sample": True, "seed": 11, "temperature": 1.2, "top_p": 0.9}
    alone = ids_of(case.ask(TEXTS[2], **drawn))
    with ThreadPoolExecutor(5) as pool:
        others = [pool.submit(case.ask, text, do_sample=True, seed=index) for index, text in enumerate(TEXTS[4:])]
        assert ids_of(case.ask(TEXTS[2], **drawn)) == alone
        assert all(other.result() for other in others)
    best = case.ask(TEXTS[2], do_sample=True, best_of=2)
    assert len(best["details"]["best_of_sequences"]) == 1


def test_a_grammar_and_a_stop_string_hold(case: Case) -> None:
    grammar = {"type": "regex", "value": "[a-c]{4}!"}
    assert re.fullmatch("[a-c]{4}!", case.ask(TEXTS[0], grammar=grammar)["generated_text"])
    whole = case.ask(TEXTS[0])["generated_text"]
    stop = whole[2:4]
    stopped = case.ask(TEXTS[0], stop=[stop])
    assert stopped["generated_text"] == whole[: whole.index(stop) + len(stop)]
    assert stopped["details"]["finish_reason"] == "stop_sequence"


def test_an_input_of_the_limit_is_read_and_a_longer_one_refused(case: Case) -> None:
    text = "x" * case.max_input_tokens
    while len(case.tokenizer.encode(text).ids) > case.max_input_tokens:
        text = text[1:]
    assert len(case.tokenizer.encode(text).ids) == case.max_input_tokens
    assert ids_of(case.ask(text)) == case.generate(text)
    body = {"inputs": text + "x", "parameters": {"max_new_tokens": 2}}
    error = case.post("/generate", body, status=422).json()
    assert error["error_type"] == "validation"
    assert f"the limit is {case.max_input_tokens}" in error["error"]
    assert case.limit in error["error"]


def test_info_names_model_task_and_limits(case: Case) -> None:
    info = httpx.get(f"{case.server.base_url}/info", timeout=10, trust_env=False).json()
    assert info["model_pipeline_tag"] == "text2text-generation"
    assert info["max_input_tokens"] == case.max_input_tokens
    # The decoder's own first tokens take room of the window.
    expected = MAX_KV_TOKENS["t5"] if case.name == "t5" else 2 * MAX_POSITIONS
    assert info["max_total_tokens"] == expected - len(case.first_ids)
