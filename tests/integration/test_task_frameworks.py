"""litellm calls rerank and embeddings by the names of the providers whose forms the server speaks."""

from collections.abc import Iterator

import pytest

from tests.fakes.fake_row_shard import RowShardOptions, plain_vector
from tests.fakes.task_router import task_router
from tests.fakes.word_tokenizer import make_word_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the library and its dependencies
    pytest.mark.usefixtures("thread_loop"),
]
DOCUMENTS = ["a dog", "my name"]


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = RowShardOptions(heads=("labels",), labels=("LABEL_0",))
    with task_router(tmp_path_factory.mktemp("rank"), "rerank", options) as router:
        yield router.url


@pytest.mark.parametrize(
    ("provider", "path"),
    [("cohere", "/v1/rerank"), ("jina_ai", "/v1/rerank"), ("hosted_vllm", ""), ("huggingface", "")],
)
def test_litellm_reranks(ranking: str, provider: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="litellm is a package of the extra dev")
    found = litellm.rerank(
        model=f"{provider}/m", query="the dog", documents=DOCUMENTS, top_n=2, api_base=ranking + path, api_key="-"
    )
    scores = [entry["relevance_score"] for entry in found.results]
    assert scores == sorted(scores, reverse=True)
    assert sorted(entry["index"] for entry in found.results) == [0, 1]


def test_litellm_embeds(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="litellm is a package of the extra dev")
    with task_router(tmp_path_factory.mktemp("embed"), "feature-extraction") as router:
        found = litellm.embedding(model="openai/m", input=DOCUMENTS, api_base=f"{router.url}/v1", api_key="-")
    expected = [plain_vector(make_word_tokenizer().encode(text).ids) for text in DOCUMENTS]
    assert [entry["embedding"] for entry in found.data] == expected
