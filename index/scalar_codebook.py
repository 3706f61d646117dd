"""Documents as projected vectors of 8 or 16 bits a number: what the walk of a graph scores them by.

A walk looks at some thousands of documents where a scan looks at all, and takes as long to fetch 64 bytes as 128, so it
affords more of the projection (index.projection) than the digits of index.codebook keep.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from index.codes import Codes
from index.projection import Projection
from index.projector import Projector, Vectors, padded_maps, require_ranges
from index.records import FileEntry
from index.scalar_codes import (
    Ranges,
    bytes_of,
    decode,
    find_ranges,
    no_ranges,
    read_scalar_codes,
    scalar_codes,
    write_scalar_codes,
)
from index.tensors import Form
from index.untrusted import IndexFile

__all__ = ["ScalarCodebook", "ranges_that_do"]

LOST_BY_BITS = 0.1
"""The share of the projection's own error that rounding to 8 bits may add; where it would add more, 16 are taken."""
LOST_AT_LEAST = 2e-4
"""Or of the energy: for normal numbers it is half of that, and matters to no score."""


@dataclass(frozen=True, slots=True, eq=False)
class ScalarCodebook(Projector):
    """Codes of r numbers. ranges: (2, r) for 8 bits, (0, r) for 16."""

    ranges: Ranges

    @classmethod
    def fit(cls, projection: Projection, dimensions: int, sample: Tensor, *, eight_bits: bool = False) -> Self:
        """The codebook of about so many dimensions for folded vectors like those of the sample (s, w), with 16 bits a
        number unless 8 lose little or are asked for."""
        maps = padded_maps(projection, dimensions)
        points = Projector(*maps).points(sample)
        return cls(*maps, find_ranges(points) if eight_bits else ranges_that_do(projection, dimensions, points))

    @property
    def dimensions(self) -> int:
        """r."""
        return self.projected

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return 8 if len(self.ranges) else 16

    @property
    def code_bytes(self) -> int:
        """Bytes of a code."""
        return bytes_of(self.ranges)

    def encode(self, vectors: Tensor) -> tuple[Codes, ...]:
        """The codes (n, code_bytes) of folded document vectors (n, w) float32, on any device."""
        return (scalar_codes(self.points(vectors), self.ranges),)

    def write(self, folder: Path, *codes: Codes) -> dict[str, FileEntry]:
        """Writes what `encode` gave of a segment."""
        return {"vectors.faiss": write_scalar_codes(folder / "vectors.faiss", codes[0], self.ranges)}

    def read(self, file: IndexFile, documents: int) -> Codes:
        """Reads what `write` wrote into vectors.faiss; raises CorruptIndexError for anything else."""
        return read_scalar_codes(file, documents, self.ranges)

    @classmethod
    def forms(cls) -> dict[str, Form]:
        """What each field is in a file."""
        return super(ScalarCodebook, cls).forms() | {"ranges": Form("f4", 2)}

    @classmethod
    def _of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        made = super(ScalarCodebook, cls)._of(arrays)
        require_ranges(made.ranges, made.projected)
        return made


def ranges_that_do(projection: Projection, dimensions: int, points: Vectors) -> Ranges:
    """The ranges of points (s, r) in so many dimensions of a projection; of 16 bits where 8 would lose too much."""
    ranges = find_ranges(points)
    lost = float(np.square(decode(scalar_codes(points, ranges), ranges) - points, dtype=np.float64).sum(axis=1).mean())
    left = float(projection.energies[dimensions:].sum())
    allowed = max(LOST_BY_BITS * left, LOST_AT_LEAST * float(projection.energies.sum()))
    return no_ranges(points.shape[1]) if lost > allowed else ranges
