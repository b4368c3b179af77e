"""docs/models.md holds the zoo's tables."""

from pathlib import Path

from tests.zoo.entry import ZooEntry
from tests.zoo.image_entry import ImageEntry
from tests.zoo.images import IMAGE_ZOO
from tests.zoo.page import IMAGES, describe, describe_images
from tests.zoo.table import ZOO

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def tables() -> list[list[str]]:
    """Return the rows of the table of texts and of the table of images."""
    parts = PAGE.read_text().split(IMAGES)
    return [[line for line in part.splitlines() if line.startswith("| ")][1:] for part in parts]


def test_the_page_holds_each_row_of_the_tables_and_no_other() -> None:
    texts, images = ([line.rsplit("|", 2)[0] for line in table] for table in tables())
    assert texts == [describe(entry)[:-1] for entry in ZOO]
    assert images == [describe_images(entry)[:-1] for entry in IMAGE_ZOO]


def test_differences_on_the_page_are_within_their_bounds() -> None:
    rows = [row for table in tables() for row in table]
    entries: list[ZooEntry | ImageEntry] = [*ZOO, *IMAGE_ZOO]
    assert all(float(line.split("|")[-2]) <= entry.tolerance for line, entry in zip(rows, entries, strict=True))
