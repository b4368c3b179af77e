"""docs/models.md holds the zoo's table."""

from pathlib import Path

from tests.zoo.page import describe
from tests.zoo.table import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_holds_each_row_of_the_table_and_no_other() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert [line.rsplit("|", 2)[0] for line in lines] == [describe(entry)[:-1] for entry in ZOO]


def test_differences_on_the_page_are_within_their_bounds() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    assert all(float(line.split("|")[-2]) <= entry.tolerance for line, entry in zip(lines, ZOO, strict=True))
