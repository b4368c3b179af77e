"""Header fields that name the host and the end of the body of a request. The cases are sentences of RFC 9112."""

import pytest
from textmill_router.errors import BadHttp, UnknownTransferCoding
from textmill_router.http.framing import framing_fault

HOST = (b"host", b"x")


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", [HOST]),
        ("1.1", [(b"host", b"")]),  # 3.2: where there is no authority
        ("1.1", [(b"host", b"[::1]:3000")]),
        ("1.1", [(b"host", b"a-b_c.example:80"), (b"accept", b"*/*")]),
        ("1.1", [HOST, (b"authorization", b"Bearer a")]),
        ("1.1", [HOST, (b"transfer-encoding", b"Chunked")]),
        ("1.1", [HOST, (b"transfer-encoding", b" chunked , ")]),  # 9110, 5.6.1.2: empty elements of a list count not
        ("1.0", []),
        ("1.0", [HOST]),
    ],
)
def test_fields_that_are_right(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert framing_fault(version, headers) is None


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", []),  # 3.2: a request without Host
        ("1.1", [(b"accept", b"*/*")]),
        ("1.1", [HOST, (b"host", b"x")]),  # 3.2: more than one
        ("1.0", [HOST, (b"host", b"y")]),
        ("1.1", [HOST, (b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")]),  # 9110, 5.3: no list
        ("1.1", [(b"host", b"a b")]),  # 3.2: an invalid value
        ("1.1", [(b"host", b"http://x/")]),
        ("1.1", [(b"host", b"user@x")]),
        ("1.0", [(b"transfer-encoding", b"chunked")]),  # 6.1: HTTP/1.0 has none
        ("1.1", [HOST, (b"transfer-encoding", b"chunked, chunked")]),  # 6.1: not more than once
        ("1.1", [HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")]),
    ],
)
def test_fields_that_are_wrong(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert isinstance(framing_fault(version, headers), BadHttp)


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"GZIP", b"chunked, deflate", b"identity", b"xchunked"])
def test_transfer_codings_that_nobody_undoes(coding: bytes) -> None:
    fault = framing_fault("1.1", [HOST, (b"transfer-encoding", coding)])
    assert isinstance(fault, UnknownTransferCoding)
    unknown = next(one for one in coding.decode().lower().split(", ") if one != "chunked")
    assert f"found {unknown!r}" in str(fault)
