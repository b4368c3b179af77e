"""Measures images of one megapixel with a tiny random Llava, and prints the figures as JSON.

Time to first token of an image that the server has not seen, beside transformers in this process with the same weights;
of the same image in a further turn; and the times between tokens of text streams, alone and beside images in turns, so
that other work on the machine slows both.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvloop
from PIL import Image
from transformers import AutoModelForImageTextToText

from bench.dialects import GenerationWish, TgiDialect
from bench.http_stream import StreamRecord, stream_once
from bench.servers import Server, free_port
from tests.fakes.image_families import own_processor
from tests.fakes.tiny_llava import write_tiny_llava

START_TIMEOUT_S = 300.0
SIDE = 1000  # pixels
HEARTBEATS_S = 2.5  # after which the router knows what the tower has computed
COUNTERS = ("textmill_media_puts_total", "textmill_media_encodes_total")


def photo(seed: int) -> bytes:
    """Return a JPEG of one megapixel with smooth random colours, as a photo has."""
    coarse = np.random.default_rng(seed).integers(0, 256, (25, 25, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def prompt_of(data: bytes, words: str) -> str:
    return f"USER: ![](data:image/jpeg;base64,{base64.b64encode(data).decode()}){words} ASSISTANT:"


def streamed(url: str, prompt: str, num_tokens: int) -> StreamRecord:
    record: StreamRecord = uvloop.run(stream_once(url, TgiDialect(), GenerationWish(prompt, num_tokens)))
    if record.error is not None:
        raise RuntimeError(record.error)
    return record


def first_token_ms(record: StreamRecord) -> float:
    return (record.token_times_s[0] - record.sent_s) * 1000


def counters(url: str) -> dict[str, float]:
    """Return how many images the shard was given, and how many its tower has computed."""
    time.sleep(HEARTBEATS_S)
    with urllib.request.urlopen(f"{url}/metrics", timeout=START_TIMEOUT_S) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(line.split()[1]) for name in COUNTERS for line in lines if line.startswith(name + " ")}


def own_first_token_ms(folder: Path, rounds: int) -> list[float]:
    """Return the times of transformers, from the bytes of an image to one token."""
    processor = own_processor(folder, "llava")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    times = []
    for seed in range(rounds + 1):
        data = photo(1000 + seed)
        begin = time.perf_counter()
        inputs = processor(
            text=["USER: <image>\nWhat? ASSISTANT:"], images=[Image.open(io.BytesIO(data))], return_tensors="pt"
        )
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        times.append((time.perf_counter() - begin) * 1000)
    return times[1:]  # the first one warms up


@contextmanager
def first_in_line() -> Iterator[None]:
    """Let this process run before the server where the system permits, as if the clients had another machine.

    The client needs little time, and would else wait for a core behind the processes that read images.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


async def gaps_ms(url: str, num_streams: int, num_tokens: int, images: Sequence[str]) -> tuple[list[float], int]:
    """Return the times between tokens of text streams, and how many images were answered beside them."""
    wishes = [GenerationWish(f"{number} words", num_tokens, ignore_eos=True) for number in range(num_streams)]
    streams = [asyncio.create_task(stream_once(url, TgiDialect(), wish)) for wish in wishes]
    num_images = 0
    for prompt in images:
        if all(stream.done() for stream in streams):
            break
        record = await stream_once(url, TgiDialect(), GenerationWish(prompt, 1))
        assert record.error is None, record.error
        num_images += 1
    found = []
    for stream in streams:
        times = (await stream).token_times_s
        found += [(after - before) * 1000 for before, after in pairwise(times)]
    return found, num_images


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.asarray(values), share))


def measure(url: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures."""
    for seed in range(3):  # both workers and the tower have worked once
        streamed(url, prompt_of(photo(seed), "What?"), 4)
    fresh, again = [], []
    changes: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)
    for seed in range(arguments.rounds):
        data = photo(100 + seed)
        fresh.append(first_token_ms(streamed(url, prompt_of(data, "What is this? " * 3), 4)))
        before = counters(url)
        again.append(first_token_ms(streamed(url, prompt_of(data, "What is this? " * 3 + "And its colour?"), 4)))
        after = counters(url)
        changes = {name: changes[name] + after[name] - before[name] for name in COUNTERS}
    alone, beside, num_beside = [], [], 0
    for turn in range(arguments.turns):
        seeds = range(500 + turn * arguments.images, 500 + (turn + 1) * arguments.images)
        images = [prompt_of(photo(seed), "What?") for seed in seeds]
        with first_in_line():
            alone += uvloop.run(gaps_ms(url, arguments.streams, arguments.tokens, []))[0]
            gaps, num_images = uvloop.run(gaps_ms(url, arguments.streams, arguments.tokens, images))
        beside += gaps
        num_beside += num_images
    p99_alone, p99_beside = percentile(alone, 0.99), percentile(beside, 0.99)
    beside_transformers = {}
    if arguments.model is None:
        own = statistics.median(own_first_token_ms(folder, arguments.rounds))
        beside_transformers["transformers_first_token_ms"] = round(own, 1)
    return {
        "first_token_ms": round(statistics.median(fresh), 1),
        **beside_transformers,
        "next_turn_first_token_ms": round(statistics.median(again), 1),
        "next_turn_changes": changes,
        "text_p99_ms_alone": round(p99_alone, 2),
        "text_p99_ms_beside_images": round(p99_beside, 2),
        "text_p99_ratio": round(p99_beside / p99_alone, 2),
        "num_images_beside_text": num_beside,
    }


def main() -> None:
    """Start a launcher with a tiny Llava and measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.image_prompts", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of another model with images; then without transformers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1500, help="output tokens of each text stream")
    parser.add_argument("--images", type=int, default=60, help="most images beside the text streams of a turn")
    parser.add_argument("--turns", type=int, default=4, help="turns of text streams alone and then beside images")
    parser.add_argument("--kv-cache-bytes", type=int, default=16_000_000)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="textmill-bench-")))
        folder = arguments.model or write_tiny_llava(place / "model", max_position_embeddings=4096)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        launcher = str(Path(sys.executable).parent / "launcher")
        command = [launcher, "--model-id", str(folder), "--hostname", "127.0.0.1", "--port", str(port)]
        command += ["--dtype", arguments.dtype, "--kv-cache-bytes", str(arguments.kv_cache_bytes)]
        server = stack.enter_context(Server(command, place / "textmill.log"))
        server.wait_for_http(f"{url}/health", START_TIMEOUT_S)
        print(json.dumps(measure(url, folder, arguments), indent=2))


if __name__ == "__main__":
    main()
