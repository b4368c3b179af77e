"""The table of the routes, with the endpoint of each route and its place in the OpenAPI document."""

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.types import ASGIApp

from textmill_router.api.by_shape import ByShape
from textmill_router.api.openai.adapters import (
    LoadAdapterBody,
    LoadAdapterRoute,
    UnloadAdapterBody,
    UnloadAdapterRoute,
)
from textmill_router.api.openai.chat import chat_route
from textmill_router.api.openai.chat_types import ChatBody
from textmill_router.api.openai.completion_answers import Completion
from textmill_router.api.openai.completion_types import CompletionBody
from textmill_router.api.openai.completions import completions_route
from textmill_router.api.openai.models import ModelsRoute
from textmill_router.api.openai.render import (
    RenderedChat,
    RenderedPrompt,
    chat_render_route,
    completions_render_route,
)
from textmill_router.api.openai.tokenize import (
    LlamaTokenizeBody,
    LlamaTokens,
    TokensBody,
    TokensText,
    VllmChatTokenizeBody,
    VllmTokenizeBody,
    VllmTokens,
    llama_tokenize_route,
    tokens_detokenize_route,
    vllm_chat_tokenize_route,
    vllm_tokenize_route,
)
from textmill_router.api.openapi import answer_types as answers
from textmill_router.api.openapi.document import build_document
from textmill_router.api.openapi.operation import Operation
from textmill_router.api.openapi.page import OpenApiRoute, load_docs
from textmill_router.api.platforms import kserve_types as v2
from textmill_router.api.platforms.kserve import v2_generate_route, v2_infer_route
from textmill_router.api.platforms.kserve_status import V2LiveRoute, V2ModelRoute, V2ReadyRoute, V2ServerRoute
from textmill_router.api.platforms.sagemaker import InvocationsRoute
from textmill_router.api.platforms.vertex import VertexRoute
from textmill_router.api.playground.page import load_playground
from textmill_router.api.route_row import RouteRow
from textmill_router.api.status import HealthRoute, InfoRoute, MetricsRoute, ProbeRoute
from textmill_router.api.task_table import TASK_ALIASES, rows_beside_writing, rows_for_task, vertex_task_route
from textmill_router.api.tgi.chat_tokenize import ChatTokenizeRoute
from textmill_router.api.tgi.detokenize import DetokenizeRoute
from textmill_router.api.tgi.generate import generate_route
from textmill_router.api.tgi.tokenize import TokenizeRoute
from textmill_router.api.tgi.types import (
    CompatBody,
    DetokenizeAnswer,
    DetokenizeBody,
    GenerateAnswer,
    GenerateBody,
    InfoAnswer,
    TokenizeBody,
    TokenizedToken,
    VertexAnswer,
    VertexBody,
)
from textmill_router.api.tgi.work import GenerateMode
from textmill_router.api.tgi.writing import WRITING_TASKS
from textmill_router.api.writing_routes import compat_route, json_route
from textmill_router.api.writing_table import rows_for_writing
from textmill_router.health.states import StateRow
from textmill_router.http.path_style import ROOT_STYLE
from textmill_router.http.static_pages import AssetRoute, PageRoute, StaticPage
from textmill_router.serving.service import Service
from textmill_router.tasks.names import is_row_task

# Paths without `/v1`, for clients whose base URL lacks `/v1`, and the paths for which they stand.
ALIASES = {
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/completions",
    "/models": "/v1/models",
    "/models/{model:path}": "/v1/models/{model:path}",
}


def rows_of(task: str | None) -> tuple[RouteRow, ...]:
    """Return the routes of a server whose model is made for this task; None: text generation."""
    if task is not None and is_row_task(task):
        return tuple(rows_for_task(task, ROUTES))
    return rows_for_writing(task, ROUTES) if task in WRITING_TASKS else ROUTES


def aliases_of(task: str | None) -> dict[str, str]:
    """Return the further paths of routes, with the paths for which they stand."""
    return {**ALIASES, **TASK_ALIASES}


def openapi_document(task: str | None = None) -> dict[str, Any]:
    """Return the OpenAPI document of all routes of a server whose model is made for this task."""
    about = "Text generation over HTTP: TGI's native dialect, OpenAI's, the Open Inference Protocol."
    if task is not None and (is_row_task(task) or task in WRITING_TASKS):
        of_task = f"The task {task} at `POST /`, as the Inference API of Hugging Face has the task."
        about = of_task if is_row_task(task) else f"{of_task} {about}"
    return build_document([row.operation for row in rows_of(task)], about=about)


def vertex_route(service: Service) -> ASGIApp:
    """Return the ASGI endpoint of /vertex, which also serves the path that Vertex AI names."""
    if service.is_of_rows:
        return vertex_task_route(service)
    generate = None if service.settings.task in WRITING_TASKS else generate_route(service, GenerateMode.WHOLE)
    return VertexRoute(service, generate=generate, task=json_route(service), chat=chat_route(service))


def _invocations_route(service: Service) -> InvocationsRoute:
    chat, completions = chat_route(service), completions_route(service)
    return InvocationsRoute(
        service,
        {
            "inputs": (json_route(service), ROOT_STYLE),
            "messages": (chat, chat.style),
            "prompt": (completions, completions.style),
        },
    )


def _tokenize_route(service: Service) -> ByShape:
    return ByShape(
        service,
        {
            "inputs": TokenizeRoute(service),
            "prompt": vllm_tokenize_route(service),
            "messages": vllm_chat_tokenize_route(service),
            "content": llama_tokenize_route(service),
        },
    )


def _detokenize_route(service: Service) -> ByShape:
    return ByShape(service, {"ids": DetokenizeRoute(service), "tokens": tokens_detokenize_route(service)})


def _docs_loader(service: Service) -> Callable[[], StaticPage]:
    return partial(load_docs, has_playground=not (service.settings.disable_playground or service.is_of_rows))


def _document_route(service: Service) -> OpenApiRoute:
    return OpenApiRoute(partial(openapi_document, service.settings.task), service.settings.root_path)


def _probe_row(name: str, summary: str, probe: Callable[[StateRow], bool]) -> RouteRow:
    operation = Operation(
        path=f"/health/{name}",
        method="get",
        summary=summary,
        answer=answers.ProbeAnswer,
        errors=(503,),
        error=answers.ProbeAnswer,
        operation_id=f"health_{name}",
    )
    return RouteRow(lambda service: ProbeRoute(service, probe), operation, needs_key=False)


_REFUSALS = (400, 401, 413, 415, 422)
_GENERATE_ERRORS = (*_REFUSALS, 408, 424, 429, 500, 503, 504)
_RENDER_ERRORS = (*_REFUSALS, 404, 408, 429, 500, 503)
_EXAMPLE = {"inputs": "My name is Olivier and I", "parameters": {"max_new_tokens": 20, "details": True}}
_CHAT_EXAMPLE = {"messages": [{"role": "user", "content": "What is deep learning?"}], "max_tokens": 20}

_V2_EXAMPLE = {"text_input": "What is deep learning?", "parameters": {"max_tokens": 20}}
_V2_TENSOR = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["What is deep learning?"]}


def _v2_health_row(name: str, summary: str, make: Callable[[Service], ASGIApp], answer: Any) -> RouteRow:
    operation = Operation(
        path=f"/v2/health/{name}",
        method="get",
        summary=f"Open Inference Protocol: {summary}",
        answer=answer,
        errors=(503,),
        error=answer,
        operation_id=f"v2_health_{name}",
    )
    return RouteRow(make, operation, needs_key=False)


def _v2_model_rows() -> list[RouteRow]:
    """Return the routes of the model, with its version and without. A longer path stands before its beginning."""
    makers: dict[str, Callable[[Service], ASGIApp]] = {
        "infer": v2_infer_route,
        "generate": lambda service: v2_generate_route(service, streams=False),
        "generate_stream": lambda service: v2_generate_route(service, streams=True),
        "ready": V2ReadyRoute,
        "": V2ModelRoute,
    }
    facts: dict[str, dict[str, Any]] = {
        "infer": {
            "summary": "one text for each element of the tensor `text_input`",
            "body": v2.V2InferBody,
            "answer": v2.V2InferAnswer,
            "example": {"inputs": [_V2_TENSOR], "parameters": {"max_tokens": 20}},
        },
        "generate": {"summary": "generate a text", "answer": v2.V2Answer},
        "generate_stream": {"summary": "generate a text as a stream of events", "events": v2.V2Event},
        "ready": {"summary": "200 if the model answers calls", "answer": v2.V2ModelReady, "errors": (401, 404, 503)},
        "": {"summary": "the tensors and versions of the model", "answer": v2.V2Model, "errors": (401, 404)},
    }
    rows = []
    for action, make in makers.items():
        for versions, parameters in (("/versions/{version}", ("model", "version")), ("", ("model",))):
            own = facts[action]
            is_read = action in ("ready", "")
            about = {} if is_read else {"body": v2.V2GenerateBody, "example": _V2_EXAMPLE}
            error = (v2.V2Error, v2.V2ModelReady) if action == "ready" else v2.V2Error
            operation = Operation(
                path=f"/v2/models/{{model:path}}{versions}{action and '/' + action}",
                method="get" if is_read else "post",
                operation_id=f"v2_model_{action or 'metadata'}{'_of_version' if versions else ''}",
                parameters=parameters,
                error=error,
                **{
                    "errors": (*_GENERATE_ERRORS, 404),
                    **about,
                    **own,
                    "summary": f"Open Inference Protocol: {own['summary']}",
                },
            )
            rows.append(RouteRow(make, operation, writes=action not in ("ready", "")))
    return rows


ROUTES: tuple[RouteRow, ...] = (
    RouteRow(
        compat_route,
        Operation(
            path="/",
            method="post",
            summary="Generate tokens if `stream` is false, else a stream of tokens",
            body=CompatBody,
            answer=list[GenerateAnswer],
            events=answers.StreamResponse,
            errors=_GENERATE_ERRORS,
            example={**_EXAMPLE, "stream": False},
            operation_id="compat_generate",
        ),
        writes=True,
    ),
    RouteRow(
        lambda service: generate_route(service, GenerateMode.WHOLE),
        Operation(
            path="/generate",
            method="post",
            summary="Generate tokens; several inputs or sequences are answered by a list",
            body=GenerateBody,
            answer=(GenerateAnswer, list[GenerateAnswer]),
            errors=_GENERATE_ERRORS,
            example=_EXAMPLE,
            operation_id="generate",
        ),
        writes=True,
    ),
    RouteRow(
        lambda service: generate_route(service, GenerateMode.STREAM),
        Operation(
            path="/generate_stream",
            method="post",
            summary="Generate a stream of tokens",
            body=GenerateBody,
            events=answers.StreamResponse,
            errors=_GENERATE_ERRORS,
            example=_EXAMPLE,
            operation_id="generate_stream",
        ),
        writes=True,
    ),
    RouteRow(
        chat_route,
        Operation(
            path="/v1/chat/completions",
            method="post",
            summary="Answer a conversation",
            body=ChatBody,
            answer=answers.ChatCompletion,
            events=answers.ChatCompletionChunk,
            errors=(*_GENERATE_ERRORS, 404),
            error=answers.OpenAIErrorResponse,
            example=_CHAT_EXAMPLE,
            operation_id="chat_completions",
        ),
        writes=True,
    ),
    RouteRow(
        completions_route,
        Operation(
            path="/v1/completions",
            method="post",
            summary="Continue texts",
            body=CompletionBody,
            answer=Completion,
            events=answers.CompletionChunk,
            errors=(*_GENERATE_ERRORS, 404),
            error=answers.OpenAIErrorResponse,
            example={"prompt": "What is deep learning?", "max_tokens": 20},
            operation_id="completions",
        ),
        writes=True,
    ),
    RouteRow(
        chat_render_route,
        Operation(
            path="/v1/chat/completions/render",
            method="post",
            summary="The tokens of a conversation's prompt, as routers between servers ask for them",
            body=ChatBody,
            answer=RenderedChat,
            errors=_RENDER_ERRORS,
            error=answers.OpenAIErrorResponse,
            example=_CHAT_EXAMPLE,
            operation_id="chat_completions_render",
        ),
        writes=True,
    ),
    RouteRow(
        completions_render_route,
        Operation(
            path="/v1/completions/render",
            method="post",
            summary="The tokens of each prompt, as routers between servers ask for them",
            body=CompletionBody,
            answer=list[RenderedPrompt],
            errors=_RENDER_ERRORS,
            error=answers.OpenAIErrorResponse,
            example={"prompt": "What is deep learning?", "max_tokens": 20},
            operation_id="completions_render",
        ),
        writes=True,
    ),
    RouteRow(
        ModelsRoute,
        Operation(
            path="/v1/models",
            method="get",
            summary="The models that are served",
            answer=answers.ModelList,
            errors=(401, 404),
            error=answers.OpenAIErrorResponse,
            operation_id="openai_get_model_info",
        ),
    ),
    RouteRow(
        ModelsRoute,
        Operation(
            path="/v1/models/{model:path}",
            method="get",
            summary="One model",
            answer=answers.ModelInfo,
            errors=(401, 404),
            error=answers.OpenAIErrorResponse,
            operation_id="openai_get_one_model",
            parameters=("model",),
        ),
    ),
    RouteRow(
        LoadAdapterRoute,
        Operation(
            path="/v1/load_lora_adapter",
            method="post",
            summary="Load a LoRA adapter, where the operator lets callers do so",
            body=LoadAdapterBody,
            text=True,
            errors=(*_REFUSALS, 403, 408, 500, 503),
            error=answers.OpenAIErrorResponse,
            example={"lora_name": "poet", "lora_path": "poet"},
            operation_id="load_lora_adapter",
        ),
        writes=True,
    ),
    RouteRow(
        UnloadAdapterRoute,
        Operation(
            path="/v1/unload_lora_adapter",
            method="post",
            summary="Unload a LoRA adapter; calls that run with it end as they would have",
            body=UnloadAdapterBody,
            text=True,
            errors=(*_REFUSALS, 403, 404, 408, 500, 503),
            error=answers.OpenAIErrorResponse,
            example={"lora_name": "poet"},
            operation_id="unload_lora_adapter",
        ),
        writes=True,
    ),
    RouteRow(
        _tokenize_route,
        Operation(
            path="/tokenize",
            method="post",
            summary="Tokens of a text and the bytes where they stand; vLLM's and llama.cpp's bodies too",
            body=(TokenizeBody, VllmTokenizeBody, VllmChatTokenizeBody, LlamaTokenizeBody),
            answer=(list[TokenizedToken], VllmTokens, LlamaTokens),
            errors=(*_REFUSALS, 404, 408, 429, 503),
            example={"inputs": "My name is Olivier and I"},
            operation_id="tokenize",
        ),
        writes=True,
    ),
    RouteRow(
        ChatTokenizeRoute,
        Operation(
            path="/chat_tokenize",
            method="post",
            summary="The prompt that a conversation makes, and its tokens",
            body=ChatBody,
            answer=answers.ChatTokenizeResponse,
            errors=(*_REFUSALS, 404, 408, 500, 503),
            example=_CHAT_EXAMPLE,
            operation_id="get_chat_tokenize",
        ),
        writes=True,
    ),
    RouteRow(
        _detokenize_route,
        Operation(
            path="/detokenize",
            method="post",
            summary="The text of token ids; vLLM's and llama.cpp's bodies too",
            body=(DetokenizeBody, TokensBody),
            answer=(DetokenizeAnswer, TokensText),
            errors=(*_REFUSALS, 408, 429, 503),
            example={"ids": [1, 2, 3]},
            operation_id="detokenize",
        ),
        writes=True,
    ),
    RouteRow(
        _invocations_route,
        Operation(
            path="/invocations",
            method="post",
            summary="SageMaker: `POST /` by `inputs`, chat by `messages`, or continue a `prompt`",
            body=(CompatBody, ChatBody, CompletionBody),
            answer=(list[GenerateAnswer], answers.ChatCompletion, Completion),
            events=(answers.StreamResponse, answers.ChatCompletionChunk, answers.CompletionChunk),
            errors=(*_GENERATE_ERRORS, 404),
            error=(answers.ErrorResponse, answers.OpenAIErrorResponse),
            example=_EXAMPLE,
            operation_id="sagemaker_compatibility",
        ),
        writes=True,
    ),
    RouteRow(
        vertex_route,
        Operation(
            path="/vertex",
            method="post",
            summary="Vertex AI: one text, or one answer of the task, for each instance",
            body=VertexBody,
            answer=VertexAnswer,
            errors=(*_GENERATE_ERRORS, 404),
            example={"instances": [_EXAMPLE]},
            operation_id="vertex_compatibility",
        ),
        writes=True,
    ),
    _v2_health_row("live", "503 if only a new start of the server helps", V2LiveRoute, v2.V2Live),
    _v2_health_row("ready", "200 if a load balancer should send calls here", V2ReadyRoute, v2.V2Ready),
    RouteRow(
        V2ServerRoute,
        Operation(
            path="/v2",
            method="get",
            summary="Open Inference Protocol: name, version and extensions of the server",
            answer=v2.V2Server,
            errors=(401,),
            error=v2.V2Error,
            operation_id="v2_server",
        ),
    ),
    *_v2_model_rows(),
    RouteRow(
        InfoRoute,
        Operation(
            path="/info",
            method="get",
            summary="The model and the limits",
            answer=InfoAnswer,
            errors=(401, 503),
            operation_id="get_model_info",
        ),
    ),
    RouteRow(
        HealthRoute,
        Operation(
            path="/health",
            method="get",
            summary="200 while requests are served",
            errors=(503,),
            error=answers.HealthAnswer,
            operation_id="health",
        ),
        needs_key=False,
    ),
    _probe_row("live", "503 if only a new start of the server helps", lambda row: row.live),
    _probe_row("ready", "200 if a load balancer should send calls here", lambda row: row.ready),
    _probe_row("startup", "200 once the server has been ready", lambda row: row.startup),
    RouteRow(
        HealthRoute,
        Operation(
            path="/ping",
            method="get",
            summary="The same as /health",
            errors=(503,),
            error=answers.HealthAnswer,
            operation_id="ping",
        ),
        needs_key=False,
    ),
    RouteRow(
        HealthRoute,
        Operation(
            path="/",
            method="get",
            summary="The same as /health",
            errors=(503,),
            error=answers.HealthAnswer,
            operation_id="root",
        ),
        needs_key=False,
    ),
    RouteRow(
        MetricsRoute,
        Operation(path="/metrics", method="get", summary="Prometheus text", text=True, operation_id="metrics"),
        needs_key=False,
    ),
    RouteRow(
        lambda service: PageRoute(_docs_loader(service)),
        Operation(path="/docs", method="get", summary="Swagger UI, which sends requests", is_shown=False),
        needs_key=False,
    ),
    RouteRow(
        lambda service: AssetRoute(_docs_loader(service)),
        Operation(path="/docs/{asset}", method="get", summary="A file of /docs", is_shown=False),
        needs_key=False,
    ),
    RouteRow(
        lambda _: PageRoute(load_playground),
        Operation(path="/playground", method="get", summary="A page to try and compare prompts", is_shown=False),
        needs_key=False,
        is_playground=True,
    ),
    RouteRow(
        lambda _: AssetRoute(load_playground),
        Operation(path="/playground/{asset}", method="get", summary="A file of /playground", is_shown=False),
        needs_key=False,
        is_playground=True,
    ),
    RouteRow(
        _document_route,
        Operation(path="/openapi.json", method="get", summary="The OpenAPI document", is_shown=False),
        needs_key=False,
    ),
    RouteRow(
        _document_route,
        Operation(path="/api-doc/openapi.json", method="get", summary="The OpenAPI document", is_shown=False),
        needs_key=False,
    ),
    *rows_beside_writing(),
)
