"""The header fields that say for whom a request is and where its body ends, as RFC 9112 wants them."""

import re
from collections.abc import Sequence

from textmill_router.errors import BadHttp, RequestError, UnknownTransferCoding
from textmill_router.http.error_responses import Header

HTTP_1_0, HTTP_1_1 = "1.0", "1.1"
# What can stand in no name of a host and no port. A host may be empty (RFC 9112, 3.2).
_NO_HOST = re.compile(rb"[\x00-\x20\x7f/?#@\\]")
_CHUNKED = b"chunked"


def framing_fault(http_version: str, headers: Sequence[Header]) -> RequestError | None:
    """Return the fault of a request's header fields, or None. The names of `headers` are in lower case.

    RFC 9112, 3.2 wants one `Host` on HTTP/1.1, and never two. RFC 9110, 5.3 allows one `Authorization`, because a proxy
    might check the first of two and the server the second. RFC 9112, 6.1 wants a transfer coding that the server does
    not know to be answered 501, and no transfer coding on HTTP/1.0. The parser has refused `Transfer-Encoding` beside
    `Content-Length`.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return BadHttp(f"the header host must stand once, found {len(hosts)} times")
    if not hosts and http_version == HTTP_1_1:
        return BadHttp("HTTP/1.1 needs the header host")
    if hosts and _NO_HOST.search(hosts[0].strip()):
        return BadHttp(f"the header host must be a host and perhaps a port, found {hosts[0].decode('latin-1')[:100]!r}")
    num_keys = sum(name == b"authorization" for name, _ in headers)
    if num_keys > 1:
        return BadHttp(f"the header authorization must stand once, found {num_keys} times")
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    return _coding_fault(http_version, b",".join(codings)) if codings else None


def _coding_fault(http_version: str, value: bytes) -> RequestError | None:
    codings = [coding.strip().lower() for coding in value.split(b",")]
    for coding in codings:
        if coding and coding != _CHUNKED:
            return UnknownTransferCoding(
                f"the transfer coding must be chunked, found {coding.decode('latin-1')[:100]!r}; send the body as it is"
            )
    if http_version != HTTP_1_1:
        return BadHttp(f"HTTP/{http_version} has no transfer codings; send the header content-length")
    if codings.count(_CHUNKED) > 1:
        return BadHttp("the transfer coding chunked must stand once")
    return None
