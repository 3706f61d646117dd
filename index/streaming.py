"""The same scan as index.scanning, of documents that are not in memory as vectors: they are encoded as they pass.

That takes a few microseconds of a core for each document, and of memory what a few blocks of vectors do. It is what
answers `exact` on an index whose own scan is approximate, and what such a scan is measured against.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from index.background import in_order
from index.cores import available_cores, torch_on_one_core
from index.documents import GaussianStore, Numbers, Stop
from index.encoding import encode_documents, encode_queries
from index.errors import CorruptIndexError, InvalidGaussiansError, SearchStoppedError
from index.gaussians import Gaussians
from index.scanning import SCANNED, Ceilings, Found, ceilings, merge, piece
from index.standardisation import Standardisation
from index.vectors import best_products, matrix_products, set_threads

__all__ = ["StreamedScanner", "merged"]

BLOCK_ROWS = 8192
"""Documents encoded at a time: 8 MiB of vectors at k = 128. Fewer have their best merged more often."""
PART_ROWS = 1 << 14
"""Documents that a thread takes at a time."""


class StreamedScanner:
    """Scans the Gaussians of a store, whose documents' folded vectors have L2 norms of at most `max_norm`."""

    def __init__(
        self, store: GaussianStore, standardisation: Standardisation, max_norm: float, threads: int | None
    ) -> None:
        self._store = store
        self._standardisation = standardisation
        self._max_norm = max_norm
        self._threads = threads or available_cores()

    def scan(self, queries: Gaussians, count: int, stop: Stop | None = None) -> tuple[Numbers, Ceilings]:
        """As Scanner.scan; also raises SearchStoppedError where `stop` says so in between."""
        _, numbers, cutoffs = merged(self.parts(queries, count, stop), count)
        with torch_on_one_core():
            queries = queries.to("cpu")
            vectors = encode_queries(queries, SCANNED, self._standardisation)
            return numbers, ceilings(cutoffs, queries, vectors, self._max_norm, self._standardisation)

    def parts(self, queries: Gaussians, count: int, stop: Stop | None = None) -> Iterator[Found]:
        """What is found in one part of the documents after the other: the same parts, of segments, wherever these are
        scanned. Raises as `scan`."""
        with (
            torch_on_one_core(),
            matrix_products(SCANNED.width(queries.k)),
            ThreadPoolExecutor(self._threads, "gaussearch-stream", initializer=_on_one_core) as pool,
        ):
            vectors = encode_queries(queries.to("cpu"), SCANNED, self._standardisation)
            parts = [
                (array, range(first, min(first + PART_ROWS, len(self._store.arrays[array]))))
                for array in range(len(self._store.arrays))
                for first in range(0, len(self._store.arrays[array]), PART_ROWS)
            ]
            scan = functools.partial(self._scan_rows, vectors, count, stop)
            yield from in_order(pool, scan, parts, ahead=self._threads)

    def _scan_rows(self, vectors: torch.Tensor, count: int, stop: Stop | None, part: tuple[int, range]) -> Found:
        array, rows = part
        start, k = int(self._store.starts[array]), self._store.k
        memory = torch.empty(min(BLOCK_ROWS, len(rows)), SCANNED.width(k))
        found: list[Found] = []
        for first, last in itertools.pairwise([*range(rows.start, rows.stop, BLOCK_ROWS), rows.stop]):
            if stop is not None and stop():
                raise SearchStoppedError("nobody waits for the results any more")
            # Copied, for torch takes no memory that it must not write to.
            block = torch.from_numpy(np.array(self._store.arrays[array][first:last]))
            documents = Gaussians.unchecked(block[:, :k], block[:, k:])
            try:
                encoded = encode_documents(documents, SCANNED, self._standardisation, out=memory[: len(block)])
            except InvalidGaussiansError as error:
                # No build has written it, and no query is to blame.
                raise CorruptIndexError(f"gaussians.npy, counted from document {start + first}: {error}") from error
            best = best_products(vectors, encoded.numpy(), min(count, len(block)))
            found = [merge([*found, piece(*best, start + first, len(block))], count)]
        return found[0]


def merged(parts: Iterable[Found], count: int) -> Found:
    """The `count` best of all parts, of which there must be one, in no particular order but always the same."""
    found: list[Found] = []
    for its in parts:
        found = [merge([*found, its], count)]
    return found[0]


def _on_one_core() -> None:
    torch.set_num_threads(1)
    set_threads(1)
