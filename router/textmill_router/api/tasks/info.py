"""GET /info of a model without generation."""

from importlib.metadata import version

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.tasks.answer_types import TaskInfoAnswer
from textmill_router.errors import RequestError
from textmill_router.http.replies import send_error, send_reply
from textmill_router.serving.service import Service
from textmill_router.tasks.forms import family_of
from textmill_router.tasks.model import TaskModel
from textmill_router.tasks.rerank import TASK as RERANK
from textmill_router.tasks.zero_shot_classification import TASK as ZERO_SHOT
from textmill_router.tasks.zero_shot_classification import entailment_ids

MAX_SHOWN_LABELS = 1000


class TaskInfoRoute:
    """An ASGI endpoint, which shows the model, its task and its labels."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send_reply(scope, send, 200, msgspec.json.encode(self._facts()))
        except RequestError as error:
            await send_error(scope, send, error)

    def _facts(self) -> TaskInfoAnswer:
        service, settings = self._service, self._service.settings
        model = service.open_row_backend().model
        facts = model.facts
        assert settings.task is not None
        return TaskInfoAnswer(
            model_id=settings.model_id,
            model_sha=settings.model_sha or facts.model_sha or None,
            model_pipeline_tag=settings.task,
            task=settings.task,
            tasks=tasks_of(settings.task, model),
            labels={str(index): label for index, label in enumerate(facts.labels[:MAX_SHOWN_LABELS])},
            model_type=facts.model_type,
            model_dtype=f"torch.{facts.dtype}",
            model_device_type=facts.device,
            max_input_length=model.max_row_tokens,
            max_input_tokens=model.max_row_tokens,
            max_client_batch_size=service.max_task_rows,
            max_batch_tokens=facts.max_batch_tokens,
            max_concurrent_requests=settings.max_queued_rows,
            vector_width=facts.vector_width or None,
            router="textmill-router",
            version=version("textmill"),
            health_state=service.health.look().state.value,
            replicas=[
                {"replica": number, "phase": replica.phase} for number, replica in enumerate(service.replica_numbers())
            ],
        )


def tasks_of(task: str, model: TaskModel) -> list[str]:
    """Return the tasks of the family that the labels of this model allow."""
    found = list(family_of(task))
    if ZERO_SHOT in found and entailment_ids(model.facts) is None:
        found.remove(ZERO_SHOT)
    if RERANK in found and len(model.facts.labels) != 1:
        found.remove(RERANK)
    return found
