"""The engine against FAISS called directly on the same vectors, and the encoders against a copy in device memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from benchmark_data import Data
from benchmark_measure import Contender, Figure, Series, Spread, Turn, repeating, take_turns

from index import (
    BuildOptions,
    Encoding,
    Gaussians,
    IndexDirectory,
    LocalSearcher,
    build_index,
    encode_documents,
    encode_queries,
)
from index.generation_files import open_segments
from index.scanning import SCANNED

TOP_K = 10
BATCHES = (1, 32, 128)
FORCED = 1
ENCODED_BYTES = 1 << 30


def searching(searcher: LocalSearcher, queries: Gaussians, batch: int, **options: int) -> Contender:
    """Searches as the product does it: encoding, scan, exact scores, and proof where the kind has one."""
    asked = itertools.cycle(batches(queries, batch))
    effort: dict[str, Any] = {**options}

    def search() -> int:
        searcher.search(next(asked), TOP_K, **effort)
        return batch

    return repeating(search)


def engine_part(data: Data, documents: int, folder: Path, seconds: float, rounds: int) -> Iterator[Figure]:
    """Queries per second and latency over IndexFlatIP's, and `folded` over `simplified`."""
    corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=False)
    directories = {encoding: IndexDirectory(folder / encoding) for encoding in (Encoding.SIMPLIFIED, Encoding.FOLDED)}
    for encoding, directory in directories.items():
        build_index([corpus], directory, BuildOptions(encoding=encoding))
    corpus.unlink()
    flat, encoded = flat_index(directories[Encoding.SIMPLIFIED], data.queries)
    flat_folded, encoded_folded = flat_index(directories[Encoding.FOLDED], data.queries)
    default = faiss_default_threshold()

    for batch, threads in ((1, 1), *((batch, None) for batch in BATCHES)):
        ours = {
            name: LocalSearcher(directory, device="cpu", threads=threads, verify=False)
            for name, directory in directories.items()
        }
        contenders = {
            "gaussearch": searching(ours[Encoding.SIMPLIFIED], data.queries, batch),
            "gaussearch, folded": searching(ours[Encoding.FOLDED], data.queries, batch),
            "IndexFlatIP": scanning(flat, encoded, batch, threads, default),
            "IndexFlatIP, BLAS forced": scanning(flat, encoded, batch, threads, FORCED),
            "IndexFlatIP of folded vectors": scanning(flat_folded, encoded_folded, batch, threads, default),
        }
        with torch_threads(threads):
            series = take_turns(contenders, seconds=seconds, rounds=rounds)
        setting = f"batch {batch}, {'1 thread' if threads == 1 else 'all threads'}"
        yield from _engine_figures(setting, series)

    agreement = _agreement(ours[Encoding.SIMPLIFIED], flat, data.queries, encoded)
    yield Figure.of("engine", "all queries", "IndexFlatIP's top 10 in ours", agreement, "share", at_least=0.999)
    for encoding, directory in directories.items():
        manifest = directory.manifest()
        size = sum(segment.bytes for segment in manifest.segments) / manifest.documents
        yield Figure.of("engine", encoding, "vectors on disk", 4.0 * encoding.width(manifest.k), "bytes/document")
        yield Figure.of("engine", encoding, "all on disk", size, "bytes/document")
    yield Figure.of("engine", "either encoding", "scanned", 4.0 * SCANNED.width(data.k), "bytes/document")


def _engine_figures(setting: str, series: dict[str, Series]) -> Iterator[Figure]:
    for name, one in series.items():
        yield Figure.rate("engine", setting, name, one, "queries/s")
    ours = series["gaussearch"]
    yield Figure.of(
        "engine", setting, "gaussearch over IndexFlatIP", ours.over(series["IndexFlatIP"]), "ratio", at_least=0.9
    )
    forced = ours.over(series["IndexFlatIP, BLAS forced"])
    yield Figure.of("engine", setting, "gaussearch over IndexFlatIP, BLAS forced", forced, "ratio", at_least=1.0)
    folded = series["IndexFlatIP of folded vectors"].over(series["IndexFlatIP"])
    yield Figure.of("engine", setting, "IndexFlatIP, folded over simplified", folded, "ratio")
    # Close to 1, because gaussearch scans the folded form of either.
    measure = "gaussearch, folded over simplified"
    yield Figure.of("engine", setting, measure, series["gaussearch, folded"].over(ours), "ratio")


def scanning(flat: Any, encoded: npt.NDArray[np.float32], batch: int, threads: int | None, threshold: int) -> Contender:
    """Searches as one calls FAISS: vectors that are encoded already, float32 scores, row numbers."""
    asked = itertools.cycle([np.ascontiguousarray(encoded[rows]) for rows in _rows(len(encoded), batch)])

    def search() -> int:
        flat.search(next(asked), TOP_K)
        return batch

    repeated = repeating(search)

    def work_for(seconds: float) -> Turn:
        faiss.omp_set_num_threads(threads or os.cpu_count() or 1)
        with blas_threshold(threshold):
            return repeated(seconds)

    return work_for


def _rows(queries: int, batch: int) -> list[list[int]]:
    """Row numbers of `batch` queries each, which use every query equally often and then start again."""
    every = [row % queries for row in range(batch * (queries // np.gcd(queries, batch)))]
    return [every[first : first + batch] for first in range(0, len(every), batch)]


def batches(queries: Gaussians, batch: int) -> Sequence[Gaussians]:
    """The queries in batches of that many, in which each occurs equally often."""
    return [queries[torch.tensor(rows)] for rows in _rows(len(queries), batch)]


def flat_index(directory: IndexDirectory, queries: Gaussians) -> tuple[Any, npt.NDArray[np.float32]]:
    """One IndexFlatIP of an index's own document vectors, and the vectors of the queries."""
    manifest = directory.manifest()
    flat = faiss.IndexFlatIP(manifest.encoding.width(manifest.k))
    for segment in open_segments(directory, manifest, verify=False):
        vectors: Any = faiss.read_index(str(segment.vectors_file))
        flat.add(faiss.rev_swig_ptr(vectors.get_xb(), vectors.ntotal * vectors.d).reshape(vectors.ntotal, vectors.d))
    return flat, encode_queries(queries, manifest.encoding, manifest.standardisation.restore()).numpy()


def _agreement(searcher: LocalSearcher, flat: Any, queries: Gaussians, encoded: npt.NDArray[np.float32]) -> float:
    """Which share of FAISS's results, by float32 scores, are among ours, by exact ones."""
    _, rows = flat.search(encoded, TOP_K)
    rankings = searcher.search(queries, TOP_K)
    return float(np.mean([np.isin(found, ours.documents).mean() for found, ours in zip(rows, rankings, strict=True)]))


@contextlib.contextmanager
def blas_threshold(value: int) -> Iterator[None]:
    """From what size of a batch on FAISS multiplies matrices instead of going through documents one by one."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = value
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def faiss_default_threshold() -> int:
    """FAISS's own value, asked of a process in which nobody has changed it; its meaning differs between releases."""
    code = "import faiss; print(faiss.cvar.distance_compute_blas_threshold)"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Limits torch, too, for a comparison on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def encoding_part(data: Data, seconds: float, rounds: int) -> Iterator[Figure]:
    """Bytes of document vectors written per second over those of a copy within the same CUDA device's memory."""
    device = torch.device("cuda")
    for encoding in Encoding:
        width = encoding.width(data.k)
        documents = ENCODED_BYTES // (4 * width)
        rows = torch.arange(documents) % len(data)
        gaussians = Gaussians(
            torch.from_numpy(data.means)[rows].to(device), torch.from_numpy(data.variances)[rows].to(device)
        )
        written = torch.empty((documents, width), dtype=torch.float32, device=device)
        copied = torch.empty_like(written)
        size = float(written.nbytes)
        contenders = {
            "encoding": repeating(_synchronised(size, _encode_into(written, gaussians, encoding))),
            "copy": repeating(_synchronised(size, _copy_into(copied, written))),
        }
        series = take_turns(contenders, seconds=seconds, rounds=rounds)
        for name, one in series.items():
            rate = one.rate()
            gigabytes = Spread(rate.median / 1e9, rate.low / 1e9, rate.high / 1e9)
            yield Figure.of("encoding", encoding, f"{name}, bytes written", gigabytes, "GB/s")
        yield Figure.of("encoding", encoding, "encoding over copy", series["encoding"].over(series["copy"]), "ratio")


def _encode_into(out: torch.Tensor, documents: Gaussians, encoding: Encoding) -> Callable[[], object]:
    return lambda: encode_documents(documents, encoding, out=out)


def _copy_into(out: torch.Tensor, source: torch.Tensor) -> Callable[[], object]:
    return lambda: out.copy_(source)


def _synchronised(size: float, operation: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        operation()
        torch.cuda.synchronize()
        return size

    return run
