"""How the document shows the routes of a model that summarizes, translates or makes a text of a text."""

from dataclasses import replace
from typing import Any

from textmill_router.api.route_row import RouteRow
from textmill_router.api.task_table import TASK_ERRORS, TASK_PATHS, Shown
from textmill_router.api.tgi.conversational import ConversationAnswer, ConversationBody
from textmill_router.api.tgi.writing import writing_family
from textmill_router.api.tgi.writing_types import SummaryAnswer, TextAnswer, TranslationAnswer, WritingBody

_SHOWN = {
    "summarization": Shown(
        "The summary of a text, or of each text of a list",
        list[SummaryAnswer],
        {
            "inputs": "The tower is 324 metres tall, about as tall as a building of 81 storeys.",
            "parameters": {"max_length": 30},
        },
    ),
    "translation": Shown(
        "The translation of a text, or of each text of a list",
        list[TranslationAnswer],
        {"inputs": "My name is Sarah and I live in London"},
    ),
    "text2text-generation": Shown(
        "The text that the model makes of a text, or of each text of a list",
        list[TextAnswer],
        {"inputs": "Is this review positive or negative? A film that stays with you."},
    ),
}


def rows_for_writing(task: str, general: tuple[RouteRow, ...]) -> tuple[RouteRow, ...]:
    """Return the routes of a model of one of these tasks. `general` are the routes of a model of text generation.

    The endpoints are the same. Where a route does the task, the document shows the form of the task first, and behind
    it the other bodies that the route takes: a conversation, and a body of text generation, which may ask for a stream.
    """
    operations = {row.operation.path: row.operation for row in general if row.operation.method == "post"}
    shown = _SHOWN[task]
    own = {"/vertex": replace(operations["/vertex"], example={"instances": [shown.example]})}
    for path, parameters, operation_id in TASK_PATHS:
        taken = operations["/invocations" if path == "/invocations" else "/"]  # by the route of text generation
        tasks = writing_family(task) if "task" in parameters else (task,)
        of_tasks = (_SHOWN[name].answer for name in tasks if name in _SHOWN)
        own[path] = replace(
            taken,
            path=path,
            summary=shown.summary,
            parameters=parameters,
            operation_id=operation_id,
            body=(WritingBody, ConversationBody, *_several(taken.body)),
            answer=(*of_tasks, ConversationAnswer, *_several(taken.answer)),
            errors=TASK_ERRORS,
            example=shown.example,
        )
    return tuple(
        replace(row, operation=own[row.operation.path])
        if row.operation.method == "post" and row.operation.path in own
        else row
        for row in general
    )


def _several(types: Any) -> tuple[Any, ...]:
    return types if isinstance(types, tuple) else (types,)
