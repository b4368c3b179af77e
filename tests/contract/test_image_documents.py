"""The snippets of docs/images.md run as they stand, against a router before a shard that takes images."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.image_families import write_image_family
from tests.fakes.pictures import picture
from tests.fakes.running_router import RunningRouter

PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
OPTIONS = FakeShardOptions(vocab_size=300, media_kinds=("llava",))
URL = "http://localhost:3000"


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRouter]:
    folder = tmp_path_factory.mktemp("documents")
    with RunningRouter(folder, OPTIONS, model=write_image_family(folder / "model", "llava")) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the picture that the snippets send."""
    (tmp_path / "cat.png").write_bytes(picture(60, 40))
    return tmp_path


def snippets(language: str) -> list[str]:
    found = re.findall(rf"(?s)```{language}\n(.*?)\n```", PAGE)
    assert found
    return [snippet for snippet in found if URL in snippet]


@pytest.mark.parametrize("snippet", snippets("python"))
def test_python_answers(
    router: RunningRouter,
    place: Path,
    snippet: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    exec(compile(snippet.replace(URL, router.url), "docs/images.md", "exec"), {})
    shown = capsys.readouterr().out
    assert shown.startswith("abcdef")
    assert "image_tokens=16" in shown


@pytest.mark.parametrize("snippet", snippets("bash"))
def test_curl_answers(router: RunningRouter, place: Path, snippet: str) -> None:
    environment = {**os.environ, "no_proxy": "*"}
    found = subprocess.run(
        ["bash", "-c", snippet.replace(URL, router.url)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert '"generated_text":"abcdefghijklmnopqrst"' in found.stdout
    assert router.shard.last_admit is not None
    assert len(router.shard.last_admit.media) == 1
