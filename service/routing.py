"""What all routes have in common: how they are called, how OpenAPI describes them, and who is let in."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from service.requests import require_key
from service.state import State

__all__ = ["DirectRoute", "admit", "described_errors", "request_body"]

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemResponse"}}},
    }
    for status, description in {
        400: "The body is not JSON.",
        401: "A key is needed.",
        403: "An admin key is needed, or the service has none.",
        404: "There is no such document.",
        409: "Something else is under way.",
        413: "The body is too large.",
        415: "The body is compressed.",
        422: "The request is not valid, or exceeds a limit.",
        429: "The service is at capacity; Retry-After says when to come back.",
        500: "The service failed.",
        503: "No index is loaded yet.",
        504: "The deadline passed.",
    }.items()
}
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "required": False,
    "description": "Milliseconds after which the client no longer wants the answer.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request and the parameters of its path, and nothing else from FastAPI.

    Working out that there are no dependencies to inject took a sixth of a search's time outside the search.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint itself."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, **request.path_params)
            return response

        return handle


def request_body(model: type, *parameters: dict[str, Any], required: bool = True) -> dict[str, Any]:
    """What OpenAPI is to know of a route's body, its deadline and its other headers."""
    # Bodies are read by hand (service.requests.read_body), so OpenAPI has to be told what they are.
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        "requestBody": {"required": required, "content": {"application/json": {"schema": schema}}},
        "parameters": [_TIMEOUT, *parameters],
    }


def described_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI is to know of the errors of a route."""
    return {status: _ERRORS[status] for status in statuses}


def admit(request: Request) -> State:
    """Lets a request in that looks something up, and changes nothing; raises UnauthorizedError."""
    state: State = request.app.state.gaussearch
    require_key(request, state.keys)
    return state
