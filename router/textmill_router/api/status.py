"""GET /health, /info and /metrics, which are answered without a permit."""

from importlib.metadata import version

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.tgi.types import InfoAnswer
from textmill_router.errors import RequestError
from textmill_router.http.replies import send_error, send_reply
from textmill_router.metrics.exposition import CONTENT_TYPE
from textmill_router.serving.service import Service


class HealthRoute:
    """An ASGI endpoint, which answers 200 without a body, or 503 with the phase."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._service.is_healthy:
            await send_reply(scope, send, 200, b"")
            return
        body = {"error": "unhealthy", "error_type": "healthcheck", "phase": self._service.phase}
        await send_reply(scope, send, 503, msgspec.json.encode(body))


class InfoRoute:
    """An ASGI endpoint, which shows the model and the limits in the fields of TGI 3 and those of TGI 2."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send_reply(scope, send, 200, msgspec.json.encode(self._facts()))
        except RequestError as error:
            await send_error(scope, send, error)

    def _facts(self) -> InfoAnswer:
        backend = self._service.open_backend()
        settings, facts, limits = self._service.settings, backend.facts, backend.limits
        return InfoAnswer(
            model_id=settings.model_id,
            model_sha=settings.model_sha or facts.model_sha or None,
            model_pipeline_tag="text2text-generation" if facts.has_encoder else "text-generation",
            max_concurrent_requests=settings.max_concurrent_requests,
            max_best_of=limits.max_best_of,
            max_stop_sequences=limits.max_stop_sequences,
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            validation_workers=settings.validation_workers,
            max_client_batch_size=settings.max_client_batch_size,
            router="textmill-router",
            version=version("textmill"),
            sha=None,
            docker_label=None,
            max_input_length=limits.max_input_tokens,
            model_dtype=f"torch.{facts.dtype}",
            model_device_type=facts.device,
            max_batch_total_tokens=facts.num_blocks * facts.block_size,
            max_batch_size=facts.num_slots,
        )


class MetricsRoute:
    """An ASGI endpoint, which answers with Prometheus text."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._service.expose_metrics()
        await send_reply(scope, send, 200, body, content_type=CONTENT_TYPE.encode())
