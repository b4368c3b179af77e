"""The routes of models without generation, and the answers of these routes on a model that writes text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from textmill_router.api.openai.errors import V1_ERROR_STYLES
from textmill_router.api.openapi import answer_types as answers
from textmill_router.api.openapi.operation import Operation
from textmill_router.api.route_row import RouteRow
from textmill_router.api.tasks import answer_types as shapes
from textmill_router.api.tasks.call_bodies import AudioFormBody, PickedBody, PickForm
from textmill_router.api.tasks.info import TaskInfoRoute
from textmill_router.api.tasks.route import TaskRoute, always, form_of_path, form_of_shape
from textmill_router.api.tasks.vertex import VertexTaskRoute
from textmill_router.api.tasks.wrong_task import WrongTaskRoute
from textmill_router.api.tgi.types import VertexAnswer, VertexBody
from textmill_router.api.writing_routes import TaskPathRoute, compat_route
from textmill_router.http.path_style import ROOT_STYLE, PathStyle
from textmill_router.http.static_pages import PageElsewhere
from textmill_router.serving.service import Service
from textmill_router.tasks.forms import (
    DECODE,
    EMBED,
    EMBED_ALL,
    EMBED_SPARSE,
    EMBEDDINGS,
    FORMS,
    PREDICT,
    SPEECH,
    TOKENIZE,
    TRANSCRIPTION,
    TaskForm,
    family_of,
)
from textmill_router.tasks.names import is_text_task
from textmill_router.tasks.text_to_audio import SpeechRequest
from textmill_router.tasks.text_tokens import TextToken
from textmill_router.tasks.transcription import FILE_FIELD, TranscriptionFields

TASK_ERRORS = (400, 401, 404, 408, 413, 415, 422, 424, 429, 500, 503, 504)
# The paths at which a model does its task, with the parameters of each path and the name of its operation.
TASK_PATHS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("/", (), "task"),
    ("/models/{model:path}/pipeline/{task}", ("model", "task"), "task_pipeline_of_model"),
    ("/models/{model:path}", ("model",), "task_of_model"),
    ("/pipeline/{task}", ("task",), "task_pipeline"),
    ("/invocations", (), "sagemaker_compatibility"),
    ("/predict", (), "predict"),
)
_VECTORS = ("feature-extraction", "sentence-similarity")
_CLASSIFICATION = ("text-classification", "zero-shot-classification", "rerank")


@dataclass(frozen=True, slots=True)
class Shown:
    """How the document shows a task: a sentence, the answer of one input or several, and an example."""

    summary: str
    answer: Any
    example: dict[str, Any]
    answer_types: tuple[str, ...] = ()  # of an answer that is a file


# A PNG of one pixel in base64.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
_SHOWN = {
    "feature-extraction": Shown(
        "The vector of a text, or of each text of a list",
        (list[float], list[list[float]]),
        {"inputs": "Today is a sunny day"},
    ),
    "sentence-similarity": Shown(
        "How alike one sentence and others are",
        list[float],
        {"inputs": {"source_sentence": "a happy person", "sentences": ["a happy dog", "a sunny day"]}},
    ),
    "text-classification": Shown(
        "The labels of a text, or of each text of a list",
        list[list[shapes.LabelScore]],
        {"inputs": "I like you. I love you"},
    ),
    "zero-shot-classification": Shown(
        "The labels of the call, in the order in which they fit the text",
        (shapes.ZeroShotAnswer, list[shapes.ZeroShotAnswer], list[shapes.LabelScore]),
        {
            "inputs": "I want my money back",
            "parameters": {"candidate_labels": ["refund", "legal", "faq"]},
        },
    ),
    "rerank": Shown(
        "Texts in the order in which they answer a query; needs a classifier with one label",
        (list[shapes.RankedText], shapes.RerankAnswer),
        {"query": "What is a panda?", "texts": ["A bear of China", "A car"]},
    ),
    "token-classification": Shown(
        "The entities of a text, or of each text of a list",
        (list[shapes.EntityGroup], list[shapes.TokenEntity], list[list[shapes.EntityGroup]]),
        {"inputs": "My name is Sarah and I live in London"},
    ),
    "fill-mask": Shown(
        "The tokens that fit best in the place of the mask token",
        (list[shapes.Filling], list[list[shapes.Filling]]),
        {"inputs": "The answer to the universe is [MASK]."},
    ),
    "question-answering": Shown(
        "The part of a context that answers a question",
        (shapes.AnswerSpan, list[shapes.AnswerSpan]),
        {"inputs": {"question": "What is my name?", "context": "My name is Clara and I live in Berkeley."}},
    ),
    "table-question-answering": Shown(
        "The cells of a table that answer a question",
        (shapes.TableAnswer, list[shapes.TableAnswer]),
        {
            "inputs": {
                "query": "How many stars does the transformers repository have?",
                "table": {"Repository": ["Transformers", "Datasets"], "Stars": ["36542", "4512"]},
            }
        },
    ),
    "image-classification": Shown(
        "The labels of an image, or of each image of a list",
        (list[shapes.LabelScore], list[list[shapes.LabelScore]]),
        {"inputs": _PIXEL},
    ),
    "object-detection": Shown(
        "The objects of an image, or of each image of a list",
        (list[shapes.DetectedObject], list[list[shapes.DetectedObject]]),
        {"inputs": _PIXEL},
    ),
    "image-segmentation": Shown(
        "The segments of an image with their masks, or of each image of a list",
        (list[shapes.ImageSegment], list[list[shapes.ImageSegment]]),
        {"inputs": _PIXEL},
    ),
    "zero-shot-image-classification": Shown(
        "How well labels of the call fit an image, or each image of a list",
        (list[shapes.LabelScore], list[list[shapes.LabelScore]]),
        {"inputs": _PIXEL, "parameters": {"candidate_labels": ["cat", "dog"]}},
    ),
    "zero-shot-object-detection": Shown(
        "The objects of an image, or of each image of a list, that labels of the call describe",
        (list[shapes.DetectedObject], list[list[shapes.DetectedObject]]),
        {"inputs": _PIXEL, "parameters": {"candidate_labels": ["cat", "dog"]}},
    ),
    "depth-estimation": Shown(
        "The depth of each pixel of an image, or of each image of a list",
        (shapes.DepthMap, list[shapes.DepthMap]),
        {"inputs": _PIXEL},
    ),
    "image-to-text": Shown(
        "A text about an image, or about each image of a list",
        (list[shapes.Caption], shapes.Caption),
        {"inputs": _PIXEL},
    ),
    "visual-question-answering": Shown(
        "The answers to a question about an image, or about each image of a list",
        (list[shapes.PictureAnswer], list[list[shapes.PictureAnswer]]),
        {"inputs": {"image": _PIXEL, "question": "What is it?"}},
    ),
    "document-question-answering": Shown(
        "The words of a page that answer a question, or of each page of a list",
        (list[shapes.PageAnswer], list[list[shapes.PageAnswer]]),
        {
            "inputs": {"image": _PIXEL, "question": "What is the total?"},
            "parameters": {"word_boxes": [["Total:", [100, 500, 180, 530]], ["$9.90", [190, 500, 260, 530]]]},
        },
    ),
    "audio-classification": Shown(
        "The labels of audio, or of each file of a list",
        (list[shapes.LabelScore], list[list[shapes.LabelScore]]),
        {"inputs": "UklGRi4AAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQoAAAAAAAAAAAAAAAAA"},
    ),
    "automatic-speech-recognition": Shown(
        "The words of speech, or of each file of a list",
        (shapes.TranscriptAnswer, list[shapes.TranscriptAnswer]),
        {"inputs": "UklGRi4AAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQoAAAAAAAAAAAAAAAAA"},
    ),
    "text-to-audio": Shown(
        "A text, spoken",
        None,
        {"inputs": "Good morning everybody"},
        ("audio/flac", "audio/wav", "audio/ogg", "audio/mpeg"),
    ),
}


def _v1_style(service: Service) -> PathStyle:
    return PathStyle("/v1", V1_ERROR_STYLES[service.settings.v1_errors])


def _route(pick: PickForm, *, is_v1: bool = False) -> Callable[[Service], ASGIApp]:
    def make(service: Service) -> ASGIApp:
        return TaskRoute(service, PickedBody(pick), _v1_style(service) if is_v1 else ROOT_STYLE)

    return make


def _own_rows(task: str) -> list[RouteRow]:
    """Return the routes that serve the tasks of the model's family."""
    family = family_of(task)
    body = tuple(FORMS[member].body for member in family)
    answer = tuple(
        one
        for member in family
        for one in (_SHOWN[member].answer if isinstance(_SHOWN[member].answer, tuple) else (_SHOWN[member].answer,))
        if one is not None
    )
    shown = _SHOWN[task]
    rows = []
    for path, parameters, operation_id in TASK_PATHS:
        if path == "/predict" and task in _CLASSIFICATION:
            continue
        pick = form_of_path if "task" in parameters else form_of_shape
        operation = Operation(
            path=path,
            method="post",
            summary=shown.summary,
            parameters=parameters,
            operation_id=operation_id,
            body=body,
            answer=answer or None,
            answer_types=shown.answer_types,
            errors=TASK_ERRORS,
            example=shown.example,
            query=FORMS[task].parameters,
        )
        rows.append(RouteRow(_route(pick), operation))
    vertex = Operation(
        path="/vertex",
        method="post",
        summary="Vertex AI: one answer for each instance",
        body=VertexBody,
        answer=VertexAnswer,
        errors=TASK_ERRORS,
        example={"instances": [shown.example]},
        operation_id="vertex_compatibility",
    )
    rows.append(RouteRow(vertex_task_route, vertex))
    return rows


def vertex_task_route(service: Service) -> ASGIApp:
    """Return the ASGI endpoint of /vertex, which also serves the path that Vertex AI names."""
    return VertexTaskRoute(service, TaskRoute(service, PickedBody(form_of_shape)))


def _form_row(path: str, form: TaskForm, summary: str, answer: Any, example: Any) -> RouteRow:
    is_v1 = path.startswith("/v1")
    operation = Operation(
        path=path,
        method="post",
        summary=summary,
        body=form.body,
        answer=answer,
        errors=TASK_ERRORS,
        example=example,
        operation_id=path.strip("/").replace("/", "_"),
        error=answers.OpenAIErrorResponse if is_v1 else answers.ErrorResponse,
    )
    return RouteRow(_route(always(form), is_v1=is_v1), operation)


_TEXT = {"inputs": "Today is a sunny day"}
_VECTOR_ROWS = (
    _form_row("/embed", EMBED, "The vectors of texts", list[list[float]], _TEXT),
    _form_row("/embed_all", EMBED_ALL, "The vectors of the tokens of texts", list[list[list[float]]], _TEXT),
    _form_row("/embed_sparse", EMBED_SPARSE, "The weights of vocabulary ids", list[list[shapes.SparseWeight]], _TEXT),
    _form_row(
        "/similarity",
        FORMS["sentence-similarity"],
        _SHOWN["sentence-similarity"].summary,
        list[float],
        _SHOWN["sentence-similarity"].example,
    ),
    _form_row("/v1/embeddings", EMBEDDINGS, "Vectors in OpenAI's form", shapes.EmbeddingsAnswer, {"input": "Hello"}),
)
_CLASSIFICATION_ROWS = (
    _form_row(
        "/predict",
        PREDICT,
        "The labels of texts and pairs of texts, as embedding servers give them",
        (list[shapes.LabelScore], list[list[shapes.LabelScore]]),
        {"inputs": "I like you. I love you"},
    ),
    _form_row("/rerank", FORMS["rerank"], _SHOWN["rerank"].summary, _SHOWN["rerank"].answer, _SHOWN["rerank"].example),
    _form_row(
        "/v1/rerank", FORMS["rerank"], _SHOWN["rerank"].summary, _SHOWN["rerank"].answer, _SHOWN["rerank"].example
    ),
)


_TOKEN_ROWS = (
    _form_row(
        "/tokenize",
        TOKENIZE,
        "The tokens of texts and the characters where they stand, as embedding servers give them",
        list[list[TextToken]],
        _TEXT,
    ),
    _form_row("/decode", DECODE, "The texts of token ids", list[str], {"ids": [1, 2, 3]}),
)


def _audio_row(path: str, summary: str, *, translates: bool) -> RouteRow:
    operation = Operation(
        path=path,
        method="post",
        summary=summary,
        form=TranscriptionFields,
        form_file=FILE_FIELD,
        answer=(shapes.TranscriptionAnswer, shapes.VerboseTranscription),
        text=True,
        errors=TASK_ERRORS,
        operation_id=path.removeprefix("/").replace("/", "_"),
        error=answers.OpenAIErrorResponse,
    )
    return RouteRow(
        lambda service: TaskRoute(service, AudioFormBody(translates=translates), _v1_style(service)), operation
    )


_AUDIO_ROWS = (
    _audio_row("/v1/audio/transcriptions", "The words of speech, in OpenAI's form", translates=False),
    _audio_row("/v1/audio/translations", "The words of speech in English, in OpenAI's form", translates=True),
)
_SPEECH_ROW = RouteRow(
    _route(always(SPEECH), is_v1=True),
    Operation(
        path="/v1/audio/speech",
        method="post",
        summary="A text, spoken, in OpenAI's form",
        body=SpeechRequest,
        answer_types=("audio/mpeg", "audio/opus", "audio/flac", "audio/wav", "audio/pcm"),
        errors=TASK_ERRORS,
        example={"input": "Good morning everybody", "model": "any", "voice": "0"},
        operation_id="v1_audio_speech",
        error=answers.OpenAIErrorResponse,
    ),
)
TASK_ALIASES = {
    path.removeprefix("/v1"): path
    for path in ("/v1/embeddings", "/v1/audio/speech", *(row.operation.path for row in _AUDIO_ROWS))
}


def _wrong(row: RouteRow) -> RouteRow:
    """Return the route as a refusal, which the document does not show."""
    path = row.operation.path

    def make(service: Service) -> ASGIApp:
        made = row.make(service)
        style = getattr(made, "style", ROOT_STYLE)
        assert isinstance(style, PathStyle)
        return WrongTaskRoute(service, path, style)

    return RouteRow(make, Operation(path=path, method=row.operation.method, summary="", is_shown=False))


def rows_for_task(task: str, general: tuple[RouteRow, ...]) -> list[RouteRow]:
    """Return the routes of a model without generation. `general` are the routes of a model that writes text.

    Of those the ones that need such a model become refusals, unless the task has the same route. The playground writes
    prompts, so that its address leads to /docs, which sends calls of the task.
    """
    info = Operation(
        path="/info",
        method="get",
        summary="The model, its task and its labels",
        answer=shapes.TaskInfoAnswer,
        errors=(401, 503),
        operation_id="get_model_info",
    )
    playground = Operation(path="/playground", method="get", summary="Leads to /docs", is_shown=False)
    own = [
        *_own_rows(task),
        RouteRow(TaskInfoRoute, info),
        RouteRow(lambda _: PageElsewhere("docs"), playground, needs_key=False, is_playground=True),
    ]
    own += _VECTOR_ROWS if task in _VECTORS else [_wrong(row) for row in _VECTOR_ROWS]
    if task in _CLASSIFICATION:
        own += _CLASSIFICATION_ROWS
    else:
        own += [_wrong(row) for row in _CLASSIFICATION_ROWS if row.operation.path != "/predict"]
    own += _TOKEN_ROWS if is_text_task(task) else ()
    own.append(_SPEECH_ROW if task == SPEECH.task else _wrong(_SPEECH_ROW))
    own += _AUDIO_ROWS if task == TRANSCRIPTION.task else [_wrong(row) for row in _AUDIO_ROWS]
    taken = {(row.operation.method, row.operation.path) for row in own}
    others = [
        row for row in general if (row.operation.method, row.operation.path) not in taken and not row.is_playground
    ]
    return [*own, *(_wrong(row) if row.writes else row for row in others)]


def rows_beside_writing() -> tuple[RouteRow, ...]:
    """Return the routes of tasks on a model that writes text: other names of `POST /`, and refusals."""
    rows = [
        RouteRow(make, Operation(path=path, method="post", summary="", is_shown=False), writes=True)
        for path, make in (
            ("/models/{model:path}/pipeline/{task}", TaskPathRoute),
            ("/models/{model:path}", TaskPathRoute),
            ("/pipeline/{task}", TaskPathRoute),
            ("/predict", compat_route),
        )
    ]
    of_tasks = (*_VECTOR_ROWS, *_CLASSIFICATION_ROWS, *_AUDIO_ROWS, _SPEECH_ROW)
    refusals = [_wrong(row) for row in of_tasks if row.operation.path != "/predict"]
    return (*rows, *refusals)
