"""Images in a real server: the tokens of transformers, nothing encoded twice, and a shard that dies."""

import base64
import io
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from tests.fakes.byte_tokenizer import END_ID
from tests.fakes.image_families import own_processor
from tests.fakes.image_server import greedy_behind, write_tiny_llava
from tests.fakes.pictures import picture
from tests.fakes.processes import LaunchedServer, launched, wait_until
from tests.fakes.reading import metric

# A launcher starts, and in one test a shard imports torch again.
pytestmark = pytest.mark.slow

NOTICE_LIMIT_S = 15.0
NUM_NEW = 12


class Target:
    """A server of the tiny Llava, and transformers' own model."""

    def __init__(self, server: LaunchedServer, folder: Path, model: Any) -> None:
        self.server = server
        self.folder = folder
        self.model = model

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{self.server.base_url}{path}", json=body, timeout=60.0, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def write(self, inputs: str, num_new: int = NUM_NEW) -> list[int]:
        """Return the token ids of a greedy answer."""
        body = {"inputs": inputs, "parameters": {"max_new_tokens": num_new, "details": True}}
        return [token["id"] for token in self.post("/generate", body)["details"]["tokens"]]

    def write_and_kill(self, inputs: str, num_new: int) -> list[int]:
        """Return the token ids of a greedy answer, at whose first token the shard is killed."""
        body = {"inputs": inputs, "parameters": {"max_new_tokens": num_new}}
        ids: list[int] = []
        url = f"{self.server.base_url}/generate_stream"
        with httpx.stream("POST", url, json=body, timeout=120.0, trust_env=False) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    if not ids:
                        [shard] = self.server.children("textmill_shard")
                        shard.send_signal(signal.SIGKILL)
                    ids.append(int(line.split('"id":', 1)[1].split(",", 1)[0]))
        return ids

    def expected(self, inputs: str, *images: bytes, num_new: int = NUM_NEW) -> list[int]:
        """Return what transformers writes behind the prompt that /tokenize tells."""
        ids = [token["id"] for token in self.post("/tokenize", {"inputs": inputs})]
        image_processor = own_processor(self.folder, "llava").image_processor
        opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]
        pixels = image_processor(images=opened, return_tensors="pt")["pixel_values"]
        return greedy_behind(self.model, ids, pixels.to(torch.float32), num_new, END_ID)


def url_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def told(data: bytes, text: str) -> str:
    return f"USER: ![]({url_of(data)}){text} ASSISTANT:"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("llava")
    model = write_tiny_llava(folder)
    place = tmp_path_factory.mktemp("server")
    arguments = ["--model-id", str(folder), "--dtype", "float32", "--kv-cache-bytes", str(8 * 1024 * 1024)]
    arguments += ["--shard-uds-path", str(place / "s")]
    with launched(arguments, place) as server:
        yield Target(server.wait_ready(), folder, model)


def test_an_image_gives_the_tokens_of_transformers(target: Target) -> None:
    data = picture(40, 30, seed=1)
    prompt = told(data, "What is this?")
    assert target.write(prompt) == target.expected(prompt, data)


def test_two_images_and_text_beside_give_the_tokens_of_transformers(target: Target) -> None:
    first, second = picture(20, 20, seed=2), picture(90, 30, seed=3)
    prompt = f"USER: ![]({url_of(first)}) and ![]({url_of(second)})? ASSISTANT:"
    answers: list[list[int]] = []
    threads = [threading.Thread(target=lambda: answers.append(target.write("Some text.", 60))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert target.write(prompt) == target.expected(prompt, first, second)
    for thread in threads:
        thread.join(60)
    assert answers == [target.write("Some text.", 60)] * 3


def test_placeholders_have_no_log_probability_and_the_text_around_has_that_of_transformers(target: Target) -> None:
    data = picture(25, 35, seed=8)
    prompt = told(data, "What is this?")
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 1, "decoder_input_details": True, "details": True}}
    prefill = target.post("/generate", body)["details"]["prefill"]
    ids = [token["id"] for token in prefill]
    image_id = target.model.config.image_token_id
    assert [token["logprob"] is None for token in prefill] == [at == 0 or ids[at] == image_id for at in range(len(ids))]
    pixels = own_processor(target.folder, "llava").image_processor(
        images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="pt"
    )["pixel_values"]
    with torch.inference_mode():
        logits = target.model(input_ids=torch.tensor([ids]), pixel_values=pixels.to(torch.float32)).logits[0]
    for at in range(1, len(ids)):
        if ids[at] != image_id:
            expected = float(logits[at - 1].log_softmax(-1)[ids[at]])
            assert prefill[at]["logprob"] == pytest.approx(expected, abs=1e-4)


def test_one_pixel_makes_another_image(target: Target) -> None:
    """The blocks of the first image are cached, and the second image has the same form and the same text around."""
    one = Image.open(io.BytesIO(picture(16, 16, seed=4)))
    other = one.copy()
    red, green, blue = one.getpixel((7, 7))
    other.putpixel((7, 7), ((red + 128) % 256, green, blue))
    files = []
    for image in (one, other):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    for data in files:
        prompt = told(data, "What is this?")
        assert target.write(prompt) == target.expected(prompt, data)


def test_the_next_turn_of_a_chat_encodes_nothing(target: Target) -> None:
    def ask(*turns: tuple[str, Any]) -> Any:
        messages = [{"role": role, "content": content} for role, content in turns]
        return target.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0})

    def count(name: str) -> float:
        return metric(target.server, f"textmill_media_{name}_total")

    part = {"type": "image_url", "image_url": {"url": url_of(picture(50, 50, seed=5))}}
    question = ("user", [part, {"type": "text", "text": "What is this?"}])
    # Each image of the tests before was put once and encoded once, and a heartbeat may still have to tell of it.
    wait_until(lambda: count("encodes") == count("puts"), NOTICE_LIMIT_S, "a heartbeat tells of the images before")
    num_puts, num_encodes = count("puts"), count("encodes")
    answer = ask(question)
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 16
    wait_until(lambda: count("encodes") == num_encodes + 1, NOTICE_LIMIT_S, "a heartbeat tells of the image")
    again = ask(question, ("assistant", answer["choices"][0]["message"]["content"]), ("user", "And now?"))
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 16
    assert count("puts") == num_puts + 1
    # The count of the next image shows that the second turn has encoded nothing.
    target.write(told(picture(30, 30, seed=6), "?"))
    wait_until(lambda: count("encodes") > num_encodes + 1, NOTICE_LIMIT_S, "a heartbeat tells of the next image")
    assert count("encodes") == num_encodes + 2


def test_a_shard_that_dies_gets_the_image_again(target: Target) -> None:
    data = picture(33, 44, seed=7)
    prompt = told(data, "Tell me more.")
    undisturbed = target.write(prompt, 400)
    # On a busy machine the first token can reach the client after the shard has computed the last one. The launcher
    # restarts a shard three times.
    for _ in range(3):
        target.write(prompt, 1)  # the shard has the image
        num_puts = metric(target.server, "textmill_media_puts_total")
        assert target.write_and_kill(prompt, 400) == undisturbed
        if metric(target.server, "textmill_media_puts_total") > num_puts:
            break
    assert metric(target.server, "textmill_media_puts_total") == num_puts + 1
