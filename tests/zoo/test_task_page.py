"""The table of docs/tasks.md: a row for each model type that is compared, and no number beyond the bound."""

import re
from pathlib import Path

import pytest

from tests.zoo.task_models import BOUND, CASES, CLASSES, Comparison, compare
from tests.zoo.task_page import HEAD, render, replace_section

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


def test_the_section_takes_the_place_of_the_one_before() -> None:
    section = render({(task, "bert"): Comparison("flat", 3e-7) for task in CLASSES})
    written = replace_section(PAGE, section)
    assert written.count("## Architectures") == 1
    assert "| `bert` | flat | 3e-07 | 3e-07 | 3e-07 | 3e-07 | 3e-07 |" in written
    assert replace_section(written, section) == written
