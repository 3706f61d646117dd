"""The HTTP routes about the service itself: what it serves, whether it is well, and what it counts."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from index.drift import rebuild_reason
from index.interface import RemoteSearcher
from service import metrics as metrics_module
from service.answers import json_response
from service.index_responses import IndexResponse, Limits, StatusResponse
from service.problems import NotReadyError
from service.routing import DirectRoute, admit, described_errors
from service.state import State

__all__ = ["about", "operations"]

about = APIRouter(prefix="/v1", tags=["search"], route_class=DirectRoute)
operations = APIRouter(tags=["operations"], route_class=DirectRoute)


def _unwell(description: str) -> dict[int | str, dict[str, Any]]:
    """The one error of a probe, and what it is of."""
    return {503: {**described_errors(503)[503], "description": description}}


@about.get(
    "/index",
    summary="What is served, and every limit",
    response_model=IndexResponse,
    responses=described_errors(401, 503),
)
async def describe(request: Request) -> Response:
    """The index, its generation, the limits of a request, and how the last reload went."""
    state = admit(request)
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
            "shards": searcher.shards if isinstance(searcher, RemoteSearcher) else 1,
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
    responses=_unwell("A thread that searches, encodes texts or writes has died."),
)
async def livez(request: Request) -> Response:
    """200 while the threads live that search, encode texts and write, 503 once one of them has died and the process
    should be restarted."""
    state: State = request.app.state.gaussearch
    state.require_alive()
    return json_response({"status": "ok"})


@operations.get(
    "/readyz",
    summary="Can searches be sent here?",
    response_model=StatusResponse,
    responses=_unwell("No index is loaded yet, or the service is shutting down."),
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
