"""`python -m bench.images`: images a second of a classifier of ViT-base's shape over HTTP, beside the pipeline.

The pipeline is that of transformers, and the weights are random. Both have the same threads and the same JPEG files.
They take turns, the server with all callers and the pipeline one image at a time, so that other work on the machine
slows both.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from bench.servers import Server, free_port

START_LIMIT_S = 300.0
NUM_LABELS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32, help="images of a turn")
    parser.add_argument("--turns", type=int, default=3, help="turns of each")
    parser.add_argument("--callers", type=int, default=16, help="calls beside each other")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    files = [_picture(seed) for seed in range(arguments.images)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_model(folder / "model")
        served_s, alone_s = _measure(folder, files, arguments)
    for number, (served, alone) in enumerate(zip(served_s, alone_s, strict=True), 1):
        print(f"turn {number}: server {len(files) / served:.2f}, pipeline {len(files) / alone:.2f} images/s")
    print(f"ratio of all turns: {sum(alone_s) / sum(served_s):.2f}")


def _write_model(folder: Path) -> None:
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(num_labels=NUM_LABELS)).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)


def _picture(seed: int) -> bytes:
    """Return a JPEG of 640 x 480 pixels with smooth colours and some noise, as a photo has."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
    pixels = np.asarray(small).astype(np.int16) + random.integers(-8, 9, (480, 640, 3))
    written = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(written, "JPEG", quality=90)
    return written.getvalue()


def _measure(folder: Path, files: list[bytes], arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return the seconds of each turn of the server and of the pipeline, after a round of each that does not count."""
    port = free_port()
    command = [sys.executable, "-m", "textmill_launcher", "--model-id", str(folder / "model"), "--port", str(port)]
    command += ["--dtype", "float32", "--device", "cpu", "--num-threads", str(arguments.threads)]
    pipe = pipeline("image-classification", model=str(folder / "model"), device="cpu", dtype=torch.float32)

    def ask(file: bytes) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=300)
        connection.request("POST", "/", file)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.close()
        if answer.status != 200 or len(found) != 5:
            raise SystemExit(f"{answer.status}: {found}")

    served_s, alone_s = [], []
    with Server(command, folder / "server.log") as server, ThreadPoolExecutor(arguments.callers) as pool:
        server.wait_for_http(f"http://127.0.0.1:{port}/health", START_LIMIT_S)
        list(pool.map(ask, files[:8]))
        pipe(Image.open(io.BytesIO(files[0])))
        for _ in range(arguments.turns):
            began_s = time.monotonic()
            list(pool.map(ask, files))
            served_s.append(time.monotonic() - began_s)
            began_s = time.monotonic()
            for file in files:
                pipe(Image.open(io.BytesIO(file)))
            alone_s.append(time.monotonic() - began_s)
    return served_s, alone_s


if __name__ == "__main__":
    main()
