"""Documents as strings of 4-bit digits and as projected vectors, and queries as what to weigh these by.

A codebook is a projection (index.projection), the dimensions that each digit codes (index.allocation), what the values
of each digit stand for, and the ranges of the projected numbers (index.scalar_codes). It is fitted on a sample of the
corpus, once per index: segments that share it can be scanned as one.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from index.allocation import GROUP, Allocation
from index.array_files import map_array, write_array
from index.codes import (
    LEVELS,
    Centroids,
    Codes,
    nearest_digits,
    quantiser_levels,
    read_codes,
    train_centroids,
    write_codes,
)
from index.projection import Projection
from index.projector import Projector, Vectors, padded_maps, require_ranges
from index.records import FileEntry
from index.scalar_codebook import ranges_that_do
from index.scalar_codes import Ranges, bytes_of, scalar_codes
from index.tensors import Form
from index.untrusted import IndexFile

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

    def read(self, file: IndexFile, documents: int) -> Codes:
        """Reads the digits that `write` wrote into vectors.faiss; raises CorruptIndexError for anything else."""
        return read_codes(file, documents, self.centroids)

    def map_projected(self, file: IndexFile, documents: int) -> Codes:
        """Maps the projected vectors that `write` wrote into projected.npy; raises CorruptIndexError for anything
        else."""
        return map_array(file, np.dtype(np.uint8), documents, bytes_of(self.ranges))

    @classmethod
    def forms(cls) -> dict[str, Form]:
        """What each field is in a file."""
        its = {"ranges": Form("f4", 2), "places": Form("i8", 1), "double": Form("i8", 1), "centroids": Form("f4", 3)}
        return super(Codebook, cls).forms() | its

    @classmethod
    def _of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        made = super(Codebook, cls)._of(arrays)
        # A number comes back as an array of one.
        made = dataclasses.replace(made, double=int(np.asarray(made.double).item()))
        digits = len(made.centroids)
        if made.centroids.shape[1:] != (LEVELS, GROUP) or digits == 0 or digits % 2:
            raise ValueError(f"centroids {made.centroids.shape} are not those of 4-bit digits, two to a byte")
        if made.places.shape != (digits * GROUP,) or made.places.min() < 0 or made.places.max() > made.projected:
            raise ValueError(f"places are not those of {digits} digits in {made.projected} dimensions")
        if not 0 <= 2 * made.double <= digits:
            raise ValueError(f"double is {made.double}, of {digits} digits")
        require_ranges(made.ranges, made.projected)
        return made

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
