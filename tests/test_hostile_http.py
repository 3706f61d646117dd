"""Bytes that are no HTTP, or HTTP that nobody sends: answered with the client's mistake or not at all, never with a 5xx
and never by a hang, and the next client is served.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from service.app import create_app
from service.settings import ServiceSettings
from tests.serving import Served, listening
from tests.sockets import BODY, Peer, ask, chunked, request

LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def port(served: Served) -> Iterator[int]:
    """A service over real sockets whose bodies may have 64 KiB."""
    with listening(create_app(ServiceSettings(index=served.directory.path, max_body_bytes=LIMIT))) as port:
        yield port


@dataclass(frozen=True)
class Case:
    """What is sent, the statuses of the answers to it, and whether the server then closes the connection."""

    name: str
    data: bytes
    statuses: list[int]
    closes: bool = False


def get(path: str, *headers: str) -> bytes:
    return request(b"", *headers, path=path, method="GET", declared=False)


def search(*headers: str, body: bytes = BODY) -> bytes:
    return request(body, *headers, declared=False)


def in_chunks(body: bytes, *headers: str) -> bytes:
    return search("Transfer-Encoding: chunked", *headers, body=body)


WHOLE = chunked(BODY, b"")
UPGRADE = ("Connection: keep-alive, Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
REFUSED = [400]

FRAMING = [
    Case("a search", request(), [200]),
    Case("HTTP/1.0", request(version="1.0"), [200], closes=True),
    Case("HTTP/1.0 that would stay", request(BODY, "Connection: keep-alive", version="1.0"), [200], closes=True),
    Case("HTTP/0.9", b"GET /livez\r\n\r\n", [200], closes=True),
    Case("HTTP/3.7", request(version="3.7"), REFUSED, closes=True),
    Case("HTTP/x", request(version="x"), REFUSED, closes=True),
    Case("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", REFUSED, closes=True),
    Case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", REFUSED, closes=True),
    Case("another protocol", b"SSH-2.0-OpenSSH_9.6\r\n", REFUSED, closes=True),
    Case("NUL bytes", b"\0" * 1000, REFUSED, closes=True),
    Case("a method that nobody knows", get("/livez").replace(b"GET", b"BREW"), REFUSED, closes=True),
    Case("a small method", get("/livez").replace(b"GET", b"get"), REFUSED, closes=True),
    Case("a proxy's method", b"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\n", REFUSED, closes=True),
    Case("a proxy's method for a path", b"CONNECT http://x/livez HTTP/1.1\r\nHost: x\r\n\r\n", REFUSED, closes=True),
    *(
        Case(f"method {method}", request(b"", path="/livez", method=method), [405])
        for method in ("OPTIONS", "TRACE", "PATCH", "DELETE", "PUT", "POST", "PROPFIND", "PURGE")
    ),
    Case("lines that end with LF", request().replace(b"\r\n", b"\n"), REFUSED, closes=True),
    Case("lines that end with CR", request().replace(b"\r\n", b"\r"), REFUSED, closes=True),
    Case("empty lines before", b"\r\n\r\n" + request(), [200]),
    Case("both lengths", request(WHOLE, "Transfer-Encoding: chunked"), REFUSED, closes=True),
    Case("both lengths, turned round", search("Transfer-Encoding: chunked", "Content-Length: 3"), REFUSED, closes=True),
    Case("two lengths", request(BODY, "Content-Length: 3"), REFUSED, closes=True),
    Case("two equal lengths", request(BODY, f"Content-Length: {len(BODY)}"), REFUSED, closes=True),
    *(
        Case(f"length {value!r}", search(f"Content-Length: {value}"), REFUSED, closes=True)
        for value in ("-1", "+3", "0x10", "1e3", "3, 3", "ten", "", "9" * 30, str(2**64))
    ),
    Case("transfer encoding of no name", search("Transfer-Encoding: chonked"), REFUSED, closes=True),
    Case("transfer encoding that is not last", search("Transfer-Encoding: chunked, gzip"), REFUSED, closes=True),
    Case("two encodings", search("Transfer-Encoding: chunked", "Transfer-Encoding: gzip"), REFUSED, closes=True),
    Case("chunks", in_chunks(WHOLE), [200]),
    Case("chunks of one byte", in_chunks(chunked(*(bytes([byte]) for byte in BODY), b"")), [200]),
    Case("chunks with extensions", in_chunks(WHOLE.replace(b"\r\n", b";name=value\r\n", 1)), [200]),
    Case("chunks with trailers", in_chunks(WHOLE[:-2] + b"X-Checksum: 7\r\n\r\n"), [200]),
    *(
        Case(f"chunks: {data!r}", in_chunks(data), REFUSED, closes=True)
        for data in (
            b"zz\r\nabc\r\n",
            b"-1\r\nabc\r\n",
            b"+3\r\nabc\r\n",
            b"0x3\r\nabc\r\n",
            b"3\r\nabcdef\r\n",
            b"3 \r\nabc\r\n",
            b"3\nabc\n",
            b"\r\n",
            b"f" * 17 + b"\r\nabc\r\n",
        )
    ),
    Case("upgrade to h2c", request(BODY, *UPGRADE), [200]),
    Case("upgrade to h2c, in chunks", in_chunks(WHOLE, *UPGRADE), [200]),
    Case("upgrades and others in one write", (request(BODY, *UPGRADE) + request()) * 3, [200] * 6),
    Case("upgrade to a websocket", get("/livez", "Connection: Upgrade", "Upgrade: websocket"), [200]),
    Case("upgrade that closes", request(BODY, "Connection: Upgrade, close", "Upgrade: h2c"), [200], closes=True),
    Case("requests in one write", request() * 40, [200] * 40),
    Case("requests up to one that closes", request() * 2 + request(BODY, "Connection: close"), [200] * 3, closes=True),
    Case("no HTTP behind a request", request() + b"no HTTP\r\n\r\n", [200], closes=True),
    Case("no HTTP behind requests", request() * 9 + b"\x16\x03\x01", [200] * 9, closes=True),
    Case("more behind a request that closes", request(BODY, "Connection: close") + request(), [200], closes=True),
]  # fmt: skip

HEADS = [
    Case("no host", b"GET /livez HTTP/1.1\r\n\r\n", [200]),
    Case("two hosts", get("/livez", "Host: elsewhere"), [200]),
    Case("a folded header", request(BODY, "X-A: b\r\n c"), REFUSED, closes=True),
    Case("a space before the colon", request(BODY, "X-A : b"), REFUSED, closes=True),
    Case("a header without a name", request(BODY, ": b"), REFUSED, closes=True),
    Case("a header without a colon", request(BODY, "X-A"), REFUSED, closes=True),
    Case("NUL in a header", request(BODY, "X-A: b\0c"), REFUSED, closes=True),
    Case("CR in a header", request(BODY, "X-A: b\rc"), REFUSED, closes=True),
    Case("LF in a header", request(BODY, "X-A: b\nX-B: c"), REFUSED, closes=True),
    Case("Latin-1 in a header", request(BODY, "X-A: é"), [200]),
    Case("a header twice", request(BODY, "X-A: b", "X-A: c"), [200]),
    Case("no continuation asked for", request(BODY, "Expect: 200-maybe"), [200]),
    Case("another media type", request(BODY, "Content-Type: text/plain"), [200]),
    Case("a path with ..", get("/v1/../../etc/passwd"), [404]),
    Case("a path with .. in an id", get("/v1/documents/../../../etc/passwd"), [404]),
    Case("a path with .. in code", get("/v1/documents/%2e%2e%2f%2e%2e%2fetc%2fpasswd"), [404]),
    Case("a path of NUL", get("/v1/documents/%00"), [404]),
    Case("a path of a line break", get("/v1/documents/%0d%0aX-Injected:%20yes"), [404]),
    Case("a path that is no UTF-8", get("/v1/documents/%ff%fe%c0%80"), [404]),
    Case("a path of a surrogate", get("/v1/documents/%ed%a0%80"), [404]),
    Case("a path of half a code", get("/v1/documents/%zz%f%"), [404]),
    Case("a slash in code", get("/v1/documents/wn%2F00001740"), [200]),
    Case("two slashes", get("//v1/index"), [404]),
    Case("a query string", get("/livez?" + "a=%00&" * 1000), [200]),
    Case("a fragment", get("/livez#part"), [200]),
    Case("a whole URL", get("http://127.0.0.1/livez"), [200]),
    Case("a whole URL without a path", get("http://127.0.0.1"), REFUSED, closes=True),
    Case("no path", get(""), REFUSED, closes=True),
    Case("a star", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
    Case("a path with a space", get("/v1/in dex"), REFUSED, closes=True),
    Case("a path with NUL", get("/v1/in\0dex"), REFUSED, closes=True),
    Case("a path that is not ASCII", get("/v1/documents/é"), REFUSED, closes=True),
    Case("a path of 8 KB", get("/v1/documents/" + "x" * 8_000), [404]),
]  # fmt: skip


@pytest.mark.parametrize("case", [*FRAMING, *HEADS], ids=lambda case: case.name)
def test_odd_bytes(port: int, case: Case) -> None:
    with Peer(port) as peer:
        peer.write(case.data)
        if case.closes:
            answers = peer.read_all()
        else:
            answers = [peer.read() for _ in case.statuses]
            # It is kept open, and what follows is read as a request of its own.
            assert peer.write(request()).read().status == 200
    assert [answer.status for answer in answers] == case.statuses
    for answer in answers:
        assert (answer.headers.get("connection") == "close") <= case.closes
        if answer.status not in (200, 400):
            answer.problem()
    assert ask(port).status == 200


CLOSE = "Connection: close"
LARGE_HEADS = {
    "a header of 64 KiB": request(BODY, CLOSE, "X-A: " + "b" * 65_536),
    "a header of 4 MB": request(BODY, CLOSE, "X-A: " + "b" * 4_000_000),
    "a header's name of 64 KiB": request(BODY, CLOSE, "X-" + "a" * 65_536 + ": b"),
    "1,000 headers": request(BODY, CLOSE, *(f"X-{number}: b" for number in range(1000))),
    "100,000 headers": request(BODY, CLOSE, *(f"X-{number}: b" for number in range(100_000))),
    "a path of 64 KiB": get("/v1/documents/" + "x" * 65_536, CLOSE),
    "a path of 4 MB": get("/v1/documents/" + "x" * 4_000_000, CLOSE),
}


@pytest.mark.parametrize("data", LARGE_HEADS.values(), ids=LARGE_HEADS)
def test_large_heads(port: int, data: bytes) -> None:
    """They may be taken or refused, which a client that goes on writing may not see, but everyone else is served."""
    with Peer(port) as peer:
        answers = peer.write(data).read_all()
    assert {answer.status for answer in answers} <= {200, 400, 404, 431}
    assert len(answers) <= 1
    assert ask(port).status == 200


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("headers", [(), UPGRADE], ids=["plain", "upgrade"])
def test_however_the_bytes_are_cut_the_requests_are_the_same(port: int, size: int, headers: tuple[str, ...]) -> None:
    data = request(BODY, *headers) + in_chunks(WHOLE) + get("/livez", *headers)
    with Peer(port) as peer:
        for start in range(0, len(data), size):
            peer.write(data[start : start + size])
        assert [peer.read().status for _ in range(3)] == [200, 200, 200]


INJECTED = {
    "a line break": "a\r\nX-Injected: yes",
    "a line break of its own": "a\nX-Injected: yes",
    "a carriage return": "a\rX-Injected: yes",
    "an escaped line break": "a%0d%0aX-Injected: yes",
    "NUL": "a\0b",
    "a quotation mark": 'a", "level": "CRITICAL',
    "64 KiB": "a" * 65_536,
    "Latin-1": "é",
    "nothing": "",
}


@pytest.mark.parametrize("value", INJECTED.values(), ids=INJECTED)
def test_a_request_id_injects_nothing(port: int, value: str) -> None:
    with Peer(port) as peer:
        answer = peer.write(request(BODY, f"X-Request-Id: {value}")).read()
    assert answer.status in (200, 400, 431)
    assert "x-injected" not in answer.headers
    # That of the first line where the second was a header of its own, and otherwise one that the service has made.
    expected = "a" if value.startswith("a\r\n") else answer.headers.get("x-request-id", "0" * 16)
    if answer.status == 200:
        assert answer.headers["x-request-id"] == expected
        assert value.startswith("a\r\n") or len(expected) == 16
    assert ask(port).status == 200


def test_the_word_to_go_on_is_given_and_the_connection_kept(port: int) -> None:
    head = request(b"", "Expect: 100-continue", f"Content-Length: {len(BODY)}", declared=False)
    with Peer(port) as peer:
        peer.write(head)
        assert peer.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert peer.write(BODY).read().status == 200
        assert peer.write(request()).read().status == 200


def test_whoever_is_refused_before_the_word_to_go_on_is_not_waited_for(port: int) -> None:
    """Whether the next bytes are the body or another request nobody can know."""
    head = request(b"", "Expect: 100-continue", f"Content-Length: {LIMIT + 1}", declared=False)
    with Peer(port) as peer:
        (answer,) = peer.write(head).read_all()
    assert (answer.status, answer.problem(), answer.headers["connection"]) == (413, "body_too_large", "close")
