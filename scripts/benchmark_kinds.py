"""Kind fastscan against what FAISS offers for the same job, each at the same recall of the same queries.

Everyone may use as many candidates as reach the floor, and FAISS whichever width of code is fastest then: the kind is
held against `PQ…x4fs,RFlat` as an expert would set it up, not against IndexFlatIP alone, which is easily beaten.
"""

from __future__ import annotations

import os
import shutil
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
from benchmark_build import GAUSSEARCH
from benchmark_data import Data, write_gaussians
from benchmark_engine import FORCED, TOP_K, faiss_default_threshold, flat_index, scanning, searching, torch_threads
from benchmark_measure import Contender, Figure, once, take_turns
from benchmark_service import HERE, LoadGenerator, free_port, running, write_naive

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index

FLOOR, BATCH_FLOOR = 0.99, 0.98
CANDIDATES = sorted({round(value) for value in np.geomspace(TOP_K, 8000, 60)})
NUMBERS_PER_DIGIT = (2, 3, 4, 6)
TRAINED_ON = 65_536
BATCH = 32
BUILDS = 3
QUERIES = 500
"""Queries of each corpus, spread over those that there are: tuning asks all of them, again and again."""
TIMED = 100
HTTP_DOCUMENTS = 200_000
"""Above so many the service that anyone would write takes too long to be worth waiting for."""

Vectors = npt.NDArray[np.float32]
Found = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """One size of corpus: both kinds of index, FAISS's flat one of 3k+1 numbers, and the queries' true top ten."""

    directories: dict[str, IndexDirectory]
    flat: Any
    queries: Gaussians
    encoded: Vectors
    truth: list[set[int]]

    def recall(self, found: Found | list[Found]) -> float:
        """The share of the true top ten among what was found for each query."""
        return float(
            np.mean([len(its & set(map(int, row))) / TOP_K for its, row in zip(self.truth, found, strict=True)])
        )


def kinds_part(data: Data, sizes: list[int], folder: Path, seconds: float, rounds: int) -> Iterator[Figure]:
    """Latency, throughput, memory and time to build, for corpora of several sizes.

    Every second query is given to the build, and the others are what everything is measured with.
    """
    given = write_gaussians(folder / "queries.parquet", data.queries[::2])
    measured = data.queries[1::2]
    measured = measured[torch.arange(0, len(measured), max(1, len(measured) // QUERIES))]
    for documents in sizes:
        corpus_file = data.write_parquet(folder / "corpus.parquet", documents, with_text=documents <= HTTP_DOCUMENTS)
        setting = f"{documents:,} documents"
        yield from _building(corpus_file, given, folder, setting)
        corpus = _open(folder, measured)
        yield from _alone(corpus, setting, seconds, rounds)
        yield from _together(corpus, setting, seconds, rounds)
        yield from _sizes(corpus, setting)
        if documents <= HTTP_DOCUMENTS:
            yield from _over_http(corpus, data, documents, folder, seconds, rounds)
        for directory in corpus.directories.values():
            shutil.rmtree(directory.path)
        corpus_file.unlink()


def _building(corpus: Path, given: Path, folder: Path, setting: str) -> Iterator[Figure]:
    def builds(kind: str) -> Contender:
        path = folder / kind

        def build() -> float:
            shutil.rmtree(path, ignore_errors=True)
            return build_index(
                [corpus], IndexDirectory(path), BuildOptions.model_validate({"kind": kind, "queries": given})
            ).manifest.documents

        return once(build, lambda: None)

    series = take_turns({"flat": builds("flat"), "fastscan": builds("fastscan")}, seconds=0.0, rounds=BUILDS)
    for kind, one in series.items():
        yield Figure.of("kinds", setting, f"build of {kind}", one.rate(), "documents/s")
    time_taken = series["flat"].over(series["fastscan"])
    yield Figure.of("kinds", setting, "time to build fastscan over flat", time_taken, "ratio", at_most=2.0)


def _open(folder: Path, queries: Gaussians) -> Corpus:
    directories = {kind: IndexDirectory(folder / kind) for kind in ("flat", "fastscan")}
    flat, encoded = flat_index(directories["flat"], queries)
    searcher = LocalSearcher(directories["flat"], device="cpu", verify=False)
    truth = [set(ranking.documents.tolist()) for ranking in searcher.search(queries, TOP_K)]
    return Corpus(directories, flat, queries, encoded, truth)


def _alone(corpus: Corpus, setting: str, seconds: float, rounds: int) -> Iterator[Figure]:
    """One query at a time on one thread."""
    setting = f"{setting}, one query, one thread"
    faiss.omp_set_num_threads(1)
    searcher = LocalSearcher(corpus.directories["fastscan"], device="cpu", threads=1, verify=False)
    candidates = _fewest(corpus, searcher, FLOOR)
    quantised, default = _best_quantised(corpus, FLOOR), faiss_default_threshold()
    contenders = {
        "fastscan": searching(searcher, corpus.queries, 1, candidates),
        "fastscan, 10 candidates": searching(searcher, corpus.queries, 1, TOP_K),
        "IndexFlatIP": scanning(corpus.flat, corpus.encoded, 1, 1, default),
    }
    if quantised is not None:
        contenders[quantised.name] = scanning(quantised, quantised.padded(corpus.encoded), 1, 1, default)
    with torch_threads(1):
        series = take_turns(contenders, seconds=seconds * len(contenders), rounds=rounds)
        found = searcher.search(corpus.queries, TOP_K, candidates=candidates)
    for name, one in series.items():
        yield Figure.rate("kinds", setting, name, one, "queries/s")
    recall = corpus.recall([ranking.documents for ranking in found])
    yield Figure.of("kinds", setting, "recall@10 of fastscan", recall, "share", at_least=FLOOR)
    ours = series["fastscan"]
    over_flat = ours.over(series["IndexFlatIP"])
    yield Figure.of("kinds", setting, "fastscan over IndexFlatIP", over_flat, "ratio", at_least=15.0)
    codes = searcher.manifest.codes
    if quantised is not None and codes is not None:
        yield Figure.of("kinds", setting, "recall@10 of FAISS's best", quantised.recall, "share")
        over_best = ours.over(series[quantised.name])
        yield Figure.of("kinds", setting, "fastscan over FAISS's best", over_best, "ratio", at_least=2.0)
        share = 2 * codes.code_bytes / quantised.digits
        yield Figure.of("kinds", setting, "bytes of a code over FAISS's best's", share, "ratio", at_most=1 / 3)
    of_rescoring = 1 - 1 / series["fastscan, 10 candidates"].over(ours).median
    yield Figure.of(
        "kinds", setting, "share of scoring all but 10 of the candidates", of_rescoring, "share", at_most=0.25
    )
    yield Figure.of("kinds", setting, "candidates", float(candidates), "documents")


def _together(corpus: Corpus, setting: str, seconds: float, rounds: int) -> Iterator[Figure]:
    """Batches on all threads."""
    setting = f"{setting}, batches of {BATCH}, all threads"
    searcher = LocalSearcher(corpus.directories["fastscan"], device="cpu", verify=False)
    candidates = _fewest(corpus, searcher, BATCH_FLOOR)
    default = faiss_default_threshold()
    contenders = {
        "fastscan": searching(searcher, corpus.queries, BATCH, candidates),
        "IndexFlatIP": scanning(corpus.flat, corpus.encoded, BATCH, None, default),
        "IndexFlatIP, BLAS forced": scanning(corpus.flat, corpus.encoded, BATCH, None, FORCED),
    }
    series = take_turns(contenders, seconds=seconds * len(contenders), rounds=rounds)
    for name, one in series.items():
        yield Figure.rate("kinds", setting, name, one, "queries/s")
    ours = series["fastscan"]
    for name, least in (("IndexFlatIP", 25.0), ("IndexFlatIP, BLAS forced", 10.0)):
        yield Figure.of("kinds", setting, f"fastscan over {name}", ours.over(series[name]), "ratio", at_least=least)


def _sizes(corpus: Corpus, setting: str) -> Iterator[Figure]:
    """Bytes scanned, and memory that a process takes to search."""
    manifest = corpus.directories["fastscan"].manifest()
    if manifest.codes is not None:
        scanned = 4.0 * corpus.flat.d / manifest.codes.code_bytes
        yield Figure.of("kinds", setting, "bytes scanned, IndexFlatIP over fastscan", scanned, "ratio", at_least=20.0)
    taken = {kind: _memory(directory) for kind, directory in corpus.directories.items()}
    for kind, size in taken.items():
        yield Figure.of("kinds", setting, f"memory of {kind}", size / manifest.documents, "bytes/document")
    yield Figure.of(
        "kinds", setting, "memory, flat over fastscan", taken["flat"] / taken["fastscan"], "ratio", at_least=8.0
    )


def _over_http(
    corpus: Corpus, data: Data, documents: int, folder: Path, seconds: float, rounds: int
) -> Iterator[Figure]:
    """The service with the kind, at the floor's candidates, and the one that anyone would write."""
    candidates = _fewest(corpus, LocalSearcher(corpus.directories["fastscan"], verify=False), FLOOR)
    write_naive(data, documents, folder)
    ports = {name: free_port() for name in ("gaussearch", "naive")}
    path = str(corpus.directories["fastscan"].path)
    ours = [*GAUSSEARCH, "serve", "--index", path, "--log-level", "warning", "--port", str(ports["gaussearch"])]
    naive = [sys.executable, str(HERE / "benchmark_naive.py"), "--folder", str(folder), "--port", str(ports["naive"])]
    with (
        running(ours, ports["gaussearch"], "/readyz", folder / "serve.log"),
        running(naive, ports["naive"], "/openapi.json", folder / "naive.log"),
        LoadGenerator(ports, corpus.queries, candidates=candidates) as load,
    ):
        contenders = {name: load.contender(name, 16) for name in ports}
        series = take_turns(contenders, seconds=seconds, rounds=rounds)
    setting = f"{documents:,} documents, HTTP, 16 clients"
    for name, one in series.items():
        yield Figure.rate("kinds", setting, name, one, "requests/s")
    ratio = series["gaussearch"].over(series["naive"])
    yield Figure.of("kinds", setting, "fastscan over the naive service", ratio, "ratio", at_least=15.0)


def _fewest(corpus: Corpus, searcher: LocalSearcher, floor: float) -> int:
    """The fewest candidates of the ladder with which the searcher reaches the floor, or most."""

    def recall(candidates: int) -> float:
        found = searcher.search(corpus.queries, TOP_K, candidates=candidates)
        return corpus.recall([ranking.documents for ranking in found])

    return _first(recall, floor)


def _first(recall: Callable[[int], float], floor: float) -> int:
    """The first of the ladder with which a recall that grows with it reaches the floor, or the last."""
    low, high = 0, len(CANDIDATES) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(CANDIDATES[middle]) >= floor else (middle + 1, high)
    return int(CANDIDATES[low])


@dataclass(frozen=True, slots=True)
class Quantised:
    """`PQ…x4fs,RFlat` of FAISS on vectors padded to what its digits divide, at its fewest candidates."""

    index: Any
    digits: int
    factor: float
    recall: float

    @property
    def name(self) -> str:
        return f"PQ{self.digits}x4fs,RFlat, k_factor {self.factor:g}"

    def search(self, queries: Vectors, count: int) -> tuple[Vectors, Found]:
        self.index.k_factor = self.factor
        found: tuple[Vectors, Found] = self.index.search(queries, count)
        return found

    def padded(self, vectors: Vectors) -> Vectors:
        return np.pad(vectors, ((0, 0), (0, self.index.d - vectors.shape[1])))


def _best_quantised(corpus: Corpus, floor: float) -> Quantised | None:
    """The width of code with which FAISS reaches the floor fastest; None where it does with none."""
    fastest: Quantised | None = None
    least = np.inf
    memory = faiss.rev_swig_ptr(corpus.flat.get_xb(), corpus.flat.ntotal * corpus.flat.d).reshape(-1, corpus.flat.d)
    for numbers in NUMBERS_PER_DIGIT:
        digits = -(-corpus.flat.d // numbers)
        digits += digits % 2
        vectors = np.pad(memory, ((0, 0), (0, digits * numbers - corpus.flat.d)))
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        index = faiss.index_factory(vectors.shape[1], f"PQ{digits}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:: max(1, len(vectors) // TRAINED_ON)])
        index.add(vectors)
        del vectors
        queries = np.pad(corpus.encoded, ((0, 0), (0, index.d - corpus.flat.d)))

        def recall(candidates: int, index: Any = index, digits: int = digits, queries: Vectors = queries) -> float:
            return corpus.recall(Quantised(index, digits, candidates / TOP_K, 0.0).search(queries, TOP_K)[1])

        candidates = _first(recall, floor)
        tried = Quantised(index, digits, candidates / TOP_K, recall(candidates))
        faiss.omp_set_num_threads(1)
        seconds = _seconds(tried, queries[:TIMED])
        if tried.recall >= floor and seconds < least:
            least, fastest = seconds, tried
    return fastest


def _seconds(tried: Quantised, queries: Vectors) -> float:
    started = time.perf_counter()
    tried.search(queries, TOP_K)
    return time.perf_counter() - started


_MEASURE_MEMORY = """
import sys
from pathlib import Path
from index import IndexDirectory, LocalSearcher

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

small, index = (IndexDirectory(path) for path in sys.argv[1:])
# What torch and FAISS take at their first search is no part of an index.
first = LocalSearcher(small, verify=False)
first.search(first.document_at(0).gaussian, 10)
before = anonymous()
searcher = LocalSearcher(index, verify=False)
for number in range(50):
    searcher.search(searcher.document_at(number).gaussian, 10)
print(anonymous() - before)
"""


def _memory(directory: IndexDirectory) -> float:
    """Bytes that an index takes in a process that searches it, mapped files not counted."""
    small = directory.path.with_name("small")
    if not small.exists():
        documents = Data.read(None, None)
        build_index(
            [documents.write_parquet(directory.path.with_name("small.parquet"), 100, with_text=False)],
            IndexDirectory(small),
        )
    command = [sys.executable, "-c", _MEASURE_MEMORY, str(small), str(directory.path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
