"""Searches among some of the documents: what a filter costs and finds, from half of the documents to one in 10,000, and
what deletions cost.

Filters ask for a number that says nothing of a document, and once for one that does, since then what a filter lets
through may lie far from what a query asks for. FAISS is given a bitmap of the same documents, as one would.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from benchmark_data import Data, write_gaussians
from benchmark_engine import TOP_K, faiss_default_threshold, flat_index, scanning, torch_threads
from benchmark_measure import Contender, Figure, Spread, repeating, take_turns

from index import BuildOptions, Filter, Gaussians, IndexDirectory, LocalSearcher, build_index, delete_documents
from index.rescoring import negative_kl

KINDS = ("flat", "fastscan")
SHARES = (0.5, 0.1, 0.01, 0.001, 0.0001)
CERTAIN = 0.1
"""The share of the documents, the most certain ones, that one filter lets through."""
ONE_DELETED_OF = 10
QUERIES = 200
BLOCK_ROWS = 2048
SEED = 7

Mask = npt.NDArray[np.bool_]
Found = list[list[str]]


@dataclass(frozen=True, slots=True)
class _Case:
    """A filter, and which documents it lets through, (n,)."""

    name: str
    filter: Filter
    allowed: Mask


def filters_part(data: Data, documents: int, folder: Path, seconds: float, rounds: int) -> Iterator[Figure]:
    """Time and recall under filters and deletions, of each kind."""
    queries = data.queries_about(documents, 2 * QUERIES)
    given, measured = write_gaussians(folder / "queries.parquet", queries[::2]), queries[1::2]
    cases, columns = _cases(data, documents)
    corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=True, columns=columns)
    deleted = np.arange(documents) % ONE_DELETED_OF == 0
    masks = {case.name: case.allowed for case in cases}
    masks |= {"no filter": np.ones(documents, dtype=np.bool_), "deleted": ~deleted}
    truth = _truth(data, documents, measured, masks)
    directories = {kind: IndexDirectory(folder / kind) for kind in KINDS}
    for kind, directory in directories.items():
        build_index([corpus], directory, BuildOptions.model_validate({"kind": kind, "queries": given}))
    flat, encoded = flat_index(directories["flat"], measured)
    for kind, directory in directories.items():
        searcher = LocalSearcher(directory, device="cpu", threads=1, verify=False)
        yield from _filtered(searcher, kind, cases, measured, flat, encoded, seconds, rounds)
        yield from _recalls(searcher, kind, cases, measured, truth)
        yield from _first(searcher, kind, documents, seconds)
        yield from _deleted(searcher, directory, deleted, kind, measured, truth["deleted"], seconds, rounds)
        shutil.rmtree(directory.path)


def _cases(data: Data, documents: int) -> tuple[list[_Case], dict[str, npt.NDArray[np.int64]]]:
    """The filters, and the columns that they ask for: numbers from 0 on, each once."""
    drawn = np.random.default_rng(SEED).permutation(documents)
    spread = np.concatenate([np.log(chunk.variances).sum(axis=1) for chunk in data.chunks(documents)])
    rank = np.empty(documents, dtype=np.int64)
    rank[np.argsort(spread, kind="stable")] = np.arange(documents)
    cases = []
    asked = [("drawn", drawn, share, f"{share:g} of the documents") for share in SHARES]
    asked.append(("rank", rank, CERTAIN, f"the most certain {CERTAIN:g} of the documents"))
    for name, column, share, setting in asked:
        below = max(1, round(share * documents))
        cases.append(_Case(setting, Filter.parse({name: {"lt": below}}), column < below))
    return cases, {"drawn": drawn, "rank": rank}


def _truth(data: Data, documents: int, queries: Gaussians, masks: dict[str, Mask]) -> dict[str, Found]:
    """The ids of the best of those documents, of each query, by float64 -KL."""
    means, variances = queries.means.double().numpy(), queries.variances.double().numpy()
    scores = np.empty((len(queries), documents))
    first = 0
    for chunk in data.chunks(documents):
        for start in range(0, len(chunk.ids), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            for query, (mean, variance) in enumerate(zip(means, variances, strict=True)):
                its = negative_kl(mean, variance, chunk.means[rows], chunk.variances[rows])
                scores[query, first + start : first + start + len(its)] = its
        first += len(chunk.ids)
    found = {}
    for name, allowed in masks.items():
        numbers = np.flatnonzero(allowed)
        best = np.argsort(-scores[:, numbers], axis=1, kind="stable")[:, :TOP_K]
        found[name] = [[f"d{number}" for number in numbers[row]] for row in best]
    return found


def _searching(searcher: LocalSearcher, queries: Gaussians, chosen: Filter | None) -> Contender:
    asked = itertools.cycle([queries[row : row + 1] for row in range(len(queries))])

    def search() -> float:
        searcher.search(next(asked), TOP_K, filter=chosen)
        return 1.0

    return repeating(search)


class _Selecting:
    """FAISS's exact index among the documents of a mask."""

    def __init__(self, flat: Any, allowed: Mask) -> None:
        self._flat, self._bits = flat, np.packbits(allowed, bitorder="little")
        # Their declared types are those of C++, not of what FAISS puts around it.
        selector: Any = faiss.IDSelectorBitmap
        parameters: Any = faiss.SearchParameters
        self._parameters = parameters(sel=selector(self._bits))

    def search(self, vectors: npt.NDArray[np.float32], count: int) -> Any:
        return self._flat.search(vectors, count, params=self._parameters)


def _filtered(
    searcher: LocalSearcher,
    kind: str,
    cases: list[_Case],
    queries: Gaussians,
    flat: Any,
    encoded: npt.NDArray[np.float32],
    seconds: float,
    rounds: int,
) -> Iterator[Figure]:
    default = faiss_default_threshold()
    for case in cases:
        contenders = {
            "no filter": _searching(searcher, queries, None),
            "filter": _searching(searcher, queries, case.filter),
            "IndexFlatIP": scanning(flat, encoded, 1, 1, default),
            "IndexFlatIP, IDSelectorBitmap": scanning(_Selecting(flat, case.allowed), encoded, 1, 1, default),
        }
        with torch_threads(1):
            series = take_turns(contenders, seconds=seconds, rounds=rounds)
        setting = f"{kind}, {case.name}"
        for name, one in series.items():
            yield Figure.rate("filters", setting, name, one, "queries/s")
        slower = series["no filter"].over(series["filter"])
        yield Figure.of("filters", setting, "time with the filter over without", slower, "ratio")
        theirs = series["IndexFlatIP, IDSelectorBitmap"]
        slower = series["IndexFlatIP"].over(theirs)
        yield Figure.of("filters", setting, "time of IndexFlatIP with it over without", slower, "ratio")
        yield Figure.of(
            "filters", setting, f"{kind} over IndexFlatIP, filtered", series["filter"].over(theirs), "ratio"
        )


def _recalls(
    searcher: LocalSearcher, kind: str, cases: list[_Case], queries: Gaussians, truth: dict[str, Found]
) -> Iterator[Figure]:
    asked: list[tuple[str, Filter | None]] = [("no filter", None), *((case.name, case.filter) for case in cases)]
    for name, chosen in asked:
        recall = _recall(searcher, queries, chosen, truth[name])
        yield Figure.of("filters", f"{kind}, recall@{TOP_K}", name, recall, "share", at_least=_least(kind))


def _least(kind: str) -> float | None:
    # Kind flat misses nothing; of the other its own measurement, without filters, is printed beside.
    return 1.0 if kind == "flat" else None


def _recall(searcher: LocalSearcher, queries: Gaussians, chosen: Filter | None, truth: Found) -> float:
    found = searcher.search(queries, TOP_K, filter=chosen)
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len(set(ranking.ids) & set(its)) / len(its) for ranking, its in pairs]))


def _first(searcher: LocalSearcher, kind: str, documents: int, seconds: float) -> Iterator[Figure]:
    """Filters that nobody has asked for before: each looks at all values of its column."""
    for name, make in (("of numbers", _number_filter(documents)), ("of text", _text_filter)):
        fresh = (Filter.parse(make(number)) for number in itertools.count())

        def evaluate(fresh: Iterator[Filter] = fresh) -> float:
            searcher.matching(next(fresh))
            return 1.0

        turn = repeating(evaluate)(seconds)
        first = Spread.of(1e3 * latency for latency in turn.latencies)
        yield Figure.of("filters", f"{kind}, first evaluation", f"a filter {name}", first, "ms")


def _number_filter(documents: int) -> Callable[[int], dict[str, Any]]:
    return lambda number: {"drawn": {"gt": -1 - number, "lt": documents // 2}}


def _text_filter(number: int) -> dict[str, Any]:
    return {"text": {"in": ["nothing", f"{number}"]}}


def _deleted(
    searcher: LocalSearcher,
    directory: IndexDirectory,
    deleted: Mask,
    kind: str,
    queries: Gaussians,
    truth: Found,
    seconds: float,
    rounds: int,
) -> Iterator[Figure]:
    """The same index with every tenth document deleted."""
    copy = IndexDirectory(directory.path.with_name("deleted"))
    # By links: files of an index are never changed in place.
    shutil.copytree(directory.path, copy.path, copy_function=os.link)
    delete_documents([f"d{row}" for row in np.flatnonzero(deleted).tolist()], copy)
    worn = LocalSearcher(copy, device="cpu", threads=1, verify=False)
    contenders = {
        "none deleted": _searching(searcher, queries, None),
        f"1 in {ONE_DELETED_OF} deleted": _searching(worn, queries, None),
    }
    with torch_threads(1):
        series = take_turns(contenders, seconds=seconds, rounds=rounds)
    setting = f"{kind}, deletions"
    for name, one in series.items():
        yield Figure.rate("filters", setting, name, one, "queries/s")
    first, second = series.values()
    yield Figure.of("filters", setting, f"time, 1 in {ONE_DELETED_OF} deleted over none", first.over(second), "ratio")
    recall = _recall(worn, queries, None, truth)
    yield Figure.of("filters", setting, f"recall@{TOP_K}", recall, "share", at_least=_least(kind))
    shutil.rmtree(copy.path)
