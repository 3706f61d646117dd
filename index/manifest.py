"""What the JSON files of an index directory say, checked on reading: the manifest of a generation and of a segment.

Both refuse unknown fields, so that a file from a newer release is an error and not a half-understood index. They form
a chain: CURRENT holds the checksum of the manifest, the manifest that of each segment.json, and segment.json that of
each file of the segment.
"""

from typing import Annotated, Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from index.encoding import Encoding, Standardisation

__all__ = ["FORMAT_VERSION", "FileEntry", "Manifest", "SegmentEntry", "SegmentManifest", "SourceRecord"]

FORMAT_VERSION: Final = 1
"""Raised whenever an older release could misread what a newer one writes."""

Blake3 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SegmentId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}$")]
SEGMENT_FILES = frozenset({"vectors.faiss", "gaussians.npy", "ids.arrow", "payload.arrow"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Strict):
    """Size and checksum of one file."""

    bytes: NonNegativeInt
    blake3: Blake3


class SegmentManifest(_Strict):
    """segment.json: what one segment holds. `max_norm` is the largest L2 norm of its document vectors."""

    format_version: Literal[1]
    id: SegmentId
    documents: PositiveInt
    k: PositiveInt
    encoding: Annotated[Encoding, Field(strict=False)]
    max_norm: FiniteFloat
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _files_are_known(self) -> Self:
        if set(self.files) not in (SEGMENT_FILES, SEGMENT_FILES - {"payload.arrow"}):
            raise ValueError(f"files must be {sorted(SEGMENT_FILES)} (payload.arrow is optional)")
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


class Manifest(_Strict):
    """manifests/NNNNNNNN.json: one generation of an index, immutable once published."""

    format_version: Literal[1]
    generation: PositiveInt
    created_at: str
    created_by: str
    k: PositiveInt
    encoding: Annotated[Encoding, Field(strict=False)]
    kind: Literal["flat"]
    standardisation: StandardisationRecord
    documents: PositiveInt
    segments: Annotated[list[SegmentEntry], Field(min_length=1)]
    deletes: Annotated[list[str], Field(max_length=0)] = []
    measured_recall: None = None
    source: SourceRecord

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(self.standardisation.shift) != self.k or len(self.standardisation.scale) != self.k:
            raise ValueError(f"standardisation must have {self.k} shifts and scales")
        if sum(segment.documents for segment in self.segments) != self.documents:
            raise ValueError("documents is not the sum over segments")
        if len({segment.id for segment in self.segments}) != len(self.segments):
            raise ValueError("a segment is listed twice")
        return self
