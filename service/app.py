"""The application: what it is made of, how it starts and stops, and how errors become answers."""

import asyncio
import contextlib
import importlib.metadata
import logging
import threading
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from index import GaussearchError, WriteOptions
from service.batching import Batcher
from service.bodies import BodyRoom
from service.cluster.batcher import ClusterBatcher
from service.cluster.ingress import Cluster
from service.encoding import Encoding
from service.filtering import FilterRoom
from service.index_routes import about, operations
from service.jobs import hand_over
from service.keys import LEAST_BYTES, Keys
from service.live_index import LiveIndex
from service.metrics import Metrics
from service.middleware import SAFE_HEADERS, RequestLog
from service.openapi import describe
from service.page import page_routes
from service.problems import MethodNotAllowedError, NotFoundError, problem_response
from service.routes import v1
from service.settings import ServiceSettings
from service.state import State
from service.write_routes import writes
from service.writing import Writer

__all__ = ["create_app"]

logger = logging.getLogger("gaussearch.app")

DESCRIPTION = """\
Retrieval over distributions. Documents and queries are diagonal Gaussians; a search returns the documents of the
largest **-KL(Q||D)**, in nats, computed in float64. Errors are `application/problem+json` with a stable `code`.
"""


CORS_HEADERS = ["Authorization", "X-API-Key", "X-Request-Id", "X-Request-Timeout-Ms", "Idempotency-Key"]
"""What scripts of other web pages may send beside Content-Type, where they may send anything. Cookies are not among it:
a key is in a header, which a page has to know."""


def create_app(
    settings: ServiceSettings | None = None,
    on_failure: Callable[[Exception], None] | None = None,
    keys: Keys | None = None,
    cluster: Cluster | None = None,
) -> FastAPI:
    """The ASGI application; without `settings`, those of the environment, and without `keys` those of the settings.

    The index is loaded after start-up, in the background: until then /readyz and /v1 answer 503. `on_failure` is called
    once if it cannot be loaded at all, since then the process has nothing to serve. With a `cluster`, its shards
    search, and there are no writes. Raises what Keys.load raises.
    """
    settings = settings or ServiceSettings()  # type: ignore[call-arg]
    keys = keys or Keys.load(settings)
    if keys.short:
        logger.warning("%d search keys have fewer than %d bytes, and could be guessed", keys.short, LEAST_BYTES)
    metrics = Metrics()
    encoding = Encoding(settings, metrics)
    in_cluster = cluster is not None
    live = LiveIndex(settings, metrics, lambda: encoding.model, cluster.open if cluster is not None else None)
    batcher = _batcher(live, metrics, settings, cluster)
    version = importlib.metadata.version("gaussearch")
    bodies, filters = BodyRoom(settings.queue_bytes, metrics), FilterRoom(metrics)
    options = WriteOptions(keep_generations=settings.keep_generations, keep_hours=settings.keep_hours)
    writer = Writer(settings.directory, live, metrics, options, settings.queue_documents)
    state = State(settings, keys, version, metrics, live, batcher, bodies, filters, encoding, writer, in_cluster)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        if state.takes_writes:
            writer.start()
        serving = asyncio.create_task(_serve(encoding, live, on_failure))
        yield
        serving.cancel()
        filters.close()
        await asyncio.to_thread(encoding.close, settings.shutdown_seconds)
        await asyncio.to_thread(writer.close, settings.shutdown_seconds)
        await asyncio.to_thread(batcher.close, settings.shutdown_seconds)

    app = FastAPI(
        title="Gaussearch", version=version, description=DESCRIPTION, lifespan=lifespan, redirect_slashes=False
    )
    app.state.gaussearch = state
    # Their routes rather than the routers: include_router matches every request twice, once for the router.
    app.router.routes.extend([*v1.routes, *about.routes, *writes.routes, *operations.routes])
    if settings.page:
        # Last: no search is matched against these.
        app.router.routes.extend(page_routes())
    _add_middleware(app, state)
    for kind, handler in {
        GaussearchError: _on_error,
        HTTPException: _on_http_exception,
        ClientDisconnect: _on_disconnect,
        Exception: _on_bug,
    }.items():
        app.add_exception_handler(kind, handler)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


def _add_middleware(app: FastAPI, state: State) -> None:
    # Ray Serve names responses itself.
    app.add_middleware(RequestLog, metrics=state.metrics, names_response=not state.in_cluster)
    if state.settings.origins:
        # Around the log, so that what is refused there may be read as well.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=state.settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=CORS_HEADERS,
            expose_headers=["X-Request-Id", "Retry-After", "Idempotency-Replayed"],
        )


def _batcher(live: LiveIndex, metrics: Metrics, settings: ServiceSettings, cluster: Cluster | None) -> Batcher:
    rows, queue = settings.max_batch_rows, settings.queue_rows
    if cluster is None:
        return Batcher(live.searcher, metrics, max_rows=rows, queue_rows=queue)
    return ClusterBatcher(live.searcher, metrics, max_rows=rows, queue_rows=queue, most=cluster.max_batches)


async def _serve(encoding: Encoding, live: LiveIndex, on_failure: Callable[[Exception], None] | None) -> None:
    try:
        await _in_a_daemon(encoding.load)
        await live.load_first()
    except Exception as error:
        # Not only GaussearchError: CUDA and FAISS, for one, run out of memory with a RuntimeError.
        logger.critical("the index cannot be served: %s", error, exc_info=not isinstance(error, GaussearchError))
        if on_failure:
            on_failure(error)
        return
    await live.watch()


async def _in_a_daemon(work: Callable[[], None]) -> None:
    """Does blocking work on a thread of its own, which does not keep a process that is told to end: a model may have to
    be fetched."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def run() -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as raised:  # noqa: BLE001 (raised in the coroutine that waits)
            error = raised
        hand_over([(done, error)])

    threading.Thread(target=run, name="gaussearch-load", daemon=True).start()
    await done


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
        headers["Allow"] = _allowed_methods(request)
        return problem_response(
            request, MethodNotAllowedError(f"{request.url.path} does not take {request.method}", headers=headers)
        )
    if status == 404:
        return problem_response(request, NotFoundError(f"{request.url.path} is not served; /docs lists what is"))
    return await _on_error(request, error)


def _allowed_methods(request: Request) -> str:
    """The methods of the path that a request asks for; Starlette knows those of one route, and a path has several."""
    routes = [route for route in request.app.router.routes if isinstance(route, Route)]
    partial = next(route for route in routes if route.matches(request.scope)[0] is Match.PARTIAL)
    methods = {method for route in routes if route.path == partial.path for method in route.methods or ()}
    return ", ".join(sorted(methods))


async def _on_disconnect(_: Request, __: Exception) -> Response:
    # Nobody reads this; the status is what nginx logs for a client that has gone.
    return Response(status_code=499)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette answers this outside of RequestLog, so its headers have to be put in here; then it raises the error
    # again, and the server logs the traceback.
    request_id = request.scope.get("request_id", "")
    logger.error("request %s failed; the traceback follows: %r", request_id, error)
    response = problem_response(request, GaussearchError(repr(error)))
    response.raw_headers.extend([*SAFE_HEADERS, (b"x-request-id", request_id.encode())])
    return response
