"""FAISS behind one seam, for codes: digits found, stored and scanned.

A code is M 4-bit digits, each of which stands for one of 16 centroids of up to GROUP numbers; M is even. A scan is
FAISS's fast scan: the inner products of a query with all centroids, rounded to 8 bits, are looked up in the processor's
registers for 32 documents at a time.

What it guards against: `IndexPQFastScan.add_core` and selectors do not work as elsewhere; k above n pads with -1.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.allocation import GROUP
from index.durable import checksummed
from index.errors import CorruptIndexError
from index.faiss_fields import HEADER, INNER_PRODUCT, Fields, Header
from index.records import FileEntry
from index.untrusted import IndexFile

__all__ = ["CodeIndex", "nearest_digits", "quantiser_levels", "read_codes", "train_centroids", "write_codes"]

LEVELS = 16
"""Values of a digit."""
ITERATIONS = 12
"""Of k-means in several dimensions. More move the centroids by less than another sample would."""
LINE_ITERATIONS = 30
"""And in one, where they cost nothing."""
POINTS_PER_CENTROID = 512
QUANTISER, AFTER_CODES = 32, 9
"""Bytes of what stands before the centroids in the file of an IndexPQ, and behind the codes, where it says how FAISS
would search them."""

Centroids = npt.NDArray[np.float32]
"""(M, LEVELS, GROUP)."""
Codes = npt.NDArray[np.uint8]
"""(n, M/2): two digits a byte, the first in the low half."""


def quantiser_levels(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The LEVELS levels, ascending, that leave least of values (s,): Lloyd, "Least squares quantization in PCM", 1982.

    From quantiles on it converges in a few steps, where k-means from random values is far off after as many.
    """
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    levels = np.quantile(ordered, (np.arange(LEVELS) + 0.5) / LEVELS)
    for _ in range(LINE_ITERATIONS):
        bounds = np.concatenate([[0], np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2), [len(ordered)]])
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(counts, 1)
        levels = np.sort(np.where(counts > 0, means, levels))
    return levels.astype(np.float32)


def train_centroids(points: npt.NDArray[np.float32], seed: int) -> Centroids:
    """The centroids of M digits, by k-means on points (s, M * GROUP), at least LEVELS, of which some thousands
    are used."""
    quantiser: Any = faiss.ProductQuantizer(points.shape[1], points.shape[1] // GROUP, 4)
    quantiser.cp.niter, quantiser.cp.seed = ITERATIONS, seed
    quantiser.cp.min_points_per_centroid, quantiser.cp.max_points_per_centroid = 1, POINTS_PER_CENTROID
    quantiser.train(points)
    return np.asarray(faiss.vector_to_array(quantiser.centroids).reshape(-1, LEVELS, GROUP), dtype=np.float32)


def nearest_digits(points: npt.NDArray[np.float32], centroids: Centroids) -> Codes:
    """The codes of points (n, M * GROUP): for each digit, the centroid that is nearest."""
    return np.asarray(product_quantiser(centroids).compute_codes(points), dtype=np.uint8)


def write_codes(path: Path, codes: Codes, centroids: Centroids) -> FileEntry:
    """Writes codes as FAISS writes an IndexPQ, which any program with FAISS reads."""
    with checksummed(path) as file:
        file.write(faiss.serialize_index(_index(codes, centroids)).data)
    return file.entry


def read_codes(file: IndexFile, documents: int, centroids: Centroids) -> Codes:
    """Reads what `write_codes` wrote; raises CorruptIndexError unless it is so many codes of these centroids.

    FAISS reads nothing: all that stands before the codes follows from the centroids, and what is taken from what is
    expected.
    """
    path, digits = file.path, len(centroids)
    with file.open() as opened:
        fields = Fields(opened.take(HEADER + QUANTISER + 4 * centroids.size + 8))
        try:
            form = fields.name()
            if form != "IxPq":
                raise CorruptIndexError(f"{path} holds no codes, but something of the form {form!r}")
            header, (width, its_digits, bits) = fields.header(), fields.read("QQQ")
            if (header.documents, its_digits) != (documents, digits):
                found = header.documents, its_digits // 2
                raise CorruptIndexError(f"{path} holds {found} codes, not {documents} of {digits} digits")
            (numbers,), stored = fields.read("Q"), fields.take(4 * centroids.size)
            (size,) = fields.read("Q")
        except ValueError as error:
            raise CorruptIndexError(f"{path} is not a FAISS index of codes: {error}") from error
        expected = Header(digits * GROUP, documents, True, INNER_PRODUCT), digits * GROUP, 4, centroids.size
        if (header, width, bits, numbers) != expected or not np.array_equal(
            np.frombuffer(stored, "<f4"), centroids.ravel()
        ):
            raise CorruptIndexError(f"{path} has codes of other centroids than the index's codebook")
        if size != documents * digits // 2 or opened.size != len(fields) + size + AFTER_CODES:
            raise CorruptIndexError(f"{path} has {opened.size} bytes, not those of {documents} codes")
        codes = np.empty((documents, digits // 2), dtype=np.uint8)
        opened.fill(codes.data)
        opened.take(AFTER_CODES)
        opened.finish()
    return codes


class CodeIndex:
    """Codes laid out for the fast scan, in memory: M/2 bytes a document."""

    def __init__(self, codes: Codes, centroids: Centroids) -> None:
        self._index = faiss.IndexPQFastScan(_index(codes, centroids))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: npt.NDArray[np.float32], count: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The `count` documents, at most len(self), of the largest approximate inner products: (b, count) each.

        queries: (b, M * GROUP) float32, laid out like points. A row of -1 stands where FAISS found nothing.
        """
        scores, rows = self._index.search(queries, min(count, len(self)))
        return scores, rows


def product_quantiser(centroids: Centroids) -> Any:
    """FAISS's quantiser of these centroids."""
    quantiser: Any = faiss.ProductQuantizer(len(centroids) * GROUP, len(centroids), 4)
    faiss.copy_array_to_vector(np.ascontiguousarray(centroids, dtype=np.float32).ravel(), quantiser.centroids)
    return quantiser


def _index(codes: Codes, centroids: Centroids) -> Any:
    index: Any = faiss.IndexPQ(len(centroids) * GROUP, len(centroids), 4, faiss.METRIC_INNER_PRODUCT)
    index.pq = product_quantiser(centroids)
    faiss.copy_array_to_vector(np.ascontiguousarray(codes).ravel(), index.codes)
    index.ntotal, index.is_trained = len(codes), True
    return index
