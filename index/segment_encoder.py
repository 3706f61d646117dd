"""The documents of a segment, encoded on all cores or on a GPU and streamed to their file."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from index.background import SEGMENTS_AT_WORK, in_order
from index.cores import available_cores, one_core_each
from index.encoding import Encoding, Standardisation, encode_documents
from index.errors import InvalidGaussiansError
from index.gaussians import Gaussians
from index.manifest import FileEntry
from index.vectors import write_vectors

__all__ = ["SegmentEncoder"]

ENCODE_ROWS = 1 << 12
"""Documents that one thread encodes, or that are taken to the GPU, at a time."""

Block = npt.NDArray[np.float32]


class SegmentEncoder:
    """Encodes documents on all cores or on a GPU, for several segments at a time if asked to.

    A context manager, which holds the threads.
    """

    def __init__(self, encoding: Encoding, standardisation: Standardisation, device: torch.device) -> None:
        self._encoding = encoding
        self._standardisation = standardisation
        self._device = device
        self._held = contextlib.ExitStack()
        # Blocks that have been written: new memory would have to be mapped and cleared, block after block.
        self._free: deque[torch.Tensor] = deque()

    def __enter__(self) -> Self:
        # On a GPU a thread of its own too, in which what is copied and what is computed keep their order.
        threads = one_core_each() if self._device.type == "cpu" else ThreadPoolExecutor(1)
        self._pool = self._held.enter_context(threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def write(self, gaussians: Block, path: Path, advance: Callable[[int], None]) -> tuple[FileEntry, float]:
        """Writes the vectors of documents (n, 2k), means | variances, to a FAISS index at `path`, block by block.

        Returns the file's entry and the largest L2 norm of a vector. `advance` is told how many more documents are
        done. Raises InvalidGaussiansError with the row whose vector does not fit float32.
        """
        documents, k = len(gaussians), gaussians.shape[1] // 2
        largest = 0.0

        def blocks() -> Iterator[Block]:
            nonlocal largest
            starts = range(0, documents, ENCODE_ROWS)
            ahead = 1 + available_cores() // SEGMENTS_AT_WORK
            for memory, rows, norm in in_order(self._pool, partial(self._encode_from, gaussians), starts, ahead=ahead):
                largest = max(largest, norm)
                yield memory[:rows].numpy()
                self._free.append(memory)
                advance(rows)

        entry = write_vectors(path, documents, self._encoding.width(k), blocks())
        return entry, largest

    def _encode_from(self, gaussians: Block, start: int) -> tuple[torch.Tensor, int, float]:
        """Memory whose first rows are the vectors of a block of documents, their number, and their largest norm."""
        k = gaussians.shape[1] // 2
        block = torch.from_numpy(gaussians[start : start + ENCODE_ROWS]).to(self._device)
        documents = Gaussians(block[:, :k], block[:, k:])
        memory = self._block(self._encoding.width(k))
        vectors = memory[: len(documents)]
        try:
            if self._device.type == "cpu":
                encode_documents(documents, self._encoding, self._standardisation, out=vectors)
            else:
                vectors.copy_(encode_documents(documents, self._encoding, self._standardisation))
        except InvalidGaussiansError as error:
            raise InvalidGaussiansError(str(error), row=start + (error.row or 0)) from error
        return memory, len(documents), _largest_norm(vectors.numpy())

    def _block(self, width: int) -> torch.Tensor:
        try:
            return self._free.pop()
        except IndexError:
            return torch.empty(ENCODE_ROWS, width)


def _largest_norm(vectors: Block) -> float:
    largest = float(np.sqrt(np.einsum("ij,ij->i", vectors, vectors).max()))
    if math.isfinite(largest):
        return largest
    # The square of a large float32 is not one; float64 takes seven times as long, and holds it.
    return float(np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1).max()))
