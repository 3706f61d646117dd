"""What every route does with a request before and after the search: key, body, deadline, disconnection."""

import asyncio
import hmac
import math
import time
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from service.batching import Found
from service.problems import (
    BodyTooLargeError,
    DeadlineExceededError,
    InvalidRequestError,
    LimitExceededError,
    MalformedJsonError,
    UnauthorizedError,
    UnsupportedEncodingError,
)
from service.settings import ServiceSettings

__all__ = ["Body", "deadline_of", "read_body", "require_key", "wait_for"]

Body = TypeVar("Body", bound=BaseModel)
TIMEOUT_HEADER = "X-Request-Timeout-Ms"

WATCHED_AFTER = 0.05
"""Seconds after which a request that is still waiting is worth a task that sees when its client goes away."""


def require_key(request: Request, keys: list[bytes]) -> None:
    """Raises UnauthorizedError unless the request carries one of the keys, or there are none.

    A key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Every key is compared, in constant time.
    """
    if not keys:
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = token if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    # Starlette reads headers as Latin-1; this gives back the bytes that were sent.
    sent = given.strip().encode("latin-1")
    matches = [hmac.compare_digest(sent, key) for key in keys]
    if not any(matches):
        raise UnauthorizedError(
            "send a valid key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
            headers={"WWW-Authenticate": "Bearer"},
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

    Raises BodyTooLargeError, UnsupportedEncodingError, MalformedJsonError, InvalidRequestError, and
    DeadlineExceededError where the client does not finish sending it in time.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedEncodingError(f"Content-Encoding is {encoding!r}; send the body uncompressed")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLargeError(f"the body has {declared} bytes; the limit is {limit}")
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            raw = await _read(request, limit)
    except TimeoutError as error:
        raise DeadlineExceededError("the deadline passed before the body had arrived") from error
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> MalformedJsonError | InvalidRequestError:
    if error.error_count() == 1:
        (only,) = error.errors(include_input=False, include_url=False)
        if only["type"] == "json_invalid":
            return MalformedJsonError(only["msg"])
    return InvalidRequestError.of(error)


async def _read(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise BodyTooLargeError(f"the body has more than {limit} bytes, the limit")
        parts.append(part)
    return b"".join(parts)


async def wait_for(future: "asyncio.Future[Found]", request: Request, deadline: float) -> Found:
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


def _expire(future: "asyncio.Future[Found]") -> None:
    if not future.done():
        future.set_exception(DeadlineExceededError("the deadline passed before the search was done"))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
