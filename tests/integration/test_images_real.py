"""Images through launcher, router and shard with a tiny Llava: transformers' answers, further turns, bad images."""

import base64
import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from tests.fakes.pictures import picture, png_of_zeros, saved
from tests.fakes.processes import LaunchedServer, launched, wait_until
from tests.fakes.tiny_llava import transformers_answer, write_tiny_llava

# Sums of the same products in another order; a tower of 3 layers and a decoder of 2.
TOLERANCE = 1e-4
PICTURES = (picture(70, 45), picture(31, 90, seed=1))


def image(data: bytes) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"},
    }


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llava(tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[LaunchedServer]:
    arguments = ["--model-id", str(folder), "--dtype", "float32", "--kv-cache-bytes", "8000000"]
    with launched(arguments, tmp_path_factory.mktemp("log")) as started:
        yield started.wait_ready()


@pytest.fixture
def client(server: LaunchedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, timeout=60, trust_env=False) as opened:
        yield opened


def chat(client: httpx.Client, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {"messages": messages, "max_tokens": 12, "temperature": 0, "return_token_ids": True, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def number(client: httpx.Client, name: str) -> float:
    """Return a number of /metrics."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name + " ")]
    return float(lines[0].split()[1])


def test_answers_are_those_of_transformers(client: httpx.Client, folder: Path) -> None:
    expected = transformers_answer(folder, [PICTURES[0], "What is this?", PICTURES[1]], num_tokens=12)
    content = [image(PICTURES[0]), text("What is this?"), image(PICTURES[1])]
    found = chat(client, [{"role": "user", "content": content}], logprobs=True)
    assert found["usage"]["prompt_tokens"] == expected.num_prompt_tokens
    assert found["choices"][0]["token_ids"] == expected.token_ids
    logprobs = [token["logprob"] for token in found["choices"][0]["logprobs"]["content"]]
    assert logprobs == pytest.approx(expected.logprobs, abs=TOLERANCE)


def test_published_clients_get_the_answers_of_transformers(server: LaunchedServer, folder: Path) -> None:
    words = "Whats in this image?"
    expected = transformers_answer(folder, [words, PICTURES[0]], num_tokens=12)
    messages: Any = [{"role": "user", "content": [text(words), image(PICTURES[0])]}]
    asked: Any = {"messages": messages, "max_tokens": 12, "temperature": 0, "logprobs": True}
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="-", max_retries=0) as client:
        by_openai = client.chat.completions.create(model="tgi", **asked)
    by_hub = InferenceClient(server.base_url).chat_completion(**asked)
    for found in (by_openai, by_hub):
        logprobs = found.choices[0].logprobs
        assert logprobs is not None
        assert [one.logprob for one in logprobs.content or ()] == pytest.approx(expected.logprobs, abs=TOLERANCE)


def test_the_next_turn_decodes_and_encodes_nothing(client: httpx.Client) -> None:
    first = [{"role": "user", "content": [image(picture(40, 40, seed=5)), text("What is this? " * 4)]}]
    answered = chat(client, first)
    num_puts = number(client, "textmill_media_puts_total")
    said = {"role": "assistant", "content": "A cat."}
    again = chat(client, [*first, said, {"role": "user", "content": "And its colour?"}])
    details = again["usage"]["prompt_tokens_details"]
    assert details["image_tokens"] == 16
    assert details["cached_tokens"] >= 16 * (answered["usage"]["prompt_tokens"] // 16 - 1) >= 32
    assert number(client, "textmill_media_puts_total") == num_puts
    # Heartbeats tell how many images the tower has computed. When that number has the next image, it has all before.
    chat(client, [{"role": "user", "content": [image(picture(40, 40, seed=6)), text("And this?")]}])

    def num_encodes() -> float:
        return number(client, "textmill_media_encodes_total")

    wait_until(lambda: num_encodes() >= num_puts + 1, 10, "the tower has computed the next image")
    assert num_encodes() == num_puts + 1


def test_images_that_differ_by_one_pixel_are_told_apart(client: httpx.Client) -> None:
    first = picture(16, 16, seed=9)
    changed = Image.open(io.BytesIO(first))
    changed.putpixel((3, 3), (0, 0, 0))
    data = [first, saved(changed, "PNG")]
    found = [
        chat(client, [{"role": "user", "content": [image(one), text("x" * 40)]}], logprobs=True, max_tokens=1)
        for one in data
    ]
    assert found[1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    before, after = (one["choices"][0]["logprobs"]["content"][0]["logprob"] for one in found)
    assert before != after


def test_prompt_tokens_of_images_have_no_probability(client: httpx.Client) -> None:
    url = image(PICTURES[0])["image_url"]["url"]
    body = {"inputs": f"![]({url})hello", "parameters": {"max_new_tokens": 1, "decoder_input_details": True}}
    prefill = client.post("/generate", json=body).json()["details"]["prefill"]
    of_image = [one["logprob"] for one in prefill if one["text"] == "<image>"]
    assert of_image == [None] * 16
    assert all(one["logprob"] < 0 for one in prefill[1:] if one["text"] != "<image>")
    found = chat(client, [{"role": "user", "content": [image(PICTURES[0]), text("hello")]}], prompt_logprobs=1)
    rated = found["prompt_logprobs"]
    assert rated.count(None) == 17  # the first token, which follows nothing, and the image
    numbers = [one["logprob"] for entry in rated if entry is not None for one in entry.values()]
    assert all(-9000 < logprob < 0 for logprob in numbers)


def test_text_goes_on_beside_bad_images_and_a_killed_worker(server: LaunchedServer, client: httpx.Client) -> None:
    def polite() -> list[int]:
        words = [{"role": "user", "content": [text("Tell me more.")]}]
        ids: list[int] = chat(client, words, max_tokens=100, ignore_eos=True)["choices"][0]["token_ids"]
        return ids

    def hostile(data: bytes) -> int:
        body = {"messages": [{"role": "user", "content": [image(data)]}], "max_tokens": 1}
        return client.post("/v1/chat/completions", json=body).status_code

    expected = polite()
    with ThreadPoolExecutor(4) as threads:
        streams = [threads.submit(polite) for _ in range(2)]
        bad = [threads.submit(hostile, data) for data in (png_of_zeros(6000, 6000), b"no image", PICTURES[0][:-2000])]
        for worker in server.children("textmill_router.media.worker"):
            os.kill(worker.pid, signal.SIGKILL)
        assert {call.result() for call in bad} == {422}
        assert [stream.result() for stream in streams] == [expected] * 2
    assert hostile(picture(20, 20, seed=11)) == 200
