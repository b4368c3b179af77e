"""The launcher and the router know the same names for the tasks of rows."""

from textmill_launcher import task_choice
from textmill_router.tasks import names

HUB_NAMES = (
    *("ner", "sentiment-analysis", "sentence-embeddings", "text-ranking", "sentence-ranking", "text-retrieval"),
    *("text-to-speech", "image-captioning", "translation_en_to_fr", "translation_xx_to_yy"),
)


def test_a_name_of_the_hub_stands_for_one_task_in_both_rooms() -> None:
    for name in (*HUB_NAMES, *names.ROW_TASKS):
        assert names.canonical_task(name) == task_choice.canonical_task(name), name
    for name in HUB_NAMES:
        assert names.canonical_task(name) != name


def test_both_rooms_serve_the_same_tasks_as_rows() -> None:
    assert set(names.ROW_TASKS) == set(task_choice.ROW_TASKS)
