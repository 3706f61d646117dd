"""The documents of a segment, encoded straight into FAISS's memory on all cores or on a GPU."""

import contextlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from index.cores import one_core_each
from index.encoding import Encoding, Standardisation, encode_documents
from index.errors import InvalidGaussiansError
from index.gaussians import Gaussians
from index.vectors import FlatVectors

__all__ = ["SegmentEncoder"]

ENCODE_ROWS = 1 << 13
"""Documents that one thread encodes, or that are taken to the GPU, at a time."""


class SegmentEncoder:
    """Encodes documents into FAISS's memory, on all cores or on a GPU, for several segments at a time if asked to.

    A context manager, which holds the threads.
    """

    def __init__(self, encoding: Encoding, standardisation: Standardisation, device: torch.device) -> None:
        self._encoding = encoding
        self._standardisation = standardisation
        self._device = device
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # On a GPU a thread of its own too, in which what is copied and what is computed keep their order.
        threads = one_core_each() if self._device.type == "cpu" else ThreadPoolExecutor(1)
        self._pool = self._held.enter_context(threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def encode(self, gaussians: npt.NDArray[np.float32], advance: Callable[[int], None]) -> tuple[FlatVectors, float]:
        """The vectors of documents (n, 2k), means | variances, and the largest L2 norm among them.

        `advance` is told how many more documents are done. Raises InvalidGaussiansError with the row whose vector does
        not fit float32.
        """
        documents, k = len(gaussians), gaussians.shape[1] // 2
        vectors, memory = FlatVectors.preallocate(documents, self._encoding.width(k))

        def encode_rows(start: int) -> float:
            rows = slice(start, start + ENCODE_ROWS)
            norm = self._encode_rows(gaussians[rows], memory[rows], start)
            advance(len(gaussians[rows]))
            return norm

        return vectors, max(self._pool.map(encode_rows, range(0, documents, ENCODE_ROWS)))

    def _encode_rows(self, gaussians: npt.NDArray[np.float32], out: torch.Tensor, first_row: int) -> float:
        """Encodes rows, numbered from `first_row` on in errors, into `out`, and returns their largest norm."""
        k = gaussians.shape[1] // 2
        block = torch.from_numpy(np.array(gaussians)).to(self._device)
        documents = Gaussians(block[:, :k], block[:, k:])
        try:
            if self._device.type == "cpu":
                encode_documents(documents, self._encoding, self._standardisation, out=out)
            else:
                out.copy_(encode_documents(documents, self._encoding, self._standardisation))
        except InvalidGaussiansError as error:
            raise InvalidGaussiansError(str(error), row=first_row + (error.row or 0)) from error
        return _largest_norm(out)


def _largest_norm(vectors: torch.Tensor) -> float:
    array = vectors.numpy()
    largest = float(np.sqrt(np.einsum("ij,ij->i", array, array).max()))
    if math.isfinite(largest):
        return largest
    # The square of a large float32 is not one; float64 takes seven times as long, and holds it.
    return float(torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).max())
