"""Measures what the prefix cache saves: sends a long prompt twice, and prints times to first token and cached tokens.

The result is JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from bench.dialects import GenerationWish, TgiDialect
from bench.http_stream import StreamRecord, stream_once
from bench.prompts import PromptMaker
from bench.servers import Server, free_port

START_TIMEOUT_S = 300.0
OUTPUT_TOKENS = 4


def first_token_s(url: str, prompt: str) -> float:
    """Return the seconds from the request to its first token. Raises RuntimeError when the server refuses."""
    record: StreamRecord = uvloop.run(stream_once(url, TgiDialect(), GenerationWish(prompt, OUTPUT_TOKENS)))
    if record.error is not None:
        raise RuntimeError(record.error)
    return record.token_times_s[0] - record.sent_s


def cached_tokens(url: str, prompt: str) -> int:
    """Send the prompt once more, not streamed, and return how many of its tokens the header counts as cached."""
    body = json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": 1}}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:
        return int(answer.headers["x-cached-prompt-tokens"])


def measure(url: str, model_dir: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one entry per prompt. All prompts differ from their first token on."""
    maker = PromptMaker(model_dir, arguments.seed)
    first_token_s(url, maker.text(arguments.input_len))  # to warm up, because the first long prefill is slower
    rounds = []
    for _ in range(arguments.rounds):
        prompt = maker.text(arguments.input_len)
        first_s, second_s = first_token_s(url, prompt), first_token_s(url, prompt)
        rounds.append(
            {
                "first_ttft_ms": round(first_s * 1000, 2),
                "second_ttft_ms": round(second_s * 1000, 2),
                "ratio": round(second_s / first_s, 4),
                "num_cached_tokens": cached_tokens(url, prompt),
            }
        )
    return rounds


def main() -> None:
    """Measure a running server (--url), or else a launcher that is started with the model."""
    parser = argparse.ArgumentParser(prog="python -m bench.prefix_cache", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--url", help="a server that runs already with this model")
    parser.add_argument("--input-len", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="a new one is a cold cache")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        url = arguments.url
        if url is None:
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            launcher = str(Path(sys.executable).parent / "launcher")
            command = [launcher, "--model-id", str(arguments.model), "--hostname", "127.0.0.1", "--port", str(port)]
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="textmill-bench-")))
            server = stack.enter_context(Server([*command, "--dtype", arguments.dtype], folder / "textmill.log"))
            server.wait_for_http(f"{url}/health", START_TIMEOUT_S)
        rounds = measure(url, arguments.model, arguments)
    ratio = statistics.median(entry["ratio"] for entry in rounds)
    print(json.dumps({"input_tokens": arguments.input_len, "median_ratio": ratio, "rounds": rounds}, indent=2))


if __name__ == "__main__":
    main()
