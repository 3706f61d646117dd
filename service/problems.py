"""Every way a request can fail: the service's own errors, and one table from error to status.

Responses are application/problem+json (RFC 9457): `type`, `title`, `status`, `detail`, and `code`, which stays the same
across releases. `errors` lists the fields concerned where there are several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from index.errors import (
    DocumentNotFoundError,
    GaussearchError,
    InvalidGaussiansError,
    InvalidOptionError,
)

__all__ = ["PROBLEMS", "ServiceError", "problem_document", "problem_response"]

MEDIA_TYPE = "application/problem+json"


class ServiceError(GaussearchError):
    """A request that the service turns down; `headers` go into the response."""

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None, errors: Any = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})
        self.errors = errors


class MalformedJsonError(ServiceError):
    """A body that is not JSON."""

    code = "malformed_json"


MAX_FIELD_ERRORS = 20
"""With more than this many, a body is not one with a mistake in it, and listing them would cost more than it helps."""


class InvalidRequestError(ServiceError):
    """A body or header whose fields are missing, unknown, of the wrong type or out of range."""

    code = "invalid_request"

    @classmethod
    def of(cls, error: ValidationError) -> "InvalidRequestError":
        """Says which fields pydantic found wrong, without repeating what the client sent."""
        if error.error_count() > MAX_FIELD_ERRORS:
            return cls(f"body: {error.error_count()} fields are missing, unknown or of the wrong type")
        fields = [
            {
                "field": _name(part["loc"]),
                "message": _MESSAGES.get(part["type"]) or part["msg"].removeprefix("Value error, "),
            }
            for part in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        first = fields[0]
        return cls(f"{first['field']}: {first['message']}", errors=fields)


_MESSAGES = {
    "extra_forbidden": "there is no such field: /docs lists those that there are",
    # The only pattern there is: of texts.
    "string_pattern_mismatch": "the text is empty: send the words that the model is to read",
}
"""For what pydantic says in terms of its own."""
LONGEST_NAME = 100
"""Letters of a field's name that are shown."""


def _name(location: tuple[int | str, ...]) -> str:
    """queries.0.mean.2: without the member of the union list | base64 that pydantic puts after a vector's name."""
    before = ("", *location)
    parts = [part for part, name in zip(location, before, strict=False) if name not in _VECTORS or part not in _FORMS]
    return ".".join(map(_shortened, parts)) or "body"


def _shortened(part: int | str) -> str:
    """A field's name in a few letters: one that nobody knows may have any length, and would come back twice."""
    name = str(part)
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


_VECTORS = ("mean", "variance", "logvar")
_FORMS = ("list[float]", "str")


class NoModelError(ServiceError):
    """Words, to a service without a model."""

    code = "no_model"


class LimitExceededError(ServiceError):
    """A field above one of the limits that GET /v1/index lists."""

    code = "limit_exceeded"


class UnauthorizedError(ServiceError):
    """No key, or a wrong one."""

    code = "unauthorized"


class WriteFailedError(ServiceError):
    """A write that did not reach the disk, or of which that is not known."""

    code = "write_failed"


class IdempotencyMismatchError(ServiceError):
    """An Idempotency-Key that has come before, with another request."""

    code = "idempotency_mismatch"


class CompactionRunningError(ServiceError):
    """A compaction is under way."""

    code = "compaction_running"


class WritesDisabledError(ServiceError):
    """A request that would change the index, to a service without an admin key."""

    code = "writes_disabled"


class ForbiddenError(ServiceError):
    """A search key, for a request that takes an admin key."""

    code = "forbidden"


class NotFoundError(ServiceError):
    """A path that is not served."""

    code = "not_found"


class MethodNotAllowedError(ServiceError):
    """A path that does not take the method."""

    code = "method_not_allowed"


class BodyTooLargeError(ServiceError):
    """A body above the limit."""

    code = "body_too_large"


class UnsupportedEncodingError(ServiceError):
    """A compressed body."""

    code = "unsupported_encoding"


class MalformedHttpError(ServiceError):
    """Bytes that are no HTTP request."""

    code = "malformed_http"


class HeadTooLargeError(ServiceError):
    """A path and headers above the limit."""

    code = "head_too_large"


class HeadTimeoutError(ServiceError):
    """A path and headers that did not arrive in time."""

    code = "head_timeout"


class OverloadedError(ServiceError):
    """The queue is full, or as many connections or bytes of bodies are there as may be."""

    code = "overloaded"


class NotReadyError(ServiceError):
    """No index is loaded yet, or the service is shutting down."""

    code = "not_ready"


class DeadlineExceededError(ServiceError):
    """The time that the request allowed has passed."""

    code = "deadline_exceeded"


class ShardUnavailableError(ServiceError):
    """A shard of the cluster that has not answered in time."""

    code = "shard_unavailable"

    @classmethod
    def of(cls, late: Sequence[int], shards: int) -> "ShardUnavailableError":
        """Names those that are late, of so many."""
        which = f"shard {late[0]} has" if len(late) == 1 else f"shards {', '.join(map(str, late))} have"
        return cls(
            f"{which} not answered in time, of {shards}: try again, or set allow_partial to have what the others find"
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """How one kind of error is answered."""

    status: HTTPStatus
    title: str


PROBLEMS: dict[type[GaussearchError], Problem] = {
    MalformedHttpError: Problem(HTTPStatus.BAD_REQUEST, "The request is not HTTP"),
    MalformedJsonError: Problem(HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    UnauthorizedError: Problem(HTTPStatus.UNAUTHORIZED, "A valid API key is needed"),
    WritesDisabledError: Problem(HTTPStatus.FORBIDDEN, "The service has no admin key, and so takes no changes"),
    ForbiddenError: Problem(HTTPStatus.FORBIDDEN, "An admin key is needed"),
    NotFoundError: Problem(HTTPStatus.NOT_FOUND, "No such path"),
    DocumentNotFoundError: Problem(HTTPStatus.NOT_FOUND, "No such document"),
    MethodNotAllowedError: Problem(HTTPStatus.METHOD_NOT_ALLOWED, "The path does not take this method"),
    HeadTimeoutError: Problem(HTTPStatus.REQUEST_TIMEOUT, "The request took too long to arrive"),
    BodyTooLargeError: Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    UnsupportedEncodingError: Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Compressed bodies are not read"),
    InvalidRequestError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not valid"),
    InvalidGaussiansError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Not a Gaussian of this index"),
    InvalidOptionError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "An option is out of range"),
    NoModelError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The service has no model to read texts with"),
    LimitExceededError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "A limit is exceeded"),
    OverloadedError: Problem(HTTPStatus.TOO_MANY_REQUESTS, "The service is at capacity"),
    HeadTooLargeError: Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Path and headers are too large"),
    GaussearchError: Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed"),
    WriteFailedError: Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The write failed"),
    IdempotencyMismatchError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The Idempotency-Key was used before"),
    CompactionRunningError: Problem(HTTPStatus.CONFLICT, "A compaction is under way"),
    NotReadyError: Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The service is not ready"),
    DeadlineExceededError: Problem(HTTPStatus.GATEWAY_TIMEOUT, "The deadline has passed"),
    ShardUnavailableError: Problem(HTTPStatus.GATEWAY_TIMEOUT, "A part of the index does not answer"),
}
"""Looked up along an error's classes, most derived first."""


def problem_response(request: Request, error: GaussearchError) -> Response:
    """The problem document of an error, as the answer to a request."""
    status, media_type, body = problem_document(error, request.scope.get("request_id", ""))
    headers = error.headers if isinstance(error, ServiceError) else None
    return Response(body, status, headers, media_type)


def problem_document(error: GaussearchError, request_id: str = "") -> tuple[int, str, bytes]:
    """The problem document of an error: status, media type, body."""
    problem = next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)
    known = type(error) in PROBLEMS and type(error) is not GaussearchError
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status.value,
        "code": error.code if known else GaussearchError.code,
        # What goes wrong inside is for the log, not for clients.
        "detail": str(error) if known else "the error has been logged under this request id",
        "request_id": request_id,
    }
    if isinstance(error, ServiceError) and error.errors:
        body["errors"] = error.errors
    return problem.status.value, MEDIA_TYPE, orjson.dumps(body)
