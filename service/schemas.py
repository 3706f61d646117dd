"""Bodies of requests, as OpenAPI shows them and as they are checked.

service.responses, service.index_responses and service.write_responses have those of responses.
"""

import base64
import binascii
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from index import Gaussians
from index.errors import InvalidGaussiansError
from index.filters import Filter
from index.text import Role

__all__ = [
    "GAUSSIAN_EXAMPLE",
    "BatchSearchRequest",
    "CompactRequest",
    "DeleteRequest",
    "DocumentBody",
    "EncodeRequest",
    "QueryGaussian",
    "SearchOptions",
    "SearchRequest",
    "SimilarRequest",
    "UpsertRequest",
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


Text = Annotated[
    str,
    Field(
        # One error, and one message, for a text without letters and for one of blanks.
        pattern=r"\S",
        json_schema_extra={"minLength": 1},
        description="Words in place of a Gaussian, where the service has a model.",
    ),
]


class QueryGaussian(_Request):
    """A diagonal Gaussian: its mean, and either its variance or the natural logarithm of its variance. Or a text, of
    which the service's model makes one."""

    mean: Vector | None = None
    variance: Vector | None = None
    logvar: Vector | None = None
    text: Text | None = None

    @property
    def words(self) -> str:
        """What the model is to read."""
        return self.text or ""

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        given = [name for name in ("mean", "variance", "logvar") if getattr(self, name) is not None]
        if self.text is not None and given:
            raise ValueError(f"give either text or {given[0]}")
        if self.text is None and self.mean is None:
            raise ValueError("give mean and variance, mean and logvar, or text")
        if self.text is None and (self.variance is None) == (self.logvar is None):
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
    filter: Annotated[
        dict[str, JsonValue] | None,
        Field(
            description="Find only documents whose payload it holds for: fields and their values, "
            '`{"in": [...]}` or `{"gte": ..., "lt": ...}`, and `and`, `or` and `not` around such.',
            examples=[{"year": {"gte": 1990}, "not": {"tag": {"in": ["draft", "spam"]}}}],
        ),
    ] = None
    min_score: Annotated[FiniteFloat | None, Field(description="Leave out documents that score below this.")] = None
    allow_partial: Annotated[
        bool,
        Field(
            description="Of a cluster: return what is found without the shards that have not answered in time, in "
            "place of an error. `coverage` says how many documents were there to be found."
        ),
    ] = False
    with_payload: Annotated[bool, Field(description="Return the documents' other columns.")] = True
    explain: Annotated[
        bool, Field(description="Return the parts of each document's KL divergence, and what the results rest on.")
    ] = False

    _parsed: Filter | None = PrivateAttr(None)

    def model_post_init(self, _: Any) -> None:
        """Reads the filter, so that it is refused before anything is searched."""
        self._parsed = None if self.filter is None else Filter.parse(self.filter)

    def document_filter(self) -> Filter | None:
        """The filter, read."""
        return self._parsed


GAUSSIAN_EXAMPLE: dict[str, JsonValue] = {"mean": [0.12, -0.4, 1.3], "variance": [0.5, 0.2, 0.9]}
"""A Gaussian of three dimensions, for the examples of OpenAPI."""


class SearchRequest(QueryGaussian, SearchOptions):
    """One query."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**GAUSSIAN_EXAMPLE, "top_k": 3}]})


class BatchSearchRequest(SearchOptions):
    """Many queries with the same options."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"queries": [GAUSSIAN_EXAMPLE], "top_k": 3}]})

    queries: Annotated[list[QueryGaussian], Field(min_length=1, fail_fast=True)]


class SimilarRequest(SearchOptions):
    """Documents like one that the index holds."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"top_k": 3}]})

    include_self: Annotated[bool, Field(description="Return the document itself too, which scores 0.")] = False


class EncodeRequest(_Request):
    """Texts to be made Gaussians."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["a bit of metal"], "role": "query"}]})

    texts: Annotated[list[Text], Field(min_length=1, fail_fast=True)]
    role: Annotated[Role, Field(strict=False, description="What they are in a search: query or document.")] = Role.QUERY


class DocumentBody(QueryGaussian):
    """A document to be written: its id, its Gaussian or its text, and whatever is to come back with it. The text comes
    back, too, as `text`; where the payload has a `text` of its own, that comes back in its place, and is not read. A
    `title` of the payload is read before the text, as a build does."""

    id: Annotated[str, Field(min_length=1, description="Up to 512 bytes of UTF-8.")]
    payload: Annotated[
        dict[str, JsonValue] | None,
        Field(description="Each name is a column of the index, which has one type of values."),
    ] = None

    @property
    def words(self) -> str:
        """As QueryGaussian."""
        title = (self.payload or {}).get("title")
        return f"{title} {self.text}" if isinstance(title, str) and title else self.text or ""


class UpsertRequest(_Request):
    """Documents to be written, each in place of the one with its id."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"documents": [{"id": "new", **GAUSSIAN_EXAMPLE, "payload": {"text": "a new one"}}]}]
        }
    )

    documents: Annotated[list[DocumentBody], Field(min_length=1, fail_fast=True)]


class DeleteRequest(_Request):
    """Documents to be deleted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["n00002452"]}]})

    ids: Annotated[list[str], Field(min_length=1, fail_fast=True)]


class CompactRequest(_Request):
    """How the index is compacted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"retrain": False}]})

    retrain: Annotated[
        bool, Field(description="Build the index anew of its own documents, fitted to what they have become.")
    ] = False


def gaussians_of(queries: list[QueryGaussian], k: int) -> Gaussians:
    """The queries as (b, k) Gaussians in float64.

    None of them is a text. Raises InvalidGaussiansError naming the query and the component that is wrong, or both
    widths.
    """
    means = np.empty((len(queries), k))
    variances = np.empty((len(queries), k))
    for row, query in enumerate(queries):
        means[row] = _decode(query.mean or [], "mean", row, k)
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
