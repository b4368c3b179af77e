"""langchain-huggingface against a server of vectors: `check_langchain_vectors.py URLS`, a JSON object by task.

Versions from 1.2 on take no address in the place of a model, so that the version before is tried.
"""

import asyncio
import json
import sys
import urllib.request

from langchain_huggingface import HuggingFaceEndpointEmbeddings

TEXTS = ["the happy dog", "my name is sarah", "a sunny day in london"]


def expected_vectors(url: str) -> list[list[float]]:
    """What POST / answers, which has the length that the model's files say."""
    body = json.dumps({"inputs": TEXTS}).encode()
    request = urllib.request.Request(f"{url}/", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        vectors: list[list[float]] = json.load(answer)
    return vectors


def near(found: list[list[float]], wanted: list[list[float]]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(all(abs(a - b) < 1e-6 for a, b in zip(one, other, strict=True)) for one, other in pairs)


def main() -> None:
    """Raise AssertionError at the first difference."""
    url = json.loads(sys.argv[1])["sentence-similarity"]
    wanted = expected_vectors(url)
    chain = HuggingFaceEndpointEmbeddings(model=url, huggingfacehub_api_token="none")
    assert near(chain.embed_documents(TEXTS), wanted)
    assert near([chain.embed_query(TEXTS[0])], wanted[:1])
    assert near(asyncio.run(chain.aembed_documents(TEXTS)), wanted)
    print("langchain-huggingface: HuggingFaceEndpointEmbeddings")


if __name__ == "__main__":
    main()
