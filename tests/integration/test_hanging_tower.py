"""A tower that does not come back, behind a real launcher: its image fails, the next image gets a new shard."""

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from textmill_shard.engine.media_desk import TOWER_SLACK_S

from tests.fakes.hanging_llava import hang_order, write_hanging_llava
from tests.fakes.pictures import picture, saved
from tests.fakes.processes import LaunchedServer, launched

# The limit of the tower is a minute, and a launcher starts a shard twice.
pytestmark = [pytest.mark.slow, pytest.mark.faults]

LIMIT_S = 120.0
NOTICE_S = 20.0  # after the limit, on a machine with much other work


@dataclass(frozen=True)
class Target:
    server: LaunchedServer
    folder: Path

    def ask(self, content: list[dict[str, Any]] | str, num_tokens: int = 8) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": num_tokens, "ignore_eos": True}
        url = f"{self.server.base_url}/v1/chat/completions"
        return httpx.post(url, json={**body, "temperature": 0}, timeout=LIMIT_S, trust_env=False)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = write_hanging_llava(tmp_path_factory.mktemp("llava") / "model")
    modules = {"HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules"))}
    arguments = ["--model-id", str(folder), "--trust-remote-code", "--dtype", "float32", "--kv-cache-bytes", "8000000"]
    with launched(arguments, tmp_path_factory.mktemp("log"), **modules) as server:
        yield Target(server.wait_ready(), folder)


def told(data: bytes) -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_a_tower_that_hangs_fails_its_image_and_the_next_image_gets_a_new_shard(target: Target) -> None:
    blue = saved(Image.new("RGB", (20, 20), "blue"), "PNG")
    known = picture(30, 40)
    expected = text_of(target.ask(told(known)))
    expected_text = text_of(target.ask("Some text", 60))
    hang_order(target.folder).touch()
    with ThreadPoolExecutor(2) as threads:
        began_s = time.monotonic()
        stuck = threads.submit(target.ask, told(blue))
        while not stuck.done():
            assert text_of(target.ask("Some text", 60)) == expected_text
        answer, took_s = stuck.result(), time.monotonic() - began_s
    assert answer.status_code == 424, answer.text
    assert "the model has not computed an image within" in answer.text
    assert TOWER_SLACK_S <= took_s < TOWER_SLACK_S + NOTICE_S
    # An image that the tower has computed needs the tower no more.
    assert text_of(target.ask(told(known))) == expected
    [shard] = target.server.children("textmill_shard")
    assert "another image waits" not in target.server.log_text
    with ThreadPoolExecutor(2) as threads:  # no call is lost when the shard ends
        calls = [threads.submit(target.ask, told(picture(31, 41, seed=1))), threads.submit(target.ask, "Some text", 60)]
        new, text = [text_of(call.result()) for call in calls]
    assert text == expected_text
    assert "another image waits" in target.server.log_text
    [after] = target.server.children("textmill_shard")
    assert after.pid != shard.pid
    assert text_of(target.ask(told(picture(31, 41, seed=1)))) == new
    assert text_of(target.ask(told(known))) == expected
    hang_order(target.folder).unlink()
    text_of(target.ask(told(blue)))
