"""Hostile images and audio over HTTP: 422 within a second, within bounded memory, and a normal call beside it unharmed.

The files are those of the tests of the decoders, and more. Shard and router run in the test's process, whose memory is
measured.
"""

import base64
import io
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForAudioClassification, AutoModelForImageClassification

from tests.fakes.av_sounds import hostile_av_sounds
from tests.fakes.hostile_pictures import HOSTILE_PICTURES, encode, picture, png
from tests.fakes.hostile_sounds import HOSTILE_SOUNDS, wav
from tests.fakes.real_row_shard import RealRowShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_media import make_media_model, picture_file, sound_file

MAX_GROWTH_BYTES = 400 << 20  # of the whole process, with the copies of the body in router and shard
LIMIT_S = 1.0


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    kinds = {
        "image": ("image-classification", "vit", AutoModelForImageClassification),
        "audio": ("audio-classification", "hubert", AutoModelForAudioClassification),
    }
    with ExitStack() as stack:
        found = {}
        for kind, (task, model_type, auto_class) in kinds.items():
            folder = tmp_path_factory.mktemp(kind)
            make_media_model(folder / "model", model_type, auto_class, num_labels=4)

            def make_shard(socket: Path, model: Path, task: str = task) -> RealRowShard:
                return RealRowShard(socket, model, task)

            router = stack.enter_context(
                RunningRouter(folder, model=folder / "model", make_shard=make_shard, task=task)
            )
            found[kind] = stack.enter_context(router.client())
        yield found


class PeakMemory:
    """The growth of the process's memory to its peak within the block, in bytes; the kernel keeps the peak."""

    def __enter__(self) -> "PeakMemory":
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmHWM")
        return self

    def __exit__(self, *error: object) -> None:
        self.growth = self._read("VmHWM") - self._before

    def _read(self, name: str) -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) << 10


def answer_beside_normal_calls(client: httpx.Client, hostile: bytes, normal: bytes) -> httpx.Response:
    """Send a file while normal files are sent, whose answers must not change, and return its answer.

    The answer must come within a second. A machine that is busy with other work has three tries.
    """
    for _ in range(3):
        answer, took_s = _try_beside_normal_calls(client, hostile, normal)
        if took_s < LIMIT_S:
            return answer
    raise AssertionError(f"the answer came after {took_s:.1f} s")


def _try_beside_normal_calls(client: httpx.Client, hostile: bytes, normal: bytes) -> tuple[httpx.Response, float]:
    expected = client.post("/", content=normal).json()
    with ThreadPoolExecutor(3) as pool, PeakMemory() as memory:
        others = [pool.submit(client.post, "/", content=normal) for _ in range(2)]
        began_s = time.monotonic()
        answer = client.post("/", content=hostile)
        took_s = time.monotonic() - began_s
        for other in others:
            for found, wanted in zip(other.result().json(), expected, strict=True):
                assert found["label"] == wanted["label"]
                assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)
    assert memory.growth < MAX_GROWTH_BYTES
    return answer, took_s


def _tiff_in_circles() -> bytes:
    """Write a TIFF whose directory names itself as the next one."""
    whole = bytearray(encode(picture(), "TIFF"))
    start = struct.unpack_from("<I", whole, 4)[0]
    num_fields = struct.unpack_from("<H", whole, start)[0]
    struct.pack_into("<I", whole, start + 2 + 12 * num_fields, start)
    return bytes(whole)


def _exif_in_circles() -> bytes:
    """Write a JPEG whose EXIF directory names itself as its next and as its inner one."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)
    whole = encode(picture(), "JPEG")
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]


MORE_PICTURES = {
    "40,000 x 40,000 of zeros": png(40_000, 40_000, bits=1, color=0, body=zlib.compress(bytes(5001 * 4000))),
    "a stream that ends too early": png(300, 300, body=zlib.compress(bytes(901 * 200))),
    "an ICO with a bomb": struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, 60, 22) + png(20_000, 20_000),
    "32 MB of noise": b"\x89PNG\r\n\x1a\n" + np.random.default_rng(1).bytes(30_000_000),
}


@pytest.mark.parametrize("name", [*HOSTILE_PICTURES, *MORE_PICTURES])
def test_a_hostile_picture_is_422(clients: dict[str, httpx.Client], name: str) -> None:
    data = MORE_PICTURES[name] if name in MORE_PICTURES else HOSTILE_PICTURES[name][0]
    answer = answer_beside_normal_calls(clients["image"], data, picture_file(40, 30))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert "`inputs`" in answer.json()["error"]


ALL_SOUNDS = {**HOSTILE_SOUNDS, **hostile_av_sounds()}


@pytest.mark.parametrize("name", ALL_SOUNDS)
def test_hostile_audio_is_422(clients: dict[str, httpx.Client], name: str) -> None:
    answer = answer_beside_normal_calls(clients["audio"], ALL_SOUNDS[name][0], sound_file(0.5))
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert "`inputs`" in answer.json()["error"]


def _endless_frames() -> bytes:
    """Write a GIF of two frames, whose second one is repeated until the file has a megabyte."""
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "green")]
    whole = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    second = whole[whole.rindex(b"\x21\xf9") : -1]
    return whole[:-1] + second * (1_000_000 // len(second)) + b";"


# Odd files that are pictures: they are read, and do not harm.
ODD = {
    "endless frames": _endless_frames(),
    "1 x 1": encode(picture(size=(1, 1)), "PNG"),
    "1 x 60,000": encode(picture(size=(1, 60_000)), "PNG"),
    "16 bits": encode(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16), "PNG"),
    "CMYK": encode(picture().convert("CMYK"), "JPEG"),
    "a TIFF in circles": _tiff_in_circles(),
    "EXIF in circles": _exif_in_circles(),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_is_read(clients: dict[str, httpx.Client], name: str) -> None:
    answer = answer_beside_normal_calls(clients["image"], ODD[name], picture_file(40, 30))
    assert answer.status_code == 200, answer.text
    assert sum(each["score"] for each in answer.json()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [0, 2**32 - 1])
def test_a_wav_from_a_pipe_is_read_as_far_as_it_goes(clients: dict[str, httpx.Client], size: int) -> None:
    """Programs that write to a pipe do not know the length, and promise nothing or the most."""
    samples = (np.sin(np.arange(8000) / 5) * 9000).astype("<i2").tobytes()
    answer = answer_beside_normal_calls(clients["audio"], wav(samples, size=size), sound_file(0.5))
    plain = clients["audio"].post("/", content=wav(samples)).json()
    assert [each["score"] for each in answer.json()] == pytest.approx([each["score"] for each in plain], abs=1e-5)


def test_a_hostile_file_in_a_list_fails_its_own_call(clients: dict[str, httpx.Client]) -> None:
    files = [picture_file(40, 30), png(40_000, 40_000), picture_file(30, 40)]
    answer = clients["image"].post("/", json={"inputs": [base64.b64encode(file).decode() for file in files]})
    assert answer.status_code == 422
    assert "`inputs[1]`" in answer.json()["error"]
    assert "--max-image-pixels" in answer.json()["error"]


def test_the_largest_picture_is_read_within_its_memory(clients: dict[str, httpx.Client]) -> None:
    """49 million pixels are 147 MB in RGB; decoding, turning and the processor may hold some of them at a time."""
    written = io.BytesIO()
    Image.new("RGB", (7000, 7000), (9, 99, 199)).save(written, "PNG", compress_level=1)
    with PeakMemory() as memory:
        answer: Any = clients["image"].post("/", content=written.getvalue())
    assert answer.status_code == 200, answer.text
    # The client, the router and the shard are one process here, and memory that was freed is not always given back.
    assert memory.growth < 5.5 * 147_000_000
