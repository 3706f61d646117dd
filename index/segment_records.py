"""What an index says of a segment: segment.json, the entry for it in a manifest, and the record of its deleted rows."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from index.encoding import Encoding
from index.records import Blake3, Dimensions, FileEntry, PositiveInt, SegmentId, Strict

__all__ = ["DeletesRecord", "SegmentEntry", "SegmentManifest"]

SEGMENT_FILES = frozenset({"vectors.faiss", "gaussians.npy", "ids.arrow"})
OPTIONAL_FILES = frozenset({"payload.arrow", "projected.npy"})


class SegmentManifest(Strict):
    """segment.json: what one segment holds. `max_norm` is the largest L2 norm of its document vectors.

    `codebook` is the checksum of the codebook whose codes vectors.faiss holds; without one it holds the vectors.
    """

    format_version: Literal[3]
    id: SegmentId
    documents: PositiveInt
    k: Dimensions
    encoding: Annotated[Encoding, Field(strict=False)]
    max_norm: Annotated[FiniteFloat, Field(ge=0)]
    codebook: Blake3 | None = None
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _files_are_known(self) -> Self:
        if set(self.files) - OPTIONAL_FILES != SEGMENT_FILES:
            raise ValueError(f"files must be {sorted(SEGMENT_FILES)}, and may be {sorted(OPTIONAL_FILES)}")
        return self

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(file.bytes for file in self.files.values())

    def entry(self, blake3: str) -> "SegmentEntry":
        """How an index refers to it; `blake3` is the checksum of segment.json."""
        return SegmentEntry(id=self.id, documents=self.documents, bytes=self.size, blake3=blake3)


class DeletesRecord(Strict):
    """The rows of a segment that are no documents any more: `name` is that of their file in deletes/."""

    name: Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}-[0-9]{8}\.npy$")]
    file: FileEntry
    rows: PositiveInt


class SegmentEntry(Strict):
    """A segment as its index refers to it; `blake3` is that of its segment.json, `bytes` the sum of its files.

    `documents` counts its rows, of which those that `deletes` lists are gone.
    """

    id: SegmentId
    documents: PositiveInt
    bytes: PositiveInt
    blake3: Blake3
    deletes: DeletesRecord | None = None

    @property
    def live(self) -> int:
        """How many documents there are."""
        return self.documents - (self.deletes.rows if self.deletes is not None else 0)
