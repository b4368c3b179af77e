"""Load generator: streams many generations from one server and prints the figures as JSON."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.dialects import Dialect, GenerationWish, pick_dialect
from bench.prompts import PromptMaker
from bench.summary import summarise
from bench.traffic import closed_loop, open_loop


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the load generator's flags."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--api", choices=["tgi", "openai"], default="tgi")
    parser.add_argument("--model", default="tgi", help="`model` of the openai dialect")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    arrival = parser.add_mutually_exclusive_group()
    arrival.add_argument("--concurrency", type=int, default=1, help="closed loop: requests in flight")
    arrival.add_argument("--rate", type=float, help="open loop: mean arrivals per second")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=1, help="requests before the measurement")
    parser.add_argument("--input-len", type=int, default=128, help="prompt tokens of each request's own")
    parser.add_argument("--shared-prefix-len", type=int, default=0, help="prompt tokens that all requests share")
    parser.add_argument("--output-len", type=int, default=64, help="most output tokens per request")
    parser.add_argument("--ignore-eos", action="store_true", help="always give --output-len tokens")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals; a new one is a cold cache")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    return parser


async def measure(arguments: argparse.Namespace, dialect: Dialect, wishes: Sequence[GenerationWish]) -> dict[str, Any]:
    """Warm the server up, send the requests, and return the figures.

    `client_cpu_s` shows whether the load generator itself was the limit.
    """
    # Warm-up prompts begin differently and are cut, so that the measured prompts find no prefix of theirs.
    warmup = [
        GenerationWish(f"{number} {wish.prompt}"[:100], wish.max_new_tokens, wish.ignore_eos)
        for number, wish in enumerate(wishes[: arguments.warmup])
    ]
    if warmup:
        await closed_loop(arguments.url, dialect, warmup, concurrency=len(warmup))
    before = os.times()
    if arguments.rate is not None:
        records = await open_loop(arguments.url, dialect, wishes, rate_per_s=arguments.rate, seed=arguments.seed)
    else:
        records = await closed_loop(arguments.url, dialect, wishes, concurrency=arguments.concurrency)
    after = os.times()
    return summarise(records) | {
        "client_cpu_s": round(after.user + after.system - before.user - before.system, 3),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings and the figures of one run."""
    maker = PromptMaker(arguments.tokenizer, arguments.seed)
    prompts = maker.texts(arguments.requests, arguments.input_len, num_shared_tokens=arguments.shared_prefix_len)
    wishes = [GenerationWish(prompt, arguments.output_len, arguments.ignore_eos) for prompt in prompts]
    dialect = pick_dialect(arguments.api, arguments.model)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    return {"settings": settings, "figures": uvloop.run(measure(arguments, dialect, wishes))}


def main() -> None:
    """Print the result as JSON. The exit code is 1 when a request failed."""
    arguments = build_parser().parse_args()
    result = run(arguments)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")
    sys.exit(1 if result["figures"]["num_failed"] else 0)


if __name__ == "__main__":
    main()
