"""Which list each document belongs to, and what the lists' centroids are: a file of an index of kind ivf-fastscan."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from index.tensors import Form, read_tensors

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
            lists = cls(**read_tensors(data, {"centroids": Form("f4", 2), "members": Form("i4", 1)}))
        except ValueError as error:
            raise ValueError(f"not the lists of an index: {error}") from error
        count, members = len(lists.centroids), lists.members
        if members.min(initial=0) < 0 or members.max(initial=-1) >= count:
            raise ValueError(f"documents are in lists {members.min()} to {members.max()}, and there are {count}")
        return lists
