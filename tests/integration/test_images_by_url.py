"""The published examples with an image, answered by a tiny Llava: the log-probabilities are transformers'.

The image comes by URL, and to the clients in JavaScript also in base64.

Router and shard run in the test's process, so that the router gets a fetcher for which one local listener is the
internet. The fetcher's guard is that of a server: only `huggingface.co` is allowed, and the name has a public address.
"""

import json
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient

from tests.fakes.image_hosts import PUBLIC, Hosts, picture_by_tls
from tests.fakes.pictures import picture
from tests.fakes.real_shard import RealShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.tiny_llava import transformers_answer, write_tiny_llava

# Sums of the same products in another order; a tower of 3 layers and a decoder of 2.
TOLERANCE = 1e-4
NUM_TOKENS = 12
JAVASCRIPT = Path(__file__).parents[1] / "clients" / "javascript"
LIMIT_S = 120
HOST = "huggingface.co"
RABBIT = f"https://{HOST}/datasets/huggingface/documentation-images/resolve/main/transformers/rabbit.png"
WORDS = "Whats in this image?"
PICTURE = picture(70, 45)


@dataclass(frozen=True)
class Target:
    """A server, the internet that it sees, and the log-probabilities of transformers for WORDS and PICTURE.

    `of_markdown` are those for the words behind the image alone, without the turns of a chat.
    """

    url: str
    hosts: Hosts
    logprobs: list[float]
    of_markdown: list[float]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("url")
    model = write_tiny_llava(folder / "model")
    expected = transformers_answer(model, [WORDS, PICTURE], num_tokens=NUM_TOKENS)
    of_markdown = transformers_answer(model, [PICTURE, WORDS], num_tokens=NUM_TOKENS, has_turns=False)
    with (
        picture_by_tls(HOST, PICTURE) as (hosts, fetcher),
        RunningRouter(folder, model=model, make_shard=RealShard, fetcher=fetcher) as router,
    ):
        yield Target(router.url, hosts, expected.logprobs, of_markdown.logprobs)


def asked(url: str) -> Any:
    content = [{"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": NUM_TOKENS, "temperature": 0, "logprobs": True}


@pytest.mark.parametrize("name", ["openai", "huggingface_hub"])
def test_the_published_example_by_url_gets_the_answer_of_transformers(target: Target, name: str) -> None:
    num_requests = len(target.hosts.requests)
    found: Any
    if name == "openai":
        with openai.OpenAI(base_url=f"{target.url}/v1", api_key="-", max_retries=0) as client:
            found = client.chat.completions.create(model="tgi", **asked(RABBIT))
    else:
        found = InferenceClient(target.url).chat_completion(**asked(RABBIT))
    logprobs = [one.logprob for one in found.choices[0].logprobs.content]
    assert logprobs == pytest.approx(target.logprobs, abs=TOLERANCE)
    assert len(target.hosts.requests) == num_requests + 1
    assert target.hosts.connected[-1] == (PUBLIC, 443)


@pytest.mark.javascript
@pytest.mark.parametrize("form", ["url", "base64"])
def test_the_published_examples_in_javascript_get_the_answer_of_transformers(target: Target, form: str) -> None:
    node = shutil.which("node")
    assert node is not None
    num_requests = len(target.hosts.requests)
    image = RABBIT if form == "url" else f"data:image/png;base64,{b64encode(PICTURE).decode()}"
    command = [node, "ask_images.mjs", target.url, image, WORDS, str(NUM_TOKENS)]
    done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"openai", "openai, stream", "huggingface", "huggingface, stream", "huggingface, markdown"}
    for client, logprobs in found.items():
        expected = target.of_markdown if client.endswith("markdown") else target.logprobs
        assert logprobs == pytest.approx(expected, abs=TOLERANCE), client
    assert target.of_markdown != target.logprobs  # no template stands around the words
    assert len(target.hosts.requests) - num_requests == (len(found) if form == "url" else 0)


def test_a_host_that_is_not_allowed_is_not_asked(target: Target) -> None:
    num_resolved = len(target.hosts.resolved)
    with (
        openai.OpenAI(base_url=f"{target.url}/v1", api_key="-", max_retries=0) as client,
        pytest.raises(openai.UnprocessableEntityError) as error,
    ):
        client.chat.completions.create(model="tgi", **asked("https://example.com/rabbit.png"))
    assert error.value.code == "image_url_not_allowed"
    assert len(target.hosts.resolved) == num_resolved
