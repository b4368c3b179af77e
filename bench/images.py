"""`python -m bench.images`: images a second of a classifier of ViT-base's shape over HTTP, beside the pipeline.

The pipeline is that of transformers, and the weights are random. Both have the same threads, the same JPEG files and
the same run; the pipeline runs alone, one image at a time, after the server has ended.
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
    parser.add_argument("--images", type=int, default=64, help="images of a run")
    parser.add_argument("--callers", type=int, default=16, help="calls beside each other")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    files = [_picture(seed) for seed in range(arguments.images)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_model(folder / "model")
        served_s = _serve(folder, files, num_callers=arguments.callers, num_threads=arguments.threads)
        alone_s = _run_pipeline(folder / "model", files)
    print(f"server, {arguments.callers} callers: {len(files) / served_s:.2f} images/s")
    print(f"transformers' pipeline, one by one: {len(files) / alone_s:.2f} images/s")
    print(f"ratio: {alone_s / served_s:.2f}")


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


def _serve(folder: Path, files: list[bytes], *, num_callers: int, num_threads: int) -> float:
    """Return the seconds in which a server answers all files, after one round that does not count."""
    port = free_port()
    command = [sys.executable, "-m", "textmill_launcher", "--model-id", str(folder / "model"), "--port", str(port)]
    command += ["--dtype", "float32", "--device", "cpu", "--num-threads", str(num_threads)]
    with Server(command, folder / "server.log") as server:
        server.wait_for_http(f"http://127.0.0.1:{port}/health", START_LIMIT_S)

        def ask(file: bytes) -> None:
            connection = HTTPConnection("127.0.0.1", port, timeout=300)
            connection.request("POST", "/", file)
            answer = connection.getresponse()
            found = json.loads(answer.read())
            connection.close()
            if answer.status != 200 or len(found) != 5:
                raise SystemExit(f"{answer.status}: {found}")

        with ThreadPoolExecutor(num_callers) as pool:
            list(pool.map(ask, files[:num_callers]))
            began_s = time.monotonic()
            list(pool.map(ask, files))
            return time.monotonic() - began_s


def _run_pipeline(folder: Path, files: list[bytes]) -> float:
    """Return the seconds in which the pipeline answers all files, one by one, with their decoding."""
    pipe = pipeline("image-classification", model=str(folder), device="cpu", dtype=torch.float32)
    pipe(Image.open(io.BytesIO(files[0])))
    began_s = time.monotonic()
    for file in files:
        pipe(Image.open(io.BytesIO(file)))
    return time.monotonic() - began_s


if __name__ == "__main__":
    main()
