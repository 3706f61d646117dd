"""Which list each document belongs to, and what the lists' centroids are: a file of an index of kind ivf-fastscan."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

__all__ = ["Lists"]


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """centroids: folded document vectors (lists, 2k+1) float32, standardised. members: the list of each document, (n,)
    int32, in the order of the segments."""

    centroids: npt.NDArray[np.float32]
    members: npt.NDArray[np.int32]

    def to_bytes(self) -> bytes:
        """The lists as a safetensors file."""
        return bytes(safetensors.numpy.save({"centroids": self.centroids, "members": self.members}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` made; ValueError for anything else."""
        try:
            return cls(**safetensors.numpy.load(data))
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"not the lists of an index: {error}") from error
