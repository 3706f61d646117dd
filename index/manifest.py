"""What the JSON files of an index directory say, checked on reading: the manifest of a generation and of a segment.

Both refuse unknown fields, so that a file from a newer release is an error and not a half-understood index. They form
a chain: CURRENT holds the checksum of the manifest, the manifest that of each segment.json, and segment.json that of
each file of the segment.
"""

import math
from enum import StrEnum
from types import NoneType
from typing import Annotated, Final, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from index.encoding import Encoding, Standardisation

__all__ = [
    "FORMAT_VERSION",
    "CodesRecord",
    "FactoryRecord",
    "FileEntry",
    "GraphRecord",
    "IndexKind",
    "ListsRecord",
    "Manifest",
    "MeasuredRecall",
    "SegmentEntry",
    "SegmentManifest",
    "SourceRecord",
]

FORMAT_VERSION: Final = 2
"""Raised whenever an older release could misread what a newer one writes."""

Blake3 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SegmentId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}$")]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
SEGMENT_FILES = frozenset({"vectors.faiss", "gaussians.npy", "ids.arrow"})
OPTIONAL_FILES = frozenset({"payload.arrow", "projected.npy"})


class IndexKind(StrEnum):
    """How an index is scanned."""

    FLAT = "flat"
    FASTSCAN = "fastscan"
    HNSW = "hnsw"
    IVF_FASTSCAN = "ivf-fastscan"
    FAISS = "faiss"
    AUTO = "auto"
    """One of the others, as the build decides: of no index that is there."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Strict):
    """Size and checksum of one file."""

    bytes: NonNegativeInt
    blake3: Blake3


class SegmentManifest(_Strict):
    """segment.json: what one segment holds. `max_norm` is the largest L2 norm of its document vectors.

    `codebook` is the checksum of the codebook whose codes vectors.faiss holds; without one it holds the vectors.
    """

    format_version: Literal[2]
    id: SegmentId
    documents: PositiveInt
    k: PositiveInt
    encoding: Annotated[Encoding, Field(strict=False)]
    max_norm: FiniteFloat
    codebook: Blake3 | None = None
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _files_are_known(self) -> Self:
        if set(self.files) - OPTIONAL_FILES != SEGMENT_FILES:
            raise ValueError(f"files must be {sorted(SEGMENT_FILES)}, and may be {sorted(OPTIONAL_FILES)}")
        return self


class SegmentEntry(_Strict):
    """A segment as its index refers to it; `blake3` is that of its segment.json, `bytes` the sum of its files."""

    id: SegmentId
    documents: PositiveInt
    bytes: PositiveInt
    blake3: Blake3


class StandardisationRecord(_Strict):
    """Shift and scale per latent dimension; see index.encoding."""

    shift: list[FiniteFloat]
    scale: list[Annotated[FiniteFloat, Field(gt=0)]]

    @classmethod
    def of(cls, standardisation: Standardisation) -> Self:
        """The record of a standardisation; JSON keeps every bit of a float64."""
        return cls(shift=standardisation.shift.tolist(), scale=standardisation.scale.tolist())

    def restore(self) -> Standardisation:
        """The standardisation that was recorded."""
        return Standardisation(
            torch.tensor(self.shift, dtype=torch.float64), torch.tensor(self.scale, dtype=torch.float64)
        )


class SourceRecord(_Strict):
    """What the index was built from.

    `corpus` is the digest of the files' content and of how it is read, `plan` stands for that and the build's settings,
    `rejected` counts the rows that were left out.
    """

    corpus: Blake3
    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    files: list[str]
    rejected: NonNegativeInt


class GraphRecord(_Strict):
    """The graph over an index's documents, in the order of its segments.

    `name` is that of its file in structures/. `links` and `construction` are what it was built with (M and
    efConstruction of HNSW).
    """

    name: Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.faiss$")]
    file: FileEntry
    links: PositiveInt
    construction: PositiveInt


Pairs = Annotated[list[Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]], Field(min_length=1)]


class ListsRecord(_Strict):
    """The lists that an index's documents are in, in the order of its segments.

    `name` is that of their file in structures/, `lists` how many there are. `nprobe` pairs a top_k with how many of
    them a query looks into, both ascending.
    """

    name: Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.safetensors$")]
    file: FileEntry
    lists: PositiveInt
    nprobe: Pairs


class FactoryRecord(_Strict):
    """What FAISS made the index of each segment of: a string of its factory, how many lists that has, if any, and pairs
    of a top_k and how many of them are looked into."""

    factory: str
    lists: PositiveInt | None
    nprobe: Pairs | None


class CodesRecord(_Strict):
    """What the codes of an index are scanned with.

    `codebook` is the name of its file in codebooks/, `dimensions` how many projected ones a code says something about.
    `candidates` pairs a top_k with how many documents are scored exactly for it, both ascending. `breadth` is how many
    more a scan finds, of which they are chosen by their projected vectors, or how much broader than they are many a
    walk is (efSearch). With a `graph`, codes are not scanned but met on a walk; with `lists`, those of some lists are
    scanned.
    """

    codebook: Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.safetensors$")]
    file: FileEntry
    code_bytes: PositiveInt
    dimensions: PositiveInt
    candidates: Pairs
    breadth: Annotated[FiniteFloat, Field(ge=1)]
    graph: GraphRecord | None = None
    lists: ListsRecord | None = None
    factory: FactoryRecord | None = None

    @property
    def list_count(self) -> int | None:
        """How many lists there are to look into; None where there are none."""
        return (self.lists or self.factory or _NO_LISTS).lists

    def nprobe_for(self, top_k: int) -> int | None:
        """How many lists a search for top_k documents looks into; None where there are none."""
        its = self.lists or self.factory or _NO_LISTS
        if its.nprobe is None or its.lists is None:
            return None
        # Beyond what was measured as it grew there: twice as many documents are by far not in twice as many lists.
        (first, least), (last, most) = its.nprobe[0], its.nprobe[-1]
        power = math.log(most / least) / math.log(last / first) if last > first else 0.0
        beyond = math.ceil(most * max(1.0, top_k / last) ** power)
        return min(its.lists, beyond if top_k >= last else _between(its.nprobe, top_k))

    def candidates_for(self, top_k: int) -> int:
        """How many candidates a search for top_k documents takes."""
        return max(top_k, _between(self.candidates, top_k))

    @property
    def structure(self) -> GraphRecord | ListsRecord | None:
        """What makes it unnecessary to look at all documents, if anything does."""
        return self.graph or self.lists


_NO_LISTS = FactoryRecord(factory="", lists=None, nprobe=None)


def _between(pairs: list[list[int]], top_k: int) -> int:
    """What goes with top_k: as measured, geometrically in between, in proportion beyond."""
    (first, least), (last, most) = pairs[0], pairs[-1]
    if top_k <= first:
        return least
    if top_k >= last:
        return math.ceil(most * top_k / last)
    measured, values = zip(*pairs, strict=True)
    power = np.interp(math.log(top_k), np.log(measured), np.log(values))
    # Not one more for a rounding.
    return math.ceil(math.exp(power) * (1 - 1e-9))


class MeasuredRecall(_Strict):
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


class Manifest(_Strict):
    """manifests/NNNNNNNN.json: one generation of an index, immutable once published.

    `codes` and `measured_recall` are there where the kind's scan is approximate. `reason` says why it is this kind,
    where another or none was asked for.
    """

    format_version: Literal[2]
    generation: PositiveInt
    created_at: str
    created_by: str
    k: PositiveInt
    encoding: Annotated[Encoding, Field(strict=False)]
    kind: Annotated[IndexKind, Field(strict=False)]
    reason: str | None = None
    standardisation: StandardisationRecord
    documents: PositiveInt
    segments: Annotated[list[SegmentEntry], Field(min_length=1)]
    deletes: Annotated[list[str], Field(max_length=0)] = []
    codes: CodesRecord | None = None
    measured_recall: MeasuredRecall | None = None
    source: SourceRecord

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(self.standardisation.shift) != self.k or len(self.standardisation.scale) != self.k:
            raise ValueError(f"standardisation must have {self.k} shifts and scales")
        if sum(segment.documents for segment in self.segments) != self.documents:
            raise ValueError("documents is not the sum over segments")
        if len({segment.id for segment in self.segments}) != len(self.segments):
            raise ValueError("a segment is listed twice")
        if ((self.kind is IndexKind.FLAT) != (self.codes is None)) or (
            (self.codes is None) != (self.measured_recall is None)
        ):
            raise ValueError(f"kind is {self.kind}, which does not go with its codes and measured_recall")
        if self.kind is IndexKind.AUTO:
            raise ValueError("kind must be that of an index, not auto")
        structure = self.codes.structure if self.codes is not None else None
        needed = {IndexKind.HNSW: GraphRecord, IndexKind.IVF_FASTSCAN: ListsRecord}.get(self.kind, NoneType)
        if not isinstance(structure, needed):
            raise ValueError(f"kind is {self.kind}, which does not go with its codes' graph or lists")
        if (self.kind is IndexKind.FAISS) != (self.codes is not None and self.codes.factory is not None):
            raise ValueError(f"kind is {self.kind}, which does not go with its codes' factory")
        return self
