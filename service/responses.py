"""Bodies of responses, as OpenAPI shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeFloat

from index.manifest import MeasuredRecall
from index.records import ModelRecord
from service.schemas import GAUSSIAN_EXAMPLE

__all__ = [
    "AcceptedResponse",
    "BatchSearchResponse",
    "DeleteResponse",
    "DocumentResponse",
    "EncodeResponse",
    "IndexResponse",
    "Limits",
    "ProblemResponse",
    "SearchResponse",
    "StatusResponse",
    "UpsertResponse",
]


MODEL_EXAMPLE: dict[str, JsonValue] = {
    "name": "head",
    "encoder": "head",
    "k": 3,
    "fingerprint": "7c0d8dc7e4b1b64cf85ab39ec80e6c24bb3a1d9b7f0f7a0d5e9c0d7c1a2b3c4d",
}


class ExplanationBody(BaseModel):
    """KL(Q||D) = log_determinant + trace + mahalanobis, in nats; the dimensions that contribute most, how much, and the
    query's and the document's means and variances in them."""

    log_determinant: float
    trace: float
    mahalanobis: float
    dimensions: list[int]
    contributions: list[float]
    query_means: list[float]
    query_variances: list[float]
    document_means: list[float]
    document_variances: list[float]


class EvidenceBody(BaseModel):
    """What the results of one query rest on."""

    scanned: Annotated[
        int | None,
        Field(description="Documents that the scan compared with the query; null where that is not counted."),
    ]
    candidates: Annotated[int, Field(description="Documents that were scored exactly, in float64.")]
    proven: Annotated[bool, Field(description="Whether it is certain that nothing better was left out.")]
    proof: Annotated[
        Literal["bound", "exhaustive"] | None,
        Field(
            description="Why it is: the rounding-error bound of the scan, or that all that may be found were scored. "
            "Null where recall is what the index was measured to have."
        ),
    ]


class ResultBody(BaseModel):
    """A document and its score, -KL(Q||D) in nats: at most 0, higher is better."""

    id: str
    score: float
    payload: dict[str, Any] | None = None
    explanation: ExplanationBody | None = None


class ServedIndex(BaseModel):
    """The index that answered."""

    name: str
    generation: int


class _Answer(BaseModel):
    took_ms: NonNegativeFloat
    index: ServedIndex


_RESULT_EXAMPLE: dict[str, JsonValue] = {
    "id": "n00002452",
    "score": -16.45,
    "payload": {"text": "thing: a separate entity"},
}


_ANSWER_EXAMPLE: dict[str, JsonValue] = {"took_ms": 2.1, "index": {"name": "wordnet", "generation": 1}}


class UncertaintyBody(BaseModel):
    """How uncertain the model is of a query in words: the sum of the logarithms of its variances, and their mean."""

    log_determinant: float
    mean_variance: float


class SearchResponse(_Answer):
    """Documents in order of descending score; equal scores in order of id."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"results": [_RESULT_EXAMPLE], **_ANSWER_EXAMPLE}]})

    results: list[ResultBody]
    matched: Annotated[int | None, Field(description="Documents that the filter let through, if there is one.")] = None
    uncertainty: Annotated[UncertaintyBody | None, Field(description="Of a query in words.")] = None
    search: Annotated[EvidenceBody | None, Field(description="With `explain`: what the results rest on.")] = None


class BatchSearchResponse(_Answer):
    """The results of each query, in the order of the queries."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"results": [[_RESULT_EXAMPLE]], **_ANSWER_EXAMPLE}]})

    results: list[list[ResultBody]]
    matched: Annotated[int | None, Field(description="Documents that the filter let through, if there is one.")] = None
    uncertainty: Annotated[
        list[UncertaintyBody | None] | None, Field(description="Of each query in words, where there are such.")
    ] = None
    search: Annotated[
        list[EvidenceBody] | None, Field(description="With `explain`: what the results of each query rest on.")
    ] = None


class EncodedText(UncertaintyBody):
    """The Gaussian that the model makes of a text."""

    mean: list[float]
    variance: list[float]


class EncodeResponse(BaseModel):
    """The Gaussians of texts, in their order, and the model that made them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "gaussians": [{**GAUSSIAN_EXAMPLE, "log_determinant": -2.41, "mean_variance": 0.53}],
                    "model": MODEL_EXAMPLE,
                    "took_ms": 9.3,
                }
            ]
        }
    )

    gaussians: list[EncodedText]
    model: ModelRecord
    took_ms: NonNegativeFloat


class UpsertResponse(_Answer):
    """What was written: documents, and how many of these took the place of one. Searches see it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"written": 1, "replaced": 0, **_ANSWER_EXAMPLE}]})

    written: int
    replaced: int


class DeleteResponse(_Answer):
    """How many documents were deleted, and how many ids no document had."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"deleted": 1, "missing": 0, **_ANSWER_EXAMPLE}]})

    deleted: int
    missing: int


class AcceptedResponse(BaseModel):
    """What has been asked for has begun."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "accepted"}]})

    status: Literal["accepted"]


class DocumentResponse(BaseModel):
    """A document as it is stored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": "n00002452", **GAUSSIAN_EXAMPLE, "payload": {"text": "thing: a separate entity"}}]
        }
    )

    id: str
    mean: list[float]
    variance: list[float]
    payload: dict[str, Any]


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


class FieldError(BaseModel):
    """One field of a request and what is wrong with it."""

    field: str
    message: str


class ProblemResponse(BaseModel):
    """An error (RFC 9457). `code` is stable; `detail` is for people."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Not a Gaussian of this index",
                    "status": 422,
                    "code": "invalid_gaussian",
                    "detail": "row 0, component 2: variance is 0.0, it must be above zero",
                    "request_id": "8f4e2c1b9a7d4e60",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[FieldError] | None = None
