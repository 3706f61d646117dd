"""The approximate kinds against what FAISS offers for the same job, each at the same recall of the same queries.

Everyone may use as many candidates, or lists, as reach the floor, and FAISS whichever width of code is fastest then:
kinds are held against `PQ…x4fs,RFlat` as an expert would set it up, not against IndexFlatIP alone, which is easily
beaten; and graphs against graphs on vectors that have been made fit for them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from benchmark_build import GAUSSEARCH
from benchmark_data import Data, write_gaussians
from benchmark_engine import FORCED, TOP_K, faiss_default_threshold, flat_index, scanning, searching, torch_threads
from benchmark_floor import Corpus, Quantised, best_quantised, fewest_candidates, first_of, least_effort
from benchmark_measure import Contender, Figure, once, take_turns
from benchmark_peers import EF_CONSTRUCTION, M, prepared
from benchmark_service import HERE, LoadGenerator, free_port, running, write_naive

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, Precision, build_index
from index.manifest import IndexKind

FLOOR, BATCH_FLOOR = 0.99, 0.98
FLOORS = {0.99: (50.0, 4.0), 0.95: (100.0, 8.0)}
"""Of recall, with how many times faster than IndexFlatIP and than FAISS's best the best kind is to be then, of
SUBLINEAR documents or more."""
SUBLINEAR = 1_000_000
APPROXIMATE = (IndexKind.FASTSCAN, IndexKind.IVF_FASTSCAN, IndexKind.HNSW)
BEAMS = sorted({round(value) for value in np.geomspace(TOP_K, 4000, 50)})
BATCH = 32
BUILDS = 3
QUERIES = 500
"""Queries of each corpus, spread over those that there are: tuning asks all of them, again and again."""
HTTP_DOCUMENTS = 200_000
"""Above so many the service that anyone would write takes too long to be worth waiting for."""

Vectors = npt.NDArray[np.float32]
Found = npt.NDArray[np.int64]


def kinds_part(data: Data, sizes: list[int], folder: Path, seconds: float, rounds: int) -> Iterator[Figure]:
    """Latency, throughput, memory and time to build, for corpora of several sizes.

    Every second query is given to the build, and the others are what everything is measured with.
    """
    for documents in sizes:
        queries = data.queries_about(documents, 4 * QUERIES)
        given = write_gaussians(folder / "queries.parquet", queries[::2])
        measured = queries[1::2]
        measured = measured[torch.arange(0, len(measured), max(1, len(measured) // QUERIES))]
        corpus_file = data.write_parquet(folder / "corpus.parquet", documents, with_text=documents <= HTTP_DOCUMENTS)
        setting = f"{documents:,} documents"
        yield from _building(corpus_file, given, folder, setting)
        corpus = _open(folder, measured)
        faiss_best = best_quantised(corpus, FLOORS)
        yield from _alone(corpus, faiss_best, setting, seconds, rounds)
        yield from _best_kind(corpus, faiss_best, setting, seconds, rounds)
        if documents <= HTTP_DOCUMENTS:
            yield from _graphs(corpus, setting, seconds, rounds)
        yield from _together(corpus, setting, seconds, rounds)
        yield from _sizes(corpus, setting)
        if documents <= HTTP_DOCUMENTS:
            yield from _over_http(corpus, data, documents, folder, seconds, rounds)
        del faiss_best
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

    for kind in (IndexKind.IVF_FASTSCAN, IndexKind.HNSW):
        yield Figure.of("kinds", setting, f"build of {kind}", builds(kind)(0.0).seconds, "s")
    series = take_turns({"flat": builds("flat"), "fastscan": builds("fastscan")}, seconds=0.0, rounds=BUILDS)
    for name, one in series.items():
        yield Figure.of("kinds", setting, f"build of {name}", one.rate(), "documents/s")
    time_taken = series["flat"].over(series["fastscan"])
    yield Figure.of("kinds", setting, "time to build fastscan over flat", time_taken, "ratio", at_most=2.0)


def _open(folder: Path, queries: Gaussians) -> Corpus:
    directories = {kind: IndexDirectory(folder / kind) for kind in (IndexKind.FLAT, *APPROXIMATE)}
    flat, encoded = flat_index(directories[IndexKind.FLAT], queries)
    searcher = LocalSearcher(directories[IndexKind.FLAT], device="cpu", verify=False)
    truth = [set(ranking.documents.tolist()) for ranking in searcher.search(queries, TOP_K)]
    return Corpus(directories, flat, queries, encoded, truth)


def _alone(
    corpus: Corpus, faiss_best: dict[float, Quantised], setting: str, seconds: float, rounds: int
) -> Iterator[Figure]:
    """One query at a time on one thread."""
    setting = f"{setting}, one query, one thread"
    faiss.omp_set_num_threads(1)
    searcher = LocalSearcher(corpus.directories[IndexKind.FASTSCAN], device="cpu", threads=1, verify=False)
    candidates = fewest_candidates(corpus, searcher, FLOOR)
    quantised, default = faiss_best.get(FLOOR), faiss_default_threshold()
    contenders = {
        "fastscan": searching(searcher, corpus.queries, 1, candidates=candidates),
        "fastscan, 10 candidates": searching(searcher, corpus.queries, 1, candidates=TOP_K),
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


def _best_kind(
    corpus: Corpus, faiss_best: dict[float, Quantised], setting: str, seconds: float, rounds: int
) -> Iterator[Figure]:
    """Every kind at each floor, one query at a time on one thread, and the best of them over what FAISS does."""
    default, documents = faiss_default_threshold(), corpus.flat.ntotal
    for floor, (over_flat, over_best) in FLOORS.items():
        its = f"{setting}, recall@10 at least {floor}"
        faiss.omp_set_num_threads(1)
        contenders = {"IndexFlatIP": scanning(corpus.flat, corpus.encoded, 1, 1, default)}
        for kind in APPROXIMATE:
            searcher = LocalSearcher(corpus.directories[kind], device="cpu", threads=1, verify=False)
            effort, recall = least_effort(corpus, searcher, floor)
            if recall >= floor:
                contenders[kind] = searching(searcher, corpus.queries, 1, **effort)
        quantised = faiss_best.get(floor)
        if quantised is not None:
            contenders[quantised.name] = scanning(quantised, quantised.padded(corpus.encoded), 1, 1, default)
        with torch_threads(1):
            series = take_turns(contenders, seconds=seconds * len(contenders), rounds=rounds)
        for name, one in series.items():
            yield Figure.rate("kinds", its, name, one, "queries/s")
        reached = [kind for kind in APPROXIMATE if kind in series]
        if not reached:
            continue
        best = max(reached, key=lambda kind: series[kind].rate().median)
        large = documents >= SUBLINEAR
        ratio = series[best].over(series["IndexFlatIP"])
        yield Figure.of("kinds", its, f"{best} over IndexFlatIP", ratio, "ratio", at_least=over_flat if large else None)
        if quantised is not None:
            ratio, least = series[best].over(series[quantised.name]), over_best if large else None
            yield Figure.of("kinds", its, f"{best} over FAISS's best", ratio, "ratio", at_least=least)


def _graphs(corpus: Corpus, setting: str, seconds: float, rounds: int) -> Iterator[Figure]:
    """Kind hnsw over FAISS's HNSW on centred and lengthened vectors, with the same M and efConstruction."""
    memory = faiss.rev_swig_ptr(corpus.flat.get_xb(), corpus.flat.ntotal * corpus.flat.d).reshape(-1, corpus.flat.d)
    documents, queries = prepared(memory, corpus.encoded)
    index: Any = faiss.IndexHNSWFlat(documents.shape[1], M)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index.add(documents)
    searcher = LocalSearcher(corpus.directories[IndexKind.HNSW], device="cpu", threads=1, verify=False)
    floor = min(FLOORS)

    def recall(beam: int) -> float:
        index.hnsw.efSearch = beam
        return corpus.recall(index.search(queries, TOP_K)[1])

    index.hnsw.efSearch = first_of(recall, floor, BEAMS)
    effort, found = least_effort(corpus, searcher, floor)
    if min(found, recall(index.hnsw.efSearch)) < floor:
        return
    faiss.omp_set_num_threads(1)
    contenders = {
        "hnsw": searching(searcher, corpus.queries, 1, **effort),
        "HNSW on prepared vectors": scanning(index, queries, 1, 1, faiss_default_threshold()),
    }
    with torch_threads(1):
        series = take_turns(contenders, seconds=seconds * len(contenders), rounds=rounds)
    its = f"{setting}, graphs, M {M}, efConstruction {EF_CONSTRUCTION}, recall@10 at least {floor}"
    for name, one in series.items():
        yield Figure.rate("kinds", its, name, one, "queries/s")
    ratio = series["hnsw"].over(series["HNSW on prepared vectors"])
    yield Figure.of("kinds", its, "hnsw over HNSW on prepared vectors", ratio, "ratio", at_least=2.0)


def _together(corpus: Corpus, setting: str, seconds: float, rounds: int) -> Iterator[Figure]:
    """Batches on all threads."""
    setting = f"{setting}, batches of {BATCH}, all threads"
    searcher = LocalSearcher(corpus.directories[IndexKind.FASTSCAN], device="cpu", verify=False)
    candidates = fewest_candidates(corpus, searcher, BATCH_FLOOR)
    default = faiss_default_threshold()
    contenders = {
        "fastscan": searching(searcher, corpus.queries, BATCH, candidates=candidates),
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
    manifest = corpus.directories[IndexKind.FASTSCAN].manifest()
    if manifest.codes is not None:
        scanned = 4.0 * corpus.flat.d / manifest.codes.code_bytes
        yield Figure.of("kinds", setting, "bytes scanned, IndexFlatIP over fastscan", scanned, "ratio", at_least=20.0)
    taken = {kind: memory_of(directory) for kind, directory in corpus.directories.items()}
    for kind, size in taken.items():
        yield Figure.of("kinds", setting, f"memory of {kind}", size / manifest.documents, "bytes/document")
    yield Figure.of(
        "kinds",
        setting,
        "memory, flat over fastscan",
        taken[IndexKind.FLAT] / taken[IndexKind.FASTSCAN],
        "ratio",
        at_least=8.0,
    )


def _over_http(
    corpus: Corpus, data: Data, documents: int, folder: Path, seconds: float, rounds: int
) -> Iterator[Figure]:
    """The service with the kind, at the floor's candidates, and the one that anyone would write."""
    candidates = fewest_candidates(corpus, LocalSearcher(corpus.directories[IndexKind.FASTSCAN], verify=False), FLOOR)
    write_naive(data, documents, folder)
    ports = {name: free_port() for name in ("gaussearch", "naive")}
    path = str(corpus.directories[IndexKind.FASTSCAN].path)
    ours = [*GAUSSEARCH, "serve", "--index", path, "--log-level", "warning", "--port", str(ports["gaussearch"])]
    naive = [sys.executable, str(HERE / "benchmark_naive.py"), "--folder", str(folder), "--port", str(ports["naive"])]
    with (
        running(ours, ports["gaussearch"], "/readyz", folder / "serve.log"),
        running(naive, ports["naive"], "/openapi.json", folder / "naive.log"),
        LoadGenerator.searching(ports, corpus.queries, candidates=candidates) as load,
    ):
        contenders = {name: load.contender(name, 16) for name in ports}
        series = take_turns(contenders, seconds=seconds, rounds=rounds)
    setting = f"{documents:,} documents, HTTP, 16 clients"
    for name, one in series.items():
        yield Figure.rate("kinds", setting, name, one, "requests/s")
    ratio = series["gaussearch"].over(series["naive"])
    yield Figure.of("kinds", setting, "fastscan over the naive service", ratio, "ratio", at_least=15.0)


_MEASURE_MEMORY = """
import sys
from pathlib import Path
from index import IndexDirectory, LocalSearcher, Precision

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

small, index = (IndexDirectory(path) for path in sys.argv[1:3])
# What torch and FAISS take at their first search is no part of an index.
first = LocalSearcher(small, verify=False)
first.search(first.document_at(0).gaussian, 10)
before = anonymous()
searcher = LocalSearcher(index, verify=False, precision=Precision(sys.argv[3]))
for number in range(50):
    searcher.search(searcher.document_at(number).gaussian, 10)
print(anonymous() - before)
"""


def memory_of(directory: IndexDirectory, precision: Precision = Precision.AUTO) -> float:
    """Bytes that an index takes in a process that searches it, mapped files not counted."""
    small = directory.path.with_name("small")
    if not small.exists():
        documents = Data.read(None, None)
        build_index(
            [documents.write_parquet(directory.path.with_name("small.parquet"), 100, with_text=False)],
            IndexDirectory(small),
        )
    command = [sys.executable, "-c", _MEASURE_MEMORY, str(small), str(directory.path), precision]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
