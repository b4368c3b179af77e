"""llama-index against a server of vectors: `check_vectors.py URLS`, a JSON object by task."""

import asyncio
import json
import sys
import urllib.request

from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

TEXTS = ["the happy dog", "my name is sarah", "a sunny day in london"]


def expected_vectors(url: str) -> list[list[float]]:
    """What POST /embed answers."""
    body = json.dumps({"inputs": TEXTS}).encode()
    request = urllib.request.Request(f"{url}/embed", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        vectors: list[list[float]] = json.load(answer)
    return vectors


def near(found: list[list[float]], wanted: list[list[float]]) -> bool:
    return len(found) == len(wanted) and all(
        len(one) == len(other) and all(abs(a - b) < 1e-6 for a, b in zip(one, other, strict=True))
        for one, other in zip(found, wanted, strict=True)
    )


def main() -> None:
    """Raise AssertionError at the first difference."""
    url = json.loads(sys.argv[1])["sentence-similarity"]
    wanted = expected_vectors(url)
    index = TextEmbeddingsInference(base_url=url, model_name="m", timeout=60, embed_batch_size=2)
    assert near(index.get_text_embedding_batch(TEXTS), wanted)
    assert near([index.get_query_embedding(TEXTS[0])], wanted[:1])
    assert near([asyncio.run(index.aget_text_embedding(TEXTS[1]))], wanted[1:2])
    print("llama-index: TextEmbeddingsInference")


if __name__ == "__main__":
    main()
