"""Writes the last section of docs/tasks.md from runs of tiny models: `python -m tests.zoo.task_page docs/tasks.md`."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from transformers.utils.logging import disable_progress_bar

from tests.zoo.media_models import MEDIA_CASES, MEDIA_TASKS, compare_media
from tests.zoo.task_models import BOUND, CASES, CLASSES, Comparison, compare

HEADING = "## Architectures\n"
HEAD = f"""{HEADING}
The table is generated (`make models-page`). For each model type and class of transformers a tiny random model computes
rows of uneven lengths at once, and each row is compared with transformers' class, which computes the row alone in fp32.
A number is the largest difference, of which the tests allow {BOUND:.0e}; ids and places must be equal. *Flat* rows run
without padding, *padded* rows in a grid, and rows of the layout *alone* one by one. Every model, also of a type that is
not listed, is compared at its start, and runs in the first of these layouts that gives transformers' numbers.

"""


MEDIA_HEAD = f"""
### Images, audio and tables

For each task and model type of images or audio a tiny random model computes three files of other sizes at once in fp32,
and for tables two questions about each of three tables.
Each answer is compared with the answer of transformers' pipeline for the file alone, and where transformers has no
pipeline, with a formula over transformers' class. Texts, labels, boxes, masks and places must be equal. A number is the
largest difference of a score, a time or a depth, of which the tests allow {BOUND:.0e}.

| task | compared | largest difference of each model type |
|---|---|---|
"""
Comparisons = Mapping[tuple[str, str], Comparison]
Differences = Mapping[tuple[str, str], float]


def render(found: Comparisons, media: Differences) -> str:
    """Return the section: one row per model type of text, and one row per task of images and audio."""
    lines = [f"- {task}: {one.compared}" for task, one in CLASSES.items()]
    table = [
        f"| model type | layout | {' | '.join(CLASSES)} |",
        f"|---|---|{'---|' * len(CLASSES)}",
    ]
    for model_type in dict.fromkeys(kind for _, kind in CASES):
        cells = {task: found.get((task, model_type)) for task in CLASSES}
        layouts = dict.fromkeys(one.layout for one in cells.values() if one is not None)
        numbers = ("" if one is None else f"{one.difference:.0e}" for one in cells.values())
        table.append(f"| `{model_type}` | {', '.join(layouts)} | {' | '.join(numbers)} |")
    rows = []
    for task, of_media in MEDIA_TASKS.items():
        numbers_of_types = (
            f"`{kind}` {media[task, kind]:.0e}" for kind in of_media.model_types if (task, kind) in media
        )
        rows.append(f"| {task} | {of_media.compared} | {', '.join(numbers_of_types)} |")
    versions = f"Measured with transformers {transformers.__version__} and torch {torch.__version__}."
    return HEAD + "\n".join([*lines, "", *table]) + "\n" + MEDIA_HEAD + "\n".join([*rows, "", versions]) + "\n"


def replace_section(page: str, section: str) -> str:
    """Return the page with another last section."""
    return page.partition(HEADING)[0].rstrip("\n") + "\n\n" + section


def main() -> None:
    disable_progress_bar()
    torch.set_num_threads(1)
    page = Path(sys.argv[1])
    found = {}
    for task, model_type in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found[task, model_type] = compare(Path(folder), task, model_type)
    media = {}
    for task, model_type in MEDIA_CASES:
        with tempfile.TemporaryDirectory() as folder:
            media[task, model_type] = compare_media(Path(folder), task, model_type)
    page.write_text(replace_section(page.read_text(), render(found, media)))


if __name__ == "__main__":
    main()
