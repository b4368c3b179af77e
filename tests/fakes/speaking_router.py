"""A router whose shard gives one text as the answer to every request."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.byte_tokenizer import END_ID
from tests.fakes.chat_templates import template_source
from tests.fakes.fake_shard import FakeShardOptions, text_script
from tests.fakes.running_router import RunningRouter


@contextmanager
def speaking_router(folder: Path, text: str, template: str | None = None, **settings: Any) -> Iterator[RunningRouter]:
    """Run a router whose shard answers every request with `text`."""
    if template is not None:
        config = {"chat_template": template_source(template), "bos_token": "<|begin|>", "eos_token": "<|end|>"}
        path = folder / "config.json"
        path.write_text(json.dumps(config))
        settings["tokenizer_config_path"] = str(path)
    options = FakeShardOptions(script=text_script(text, END_ID), num_blocks=1024)
    with RunningRouter(folder, options, **settings) as router:
        yield router


@contextmanager
def speaking(folder: Path, text: str, template: str | None = None) -> Iterator[httpx.Client]:
    """Give a client of a router whose shard answers with `text`."""
    with speaking_router(folder, text, template) as router, router.client() as client:
        yield client
