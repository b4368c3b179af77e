"""A body that is a form (multipart/form-data): its fields, and one file. Starlette's parser reads the form.

The whole body has been read, and counted, before. The parts stay in memory, so no file is written.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Scope

from textmill_router.errors import UnknownContentCoding, UnsupportedMediaType, ValidationFailed
from textmill_router.http.json_body import header_of

MAX_FIELDS = 64
MAX_FIELD_BYTES = 1 << 20
_FORM = b"multipart/form-data"
_SLICE_BYTES = 1 << 18  # parsed at a time


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 40  # bytes of a file that are kept in memory; the body's own limit is far below
    has_ended = False  # whether the last boundary has come

    def on_end(self) -> None:
        self.has_ended = True


@dataclass(frozen=True, slots=True)
class FormBody:
    """The fields of a form, each with its values in order, and the bytes of its file, or None without one."""

    fields: Mapping[str, list[str]]
    file: bytes | None = field(repr=False)


async def read_form(scope: Scope, body: bytes, file_field: str) -> FormBody:
    """Return the form of a body, whose field `file_field` is the file.

    Raises UnsupportedMediaType for a body that is no form, and ValidationFailed for a form that breaks its own rules,
    that has more than one file or a file in another field, or more or longer fields than a form may have.
    """
    content_type = header_of(scope, b"content-type") or b""
    if content_type.partition(b";")[0].strip().lower() != _FORM:
        found = content_type.partition(b";")[0].decode("latin-1").strip() or "none"
        raise UnsupportedMediaType(
            f"the header content-type must be {_FORM.decode()} with the file in the field {file_field}, found {found!r}"
        )
    coding = header_of(scope, b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise UnknownContentCoding(f"the body must not be coded, found content-encoding {coding.decode('latin-1')!r}")

    async def slices() -> AsyncGenerator[bytes, None]:
        view = memoryview(body)
        for start in range(0, len(body), _SLICE_BYTES):
            yield bytes(view[start : start + _SLICE_BYTES])
            await asyncio.sleep(0)  # other calls have their turn
        if not parser.has_ended:  # raised here, so that the parser closes its files
            raise MultiPartException("its end is missing, the boundary with two dashes")

    parser = _InMemory(
        Headers(raw=[(b"content-type", content_type)]),
        slices(),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ValidationFailed(f"the body is no form that can be read: {error.message}") from None
    try:
        return await _sorted(form.multi_items(), file_field)
    finally:
        await form.close()


async def _sorted(items: "list[tuple[str, UploadFile | str]]", file_field: str) -> FormBody:
    fields: dict[str, list[str]] = {}
    file: bytes | None = None
    for name, value in items:
        if isinstance(value, str):
            fields.setdefault(name, []).append(value)
            continue
        if name != file_field:
            raise ValidationFailed(
                f"`{name[:64]}` must be a text, found a file; the file stands in the field `{file_field}`", field=name
            )
        file = await value.read()
    return FormBody(fields, file)
