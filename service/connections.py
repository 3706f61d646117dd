"""What one client's connection may cost: how many there are, how large and how slow a request's head may be, and how
long a response may wait to be read.

uvicorn bounds none of these with httptools: a head may have any size and take any time, and what has been answered is
kept for as long as its client does not read it. Bodies are bounded by the routes (service.requests).
"""

import asyncio
import logging
from itertools import chain
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.middleware import SAFE_HEADERS, SURPLUS
from service.problems import HeadTimeoutError, HeadTooLargeError, MalformedHttpError, ServiceError, problem_document
from service.protocol import HttpProtocol
from service.settings import ServiceSettings

__all__ = ["Connection"]

logger = logging.getLogger("gaussearch.connections")


class Connection(HttpProtocol):
    """uvicorn's connection, kept within `max_connections`, `max_header_bytes`, `header_seconds`, `unread_seconds`.

    One timer a connection looks now and then at what the client owes: the rest of a head, or the reading of what was
    sent to it. Requests set no timers of their own, so that they cost nothing more.
    """

    def __init__(self, settings: ServiceSettings, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._settings = settings
        self._most = settings.max_header_bytes
        self._surplus = False
        self._timer: asyncio.TimerHandle | None = None
        self._owed_since: float | None = None
        """When the client began to owe a head; None from a head's end to the end of its response."""
        self._head_begun = False
        self._too_large = False
        self._pending = 0
        """Bytes since the parser last began a request, ended its head or had some of its body: what is unfinished."""
        self._unread: tuple[object, int] = (None, 0)
        """The response that was being written at the last look, and how much of it was still to be sent."""
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection in, as surplus where there are enough, or drops it where there are far too many.

        One that is too many may send a request, since a health check has to be answered, and since a connection that
        is closed before its request was read shows its client no answer but a reset.
        """
        super().connection_made(transport)
        most = self._settings.max_connections
        self._surplus = len(self.connections) > most
        if len(self.connections) > 2 * most:
            transport.abort()
            return
        self._owed_since = self.loop.time()
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the timer too."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hands bytes to the parser, and ends a connection on which something unfinished has grown too large."""
        self._pending += len(data)
        super().data_received(data)
        if self._pending > self._most and not self.transport.is_closing():
            self._refuse(self._head_too_large())

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._owed_since = self.loop.time()
        self._head_begun = True
        self._pending = 0
        if self._surplus:
            cast("dict[str, Any]", self.scope)[SURPLUS] = True

    def on_headers_complete(self) -> None:
        """The end of a head: from here on it is the service that owes."""
        if len(self.url) + sum(map(len, chain.from_iterable(self.headers))) > self._most:
            # The parser stops, and has uvicorn call send_400_response.
            self._too_large = True
            raise self._head_too_large()
        self._owed_since = None
        self._head_begun = False
        self._pending = 0
        super().on_headers_complete()
        if self._surplus and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._pending = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """The client may send its next head, or what is left of a body that nobody waits for; not for ever."""
        super().on_response_complete()
        if not self._answering():
            self._owed_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls where the parser stops."""
        self._refuse(self._head_too_large() if self._too_large else MalformedHttpError(msg))

    def _head_too_large(self) -> HeadTooLargeError:
        return HeadTooLargeError(f"path and headers have more than {self._most} bytes, the limit: shorten them")

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _look_again(self, seconds: float | None = None) -> None:
        if seconds is None:
            seconds = min(self._settings.header_seconds, self._settings.unread_seconds)
        self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        now = self.loop.time()
        unread = (self.cycle, self.transport.get_write_buffer_size())
        if unread != self._unread:
            self._unread, self._unread_since = unread, now
        elif unread[1] > 0 and now - self._unread_since >= self._settings.unread_seconds:
            self._drop("its client does not read the response")
            return
        if self._owed_since is None or self._answering() or self.transport.is_closing():
            self._look_again()
        elif now - self._owed_since < self._settings.header_seconds:
            self._look_again(self._owed_since + self._settings.header_seconds - now)
        elif self._head_begun:
            self._refuse(HeadTimeoutError(f"path and headers took more than {self._settings.header_seconds:g} seconds"))
            self._look_again()
        else:
            self._drop("its client sends no request")

    def _drop(self, why: str) -> None:
        logger.debug("a connection is dropped: %s", why)
        self.transport.abort()

    def _refuse(self, error: ServiceError) -> None:
        """Answers what is not a request, and closes the connection."""
        status, content_type, body = problem_document(error)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", content_type.encode()),
            (b"content-length", b"%d" % len(body)),
            *SAFE_HEADERS,
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], lines, body))
        self.transport.close()
