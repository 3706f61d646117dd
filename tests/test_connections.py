"""What a connection may cost: its head's size and time, how long it stays without a request or unread, how many."""

import asyncio
import contextlib
import json
import select
import socket
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from service.app import create_app
from service.connections import Connection
from service.settings import ServiceSettings
from tests.serving import PATIENCE, GatedSearcher, Served

SEARCH = json.dumps({"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1], "top_k": 3}).encode()
LIMIT = 2000
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n"

Open = Callable[..., int]


class Forever:
    """Awaited, it never comes back."""

    def __await__(self) -> Generator[None, None, None]:
        while True:
            yield


class Clock:
    """As much of an event loop as a connection uses, with a time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._calls: list[tuple[float, Callable[[], None], Call]] = []
        self._begun: list[Coroutine[Any, Any, None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> "Call":
        handle = Call()
        self._calls.append((self.now + delay, call, handle))
        return handle

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> "Call":
        """Runs it as far as it goes without waiting for anything."""
        self._begun.append(coroutine)
        with contextlib.suppress(StopIteration):
            coroutine.send(None)
        return Call()

    def go_on(self, seconds: float) -> None:
        """Lets time pass, and calls what has been asked for until then."""
        end = self.now + seconds
        while due := [entry for entry in self._calls if entry[0] <= end]:
            entry = min(due, key=lambda entry: entry[0])
            self._calls.remove(entry)
            self.now = max(self.now, entry[0])
            if not entry[2].cancelled:
                entry[1]()
        self.now = end


class Call:
    """A handle of something that will be called, or a task."""

    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def add_done_callback(self, _: object) -> None:
        pass


@dataclass
class Wire:
    """A transport to a client that reads nothing but what a test takes off `unsent`."""

    sent: bytes = b""
    unsent: int = 0
    closing: bool = False
    dropped: bool = False

    def write(self, data: bytes) -> None:
        self.sent += data
        self.unsent += len(data)

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.dropped = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, _: str) -> None:
        return None

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answer_at_once(_: Any, __: Any, send: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    headers = [(b"content-length", b"3")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"yes"})


async def answer_never(_: Any, __: Any, ___: Any) -> None:
    await Forever()


@dataclass
class Dialogue:
    """A connection whose time and client are in a test's hands: 2000 bytes and 10 s for a head, 60 s for reading."""

    app: Any = answer_at_once
    clock: Clock = field(default_factory=Clock)
    wire: Wire = field(default_factory=Wire)

    def __post_init__(self) -> None:
        settings = ServiceSettings(index=Path("nowhere"), max_header_bytes=LIMIT, header_seconds=10, unread_seconds=60)
        self.connection = Connection(
            settings,
            config=uvicorn.Config(self.app, log_config=None, ws="none"),
            server_state=ServerState(),
            app_state={},
            _loop=cast("asyncio.AbstractEventLoop", self.clock),
        )
        self.connection.connection_made(cast("asyncio.Transport", self.wire))

    def client_sends(self, data: bytes) -> None:
        self.connection.data_received(data)

    def client_reads(self) -> None:
        self.wire.unsent = 0


def test_a_connection_without_a_request_is_dropped() -> None:
    dialogue = Dialogue()
    dialogue.clock.go_on(9.9)
    assert not dialogue.wire.closing
    dialogue.clock.go_on(0.1)
    assert dialogue.wire.dropped
    assert dialogue.wire.sent == b""


def test_a_head_in_small_pieces_meets_its_deadline() -> None:
    dialogue = Dialogue()
    for byte in GET[:10]:
        assert not dialogue.wire.closing
        dialogue.client_sends(bytes([byte]))
        dialogue.clock.go_on(1)
    assert dialogue.wire.closing
    assert dialogue.wire.sent.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"head_timeout"' in dialogue.wire.sent
    assert not dialogue.wire.dropped, "what was sent may still be read"
    dialogue.clock.go_on(80)
    assert dialogue.wire.dropped, "but not for ever"


def test_a_head_that_arrives_in_time_is_answered_however_it_is_cut() -> None:
    dialogue = Dialogue()
    for byte in GET + b"\r\n":
        dialogue.client_sends(bytes([byte]))
        dialogue.clock.go_on(0.2)
    assert dialogue.wire.sent.startswith(b"HTTP/1.1 200 ")
    assert not dialogue.wire.closing


def test_a_connection_that_is_used_stays() -> None:
    dialogue = Dialogue()
    for _ in range(100):
        dialogue.client_sends(GET + b"\r\n")
        dialogue.client_reads()
        dialogue.clock.go_on(4)
    assert dialogue.wire.sent.count(b"HTTP/1.1 200 ") == 100
    assert not dialogue.wire.closing
    dialogue.clock.go_on(5)
    assert dialogue.wire.closing, "uvicorn closes one that is idle"


@pytest.mark.parametrize("junk", [b"\r\n", b"\n"])
def test_line_ends_between_requests_are_no_request(junk: bytes) -> None:
    dialogue = Dialogue()
    dialogue.client_sends(GET + b"\r\n")
    dialogue.client_reads()
    for _ in range(10):
        assert not dialogue.wire.closing
        dialogue.client_sends(junk)
        dialogue.clock.go_on(1)
    assert dialogue.wire.dropped


def test_a_body_that_nobody_waits_for_may_not_go_on_for_ever() -> None:
    dialogue = Dialogue()
    dialogue.client_sends(GET + b"Content-Length: 1000\r\n\r\n")
    assert dialogue.wire.sent.startswith(b"HTTP/1.1 200 ")
    dialogue.client_reads()
    for _ in range(10):
        assert not dialogue.wire.closing
        dialogue.client_sends(b"x")
        dialogue.clock.go_on(1)
    assert dialogue.wire.dropped


def test_the_service_may_take_its_time() -> None:
    dialogue = Dialogue(answer_never)
    dialogue.client_sends(GET + b"\r\n")
    dialogue.clock.go_on(10_000)
    assert not dialogue.wire.closing


def test_a_response_that_is_not_read_is_dropped() -> None:
    dialogue = Dialogue()
    dialogue.client_sends(GET + b"\r\n")
    assert dialogue.wire.unsent > 0
    dialogue.clock.go_on(59)
    assert not dialogue.wire.dropped
    dialogue.clock.go_on(20)
    assert dialogue.wire.dropped


def test_a_response_that_is_read_slowly_is_not() -> None:
    dialogue = Dialogue()
    dialogue.client_sends(GET + b"\r\n")
    while dialogue.wire.unsent > 1:
        dialogue.wire.unsent -= 1
        dialogue.clock.go_on(50)
        assert not dialogue.wire.dropped
    dialogue.clock.go_on(80)
    assert dialogue.wire.dropped


HEADS = {
    "a path": [b"GET /" + b"p" * LIMIT + b" HTTP/1.1\r\n\r\n"],
    "a path in pieces": [b"GET /", *[b"p" * 100] * 21],
    "a header": [GET + b"X: " + b"x" * LIMIT + b"\r\n\r\n"],
    "a header that does not end": [GET + b"X: ", *[b"x" * 100] * 21],
    "a name that does not end": [GET, *[b"x" * 100] * 21],
    "many headers": [GET + b"x: y\r\n" * LIMIT + b"\r\n"],
    "many headers in pieces": [GET, *[b"x: y\r\n"] * LIMIT],
    "line ends before a request": [b"\r\n" * LIMIT],
    "trailers": [GET + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", *[b"x: y\r\n"] * LIMIT],
    "a chunk's size that does not end": [GET + b"Transfer-Encoding: chunked\r\n\r\n1;", *[b"x" * 100] * 21],
    "a trailer that does not end": [GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", *[b"x" * 100] * 21],
}


@pytest.mark.parametrize("app", [answer_at_once, answer_never])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_above_the_limit_is_refused_before_it_ends(head: list[bytes], app: Any) -> None:
    dialogue = Dialogue(app)
    for part in head:
        if not dialogue.wire.closing:
            dialogue.client_sends(part)
    assert dialogue.wire.closing
    refusal = dialogue.wire.sent[dialogue.wire.sent.index(b"HTTP/1.1 431 ") :]
    assert problem(refusal)["code"] == "head_too_large"


@pytest.fixture
def serve_raw(served: Served, listen: Callable[..., int]) -> Open:
    """Serves the small index over real sockets, with settings: serve_raw(**settings) -> port."""
    return lambda **settings: listen(create_app(ServiceSettings(index=served.directory.path, **settings)))


@pytest.fixture
def connect() -> Iterator[Callable[[int], socket.socket]]:
    """Connects to a port; closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda port: stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes; a reset counts as closing."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def read_answer(connection: socket.socket) -> bytes:
    """One response whose body is JSON, on a connection that stays open."""
    answer = b""
    while not (b"\r\n\r\n" in answer and answer.endswith(b"}")):
        part = connection.recv(1 << 16)
        assert part, answer
        answer += part
    return answer


def problem(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert {b"content-type: application/problem+json", b"connection: close"} <= set(lines)
    assert {b"x-content-type-options: nosniff", b"cache-control: no-store"} <= set(lines)
    document: dict[str, Any] = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % document["status"])
    return document


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
def test_what_is_not_http_is_a_problem_like_any_other(
    serve_raw: Open, connect: Callable[[int], socket.socket], data: bytes
) -> None:
    connection = connect(serve_raw())
    connection.sendall(data)
    document = problem(read_all(connection))
    assert (document["status"], document["code"]) == (400, "malformed_http")


def test_a_header_that_never_ends_is_answered_431(serve_raw: Open, connect: Callable[[int], socket.socket]) -> None:
    connection = connect(serve_raw(max_header_bytes=LIMIT, header_seconds=PATIENCE))
    connection.sendall(GET + b"X: ")
    while not select.select([connection], [], [], 0.01)[0]:
        connection.sendall(b"x" * 100)
    document = problem(read_all(connection))
    assert (document["status"], document["code"]) == (431, "head_too_large")
    assert str(LIMIT) in document["detail"]


def test_a_head_at_the_limit_is_taken(serve_raw: Open, connect: Callable[[int], socket.socket]) -> None:
    connection = connect(serve_raw(max_header_bytes=LIMIT))
    least = len(b"/livez" + b"Host" + b"a" + b"X")
    for _ in range(3):
        connection.sendall(GET + b"X: " + b"x" * (LIMIT - least) + b"\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 200 ")
    connection.sendall(GET + b"X: " + b"x" * (LIMIT - least + 1) + b"\r\n\r\n")
    assert problem(read_all(connection))["status"] == 431


def test_a_body_is_no_head(serve_raw: Open, connect: Callable[[int], socket.socket]) -> None:
    """One of many small chunks, whose framing alone is above the limit."""
    connection = connect(serve_raw(max_header_bytes=LIMIT))
    connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    padded = SEARCH + b" " * (4 * LIMIT)
    for start in range(0, len(padded), 2):
        connection.sendall(b"2\r\n%b\r\n" % padded[start : start + 2])
    connection.sendall(b"0\r\n\r\n")
    assert read_answer(connection).startswith(b"HTTP/1.1 200 ")


def test_a_slow_head_is_answered_408(serve_raw: Open, connect: Callable[[int], socket.socket]) -> None:
    port = serve_raw(header_seconds=0.1)
    begun, silent = connect(port), connect(port)
    begun.sendall(GET)
    assert problem(read_all(begun))["code"] == "head_timeout"
    assert read_all(silent) == b""


def test_a_search_that_takes_longer_than_a_head_may_is_answered(
    gated: GatedSearcher, serve_raw: Open, connect: Callable[[int], socket.socket]
) -> None:
    connection = connect(serve_raw(header_seconds=0.02, unread_seconds=0.02))
    gated.gate.clear()
    connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(SEARCH), SEARCH))
    time.sleep(0.2)
    gated.gate.set()
    assert read_answer(connection).startswith(b"HTTP/1.1 200 ")


def hold(connect: Callable[[], socket.socket]) -> socket.socket:
    """A connection that the service has accepted, and that waits in the middle of a head."""
    connection = connect()
    connection.sendall(GET + b"\r\n" + b"G")
    read_answer(connection)
    return connection


def test_connections_above_the_limit_are_answered_429_and_probes_as_ever(
    serve_raw: Open, connect: Callable[[int], socket.socket]
) -> None:
    port = serve_raw(max_connections=2, header_seconds=PATIENCE)
    to_service = partial(connect, port)
    for _ in range(2):
        hold(to_service)

    for _ in range(3):
        surplus = to_service()
        surplus.sendall(b"GET /v1/index HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n\r\n")
        answer = read_all(surplus)
        document = problem(answer)
        assert (document["status"], document["code"], document["request_id"]) == (429, "overloaded", "mine")
        assert b"\r\nretry-after: 1\r\n" in answer
    with httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
        for path in ("/livez", "/readyz", "/metrics"):
            response = client.get(path)
            assert (response.status_code, response.headers["connection"]) == (200, "close")
        assert 'gaussearch_rejected_total{reason="connections"} 3.0' in client.get("/metrics").text


def test_connections_far_above_the_limit_are_dropped(serve_raw: Open, connect: Callable[[int], socket.socket]) -> None:
    port = serve_raw(max_connections=2, header_seconds=PATIENCE)
    held = [hold(partial(connect, port)) for _ in range(2)]
    waiting = []
    for _ in range(2):
        waiting.append(connect(port))
        waiting[-1].sendall(b"G")
    # Connections are accepted in the order in which they come.
    for _ in range(2):
        dropped = connect(port)
        with contextlib.suppress(OSError):
            dropped.sendall(GET + b"\r\n")
        assert read_all(dropped) == b""

    held[0].close()
    waiting[0].close()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        again = connect(port)
        with contextlib.suppress(OSError):
            again.sendall(GET + b"\r\n")
            if again.recv(1 << 16).startswith(b"HTTP/1.1 200 "):
                return
    pytest.fail("what is closed makes no room")
