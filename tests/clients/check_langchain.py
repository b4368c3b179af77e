"""langchain-huggingface against a running server: `check_langchain.py URL`. Runs in a venv of its own."""

import json
import sys
import urllib.request

from langchain_huggingface import HuggingFaceEndpoint

PROMPT = "The capital of France is"
MAX_NEW_TOKENS = 12


def expected_text(url: str) -> str:
    """What POST /generate answers."""
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}}
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = json.load(answer)["generated_text"]
    return text


def make_endpoint(url: str, *, streaming: bool = False) -> HuggingFaceEndpoint:
    return HuggingFaceEndpoint(
        endpoint_url=url,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        typical_p=None,
        repetition_penalty=None,
        return_full_text=False,
        streaming=streaming,
        huggingfacehub_api_token="none",
    )


def main() -> None:
    """Raise AssertionError at the first difference."""
    url = sys.argv[1]
    wanted = expected_text(url)
    assert make_endpoint(url).invoke(PROMPT) == wanted
    print("langchain-huggingface: HuggingFaceEndpoint.invoke")
    pieces = list(make_endpoint(url).stream(PROMPT))
    assert "".join(pieces) == wanted
    assert len(pieces) > 1
    print("langchain-huggingface: HuggingFaceEndpoint.stream")
    assert make_endpoint(url, streaming=True).invoke(PROMPT) == wanted
    print("langchain-huggingface: HuggingFaceEndpoint(streaming=True).invoke")


if __name__ == "__main__":
    main()
