"""What the manifest of a generation says, checked on reading.

Unknown fields are refused, so that a file from a newer release is an error and not a half-understood index. Files form
a chain: CURRENT holds the checksum of the manifest, the manifest that of each segment.json (index.segment_records), and
segment.json that of each file of the segment.
"""

import datetime
from enum import StrEnum
from types import NoneType
from typing import Annotated, Final, Literal, Self

import torch
from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from index.codes_record import CodesRecord, GraphRecord, ListsRecord
from index.encoding import Encoding
from index.gaussians import MAX_DIMENSIONS
from index.records import Blake3, Digest, Dimensions, ModelRecord, NonNegativeInt, PositiveInt, Share, Strict
from index.segment_records import SegmentEntry
from index.standardisation import Standardisation

__all__ = [
    "FORMAT_VERSION",
    "AppliedRequest",
    "BuildSettings",
    "DriftRecord",
    "IndexKind",
    "Manifest",
    "MeasuredRecall",
    "SourceRecord",
]

FORMAT_VERSION: Final = 3
"""Raised whenever an older release could misread what a newer one writes."""

MOST_NUMBERS: Final = 16
"""Bytes of a codebook per number of a matrix from folded vectors to as many dimensions: it has one in float32, one in
float64 and little else."""
LITTLE_ELSE: Final = 1 << 20

# Of Gaussians that float32 holds, so that squares and quotients of them fit into float64.
Shift = Annotated[FiniteFloat, Field(ge=-1e39, le=1e39)]
Scale = Annotated[FiniteFloat, Field(ge=1e-24, le=1e39)]


class IndexKind(StrEnum):
    """How an index is scanned."""

    FLAT = "flat"
    FASTSCAN = "fastscan"
    HNSW = "hnsw"
    IVF_FASTSCAN = "ivf-fastscan"
    FAISS = "faiss"
    AUTO = "auto"
    """One of the others, as the build decides: of no index that is there."""


class StandardisationRecord(Strict):
    """Shift and scale per latent dimension; see index.standardisation."""

    shift: Annotated[list[Shift], Field(max_length=MAX_DIMENSIONS, fail_fast=True)]
    scale: Annotated[list[Scale], Field(max_length=MAX_DIMENSIONS, fail_fast=True)]

    @classmethod
    def of(cls, standardisation: Standardisation) -> Self:
        """The record of a standardisation; JSON keeps every bit of a float64."""
        return cls(shift=standardisation.shift.tolist(), scale=standardisation.scale.tolist())

    def restore(self) -> Standardisation:
        """The standardisation that was recorded."""
        return Standardisation(
            torch.tensor(self.shift, dtype=torch.float64), torch.tensor(self.scale, dtype=torch.float64)
        )


class BuildSettings(Strict):
    """What an index was asked to be, for whoever builds it anew: index.build_options says what each is. `model` is the
    one whose Gaussians it holds, where they are of texts."""

    encoding: Annotated[Encoding, Field(strict=False)]
    kind: Annotated[IndexKind, Field(strict=False)]
    segment_docs: PositiveInt
    # Of approximate kinds alone.
    target_recall: Share | None = None
    recall_at: PositiveInt | None = None
    code_bytes: PositiveInt | None = None
    candidates: PositiveInt | None = None
    hnsw_m: PositiveInt | None = None
    hnsw_ef_construction: PositiveInt | None = None
    lists: PositiveInt | None = None
    nprobe: PositiveInt | None = None
    factory: str | None = None
    # Of texts alone.
    model: ModelRecord | None = None


class SourceRecord(Strict):
    """What the index was built from.

    `corpus` is the digest of the files' content and of how it is read, `plan` stands for that and the build's settings,
    `rejected` counts the rows that were left out.
    """

    corpus: Blake3
    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    files: Annotated[list[str], Field(fail_fast=True)]
    rejected: NonNegativeInt


class MeasuredRecall(Strict):
    """The share of the true `at` best documents that a search found, over queries that the index was not fitted on
    (documents, in a corpus of fewer than some two thousand, that it was).

    `low` and `high` bound the expected recall with 95% confidence. `source` says what the queries were: `queries` that
    were given, or the Gaussians of the index's own `documents`, without the document itself. `target` is what was asked
    for.
    """

    at: PositiveInt
    recall: Share
    low: Share
    high: Share
    queries: PositiveInt
    source: Literal["queries", "documents"]
    candidates: PositiveInt
    target: Share


def _with_zone(value: str) -> str:
    if datetime.datetime.fromisoformat(value).tzinfo is None:
        raise ValueError("a time needs a time zone")
    return value


class DriftRecord(Strict):
    """What has become of what the build measured: the recall of `queries` of the newest documents, when `documents`
    had been written since the build, with its 95% interval; and whether, and why, the index is to be built anew.

    Of kind flat, whose recall is 1, it is the share of these queries whose results the first scan proves.
    """

    at: PositiveInt
    recall: Share
    low: Share
    high: Share
    queries: PositiveInt
    documents: PositiveInt
    due: str | None


class AppliedRequest(Strict):
    """A write that came with an Idempotency-Key and is part of this index: digests of its key and of what it asked
    for, the generation that it came in with, and what was answered."""

    key: Digest
    request: Digest
    generation: PositiveInt
    answer: dict[str, int]


class Manifest(Strict):
    """manifests/NNNNNNNN.json: one generation of an index, immutable once published.

    `codes` and `measured_recall` are there where the kind's scan is approximate. `reason` says why it is this kind,
    where another or none was asked for. `changes` counts the generations since the build whose documents were written
    or deleted, `written` the documents, `drift` is what was last measured of these. `restores` is the generation that
    this one is a copy of, where it was rolled back to.
    """

    format_version: Literal[3]
    generation: PositiveInt
    created_at: Annotated[str, AfterValidator(_with_zone)]
    created_by: str
    k: Dimensions
    encoding: Annotated[Encoding, Field(strict=False)]
    kind: Annotated[IndexKind, Field(strict=False)]
    reason: str | None = None
    standardisation: StandardisationRecord
    documents: NonNegativeInt
    segments: Annotated[list[SegmentEntry], Field(min_length=1, fail_fast=True)]
    codes: CodesRecord | None = None
    measured_recall: MeasuredRecall | None = None
    source: SourceRecord
    settings: BuildSettings
    changes: NonNegativeInt = 0
    written: NonNegativeInt = 0
    drift: DriftRecord | None = None
    applied: list[AppliedRequest] = Field(default_factory=list)
    restores: PositiveInt | None = None

    @property
    def structure(self) -> GraphRecord | ListsRecord | None:
        """The graph over documents, or the lists that they are in, if there is one."""
        return self.codes.structure if self.codes is not None else None

    @property
    def covered(self) -> int:
        """How many segments, the first ones, the graph or lists are of."""
        return self.structure.segments if self.structure is not None else 0

    @property
    def model(self) -> ModelRecord | None:
        """The model that made its Gaussians of texts, where that is known."""
        return self.settings.model

    @property
    def had_queries(self) -> bool:
        """Whether it was fitted to queries that were given, and measured with them."""
        return self.measured_recall is not None and self.measured_recall.source == "queries"

    @property
    def state(self) -> object:
        """What differs where its documents are others than those of the generation before it."""
        return self.source.plan, self.changes, self.restores

    @property
    def created(self) -> datetime.datetime:
        """When it was made."""
        return datetime.datetime.fromisoformat(self.created_at)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(self.standardisation.shift) != self.k or len(self.standardisation.scale) != self.k:
            raise ValueError(f"standardisation must have {self.k} shifts and scales")
        if sum(segment.live for segment in self.segments) != self.documents:
            raise ValueError("documents is not the sum over segments")
        if len({segment.id for segment in self.segments}) != len(self.segments):
            raise ValueError("a segment is listed twice")
        if any(segment.live < 0 for segment in self.segments):
            raise ValueError("more rows of a segment are deleted than it has")
        if ((self.kind is IndexKind.FLAT) != (self.codes is None)) or (
            (self.codes is None) != (self.measured_recall is None)
        ):
            raise ValueError(f"kind is {self.kind}, which does not go with its codes and measured_recall")
        if self.kind is IndexKind.AUTO:
            raise ValueError("kind must be that of an index, not auto")
        needed = {IndexKind.HNSW: GraphRecord, IndexKind.IVF_FASTSCAN: ListsRecord}.get(self.kind, NoneType)
        if self.covered > len(self.segments):
            raise ValueError("its graph or lists are of more segments than there are")
        if not isinstance(self.structure, needed):
            raise ValueError(f"kind is {self.kind}, which does not go with its codes' graph or lists")
        if (self.kind is IndexKind.FAISS) != (self.codes is not None and self.codes.factory is not None):
            raise ValueError(f"kind is {self.kind}, which does not go with its codes' factory")
        return self

    @model_validator(mode="after")
    def _is_of_its_model(self) -> Self:
        if self.model is not None and self.model.k != self.k:
            raise ValueError(f"its model makes Gaussians of {self.model.k} dimensions, and it has {self.k}")
        return self

    @model_validator(mode="after")
    def _sizes_are_possible(self) -> Self:
        if any(segment.bytes < 8 * self.k * segment.documents for segment in self.segments):
            raise ValueError("a segment has fewer bytes than its documents take")
        if self.codes is None:
            return self
        if self.codes.file.bytes > self._most_codebook_bytes():
            raise ValueError(f"a codebook of k={self.k} has at most {self._most_codebook_bytes()} bytes")
        if self.codes.code_bytes * self.documents > sum(segment.bytes for segment in self.segments):
            raise ValueError("segments have fewer bytes than their codes take")
        return self

    def _most_codebook_bytes(self) -> int:
        width = Encoding.FOLDED.width(self.k)
        # One of kind faiss also has what every segment has of what FAISS was trained to.
        trained = max(segment.bytes for segment in self.segments) if self.kind is IndexKind.FAISS else 0
        return MOST_NUMBERS * width * (width + 16) + LITTLE_ELSE + trained
