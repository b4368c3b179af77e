"""The published examples of images, by URL and in base64, with huggingface_hub and openai in Python and JavaScript."""

import base64
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from huggingface_hub import InferenceClient

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.image_families import write_image_family
from tests.fakes.image_hosts import Hosts, picture_by_tls
from tests.fakes.pictures import picture
from tests.fakes.running_router import RunningRouter

JAVASCRIPT = Path(__file__).parents[1] / "clients" / "javascript"
RABBIT = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/transformers/rabbit.png"
PICTURE = picture(70, 45)
OPTIONS = FakeShardOptions(vocab_size=300, media_kinds=("llava",))
LIMIT_S = 60


@dataclass(frozen=True)
class Server:
    """A router with one picture that the internet has at RABBIT."""

    router: RunningRouter
    hosts: Hosts

    def digests(self) -> list[bytes]:
        """The images of the last request."""
        assert self.router.shard.last_admit is not None
        return [span.digest for span in self.router.shard.last_admit.media]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clients")
    model = write_image_family(folder / "model", "llava")
    with (
        picture_by_tls("huggingface.co", PICTURE) as (hosts, fetcher),
        RunningRouter(folder, OPTIONS, model=model, fetcher=fetcher) as router,
    ):
        yield Server(router, hosts)


@pytest.fixture(params=["url", "base64"])
def image(request: pytest.FixtureRequest) -> str:
    return RABBIT if request.param == "url" else f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"


def messages(image: str) -> list[dict[str, object]]:
    content = [{"type": "text", "text": "Whats in this image?"}, {"type": "image_url", "image_url": {"url": image}}]
    return [{"role": "user", "content": content}]


def test_huggingface_hub_generates_from_an_image(server: Server, image: str) -> None:
    client = InferenceClient(server.router.url)
    prompt = f"![]({image})What is this a picture of?\n\n"
    whole = client.text_generation(prompt, max_new_tokens=16, seed=42, return_full_text=False)
    assert whole == "abcdefghijklmnop"
    tokens = client.text_generation(prompt, max_new_tokens=16, seed=42, stream=True)
    assert "".join(tokens) == "abcdefghijklmnop"
    assert len(server.digests()) == 1


def test_huggingface_hub_chats_about_an_image(server: Server, image: str) -> None:
    client = InferenceClient(base_url=server.router.url)
    whole = client.chat.completions.create(messages=messages(image), seed=42, max_tokens=5)
    assert whole.choices[0].message.content == "abcde"
    chunks = client.chat_completion(messages(image), seed=42, max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "abcde"
    assert len(server.digests()) == 1


def test_openai_chats_about_an_image(server: Server, image: str) -> None:
    client = openai.OpenAI(base_url=f"{server.router.url}/v1", api_key="-", max_retries=0)
    whole = client.chat.completions.create(model="tgi", messages=messages(image), max_tokens=5)  # type: ignore[arg-type]
    assert whole.choices[0].message.content == "abcde"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.model_dump()["image_tokens"] == 16
    chunks = client.chat.completions.create(model="tgi", messages=messages(image), max_tokens=5, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "abcde"


def test_openai_raises_the_field_and_the_code(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.router.url}/v1", api_key="-", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.chat.completions.create(model="tgi", messages=messages("https://example.com/x.png"))  # type: ignore[arg-type]
    assert (error.value.param, error.value.code) == ("messages[0].content[1].image_url", "image_url_not_allowed")


def test_url_and_base64_are_one_image(server: Server) -> None:
    client = InferenceClient(server.router.url)
    digests = set()
    for url in (RABBIT, f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"):
        client.chat_completion(messages(url), max_tokens=1)
        digests.update(server.digests())
    assert len(digests) == 1
    assert server.hosts.requests[0].startswith(b"GET /datasets/huggingface/documentation-images/resolve/main/")


@pytest.mark.javascript
def test_the_javascript_clients(server: Server, image: str) -> None:
    node = shutil.which("node")
    assert node is not None
    command = [node, "check_images.mjs", server.router.url, image]
    done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
