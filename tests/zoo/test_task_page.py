"""The table of docs/tasks.md: a row for each model type that is compared, and no number beyond the bound."""

import re
from pathlib import Path

import pytest

from tests.zoo.media_models import MEDIA_CASES, MEDIA_TASKS, compare_media
from tests.zoo.task_models import BOUND, CASES, CLASSES, Comparison, compare
from tests.zoo.task_page import HEAD, MEDIA_HEAD, render, replace_section

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
ROWS = re.findall(r"^\| `([\w-]+)` \| ([\w, ]+) \|(.*) \|$", PAGE, re.MULTILINE)


def test_the_page_has_each_comparison_and_its_number_within_the_bound() -> None:
    assert HEAD in PAGE
    found = {}
    for model_type, _, cells in ROWS:
        numbers = [cell.strip() for cell in cells.split("|")]
        found |= {(task, model_type): float(one) for task, one in zip(CLASSES, numbers, strict=True) if one}
    assert found.keys() == set(CASES)
    assert max(found.values()) <= BOUND
    for task in CLASSES:  # at least five of the classes that people use
        assert sum(of_task == task for of_task, _ in found) >= 5


@pytest.mark.parametrize("task", CLASSES)
def test_a_comparison_finds_the_layout_and_a_difference_within_the_bound(tmp_path: Path, task: str) -> None:
    one = compare(tmp_path, task, "electra")
    assert (one.layout, one.difference <= BOUND) == ("flat", True)
    [row] = [row for row in ROWS if row[0] == "electra"]
    assert row[1] == "flat"


def test_the_page_has_each_comparison_of_images_and_audio_and_its_number_within_the_bound() -> None:
    assert MEDIA_HEAD in PAGE
    lines = PAGE.partition(MEDIA_HEAD)[2].partition("\n\n")[0].splitlines()
    found = {}
    for line in lines:
        _, task, compared, cells, _ = (part.strip() for part in line.split("|"))
        assert compared == MEDIA_TASKS[task].compared
        found |= {(task, kind): float(number) for kind, number in re.findall(r"`([\w-]+)` ([\de+-]+)", cells)}
    assert found.keys() == set(MEDIA_CASES)
    assert max(found.values()) <= BOUND
    for task in MEDIA_TASKS:  # transformers has no more classes of these four that run without torchvision and others
        few = {"zero-shot-object-detection": 4, "visual-question-answering": 3, "document-question-answering": 4}
        few["table-question-answering"] = 1
        assert sum(of_task == task for of_task, _ in found) >= few.get(task, 5)


@pytest.mark.parametrize("task", MEDIA_TASKS)
def test_a_comparison_of_images_or_audio_is_within_the_bound(tmp_path: Path, task: str) -> None:
    assert compare_media(tmp_path, task, MEDIA_TASKS[task].model_types[0]) <= BOUND


def test_the_section_takes_the_place_of_the_one_before() -> None:
    section = render(
        {(task, "bert"): Comparison("flat", 3e-7) for task in CLASSES}, {("depth-estimation", "dpt"): 2e-7}
    )
    written = replace_section(PAGE, section)
    assert written.count("## Architectures") == 1
    assert "| `bert` | flat | 3e-07 | 3e-07 | 3e-07 | 3e-07 | 3e-07 |" in written
    assert "| depth-estimation | the depth of each pixel | `dpt` 2e-07 |" in written
    assert replace_section(written, section) == written
