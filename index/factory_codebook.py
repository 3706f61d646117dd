"""The projection, and the trained and empty FAISS index, that the segments of an index of kind faiss share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError
from torch import Tensor

from index.codes import Codes
from index.factory import FactoryIndex, train_factory
from index.manifest import FileEntry
from index.projection import Projection
from index.scalar_codebook import ScalarCodebook, Vectors
from index.scalar_codes import no_ranges

__all__ = ["FactoryCodebook"]


@dataclass(frozen=True, slots=True, eq=False)
class FactoryCodebook:
    """center: (w,). documents, queries: (w, r), as index.scalar_codebook has them. trained: a FAISS index, as bytes."""

    center: Vectors
    documents: Vectors
    queries: npt.NDArray[np.float64]
    trained: npt.NDArray[np.uint8]

    @classmethod
    def fit(cls, projection: Projection, factory: str, dimensions: int, sample: Tensor) -> Self:
        """The codebook of about so many dimensions for folded vectors like those of the sample (s, w).

        Raises BuildError where FAISS cannot train such an index on them.
        """
        whole = ScalarCodebook.fit(projection, dimensions, sample)
        return cls(whole.center, whole.documents, whole.queries, train_factory(factory, whole.points(sample)))

    @property
    def width(self) -> int:
        """w."""
        return len(self.center)

    @property
    def dimensions(self) -> int:
        """r."""
        return int(self.documents.shape[1])

    def encode(self, vectors: Tensor) -> tuple[Codes, ...]:
        """Folded document vectors (n, w), projected, as the bytes of float32: (n, 4r)."""
        return (np.ascontiguousarray(self._whole.points(vectors)).view(np.uint8),)

    def weigh(self, vectors: npt.NDArray[np.float64]) -> Vectors:
        """Folded query vectors (b, w), projected: (b, r), infinite where float32 cannot hold them."""
        return self._whole.weigh(vectors)

    def write(self, folder: Path, *codes: Codes) -> dict[str, FileEntry]:
        """Writes the index of a segment's projected vectors."""
        index = FactoryIndex.of(self.trained, codes[0].view(np.float32))
        return {"vectors.faiss": index.write(folder / "vectors.faiss")}

    def read(self, folder: Path, documents: int) -> FactoryIndex:
        """Reads what `write` wrote; raises CorruptIndexError for anything else."""
        return FactoryIndex.read(folder / "vectors.faiss", documents, self.dimensions)

    def to_bytes(self) -> bytes:
        """The codebook as a safetensors file."""
        names = ("center", "documents", "queries", "trained")
        return bytes(safetensors.numpy.save({name: getattr(self, name) for name in names}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` made; ValueError for anything else."""
        try:
            return cls(**safetensors.numpy.load(data))
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"not a codebook: {error}") from error

    @property
    def _whole(self) -> ScalarCodebook:
        return ScalarCodebook(self.center, self.documents, self.queries, no_ranges(self.dimensions))
