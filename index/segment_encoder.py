"""The documents of one segment, encoded straight into FAISS's memory on all cores or on a GPU."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from index.cores import one_core_each
from index.encoding import Encoding, Standardisation, encode_documents
from index.errors import InvalidGaussiansError
from index.gaussians import Gaussians
from index.vectors import FlatVectors

__all__ = ["encode_segment"]

ENCODE_ROWS = 1 << 13
"""Documents that one thread encodes, or that are taken to the GPU, at a time."""


def encode_segment(
    gaussians: npt.NDArray[np.float32],
    encoding: Encoding,
    standardisation: Standardisation,
    device: torch.device,
    advance: Callable[[int], None],
) -> tuple[FlatVectors, float]:
    """The vectors of documents (n, 2k), means | variances, and the largest L2 norm among them.

    `advance` is told how many more documents are done. Raises InvalidGaussiansError with the row whose vector does not
    fit float32.
    """
    documents, k = len(gaussians), gaussians.shape[1] // 2
    vectors, memory = FlatVectors.preallocate(documents, encoding.width(k))

    def encode_rows(start: int) -> float:
        block = torch.from_numpy(np.array(gaussians[start : start + ENCODE_ROWS])).to(device)
        target = memory[start : start + ENCODE_ROWS]
        part = Gaussians(block[:, :k], block[:, k:])
        try:
            if device.type == "cpu":
                encode_documents(part, encoding, standardisation, out=target)
            else:
                target.copy_(encode_documents(part, encoding, standardisation))
        except InvalidGaussiansError as error:
            raise InvalidGaussiansError(str(error), row=start + (error.row or 0)) from error
        advance(len(part))
        return _largest_norm(target)

    with one_core_each() if device.type == "cpu" else ThreadPoolExecutor(1) as pool:
        norms = list(pool.map(encode_rows, range(0, documents, ENCODE_ROWS)))
    return vectors, max(norms)


def _largest_norm(vectors: torch.Tensor) -> float:
    array = vectors.numpy()
    largest = float(np.sqrt(np.einsum("ij,ij->i", array, array).max()))
    if math.isfinite(largest):
        return largest
    # The square of a large float32 is not one; float64 takes seven times as long, and holds it.
    return float(torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64).max())
