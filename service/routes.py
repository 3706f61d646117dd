"""The HTTP routes: a request becomes Gaussians, goes through the batcher, and its documents come back as JSON."""

import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from index import Gaussians
from index.drift import rebuild_reason
from index.text import Role
from service import metrics as metrics_module
from service.answers import answer, evidence_of, json_response, results_of
from service.problems import LimitExceededError, NotReadyError
from service.queries import encode, gaussians_told
from service.requests import Body, deadline_of, read_body, require_key, wait_for
from service.responses import (
    BatchSearchResponse,
    DocumentResponse,
    EncodeResponse,
    IndexResponse,
    Limits,
    SearchResponse,
    StatusResponse,
)
from service.schemas import BatchSearchRequest, EncodeRequest, SearchOptions, SearchRequest, SimilarRequest
from service.searching import Found
from service.state import State
from service.uncertainty import uncertainty

__all__ = ["DirectRoute", "described_errors", "operations", "request_body", "v1"]

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
_SEARCH_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _ERRORS[status] for status in (400, 401, 413, 415, 422, 429, 500, 503, 504)
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


v1 = APIRouter(prefix="/v1", tags=["search"], route_class=DirectRoute)
operations = APIRouter(tags=["operations"], route_class=DirectRoute)


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


@v1.post(
    "/search",
    summary="Search with one Gaussian",
    response_model=SearchResponse,
    responses=_SEARCH_ERRORS,
    openapi_extra=request_body(SearchRequest),
)
async def search(request: Request) -> Response:
    """The documents of the largest -KL(Q||D), best first."""
    started = time.perf_counter()
    state, body, deadline = await _receive(request, SearchRequest)
    _require_allowed(body, 1, state)
    told = await gaussians_told(request, state, [body], Role.QUERY, deadline)
    found, results = await _search(request, state, told.gaussians, body, deadline)
    content = {"results": results[0], **_matched(found), **_evidence(found, body)}
    if told.uncertainties[0] is not None:
        content["uncertainty"] = told.uncertainties[0].shown
    return answer(started, found.searcher, content)


@v1.post(
    "/search/batch",
    summary="Search with many Gaussians",
    response_model=BatchSearchResponse,
    responses=_SEARCH_ERRORS,
    openapi_extra=request_body(BatchSearchRequest),
)
async def search_batch(request: Request) -> Response:
    """The documents of the largest -KL(Q||D) for each query, in the order of the queries."""
    started = time.perf_counter()
    state, body, deadline = await _receive(request, BatchSearchRequest)
    _within("queries", len(body.queries), state.settings.max_queries)
    _require_allowed(body, len(body.queries), state)
    told = await gaussians_told(request, state, body.queries, Role.QUERY, deadline)
    found, results = await _search(request, state, told.gaussians, body, deadline)
    content = {"results": results, **_matched(found), **_evidence(found, body, together=True)}
    if told.in_words:
        content["uncertainty"] = [each and each.shown for each in told.uncertainties]
    return answer(started, found.searcher, content)


@v1.post(
    "/encode",
    summary="Make Gaussians of texts",
    response_model=EncodeResponse,
    responses=_SEARCH_ERRORS,
    openapi_extra=request_body(EncodeRequest),
)
async def encode_texts(request: Request) -> Response:
    """What the service's model makes of texts, as queries or as documents."""
    started = time.perf_counter()
    state, body, deadline = await _receive(request, EncodeRequest)
    _within("texts", len(body.texts), state.settings.max_queries)
    made = await encode(request, state, body.texts, body.role, deadline)
    rows = zip(made.means.numpy(), made.variances.numpy(), uncertainty(made), strict=True)
    return json_response(
        {
            "gaussians": [{"mean": mean, "variance": variance, **each.shown} for mean, variance, each in rows],
            "model": state.encoding.model and state.encoding.model.model_dump(),
            "took_ms": round((time.perf_counter() - started) * 1000, 3),
        }
    )


@v1.post(
    "/documents/{document_id:path}/similar",
    summary="Search with a document of the index",
    response_model=SearchResponse,
    responses=_SEARCH_ERRORS | {404: _ERRORS[404]},
    openapi_extra=request_body(SimilarRequest, required=False),
)
async def similar(request: Request, document_id: str) -> Response:
    """The documents of the largest -KL, with a document's own Gaussian as the query."""
    started = time.perf_counter()
    state, body, deadline = await _receive(request, SimilarRequest)
    _require_allowed(body, 1, state)
    leave_out = None if body.include_self else document_id
    while True:
        searcher = state.live.searcher()
        query = searcher.document(document_id).gaussian
        found, results = await _search(request, state, query, body, deadline, leave_out=leave_out)
        # A reload in between would pair a document of one generation with results of the next.
        if found.searcher is searcher:
            return answer(started, searcher, {"results": results[0], **_matched(found), **_evidence(found, body)})


@v1.get(
    "/documents/{document_id:path}",
    summary="Fetch a document",
    response_model=DocumentResponse,
    responses={status: _ERRORS[status] for status in (401, 404, 503)},
)
async def document(request: Request, document_id: str) -> Response:
    """A document's Gaussian and payload, as stored."""
    state = _admit(request)
    found = state.live.searcher().document(document_id)
    return json_response(
        {
            "id": found.id,
            "mean": found.gaussian.means[0].numpy(),
            "variance": found.gaussian.variances[0].numpy(),
            "payload": found.payload,
        }
    )


@v1.get(
    "/index",
    summary="What is served, and every limit",
    response_model=IndexResponse,
    responses={status: _ERRORS[status] for status in (401, 503)},
)
async def describe(request: Request) -> Response:
    """The index, its generation, the limits of a request, and how the last reload went."""
    state = _admit(request)
    searcher = state.live.searcher()
    manifest = searcher.manifest
    recall, codes = manifest.measured_recall, manifest.codes
    graph, lists = (codes.graph, codes.lists) if codes else (None, None)
    return json_response(
        {
            "name": searcher.name,
            "generation": manifest.generation,
            "created_at": manifest.created_at,
            "documents": manifest.documents,
            "k": manifest.k,
            "encoding": manifest.encoding.value,
            "kind": manifest.kind,
            "model": manifest.model and manifest.model.model_dump(),
            "reads_text": state.encoding.model is not None,
            "reason": manifest.reason,
            "measured_recall": recall and recall.model_dump(),
            "codes": codes
            and {
                "bytes_per_document": codes.code_bytes,
                "dimensions": codes.dimensions,
                "candidates": codes.candidates,
                "breadth": codes.breadth,
                "graph": graph and {"m": graph.links, "ef_construction": graph.construction},
                "lists": lists and {"lists": lists.lists, "nprobe": lists.nprobe},
                "factory": codes.factory and codes.factory.model_dump(exclude={"documents"}),
            },
            "segments": len(manifest.segments),
            "deleted_rows": sum(each.documents for each in manifest.segments) - manifest.documents,
            "changes": manifest.changes,
            "drift": manifest.drift and manifest.drift.model_dump(exclude={"due"}),
            "rebuild_due": rebuild_reason(manifest),
            "compaction": {"running": state.writer.compacting, "last_error": state.writer.compaction_error},
            "bytes": sum(segment.bytes for segment in manifest.segments),
            "device": str(searcher.device),
            "precision": searcher.precision,
            "version": state.version,
            "limits": {name: getattr(state.settings, name) for name in Limits.model_fields},
            "reload": {"failures": state.live.failures, "last_error": state.live.last_error},
        }
    )


@operations.get(
    "/livez",
    summary="Is the process able to work?",
    response_model=StatusResponse,
    responses={503: {**_ERRORS[503], "description": "The search thread has died."}},
)
async def livez(request: Request) -> Response:
    """200 while the search thread lives, 503 once it has died and the process should be restarted."""
    state: State = request.app.state.gaussearch
    if not state.batcher.alive:
        raise NotReadyError("the search thread has died: restart the process")
    if not state.encoding.alive:
        raise NotReadyError("the encoding thread has died: restart the process")
    if state.keys.admin and not state.writer.alive:
        raise NotReadyError("the writing thread has died: restart the process")
    return json_response({"status": "ok"})


@operations.get(
    "/readyz",
    summary="Can searches be sent here?",
    response_model=StatusResponse,
    responses={503: {**_ERRORS[503], "description": "No index is loaded yet, or the service is shutting down."}},
)
async def readyz(request: Request) -> Response:
    """200 once an index is loaded, 503 before that."""
    state: State = request.app.state.gaussearch
    state.live.searcher()
    if not state.batcher.accepting:
        raise NotReadyError("the service is shutting down")
    return json_response({"status": "ok"})


@operations.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": "gaussearch_index_generation 1.0\n"}}}},
)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in the Prometheus text format."""
    state: State = request.app.state.gaussearch
    return Response(state.metrics.render(), media_type=metrics_module.CONTENT_TYPE)


def _admit(request: Request) -> State:
    state: State = request.app.state.gaussearch
    require_key(request, state.keys)
    return state


async def _receive(request: Request, model: type[Body]) -> tuple[State, Body, float]:
    """Lets a search in: its body, and the time.monotonic() by which it must be answered."""
    state = _admit(request)
    deadline = deadline_of(request, state.settings)
    return state, await read_body(request, model, state.settings.max_body_bytes, deadline), deadline


def _matched(found: Found) -> dict[str, int]:
    """How many documents the filter of a request let through, if it has one."""
    return {} if found.matched is None else {"matched": found.matched}


def _evidence(found: Found, options: SearchOptions, *, together: bool = False) -> dict[str, Any]:
    """What the results of a request rest on, where it asks for explanations: of its one query, or of all `together`."""
    evidence = evidence_of(found) if options.explain else []
    return {"search": evidence if together else evidence[0]} if evidence else {}


def _within(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise LimitExceededError(f"{name} is {value}; the limit is {limit}")


def _require_allowed(options: SearchOptions, queries: int, state: State) -> None:
    """Raises LimitExceededError and InvalidOptionError for what may not be asked for: before a model or a search works
    for it."""
    _within("top_k", options.top_k, state.settings.max_top_k)
    _within("candidates", options.candidates or 0, state.settings.max_candidates)
    _within("nprobe", options.nprobe or 0, state.settings.max_nprobe)
    if options.nprobe is not None:
        # Refused here, where an index has no lists, and not only when its batch is searched.
        state.live.searcher().effort_for(options.top_k, options.candidates, options.nprobe)
    _within("queries times top_k", queries * options.top_k, state.settings.max_results)


async def _search(
    request: Request,
    state: State,
    queries: Gaussians,
    options: SearchOptions,
    deadline: float,
    *,
    leave_out: str | None = None,
) -> tuple[Found, list[list[dict[str, Any]]]]:
    """What was found, and the results of each query as JSON shows them."""
    wanted = options.document_filter()
    async with state.filters.enter(state.live.searcher(), wanted, deadline):
        future = state.batcher.submit(
            queries,
            options.top_k + (leave_out is not None),
            options.candidates,
            deadline,
            nprobe=options.nprobe,
            exact=options.exact,
            filter=wanted,
            with_payload=options.with_payload,
        )
        found = await wait_for(future, request, deadline)
    return found, await results_of(found, queries, options, leave_out, deadline)
