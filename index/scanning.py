"""The float32 scan: encoded queries against every segment's vectors, and a proof of what the scan can have missed."""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from index.documents import Numbers
from index.encoding import encode_queries, inner_product_error, negative_kl
from index.gaussians import Gaussians
from index.manifest import Manifest
from index.segments import Segment
from index.vectors import FlatVectors, GpuResources, set_threads

__all__ = ["Scanner"]


class Scanner:
    """The vectors of all segments, in memory or on one GPU.

    Raises CorruptIndexError naming the file whose vectors are not those of its segment, and DeviceUnavailableError for
    a CUDA device without faiss-gpu. Safe to call from several threads; on a GPU calls take turns.
    """

    def __init__(
        self, manifest: Manifest, segments: Sequence[Segment], device: torch.device, threads: int | None
    ) -> None:
        self.device = device
        self._encoding = manifest.encoding
        self._standardisation = manifest.standardisation.restore()
        self._threads = threads
        self._max_norm = max(segment.manifest.max_norm for segment in segments)
        gpu = GpuResources(device) if device.type == "cuda" else None
        self._gpu_turn = threading.Lock() if gpu else None
        self._vectors: list[FlatVectors] = []
        width = self._encoding.width(manifest.k)
        for segment in segments:
            vectors = FlatVectors.read(segment.vectors_file, documents=len(segment), width=width)
            self._vectors.append(vectors.on(gpu) if gpu else vectors)

    def scan(self, queries: Gaussians, count: int) -> tuple[Numbers, npt.NDArray[np.float64]]:
        """The `count` likeliest documents of each query, and a ceiling on the -KL of every other document.

        Returns numbers (b, c) in no particular order, -1 for none, c <= count where there are fewer documents or a GPU
        gives fewer, and ceilings (b,), -infinity where there is no other document.
        Raises InvalidGaussiansError naming the query whose vector float32 cannot hold.
        """
        queries = queries.to(self.device)
        vectors = encode_queries(queries, self._encoding, self._standardisation)
        scores, numbers, cutoffs = self._best(vectors, count)
        # What is not among a segment's best has an inner product of at most the segment's cutoff, and so an exact one
        # of at most the cutoff plus the error bound.
        if scores.shape[1] > count:
            best = np.argpartition(-scores, count, axis=1)
            cutoffs = np.maximum(cutoffs, np.take_along_axis(scores, best[:, count:], axis=1).max(axis=1))
            numbers = np.take_along_axis(numbers, best[:, :count], axis=1)
        errors = inner_product_error(vectors.norm(dim=1), self._max_norm, vectors.shape[1], vectors.dtype)
        bounds = torch.from_numpy(cutoffs.astype(np.float64)) + errors.cpu()
        ceilings = negative_kl(bounds[:, None], queries, self._encoding, self._standardisation)[:, 0]
        return numbers, ceilings.numpy()

    def _best(
        self, vectors: torch.Tensor, count: int
    ) -> tuple[npt.NDArray[np.float32], Numbers, npt.NDArray[np.float32]]:
        """Inner products and numbers of the best of each segment, side by side, and the cutoff over all segments."""
        set_threads(self._threads)
        all_scores, all_numbers = [], []
        cutoffs = np.full(len(vectors), -np.inf, dtype=np.float32)
        start = 0
        for index in self._vectors:
            limit = min(count, index.result_limit)
            scores, rows = self._search(index, vectors, limit)
            if limit < len(index):
                cutoffs = np.maximum(cutoffs, scores[:, -1])
            all_scores.append(scores)
            all_numbers.append(np.where(rows < 0, -1, rows + start))
            start += len(index)
        return np.concatenate(all_scores, axis=1), np.concatenate(all_numbers, axis=1), cutoffs

    def _search(self, index: FlatVectors, vectors: torch.Tensor, limit: int) -> tuple[npt.NDArray[np.float32], Numbers]:
        if self._gpu_turn is None:
            return index.search(vectors, limit)
        with self._gpu_turn:
            return index.search(vectors, limit)
