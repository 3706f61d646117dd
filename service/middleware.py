"""Gives each request an id, counts it and writes one log line about it. Plain ASGI: it adds microseconds."""

import asyncio
import logging
import random
import re
import time
from urllib.parse import quote

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.problems import NotReadyError, OverloadedError, problem_response

__all__ = ["HEADERS", "SAFE_HEADERS", "SURPLUS", "RequestLog"]

logger = logging.getLogger("gaussearch.request")

_ACCEPTABLE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})

SAFE_HEADERS = (
    # What an index holds is nobody's to keep, and no payload is a script or a page, whatever it looks like.
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
"""Headers of every response, unless its route has put others into the scope."""

HEADERS = "gaussearch.headers"
"""Stands in the scope of a request whose response has these instead: it is no answer about an index (service.page)."""

SURPLUS = "gaussearch.surplus"
"""Stands in the scope of a request on a connection that is one too many (service.connections)."""


class RequestLog:
    """Reads X-Request-Id or makes one, puts it into the scope, the response and the log.

    It refuses what comes on surplus connections, but for probes: a service that is busy is not one to restart.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, names_response: bool = True) -> None:
        """Not `names_response` where whatever stands before it puts the request's id into the response."""
        self._app = app
        self._names_response = names_response
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
        started_response = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, started_response
            if message["type"] == "http.response.start":
                started_response = True
                status = message["status"]
                own = scope.get(HEADERS, SAFE_HEADERS)
                message["headers"] = [*message["headers"], *own]
                if self._names_response:
                    message["headers"].append((b"x-request-id", request_id))
            await send(message)

        app = self._refuse if SURPLUS in scope and scope["path"] not in _QUIET else self._app
        try:
            await app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # What has not been done within shutdown_seconds is cancelled, and then everything ends.
            if not started_response:
                answer = problem_response(Request(scope), NotReadyError("the service is shutting down"))
                await answer(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.rejected.labels("connections").inc()
        error = OverloadedError("there are too many connections: try again later", headers={"Retry-After": "1"})
        await problem_response(Request(scope), error)(scope, receive, send)

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
