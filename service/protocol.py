"""One connection's HTTP, where uvicorn's reading of it with httptools loses requests or answers.

Asked for an upgrade, as Java's client and `curl --http2` do by default, httptools takes the request for one without a
body, and what follows for another protocol. Such a request is read again without the wish: nothing else is spoken here.
"""

from collections import deque
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["HttpProtocol"]


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, in which every complete request is answered, and the work of a lost connection is dropped."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = _Parser(self)  # type: ignore[assignment]
        self._due: deque[RequestResponseCycle] = deque()
        """Requests in the order of their answers, of which the first is being worked on."""
        self._head = b""
        """The head of a request that asks for an upgrade, without that, until it has been read again."""
        self._keeps_alive: bool | None = None
        """Whether a connection stays open whose client waits for the word to send its body, once that has come."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells every request that its client has gone; uvicorn tells the last."""
        for cycle in self._due:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """The end of a head, by which a request begins."""
        if self.parser.should_upgrade():
            self._head = self._plain_head()
            return
        super().on_headers_complete()
        if not self.cycle.response_complete:
            self._due.append(self.cycle)
        self._keeps_alive = None
        if self.expect_100_continue:
            # Answered without its body, it leaves open whether the next bytes are that body or another request.
            self._keeps_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    def on_message_complete(self) -> None:
        """The end of a request's body."""
        if self._head:
            return
        super().on_message_complete()
        if self._keeps_alive is not None:
            self.cycle.keep_alive = self._keeps_alive

    def on_response_complete(self) -> None:
        """The end of an answer."""
        if self._due:
            self._due.popleft()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Closes the connection behind what is under way."""
        self._keeps_alive = None
        super().shutdown()

    def taken_head(self) -> bytes:
        """The head to be read again, once."""
        head, self._head = self._head, b""
        return head

    def closes_after_answers(self) -> bool:
        """Whether whole requests wait for answers; if so, the connection is closed behind the last of them."""
        if not self._due or self._due[-1].more_body:
            return False
        self._due[-1].keep_alive = False
        return True

    def _plain_head(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise ValueError("this is no proxy")
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                kept = [option for option in value.split(b",") if option.strip().lower() != b"upgrade"]
                lines.append(b"connection:" + b",".join(kept))
            elif name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])


class _Parser:
    """An httptools.HttpRequestParser that reads an upgrade as a plain request, and lets what is no HTTP wait for the
    answers to requests before it.
    """

    def __init__(self, protocol: HttpProtocol) -> None:
        self._protocol = protocol
        self._renew()

    def _renew(self) -> None:
        self._parser = parser = httptools.HttpRequestParser(self._protocol)
        # As uvicorn has it: what follows a request that closes the connection is no error.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.get_method, self.get_http_version = parser.get_method, parser.get_http_version
        self.should_keep_alive, self.should_upgrade = parser.should_keep_alive, parser.should_upgrade

    def feed_data(self, data: bytes) -> None:
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self._protocol.closes_after_answers():
                raise

    def _feed(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                (consumed,) = upgrade.args
                # A new one: the old one takes nothing after a request that closes the connection.
                self._renew()
                self._parser.feed_data(self._protocol.taken_head())
                data = memoryview(data)[consumed:]
            else:
                return
