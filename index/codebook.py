"""Documents as strings of 4-bit digits, and queries as what to weigh the digits by.

A codebook is a projection (index.projection), the dimensions that each digit codes (index.allocation), and what the
values of each digit stand for. It is fitted on a sample of the corpus, once per index: segments that share it can be
scanned as one.
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

__all__ = ["Codebook", "Vectors"]

SEED = 2023

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Codes of M digits for folded vectors of w = 2k+1 numbers, by way of r projected ones.

    center: (w,). documents, queries: (w, r). places: (M * GROUP,) int64, the projected dimension at each place of a
    point, r where there is none. double: how many digits have a second one, which codes what the first leaves: digit
    i's is digit double + i. centroids: (M, 16, GROUP). Floats are float32, and those of `queries` float64: rounded to
    float32 after it, a projection does not depend on which other queries there are.
    """

    center: Vectors
    documents: Vectors
    queries: npt.NDArray[np.float64]
    places: npt.NDArray[np.int64]
    double: int
    centroids: Centroids

    @classmethod
    def fit(cls, projection: Projection, digits: int, sample: Tensor) -> Self:
        """The codebook of `digits` digits, an even number, for folded vectors like those of the sample (s, w)."""
        allocation = Allocation.best(projection.energies.numpy(), digits)
        groups = allocation.groups(projection.dimensions)
        groups += [[]] * (digits - len(groups))
        r = max((dimension for group in groups for dimension in group), default=0) + 1
        places = np.array([[*group, *[r] * (GROUP - len(group))] for group in groups], dtype=np.int64).ravel()
        used = projection.truncated(r)
        codebook = cls(
            _float32(used.center),
            _float32(used.documents),
            np.ascontiguousarray(used.queries.numpy()),
            places,
            allocation.double,
            np.zeros((digits, 16, GROUP), dtype=np.float32),
        )
        codebook._train(codebook._points(sample))
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
        """r, the projected dimensions that any digit codes."""
        return int(self.documents.shape[1])

    def encode(self, vectors: Tensor) -> Codes:
        """The codes (n, M/2) of folded document vectors (n, w) float32, on any device."""
        points = self._points(vectors)
        _leave_rest(points, self.centroids, self.double)
        return nearest_digits(points, self.centroids)

    def weigh(self, vectors: npt.NDArray[np.float64]) -> Vectors:
        """Folded query vectors (b, w) laid out for a scan: (b, M * GROUP), infinite where float32 cannot hold them."""
        # By torch, which the caller can keep to one core: NumPy's threads go on spinning on the others for a while.
        return self._laid_out((torch.from_numpy(vectors) @ torch.from_numpy(self.queries)).numpy())

    def write(self, path: Path, codes: Codes) -> FileEntry:
        """Writes codes of this codebook."""
        return write_codes(path, codes, self.centroids)

    def read(self, path: Path, documents: int) -> Codes:
        """Reads what `write` wrote; raises CorruptIndexError for anything else."""
        return read_codes(path, documents, self.centroids)

    def to_bytes(self) -> bytes:
        """The codebook as a safetensors file."""
        tensors = {name: getattr(self, name) for name in ("center", "documents", "queries", "places", "centroids")}
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

    def _points(self, vectors: Tensor) -> Vectors:
        """Folded document vectors, centred, projected and laid out: (n, M * GROUP)."""
        device = vectors.device
        center, documents = torch.from_numpy(self.center).to(device), torch.from_numpy(self.documents).to(device)
        return self._laid_out(((vectors - center) @ documents).cpu().numpy())

    def _train(self, points: Vectors) -> None:
        """Sets the centroids by points (s, M * GROUP) of a sample, which are changed."""
        several = self.places.reshape(-1, GROUP)[:, 1] < self.dimensions
        for digit in np.flatnonzero(~several).tolist():
            if digit == self.double:
                # The first digits are trained: the second ones code what they leave.
                _leave_rest(points, self.centroids, self.double)
            self.centroids[digit, :, 0] = quantiser_levels(points[:, digit * GROUP])
        if several.any():
            shared = points.reshape(len(points), -1, GROUP)[:, several]
            self.centroids[several] = train_centroids(shared.reshape(len(points), -1), SEED)

    def _laid_out(self, projected: npt.NDArray[np.floating]) -> Vectors:
        padded = np.zeros((len(projected), self.dimensions + 1), dtype=np.float32)
        with np.errstate(over="ignore"):
            padded[:, :-1] = projected
        return np.take(padded, self.places, axis=1)


def _leave_rest(points: Vectors, centroids: Centroids, double: int) -> None:
    """Subtracts from the places of the second digits, in place, what the first ones say."""
    for digit in range(double):
        levels = centroids[digit, :, 0]
        value = points[:, digit * GROUP]
        said = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, value)]
        points[:, (double + digit) * GROUP] = value - said


def _float32(tensor: Tensor) -> Vectors:
    return np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
