"""Documents as strings of 4-bit digits and as projected vectors, and queries as what to weigh these by.

A codebook is a projection (index.projection), the dimensions that each digit codes (index.allocation), what the values
of each digit stand for, and the ranges of the projected numbers (index.scalar_codes). It is fitted on a sample of the
corpus, once per index: segments that share it can be scanned as one.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from index.allocation import GROUP, Allocation
from index.codes import (
    Centroids,
    Codes,
    nearest_digits,
    quantiser_levels,
    read_codes,
    train_centroids,
    write_codes,
)
from index.manifest import FileEntry
from index.projection import Projection
from index.projector import Projector, Vectors, padded_maps
from index.scalar_codebook import ranges_that_do
from index.scalar_codes import Ranges, bytes_of, scalar_codes
from index.segments import map_array, write_array

__all__ = ["Codebook"]

SEED = 2023


@dataclass(frozen=True, slots=True, eq=False)
class Codebook(Projector):
    """Codes of M digits, and projected vectors of r numbers.

    ranges: those of the numbers (index.scalar_codes). places: (M * GROUP,) int64, the projected dimension at each place
    of a point, r where there is none. double: how many digits have a second one, which codes what the first leaves:
    digit i's is digit double + i. centroids: (M, 16, GROUP) float32.
    """

    ranges: Ranges
    places: npt.NDArray[np.int64]
    double: int
    centroids: Centroids

    @classmethod
    def fit(cls, projection: Projection, digits: int, dimensions: int, sample: Tensor) -> Self:
        """The codebook of `digits` digits, an even number, and projected vectors of about so many dimensions and no
        fewer than have digits, for folded vectors like those of the sample (s, w)."""
        allocation = Allocation.best(projection.energies.numpy(), digits)
        groups = allocation.groups(projection.dimensions)
        groups += [[]] * (digits - len(groups))
        dimensions = max(dimensions, max((dimension for group in groups for dimension in group), default=0) + 1)
        maps = padded_maps(projection, dimensions)
        points = Projector(*maps).points(sample)
        r = points.shape[1]
        places = np.array([[*group, *[r] * (GROUP - len(group))] for group in groups], dtype=np.int64).ravel()
        ranges = ranges_that_do(projection, dimensions, points)
        codebook = cls(*maps, ranges, places, allocation.double, np.zeros((digits, 16, GROUP), dtype=np.float32))
        codebook._train(codebook.laid_out(points))
        return codebook

    @property
    def code_bytes(self) -> int:
        """Bytes of a code: M/2."""
        return len(self.centroids) // 2

    @property
    def dimensions(self) -> int:
        """The projected dimensions that any digit codes."""
        return int(self.places[self.places < self.projected].max(initial=0)) + 1

    def encode(self, vectors: Tensor) -> tuple[Codes, ...]:
        """The codes (n, M/2) of folded document vectors (n, w) float32, on any device, and the projected vectors'."""
        projected = self.points(vectors)
        points = self.laid_out(projected)
        _leave_rest(points, self.centroids, self.double)
        return nearest_digits(points, self.centroids), scalar_codes(projected, self.ranges)

    def laid_out(self, projected: Vectors) -> Vectors:
        """Projected vectors (n, r), of documents or queries, laid out for a scan: (n, M * GROUP)."""
        padded = np.zeros((len(projected), self.projected + 1), dtype=np.float32)
        padded[:, :-1] = projected
        return np.take(padded, self.places, axis=1)

    def write(self, folder: Path, *codes: Codes) -> dict[str, FileEntry]:
        """Writes what `encode` gave of a segment."""
        digits, projected = codes
        return {
            "vectors.faiss": write_codes(folder / "vectors.faiss", digits, self.centroids),
            "projected.npy": write_array(folder / "projected.npy", projected),
        }

    def read(self, folder: Path, documents: int) -> Codes:
        """Reads the digits that `write` wrote; raises CorruptIndexError for anything else."""
        return read_codes(folder / "vectors.faiss", documents, self.centroids)

    def map_projected(self, folder: Path, documents: int) -> Codes:
        """Maps the projected vectors that `write` wrote; raises CorruptIndexError for anything else."""
        return map_array(folder / "projected.npy", np.dtype(np.uint8), documents, bytes_of(self.ranges))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` made; ValueError for anything else."""
        made = super(Codebook, cls).from_bytes(data)
        # A number comes back as an array of one.
        return dataclasses.replace(made, double=int(np.asarray(made.double).item()))

    def _train(self, points: Vectors) -> None:
        """Sets the centroids by points (s, M * GROUP) of a sample, which are changed."""
        several = self.places.reshape(-1, GROUP)[:, 1] < self.projected
        for digit in np.flatnonzero(~several).tolist():
            if digit == self.double:
                # The first digits are trained: the second ones code what they leave.
                _leave_rest(points, self.centroids, self.double)
            self.centroids[digit, :, 0] = quantiser_levels(points[:, digit * GROUP])
        if several.any():
            shared = points.reshape(len(points), -1, GROUP)[:, several]
            self.centroids[several] = train_centroids(shared.reshape(len(points), -1), SEED)


def _leave_rest(points: Vectors, centroids: Centroids, double: int) -> None:
    """Subtracts from the places of the second digits, in place, what the first ones say."""
    for digit in range(double):
        levels = centroids[digit, :, 0]
        value = points[:, digit * GROUP]
        said = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, value)]
        points[:, (double + digit) * GROUP] = value - said
