"""What every route does with a request before and after the search: key, body, deadline, disconnection."""

import asyncio
import hmac
import math
import time
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from service.bodies import BodyRoom
from service.keys import Keys
from service.problems import (
    BodyTooLargeError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidRequestError,
    LimitExceededError,
    MalformedJsonError,
    UnauthorizedError,
    UnsupportedEncodingError,
    WritesDisabledError,
)
from service.settings import ServiceSettings

__all__ = ["Body", "deadline_of", "parse_body", "read_body", "read_raw", "require_admin", "require_key", "wait_for"]

Body = TypeVar("Body", bound=BaseModel)
Result = TypeVar("Result")
TIMEOUT_HEADER = "X-Request-Timeout-Ms"

MAX_FIELDS = 50_000
MAX_ELEMENTS = 2_000_000
"""Lists, objects and fields in one body, and elements of all of these. A legal body has a few fields for each of its
queries. Whoever sends nothing but brackets gets millions of objects out of `max_body_bytes`: gigabytes, and ten seconds
during which nobody else is served."""

WATCHED_AFTER = 0.05
"""Seconds after which a request that is still waiting is worth a task that sees when its client goes away."""


def require_key(request: Request, keys: Keys) -> None:
    """Raises UnauthorizedError unless the request carries a search or an admin key, or searches need none.

    A key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`.
    """
    if keys.search and not _is_among(_sent_key(request), keys.search + keys.admin):
        raise _unauthorized("a valid key")


def require_admin(request: Request, keys: Keys) -> None:
    """Lets a request in that changes the index.

    Raises WritesDisabledError where there is no admin key at all, ForbiddenError for a search key, and
    UnauthorizedError for anything else that is no admin key.
    """
    if not keys.admin:
        raise WritesDisabledError("changing the index is switched off: start the service with an admin key")
    sent = _sent_key(request)
    is_admin, is_search = _is_among(sent, keys.admin), _is_among(sent, keys.search)
    if is_admin:
        return
    if is_search:
        raise ForbiddenError("a search key does not change the index: send an admin key")
    raise _unauthorized("an admin key")


def _sent_key(request: Request) -> bytes:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    # Starlette reads headers as Latin-1; this gives back the bytes that were sent. Some of them are spaces in Latin-1.
    return given.strip(" \t").encode("latin-1")


def _is_among(sent: bytes, keys: tuple[bytes, ...]) -> bool:
    # Every key is compared, in constant time: how long it takes says nothing about any of them.
    found = [hmac.compare_digest(sent, key) for key in keys]
    return any(found)


def _unauthorized(what: str) -> UnauthorizedError:
    return UnauthorizedError(
        f"send {what} as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'", headers={"WWW-Authenticate": "Bearer"}
    )


def deadline_of(request: Request, settings: ServiceSettings) -> float:
    """The time.monotonic() by which the request must be answered."""
    header = request.headers.get(TIMEOUT_HEADER)
    if header is None:
        return time.monotonic() + settings.timeout_ms / 1000
    try:
        milliseconds = float(header)
    except ValueError:
        milliseconds = math.nan
    if not milliseconds > 0:
        raise InvalidRequestError(f"{TIMEOUT_HEADER} is {header!r}; it must be a number of milliseconds above 0")
    if milliseconds > settings.max_timeout_ms:
        raise LimitExceededError(f"{TIMEOUT_HEADER} is {header}; the limit is {settings.max_timeout_ms}")
    return time.monotonic() + milliseconds / 1000


async def read_body(request: Request, model: type[Body], limit: int, deadline: float) -> Body:
    """The request's JSON body as a `model`, parsed in one pass from bytes that never exceed `limit`.

    Raises what `read_raw` and `parse_body` raise, InvalidRequestError also for a body of more parts than a legal one
    has.
    """
    raw = await read_raw(request, limit, deadline)
    _require_few_parts(raw)
    return parse_body(raw, model)


def parse_body(raw: bytes, model: type[Body]) -> Body:
    """JSON as a `model`; raises MalformedJsonError and InvalidRequestError."""
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise _refusal(error) from error


async def read_raw(request: Request, limit: int, deadline: float) -> bytes:
    """The request's body.

    Raises BodyTooLargeError, UnsupportedEncodingError, DeadlineExceededError where the client does not finish sending
    it in time, and OverloadedError where too much else is arriving.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedEncodingError(f"Content-Encoding is {encoding!r}; send the body uncompressed")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLargeError(f"the body has {declared} bytes; the limit is {limit}")
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await _read(request, limit)
    except TimeoutError as error:
        raise DeadlineExceededError("the deadline passed before the body had arrived") from error


def _require_few_parts(raw: bytes) -> None:
    """Counts marks in a body before it is parsed, where it is long enough: `[],` makes a list, and `0,` an element.

    Those within texts count too; no body needs that many.
    """
    for kind, marks, least_bytes, limit in (
        ("lists, objects and fields", b"[{:", 3, MAX_FIELDS),
        ("elements", b",", 2, MAX_ELEMENTS),
    ):
        if len(raw) <= least_bytes * limit:
            continue
        # numpy counts ten times as fast as bytes do.
        letters = np.frombuffer(raw, np.uint8)
        count = sum(int(np.count_nonzero(letters == mark)) for mark in marks)
        if count > limit:
            message = f"{count:,} {kind} in one body; the limit is {limit:,}"
            raise InvalidRequestError(f"body: {message}", errors=[{"field": "body", "message": message}])


def _refusal(error: ValidationError) -> MalformedJsonError | InvalidRequestError:
    if error.error_count() == 1:
        (only,) = error.errors(include_input=False, include_url=False)
        if only["type"] == "json_invalid":
            return MalformedJsonError(only["msg"])
    return InvalidRequestError.of(error)


async def _read(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    room: BodyRoom = request.app.state.gaussearch.bodies
    with room.enter() as seat:
        async for part in request.stream():
            if seat.size + len(part) > limit:
                raise BodyTooLargeError(f"the body has more than {limit} bytes, the limit")
            seat.take(len(part))
            parts.append(part)
    return b"".join(parts)


async def wait_for(future: "asyncio.Future[Result]", request: Request, deadline: float) -> Result:
    """The future's result, unless the deadline passes or the client goes away first; then the work is dropped.

    Raises DeadlineExceededError or ClientDisconnect.
    """
    loop = asyncio.get_running_loop()
    gone: asyncio.Task[None] | None = None

    def watch() -> None:
        nonlocal gone
        gone = loop.create_task(_disconnected(request))
        gone.add_done_callback(lambda _: future.cancel())

    timers = (
        loop.call_later(WATCHED_AFTER, watch),
        loop.call_later(max(0.0, deadline - time.monotonic()), _expire, future),
    )
    try:
        return await future
    except asyncio.CancelledError:
        if gone is not None and gone.done():
            raise ClientDisconnect from None
        raise
    finally:
        for timer in timers:
            timer.cancel()
        if gone is not None:
            gone.cancel()
        future.cancel()


def _expire(future: "asyncio.Future[Result]") -> None:
    if not future.done():
        future.set_exception(DeadlineExceededError("the deadline passed before it was done"))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
