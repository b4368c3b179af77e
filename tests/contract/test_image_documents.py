"""The snippets of docs/images.md run as they stand, and its table of costs tells how many tokens images become."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textmill_router.media.image_source import Detail
from textmill_router.media.worker.image_reader import ImageReader
from textmill_router.media.worker_messages import WorkerSetup
from transformers.processing_utils import ProcessorMixin

from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.image_families import write_image_family
from tests.fakes.pictures import picture
from tests.fakes.running_router import RunningRouter

PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
OPTIONS = FakeShardOptions(vocab_size=300, media_kinds=("llava",))
URL = "http://localhost:3000"


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


CLIP = {"size": {"shortest_edge": 336}, "crop_size": square(336)}
NEXT_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_GRIDS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
QWEN2 = {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12_845_056}}
# Published settings of image processors and of processors, by the rows of the table.
PUBLISHED: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("Llava 1.5", "llava"): (CLIP, {"patch_size": 14}),
    ("Llava-Next", "llava_next"): ({**CLIP, "image_grid_pinpoints": NEXT_GRIDS}, {"patch_size": 14}),
    ("Llava-OneVision", "llava_onevision"): (
        {"size": square(384), "image_grid_pinpoints": ONEVISION_GRIDS},
        {"num_image_tokens": 729, "vision_aspect_ratio": "anyres_max_9"},
    ),
    ("Idefics3 8B", "idefics3"): (
        {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
        {"image_seq_len": 169},
    ),
    ("SmolVLM 500M", "smolvlm"): (
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        {"image_seq_len": 64},
    ),
    ("Qwen2-VL, Qwen2.5-VL", "qwen2_vl"): (QWEN2, {}),
    ("Qwen2-VL, Qwen2.5-VL", "qwen2_5_vl"): (QWEN2, {}),
    ("Qwen3-VL", "qwen3_vl"): ({"patch_size": 16, "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}}, {}),
    ("InternVL3", "internvl"): ({"size": square(448), "max_patches": 12}, {"image_seq_length": 256}),
    ("Mistral Small 3.1", "mistral3"): (
        {"size": {"longest_edge": 1540}, "patch_size": square(14)},
        {"patch_size": 14, "spatial_merge_size": 2},
    ),
    ("Pixtral 12B", "pixtral"): ({"size": {"longest_edge": 1024}, "patch_size": square(16)}, {"patch_size": 16}),
    ("PaliGemma 224", "paligemma"): ({"size": square(224), "image_seq_length": 256}, {}),
    ("Gemma 3", "gemma3"): ({"size": square(896)}, {"image_seq_length": 256}),
}


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


def costs() -> dict[str, tuple[int, int]]:
    """Return the tokens of each row of the table, and those of `detail: low`."""
    table = PAGE[PAGE.index("## Costs of a family") :]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    numbers = {row[0]: [int(re.sub(r"\D.*", "", cell.replace(",", ""))) for cell in row[2:]] for row in cells[2:]}
    return {name: (high, low) for name, (high, low) in numbers.items()}


def test_the_table_of_costs_has_the_families_of_this_test() -> None:
    assert list(costs()) == list(dict.fromkeys(row for row, _ in PUBLISHED))


@pytest.mark.parametrize(("row", "name"), PUBLISHED)
def test_an_image_becomes_as_many_tokens_as_the_table_says(
    row: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The reader changes transformers, which is for a process of its own.
    monkeypatch.setattr(
        ProcessorMixin, "check_argument_for_proper_class", ProcessorMixin.check_argument_for_proper_class
    )
    folder = write_image_family(tmp_path, name)
    files = ("preprocessor_config.json", "processor_config.json")
    for file, settings in zip(files, PUBLISHED[row, name], strict=True):
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    reader = ImageReader(WorkerSetup(str(folder), "float32", 10**7, 10_000, 10, 2 << 30))
    image = picture(1000, 1000)
    counts = [reader.read(image, detail)[0].text.count(reader.facts.row_text) for detail in (Detail.HIGH, Detail.LOW)]
    assert tuple(counts) == costs()[row]
