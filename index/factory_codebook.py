"""The projection, and the trained and empty FAISS index, that the segments of an index of kind faiss share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from index.codes import Codes
from index.factory import FactoryIndex, train_factory
from index.faiss_forms import require_known_index
from index.projection import Projection
from index.projector import Projector, padded_maps
from index.records import FileEntry
from index.tensors import Form
from index.untrusted import IndexFile

__all__ = ["FactoryCodebook"]


@dataclass(frozen=True, slots=True, eq=False)
class FactoryCodebook(Projector):
    """trained: a FAISS index of r numbers, as bytes."""

    trained: npt.NDArray[np.uint8]

    @classmethod
    def fit(cls, projection: Projection, factory: str, dimensions: int, sample: Tensor) -> Self:
        """The codebook of about so many dimensions for folded vectors like those of the sample (s, w).

        Raises BuildError where FAISS cannot train such an index on them.
        """
        maps = padded_maps(projection, dimensions)
        return cls(*maps, train_factory(factory, Projector(*maps).points(sample)))

    @property
    def dimensions(self) -> int:
        """r."""
        return self.projected

    def encode(self, vectors: Tensor) -> tuple[Codes, ...]:
        """Folded document vectors (n, w), projected, as the bytes of float32: (n, 4r)."""
        return (np.ascontiguousarray(self.points(vectors)).view(np.uint8),)

    def write(self, folder: Path, *codes: Codes) -> dict[str, FileEntry]:
        """Writes the index of a segment's projected vectors."""
        index = FactoryIndex.of(self.trained, codes[0].view(np.float32))
        return {"vectors.faiss": index.write(folder / "vectors.faiss")}

    def read(self, file: IndexFile, documents: int) -> FactoryIndex:
        """Reads what `write` wrote into vectors.faiss; raises CorruptIndexError for anything else."""
        return FactoryIndex.read(file, documents, self.dimensions)

    @classmethod
    def forms(cls) -> dict[str, Form]:
        """What each field is in a file."""
        return super(FactoryCodebook, cls).forms() | {"trained": Form("u1", 1)}

    @classmethod
    def _of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        made = super(FactoryCodebook, cls)._of(arrays)
        require_known_index(made.trained, 0, made.projected)
        return made
