"""HTTP byte by byte: requests as no client library would send them, and strict reading of what comes back."""

import json
import socket
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

from tests.serving import PATIENCE

SEARCH = {"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1], "top_k": 1, "with_payload": False}
BODY = json.dumps(SEARCH).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        """The content as JSON."""
        return json.loads(self.content, parse_constant=lambda name: ValueError(f"{name} is not JSON"))

    def problem(self) -> str:
        """The code of a problem document, whose form is checked."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = self.json()
        assert document["status"] == self.status
        assert document["request_id"] == self.headers["x-request-id"]
        assert document["title"]
        assert document["detail"]
        code: str = document["code"]
        return code


class Peer:
    """A client that writes any bytes and reads responses. Nothing takes longer than PATIENCE, or it has failed."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        self._stream: BinaryIO = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Goes away."""
        self._stream.close()
        self.socket.close()

    def write(self, data: bytes) -> Self:
        """Sends bytes, as many as the server takes before it closes the connection."""
        try:
            self.socket.sendall(data)
        except ConnectionError:
            # It has answered and closed; what it has said is still to be read.
            return self
        return self

    def read(self) -> Answer:
        """The next response that is not preliminary."""
        while True:
            answer = self._read()
            assert answer is not None, "the connection was closed without an answer"
            if answer.status >= 200:
                return answer

    def read_all(self) -> list[Answer]:
        """Every response until the server closes the connection."""
        answers = []
        while (answer := self._read()) is not None:
            answers.append(answer)
        return answers

    def _read(self) -> Answer | None:
        try:
            line = self._stream.readline()
        except ConnectionResetError:
            return None
        if not line:
            return None
        version, status, _ = line.decode("latin-1").split(" ", 2)
        assert version == "HTTP/1.1"
        headers: dict[str, str] = {}
        while (line := self._stream.readline()) != b"\r\n":
            assert line.endswith(b"\r\n"), line
            name, value = line.decode("latin-1").rstrip("\r\n").split(": ", 1)
            assert name not in headers, f"two headers {name}"
            headers[name] = value
        length = int(headers.get("content-length", "0"))
        content = self._stream.read(length)
        assert len(content) == length, "the response ended early"
        return Answer(int(status), headers, content)


def request(
    body: bytes = BODY,
    *headers: str,
    path: str = "/v1/search",
    method: str = "POST",
    version: str = "1.1",
    declared: bool = True,
) -> bytes:
    """A request in bytes; `declared` adds the Content-Length of its body."""
    length = [f"Content-Length: {len(body)}"] if declared else []
    lines = [f"{method} {path} HTTP/{version}", "Host: 127.0.0.1", *length, *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunked(*chunks: bytes) -> bytes:
    """A body in chunks; an empty one is the last."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def ask(port: int, data: bytes | None = None) -> Answer:
    """The response to one request on a connection of its own."""
    with Peer(port) as peer:
        return peer.write(request() if data is None else data).read()
