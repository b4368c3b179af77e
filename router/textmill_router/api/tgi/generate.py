"""POST /generate, /generate_stream and /: the native dialect's way from a body to an answer."""

import msgspec
from starlette.types import Receive, Scope, Send

from textmill_router.api.tgi.types import NO_OPTIONS, CompatBody, GenerateBody, requested_parameters
from textmill_router.api.tgi.work import GenerateMode, TgiWork, check_batch
from textmill_router.http.json_body import read_json
from textmill_router.http.replies import call_of
from textmill_router.serving.call import admitted, serve
from textmill_router.serving.call_options import ready_backend, wants_cache
from textmill_router.serving.call_record import CallRecord
from textmill_router.serving.reply_cache import CacheSlot, cache_key, send_cached
from textmill_router.serving.service import Service
from textmill_router.serving.validation import CheckedParameters, check_parameters


class GenerateRoute:
    """An ASGI endpoint."""

    def __init__(self, service: Service, mode: GenerateMode) -> None:
        self._service = service
        self._mode = mode
        # `stream` is a field of `POST /` only; elsewhere it is unknown and so ignored, whatever it holds.
        body_type = CompatBody if mode is GenerateMode.COMPAT else GenerateBody
        self._decoder: msgspec.json.Decoder[GenerateBody] = msgspec.json.Decoder(body_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self._service, scope, send, lambda: self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        service.permits.check_open()
        body = await read_json(scope, receive, self._decoder, service.settings.payload_limit)
        backend = await ready_backend(
            service, scope, receive, wait_for_model=(body.options or NO_OPTIONS).wait_for_model
        )
        streams = self._mode is GenerateMode.STREAM or (isinstance(body, CompatBody) and bool(body.stream))
        checked = check_parameters(requested_parameters(body.parameters, streams=streams), backend.limits)
        num_sequences = check_batch(body, checked, streams=streams, limit=service.settings.max_client_batch_size)
        slot = self._cache_slot(scope, body, checked, streams=streams)
        hit = None if slot is None else slot.find()
        if hit is not None:
            await send_cached(service, backend, scope, send, hit, streams=streams)
            return
        async with admitted(service, receive, num_sequences, grammar=checked.grammar):
            work = TgiWork(CallRecord(service, backend, call_of(scope)), backend, body, checked, self._mode)
            if streams:
                await work.stream(scope, send, slot)
            else:
                await work.answer_whole(scope, send, slot)

    def _cache_slot(
        self, scope: Scope, body: GenerateBody, checked: CheckedParameters, *, streams: bool
    ) -> CacheSlot | None:
        """Where the answer may be kept: only one that would be the same again."""
        service = self._service
        if not service.response_cache.is_on or not wants_cache(scope, (body.options or NO_OPTIONS).use_cache):
            return None
        is_seeded = body.parameters is not None and body.parameters.seed is not None
        if (checked.sampling.do_sample and not is_seeded) or checked.max_time is not None:
            return None
        key = cache_key(scope, service.settings.model_id, self._mode.value, streams, body.inputs, body.parameters)
        return CacheSlot(service.response_cache, key)
