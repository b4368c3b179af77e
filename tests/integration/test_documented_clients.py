"""The snippets of docs/clients.md run against the demo model, unchanged but for the address."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.processes import LaunchedServer

REPOSITORY = Path(__file__).parents[2]
JAVASCRIPT = REPOSITORY / "tests" / "clients" / "javascript"
SHOWN_URL = "http://127.0.0.1:3000"
LIMIT_S = 60
SNIPPETS = re.findall(r"```(python|javascript)\n(.*?)```", (REPOSITORY / "docs" / "clients.md").read_text(), re.DOTALL)


def snippets(language: str) -> list[str]:
    found = [text for name, text in SNIPPETS if name == language]
    assert len(found) >= 3
    assert all(SHOWN_URL in text for text in found)
    return found


# The imports of langchain, litellm and instructor take most of the time, so one process imports each once.
@pytest.mark.slow
def test_python_snippets_print_the_answer(real_server: LaunchedServer) -> None:
    programs = [text.replace(SHOWN_URL, real_server.base_url) for text in snippets("python")]
    runner = "import json, sys\nfor text in json.load(sys.stdin):\n    exec(text, {})\n    print('====')"
    done = subprocess.run(
        [sys.executable, "-c", runner],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        timeout=2 * LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split("====")[:-1]
    assert len(printed) == len(programs)
    assert [text for text in printed if "Paris" not in text] == []


@pytest.mark.javascript
@pytest.mark.parametrize("snippet", snippets("javascript"), ids=lambda text: text.partition('from "')[2].split('"')[0])
def test_javascript_snippet_prints_the_answer(real_server: LaunchedServer, snippet: str) -> None:
    program = snippet.replace(SHOWN_URL, real_server.base_url)
    command = ["node", "--input-type=module", "--eval", program]
    done = subprocess.run(command, cwd=JAVASCRIPT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
