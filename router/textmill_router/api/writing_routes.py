"""The routes of tasks on a model that writes text: `POST /` and its other paths."""

from starlette.types import ASGIApp, Receive, Scope, Send

from textmill_router.api.openai.chat import chat_route
from textmill_router.api.openai.model_names import check_model
from textmill_router.api.tasks.bodies import is_said_json, read_task_json
from textmill_router.api.tasks.wrong_task import wrong_task
from textmill_router.api.tgi.conversational import ConversationalRoute
from textmill_router.api.tgi.generate import generate_route
from textmill_router.api.tgi.work import GenerateMode
from textmill_router.api.tgi.writing import WRITING_TASKS, WritingOrStream, writing_family, writing_route
from textmill_router.errors import RequestError
from textmill_router.http.call import call_of
from textmill_router.http.inner_calls import replay
from textmill_router.http.json_body import ClientLeft
from textmill_router.http.path_style import ROOT_STYLE
from textmill_router.http.replies import send_error
from textmill_router.serving.call import refuse
from textmill_router.serving.service import Service
from textmill_router.tasks.names import canonical_task, languages_of


class AnyTypeRoute:
    """An ASGI endpoint. Of a body that is not said to be JSON the bytes decide, as on the routes of other tasks.

    The clients of the Inference API send JSON as a form, as a text or without a type.
    """

    def __init__(self, service: Service, endpoint: ASGIApp) -> None:
        self._service = service
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_said_json(scope):
            await self._endpoint(scope, receive, send)
            return
        try:
            self._service.permits.check_open()
            body = await read_task_json(scope, receive, self._service.payload_limit)
        except (ClientLeft, RequestError) as error:
            await refuse(self._service, scope, send, error)
            return
        kept = [one for one in scope["headers"] if one[0] not in (b"content-type", b"content-length", b"expect")]
        part = {**scope, "headers": [*kept, (b"content-type", b"application/json")]}
        await self._endpoint(part, replay(body.data, receive), send)


def compat_route(service: Service) -> ASGIApp:
    """Return the ASGI endpoint of `POST /` for a model that writes text."""
    return AnyTypeRoute(service, json_route(service))


def json_route(service: Service) -> ASGIApp:
    """Return the ASGI endpoint of `POST /` for a body that must be said to be JSON, as on the routes of platforms."""
    text: ASGIApp = generate_route(service, GenerateMode.COMPAT)
    if service.settings.task in WRITING_TASKS:
        text = WritingOrStream(service, whole=writing_route(service), stream=text)
    return ConversationalRoute(service, text=text, chat=chat_route(service))


class TaskPathRoute:
    """An ASGI endpoint of the paths that name a model or a task."""

    def __init__(self, service: Service) -> None:
        self._service = service
        task = service.settings.task
        compat = compat_route(service)
        self._by_task = {
            name: AnyTypeRoute(service, writing_route(service, name, languages_of)) if name in WRITING_TASKS else compat
            for name in writing_family(task)
        }
        self._compat = compat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The style of the path alone would be that of `GET /models/{id}`, which speaks another dialect.
        call_of(scope).error_style = ROOT_STYLE.errors
        named = scope["path_params"].get("task")
        endpoint = self._compat if named is None else self._by_task.get(canonical_task(named))
        try:
            check_model(scope["path_params"].get("model"), self._service)
            if endpoint is None:
                family = ", ".join(self._by_task)
                raise wrong_task(self._service, f"the task {named[:64]!r} (a call may ask for {family})")
        except RequestError as error:
            await send_error(scope, send, error)
            return
        await endpoint(scope, receive, send)
