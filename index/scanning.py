"""The float32 scan: encoded queries against every segment's vectors, and a proof of what the scan can have missed."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from index.cores import available_cores, torch_on_one_core
from index.documents import Numbers
from index.encoding import Encoding, encode_queries, inner_product_error, negative_kl
from index.gaussians import Gaussians
from index.manifest import Manifest
from index.segments import Segment
from index.selection import Mask
from index.standardisation import Standardisation
from index.vectors import BLAS_QUERIES, FlatVectors, gpu_resources, matrix_products, one_thread, set_threads

__all__ = ["SCANNED", "Ceilings", "Found", "Scanner", "ceilings", "merge", "piece"]

SCANNED = Encoding.FOLDED
"""What is scanned, whatever lies on disk. Of the other forms' numbers a third say nothing new (index.encoding), and a
scan takes as long as its numbers: 1.4 times as long with them, alone and in batches, and half as much memory again. On
disk they are what any program with FAISS can search, so the form there is the user's to choose."""

SHARD_NUMBERS = 1 << 20
"""The fewest numbers (documents times width) that a shard is worth a thread for: 4 MiB."""

COPIED_ROWS, COPIED_FOR_MANY = 1 << 9, 1 << 13
"""Documents that are copied together where not all are scanned."""

Scores = npt.NDArray[np.float32]
Ceilings = npt.NDArray[np.float64]
Found = tuple[Scores, Numbers, Scores]
"""Of one piece of the documents: the best inner products and their documents' numbers, (b, c) each, -1 for none, and
the most that any other document's can be, (b,)."""
Shard = list[tuple[FlatVectors, range, int]]
"""Ranges of rows of segments, each with the number of its segment's first document."""


class Scanner:
    """The folded vectors of all segments, in memory or on one GPU.

    On a CPU the documents are cut into a shard per thread, each scanned on one core. FAISS's own threads share out
    queries instead, so that one query uses one core, and they meet in the middle of a matrix multiplication: on two
    cores of which one was busy, batches of 32 took four times as long.

    Raises CorruptIndexError naming the file whose vectors are not those of its segment, and DeviceUnavailableError for
    a CUDA device without faiss-gpu. Safe to call from several threads; on a GPU calls take turns.
    """

    def __init__(
        self,
        manifest: Manifest,
        segments: Sequence[Segment],
        device: torch.device,
        threads: int | None,
        known: "Scanner | None" = None,
    ) -> None:
        """`known` is a scanner of another generation, on the same device, whose vectors serve this one, too."""
        self.device = device
        self._standardisation = manifest.standardisation.restore()
        self._max_norm = max(segment.manifest.max_norm for segment in segments)
        gpu = gpu_resources(device) if device.type == "cuda" else None
        self._gpu_turn = gpu.turn if gpu else None
        stored_width = manifest.encoding.width(manifest.k)
        self._vectors: dict[Path, FlatVectors] = {}
        for segment in segments:
            if known is not None and segment.folder in known._vectors:
                self._vectors[segment.folder] = known._vectors[segment.folder]
                continue
            stored = FlatVectors.read(segment.file("vectors.faiss"), documents=len(segment), width=stored_width)
            vectors = stored.folded(manifest.encoding, manifest.k)
            self._vectors[segment.folder] = vectors.on(gpu) if gpu else vectors
        worth = SCANNED.width(manifest.k) * sum(map(len, segments)) // SHARD_NUMBERS
        shards = 1 if gpu else max(1, min(threads or available_cores(), worth))
        self._shards = _cut(list(self._vectors.values()), shards)
        self._pool = ThreadPoolExecutor(shards, "gaussearch-scan", initializer=set_threads, initargs=(1,))

    def scan(self, queries: Gaussians, count: int, allowed: Mask | None = None) -> tuple[Numbers, Ceilings]:
        """The `count` likeliest documents of each query, and a ceiling on the -KL of every other document; on a CPU
        among those alone that are `allowed`, (n,), if not all are.

        Returns numbers (b, c) in no particular order, -1 for none, c <= count where there are fewer documents or a GPU
        gives fewer, and ceilings (b,), -infinity where there is no other document.
        Raises InvalidGaussiansError naming the query whose vector float32 cannot hold.
        """
        with torch_on_one_core():
            return self._scan(queries.to(self.device), count, allowed)

    def _scan(self, queries: Gaussians, count: int, allowed: Mask | None) -> tuple[Numbers, Ceilings]:
        vectors = encode_queries(queries, SCANNED, self._standardisation)
        _, numbers, cutoffs = merge(self._found(vectors, count, allowed), count)
        return numbers, ceilings(cutoffs, queries, vectors, self._max_norm, self._standardisation)

    def _found(self, vectors: torch.Tensor, count: int, allowed: Mask | None) -> list[Found]:
        """What is found in each piece."""
        scan = functools.partial(_scan_shard, vectors, count, allowed)
        if self._gpu_turn is not None:
            with self._gpu_turn:
                return scan(self._shards[0])
        if len(self._shards) == 1:
            # Waking another thread takes as long as scanning some hundred documents.
            with matrix_products(vectors.shape[1]), one_thread():
                return scan(self._shards[0])
        with matrix_products(vectors.shape[1]):
            return [found for shard in self._pool.map(scan, self._shards) for found in shard]


def piece(scores: Scores, rows: Numbers, start: int, documents: int) -> Found:
    """What the search of one piece, of so many documents, gave, (b, c) each; `start` is the number of its row 0."""
    is_all = scores.shape[1] == documents
    cutoffs = np.full(len(scores), -np.inf, dtype=np.float32) if is_all else scores[:, -1]
    return scores, np.where(rows < 0, -1, rows + start), cutoffs


def merge(found: Sequence[Found], count: int) -> Found:
    """What was found in several pieces as if it had been found in one: the `count` best, in no particular order."""
    scores = np.concatenate([scores for scores, _, _ in found], axis=1)
    numbers = np.concatenate([numbers for _, numbers, _ in found], axis=1)
    cutoffs = np.max([cutoffs for _, _, cutoffs in found], axis=0)
    if scores.shape[1] > count:
        best = np.argpartition(-scores, count, axis=1)
        cutoffs = np.maximum(cutoffs, np.take_along_axis(scores, best[:, count:], axis=1).max(axis=1))
        scores, numbers = (np.take_along_axis(values, best[:, :count], axis=1) for values in (scores, numbers))
    return scores, numbers, cutoffs


def ceilings(
    cutoffs: Scores, queries: Gaussians, vectors: torch.Tensor, max_norm: float, standardisation: Standardisation
) -> Ceilings:
    """The most that the -KL of a document can be whose computed inner product is at most the query's cutoff, (b,).

    The exact inner product is at most that plus the error bound. `vectors` are those of the queries, and `max_norm` is
    the largest of a document.
    """
    errors = inner_product_error(vectors.norm(dim=1), max_norm, vectors.shape[1], vectors.dtype)
    bounds = torch.from_numpy(cutoffs.astype(np.float64)) + errors.cpu()
    return negative_kl(bounds[:, None], queries, SCANNED, standardisation)[:, 0].numpy()


def _scan_shard(vectors: torch.Tensor, count: int, allowed: Mask | None, shard: Shard) -> list[Found]:
    """Of each piece: the best inner products, their documents' numbers, and the most that any other can have."""
    found: list[Found] = []
    for index, rows, start in shard:
        for some in [rows] if allowed is None else _chosen(allowed, rows, start, len(vectors)):
            limit = min(count, len(some), index.result_limit)
            scores, local = index.search(vectors, limit, some)
            found.append(piece(scores, local, start, len(some)))
    return found


def _chosen(allowed: Mask, rows: range, start: int, queries: int) -> Iterator[Numbers]:
    """Those of the rows that are allowed, some at a time: few enough that a copy of them stays in a processor's cache
    for one query, and many where they are multiplied with a matrix of queries."""
    chosen = np.flatnonzero(allowed[start + rows.start : start + rows.stop]) + rows.start
    step = COPIED_ROWS if queries < BLAS_QUERIES else COPIED_FOR_MANY
    for first in range(0, len(chosen), step):
        yield chosen[first : first + step]


def _cut(vectors: Sequence[FlatVectors], shards: int) -> list[Shard]:
    """All rows of all segments in that many shards of as many documents each, or one more."""
    starts = np.cumsum([0, *map(len, vectors)]).tolist()
    bounds = np.linspace(0, starts[-1], shards + 1).astype(np.int64).tolist()
    cut: list[Shard] = []
    for low, high in itertools.pairwise(bounds):
        pieces = [
            (index, range(max(low, start) - start, min(high, start + len(index)) - start), start)
            for index, start in zip(vectors, starts, strict=False)
        ]
        cut.append([piece for piece in pieces if len(piece[1])])
    return cut
