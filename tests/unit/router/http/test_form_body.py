"""Forms that are whole, broken, cut, and larger than a form may be."""

import asyncio

import pytest
from starlette.types import Scope
from textmill_router.errors import UnknownContentCoding, UnsupportedMediaType, ValidationFailed
from textmill_router.http.form_body import MAX_FIELD_BYTES, MAX_FIELDS, FormBody, read_form

TYPE = b"multipart/form-data; boundary=XbX"
END = b"--XbX--\r\n"


def part(name: bytes, value: bytes, filename: bytes | None = None) -> bytes:
    said = b"" if filename is None else b'; filename="%s"' % filename
    return b'--XbX\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name, said, value)


def read(body: bytes, content_type: bytes | None = TYPE, **headers: bytes) -> FormBody:
    scope: Scope = {"type": "http", "headers": [(name.replace("_", "-").encode(), headers[name]) for name in headers]}
    if content_type is not None:
        scope["headers"].append((b"content-type", content_type))
    return asyncio.run(read_form(scope, body, "file"))


FILE = part(b"file", b"\r\n--Xb\0\xff", b"speech.wav")
GOOD = part(b"model", b"any") + FILE + END


def test_fields_and_file_come_as_they_were_sent() -> None:
    found = read(part(b"list[]", b"one") + part("größe".encode(), "ü".encode()) + FILE + part(b"list[]", b"two") + END)
    assert found.fields == {"list[]": ["one", "two"], "größe": ["ü"]}
    assert found.file == b"\r\n--Xb\0\xff"


def test_a_large_file_stays_whole() -> None:
    data = bytes(range(256)) * 20_000
    assert read(part(b"file", data, b"a") + END).file == data


def test_an_empty_file_is_a_file() -> None:
    assert read(part(b"file", b"", b"") + END) == FormBody({}, b"")


def test_a_file_without_a_name_is_a_text() -> None:
    assert read(part(b"file", b"abc") + END) == FormBody({"file": ["abc"]}, None)


@pytest.mark.parametrize("cut", range(1, len(GOOD) - 3, 7))
def test_a_form_that_is_cut_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(ValidationFailed, match="no form that can be read"):
        read(GOOD[:cut])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "its end is missing"),
        (b"\0\xff" * 100, "Invalid multipart data"),
        (GOOD.replace(b"XbX", b"YYY"), "Invalid multipart data"),
        (part(b"a", b"1") * 1000 + FILE + END, f"Maximum number of fields is {MAX_FIELDS}"),
        (part(b"a", b"1" * (MAX_FIELD_BYTES + 1)) + END, "exceeded maximum size"),
        (FILE * 2 + END, "Maximum number of files is 1"),
        (part(b"other", b"abc", b"a.wav") + END, "`other` must be a text"),
        (b"--XbX\r\n" + b"A: b\r\n" * 100 + b"\r\nx\r\n" + END, "Invalid multipart data"),
        (b"--XbX\r\nA: " + b"b" * 100_000 + b"\r\n\r\nx\r\n" + END, "Invalid multipart data"),
        (b"--XbX\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, '"name" must be provided'),
    ],
)
def test_what_breaks_a_form_is_said(body: bytes, words: str) -> None:
    with pytest.raises(ValidationFailed) as error:
        read(body)
    assert words in str(error.value)


@pytest.mark.parametrize("boundary", [b"", b"; boundary=", b'; boundary=""', b"; boundary=" + b"x" * 1000])
def test_a_boundary_that_is_none_is_refused(boundary: bytes) -> None:
    with pytest.raises(ValidationFailed):
        read(GOOD, b"multipart/form-data" + boundary)


@pytest.mark.parametrize("content_type", [None, b"application/json", b"audio/wav", b"multipart/mixed; boundary=XbX"])
def test_other_types_are_refused(content_type: bytes | None) -> None:
    with pytest.raises(UnsupportedMediaType, match="multipart/form-data"):
        read(GOOD, content_type)


def test_a_coded_body_is_refused() -> None:
    with pytest.raises(UnknownContentCoding):
        read(GOOD, content_encoding=b"gzip")
