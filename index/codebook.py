"""Documents as strings of 4-bit digits and as projected vectors, and queries as what to weigh these by.

A codebook is a projection (index.projection), the dimensions that each digit codes (index.allocation), what the values
of each digit stand for, and the ranges of the projected numbers (index.scalar_codes). It is fitted on a sample of the
corpus, once per index: segments that share it can be scanned as one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError
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
from index.scalar_codebook import ScalarCodebook
from index.scalar_codes import Ranges, scalar_codes
from index.segments import map_array, write_array

__all__ = ["Codebook"]

SEED = 2023

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Codes of M digits for folded vectors of w = 2k+1 numbers, by way of r projected ones.

    center: (w,). documents, queries: (w, r), zero where there are no more dimensions. ranges: (2, r), or (0, r) where
    numbers have 16 bits. places: (M * GROUP,) int64, the projected dimension at each place of a point, r where there is
    none. double: how many digits have a second one, which codes what the first leaves: digit
    i's is digit double + i. centroids: (M, 16, GROUP). Floats are float32, and those of `queries` float64: rounded to
    float32 after it, a projection does not depend on which other queries there are.
    """

    center: Vectors
    documents: Vectors
    queries: npt.NDArray[np.float64]
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
        coded = max((dimension for group in groups for dimension in group), default=0) + 1
        whole = ScalarCodebook.fit(projection, max(coded, dimensions), sample)
        r = whole.dimensions
        places = np.array([[*group, *[r] * (GROUP - len(group))] for group in groups], dtype=np.int64).ravel()
        codebook = cls(
            whole.center,
            whole.documents,
            whole.queries,
            whole.ranges,
            places,
            allocation.double,
            np.zeros((digits, 16, GROUP), dtype=np.float32),
        )
        codebook._train(codebook._laid_out(whole.points(sample)))
        return codebook

    @property
    def width(self) -> int:
        """w."""
        return len(self.center)

    @property
    def code_bytes(self) -> int:
        """Bytes of a code: M/2."""
        return len(self.centroids) // 2

    @property
    def dimensions(self) -> int:
        """The projected dimensions that any digit codes."""
        return int(self.places[self.places < self._r].max(initial=0)) + 1

    def encode(self, vectors: Tensor) -> tuple[Codes, ...]:
        """The codes (n, M/2) of folded document vectors (n, w) float32, on any device, and the projected vectors'."""
        projected = self._whole.points(vectors)
        points = self._laid_out(projected)
        _leave_rest(points, self.centroids, self.double)
        return nearest_digits(points, self.centroids), scalar_codes(projected, self.ranges)

    def weigh(self, vectors: npt.NDArray[np.float64]) -> Vectors:
        """Folded query vectors (b, w), projected: (b, r) float32, infinite where that cannot hold them."""
        return self._whole.weigh(vectors)

    def laid_out(self, projected: Vectors) -> Vectors:
        """Projected query vectors (b, r) laid out for a scan: (b, M * GROUP)."""
        return self._laid_out(projected)

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
        return map_array(folder / "projected.npy", np.dtype(np.uint8), documents, self._whole.code_bytes)

    def to_bytes(self) -> bytes:
        """The codebook as a safetensors file."""
        tensors = {
            name: getattr(self, name) for name in ("center", "documents", "queries", "ranges", "places", "centroids")
        }
        return bytes(safetensors.numpy.save({**tensors, "double": np.array([self.double])}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` made; ValueError for anything else."""
        try:
            tensors = safetensors.numpy.load(data)
            double = int(tensors.pop("double")[0])
            return cls(**tensors, double=double)
        except (SafetensorError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"not a codebook: {error}") from error

    @property
    def _r(self) -> int:
        return int(self.documents.shape[1])

    @property
    def _whole(self) -> ScalarCodebook:
        return ScalarCodebook(self.center, self.documents, self.queries, self.ranges)

    def _train(self, points: Vectors) -> None:
        """Sets the centroids by points (s, M * GROUP) of a sample, which are changed."""
        several = self.places.reshape(-1, GROUP)[:, 1] < self._r
        for digit in np.flatnonzero(~several).tolist():
            if digit == self.double:
                # The first digits are trained: the second ones code what they leave.
                _leave_rest(points, self.centroids, self.double)
            self.centroids[digit, :, 0] = quantiser_levels(points[:, digit * GROUP])
        if several.any():
            shared = points.reshape(len(points), -1, GROUP)[:, several]
            self.centroids[several] = train_centroids(shared.reshape(len(points), -1), SEED)

    def _laid_out(self, projected: npt.NDArray[np.floating]) -> Vectors:
        padded = np.zeros((len(projected), self._r + 1), dtype=np.float32)
        padded[:, :-1] = projected
        return np.take(padded, self.places, axis=1)


def _leave_rest(points: Vectors, centroids: Centroids, double: int) -> None:
    """Subtracts from the places of the second digits, in place, what the first ones say."""
    for digit in range(double):
        levels = centroids[digit, :, 0]
        value = points[:, digit * GROUP]
        said = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, value)]
        points[:, (double + digit) * GROUP] = value - said
