"""Bodies of responses about the service itself, as OpenAPI shows them: what is served, every limit, and probes."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from index.manifest import MeasuredRecall
from index.records import ModelRecord

__all__ = ["IndexResponse", "Limits", "StatusResponse"]


class Limits(BaseModel):
    """What a request must keep within."""

    max_top_k: int
    max_candidates: int
    max_nprobe: int
    max_queries: int
    max_results: int
    max_documents: int
    queue_documents: int
    max_body_bytes: int
    max_timeout_ms: int
    timeout_ms: int
    queue_rows: int
    max_batch_rows: int
    queue_bytes: int
    max_connections: int
    max_text_letters: int
    max_header_bytes: int
    header_seconds: float
    unread_seconds: float


class DriftBody(BaseModel):
    """What searches find of the newest documents' true best, measured when so many had been written since the build. Of
    kind flat, the share of their searches that the first scan proves."""

    at: int
    recall: float
    low: float
    high: float
    queries: int
    documents: int


class CompactionState(BaseModel):
    """Whether the index is being compacted, and what went wrong the last time."""

    running: bool
    last_error: str | None


class ReloadState(BaseModel):
    """How the last attempt to take up a new generation went."""

    failures: int
    last_error: str | None


class GraphBody(BaseModel):
    """The graph that is walked: HNSW's M and efConstruction."""

    m: int
    ef_construction: int


class ListsBody(BaseModel):
    """The lists that documents are in; `nprobe` pairs a top_k with how many of them a query looks into."""

    lists: int
    nprobe: list[list[int]]


class FactoryBody(BaseModel):
    """What FAISS made of a string of its factory, and how many of its lists a query looks into, where it has any."""

    factory: str
    lists: int | None
    nprobe: list[list[int]] | None


class CodesBody(BaseModel):
    """The codes that are scanned; `candidates` pairs a top_k with the candidates that it takes, chosen of `breadth`
    times as many."""

    bytes_per_document: int
    dimensions: int
    candidates: list[list[int]]
    breadth: float
    graph: GraphBody | None
    lists: ListsBody | None
    factory: FactoryBody | None


class IndexResponse(BaseModel):
    """What is served."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "wordnet",
                    "generation": 1,
                    "created_at": "2026-01-31T12:00:00+00:00",
                    "documents": 4000,
                    "k": 128,
                    "encoding": "simplified",
                    "kind": "flat",
                    "model": None,
                    "reads_text": False,
                    "reason": None,
                    "measured_recall": None,
                    "codes": None,
                    "segments": 1,
                    "shards": 1,
                    "deleted_rows": 0,
                    "changes": 0,
                    "drift": None,
                    "rebuild_due": None,
                    "compaction": {"running": False, "last_error": None},
                    "bytes": 10_700_000,
                    "device": "cpu",
                    "precision": "float32",
                    "version": "0.1.0",
                    "limits": {
                        "max_top_k": 1000,
                        "max_candidates": 10000,
                        "max_nprobe": 10000,
                        "max_queries": 256,
                        "max_results": 10000,
                        "max_documents": 1000,
                        "queue_documents": 10000,
                        "max_body_bytes": 16777216,
                        "max_timeout_ms": 60000,
                        "timeout_ms": 10000,
                        "queue_rows": 1024,
                        "max_batch_rows": 128,
                        "queue_bytes": 268435456,
                        "max_connections": 1000,
                        "max_text_letters": 20000,
                        "max_header_bytes": 16384,
                        "header_seconds": 10.0,
                        "unread_seconds": 60.0,
                    },
                    "reload": {"failures": 0, "last_error": None},
                }
            ]
        }
    )

    name: str
    generation: int
    created_at: str
    documents: int
    k: int
    encoding: str
    kind: str
    model: Annotated[ModelRecord | None, Field(description="The model that made its Gaussians, where that is known.")]
    reads_text: Annotated[bool, Field(description="Whether words are taken in place of Gaussians.")]
    reason: Annotated[str | None, Field(description="Why it is this kind, where another or none was asked for.")]
    measured_recall: MeasuredRecall | None
    codes: CodesBody | None
    segments: int
    shards: Annotated[
        int, Field(description="Over how many parts of a cluster its documents are spread; 1 in one process.")
    ]
    deleted_rows: Annotated[int, Field(description="Rows that were documents and wait to be compacted away.")]
    changes: Annotated[int, Field(description="Generations since the build whose documents were written or deleted.")]
    drift: DriftBody | None
    rebuild_due: Annotated[str | None, Field(description="Why the index should be compacted or built anew, if so.")]
    compaction: CompactionState
    bytes: int
    device: str
    precision: str
    version: str
    limits: Limits
    reload: ReloadState


class StatusResponse(BaseModel):
    """What a probe answers where nothing is wrong; what is wrong is a problem."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"]
