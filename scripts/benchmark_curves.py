"""Recall against latency of every kind and of what else one would search these vectors with; and growth.

Each contender has a process of its own, so that its peak memory is its own and no other's threads are in its way. One
query at a time, on one thread. Compare a contender's points with each other, and contenders by more than a few
percent: they do not take turns, as those of the other parts do.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from benchmark_data import Data, write_gaussians
from benchmark_measure import Figure
from benchmark_peers import EF_CONSTRUCTION, PROBES, TOP_K, M, padded, peers, prepared

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
from index.manifest import IndexKind

KINDS = (IndexKind.FLAT, IndexKind.FASTSCAN, IndexKind.IVF_FASTSCAN, IndexKind.HNSW)
QUERIES, WARM = 300, 30
FLOOR = 0.95
LONGEST = 60.0
"""Seconds after which a contender tries no further setting."""
GIVEN = 1000
CANDIDATES = (10, 14, 20, 28, 40, 80, 160)

Points = list[list[Any]]
"""Setting, recall, p50 and p99 in milliseconds, queries per second."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a contender's process sends back; `peak` is the most memory that its process held, in bytes."""

    points: Points
    build_seconds: float
    bytes_per_document: float
    peak: float


def curves_part(data: Data, documents: int, folder: Path) -> Iterator[Figure]:
    """A figure for each point, its value the recall, and for each contender its build, bytes and memory."""
    _prepare(data, documents, folder)
    setting = f"{documents:,} documents"
    for kind in KINDS:
        yield from _figures(setting, f"gaussearch {kind}", _apart(folder, kind))
    for peer in peers(3 * data.k + 1, documents):
        if peer.is_installed:
            yield from _figures(setting, peer.name, _apart(folder, peer.name))


def growth_part(data: Data, sizes: list[int], folder: Path) -> Iterator[Figure]:
    """The same of our kinds alone, at several sizes, and how much longer the best takes at the last than at the one
    before it."""
    fastest: list[float] = []
    for documents in sizes:
        _prepare(data, documents, folder, with_vectors=False)
        fastest.append(np.inf)
        for kind in (IndexKind.FASTSCAN, IndexKind.IVF_FASTSCAN, IndexKind.HNSW):
            found = _apart(folder, kind)
            fastest[-1] = min([fastest[-1], *(p50 for _, recall, p50, _, _ in found.points if recall >= FLOOR)])
            for figure in _figures(f"{documents:,} documents", f"gaussearch {kind}", found):
                yield dataclasses.replace(figure, part="growth")
    if len(sizes) > 1 and np.isfinite(fastest[-2:]).all():
        setting = f"{sizes[-1]:,} over {sizes[-2]:,} documents, recall@10 at least {FLOOR}"
        yield Figure.of("growth", setting, "latency of the best kind", fastest[-1] / fastest[-2], "ratio", at_most=2.0)


def _figures(setting: str, name: str, measured: Measured) -> Iterator[Figure]:
    for option, recall, p50, p99, rate in measured.points:
        yield Figure("curves", setting, f"{name}, {option}", recall, "recall@10", latency_ms=(p50, p99))
        yield Figure.of("curves", setting, f"{name}, {option}: rate", rate, "queries/s")
    yield Figure.of("curves", setting, f"{name}: build", measured.build_seconds, "s")
    yield Figure.of("curves", setting, f"{name}: index", measured.bytes_per_document, "bytes/document")
    yield Figure.of("curves", setting, f"{name}: peak memory", measured.peak / 2**20, "MiB")


def _prepare(data: Data, documents: int, folder: Path, *, with_vectors: bool = True) -> None:
    """Writes the corpus, queries to fit and to measure with, their true best, and the vectors of the peers."""
    data.write_parquet(folder / "corpus.parquet", documents, with_text=False)
    queries = data.queries_about(documents, 2 * GIVEN)
    write_gaussians(folder / "given.parquet", queries[::2])
    asked = queries[1::2][:QUERIES]
    np.savez(folder / "asked.npz", means=asked.means.numpy(), variances=asked.variances.numpy())
    flat = IndexDirectory(folder / "truth")
    build_index([folder / "corpus.parquet"], flat, BuildOptions(encoding=Encoding.FOLDED, restart=True))
    searcher = LocalSearcher(flat, verify=False)
    np.save(folder / "truth.npy", np.array([ranking.documents for ranking in searcher.search(asked, TOP_K)]))
    if not with_vectors:
        return
    standardisation = flat.manifest().standardisation.restore()
    parts = [
        encode_documents(Gaussians.from_arrays(chunk.means, chunk.variances), Encoding.SIMPLIFIED, standardisation)
        for chunk in data.chunks(documents)
    ]
    np.save(folder / "vectors.npy", torch.cat(parts).numpy())
    np.save(folder / "queries.npy", encode_queries(asked, Encoding.SIMPLIFIED, standardisation).numpy())


def _apart(folder: Path, name: str) -> Measured:
    """What a contender measures in a process of its own."""
    command = [sys.executable, __file__, str(folder), name]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Measured(**json.loads(answer.splitlines()[-1]))


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    ours = {kind.value: kind for kind in KINDS}
    measured = _measure_kind(folder, ours[name]) if name in ours else _measure_peer(folder, name)
    print(json.dumps(dataclasses.asdict(measured)))


def _measure_kind(folder: Path, kind: IndexKind) -> Measured:
    directory = IndexDirectory(folder / kind)
    options = BuildOptions(
        kind=kind, queries=folder / "given.parquet", hnsw_m=M, hnsw_ef_construction=EF_CONSTRUCTION, restart=True
    )
    started = time.perf_counter()
    build_index([folder / "corpus.parquet"], directory, options)
    seconds = time.perf_counter() - started
    torch.set_num_threads(1)
    searcher = LocalSearcher(directory, device="cpu", threads=1, verify=False)
    asked = np.load(folder / "asked.npz")
    queries = Gaussians.from_arrays(asked["means"], asked["variances"])
    codes = searcher.manifest.codes
    tried: list[dict[str, Any]] = [{}]
    if codes is not None and codes.lists is not None:
        tried += [{"nprobe": nprobe} for nprobe in (*PROBES, 1024) if nprobe <= codes.lists.lists]
    elif codes is not None:
        tried += [{"candidates": count} for count in CANDIDATES]

    def search(row: int, options: dict[str, Any]) -> npt.NDArray[np.int64]:
        return searcher.search(queries[row : row + 1], TOP_K, **options)[0].documents

    truth = np.load(folder / "truth.npy")
    named = [(", ".join(f"{name} {value}" for name, value in each.items()) or "as built", each) for each in tried]
    points = _points(truth, [(name, functools.partial(search, options=each)) for name, each in named])
    size = float(codes.code_bytes) if codes is not None else 4.0 * (2 * queries.k + 1)
    if codes is not None and codes.lists is not None:
        # The number of each document in its list, and its list.
        size += 12
    if codes is not None and codes.graph is not None:
        size += codes.graph.file.bytes / searcher.manifest.documents
    return Measured(points, seconds, size, _peak())


def _measure_peer(folder: Path, name: str) -> Measured:
    documents, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    (peer,) = [each for each in peers(documents.shape[1], len(documents)) if each.name == name]
    documents, queries = prepared(documents, queries) if peer.prepared else (padded(documents), padded(queries))
    started = time.perf_counter()
    search, size = peer.build(documents, folder)
    seconds = time.perf_counter() - started
    faiss.omp_set_num_threads(1)
    truth = np.load(folder / "truth.npy")

    def one(row: int, setting: int) -> npt.NDArray[np.int64]:
        return search(queries[row : row + 1], setting)

    points = _points(truth, [(str(value), functools.partial(one, setting=value)) for value in peer.settings])
    return Measured(points, seconds, size, _peak())


def _points(truth: npt.NDArray[np.int64], settings: list[tuple[str, Callable[[int], npt.NDArray[np.int64]]]]) -> Points:
    """What each setting finds, and how fast, until they take too long."""
    points: Points = []
    started = time.perf_counter()
    for name, search in settings:
        for row in range(WARM):
            search(row)
        seconds, found = [], []
        for row in range(len(truth)):
            before = time.perf_counter()
            found.append(search(row))
            seconds.append(time.perf_counter() - before)
        recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / TOP_K for a, b in zip(truth, found, strict=True)])
        p50, p99 = (1e3 * np.percentile(seconds, (50, 99))).tolist()
        points.append([name, float(recall), p50, p99, len(seconds) / sum(seconds)])
        if time.perf_counter() - started > LONGEST:
            break
    return points


def _peak() -> float:
    # Not getrusage, whose figure begins with that of the process which this one was forked from.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
