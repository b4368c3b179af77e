"""summarization and text2text-generation of a tiny T5 on `POST /`, against transformers' greedy `generate`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from textmill_router.api.tgi.writing_wish import DEFAULT_NEW_TOKENS
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TextGenerationPipeline

from tests.fakes.processes import launched
from tests.fakes.tiny_encoders import make_tiny_t5

TEXTS = ["the quick brown fox", "a summary of texts", "fox of the quick texts, the brown ones"]
TASK_PARAMS = {"summarization": {"prefix": "a summary of ", "max_length": 20, "min_length": 9}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = make_tiny_t5(tmp_path_factory.mktemp("t5"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "task_specific_params": TASK_PARAMS}))
    arguments = ["--model-id", str(folder), "--dtype", "float32", "--device", "cpu", "--num-threads", "1"]
    with launched(arguments, tmp_path_factory.mktemp("logs")) as server:
        server.wait_ready()
        yield folder, server.base_url


def written(folder: Path, text: str, **lengths: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        ids = model.generate(**tokenizer(text, return_tensors="pt"), num_beams=1, do_sample=False, **lengths)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


def test_the_longest_answer_that_nobody_names_is_that_of_the_pipelines() -> None:
    assert TextGenerationPipeline._default_generation_config.max_new_tokens == DEFAULT_NEW_TOKENS


def test_the_texts_are_those_of_transformers(served: tuple[Path, str]) -> None:
    folder, url = served
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        assert client.get("/info").json()["model_pipeline_tag"] == "summarization"
        found = client.post("/", json={"inputs": TEXTS}).json()
        expected = [written(folder, "a summary of " + text, max_length=20, min_length=9) for text in TEXTS]
        assert found == [{"summary_text": text} for text in expected]
        body = {"inputs": TEXTS[0], "parameters": {"max_length": 12, "min_length": 1}}
        plain = client.post("/pipeline/text2text-generation", json=body).json()
        assert plain == [{"generated_text": written(folder, TEXTS[0], max_length=12)}]
