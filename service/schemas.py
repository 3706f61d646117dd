"""Bodies of requests and responses, as OpenAPI shows them and as requests are checked."""

import base64
import binascii
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    PositiveInt,
    model_validator,
)

from index import Gaussians
from index.errors import InvalidGaussiansError
from index.manifest import MeasuredRecall

__all__ = [
    "BatchSearchRequest",
    "BatchSearchResponse",
    "DocumentResponse",
    "IndexResponse",
    "ProblemResponse",
    "QueryGaussian",
    "SearchOptions",
    "SearchRequest",
    "SearchResponse",
    "SimilarRequest",
    "StatusResponse",
    "gaussians_of",
]

# fail_fast: a list of a million wrong numbers is one error, not a million.
Vector = Annotated[
    Annotated[list[float], Field(fail_fast=True)] | str,
    Field(
        union_mode="left_to_right",
        description="k numbers, or the base64 of k little-endian float32 numbers.",
        examples=[[0.12, -0.4, 1.3], "j8L1PczMzL5mZqY/"],
    ),
]


class _Request(BaseModel):
    # Strict: `true` and "3" are no numbers, as OpenAPI says.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class QueryGaussian(_Request):
    """A diagonal Gaussian: its mean, and either its variance or the natural logarithm of its variance."""

    mean: Vector
    variance: Vector | None = None
    logvar: Vector | None = None

    @model_validator(mode="after")
    def _has_one_spread(self) -> Self:
        if (self.variance is None) == (self.logvar is None):
            raise ValueError("give either variance or logvar")
        return self


class SearchOptions(_Request):
    """What to return. GET /v1/index lists the upper limits."""

    top_k: Annotated[PositiveInt, Field(description="Documents to return per query.")] = 10
    exact: Annotated[
        bool,
        Field(
            description="Results must be those of an exhaustive float64 scan. Of kind flat they always are; of another "
            "kind that reads every document, a few microseconds each."
        ),
    ] = False
    candidates: Annotated[
        PositiveInt | None,
        Field(
            description="Documents that the first scan hands to exact scoring; as the index was measured if not set. "
            "More find more of the best, where the kind is not flat."
        ),
    ] = None
    nprobe: Annotated[
        PositiveInt | None,
        Field(
            description="Lists that a query looks into, where documents are in lists; as the index was measured if not "
            "set."
        ),
    ] = None
    min_score: Annotated[FiniteFloat | None, Field(description="Leave out documents that score below this.")] = None
    with_payload: Annotated[bool, Field(description="Return the documents' other columns.")] = True
    explain: Annotated[bool, Field(description="Return the parts of each document's KL divergence.")] = False


_GAUSSIAN_EXAMPLE: dict[str, JsonValue] = {"mean": [0.12, -0.4, 1.3], "variance": [0.5, 0.2, 0.9]}


class SearchRequest(QueryGaussian, SearchOptions):
    """One query."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_GAUSSIAN_EXAMPLE, "top_k": 3}]})


class BatchSearchRequest(SearchOptions):
    """Many queries with the same options."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"queries": [_GAUSSIAN_EXAMPLE], "top_k": 3}]})

    queries: Annotated[list[QueryGaussian], Field(min_length=1, fail_fast=True)]


class SimilarRequest(SearchOptions):
    """Documents like one that the index holds."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"top_k": 3}]})

    include_self: Annotated[bool, Field(description="Return the document itself too, which scores 0.")] = False


class ExplanationBody(BaseModel):
    """KL(Q||D) = log_determinant + trace + mahalanobis, in nats; the dimensions that contribute most, and how much."""

    log_determinant: float
    trace: float
    mahalanobis: float
    dimensions: list[int]
    contributions: list[float]


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


class SearchResponse(_Answer):
    """Documents in order of descending score; equal scores in order of id."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"results": [_RESULT_EXAMPLE], **_ANSWER_EXAMPLE}]})

    results: list[ResultBody]


class BatchSearchResponse(_Answer):
    """The results of each query, in the order of the queries."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"results": [[_RESULT_EXAMPLE]], **_ANSWER_EXAMPLE}]})

    results: list[list[ResultBody]]


class DocumentResponse(BaseModel):
    """A document as it is stored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": "n00002452", **_GAUSSIAN_EXAMPLE, "payload": {"text": "thing: a separate entity"}}]
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
    max_body_bytes: int
    max_timeout_ms: int
    timeout_ms: int
    queue_rows: int
    max_batch_rows: int


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
                    "reason": None,
                    "measured_recall": None,
                    "codes": None,
                    "segments": 1,
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
                        "max_body_bytes": 16777216,
                        "max_timeout_ms": 60000,
                        "timeout_ms": 10000,
                        "queue_rows": 1024,
                        "max_batch_rows": 128,
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
    reason: Annotated[str | None, Field(description="Why it is this kind, where another or none was asked for.")]
    measured_recall: MeasuredRecall | None
    codes: CodesBody | None
    segments: int
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


def gaussians_of(queries: list[QueryGaussian], k: int) -> Gaussians:
    """The queries as (b, k) Gaussians in float64.

    Raises InvalidGaussiansError naming the query and the component that is wrong, or both widths.
    """
    means = np.empty((len(queries), k))
    variances = np.empty((len(queries), k))
    for row, query in enumerate(queries):
        means[row] = _decode(query.mean, "mean", row, k)
        if query.logvar is None:
            variances[row] = _decode(query.variance or [], "variance", row, k)
        else:
            variances[row] = _exponential(_decode(query.logvar, "logvar", row, k), row)
    return Gaussians(torch.from_numpy(means), torch.from_numpy(variances))


def _decode(vector: list[float] | str, name: str, row: int, k: int) -> npt.NDArray[np.floating]:
    values: npt.NDArray[np.floating]
    if isinstance(vector, str):
        try:
            values = np.frombuffer(base64.b64decode(vector, validate=True), dtype="<f4")
        except (binascii.Error, ValueError) as error:
            raise InvalidGaussiansError(
                f"row {row}: {name} is not the base64 of little-endian float32 numbers: {error}", row=row
            ) from error
    else:
        values = np.array(vector, dtype=np.float64)
    if len(values) != k:
        raise InvalidGaussiansError(f"row {row}: {name} has {len(values)} numbers; the index holds k = {k}", row=row)
    return values


def _exponential(logvar: npt.NDArray[np.floating], row: int) -> npt.NDArray[np.floating]:
    with np.errstate(over="ignore"):
        variance = np.exp(logvar.astype(np.float64))
    bad = np.flatnonzero(~np.isfinite(variance) | (variance == 0))
    if len(bad):
        component = int(bad[0])
        raise InvalidGaussiansError(
            f"row {row}, component {component}: logvar is {float(logvar[component])!r}, and its exponential is not a "
            "number above zero that float64 holds",
            row=row,
            component=component,
        )
    return variance
