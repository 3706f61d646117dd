"""Every way a request can fail: the service's own errors, and one table from error to status.

Responses are application/problem+json (RFC 9457): `type`, `title`, `status`, `detail`, and `code`, which stays the same
across releases. `errors` lists the fields concerned where there are several.
"""

from collections.abc import Mapping
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

__all__ = ["PROBLEMS", "ServiceError", "problem_response"]

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
            {"field": _name(part["loc"]), "message": part["msg"].removeprefix("Value error, ")}
            for part in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        first = fields[0]
        return cls(f"{first['field']}: {first['message']}", errors=fields)


def _name(location: tuple[int | str, ...]) -> str:
    """queries.0.mean.2: without the member of the union list | base64 that pydantic puts after a vector's name."""
    before = ("", *location)
    parts = [part for part, name in zip(location, before, strict=False) if name not in _VECTORS or part not in _FORMS]
    return ".".join(map(str, parts)) or "body"


_VECTORS = ("mean", "variance", "logvar")
_FORMS = ("list[float]", "str")


class LimitExceededError(ServiceError):
    """A field above one of the limits that GET /v1/index lists."""

    code = "limit_exceeded"


class UnauthorizedError(ServiceError):
    """No key, or a wrong one."""

    code = "unauthorized"


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


class OverloadedError(ServiceError):
    """The queue is full."""

    code = "overloaded"


class NotReadyError(ServiceError):
    """No index is loaded yet, or the service is shutting down."""

    code = "not_ready"


class DeadlineExceededError(ServiceError):
    """The time that the request allowed has passed."""

    code = "deadline_exceeded"


@dataclass(frozen=True, slots=True)
class Problem:
    """How one kind of error is answered."""

    status: HTTPStatus
    title: str


PROBLEMS: dict[type[GaussearchError], Problem] = {
    MalformedJsonError: Problem(HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    UnauthorizedError: Problem(HTTPStatus.UNAUTHORIZED, "A valid API key is needed"),
    NotFoundError: Problem(HTTPStatus.NOT_FOUND, "No such path"),
    DocumentNotFoundError: Problem(HTTPStatus.NOT_FOUND, "No such document"),
    MethodNotAllowedError: Problem(HTTPStatus.METHOD_NOT_ALLOWED, "The path does not take this method"),
    BodyTooLargeError: Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    UnsupportedEncodingError: Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Compressed bodies are not read"),
    InvalidRequestError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not valid"),
    InvalidGaussiansError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "Not a Gaussian of this index"),
    InvalidOptionError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "An option is out of range"),
    LimitExceededError: Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "A limit is exceeded"),
    OverloadedError: Problem(HTTPStatus.TOO_MANY_REQUESTS, "The service is at capacity"),
    GaussearchError: Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed"),
    NotReadyError: Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The service is not ready"),
    DeadlineExceededError: Problem(HTTPStatus.GATEWAY_TIMEOUT, "The deadline has passed"),
}
"""Looked up along an error's classes, most derived first."""


def problem_response(request: Request, error: GaussearchError) -> Response:
    """The problem document of an error."""
    problem = next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)
    known = type(error) in PROBLEMS and type(error) is not GaussearchError
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status.value,
        "code": error.code if known else GaussearchError.code,
        # What goes wrong inside is for the log, not for clients.
        "detail": str(error) if known else "the error has been logged under this request id",
        "request_id": request.scope.get("request_id", ""),
    }
    headers: dict[str, str] = {}
    if isinstance(error, ServiceError):
        headers = error.headers
        if error.errors:
            body["errors"] = error.errors
    return Response(orjson.dumps(body), problem.status.value, headers, MEDIA_TYPE)
