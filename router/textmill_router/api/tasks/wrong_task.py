"""Routes that the model cannot serve: each answers with the model's task and the routes that serve it."""

from starlette.types import Receive, Scope, Send

from textmill_router.errors import WrongTask
from textmill_router.http.path_style import PathStyle
from textmill_router.http.replies import send_error
from textmill_router.serving.service import Service
from textmill_router.tasks.forms import FAMILIES, SPEECH, TRANSCRIPTION
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.names import is_row_task
from textmill_router.tasks.rerank import TASK as RERANK
from textmill_router.tasks.wishes import Head

_WRITING = "POST /, /generate, /generate_stream, /v1/chat/completions, /v1/completions"
_VECTORS = "POST /, /embed, /embed_all{sparse}, /similarity, /v1/embeddings"
_SPARSE = ", /embed_sparse"  # of models with a masked-token head
_CLASSIFICATION = "POST /, /predict"
_RANKING = ", /rerank, /v1/rerank"  # of classifiers with one label
_TRANSCRIPTION = "POST /, /v1/audio/transcriptions, /v1/audio/translations"


def routes_of(task: str | None, model: TaskModel | None) -> str:
    """Return the routes that serve a model of this task. `model` is None while the model loads, or writes text."""
    if not is_row_task(task):
        return _WRITING
    vectors, classification = FAMILIES
    if task in vectors:
        is_sparse = model is not None and Head.SPARSE_VECTORS in model.facts.heads
        return _VECTORS.format(sparse=_SPARSE if is_sparse else "")
    if task in classification:
        can_rank = task == RERANK if model is None else len(model.facts.labels) == 1
        return _CLASSIFICATION + (_RANKING if can_rank else "")
    by_task = {TRANSCRIPTION.task: _TRANSCRIPTION, SPEECH.task: "POST /, /v1/audio/speech"}
    return "POST /" if task is None else by_task.get(task, "POST /")


def wrong_task(service: Service, what: str) -> WrongTask:
    """Return the refusal of a call that asks for `what`."""
    task = service.settings.task
    return WrongTask(
        f"{what} is not what this model does: the model's task is {task or 'text-generation'}, and its routes are "
        f"{routes_of(task, service.row_model)}"
    )


class WrongTaskRoute:
    """An ASGI endpoint of a route that needs a model of another task. `style` is the style of the route's dialect."""

    def __init__(self, service: Service, path: str, style: PathStyle) -> None:
        self.style = style
        self._service = service
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(scope, send, wrong_task(self._service, self._path))
