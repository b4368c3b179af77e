"""Hostile calls as bytes, each with the status and the `error_type` of its answer.

The rows are made for a router with the key `k`, a `--payload-limit` of `PAYLOAD_LIMIT` bytes, a `--max-header-bytes`
of `HEADER_LIMIT`, and a window of 2,048 tokens. The rows that end with 408 take as long as the router's deadlines of
headers and bodies.
"""

import json

KEY = b"authorization: Bearer k\r\n"
JSON = b"content-type: application/json\r\n"
HOST = b"host: x\r\n"
POST = b"POST /generate HTTP/1.1\r\n"
HEAD = POST + HOST + KEY + JSON
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
PAYLOAD_LIMIT = 100_000
HEADER_LIMIT = 8192
MANY_BYTES = 1_000_000  # more than the server reads at once


def call(body: bytes, head: bytes = HEAD) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def generate(**parameters: object) -> bytes:
    return call(json.dumps({"inputs": "hi", "parameters": {"max_new_tokens": 1, **parameters}}).encode())


def nested_schema(depth: int) -> dict[str, object]:
    """Return a schema whose references double with each level."""
    levels: dict[str, object] = {"d0": {"type": "string"}}
    for level in range(1, depth):
        reference = {"$ref": f"#/$defs/d{level - 1}"}
        levels[f"d{level}"] = {"type": "object", "properties": {"a": reference, "b": reference}}
    return {"$defs": levels, "$ref": f"#/$defs/d{depth - 1}"}


# Name, bytes of the client, status, error_type. A bomb that costs nothing is a call like any other.
ROWS: list[tuple[str, bytes, int, str]] = [
    ("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http"),
    ("no HTTP at all", b"EHLO example.com\r\n\r\n", 400, "invalid_http"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http"),
    ("no host", POST + KEY + JSON + b"content-length: 2\r\n\r\n{}", 400, "invalid_http"),
    ("two hosts", POST + HOST + HOST + KEY + b"content-length: 0\r\n\r\n", 400, "invalid_http"),
    ("two keys", POST + HOST + KEY + KEY + b"content-length: 0\r\n\r\n", 400, "invalid_http"),
    ("a host with a path", POST + b"host: x/y\r\n" + KEY + b"content-length: 0\r\n\r\n", 400, "invalid_http"),
    ("a space in a name", HEAD + b"content length: 2\r\n\r\n{}", 400, "invalid_http"),
    ("a zero byte in a value", HEAD + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}", 400, "invalid_http"),
    ("a bare line feed", POST + b"host: x\nx: y\r\n\r\n", 400, "invalid_http"),
    ("a negative length", HEAD + b"content-length: -1\r\n\r\n", 400, "invalid_http"),
    ("a length of letters", HEAD + b"content-length: ten\r\n\r\n", 400, "invalid_http"),
    ("a length beyond 64 bits", HEAD + b"content-length: 99999999999999999999999\r\n\r\n", 400, "invalid_http"),
    ("two lengths", HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400, "invalid_http"),
    ("length and chunks", HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", 400, "invalid_http"),
    ("chunks twice", HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400, "invalid_http"),
    ("an unknown coding", HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "unknown_transfer_coding"),
    ("a chunk size of letters", CHUNKED + b"zz\r\nhi\r\n", 400, "invalid_http"),
    ("a chunk size beyond 64 bits", CHUNKED + b"fffffffffffffffff\r\nhi\r\n", 400, "invalid_http"),
    ("a negative chunk size", CHUNKED + b"-2\r\nhi\r\n", 400, "invalid_http"),
    ("a chunk longer than its size", CHUNKED + b"2\r\nhello\r\n0\r\n\r\n", 400, "invalid_http"),
    ("an endless chunk line", CHUNKED + b"2;" + b"e" * MANY_BYTES, 431, "header_too_large"),
    ("an endless trailer", CHUNKED + b"2\r\n{}\r\n0\r\nt: " + b"t" * MANY_BYTES, 431, "header_too_large"),
    ("too many trailers", CHUNKED + b"2\r\n{}\r\n0\r\n" + b"t: t\r\n" * 200, 431, "header_too_large"),
    ("a large header", HEAD + b"x: " + b"y" * 2 * HEADER_LIMIT + b"\r\n\r\n", 431, "header_too_large"),
    ("many fields", HEAD + b"x: y\r\n" * 200 + b"\r\n", 431, "header_too_large"),
    ("a long path", b"GET /" + b"a" * 2 * HEADER_LIMIT + b" HTTP/1.1\r\n", 431, "header_too_large"),
    ("a header without end", HEAD + b"x: y\r\n", 408, "request_timeout"),
    ("a body without end", HEAD + b"content-length: 9\r\n\r\n{", 408, "request_timeout"),
    ("chunks without end", CHUNKED + b"2\r\n{}\r\n", 408, "request_timeout"),
    ("a long body that is announced", HEAD + b"content-length: 99999999999\r\n\r\n{", 413, "payload_too_large"),
    (
        "a long body that asks first",
        HEAD + b"expect: 100-continue\r\ncontent-length: 999999\r\n\r\n",
        413,
        "payload_too_large",
    ),
    ("a long body", call(b"x" * (PAYLOAD_LIMIT + 1)), 413, "payload_too_large"),
    (
        "a long body in chunks",
        CHUNKED + b"ffff\r\n" + b"x" * 65535 + b"\r\nffff\r\n" + b"x" * 65535,
        413,
        "payload_too_large",
    ),
    ("no key", call(b"{}", POST + HOST + JSON), 401, "unauthorized"),
    ("a wrong key", call(b"{}", POST + HOST + JSON + b"authorization: Bearer K\r\n"), 401, "unauthorized"),
    ("another scheme", call(b"{}", POST + HOST + JSON + b"authorization: Basic azprMQ==\r\n"), 401, "unauthorized"),
    ("no route", call(b"{}", b"POST /nothing HTTP/1.1\r\n" + HOST + KEY), 404, "not_found"),
    ("no method of the route", call(b"", b"DELETE /generate HTTP/1.1\r\n" + HOST + KEY), 405, "method_not_allowed"),
    ("a tunnel", b"CONNECT x:80 HTTP/1.1\r\n" + HOST + KEY + b"\r\n", 400, "invalid_http"),
    ("a form", call(b"a=b", POST + HOST + KEY), 415, "unsupported_media_type"),
    ("a compressed body", call(b"\x1f\x8b", HEAD + b"content-encoding: gzip\r\n"), 415, "unsupported_media_type"),
    ("no JSON", call(b"{'inputs': 1}"), 400, "invalid_json"),
    ("half a JSON", call(b'{"inputs": "hi"'), 400, "invalid_json"),
    ("deep JSON", call(b'{"inputs":' + b"[" * 50_000), 400, "invalid_json"),
    ("broken UTF-8", call(b'{"inputs": "\xff\xfe"}'), 400, "invalid_json"),
    (
        "broken UTF-8 in a name",
        call(b'{"inputs": "hi", "parameters": {"\xa4": 1, "max_new_tokens": 1}}'),
        400,
        "invalid_json",
    ),
    ("broken UTF-8 in a field that nobody reads", call(b'{"inputs": "hi", "x": ["\xa4"]}'), 400, "invalid_json"),
    ("half a surrogate", call(b'{"inputs": "\\ud800"}'), 400, "invalid_json"),
    ("another shape", call(b'{"inputs": [[]]}'), 422, "validation"),
    ("an array", call(b"[]"), 422, "validation"),
    (
        "a number of many digits",
        call(b'{"inputs": "hi", "parameters": {"seed": ' + b"9" * 4000 + b"}}"),
        422,
        "validation",
    ),
    ("a number out of range", generate(temperature=1e308), 422, "validation"),
    ("a regex bomb", generate(grammar={"type": "regex", "value": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}), 200, ""),
    ("a regex that does not end", generate(grammar={"type": "regex", "value": "(" * 5000}), 422, "validation"),
    ("a schema bomb", generate(grammar={"type": "json", "value": nested_schema(30)}), 200, ""),
    ("a schema in a circle", generate(grammar={"type": "json", "value": {"$ref": "#"}}), 200, ""),
    ("many stop strings", generate(stop=["a"] * 1000), 422, "validation"),
    ("a long prompt", call(json.dumps({"inputs": "x" * 90_000}).encode()), 422, "validation"),
]
