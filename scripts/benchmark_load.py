"""A closed-loop HTTP load generator in a process of its own, as cheap as Python allows: it shares the cores.

Requests are bytes made beforehand, sent over connections that stay open; of a response only the status and the length
are read. The first line on standard input says where to and what to send, every other line asks for one window of load,
and each is answered by a line of JSON on standard output:

    {"ports": {"ours": 8080}, "paths": {"ours": "/v1/search"}, "bodies": {"ours": ["{...}", ...]}, "headers": {}}
    {"target": "ours", "concurrency": 16, "seconds": 0.5, "requests": 48}
    {"target": "ours", "concurrency": 16, "collect": true}

A window ends when its seconds are over and its number of requests is done. It goes through the bodies from where the
last one stopped, or from `first`. `collect` sends every body once instead and answers with the responses in that order.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

import orjson
import uvloop

IDLE_SECONDS = 2.0
"""For how long a connection is used again: uvicorn closes one that has been idle for five seconds."""

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Window:
    """A window of load: hands requests to free connections, and notes when each is answered."""

    def __init__(self, requests: list[bytes], first: int, command: dict[str, Any]) -> None:
        self._requests = requests
        self._next = first
        self._sent = 0
        self._flying = 0
        self._collect = bool(command.get("collect"))
        self._wanted = len(requests) if self._collect else int(command["requests"])
        self._seconds = float(command.get("seconds", 0.0))
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self.responses: dict[int, str] = {}
        self.ended = asyncio.get_running_loop().create_future()
        self.started = time.perf_counter()

    def begin(self) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def take(self) -> tuple[int, bytes] | None:
        """The next request and its number; None where there are to be no more."""
        enough = self._sent >= self._wanted and (self._collect or time.perf_counter() - self.started >= self._seconds)
        if enough or self.failures:
            if not self._flying and not self.ended.done():
                self.ended.set_result(time.perf_counter() - self.started)
            return None
        number = self._next % len(self._requests)
        self._next += 1
        self._sent += 1
        self._flying += 1
        return number, self._requests[number]

    def answered(self, number: int, seconds: float, response: bytes) -> None:
        """Notes a response; anything but 200 ends the window."""
        self._flying -= 1
        self.latencies.append(seconds)
        head, _, body = response.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            self.failures.append(response[:500].decode(errors="replace"))
        elif self._collect:
            self.responses[number] = body.decode()

    def lost(self, error: Exception | None) -> None:
        """A connection ended while a response was due."""
        self._flying -= 1
        self.failures.append(f"the connection was closed: {error}")


class Connection(asyncio.Protocol):
    """One client: sends the window's next request when the last one is answered."""

    def __init__(self) -> None:
        self._window: Window | None = None
        self._received = bytearray()
        self._due = 0
        self._number = -1
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def work_for(self, window: Window) -> None:
        """Takes part in a window until it has no more requests."""
        self._window = window
        self._send_next()

    def _send_next(self) -> None:
        request = self._window.take() if self._window else None
        self._number = -1
        if request is not None and self._transport is not None:
            self._number = request[0]
            self._due = 0
            self._received.clear()
            self._sent_at = time.perf_counter()
            self._transport.write(request[1])

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._due:
            end = self._received.find(b"\r\n\r\n")
            length = _LENGTH.search(self._received, 0, end + 2) if end >= 0 else None
            if length is None:
                return
            self._due = end + 4 + int(length[1])
        if self._window and len(self._received) >= self._due:
            self._window.answered(self._number, time.perf_counter() - self._sent_at, bytes(self._received))
            self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._window and self._number >= 0:
            self._number = -1
            self._window.lost(exc)
            self._window.take()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """The open connections to one server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: list[Connection] = []
        self._used_at = 0.0

    async def connections(self, count: int) -> list[Connection]:
        """So many connections, those of the last window if it has only just ended."""
        if len(self._connections) != count or time.monotonic() - self._used_at > IDLE_SECONDS:
            for connection in self._connections:
                connection.close()
            loop = asyncio.get_running_loop()
            made = [await loop.create_connection(Connection, "127.0.0.1", self._port) for _ in range(count)]
            self._connections = [connection for _, connection in made]
        return self._connections

    def release(self) -> None:
        """The window on these connections has ended."""
        self._used_at = time.monotonic()


async def run_window(client: Client, requests: list[bytes], first: int, command: dict[str, Any]) -> dict[str, Any]:
    """One window of load on connections that are there before it starts."""
    window = Window(requests, first, command)
    connections = await client.connections(int(command["concurrency"]))
    window.begin()
    for connection in connections:
        connection.work_for(window)
    seconds = await window.ended
    client.release()
    return {
        "seconds": seconds,
        "latencies": window.latencies,
        "failures": window.failures,
        "responses": [window.responses[number] for number in sorted(window.responses)],
    }


def request_bytes(path: str, body: str, headers: Mapping[str, str]) -> bytes:
    """An HTTP/1.1 request that posts a JSON body."""
    content = body.encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def main() -> None:
    setup = orjson.loads(sys.stdin.readline())
    requests = {
        name: [request_bytes(path, body, setup["headers"]) for body in setup["bodies"][name]]
        for name, path in setup["paths"].items()
    }
    clients = {name: Client(port) for name, port in setup["ports"].items()}
    sent = dict.fromkeys(requests, 0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            command = orjson.loads(line)
            target = command["target"]
            first = 0 if command.get("collect") else command.get("first", sent[target])
            answer = runner.run(run_window(clients[target], requests[target], first, command))
            sent[target] = first + len(answer["latencies"])
            sys.stdout.write(orjson.dumps(answer).decode() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
