"""Requests that decide where a request ends, each with what the oracle makes of it.

The first part stands in Tornado's own wheel, as the inputs behind its security fixes; the second is ours. What a
client sees of the oracle is recorded, so that a Tornado that changes its mind is noticed here.
"""

import re
from collections.abc import Iterator

from msgspec import Struct
from tornado.test import security_corpus_test

from tests.http.wire import BATCH, JSON, chunked, emit_request, request


class Case(Struct, frozen=True):
    """Bytes for one connection. `expected`: the oracle's statuses, then what becomes of the connection."""

    name: str
    listener: str
    sent: bytes
    expected: str
    or_else: str = ""
    """What another front may do though the oracle is stricter."""


def cases() -> list[Case]:
    """All of them."""
    return [*_ours(), *_tornados()]


# ---- Tornado's


def _tornados() -> Iterator[Case]:
    for case in security_corpus_test.CASES:
        for listener, to in (("internal", b"/internal/emit"), ("public", b"/healthz/live")):
            name = f"tornado {case.advisory}: {case.name} ({listener})"
            expected = _TORNADOS_EXPECTED.get(case.name, ("new", "new"))[listener == "public"]
            yield Case(name, listener, _TARGET.sub(rb"\1 " + to, case.request, count=1), expected)


_TARGET = re.compile(rb"^([A-Z]+) /(?:echo|xsrf|ws)(?=[ ?])")
_TORNADOS_EXPECTED: dict[str, tuple[str, str]] = {
    "xsrf exemption for XMLHttpRequest": ("415 closed", "405 closed"),
    "set_header injection": ("404 closed", "404 closed"),
    "redirect header injection": ("404 closed", "404 closed"),
    "signed cookie moved to another name": ("404 closed", "404 closed"),
    "cross-origin websocket": ("403 waiting", "200 waiting"),
    "static path prefix traversal": ("404 closed", "404 closed"),
    "cookie injected by another cookie's value": ("415 closed", "405 closed"),
    "static open redirect": ("404 closed", "404 closed"),
    "static open redirect, backslash": ("404 closed", "404 closed"),
    "content-length plus sign": ("400 closed", "400 closed"),
    "content-length underscore": ("400 closed", "400 closed"),
    "content-length not a number": ("400 closed", "400 closed"),
    "chunk size underscore": ("400 closed", "400 closed"),
    "chunk size hex prefix": ("400 closed", "400 closed"),
    "chunk size sign": ("400 closed", "400 closed"),
    "transfer-encoding gzip, chunked": ("400 closed", "400 closed"),
    "transfer-encoding repeated": ("400 closed", "400 closed"),
    "transfer-encoding and content-length": ("400 closed", "400 closed"),
    "transfer-encoding with no-break space": ("400 closed", "400 closed"),
    "content-length with no-break space": ("400 closed", "400 closed"),
    "malformed multipart parts": ("415 closed", "405 closed"),
    "multipart part without headers": ("415 closed", "405 closed"),
    "reason header injection": ("404 closed", "404 closed"),
    "reason xss": ("404 closed", "404 closed"),
    "too many multipart parts": ("415 closed", "405 closed"),
    "cookie domain injection": ("404 closed", "404 closed"),
    "cookie path injection": ("404 closed", "404 closed"),
    "cookie samesite injection": ("404 closed", "404 closed"),
    "multipart header with bare CR": ("415 closed", "405 closed"),
    "too many urlencoded arguments": ("415 closed", "405 closed"),
    "too many query arguments": ("400 closed", "400 closed"),
}


# ---- ours


def _ours() -> Iterator[Case]:
    for table, listener in ((_INTERNAL, "internal"), (_PUBLIC, "public")):
        for name, sent, expected in table:
            yield Case(name, listener, sent, expected, OR_ELSE.get(name, ""))


def _head(*lines: bytes) -> bytes:
    return b"\r\n".join([*lines, b"", b""])


def _get(*headers: bytes, line: bytes = b"GET /healthz/live HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return _head(line, host, *headers)


def _post(*headers: bytes, body: bytes = BATCH, line: bytes = b"POST /internal/emit HTTP/1.1") -> bytes:
    return _head(line, b"Host: a", JSON.encode(), *headers) + body


def _sized(value: bytes, body: bytes = BATCH) -> bytes:
    return _post(b"Content-Length: " + value, body=body)


def _coded(value: bytes, body: bytes = chunked(BATCH)) -> bytes:
    return _post(b"Transfer-Encoding: " + value, body=body)


def _chunks(body: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", body=body)


OR_ELSE = {
    # RFC 9112, section 6.1: closed behind a message whose framing such an old client may take for another.
    "chunked in HTTP/1.0 that keeps": "200 closed",
    "a size with 200 zeros in front": "200 200 waiting",
    # httptools tells what has come of a chunk, not what it announced: the time for a body bounds it.
    "a size of 2^32 and the chunk": "waiting",
    # llhttp reads this cousin of HTTP too, and says nothing of it.
    "RTSP/1.0": "200 closed",
}

_N = b"%d" % len(BATCH)
_X = b"%x" % len(BATCH)
_LIVE = request("/healthz/live")
_SMUGGLED = emit_request()

_INTERNAL: list[tuple[str, bytes, str]] = [
    # Well-formed, to see that these are answered alike.
    ("emit", emit_request(), "200 waiting"),
    ("emit, then health", emit_request() + _LIVE, "200 200 waiting"),
    ("emit in chunks, then health", _coded(b"chunked") + _LIVE, "200 200 waiting"),
    ("emit in capital Chunked", _coded(b"CHUNKED") + _LIVE, "200 200 waiting"),
    ("emit in HTTP/1.0", emit_request(version="1.0"), "200 closed"),
    ("emit in HTTP/1.0 that keeps", emit_request("Connection: keep-alive", version="1.0") * 2, "200 200 waiting"),
    (
        "emit in HTTP/1.0 that keeps and closes",
        emit_request("Connection: close", "Connection: keep-alive", version="1.0") * 2,
        "200 closed",
    ),
    ("emit without a type", request("/internal/emit", method="POST", body=BATCH) + _LIVE, "415 200 waiting"),
    ("emit without a body", request("/internal/emit", JSON, method="POST") + _LIVE, "400 200 waiting"),
    ("emit of length 0", _sized(b"0", b"") + _LIVE, "400 200 waiting"),
    ("leading zeros in the length", _sized(b"000" + _N) + _LIVE, "200 200 waiting"),
    ("lower-case header names", emit_request().replace(b"Content-", b"content-") + _LIVE, "200 200 waiting"),
    ("white space around the length", _sized(b" \t " + _N + b" \t ") + _LIVE, "200 200 waiting"),
    ("GET with a body", _get(b"Content-Length: 5") + b"hello" + _LIVE, "200 200 waiting"),
    ("GET with a chunked body", _get(b"Transfer-Encoding: chunked") + chunked(b"hello") + _LIVE, "200 200 waiting"),
    (
        "HEAD with a body",
        _get(b"Content-Length: 5", line=b"GET /nowhere HTTP/1.1") + b"hello" + _LIVE,
        "404 200 waiting",
    ),
    ("DELETE of a user", request("/internal/users/99", method="DELETE") + _LIVE, "200 200 waiting"),
    ("OPTIONS *", request("*", method="OPTIONS") + _LIVE, "404 200 waiting"),
    ("a method that nobody knows", request("/internal/emit", method="BREW") + _LIVE, "405 closed"),
    ("a method in lower case", _get(line=b"get /healthz/live HTTP/1.1") + _LIVE, "405 closed"),
    ("PATCH of health", request("/healthz/live", method="PATCH", body=b"x") + _LIVE, "405 200 waiting"),
    ("an Upgrade and a body", emit_request("Connection: Upgrade", "Upgrade: h2c") + _LIVE, "200 200 waiting"),
    ("an expectation", emit_request("Expect: 100-continue") + _LIVE, "200 200 waiting"),
    ("an expectation of something else", emit_request("Expect: 200-ok") + _LIVE, "200 200 waiting"),
    ("an ETag that matches", request("/healthz/live", "If-None-Match: *") + _LIVE, "304 200 waiting"),
    ("Connection: close, then more", emit_request("Connection: close") + _LIVE, "200 closed"),
    ("Connection: close among others", emit_request("Connection: close, te") + _LIVE, "200 200 waiting"),
    ("two Connection headers", emit_request("Connection: te", "Connection: close") + _LIVE, "200 200 waiting"),
    (
        "two Idempotency-Keys",
        emit_request("Idempotency-Key: " + "a" * 64, "Idempotency-Key: " + "b" * 64) + _LIVE,
        "422 200 waiting",
    ),
    (
        "an Idempotency-Key and many batches",
        emit_request("Idempotency-Key: a", body=b"[" + BATCH + b"]") + _LIVE,
        "422 200 waiting",
    ),
    ("an empty Idempotency-Key", emit_request("Idempotency-Key:") + _LIVE, "422 200 waiting"),
    ("a request id", request("/nowhere", "X-Request-Id: abc") + _LIVE, "404 200 waiting"),
    ("a request id that is none", request("/nowhere", "X-Request-Id: a b") + _LIVE, "404 200 waiting"),
    ("two request ids", request("/nowhere", "X-Request-Id: abc", "X-Request-Id: def") + _LIVE, "404 200 waiting"),
    ("two Content-Types", emit_request(JSON) + _LIVE, "415 200 waiting"),
    ("a key beyond ASCII", emit_request("Idempotency-Key: \xe4") + _LIVE, "422 200 waiting"),
    (
        "JSON with a charset",
        request("/internal/emit", JSON + "; charset=utf-8", method="POST", body=BATCH),
        "200 waiting",
    ),
    # Content-Length.
    ("two lengths, equal", _post(b"Content-Length: " + _N, b"Content-Length: " + _N) + _LIVE, "200 200 waiting"),
    ("two lengths, different", _post(b"Content-Length: " + _N, b"Content-Length: 0") + _LIVE, "400 closed"),
    ("two lengths, the first 0", _post(b"Content-Length: 0", b"Content-Length: " + _N) + _LIVE, "400 closed"),
    ("two lengths, one with a zero in front", _post(b"Content-Length: " + _N, b"Content-Length: 0" + _N), "400 closed"),
    ("a list of equal lengths", _sized(_N + b", " + _N) + _LIVE, "200 200 waiting"),
    ("a list of different lengths", _sized(_N + b", 0") + _LIVE, "400 closed"),
    ("a list of nothing", _sized(b",") + _LIVE, "400 closed"),
    ("a length with a comma behind it", _sized(_N + b",") + _LIVE, "400 closed"),
    ("an empty length", _sized(b"") + _LIVE, "400 closed"),
    ("a length with a plus", _sized(b"+" + _N) + _LIVE, "400 closed"),
    ("a negative length", _sized(b"-1") + _LIVE, "400 closed"),
    ("a length of minus zero", _sized(b"-0", b"") + _LIVE, "400 closed"),
    ("a length in hexadecimal", _sized(b"0x" + _X) + _LIVE, "400 closed"),
    ("a length with an underscore", _sized(b"1_14") + _LIVE, "400 closed"),
    ("a length with a point", _sized(_N + b".0") + _LIVE, "400 closed"),
    ("a length with an exponent", _sized(b"1e2") + _LIVE, "400 closed"),
    ("a length of two words", _sized(b"1 14") + _LIVE, "400 closed"),
    ("a length and a word", _sized(_N + b" bytes") + _LIVE, "400 closed"),
    ("a length in quotes", _sized(b'"' + _N + b'"') + _LIVE, "400 closed"),
    ("a length in Arabic digits", _sized("١١٤".encode()) + _LIVE, "400 closed"),
    ("a length with a vertical tab", _sized(b"\x0b" + _N) + _LIVE, "400 closed"),
    ("a length of 2^64", _sized(b"18446744073709551616"), "413 closed"),
    ("a length of 2^64 and the body", _sized(b"%d" % (2**64 + len(BATCH))) + _LIVE, "413 closed"),
    ("a length of 2^32 and the body", _sized(b"%d" % (2**32 + len(BATCH))), "413 closed"),
    ("a length of 100 digits", _sized(b"9" * 100), "413 closed"),
    ("a length of 5,000 digits", _sized(b"9" * 5000), "413 closed"),
    ("a length and no body", _sized(_N, b""), "waiting"),
    ("a length one too long", _sized(b"%d" % (len(BATCH) + 1)), "waiting"),
    ("a length one too short", _sized(b"%d" % (len(BATCH) - 1)), "400 waiting"),
    ("a length too short for the next request", _sized(b"0") + _LIVE, "400 400 closed"),
    (
        "a length beyond the head, in HTTP/1.0",
        _head(b"POST /internal/emit HTTP/1.0", JSON.encode()) + BATCH,
        "400 closed",
    ),
    ("a list of lengths with a no-break space", _sized(_N + b",\xa0" + _N) + _LIVE, "400 closed"),
    ("a list of lengths with a next-line character", _sized(_N + b",\x85" + _N) + _LIVE, "400 closed"),
    # Transfer-Encoding.
    (
        "a length and chunked",
        _post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=chunked(BATCH)),
        "400 closed",
    ),
    (
        "chunked and a length",
        _post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=chunked(BATCH)),
        "400 closed",
    ),
    (
        "a length of 0 and chunked",
        _post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=chunked()),
        "400 closed",
    ),
    ("a length and identity", _post(b"Content-Length: " + _N, b"Transfer-Encoding: identity") + _LIVE, "400 closed"),
    ("identity", _coded(b"identity") + _LIVE, "400 closed"),
    ("gzip", _coded(b"gzip") + _LIVE, "400 closed"),
    ("gzip, chunked", _coded(b"gzip, chunked") + _LIVE, "400 closed"),
    ("chunked, gzip", _coded(b"chunked, gzip") + _LIVE, "400 closed"),
    ("chunked twice in a list", _coded(b"chunked, chunked") + _LIVE, "400 closed"),
    (
        "chunked twice in two headers",
        _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=chunked(BATCH)),
        "400 closed",
    ),
    (
        "identity and chunked in two headers",
        _post(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=chunked(BATCH)),
        "400 closed",
    ),
    ("chunked with a comma in front", _coded(b", chunked") + _LIVE, "400 closed"),
    ("chunked with a comma behind", _coded(b"chunked,") + _LIVE, "400 closed"),
    ("chunked with a parameter", _coded(b"chunked;q=1") + _LIVE, "400 closed"),
    ("chunked in quotes", _coded(b'"chunked"') + _LIVE, "400 closed"),
    ("xchunked", _coded(b"xchunked") + _LIVE, "400 closed"),
    ("chunkedx", _coded(b"chunkedx") + _LIVE, "400 closed"),
    ("chunked and a vertical tab", _coded(b"chunked\x0b") + _LIVE, "400 closed"),
    ("chunked behind a vertical tab", _coded(b"\x0bchunked") + _LIVE, "400 closed"),
    ("chunked behind a no-break space", _coded(b"\xa0chunked") + _LIVE, "400 closed"),
    ("chunked and a tab", _coded(b"\tchunked\t") + _LIVE, "200 200 waiting"),
    ("an empty coding", _coded(b"") + _LIVE, "400 closed"),
    ("an empty coding and a length", _post(b"Transfer-Encoding:", b"Content-Length: " + _N) + _LIVE, "400 closed"),
    (
        "chunked in HTTP/1.0",
        _post(b"Transfer-Encoding: chunked", body=chunked(BATCH), line=b"POST /internal/emit HTTP/1.0"),
        "200 closed",
    ),
    (
        "chunked in HTTP/1.0 that keeps",
        _post(
            b"Transfer-Encoding: chunked",
            b"Connection: keep-alive",
            body=chunked(BATCH),
            line=b"POST /internal/emit HTTP/1.0",
        )
        + _LIVE,
        "200 200 waiting",
    ),
    ("a space before the colon", _post(b"Transfer-Encoding : chunked", body=chunked(BATCH)) + _LIVE, "400 closed"),
    ("a tab before the colon", _post(b"Transfer-Encoding\t: chunked", body=chunked(BATCH)) + _LIVE, "400 closed"),
    ("a space before the name", _post(b" Transfer-Encoding: chunked", body=chunked(BATCH)) + _LIVE, "400 closed"),
    ("a folded coding", _post(b"Transfer-Encoding:\r\n chunked", body=chunked(BATCH)) + _LIVE, "400 closed"),
    (
        "an underscore in the name",
        _post(b"Transfer_Encoding: chunked", b"Content-Length: " + _N) + _LIVE,
        "200 200 waiting",
    ),
    # Chunks.
    ("a size in capital digits", _chunks(b"%X\r\n%b\r\n0\r\n\r\n" % (len(BATCH), BATCH)) + _LIVE, "200 200 waiting"),
    ("a size with zeros in front", _chunks(b"0000%b\r\n%b\r\n000\r\n\r\n" % (_X, BATCH)) + _LIVE, "200 200 waiting"),
    (
        "a size with 60 zeros in front",
        _chunks(b"0" * 60 + b"%b\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE,
        "200 200 waiting",
    ),
    ("a size with 200 zeros in front", _chunks(b"0" * 200 + b"%b\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "closed"),
    ("an extension", _chunks(b"%b;a=b\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("an extension with a bare LF", _chunks(b"%b;a\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "closed"),
    ("an extension with a bare CR", _chunks(b"%b;a\rb\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("an extension of 10 KB", _chunks(b"%b;%b\r\n%b\r\n0\r\n\r\n" % (_X, b"a" * 10_000, BATCH)) + _LIVE, "closed"),
    ("an extension that never ends", _chunks(b"1;" + b"a" * 100_000), "closed"),
    ("a space behind the size", _chunks(b"%b \r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("a space before the size", _chunks(b" %b\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("a tab behind the size", _chunks(b"%b\t\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("a size with 0x", _chunks(b"0x%b\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("a size with a plus", _chunks(b"+%b\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("a negative size", _chunks(b"-1\r\n%b\r\n0\r\n\r\n" % BATCH) + _LIVE, "400 closed"),
    ("a size with an underscore", _chunks(b"7_2\r\n%b\r\n0\r\n\r\n" % BATCH) + _LIVE, "400 closed"),
    ("an empty size", _chunks(b"\r\n%b\r\n0\r\n\r\n" % BATCH) + _LIVE, "400 closed"),
    ("a size that is none", _chunks(b"zz\r\n%b\r\n0\r\n\r\n" % BATCH) + _LIVE, "400 closed"),
    ("a size of 2^64", _chunks(b"10000000000000000\r\n%b\r\n0\r\n\r\n" % BATCH) + _LIVE, "400 closed"),
    (
        "a size of 2^64 and the chunk",
        _chunks(b"100000000000000%02x\r\n%b\r\n0\r\n\r\n" % (len(BATCH), BATCH)) + _LIVE,
        "400 closed",
    ),
    (
        "a size of 2^32 and the chunk",
        _chunks(b"1000000%02x\r\n%b\r\n0\r\n\r\n" % (len(BATCH), BATCH)) + _LIVE,
        "400 closed",
    ),
    ("a size of 60 digits", _chunks(b"f" * 60 + b"\r\n%b\r\n0\r\n\r\n" % BATCH) + _LIVE, "400 closed"),
    ("a bare LF behind the size", _chunks(b"%b\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "closed"),
    ("a bare CR behind the size", _chunks(b"%b\r%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "closed"),
    ("CR CR LF behind the size", _chunks(b"%b\r\r\n%b\r\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("a bare LF behind the chunk", _chunks(b"%b\r\n%b\n0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("nothing behind the chunk", _chunks(b"%b\r\n%b0\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    (
        "two bytes that are no line end behind the chunk",
        _chunks(b"%b\r\n%bXX0\r\n\r\n" % (_X, BATCH)) + _LIVE,
        "400 closed",
    ),
    ("a chunk longer than it says", _chunks(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BATCH) - 1, BATCH)) + _LIVE, "400 closed"),
    ("a chunk shorter than it says", _chunks(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BATCH) + 1, BATCH)) + _LIVE, "400 closed"),
    ("bare LF behind the last chunk", _chunks(b"%b\r\n%b\r\n0\n\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("only one line end behind the last chunk", _chunks(b"%b\r\n%b\r\n0\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("a trailer", _chunks(b"%b\r\n%b\r\n0\r\nX-Sum: 1\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    (
        "a trailer that frames",
        _chunks(b"%b\r\n%b\r\n0\r\nContent-Length: 50\r\n\r\n" % (_X, BATCH)) + _LIVE,
        "400 closed",
    ),
    ("a trailer that is none", _chunks(b"%b\r\n%b\r\n0\r\nGET / HTTP/1.1\r\n\r\n" % (_X, BATCH)) + _LIVE, "400 closed"),
    ("no last chunk", _chunks(b"%b\r\n%b\r\n" % (_X, BATCH)), "waiting"),
    ("the end within a size", _chunks(b"7"), "waiting"),
    ("the end within a chunk", _chunks(b"%b\r\n%b" % (_X, BATCH[:-1])), "waiting"),
    ("no chunk at all", _chunks(b""), "waiting"),
    ("only the last chunk", _chunks(chunked()) + _LIVE, "400 200 waiting"),
    # What stands behind a request.
    ("junk behind a request", emit_request() + b"junk\r\n\r\n", "200 400 closed"),
    ("a null byte behind a request", emit_request() + b"\0", "200 waiting"),
    ("an empty line behind a request", emit_request() + b"\r\n" + _LIVE, "200 200 waiting"),
    ("bare LF behind a request", emit_request() + b"\n\n" + _LIVE, "200 400 closed"),
    (
        "a second request within the body of GET",
        _get(b"Content-Length: %d" % len(_SMUGGLED)) + _SMUGGLED,
        "200 waiting",
    ),
    ("a second request within chunks of GET", _get(b"Transfer-Encoding: chunked") + chunked(_SMUGGLED), "200 waiting"),
    (
        "a second request behind a length and chunked",
        _post(
            b"Content-Length: %d" % (5 + len(_SMUGGLED)), b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + _SMUGGLED
        ),
        "400 closed",
    ),
    (
        "a second request behind a folded length",
        _post(b"X: y\r\n Content-Length: %d" % len(_SMUGGLED), body=_SMUGGLED),
        "400 closed",
    ),
    (
        "a second request behind a bare CR",
        _post(b"X: y\rContent-Length: %d" % len(_SMUGGLED), body=_SMUGGLED),
        "400 closed",
    ),
    (
        "a second request behind a null",
        _post(b"X: y\0Content-Length: %d" % len(_SMUGGLED), body=_SMUGGLED),
        "400 closed",
    ),
    ("a second request behind a bad one", b"GET /healthz/live\r\n\r\n" + _SMUGGLED, "400 closed"),
    (
        "a second request behind a bare LF",
        _head(b"GET /healthz/live HTTP/1.1\nHost: a", b"X: y\nContent-Length: %d" % len(_SMUGGLED)) + _SMUGGLED,
        "200 waiting",
    ),
]

_PUBLIC: list[tuple[str, bytes, str]] = [
    ("health", _LIVE, "200 waiting"),
    ("health, three times", _LIVE * 3, "200 200 200 waiting"),
    ("HEAD of health", request("/healthz/live", method="HEAD"), "200 waiting"),
    ("HEAD of ready, in HTTP/1.0", request("/healthz/ready", method="HEAD", version="1.0"), "200 closed"),
    ("nothing that is here", request("/internal/emit") + _LIVE, "404 200 waiting"),
    ("a pre-flight", request("/stream", "Origin: http://localhost:1", method="OPTIONS") + _LIVE, "204 200 waiting"),
    ("health for a page", request("/healthz/live", "Origin: http://localhost:1") + _LIVE, "200 200 waiting"),
    ("a refusal for a page", request("/nowhere", "Origin: http://localhost:1") + _LIVE, "404 200 waiting"),
    ("POST to a stream", request("/stream", method="POST", body=b"x") + _LIVE, "405 200 waiting"),
    ("a stream", request("/stream?user_id=7&strategy_id=3"), "200 waiting"),
    ("a stream in HTTP/1.0", request("/stream?user_id=7&strategy_id=3", version="1.0"), "200 waiting"),
    ("a stream that is refused", request("/stream?user_id=7") + _LIVE, "422 200 waiting"),
    (
        "a stream with a body",
        _get(b"Content-Length: 5", line=b"GET /stream?user_id=7&strategy_id=3 HTTP/1.1") + b"hello",
        "200 waiting",
    ),
    (
        "a stream with a length of 0",
        _get(b"Content-Length: 0", line=b"GET /stream?user_id=7&strategy_id=3 HTTP/1.1"),
        "200 waiting",
    ),
    (
        "a stream with a chunked body",
        _get(b"Transfer-Encoding: chunked", line=b"GET /stream?user_id=7&strategy_id=3 HTTP/1.1") + chunked(b"x"),
        "200 waiting",
    ),
    (
        "a stream with a bad length",
        _get(b"Content-Length: x", line=b"GET /stream?user_id=7&strategy_id=3 HTTP/1.1"),
        "400 closed",
    ),
    ("a stream that expects 100", request("/stream?user_id=7&strategy_id=3", "Expect: 100-continue"), "200 waiting"),
    ("an encoded path", request("/healthz%2flive") + _LIVE, "404 200 waiting"),
    ("an encoded letter in the path", request("/%68ealthz/live") + _LIVE, "404 200 waiting"),
    ("an encoded null in the path", request("/healthz/live%00") + _LIVE, "404 200 waiting"),
    ("an encoded line end in the query", request("/healthz/ready?for=emit%0d%0aX:%20y") + _LIVE, "422 200 waiting"),
    ("encoded latin-1 in the query", request("/healthz/ready?for=%e4") + _LIVE, "400 200 waiting"),
    ("a bad escape in the path", request("/healthz/live%zz") + _LIVE, "404 200 waiting"),
    ("a bad escape in the query", request("/healthz/ready?for=%zz") + _LIVE, "422 200 waiting"),
    ("a plus in the query", request("/healthz/ready?for=emit+") + _LIVE, "200 200 waiting"),
    ("an empty query", request("/healthz/live?") + _LIVE, "200 200 waiting"),
    ("a path with a slash too many", request("/healthz/live/") + _LIVE, "404 200 waiting"),
    ("a path with two slashes in front", request("//healthz/live") + _LIVE, "404 200 waiting"),
    ("a path with dots", request("/x/../healthz/live") + _LIVE, "404 200 waiting"),
    ("a path in capitals", request("/HEALTHZ/LIVE") + _LIVE, "404 200 waiting"),
    ("more parameters than are read", request("/healthz/ready?" + "&".join(["a=b"] * 1001)) + _LIVE, "400 closed"),
    # Request lines.
    ("garbage", b"garbage\r\n\r\n" + _LIVE, "400 closed"),
    ("a header that is garbage, in HTTP/1.0", b"GET / HTTP/1.0\r\nasdf\r\n\r\n", "400 closed"),
    ("no version", _head(b"GET /healthz/live") + _LIVE, "400 closed"),
    ("HTTP/0.9", b"GET /healthz/live\r\n", "waiting"),
    ("HTTP/0.9 named", _get(line=b"GET /healthz/live HTTP/0.9") + _LIVE, "400 closed"),
    ("HTTP/1.2", _get(line=b"GET /healthz/live HTTP/1.2") + _LIVE, "200 closed"),
    ("HTTP/1.9 that does not keep", _get(line=b"GET /healthz/live HTTP/1.9"), "200 closed"),
    ("HTTP/2.0", _get(line=b"GET /healthz/live HTTP/2.0") + _LIVE, "400 closed"),
    ("HTTP/3.0", _get(line=b"GET /healthz/live HTTP/3.0") + _LIVE, "400 closed"),
    ("HTTP/1.10", _get(line=b"GET /healthz/live HTTP/1.10") + _LIVE, "400 closed"),
    ("HTTP/01.1", _get(line=b"GET /healthz/live HTTP/01.1") + _LIVE, "400 closed"),
    ("HTTP/1", _get(line=b"GET /healthz/live HTTP/1") + _LIVE, "400 closed"),
    ("HTTP/1.", _get(line=b"GET /healthz/live HTTP/1.") + _LIVE, "400 closed"),
    ("HTTP/1.x", _get(line=b"GET /healthz/live HTTP/1.x") + _LIVE, "400 closed"),
    ("http/1.1", _get(line=b"GET /healthz/live http/1.1") + _LIVE, "400 closed"),
    ("HTTPS/1.1", _get(line=b"GET /healthz/live HTTPS/1.1") + _LIVE, "400 closed"),
    ("ICE/1.0", _get(line=b"SOURCE /healthz/live ICE/1.0") + _LIVE, "400 closed"),
    ("RTSP/1.0", _get(line=b"GET /healthz/live RTSP/1.0") + _LIVE, "400 closed"),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 closed"),
    ("two spaces before the target", _get(line=b"GET  /healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("two spaces before the version", _get(line=b"GET /healthz/live  HTTP/1.1") + _LIVE, "400 closed"),
    ("a space behind the version", _get(line=b"GET /healthz/live HTTP/1.1 ") + _LIVE, "400 closed"),
    ("a space before the method", _get(line=b" GET /healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("a tab before the target", _get(line=b"GET\t/healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("a tab before the version", _get(line=b"GET /healthz/live\tHTTP/1.1") + _LIVE, "400 closed"),
    ("a space in the target", _get(line=b"GET /healthz/live x HTTP/1.1") + _LIVE, "400 closed"),
    ("no target", _get(line=b"GET HTTP/1.1") + _LIVE, "400 closed"),
    ("an empty target", _get(line=b"GET  HTTP/1.1") + _LIVE, "400 closed"),
    ("no method", _get(line=b"/healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("an empty method", _get(line=b" /healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("a method with a comma", _get(line=b"GET,POST /healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("a method with a colon", _get(line=b"GET: /healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("a method with a null", _get(line=b"GE\0T /healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("a method beyond ASCII", _get(line="GÄT /healthz/live HTTP/1.1".encode()) + _LIVE, "400 closed"),
    ("a method of 1,000 letters", _get(line=b"G" * 1000 + b" /healthz/live HTTP/1.1") + _LIVE, "405 closed"),
    ("a null in the target", _get(line=b"GET /healthz\0/live HTTP/1.1") + _LIVE, "400 closed"),
    ("a control character in the target", _get(line=b"GET /healthz\x01/live HTTP/1.1") + _LIVE, "400 closed"),
    ("DEL in the target", _get(line=b"GET /healthz\x7f/live HTTP/1.1") + _LIVE, "400 closed"),
    ("UTF-8 in the target", _get(line="GET /größe HTTP/1.1".encode()) + _LIVE, "404 200 waiting"),
    ("latin-1 in the query", _get(line=b"GET /healthz/ready?for=\xe4 HTTP/1.1") + _LIVE, "400 200 waiting"),
    ("quotes in the target", _get(line=b'GET /"<>\\^`{|} HTTP/1.1') + _LIVE, "404 200 waiting"),
    ("a fragment in the target", _get(line=b"GET /healthz/live#x HTTP/1.1") + _LIVE, "404 200 waiting"),
    ("a target without a slash", _get(line=b"GET healthz/live HTTP/1.1") + _LIVE, "404 200 waiting"),
    ("a target of a question mark", _get(line=b"GET ? HTTP/1.1") + _LIVE, "404 200 waiting"),
    ("an absolute target", _get(line=b"GET http://a/healthz/live HTTP/1.1") + _LIVE, "404 200 waiting"),
    ("an absolute target of another host", _get(line=b"GET http://b/healthz/live HTTP/1.1") + _LIVE, "404 200 waiting"),
    ("an absolute target without a path", _get(line=b"GET http://a HTTP/1.1") + _LIVE, "404 200 waiting"),
    ("GET *", _get(line=b"GET * HTTP/1.1") + _LIVE, "404 200 waiting"),
    ("CONNECT", _get(line=b"CONNECT a:80 HTTP/1.1") + _LIVE, "405 closed"),
    ("CONNECT to a path", _get(line=b"CONNECT /healthz/live HTTP/1.1") + _LIVE, "405 closed"),
    (
        "CONNECT with a length",
        _get(b"Content-Length: %d" % len(_LIVE), line=b"CONNECT a:80 HTTP/1.1") + _LIVE * 2,
        "405 closed",
    ),
    ("TRACE", _get(line=b"TRACE /healthz/live HTTP/1.1") + _LIVE, "405 closed"),
    ("an answer for a request", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "400 closed"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), "waiting"),
    ("an empty line in front", b"\r\n" + _LIVE, "200 waiting"),
    ("three empty lines in front", b"\r\n\r\n\r\n" + _LIVE, "400 closed"),
    ("bare LF in front", b"\n" + _LIVE, "200 waiting"),
    ("bare CR in front", b"\r" + _LIVE, "200 waiting"),
    ("white space in front", b" \r\n" + _LIVE, "400 closed"),
    ("a byte order mark in front", b"\xef\xbb\xbf" + _LIVE, "400 closed"),
    ("a null in front", b"\0" + _LIVE, "400 closed"),
    # Line ends.
    ("bare LF everywhere", _LIVE.replace(b"\r\n", b"\n") * 2, "200 200 waiting"),
    ("bare LF behind the request line", _LIVE.replace(b"\r\n", b"\n", 1) * 2, "200 200 waiting"),
    ("bare LF behind a header", _get(b"X: y\nY: z") + _LIVE, "200 200 waiting"),
    ("bare LF behind the head", _LIVE[:-2] + b"\n" + _LIVE, "200 200 waiting"),
    ("bare CR behind the request line", b"GET /healthz/live HTTP/1.1\rHost: a\r\n\r\n" + _LIVE, "400 closed"),
    ("bare CR behind a header", _get(b"X: y\rY: z") + _LIVE, "400 closed"),
    ("bare CR behind the head", _LIVE[:-2] + b"\r" + _LIVE, "400 closed"),
    ("bare CR everywhere", _LIVE.replace(b"\r\n", b"\r"), "waiting"),
    ("LF CR for CR LF", _LIVE.replace(b"\r\n", b"\n\r") + _LIVE, "400 closed"),
    ("CR CR LF for CR LF", _LIVE.replace(b"\r\n", b"\r\r\n") + _LIVE, "400 closed"),
    ("half a head", _LIVE[:-2], "waiting"),
    ("half a request line", b"GET /hea", "waiting"),
    ("half a line end", _LIVE[:-1], "waiting"),
    # Header names and values.
    ("a folded value", _get(b"X: y\r\n z") + _LIVE, "400 closed"),
    ("a value folded with a tab", _get(b"X: y\r\n\tz") + _LIVE, "400 closed"),
    ("a fold behind the request line", _head(b"GET /healthz/live HTTP/1.1", b" Host: a") + _LIVE, "400 closed"),
    ("a folded host", _head(b"GET /healthz/live HTTP/1.1", b"Host:\r\n a") + _LIVE, "400 closed"),
    ("an empty folded line", _get(b"X: y\r\n ") + _LIVE, "400 closed"),
    ("a header without a colon", _get(b"X") + _LIVE, "400 closed"),
    ("an empty name", _get(b": y") + _LIVE, "400 closed"),
    ("only a colon", _get(b":") + _LIVE, "400 closed"),
    ("an empty value", _get(b"X:") + _LIVE, "200 200 waiting"),
    ("a space in a name", _get(b"X Y: z") + _LIVE, "400 closed"),
    ("a space before a colon", _get(b"X : y") + _LIVE, "400 closed"),
    ("a tab before a colon", _get(b"X\t: y") + _LIVE, "400 closed"),
    ("a null in a name", _get(b"X\0: y") + _LIVE, "400 closed"),
    ("a null in a value", _get(b"X: y\0z") + _LIVE, "400 closed"),
    ("a control character in a name", _get(b"X\x01: y") + _LIVE, "400 closed"),
    ("a control character in a value", _get(b"X: y\x01z") + _LIVE, "400 closed"),
    ("a vertical tab in a value", _get(b"X: y\x0bz") + _LIVE, "400 closed"),
    ("a form feed in a value", _get(b"X: y\x0cz") + _LIVE, "400 closed"),
    ("DEL in a value", _get(b"X: y\x7fz") + _LIVE, "400 closed"),
    ("DEL in a name", _get(b"X\x7f: y") + _LIVE, "400 closed"),
    ("a tab in a value", _get(b"X: y\tz") + _LIVE, "200 200 waiting"),
    ("latin-1 in a value", _get(b"X: \xe4") + _LIVE, "200 200 waiting"),
    ("latin-1 in a name", _get(b"X\xe4: y") + _LIVE, "400 closed"),
    ("brackets in a name", _get(b"X[]: y") + _LIVE, "400 closed"),
    ("every letter that a name may have", _get(b"!#$%&'*+-.^_`|~09azAZ: y") + _LIVE, "200 200 waiting"),
    ("a name in quotes", _get(b'"X": y') + _LIVE, "400 closed"),
    ("a thousand headers", _get(*[b"X: y"] * 1000) + _LIVE, "200 200 waiting"),
    # Host.
    ("no host", _head(b"GET /healthz/live HTTP/1.1") + _LIVE, "400 closed"),
    ("no host, in HTTP/1.0", _head(b"GET /healthz/live HTTP/1.0"), "200 closed"),
    ("an empty host", _get(host=b"Host:") + _LIVE, "200 200 waiting"),
    ("two hosts, equal", _get(b"Host: a") + _LIVE, "400 closed"),
    ("two hosts, different", _get(b"Host: b") + _LIVE, "400 closed"),
    ("two hosts, in HTTP/1.0", _get(b"Host: b", line=b"GET /healthz/live HTTP/1.0"), "400 closed"),
    ("a list of hosts", _get(host=b"Host: a, b") + _LIVE, "400 closed"),
    ("a list of hosts without a space", _get(host=b"Host: a,b") + _LIVE, "400 closed"),
    ("a host with a space", _get(host=b"Host: a b") + _LIVE, "400 closed"),
    ("a host with a slash", _get(host=b"Host: a/b") + _LIVE, "400 closed"),
    ("a host with a user", _get(host=b"Host: u@a") + _LIVE, "400 closed"),
    ("a host with a scheme", _get(host=b"Host: http://a") + _LIVE, "400 closed"),
    ("a host with a port", _get(host=b"Host: a:8080") + _LIVE, "200 200 waiting"),
    ("a host with an empty port", _get(host=b"Host: a:") + _LIVE, "200 200 waiting"),
    ("a host with a port that is none", _get(host=b"Host: a:b") + _LIVE, "200 200 waiting"),
    ("a host in IPv6", _get(host=b"Host: [::1]:8080") + _LIVE, "200 200 waiting"),
    ("a host beyond ASCII", _get(host=b"Host: \xe4") + _LIVE, "400 closed"),
    ("a host with a null", _get(host=b"Host: a\0") + _LIVE, "400 closed"),
    ("a host with a question mark", _get(host=b"Host: a?b") + _LIVE, "400 closed"),
    ("a host with quotes", _get(host=b'Host: "a"') + _LIVE, "400 closed"),
    ("a host that is encoded", _get(host=b"Host: %61") + _LIVE, "200 200 waiting"),
    ("a host with a bad escape", _get(host=b"Host: %zz") + _LIVE, "400 closed"),
    ("a host in lower-case letters of the name", _get(host=b"host: a") + _LIVE, "200 200 waiting"),
    ("a space before the colon of the host", _get(host=b"Host : a") + _LIVE, "400 closed"),
]
