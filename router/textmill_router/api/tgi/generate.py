"""POST /generate, /generate_stream and /: the rules of TGI's own routes, and which of their answers are kept."""

from functools import partial
from pathlib import Path

import msgspec
from starlette.types import Scope

from textmill_router.api.tgi.compat_wish import read_compat_wish
from textmill_router.api.tgi.types import (
    NO_OPTIONS,
    CompatBody,
    GenerateBody,
    TgiParameters,
    requested_parameters,
)
from textmill_router.api.tgi.work import GenerateMode, TgiWork, check_batch
from textmill_router.api.tgi.writing_types import TextAnswer
from textmill_router.api.tgi.writing_wish import Wish
from textmill_router.api.tgi.writing_work import WritingForm, WritingWork
from textmill_router.exact_json import exact_decoder
from textmill_router.http.path_style import ROOT_STYLE
from textmill_router.serving.adapters import AskedAdapter
from textmill_router.serving.call_options import wants_cache
from textmill_router.serving.checkpoint_defaults import CheckpointWriting, read_checkpoint_writing
from textmill_router.serving.reply_cache import CacheSlot, cache_key
from textmill_router.serving.route import GeneratingRoute, IncomingCall, PreparedCall
from textmill_router.serving.service import Service
from textmill_router.serving.timings import wants_timings
from textmill_router.serving.validation import CheckedParameters, check_parameters

# Fields that bind the answer on other routes or servers; none of them is TGI's. A parameter beside `parameters` would
# be ignored, so that an answer would go on to the end of the window, for example.
_REFUSED = {
    **{
        field.name: f"its place is `parameters.{field.name}`"
        for field in msgspec.structs.fields(TgiParameters)
        if field.name not in CompatBody.__struct_fields__
    },
    "max_tokens": "its place is `parameters.max_new_tokens`",
    **{
        f"parameters.{name}": "use `parameters.grammar`"
        for name in (
            *("ebnf", "guided_choice", "guided_grammar", "guided_json", "guided_regex"),
            *("json_schema", "regex", "response_format", "structured_outputs"),
        )
    },
    "parameters.allowed_token_ids": "use /v1/completions, which takes it",
    "parameters.bad_words": "use /v1/completions, which takes it",
    "parameters.max_tokens": "use `parameters.max_new_tokens`",
    "parameters.min_tokens": "use `parameters.min_new_tokens`",
    "parameters.stop_sequences": "use `parameters.stop`",
    "parameters.stop_token_ids": "use /v1/completions, which takes it",
}


def generate_route(service: Service, mode: GenerateMode) -> GeneratingRoute[GenerateBody]:
    """An ASGI endpoint."""
    # `stream` is a field of `POST /` only; elsewhere it is unknown and so ignored, whatever it holds.
    body_type = CompatBody if mode is GenerateMode.COMPAT else GenerateBody
    decoder: msgspec.json.Decoder[GenerateBody] = exact_decoder(body_type)
    # The checkpoint's own values count on `POST /` alone.
    # A model of chats is served whatever these say, because its other routes do not read them.
    files = (
        read_checkpoint_writing(Path(service.settings.model_dir), must_fit=False)
        if mode is GenerateMode.COMPAT
        else None
    )
    return GeneratingRoute(
        service,
        decoder,
        partial(_prepare, mode, files),
        ROOT_STYLE,
        wait_for_model=_waits_for_model,
        priority_of=lambda body: None if body.parameters is None else body.parameters.priority,
        adapter_of=lambda body, _: _asked_adapter(body, service),
        refused_fields=_REFUSED,
    )


def _asked_adapter(body: GenerateBody, service: Service) -> AskedAdapter | None:
    name = None if body.parameters is None else body.parameters.adapter_id
    return None if name is None or service.adapters.is_base(name) else AskedAdapter(name, "adapter_id")


def _waits_for_model(body: GenerateBody) -> bool | None:
    return (body.options or NO_OPTIONS).wait_for_model


def _prepare(
    mode: GenerateMode, files: CheckpointWriting | None, body: GenerateBody, call: IncomingCall
) -> PreparedCall:
    service = call.service
    streams = mode is GenerateMode.STREAM or (isinstance(body, CompatBody) and bool(body.stream))
    checked = check_parameters(requested_parameters(body.parameters, streams=streams), call.backend.limits)
    if files is not None and isinstance(body, CompatBody):
        asked = read_compat_wish(body, checked, files, call.backend, streams=streams)
        if asked.beams is not None:
            return _prepare_search(body, asked, call)
        checked = asked.checked
    num_sequences = check_batch(body, checked, streams=streams, limit=service.settings.max_client_batch_size)
    slot = None
    if _is_kept(service, call.scope, body, checked):
        adapter = call.record.terms.adapter
        digest = b"" if adapter is None else adapter.digest  # a name may stand for other weights later
        model_id = service.settings.model_id
        key = cache_key(call.scope, model_id, digest, mode.value, streams, body.inputs, body.parameters)
        slot = CacheSlot(service.response_cache, key)
    return PreparedCall(
        TgiWork(call, body, checked, mode, slot),
        num_sequences=num_sequences,
        streams=streams,
        grammar=checked.generation.grammar,
        cache_slot=slot,
    )


def _prepare_search(body: CompatBody, wish: Wish, call: IncomingCall) -> PreparedCall:
    """Return the call of a search by beams, whose answer has the form of text generation."""
    texts = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    check_batch(body, wish.checked, streams=False, limit=call.service.settings.max_client_batch_size)
    asked = None if body.parameters is None else body.parameters.return_full_text
    is_whole = asked if asked is not None else not call.backend.facts.has_encoder

    def answer(text: str, written: str) -> TextAnswer:
        return TextAnswer(text + written if is_whole else written)

    work = WritingWork(WritingForm("text-generation", answer, strips=False), texts, wish, call)
    return PreparedCall(work, num_sequences=len(texts), streams=False)


def _is_kept(service: Service, scope: Scope, body: GenerateBody, checked: CheckedParameters) -> bool:
    """Whether the answer may be kept: only one that would be the same again."""
    if wants_timings(body.textmill):  # a kept answer would show the times of another call
        return False
    if not service.response_cache.is_on or not wants_cache(scope, (body.options or NO_OPTIONS).use_cache):
        return False
    is_seeded = body.parameters is not None and body.parameters.seed is not None
    return (is_seeded or not checked.generation.sampling.do_sample) and checked.max_time is None
