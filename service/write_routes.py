"""The HTTP routes that change the index: documents written and deleted, and the index compacted."""

import re
import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from index.build_options import CompactOptions
from index.durable import checksum
from index.errors import DocumentNotFoundError
from index.text import Role
from service.answers import json_response
from service.committing import Change, Done, RequestKey
from service.problems import DeadlineExceededError, InvalidRequestError, LimitExceededError
from service.queries import gaussians_told
from service.requests import deadline_of, parse_body, read_raw, require_admin, wait_for
from service.routing import DirectRoute, described_errors, request_body
from service.schemas import CompactRequest, DeleteRequest, UpsertRequest
from service.state import State
from service.uploads import documents_of, require_id, require_ids
from service.write_responses import AcceptedResponse, DeleteResponse, UpsertResponse
from service.writing import NOT_WRITTEN

__all__ = ["writes"]

KEY_HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_KEY_PARAMETER: dict[str, Any] = {
    "name": KEY_HEADER,
    "in": "header",
    "required": False,
    "description": "A new one for each write, and the same when it is sent again: it is made once. The last thousand "
    "are remembered.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_WRITE_ERRORS = described_errors(400, 401, 403, 413, 415, 422, 429, 500, 503, 504)

writes = APIRouter(prefix="/v1", tags=["writing"], route_class=DirectRoute)


@writes.post(
    "/documents",
    summary="Write documents",
    response_model=UpsertResponse,
    responses=_WRITE_ERRORS,
    openapi_extra=request_body(UpsertRequest, _KEY_PARAMETER),
)
async def write(request: Request) -> Response:
    """Adds documents, each in place of the one with its id, if there is one. Answered once they are on disk and the
    next search finds them."""
    started = time.perf_counter()
    state, raw, deadline = await _receive(request)
    body = parse_body(raw, UpsertRequest)
    _within_limit("documents", len(body.documents), state)
    require_ids(body.documents)
    key = _key(request, raw)
    # What is sent again is not encoded again.
    done = await _made_before(request, state, key, deadline) if key is not None else None
    if done is None:
        told = await gaussians_told(request, state, body.documents, Role.DOCUMENT, deadline)
        documents = documents_of(body.documents, told.gaussians, state.live.searcher().manifest)
        done = await _made(request, state, Change(documents, key=key), deadline)
    return _answer(state, done, started)


@writes.post(
    "/documents/delete",
    summary="Delete documents",
    response_model=DeleteResponse,
    responses=_WRITE_ERRORS,
    openapi_extra=request_body(DeleteRequest, _KEY_PARAMETER),
)
async def delete(request: Request) -> Response:
    """Deletes the documents with these ids; those that are not there are counted."""
    started = time.perf_counter()
    state, raw, deadline = await _receive(request)
    body = parse_body(raw, DeleteRequest)
    _within_limit("ids", len(body.ids), state)
    for row, name in enumerate(body.ids):
        require_id(name, f"ids.{row}")
    change = Change(None, tuple(dict.fromkeys(body.ids)), _key(request, raw))
    return _answer(state, await _made(request, state, change, deadline), started)


@writes.delete(
    "/documents/{document_id:path}",
    summary="Delete a document",
    response_model=DeleteResponse,
    responses=described_errors(401, 403, 404, 422, 429, 500, 503, 504),
    openapi_extra={"parameters": [_KEY_PARAMETER]},
)
async def delete_one(request: Request, document_id: str) -> Response:
    """Deletes a document; 404 where there is none with this id."""
    started = time.perf_counter()
    state = _admit(request)
    require_id(document_id, "id")
    change = Change(None, (document_id,), _key(request, document_id.encode()))
    done = await _made(request, state, change, deadline_of(request, state.settings))
    if not done.counts["deleted"]:
        raise DocumentNotFoundError(f"no document has the id {document_id!r}")
    return _answer(state, done, started)


@writes.post(
    "/index/compact",
    summary="Compact the index",
    status_code=202,
    response_model=AcceptedResponse,
    responses=described_errors(400, 401, 403, 409, 413, 415, 422, 500, 503, 504),
    openapi_extra=request_body(CompactRequest, required=False),
)
async def compact(request: Request) -> Response:
    """Begins to put all documents into full segments, or with `retrain` to build the index anew of them; searches go
    on meanwhile, writes wait. GET /v1/index says when it has ended, and how."""
    state, raw, _ = await _receive(request)
    body = parse_body(raw, CompactRequest)
    state.live.local()
    state.writer.compact(CompactOptions(retrain=body.retrain, device=state.settings.device))
    return json_response({"status": "accepted"}, status=202)


def _admit(request: Request) -> State:
    state: State = request.app.state.gaussearch
    state.require_writable()
    require_admin(request, state.keys)
    return state


async def _receive(request: Request) -> tuple[State, bytes, float]:
    state = _admit(request)
    deadline = deadline_of(request, state.settings)
    return state, await read_raw(request, state.settings.max_body_bytes, deadline), deadline


def _within_limit(name: str, count: int, state: State) -> None:
    if count > state.settings.max_documents:
        raise LimitExceededError(f"{name} are {count}; the limit is {state.settings.max_documents}")


def _key(request: Request, asked: bytes) -> RequestKey | None:
    """Digests of the request's Idempotency-Key and of what it asks for, if it has one."""
    key = request.headers.get(KEY_HEADER)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidRequestError(f"{KEY_HEADER} must be 1 to 255 visible ASCII characters, without spaces")
    what = f"{request.method} {request.url.path}\n".encode() + asked
    return RequestKey(checksum(key.encode())[:32], checksum(what)[:32])


async def _made_before(request: Request, state: State, key: RequestKey, deadline: float) -> Done | None:
    """As Writer.made_before; raises DeadlineExceededError, too."""
    try:
        return await wait_for(state.writer.made_before(key), request, deadline)
    except DeadlineExceededError as error:
        raise DeadlineExceededError(
            "the deadline passed before it was known whether it has been made: send it again, with the same "
            "Idempotency-Key"
        ) from error


async def _made(request: Request, state: State, change: Change, deadline: float) -> Done:
    """Has a change made; raises what Writer.submit raises, and DeadlineExceededError that says what is known of it."""
    state.live.searcher()
    try:
        return await wait_for(state.writer.submit(change, deadline), request, deadline)
    except DeadlineExceededError as error:
        if str(error) == NOT_WRITTEN:
            raise
        raise DeadlineExceededError(
            "the deadline passed before it was written, and it is not known whether it will be: send it again, with "
            "the same Idempotency-Key if it has one"
        ) from error


def _answer(state: State, done: Done, started: float) -> Response:
    content = {
        **done.counts,
        "took_ms": round((time.perf_counter() - started) * 1000, 3),
        "index": {"name": state.live.searcher().name, "generation": done.generation},
    }
    response = json_response(content)
    if done.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response
