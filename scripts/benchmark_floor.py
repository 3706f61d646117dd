"""Who reaches a floor of recall, and with how little: what contenders of one floor are set to before they are timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from benchmark_engine import TOP_K

from index import Gaussians, IndexDirectory, LocalSearcher
from index.manifest import IndexKind

Vectors = npt.NDArray[np.float32]
Found = npt.NDArray[np.int64]

CANDIDATES = sorted({round(value) for value in np.geomspace(TOP_K, 8000, 60)})
NPROBES = sorted({round(value) for value in np.geomspace(1, 8000, 60)})
NUMBERS_PER_DIGIT = (2, 3, 4, 6)
TRAINED_ON = 65_536
TIMED = 100


@dataclass(frozen=True, slots=True)
class Corpus:
    """One size of corpus: both kinds of index, FAISS's flat one of 3k+1 numbers, and the queries' true top ten."""

    directories: dict[IndexKind, IndexDirectory]
    flat: Any
    queries: Gaussians
    encoded: Vectors
    truth: list[set[int]]

    def recall(self, found: Found | list[Found]) -> float:
        """The share of the true top ten among what was found for each query."""
        return float(
            np.mean([len(its & set(map(int, row))) / TOP_K for its, row in zip(self.truth, found, strict=True)])
        )


def fewest_candidates(corpus: Corpus, searcher: LocalSearcher, floor: float) -> int:
    """The fewest candidates of the ladder with which the searcher reaches the floor, or most."""

    def recall(candidates: int) -> float:
        found = searcher.search(corpus.queries, TOP_K, candidates=candidates)
        return corpus.recall([ranking.documents for ranking in found])

    return first_of(recall, floor, CANDIDATES)


def least_effort(corpus: Corpus, searcher: LocalSearcher, floor: float) -> tuple[dict[str, int], float]:
    """The fewest candidates, or lists where there are any, with which the searcher reaches the floor, and the recall
    then."""
    name, values = ("candidates", CANDIDATES)
    codes = searcher.manifest.codes
    if codes is not None and codes.lists is not None:
        name, values = "nprobe", [value for value in NPROBES if value <= codes.lists.lists]

    def recall(value: int) -> float:
        effort: dict[str, Any] = {name: value}
        found = searcher.search(corpus.queries, TOP_K, **effort)
        return corpus.recall([ranking.documents for ranking in found])

    least = first_of(recall, floor, values)
    return {name: least}, recall(least)


def first_of(recall: Callable[[int], float], floor: float, ladder: list[int]) -> int:
    """The first of the ladder with which a recall that grows with it reaches the floor, or the last."""
    low, high = 0, len(ladder) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(ladder[middle]) >= floor else (middle + 1, high)
    return int(ladder[low])


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


def best_quantised(corpus: Corpus, floors: Iterable[float]) -> dict[float, Quantised]:
    """The width of code with which FAISS reaches each floor fastest; without a floor that it reaches with none."""
    fastest: dict[float, tuple[float, Quantised]] = {}
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

        for floor in floors:
            faiss.omp_set_num_threads(os.cpu_count() or 1)
            candidates = first_of(recall, floor, CANDIDATES)
            tried = Quantised(index, digits, candidates / TOP_K, recall(candidates))
            faiss.omp_set_num_threads(1)
            seconds = _seconds(tried, queries[:TIMED])
            if tried.recall >= floor and seconds < fastest.get(floor, (np.inf, tried))[0]:
                fastest[floor] = seconds, tried
    return {floor: tried for floor, (_, tried) in fastest.items()}


def _seconds(tried: Quantised, queries: Vectors) -> float:
    started = time.perf_counter()
    tried.search(queries, TOP_K)
    return time.perf_counter() - started
