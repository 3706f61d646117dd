"""The application: what it is made of, how it starts and stops, and how errors become answers."""

import asyncio
import contextlib
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from index import GaussearchError
from service.batching import Batcher
from service.live_index import LiveIndex
from service.metrics import Metrics
from service.middleware import RequestLog
from service.openapi import describe
from service.problems import MethodNotAllowedError, NotFoundError, problem_response
from service.routes import operations, v1
from service.settings import ServiceSettings
from service.state import State

__all__ = ["create_app"]

logger = logging.getLogger("gaussearch.app")

DESCRIPTION = """\
Retrieval over distributions. Documents and queries are diagonal Gaussians; a search returns the documents of the
largest **-KL(Q||D)**, in nats, computed in float64. Errors are `application/problem+json` with a stable `code`.
"""


def create_app(
    settings: ServiceSettings | None = None, on_failure: Callable[[Exception], None] | None = None
) -> FastAPI:
    """The ASGI application; without `settings`, those of the environment.

    The index is loaded after start-up, in the background: until then /readyz and /v1 answer 503. `on_failure` is called
    once if it cannot be loaded at all, since then the process has nothing to serve.
    """
    settings = settings or ServiceSettings()  # type: ignore[call-arg]
    metrics = Metrics()
    live = LiveIndex(settings, metrics)
    batcher = Batcher(live.searcher, metrics, max_rows=settings.max_batch_rows, queue_rows=settings.queue_rows)
    version = importlib.metadata.version("gaussearch")
    state = State(settings, settings.keys(), version, metrics, live, batcher)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        serving = asyncio.create_task(_serve(live, on_failure))
        yield
        serving.cancel()
        await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title="Gaussearch", version=version, description=DESCRIPTION, lifespan=lifespan, redirect_slashes=False
    )
    app.state.gaussearch = state
    # Their routes rather than the routers: include_router matches every request twice, once for the router.
    app.router.routes.extend([*v1.routes, *operations.routes])
    app.add_middleware(RequestLog, metrics=metrics)
    for kind, handler in {
        GaussearchError: _on_error,
        HTTPException: _on_http_exception,
        ClientDisconnect: _on_disconnect,
        Exception: _on_bug,
    }.items():
        app.add_exception_handler(kind, handler)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


async def _serve(live: LiveIndex, on_failure: Callable[[Exception], None] | None) -> None:
    try:
        await live.load_first()
    except Exception as error:
        # Not only GaussearchError: CUDA and FAISS, for one, run out of memory with a RuntimeError.
        logger.critical("the index cannot be served: %s", error, exc_info=not isinstance(error, GaussearchError))
        if on_failure:
            on_failure(error)
        return
    await live.watch()


async def _on_error(request: Request, error: Exception) -> Response:
    known = error if isinstance(error, GaussearchError) else GaussearchError(str(error))
    response = problem_response(request, known)
    if response.status_code == 500:
        logger.error("request %s failed: %s", request.scope.get("request_id"), error, exc_info=error)
    return response


async def _on_http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        return problem_response(
            request, MethodNotAllowedError(f"{request.url.path} does not take {request.method}", headers=headers)
        )
    if status == 404:
        return problem_response(request, NotFoundError(f"{request.url.path} is not served; /docs lists what is"))
    return await _on_error(request, error)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    # Nobody reads this; the status is what nginx logs for a client that has gone.
    return Response(status_code=499)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette answers this outside of RequestLog, so the id has to be put in here; then it raises the error again, and
    # the server logs the traceback.
    request_id = request.scope.get("request_id", "")
    logger.error("request %s failed; the traceback follows: %r", request_id, error)
    response = problem_response(request, GaussearchError(repr(error)))
    response.headers["X-Request-Id"] = request_id
    return response
