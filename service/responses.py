"""Bodies of responses to searches, and of errors, as OpenAPI shows them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeFloat

from index.records import ModelRecord
from service.schemas import GAUSSIAN_EXAMPLE

__all__ = [
    "ANSWER_EXAMPLE",
    "Answer",
    "BatchSearchResponse",
    "DocumentResponse",
    "EncodeResponse",
    "ProblemResponse",
    "SearchResponse",
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


class Answer(BaseModel):
    """Of what every answer tells: the time that it took, and which index it is of."""

    took_ms: NonNegativeFloat
    index: ServedIndex


_RESULT_EXAMPLE: dict[str, JsonValue] = {
    "id": "n00002452",
    "score": -16.45,
    "payload": {"text": "thing: a separate entity"},
}


ANSWER_EXAMPLE: dict[str, JsonValue] = {"took_ms": 2.1, "index": {"name": "wordnet", "generation": 1}}


class UncertaintyBody(BaseModel):
    """How uncertain the model is of a query in words: the sum of the logarithms of its variances, and their mean."""

    log_determinant: float
    mean_variance: float


class CoverageBody(BaseModel):
    """How many documents there were to be found, of how many: fewer where a shard did not answer in time."""

    documents: int
    of: int


class SearchResponse(Answer):
    """Documents in order of descending score; equal scores in order of id."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"results": [_RESULT_EXAMPLE], **ANSWER_EXAMPLE}]})

    results: list[ResultBody]
    matched: Annotated[int | None, Field(description="Documents that the filter let through, if there is one.")] = None
    coverage: Annotated[CoverageBody | None, Field(description="With `allow_partial`.")] = None
    uncertainty: Annotated[UncertaintyBody | None, Field(description="Of a query in words.")] = None
    search: Annotated[EvidenceBody | None, Field(description="With `explain`: what the results rest on.")] = None


class BatchSearchResponse(Answer):
    """The results of each query, in the order of the queries."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"results": [[_RESULT_EXAMPLE]], **ANSWER_EXAMPLE}]})

    results: list[list[ResultBody]]
    matched: Annotated[int | None, Field(description="Documents that the filter let through, if there is one.")] = None
    coverage: Annotated[CoverageBody | None, Field(description="With `allow_partial`.")] = None
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
