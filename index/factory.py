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
from index.faiss_forms import KNOWN, require_known_index
from index.faiss_reading import deserialised
from index.records import FileEntry
from index.untrusted import IndexFile

__all__ = ["FactoryIndex", "check_factory", "train_factory"]

Points = npt.NDArray[np.float32]

DIVISIBLE = 1440
"""Dimensions for which a string is tried before there are any."""

PARTS = {
    *("IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexPQ", "IndexPQFastScan", "IndexScalarQuantizer"),
    *("IndexIVFFlat", "IndexIVFPQ", "IndexIVFPQFastScan", "IndexIVFScalarQuantizer", "IndexPreTransform"),
    *("LinearTransform", "OPQMatrix", "PCAMatrix", "RandomRotationMatrix", "HadamardRotation"),
    "RemapDimensionsTransform",
}
"""What of FAISS's index.faiss_forms knows."""


def check_factory(factory: str, dimensions: int | None) -> None:
    """Raises BuildError for a string of which FAISS makes nothing, or nothing that finds what it should.

    `dimensions` are the projected ones, where they are known.
    """
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
    if "L2norm" in factory or "IDMap" in factory:
        raise BuildError(f"{factory!r} changes the scores or the numbers of documents, which nothing may: leave it out")
    try:
        made = _made(factory, dimensions or DIVISIBLE)
    except BuildError as error:
        # How many there will be is not known yet, and what does not divide this may divide that.
        if dimensions is not None or "multiple" not in str(error):
            raise
    else:
        unknown = _parts(made) - PARTS
        if unknown:
            raise _unchecked(factory, f"nothing is known of {', '.join(sorted(unknown))}")


def train_factory(factory: str, points: Points) -> npt.NDArray[np.uint8]:
    """An empty index of that string, trained on points (s, r), as bytes; raises BuildError where FAISS cannot."""
    index = _made(factory, points.shape[1])
    try:
        index.train(points)
        trained: npt.NDArray[np.uint8] = faiss.serialize_index(index)
        # What cannot be added to says so when something is.
        index.add(points[:2])
    except RuntimeError as error:
        raise BuildError(f"{factory!r} cannot be trained on {len(points)} documents: {_reason(error)}") from error
    try:
        require_known_index(faiss.serialize_index(index), len(points[:2]), points.shape[1])
    except ValueError as error:
        raise _unchecked(factory, str(error)) from error
    return trained


def _parts(index: Any) -> set[str]:
    """The names of FAISS's classes that an index consists of."""
    names = {type(index).__name__}
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        transforms = (chain.at(place) for place in range(chain.size()))
        names |= {type(faiss.downcast_VectorTransform(each)).__name__ for each in transforms}
        names |= _parts(faiss.downcast_index(index.index))
    elif isinstance(index, faiss.IndexIVF):
        names |= _parts(faiss.downcast_index(index.quantizer))
    return names


def _unchecked(factory: str, reason: str) -> BuildError:
    return BuildError(
        f"{factory!r} makes an index whose file cannot be checked before FAISS reads it, which a damaged one would "
        f"not survive: {reason}. Use {KNOWN}"
    )


def _made(factory: str, dimensions: int) -> Any:
    try:
        index: Any = faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise BuildError(
            f"FAISS's index factory makes nothing of {factory!r}, with {dimensions} projected dimensions: "
            f"{_reason(error)}. --code-bytes sets how many there are, in steps of 16"
        ) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise BuildError(f"{factory!r} does not search by inner product, which scores are")
    return index


def _reason(error: RuntimeError) -> str:
    return str(error).rpartition(": ")[2]


# What FAISS's stubs do not know.
_TransformParameters: Any = vars(faiss)["SearchParametersPreTransform"]


class FactoryIndex:
    """The index of one segment, in memory."""

    def __init__(self, index: Any) -> None:
        self._index = index
        # It may lie behind a transformation.
        inner = faiss.try_extract_index_ivf(index)
        self.lists: int | None = None if inner is None else int(inner.nlist)
        """How many lists it has, of which a search looks into some."""

    @classmethod
    def of(cls, trained: npt.NDArray[np.uint8], points: Points) -> "FactoryIndex":
        """What `train_factory` made, with points (n, r) in it."""
        index: Any = deserialised(trained)
        index.add(points)
        return cls(index)

    def write(self, path: Path) -> FileEntry:
        """Writes it as FAISS does."""
        with checksummed(path) as file:
            file.write(faiss.serialize_index(self._index).data)
        return file.entry

    @classmethod
    def read(cls, file: IndexFile, documents: int, dimensions: int) -> "FactoryIndex":
        """Reads what `write` wrote; raises CorruptIndexError unless it has so many documents and dimensions."""
        data = file.array()
        try:
            require_known_index(data, documents, dimensions)
            return cls(deserialised(data))
        except (ValueError, RuntimeError) as error:
            raise CorruptIndexError(f"{file.path} is no FAISS index that may be read: {error}") from error

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
            parameters: Any = faiss.SearchParametersIVF()
            parameters.nprobe = min(nprobe or self.lists, self.lists)
            if isinstance(self._index, faiss.IndexPreTransform):
                parameters = _TransformParameters(index_params=parameters)
            options["params"] = parameters
        scores, rows = self._index.search(queries, count, **options)
        return scores, rows
