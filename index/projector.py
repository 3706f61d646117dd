"""The linear maps that all codebooks have: folded vectors in, projected ones out (index.projection), kept in a file."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import Tensor

from index.projection import Projection
from index.tensors import Form, read_tensors

__all__ = ["STEP", "Maps", "Projector", "Vectors", "padded_maps", "require_ranges"]

Vectors = npt.NDArray[np.float32]

STEP = 16
"""FAISS takes as many numbers at a time; of other widths it takes six times as long for the same."""


class Maps(NamedTuple):
    """The first fields of a Projector."""

    center: Vectors
    documents: Vectors
    queries: npt.NDArray[np.float64]


def padded_maps(projection: Projection, dimensions: int) -> Maps:
    """About so many dimensions of a projection: what there are of them, and zeros up to a multiple of STEP."""
    used = projection.truncated(min(dimensions, projection.dimensions))
    padding = ((0, 0), (0, -used.dimensions % STEP))
    documents = np.ascontiguousarray(np.pad(used.documents.numpy(), padding), dtype=np.float32)
    return Maps(
        used.center.numpy().astype(np.float32), documents, np.ascontiguousarray(np.pad(used.queries.numpy(), padding))
    )


@dataclass(frozen=True, slots=True, eq=False)
class Projector:
    """Maps from folded vectors of w = 2k+1 numbers to r, a multiple of STEP.

    center: (w,). documents, queries: (w, r), zero where there are no more dimensions. Floats are float32, and those of
    `queries` float64: rounded to float32 after it, a projection does not depend on which other queries there are.
    """

    center: Vectors
    documents: Vectors
    queries: npt.NDArray[np.float64]

    @property
    def width(self) -> int:
        """w."""
        return len(self.center)

    @property
    def projected(self) -> int:
        """r."""
        return int(self.documents.shape[1])

    def points(self, vectors: Tensor) -> Vectors:
        """Folded document vectors (n, w) float32, on any device, centred and projected: (n, r)."""
        device = vectors.device
        center, documents = torch.from_numpy(self.center).to(device), torch.from_numpy(self.documents).to(device)
        points: Vectors = ((vectors - center) @ documents).cpu().numpy()
        return points

    def weigh(self, vectors: npt.NDArray[np.float64]) -> Vectors:
        """Folded query vectors (b, w), projected: (b, r), infinite where float32 cannot hold them."""
        # By torch, which can be kept to one core: NumPy's threads go on spinning on the others for a while.
        projected = torch.from_numpy(vectors) @ torch.from_numpy(self.queries)
        return projected.float().numpy()

    def to_bytes(self) -> bytes:
        """All fields as a safetensors file."""
        names = [field.name for field in dataclasses.fields(self)]
        return bytes(safetensors.numpy.save({name: np.atleast_1d(getattr(self, name)) for name in names}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` made; ValueError for anything else."""
        try:
            return cls._of(read_tensors(data, cls.forms()))
        except ValueError as error:
            raise ValueError(f"not a codebook: {error}") from error

    @classmethod
    def forms(cls) -> dict[str, Form]:
        """What each field is in a file."""
        return {"center": Form("f4", 1), "documents": Form("f4", 2), "queries": Form("f8", 2)}

    @classmethod
    def _of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Made of arrays of its forms; ValueError where they do not go together."""
        w, r = arrays["documents"].shape
        if arrays["queries"].shape != (w, r) or arrays["center"].shape != (w,) or r == 0 or r % STEP:
            raise ValueError(
                f"center {arrays['center'].shape}, documents {(w, r)} and queries {arrays['queries'].shape} do not go "
                "together"
            )
        return cls(**arrays)


def require_ranges(ranges: npt.NDArray[np.float32], dimensions: int) -> None:
    """ValueError unless these are ranges (index.scalar_codes) of so many dimensions."""
    if ranges.shape not in ((0, dimensions), (2, dimensions)):
        raise ValueError(f"ranges {ranges.shape} are not those of {dimensions} dimensions")
    if len(ranges) and not (ranges[1] > 0).all():
        raise ValueError("ranges have a dimension of no width")
