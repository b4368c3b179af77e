"""What the body of a call of a task holds, and the readers of bodies: JSON or a file, and forms of audio."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope

from textmill_router.api.tasks.bodies import TaskBytes, read_task_file, read_task_json
from textmill_router.errors import PayloadTooLarge, ValidationFailed
from textmill_router.http.call import call_of
from textmill_router.http.form_body import read_form
from textmill_router.http.json_body import decode_json, read_bytes
from textmill_router.http.json_shape import shape_error
from textmill_router.http.unknown_fields import UnknownFields
from textmill_router.serving.service import Service
from textmill_router.tasks.file_call import body_of_file
from textmill_router.tasks.file_input import FileInput
from textmill_router.tasks.forms import TRANSCRIPTION, TRANSLATION, TaskForm
from textmill_router.tasks.names import is_file_task
from textmill_router.tasks.transcription import FILE_FIELD, TranscriptionBody, TranscriptionFields

_NO_MODEL = msgspec.Raw(b"null")
PickForm = Callable[[Service, Scope, bytes], TaskForm]


class CallOptions(msgspec.Struct, gc=False):
    """How a call wants to be served."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None


class _WithOptions(msgspec.Struct, gc=False):
    """The part of a body that says how the call wants to be served."""

    options: CallOptions | None = None
    model: msgspec.Raw = _NO_MODEL


_OPTIONS = msgspec.json.Decoder(_WithOptions)


@dataclass(frozen=True, slots=True)
class CallBody:
    """The body of a call: its form, and the value that `prepare` of the form takes.

    `data` are the bytes as they came. `identity` returns a text that is equal for equal bodies, and `model` is the
    JSON of the name of a model.
    """

    form: TaskForm
    content: object = field(repr=False)
    data: bytes = field(repr=False)
    identity: Callable[[], str]
    options: CallOptions = field(default_factory=CallOptions)
    model: msgspec.Raw = field(default_factory=lambda: _NO_MODEL)


class ReadBody(Protocol):
    """Reads the body of a call of one route.

    Raises PayloadTooLarge, UnsupportedMediaType, InvalidJson, ValidationFailed, WrongTask and ClientLeft.
    """

    async def __call__(self, service: Service, scope: Scope, receive: Receive) -> CallBody: ...


class PickedBody:
    """Reads JSON, or for a task of images or audio a file. `pick` chooses the form of a body."""

    def __init__(self, pick: PickForm) -> None:
        self._pick = pick
        self._decoders: dict[object, msgspec.json.Decoder[Any]] = {}
        self._unknown: dict[object, UnknownFields] = {}

    async def __call__(self, service: Service, scope: Scope, receive: Receive) -> CallBody:
        task = service.settings.task
        assert task is not None
        read = read_task_file if is_file_task(task) else read_task_json
        found = await read(scope, receive, service.task_payload_limit)
        form = self._pick(service, scope, found.data)
        content = self._content(form, found, scope)
        asked = _WithOptions() if found.is_file else _read_options(found.data)
        return CallBody(
            form,
            content,
            found.data,
            lambda: _identity(scope, found),
            asked.options or CallOptions(),
            asked.model,
        )

    def _content(self, form: TaskForm, found: TaskBytes, scope: Scope) -> object:
        route = call_of(scope).route
        if found.is_file:
            fields = _query_fields(scope)
            if fields:
                self._unknown_of(form.parameters).note(msgspec.json.encode(fields), route)
            return body_of_file(found.data, _query_parameters(form, fields))
        body = self._decode(form, found.data, route)
        if form.parameters is None:
            return body
        _refuse_query(form, scope)
        return form.files_of(body)

    def _decode(self, form: TaskForm, data: bytes, route: str) -> Any:
        decoder = self._decoders.get(form.body)
        if decoder is None:
            decoder = self._decoders[form.body] = msgspec.json.Decoder(form.body)
        body = decode_json(data, decoder)
        self._unknown_of(form.body).note(data, route)
        return body

    def _unknown_of(self, struct: Any) -> UnknownFields:
        unknown = self._unknown.get(struct)
        if unknown is None:
            unknown = self._unknown[struct] = UnknownFields(struct)
        return unknown


class AudioFormBody:
    """Reads the form of OpenAI's routes of audio: fields, and a file. `translates` says which of the two routes."""

    def __init__(self, *, translates: bool) -> None:
        self._form = TRANSLATION if translates else TRANSCRIPTION
        self._unknown = UnknownFields(TranscriptionFields)

    async def __call__(self, service: Service, scope: Scope, receive: Receive) -> CallBody:
        most = service.task_payload_limit
        try:
            data = await read_bytes(scope, receive, most)
        except PayloadTooLarge:
            raise PayloadTooLarge(
                f"the body must have at most {most} bytes (--media-payload-limit); send a smaller file"
            ) from None
        found = await read_form(scope, data, FILE_FIELD)
        fields = _converted(found.fields)
        texts = {name: values for name, values in found.fields.items() if name != FILE_FIELD}
        self._unknown.note(msgspec.json.encode(texts), call_of(scope).route)
        file = found.file
        if file is None:
            shown = "a text without a file name" if FILE_FIELD in found.fields else "none"
            raise ValidationFailed(f"`{FILE_FIELD}` must be a file of audio, found {shown}", field=FILE_FIELD)
        content = TranscriptionBody(FileInput(file, FILE_FIELD), fields)

        def identity() -> str:
            return f"{hashlib.blake2b(file, digest_size=32).hexdigest()} {fields!r}"

        return CallBody(self._form, content, data, identity, model=msgspec.Raw(msgspec.json.encode(fields.model)))


def _converted(values: Mapping[str, list[str]]) -> TranscriptionFields:
    """Return the fields of a form as their types. A field with brackets at its end is a list.

    Raises ValidationFailed.
    """
    known = {
        name: found if name.endswith("[]") else found[-1]
        for name, found in values.items()
        if name.endswith("[]") or name != FILE_FIELD
    }
    try:
        return msgspec.convert(known, TranscriptionFields, strict=False)
    except msgspec.ValidationError as error:
        raise shape_error(str(error), known, wanted=TranscriptionFields) from None


def _query_fields(scope: Scope) -> dict[str, str | list[str]]:
    """Return the fields of the address. A field that stands there several times is a list, as forms send lists."""
    values: dict[str, list[str]] = {}
    for name, value in parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True):
        values.setdefault(name, []).append(value)
    return {name: found if len(found) > 1 else found[0] for name, found in values.items()}


def _refuse_query(form: TaskForm, scope: Scope) -> None:
    """Raise ValidationFailed for a parameter in the address of a JSON body, where nothing reads the parameter."""
    if not scope.get("query_string"):
        return
    names = {field.encode_name for field in msgspec.structs.fields(form.parameters)}
    found = next((name for name in _query_fields(scope) if name in names), None)
    if found is not None:
        raise ValidationFailed(
            f"`{found}` stands in the address, which has the parameters of a body that is the file itself; this body "
            "is JSON, so put the field into `parameters`",
            field=found,
        )


def _query_parameters(form: TaskForm, fields: Mapping[str, str | list[str]]) -> object:
    """Return the parameters of a body that is a file, which are the fields of the address. Raises ValidationFailed."""
    try:
        return msgspec.convert(fields, form.parameters, strict=False)
    except msgspec.ValidationError as error:
        raise shape_error(str(error), fields, wanted=form.parameters) from None


def _identity(scope: Scope, found: TaskBytes) -> str:
    """Return JSON itself, or of a file its digest and parameters."""
    if not found.is_file:
        return found.data.decode()
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{hashlib.blake2b(found.data, digest_size=32).hexdigest()} {query}"


def _read_options(data: bytes) -> _WithOptions:
    if b'"options"' not in data and b'"model"' not in data:
        return _WithOptions()
    return decode_json(data, _OPTIONS)
