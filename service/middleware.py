"""Gives each request an id, counts it and writes one log line about it. Plain ASGI: it adds microseconds."""

import logging
import random
import re
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

__all__ = ["RequestLog"]

logger = logging.getLogger("gaussearch.request")

_ACCEPTABLE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})


class RequestLog:
    """Reads X-Request-Id or makes one, puts it into the scope, the response and the log."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        if not _ACCEPTABLE_ID.fullmatch(request_id):
            # Unique, not secret: the system's own random numbers would be a call to the kernel for every request.
            request_id = b"%016x" % random.getrandbits(64)
        scope["request_id"] = request_id.decode()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's template, so that ids in paths do not make a time series each.
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.request(route, scope["method"], status, seconds)
        level = logging.DEBUG if route in _QUIET else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(
                level,
                "%s %s %d",
                scope["method"],
                # Quoted, so that a line break in a path cannot forge a line of a text log.
                quote(scope["path"]),
                status,
                extra={"request_id": scope["request_id"], "status": status, "milliseconds": round(seconds * 1000, 3)},
            )
