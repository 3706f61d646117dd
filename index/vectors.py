"""FAISS behind one seam: the flat inner-product index of one segment.

What it guards against: k above n pads with id -1; a wrong width raises an empty AssertionError; `write_index` to a path
can fail without an error; GPU indexes take k up to 2048 and are not safe for concurrent use.
"""

import contextlib
import functools
import importlib
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index.cores import available_cores
from index.durable import checksummed
from index.encoding import Encoding, fold_documents
from index.errors import BuildError, CorruptIndexError, DeviceUnavailableError
from index.faiss_fields import HEADER, INNER_PRODUCT, Fields
from index.records import FileEntry
from index.untrusted import IndexFile

__all__ = [
    "FlatVectors",
    "GpuResources",
    "best_products",
    "gpu_resources",
    "matrix_products",
    "one_thread",
    "resolve_device",
    "set_threads",
    "write_vectors",
]

GPU_RESULT_LIMIT = 2048
"""The most results per query that FAISS's GPU indexes give."""

BLAS_QUERIES = 3
"""From how many queries on a matrix multiplication scans faster than FAISS's own loop; for one query it takes twice as
long (k=128, one thread and two)."""

FLAT_HEADER = HEADER + 8
"""Bytes before the vectors in the file of an IndexFlatIP."""

_BLAS_THRESHOLD = faiss.cvar.distance_compute_blas_threshold

# What FAISS set it to while it counted queries.
_OLD_BLAS_THRESHOLD = 20


def resolve_device(device: str) -> torch.device:
    """The torch device that `auto`, `cpu`, `cuda` or `cuda:N` stands for; auto is CUDA where torch sees one.

    Raises DeviceUnavailableError where the device asked for is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceUnavailableError(f"{device!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise DeviceUnavailableError(f"device {device} is not there: torch sees {count} CUDA devices; use cpu")
    elif resolved.type != "cpu":
        raise DeviceUnavailableError(f"device {device} is not supported; use auto, cpu, cuda or cuda:N")
    return resolved


def set_threads(threads: int | None) -> None:
    """Sets the number of OpenMP threads that FAISS uses when called from this thread; None is one per core."""
    faiss.omp_set_num_threads(threads or available_cores())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps what FAISS does for this thread, inside the block, in this thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextlib.contextmanager
def matrix_products(width: int) -> Iterator[None]:
    """Has FAISS scan for `BLAS_QUERIES` queries and more by matrix multiplication, two to six times as fast.

    Its own threshold, which counts numbers (queries times width) and in older releases queries, leaves that to batches
    of hundreds. It is a global: searches of other threads may meet either value; only their speed depends on it.
    """
    counts_numbers = _BLAS_THRESHOLD > _OLD_BLAS_THRESHOLD
    faiss.cvar.distance_compute_blas_threshold = BLAS_QUERIES * width if counts_numbers else BLAS_QUERIES
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = _BLAS_THRESHOLD


def best_products(
    queries: Tensor, vectors: npt.NDArray[np.float32], count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The `count`, at most n, largest inner products of queries (b, d) with vectors (n, d), float32 on the CPU: scores
    and rows, (b, count) each, best first; a row of -1 where FAISS found nothing comparable."""
    scores, rows = faiss.knn(queries.numpy(), vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, rows


def write_vectors(path: Path, documents: int, width: int, blocks: Iterable[npt.NDArray[np.float32]]) -> FileEntry:
    """Writes vectors that come in blocks (any, width), `documents` in all, as FAISS writes an IndexFlatIP of them.

    No such index is made: FAISS fills its memory with zeros before it takes vectors, and copies what it writes, which
    together took as long as writing. Raises BuildError where this release of FAISS writes it otherwise than known here.
    """
    with checksummed(path) as file:
        header = _flat_header(documents, width)
        file.reserve(len(header) + 4 * documents * width)
        file.write(header)
        for block in blocks:
            file.write(block.data)
    if file.entry.bytes != len(header) + 4 * documents * width:
        raise ValueError(f"{path}: its blocks are not {documents} vectors of {width} numbers")
    return file.entry


def _flat_header(documents: int, width: int) -> bytes:
    """What stands before the vectors in the file of an IndexFlatIP.

    FAISS's own header of an index of one vector, in which the two places that count are changed, and which is compared
    with what FAISS makes of two vectors.
    """

    def counting(documents: int) -> bytes:
        header = bytearray(_serialized(1, width)[: -4 * width])
        struct.pack_into("<q", header, 8, documents)
        struct.pack_into("<Q", header, len(header) - 8, documents * width)
        return bytes(header)

    if counting(2) != _serialized(2, width)[: -8 * width]:
        raise BuildError(
            f"faiss {faiss.__version__} writes IndexFlatIP in a form that gaussearch does not know: install the "
            "version that constraints.txt names, or a newer gaussearch"
        )
    return counting(documents)


def _require_flat(path: Path, header: bytes, documents: int, width: int) -> None:
    """Raises CorruptIndexError unless these are the first bytes of an IndexFlatIP of so many vectors and numbers."""
    fields = Fields(header)
    try:
        form, found, (numbers,) = fields.name(), fields.header(), fields.read("Q")
    except ValueError as error:
        raise CorruptIndexError(f"{path} is not a FAISS index: {error}") from error
    if form != "IxFI" or found.metric != INNER_PRODUCT or not found.is_trained:
        raise CorruptIndexError(f"{path} is not a flat inner-product index")
    if (found.documents, found.dimensions, numbers) != (documents, width, documents * width):
        raise CorruptIndexError(
            f"{path} holds {found.documents} x {found.dimensions} numbers, not {documents} x {width}"
        )


def _serialized(documents: int, width: int) -> bytes:
    index = faiss.IndexFlatIP(width)
    index.add(np.zeros((documents, width), dtype=np.float32))
    return bytes(faiss.serialize_index(index))


class GpuResources:
    """FAISS's scratch memory and streams on one CUDA device; `gpu_resources` gives the one that there is.

    They serve one call at a time: whoever copies, searches or frees an index on the device holds `turn`, which may be
    taken again by who has it, because an index may be freed by the garbage collector.
    """

    def __init__(self, device: torch.device) -> None:
        if not hasattr(faiss, "StandardGpuResources"):
            raise DeviceUnavailableError(
                f"searching on {device} needs faiss-gpu, and faiss-cpu is installed: "
                "install the gpu extra in place of the cpu extra, or use --device cpu"
            )
        # Teaches FAISS's Python classes to take CUDA tensors; it can only be imported where faiss-gpu is installed.
        importlib.import_module("faiss.contrib.torch_utils")
        self.device = device
        self.turn = threading.RLock()
        self._handle = faiss.StandardGpuResources()

    def to_device(self, index: Any) -> Any:
        """A copy of a CPU index on the device."""
        with self.turn:
            return faiss.index_cpu_to_gpu(self._handle, self.device.index or 0, index)


@functools.cache
def _resources(number: int) -> GpuResources:
    return GpuResources(torch.device("cuda", number))


def gpu_resources(device: torch.device) -> GpuResources:
    """The resources of a CUDA device, which all indexes on it share: they take hundreds of megabytes, and a generation
    is loaded while the one before it is searched. Raises DeviceUnavailableError where faiss-gpu is not installed.
    """
    return _resources(device.index or 0)


class FlatVectors:
    """The (n, d) float32 document vectors of one segment in a FAISS IndexFlatIP, on the CPU or a GPU."""

    def __init__(self, index: Any, resources: GpuResources | None = None) -> None:
        self._index = index
        self._resources = resources
        self.device = resources.device if resources else torch.device("cpu")

    def __del__(self) -> None:
        if self._resources is not None:
            with self._resources.turn:
                self._index = None

    @classmethod
    def preallocate(cls, documents: int, width: int) -> tuple["FlatVectors", Tensor]:
        """An index of that size and its memory as a writable (documents, width) float32 tensor.

        Writing straight into it saves the copy that `add` makes, and half the memory. The tensor must not outlive the
        index.
        """
        index = faiss.IndexFlatIP(width)
        index.codes.resize(documents * width * 4)
        index.ntotal = documents
        vectors = cls(index)
        return vectors, torch.from_numpy(vectors._memory())

    @classmethod
    def read(cls, file: IndexFile, *, documents: int, width: int) -> "FlatVectors":
        """Reads vectors.faiss into memory; raises CorruptIndexError naming the file unless it is what is expected.

        Straight into the index's memory: FAISS reads nothing, and what is taken follows from what is expected.
        """
        with file.open() as opened:
            _require_flat(file.path, opened.take(FLAT_HEADER), documents, width)
            if opened.size != FLAT_HEADER + 4 * documents * width:
                raise CorruptIndexError(
                    f"{file.path} has {opened.size} bytes, which are not those of {documents} x {width} numbers"
                )
            vectors, memory = cls.preallocate(documents, width)
            opened.fill(memory.numpy().data)
            opened.finish()
        return vectors

    def folded(self, encoding: Encoding, k: int) -> "FlatVectors":
        """The same documents under the folded encoding; these are k-dimensional, under `encoding`, and on the CPU."""
        if encoding is Encoding.FOLDED:
            return self
        vectors, memory = FlatVectors.preallocate(len(self), Encoding.FOLDED.width(k))
        fold_documents(torch.from_numpy(self._memory()), encoding, out=memory)
        return vectors

    def on(self, resources: GpuResources) -> "FlatVectors":
        """The same vectors on a GPU."""
        return FlatVectors(resources.to_device(self._index), resources)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def result_limit(self) -> int:
        """The most results per query that one search can give."""
        return len(self) if self.device.type == "cpu" else min(GPU_RESULT_LIMIT, len(self))

    def search(
        self, queries: Tensor, count: int, rows: range | npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The `count` documents of the largest inner products: scores and rows, (b, count) each, best first.

        queries: (b, d) float32 on this index's device. `count` is at most `result_limit`, and on a CPU at most the
        number of `rows`, if only those are to be searched: a range, or any, which are copied. A row of -1 stands where
        FAISS found nothing comparable (an inner product that is NaN).
        """
        if self.device.type != "cpu":
            on_host = [result.cpu().numpy() for result in self._index.search(queries, count)]
            return on_host[0], on_host[1]
        if rows is None or len(rows) == len(self):
            scores, found = self._index.search(queries.numpy(), count)
            return scores, found
        if not isinstance(rows, range):
            scores, found = best_products(queries, self._memory()[rows], count)
            return scores, np.where(found < 0, -1, rows[found])
        scores, found = best_products(queries, self._memory()[rows.start : rows.stop], count)
        return scores, np.where(found < 0, -1, found + rows.start)

    def _memory(self) -> npt.NDArray[np.float32]:
        documents, width = len(self), self._index.d
        memory: npt.NDArray[np.float32] = faiss.rev_swig_ptr(self._index.get_xb(), documents * width)
        return memory.reshape(documents, width)
