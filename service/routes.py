"""The HTTP routes of searches: a request becomes Gaussians, goes through the batcher, and its documents come back as
JSON."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from index import Document, Gaussians, Searcher
from index.interface import RemoteSearcher
from index.text import Role
from service.answers import answer, evidence_of, in_time, json_response, results_of
from service.problems import LimitExceededError
from service.queries import encode, gaussians_told
from service.requests import Body, deadline_of, read_body, wait_for
from service.responses import BatchSearchResponse, DocumentResponse, EncodeResponse, SearchResponse
from service.routing import DirectRoute, admit, described_errors, request_body
from service.schemas import (
    BatchSearchRequest,
    EncodeRequest,
    QueryGaussian,
    SearchOptions,
    SearchRequest,
    SimilarRequest,
)
from service.searching import Found
from service.state import State
from service.uncertainty import uncertainty

__all__ = ["v1"]

_SEARCH_ERRORS = described_errors(400, 401, 413, 415, 422, 429, 500, 503, 504)

v1 = APIRouter(prefix="/v1", tags=["search"], route_class=DirectRoute)


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
    found, of_each = await _search_told(request, state, [body], body, deadline)
    return answer(started, found.searcher, _content(found, body, of_each, alone=True))


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
    found, of_each = await _search_told(request, state, body.queries, body, deadline)
    return answer(started, found.searcher, _content(found, body, of_each))


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
    responses=_SEARCH_ERRORS | described_errors(404),
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
        query = (await _fetched(searcher, document_id, deadline)).gaussian
        found, of_each = await _search(request, state, query, body, deadline, leave_out=leave_out)
        # A reload in between would pair a document of one generation with results of the next.
        if found.searcher.manifest is searcher.manifest:
            return answer(started, searcher, _content(found, body, of_each, alone=True))


@v1.get(
    "/documents/{document_id:path}",
    summary="Fetch a document",
    response_model=DocumentResponse,
    responses=described_errors(401, 404, 503),
)
async def document(request: Request, document_id: str) -> Response:
    """A document's Gaussian and payload, as stored."""
    state = admit(request)
    found = await _fetched(state.live.searcher(), document_id, deadline_of(request, state.settings))
    return json_response(
        {
            "id": found.id,
            "mean": found.gaussian.means[0].numpy(),
            "variance": found.gaussian.variances[0].numpy(),
            "payload": found.payload,
        }
    )


async def _fetched(searcher: Searcher, document_id: str, deadline: float) -> Document:
    """A document by its id; raises DocumentNotFoundError, and ShardUnavailableError where that is not known."""
    if isinstance(searcher, RemoteSearcher):
        return await asyncio.to_thread(in_time(searcher, deadline).document, document_id)
    return searcher.document(document_id)


async def _receive(request: Request, model: type[Body]) -> tuple[State, Body, float]:
    """Lets a search in: its body, and the time.monotonic() by which it must be answered."""
    state = admit(request)
    deadline = deadline_of(request, state.settings)
    return state, await read_body(request, model, state.settings.max_body_bytes, deadline), deadline


def _content(
    found: Found, options: SearchOptions, of_each: dict[str, list[Any]], *, alone: bool = False
) -> dict[str, Any]:
    """The body of an answer: what there is of each query, or of the one that came `alone`, how many documents the
    filter let through, if there is one, and where some may have been left out, how many there were to be found."""
    shown = {name: its[0] if alone else its for name, its in of_each.items()}
    told: dict[str, Any] = {} if found.matched is None else {"matched": found.matched}
    if options.allow_partial:
        told["coverage"] = {"documents": found.covered, "of": found.searcher.manifest.documents}
    return {"results": shown.pop("results"), **told, **shown}


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


async def _search_told(
    request: Request, state: State, told: Sequence[QueryGaussian], options: SearchOptions, deadline: float
) -> tuple[Found, dict[str, list[Any]]]:
    """As `_search`, for queries as they were told, and how uncertain each in words is, where there are such."""
    _require_allowed(options, len(told), state)
    queries = await gaussians_told(request, state, told, Role.QUERY, deadline)
    found, of_each = await _search(request, state, queries.gaussians, options, deadline)
    if queries.in_words:
        of_each["uncertainty"] = [each and each.shown for each in queries.uncertainties]
    return found, of_each


async def _search(
    request: Request,
    state: State,
    queries: Gaussians,
    options: SearchOptions,
    deadline: float,
    *,
    leave_out: str | None = None,
) -> tuple[Found, dict[str, list[Any]]]:
    """What was found, and as JSON shows them the results of each query, and what they rest on where that is asked
    for."""
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
            allow_partial=options.allow_partial,
        )
        found = await wait_for(future, request, deadline)
    of_each: dict[str, list[Any]] = {"results": await results_of(found, queries, options, leave_out, deadline)}
    if options.explain and (evidence := evidence_of(found)):
        of_each["search"] = evidence
    return found, of_each
