"""The playground and /docs in Debian's Chromium, and the page's modules in Node.js, by `make test-playground`.

Each scenario is a file of `tests/clients/playground/scenarios/`, which Playwright drives.
"""

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.clients import vendor
from tests.fakes.hostile_text import HOSTILE_TEXT
from tests.fakes.pictures import saved
from tests.fakes.processes import LaunchedServer
from tests.fakes.real_shard import RealShard
from tests.fakes.running_router import RunningRouter
from tests.fakes.speaking_router import speaking_router
from tests.fakes.tiny_llava import write_tiny_llava

FOLDER = Path(__file__).parents[1] / "clients" / "playground"
SCENARIOS = sorted(path.name.partition(".")[0] for path in (FOLDER / "scenarios").glob("*.test.mjs"))
LIMIT_S = 280
COLOURS = ("red", "green", "blue")
THOUGHT = (
    "<think>\nThe user wants the weather.\n</think>\n\nLet me look.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
)


def run_node(*arguments: str, **environ: str) -> None:
    """Run Node.js in the folder of the tests. Fails with what Node.js printed."""
    command = ["node", "--test", "--test-reporter=spec", *arguments]
    done = subprocess.run(
        command, cwd=FOLDER, env={**os.environ, **environ}, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "pass 0" not in done.stdout


@pytest.fixture(scope="module")
def servers(real_server: LaunchedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The addresses of the scenarios' servers: the demo model and others, named by what each is for.

    `seeing` is a tiny Llava of random weights, and `pictures` are PNG files in base64.
    """
    with ExitStack() as stack:

        def speaks(name: str, text: str, **settings: str) -> str:
            folder = tmp_path_factory.mktemp(name)
            return stack.enter_context(speaking_router(folder, text, "qwen3", **settings)).url

        folder = tmp_path_factory.mktemp("locked")
        locked = stack.enter_context(RunningRouter(folder, api_key=("s3cret",), root_path="/llm"))
        folder = tmp_path_factory.mktemp("seeing")
        llava = write_tiny_llava(folder / "model")
        seeing = stack.enter_context(RunningRouter(folder, model=llava, make_shard=RealShard))
        yield {
            "demo": real_server.base_url,
            "hostile": speaks("hostile", HOSTILE_TEXT),
            "thinking": speaks("thinking", THOUGHT),
            "locked": locked.url,
            "seeing": seeing.url,
            "pictures": [b64encode(saved(Image.new("RGB", (24, 24), name), "PNG")).decode() for name in COLOURS],
        }


def test_last_line_of_the_start_leads_to_the_playground(real_server: LaunchedServer) -> None:
    [line] = [line for line in real_server.log_text.splitlines() if "playground: " in line]
    address = line.rpartition("playground: ")[2]
    assert address == f"{real_server.base_url}/playground"
    answer = httpx.get(address, timeout=LIMIT_S, trust_env=False)
    assert (answer.status_code, "Textmill playground" in answer.text) == (200, True)


@pytest.mark.browser
def test_modules_of_the_page_do_what_their_tests_say() -> None:
    run_node("unit/")


@pytest.mark.browser
def test_vendored_files_are_those_of_npm() -> None:
    files = vendor.packed_files()
    assert {name for name, content in files.items() if (vendor.FOLDER / name).read_bytes() != content} == set()
    names = {path.name for path in vendor.FOLDER.iterdir()} - {"README.md", "versions.json"}
    assert set(files) == names


@pytest.mark.browser
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(servers: dict[str, Any], scenario: str) -> None:
    run_node(f"scenarios/{scenario}.test.mjs", PLAYGROUND_SERVERS=json.dumps(servers), PYTHON=sys.executable)
