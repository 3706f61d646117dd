"""FAISS behind one seam, for indexes of its own by the strings of its factory, on projected vectors.

In the projected space (index.projection) inner products are scores and squared error is the expected error of a score,
so that FAISS's own quantisers and lists do there what they are made for. Not so its graphs: those link by the metric
that is searched, and by inner product a few documents of large norm are everyone's neighbour.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.durable import checksummed
from index.errors import BuildError, CorruptIndexError
from index.manifest import FileEntry

__all__ = ["FactoryIndex", "check_factory", "train_factory"]

Points = npt.NDArray[np.float32]


def check_factory(factory: str, dimensions: int = 64) -> None:
    """Raises BuildError for a string of which FAISS makes nothing, or nothing that finds what it should."""
    if "HNSW" in factory or "NSG" in factory:
        raise BuildError(
            f"{factory!r} links documents by inner product, by which a few of large norm are everyone's neighbour and "
            "hardly any is found (recall@10 of 0.01 to 0.08 on real Gaussians): use --kind hnsw, whose links are by "
            "distance"
        )
    if "RFlat" in factory or "Refine" in factory:
        raise BuildError(
            f"{factory!r} refines what it finds, and every candidate is scored exactly anyway: leave it out"
        )
    try:
        faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2]
        raise BuildError(f"{factory!r} is not a string of FAISS's index factory: {reason}") from error


def train_factory(factory: str, points: Points) -> npt.NDArray[np.uint8]:
    """An empty index of that string, trained on points (s, r), as bytes; raises BuildError where FAISS cannot."""
    index: Any = faiss.index_factory(points.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    try:
        index.train(points)
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2]
        raise BuildError(f"{factory!r} cannot be trained on {len(points)} documents: {reason}") from error
    trained: npt.NDArray[np.uint8] = faiss.serialize_index(index)
    return trained


class FactoryIndex:
    """The index of one segment, in memory."""

    def __init__(self, index: Any) -> None:
        self._index = index
        lists = getattr(index, "nlist", None)
        self.lists: int | None = None if lists is None else int(lists)
        """How many lists it has, of which a search looks into some."""

    @classmethod
    def of(cls, trained: npt.NDArray[np.uint8], points: Points) -> "FactoryIndex":
        """What `train_factory` made, with points (n, r) in it."""
        index: Any = faiss.deserialize_index(trained)
        index.add(points)
        return cls(index)

    def write(self, path: Path) -> FileEntry:
        """Writes it as FAISS does."""
        with checksummed(path) as file:
            file.write(faiss.serialize_index(self._index).data)
        return file.entry

    @classmethod
    def read(cls, path: Path, documents: int, dimensions: int) -> "FactoryIndex":
        """Reads what `write` wrote; raises CorruptIndexError unless it has so many documents and dimensions."""
        try:
            index: Any = faiss.read_index(str(path))
        except RuntimeError as error:
            raise CorruptIndexError(f"{path} is not a FAISS index: {error}") from error
        if (index.ntotal, index.d) != (documents, dimensions):
            raise CorruptIndexError(
                f"{path} holds {index.ntotal} documents of {index.d} numbers, not {documents} of {dimensions}"
            )
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: Points, count: int, nprobe: int | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The `count` documents of the largest inner products: scores and rows (b, count), -1 where there is none.

        queries: (b, r) float32. `nprobe` is for an index with lists, all of which are looked into if it is None.
        """
        count, options = min(count, len(self)), {}
        if self.lists is not None:
            parameters = faiss.SearchParametersIVF()
            parameters.nprobe = min(nprobe or self.lists, self.lists)
            options["params"] = parameters
        scores, rows = self._index.search(queries, count, **options)
        return scores, rows
