"""Documents as projected vectors of 8 or 16 bits a number: what the walk of a graph scores them by.

A walk looks at some thousands of documents where a scan looks at all, and takes as long to fetch 64 bytes as 128, so it
affords more of the projection (index.projection) than the digits of index.codebook keep.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from index.codes import Codes
from index.manifest import FileEntry
from index.projection import Projection
from index.scalar_codes import (
    Ranges,
    decode,
    find_ranges,
    no_ranges,
    read_scalar_codes,
    scalar_codes,
    write_scalar_codes,
)

__all__ = ["STEP", "ScalarCodebook", "Vectors"]

Vectors = npt.NDArray[np.float32]

STEP = 16
"""FAISS takes as many numbers at a time; of other widths it takes six times as long for the same."""
LOST_BY_BITS = 0.1
"""The share of the projection's own error that rounding to 8 bits may add; where it would add more, 16 are taken."""
LOST_AT_LEAST = 2e-4
"""Or of the energy: for normal numbers it is half of that, and matters to no score."""


@dataclass(frozen=True, slots=True, eq=False)
class ScalarCodebook:
    """Codes of r numbers, a multiple of STEP, for folded vectors of w = 2k+1.

    center: (w,). documents, queries: (w, r), zero where there are no more dimensions. ranges: (2, r) for 8 bits, (0, r)
    for 16. Floats are float32, and those of `queries` float64, as in index.codebook.
    """

    center: Vectors
    documents: Vectors
    queries: npt.NDArray[np.float64]
    ranges: Ranges

    @classmethod
    def fit(cls, projection: Projection, dimensions: int, sample: Tensor, *, eight_bits: bool = False) -> Self:
        """The codebook of about so many dimensions for folded vectors like those of the sample (s, w), with 16 bits a
        number unless 8 lose little or are asked for."""
        kept = min(dimensions, projection.dimensions)
        used = projection.truncated(kept)
        padding = ((0, 0), (0, -kept % STEP))
        documents = np.ascontiguousarray(np.pad(used.documents.numpy(), padding), dtype=np.float32)
        queries = np.ascontiguousarray(np.pad(used.queries.numpy(), padding))
        unrounded = cls(used.center.numpy().astype(np.float32), documents, queries, no_ranges(documents.shape[1]))
        points = unrounded.points(sample)
        ranges = find_ranges(points)
        lost = float(
            np.square(decode(scalar_codes(points, ranges), ranges) - points, dtype=np.float64).sum(axis=1).mean()
        )
        left = float(projection.energies[kept:].sum())
        allowed = max(LOST_BY_BITS * left, LOST_AT_LEAST * float(projection.energies.sum()))
        return unrounded if lost > allowed and not eight_bits else cls(unrounded.center, documents, queries, ranges)

    @property
    def width(self) -> int:
        """w."""
        return len(self.center)

    @property
    def dimensions(self) -> int:
        """r."""
        return int(self.documents.shape[1])

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return 8 if len(self.ranges) else 16

    @property
    def code_bytes(self) -> int:
        """Bytes of a code."""
        return self.dimensions * self.bits // 8

    def points(self, vectors: Tensor) -> Vectors:
        """Folded document vectors (n, w) float32, on any device, centred and projected: (n, r)."""
        device = vectors.device
        center, documents = torch.from_numpy(self.center).to(device), torch.from_numpy(self.documents).to(device)
        points: Vectors = ((vectors - center) @ documents).cpu().numpy()
        return points

    def encode(self, vectors: Tensor) -> tuple[Codes, ...]:
        """The codes (n, code_bytes) of folded document vectors (n, w) float32, on any device."""
        return (scalar_codes(self.points(vectors), self.ranges),)

    def weigh(self, vectors: npt.NDArray[np.float64]) -> Vectors:
        """Folded query vectors (b, w), projected: (b, r), infinite where float32 cannot hold them."""
        # By torch, which can be kept to one core: NumPy's threads go on spinning on the others for a while.
        projected = torch.from_numpy(vectors) @ torch.from_numpy(self.queries)
        return projected.float().numpy()

    def write(self, folder: Path, *codes: Codes) -> dict[str, FileEntry]:
        """Writes what `encode` gave of a segment."""
        return {"vectors.faiss": write_scalar_codes(folder / "vectors.faiss", codes[0], self.ranges)}

    def read(self, folder: Path, documents: int) -> Codes:
        """Reads what `write` wrote; raises CorruptIndexError for anything else."""
        return read_scalar_codes(folder / "vectors.faiss", documents, self.ranges)

    def to_bytes(self) -> bytes:
        """The codebook as a safetensors file."""
        names = ("center", "documents", "queries", "ranges")
        return bytes(safetensors.numpy.save({name: getattr(self, name) for name in names}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` made; ValueError for anything else."""
        try:
            return cls(**safetensors.numpy.load(data))
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"not a codebook: {error}") from error
