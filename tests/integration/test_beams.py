"""Searches by beams on `POST /`, on tiny models behind router and shard, against transformers' own `generate`."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.fakes.real_shard import RealShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_encoders import make_tiny_bart, make_tiny_t5
from tests.fakes.tiny_models import make_tiny_llama, make_tiny_model

TEXTS = ["the quick brown fox", "a summary of texts", "fox of the quick texts, the brown ones", "texts!"]
NUM_BLOCKS = 30  # room for two searches of 50 tokens, so that others wait


@dataclass(frozen=True, slots=True)
class Case:
    """A model behind the server, and the model in transformers."""

    router: RunningRouter
    reference: Any
    tokenizer: tokenizers.Tokenizer
    task: str

    def expected(self, text: str, **options: Any) -> list[str]:
        """Return the texts of transformers' `generate` with these options, as the task shows them."""
        ids = torch.tensor([self.tokenizer.encode(text).ids])
        options = {"pad_token_id": 0, "do_sample": False, **options}
        with torch.inference_mode():
            output = self.reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
        num_prompt = 0 if self.reference.config.is_encoder_decoder else ids.shape[1]
        texts = [str(self.tokenizer.decode(row[num_prompt:].tolist(), skip_special_tokens=True)) for row in output]
        return [one.strip() for one in texts] if self.task == "text2text-generation" else texts

    def found(self, text: str, **parameters: Any) -> list[str]:
        if self.task == "text-generation":
            parameters["return_full_text"] = False
        body = {"inputs": text, "parameters": parameters}
        answer = httpx.post(f"{self.router.url}/", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return [one["generated_text"] for one in answer.json()]


MAKE = {
    "t5": (make_tiny_t5, "text2text-generation"),
    "bart": (partial(make_tiny_bart, max_position_embeddings=200), "text2text-generation"),
    "llama": (make_tiny_llama, "text-generation"),  # the native decoder, where there is a compiler
    "gemma2": (lambda folder: make_tiny_model(folder, "gemma2"), "text-generation"),  # transformers' code, with windows
}


@pytest.fixture(scope="module", params=MAKE)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    make, task = MAKE[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make(folder / "model")
    model = folder / "model"
    has_encoder = task == "text2text-generation"
    reference = (AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM).from_pretrained(
        model, dtype=torch.float32
    )
    shard = partial(RealShard, num_blocks=NUM_BLOCKS)
    with RunningRouter(folder, model=model, make_shard=shard, task=task) as router:
        yield Case(router, reference.eval(), tokenizers.Tokenizer.from_file(str(model / "tokenizer.json")), task)


SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 4, "max_new_tokens": 18},
    {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 2, "max_new_tokens": 12, "length_penalty": 0.5, "early_stopping": "never", "min_new_tokens": 9},
    {"num_beams": 5, "max_new_tokens": 17, "no_repeat_ngram_size": 2, "repetition_penalty": 1.4},
    {"num_beams": 2, "max_length": 50, "min_length": 45},
]


@pytest.mark.parametrize("parameters", SEARCHES, ids=lambda one: f"{one['num_beams']} beams")
def test_the_texts_are_those_of_transformers(case: Case, parameters: dict[str, Any]) -> None:
    for text in TEXTS[:2]:
        assert case.found(text, **parameters) == case.expected(text, **parameters)


def test_tokens_one_by_one_obey_the_same_rules(case: Case) -> None:
    for parameters in (
        {"max_new_tokens": 40, "no_repeat_ngram_size": 2},
        {"max_length": 45, "min_length": 44, "no_repeat_ngram_size": 3},
        {"max_new_tokens": 6, "forced_eos_token_id": 3},
    ):
        assert case.found(TEXTS[0], **parameters) == case.expected(TEXTS[0], num_beams=1, **parameters)


def test_many_searches_and_other_calls_at_once(case: Case) -> None:
    search = {"num_beams": 3, "max_new_tokens": 50}
    plain = {"max_new_tokens": 70, "no_repeat_ngram_size": 3}
    with ThreadPoolExecutor(8) as pool:
        searches = [pool.submit(case.found, text, **search) for text in TEXTS]
        others = [pool.submit(case.found, text, **plain) for text in TEXTS]
        found = [one.result() for one in (*searches, *others)]
    wanted = [case.expected(text, **search) for text in TEXTS]
    assert found == wanted + [case.expected(text, num_beams=1, **plain) for text in TEXTS]
    case.router.wait_until_free()


def test_a_search_that_the_pool_cannot_hold_is_refused_with_the_numbers(case: Case) -> None:
    body = {"inputs": "a", "parameters": {"num_beams": 8, "max_new_tokens": 150}}
    answer = httpx.post(f"{case.router.url}/", json=body, trust_env=False)
    assert answer.status_code == 422
    assert f"of the KV pool, which has {NUM_BLOCKS}" in answer.json()["error"]


def test_a_soft_time_limit_answers_with_the_sequences_so_far(case: Case) -> None:
    [found] = case.found(TEXTS[0], num_beams=2, max_new_tokens=150, max_time=0.02)
    assert isinstance(found, str)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"num_beams": 2, "do_sample": True}, "samples"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_beams": 9}, "1 to 8"),
        ({"num_beams": 2, "length_penalty": 1000}, "length_penalty"),
        ({"num_beams": 2, "details": True}, "details"),
        ({"forced_eos_token_id": 10**6}, "forced_eos_token_id"),
    ],
)
def test_refusals_name_the_field(case: Case, parameters: dict[str, Any], words: str) -> None:
    answer = httpx.post(f"{case.router.url}/", json={"inputs": "a", "parameters": parameters}, trust_env=False)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_a_stream_has_no_beams(case: Case) -> None:
    body = {"inputs": "a", "stream": True, "parameters": {"num_beams": 2}}
    answer = httpx.post(f"{case.router.url}/", json=body, trust_env=False)
    assert (answer.status_code, "`stream`" in answer.json()["error"]) == (422, True)


def test_the_checkpoint_says_how_post_searches_and_generate_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_tiny_bart(folder, max_position_embeddings=100)
    generation = json.loads((folder / "generation_config.json").read_text())
    wishes = {
        **{"num_beams": 4, "early_stopping": True, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
        **{"max_length": 40, "min_length": 12, "forced_eos_token_id": generation["eos_token_id"]},
        "bad_words_ids": [[101], [116, 104]],
    }
    (folder / "generation_config.json").write_text(json.dumps({**generation, **wishes}))
    reference: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    with RunningRouter(tmp_path, model=folder, make_shard=RealShard, task="summarization") as router:
        case = Case(router, reference, tokenizer, "text2text-generation")
        answer = httpx.post(f"{router.url}/", json={"inputs": TEXTS}, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert answer.json() == [{"summary_text": case.expected(text)[0]} for text in TEXTS]
        assert "x-warnings" not in answer.headers
        greedy = httpx.post(
            f"{router.url}/generate", json={"inputs": TEXTS[0], "parameters": {"max_new_tokens": 20}}, trust_env=False
        ).json()
        plain = {"num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0, "forced_eos_token_id": None}
        reference.generation_config.bad_words_ids = None
        assert [greedy["generated_text"].strip()] == case.expected(TEXTS[0], max_new_tokens=21, **plain)


def test_searches_outlive_a_shard_that_dies(tmp_path: Path) -> None:
    folder = make_tiny_t5(tmp_path / "model")
    reference: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    search = {"num_beams": 2, "min_new_tokens": 100, "max_new_tokens": 100}
    with RunningRouter(tmp_path, model=folder, make_shard=RealShard, task="text2text-generation") as router:
        case = Case(router, reference, tokenizer, "text2text-generation")
        with ThreadPoolExecutor(2) as pool:
            searches = [pool.submit(case.found, text, **search) for text in TEXTS[:2]]
            router.wait_until_counts(running=2, waiting=0)
            router.shard.__exit__(None, None, None)
            router.shard = RealShard(tmp_path / "shard.sock", folder).__enter__()
            found = [one.result() for one in searches]
        engine = router.service.open_backend().engine
        counters = [replica.counters for replica in engine.replicas if replica.counters is not None]
        assert router.in_loop(lambda: sum(one.num_readmissions for one in counters)) == 2
        assert found == [case.expected(text, **search) for text in TEXTS[:2]]
