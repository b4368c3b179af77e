"""GET /health and its probes, /info and /metrics, which are answered without a permit."""

from collections.abc import Callable
from importlib.metadata import version

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.openapi.answer_types import HealthAnswer, ProbeAnswer
from textmill_router.api.tgi.types import AdapterStatus, InfoAnswer, ReplicaInfo
from textmill_router.api.tgi.writing import writing_family
from textmill_router.errors import RequestError
from textmill_router.health.states import StateRow
from textmill_router.http.replies import send_error, send_reply
from textmill_router.metrics.exposition import CONTENT_TYPE
from textmill_router.serving.service import Backend, Service

STATE_HEADER = b"x-health-state"


class HealthRoute:
    """An ASGI endpoint, which answers 200 without a body, or 503 with state and phase. A header has the state too."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        row = self._service.health.look()
        headers = [(STATE_HEADER, row.state.value.encode())]
        if row.health:
            await send_reply(scope, send, 200, b"", headers=headers)
            return
        answer = HealthAnswer(
            error="unhealthy",
            error_type="healthcheck",
            state=row.state.value,
            phase=self._service.phase,
            percent=_percent(self._service),
        )
        await send_reply(scope, send, 503, msgspec.json.encode(answer), headers=headers)


class ProbeRoute:
    """An ASGI endpoint, which answers 200 or 503 with the state. `probe` reads the answer from the state's row."""

    def __init__(self, service: Service, probe: Callable[[StateRow], bool]) -> None:
        self._service = service
        self._probe = probe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        row = self._service.health.look()
        answer = ProbeAnswer(
            state=row.state.value,
            since_s=round(self._service.health.since_s, 3),
            phase=self._service.phase,
            percent=_percent(self._service),
        )
        await send_reply(scope, send, 200 if self._probe(row) else 503, msgspec.json.encode(answer))


def _percent(service: Service) -> int | msgspec.UnsetType:
    percent = service.load_percent
    return msgspec.UNSET if percent is None else percent


def _pipeline_tag(backend: Backend, task: str | None) -> str:
    """Return the hub's name of what the model does."""
    if backend.takes_images and task in (None, "text-generation"):
        return "image-text-to-text"
    return task or ("text2text-generation" if backend.facts.has_encoder else "text-generation")


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
            model_pipeline_tag=_pipeline_tag(backend, settings.task),
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
            health_state=self._service.health.look().state.value,
            replicas=[
                ReplicaInfo(
                    replica=number,
                    phase=replica.phase,
                    num_slots=0 if replica.stats is None else replica.stats.num_slots,
                    num_blocks=0 if replica.stats is None else replica.stats.num_blocks,
                )
                for number, replica in enumerate(self._service.replica_numbers())
            ],
            adapters=[
                AdapterStatus(
                    id=one.name,
                    rank=None if one.facts is None else one.facts.max_rank,
                    digest=None if one.facts is None else one.facts.digest.hex(),
                    state=one.state.value,
                    running=one.num_calls,
                )
                for one in self._service.adapters.registry.listed()
            ],
            media_kinds=list(facts.media_kinds),
            media_cache_bytes=facts.media_cache_bytes,
            kv_cache_dtype=facts.kv_dtype or None,
            task=writing_family(settings.task)[0],
            tasks=list(writing_family(settings.task)),
            labels={},
        )


class MetricsRoute:
    """An ASGI endpoint, which answers with Prometheus text."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._service.expose_metrics()
        await send_reply(scope, send, 200, body, content_type=CONTENT_TYPE.encode())
