"""The snippets of docs/adapters.md run unchanged but for the address, and its command line is taken."""

import re
import shlex
from pathlib import Path

import pytest
from textmill_launcher.settings import load_settings

from tests.fakes.fake_shard import FakeShardOptions, adapted_text, write_adapter
from tests.fakes.running_router import RunningRouter

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
SHOWN_URL = "http://127.0.0.1:3000"
SNIPPETS = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if SHOWN_URL in text]


def test_snippets_name_load_and_unload_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls, changes = SNIPPETS
    digest = write_adapter(tmp_path / "open" / "poet", "verses")
    settings = {"lora_runtime_updates": True, "lora_dir": str(tmp_path / "open")}
    with RunningRouter(tmp_path, FakeShardOptions(), **settings) as router, router.client() as client:
        loaded = client.post("/v1/load_lora_adapter", json={"lora_name": "poet", "lora_path": "poet"})
        assert loaded.status_code == 200
        exec(calls.replace(SHOWN_URL, router.url), {})
        assert capsys.readouterr().out.splitlines() == [
            adapted_text(digest, 20),
            adapted_text(digest, 20),
            "[('fake/model', None), ('poet', 'fake/model')]",
        ]
        client.post("/v1/unload_lora_adapter", json={"lora_name": "poet"})
        exec(changes.replace(SHOWN_URL, router.url), {})
        assert capsys.readouterr().out.splitlines() == [
            "Success: LoRA adapter 'poet' added successfully.",
            "Success: LoRA adapter 'poet' removed successfully.",
        ]


def test_the_command_line_is_taken() -> None:
    [command] = re.findall(r"^launcher (.*)$", PAGE, re.MULTILINE)
    settings = load_settings(shlex.split(command), {})
    assert settings.model_id == "org/base"
    assert settings.lora_adapters == ("poet=/adapters/poet", "org/clerk", "judge=org/judge@v2")
