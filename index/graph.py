"""FAISS behind one seam, for graphs: links between documents, built by one geometry and walked by another's scores.

HNSW (Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable small
world graphs", 2018) finds its way because a document's neighbours are near it. By inner product they are not: a few
documents of large norm are everyone's neighbours. So links are made where distance says how alike two documents are
(index.geometry), and then followed by the score that the query gives, of which all that a walk needs is that it changes
little from a document to its neighbours.

What it guards against: `write_index` to a full disk may raise nothing, so that what was written is read again; the
links are stored without what they were made by, and a search without it ends the process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.codes import Codes
from index.durable import sync
from index.errors import CorruptIndexError
from index.faiss_reading import deserialised
from index.graph_file import require_links
from index.scalar_codes import Ranges, scalar_index
from index.untrusted import IndexFile

__all__ = ["Graph", "GraphBuilder"]

Vectors = npt.NDArray[np.float32]

# What FAISS's stubs do not know.
_SearchParameters: Any = vars(faiss)["SearchParametersHNSW"]
_EIGHT_BITS: Any = faiss.ScalarQuantizer.QT_8bit


class GraphBuilder:
    """Links documents in the order in which they come; the same links whatever the number of threads."""

    def __init__(self, sample: Vectors, links: int, construction: int) -> None:
        """For vectors like those of the sample (s, g), with `links` a document on each level above the lowest, and
        twice as many there, chosen of `construction` documents that a search finds."""
        # 8 bits a number, as there is to be no more memory taken by building a graph than by walking it.
        self._index: Any = faiss.IndexHNSWSQ(sample.shape[1], _EIGHT_BITS, links)
        self._index.hnsw.efConstruction = construction
        self._index.train(sample)

    def add(self, vectors: Vectors) -> None:
        """Links documents (n, g) by L2 distance."""
        self._index.add(vectors)

    @staticmethod
    def wrote(path: Path, documents: int) -> bool:
        """Whether there are the links of so many documents, of an earlier run."""
        try:
            return _read_links(IndexFile(path, folders=1), documents) is not None
        except CorruptIndexError:
            return False

    def write(self, path: Path) -> None:
        """Writes the links alone, in one step: what is there is whole. OSError where it did not reach the disk."""
        beside = path.with_name(f".{path.name}.tmp")
        try:
            write_index: Any = faiss.write_index
            write_index(self._index, str(beside), faiss.IO_FLAG_SKIP_STORAGE)
            sync(beside)
            _read_links(IndexFile(beside), int(self._index.ntotal))
            beside.replace(path)
        except (RuntimeError, CorruptIndexError) as error:
            raise OSError(f"{beside} was not written whole: {error}") from error
        finally:
            beside.unlink(missing_ok=True)
        sync(path.parent)


class Graph:
    """Links in memory, and the projected documents by whose inner products they are followed."""

    def __init__(self, file: IndexFile, codes: Sequence[Codes], ranges: Ranges) -> None:
        """Reads the links of as many documents as there are codes; raises CorruptIndexError where they are others."""
        # First, because what is read is in memory twice until it has been.
        self._index = _read_links(file, sum(map(len, codes)))
        self._documents = scalar_index(ranges)
        for part in codes:
            self._documents.add_sa_codes(part)
        self._index.storage, self._index.own_fields = self._documents, False
        self._index.d, self._index.metric_type = self._documents.d, faiss.METRIC_INNER_PRODUCT
        self._index.hnsw.is_similarity = True

    def __len__(self) -> int:
        return int(self._documents.ntotal)

    def search(self, queries: Vectors, count: int, breadth: int) -> npt.NDArray[np.int64]:
        """The `count` documents of the largest inner products among those that a walk meets: (b, count), best first.

        queries: (b, r) float32. The walk goes on from the best `breadth` documents it has met so far (efSearch), at
        least `count`, until it has seen the neighbours of all of them. A row of -1 stands where it has met too few.
        """
        parameters = _SearchParameters()
        parameters.efSearch = max(breadth, count)
        rows: npt.NDArray[np.int64] = self._index.search(queries, min(count, len(self)), params=parameters)[1]
        return rows


def _read_links(file: IndexFile, documents: int) -> Any:
    """The links of so many documents; raises CorruptIndexError for anything else."""
    data = file.array()
    try:
        require_links(data, documents)
        return deserialised(data)
    except (ValueError, RuntimeError) as error:
        raise CorruptIndexError(f"{file.path} holds no graph of {documents} documents: {error}") from error
