"""When a search scans among selected documents and when it scores them all, and that both find what there is."""

import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from index import BuildOptions, Filter, IndexDirectory, LocalSearcher, Precision, build_index, delete_documents
from index.exact_search import ExactSearch
from index.manifest import IndexKind
from index.scan_cost import FEW, ScanCost
from index.scanning import Scanner
from index.selection import Selection
from tests.approximate import KINDS, assert_scores_are_exact, read, recall
from tests.conftest import write_corpus
from tests.oracles import Array, torch_kl

DOCUMENTS = 4000
TOP_K = 10


def selection_of(count: int) -> Selection:
    return Selection.of(np.arange(DOCUMENTS) < count)


def test_a_few_documents_are_always_scored_and_then_as_many_as_a_scan_takes_time_for() -> None:
    cost = ScanCost(documents=8, found=10, shared=4)
    assert cost.exceeds_scoring(selection_of(FEW), 0)
    # 4,000 documents looked at are 500 scored, and 200 found are 20.
    assert cost.exceeds_scoring(selection_of(FEW + 500 + 20), 200)
    assert not cost.exceeds_scoring(selection_of(FEW + 500 + 21), 200)


def test_queries_share_a_scan_and_threads_share_it_out() -> None:
    cost = ScanCost(documents=8, found=10, shared=4)
    for options in ({"queries": 2}, {"threads": 2}):
        assert cost.exceeds_scoring(selection_of(FEW + 250), 0, **options)
        assert not cost.exceeds_scoring(selection_of(FEW + 251), 0, **options)
    # No more than four do.
    assert cost.exceeds_scoring(selection_of(FEW + 125), 0, queries=100)


@pytest.fixture(scope="module", params=[IndexKind.FLAT, *KINDS])
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sample: Path) -> IndexDirectory:
    """The sample, with a number of its own for each document, those of neighbours far from each other. Not to be
    changed by any test."""
    folder = tmp_path_factory.mktemp("indexed")
    ids, gaussians = read(sample / "documents.parquet")
    corpus = write_corpus(
        folder / "corpus.parquet", gaussians, ids, number=[7 * row % DOCUMENTS for row in range(DOCUMENTS)]
    )
    directory = IndexDirectory(folder / "index")
    build_index([corpus], directory, BuildOptions(kind=request.param))
    return directory


@pytest.fixture(scope="module")
def scores(sample: Path) -> Array:
    """-KL of 40 queries and all documents."""
    _, documents = read(sample / "documents.parquet")
    return -torch_kl(read(sample / "queries.parquet")[1][:40], documents)


def test_as_much_is_found_under_a_filter_as_without_alone_and_in_a_batch(
    indexed: IndexDirectory, sample: Path, scores: Array
) -> None:
    searcher = LocalSearcher(indexed, device="cpu")
    queries = read(sample / "queries.parquet")[1][:40]
    numbers = 7 * np.arange(DOCUMENTS) % DOCUMENTS
    # So many that all kinds scan, some that some do, and so few that none does.
    for below in (3000, 1100, 600, 100):
        chosen = Filter.parse({"number": {"lt": below}})
        found = searcher.search(queries, TOP_K, filter=chosen)
        exact = np.where(numbers < below, scores, -np.inf)
        least = 1.0 if searcher.manifest.codes is None else 0.95
        assert recall(found, exact, TOP_K) >= least
        assert_scores_are_exact(found, scores, read(sample / "documents.parquet")[0])
        alone = [searcher.search(queries[row : row + 1], TOP_K, filter=chosen)[0] for row in range(3)]
        assert [ranking.ids for ranking in alone] == [ranking.ids for ranking in found[:3]]
        full = searcher.search(queries, TOP_K, filter=chosen, exact=True)
        assert recall(full, exact, TOP_K) == 1.0


@pytest.mark.parametrize("queries", [1, 40])
def test_a_scan_of_some_documents_finds_their_best_and_bounds_the_others(
    tmp_path: Path, sample: Path, scores: Array, queries: int
) -> None:
    """Of several segments and on two threads; of some segments nothing is allowed."""
    directory = IndexDirectory(tmp_path / "index")
    build_index([sample / "documents.parquet"], directory, BuildOptions(segment_docs=700))
    searcher = LocalSearcher(directory, device="cpu", threads=2, precision=Precision.FLOAT32)
    allowed = np.random.default_rng(0).random(DOCUMENTS) < 0.25
    allowed[700:1500] = False
    allowed[3999] = True
    scanner = searcher._opened.exact
    assert isinstance(scanner, Scanner)
    asked = read(sample / "queries.parquet")[1][:queries]
    for count in (1, 20, DOCUMENTS):
        found, ceilings = scanner.scan(asked, count, allowed)
        for row, numbers in enumerate(found):
            numbers = numbers[numbers >= 0]
            assert len(set(numbers.tolist())) == len(numbers) >= min(count, int(allowed.sum()))
            assert allowed[numbers].all()
            others = allowed.copy()
            others[numbers] = False
            assert (scores[row][others] <= ceilings[row]).all()
            if not others.any():
                assert ceilings[row] == -np.inf
            elif count == 20:
                # And it is a tight one.
                assert ceilings[row] - scores[row][others].max() < 0.01


def test_a_scan_of_all_gives_way_where_few_documents_are_selected(
    tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = IndexDirectory(tmp_path / "index")
    ids, gaussians = read(sample / "documents.parquet")
    corpus = write_corpus(tmp_path / "corpus.parquet", gaussians, ids, number=range(DOCUMENTS))
    build_index([corpus], directory)
    searcher = LocalSearcher(directory, device="cpu", threads=1, precision=Precision.FLOAT32)
    looked_at: list[int | None] = []
    scan = Scanner.scan

    def watched(scanner: Scanner, queries: Any, count: int, allowed: Any = None) -> Any:
        looked_at.append(None if allowed is None else int(allowed.sum()))
        return scan(scanner, queries, count, allowed)

    monkeypatch.setattr(Scanner, "scan", watched)
    for below in (1100, 3000):
        searcher.search(gaussians[:1], TOP_K, filter=Filter.parse({"number": {"lt": below}}))
    assert looked_at == [1100, None]


def fails(*_: Any) -> NoReturn:
    raise AssertionError("this was not to be done")


def test_a_small_index_of_which_some_documents_are_deleted_is_still_scanned(
    indexed: IndexDirectory, tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is what a filter leaves of it: scoring all would take several times as long."""
    ids, gaussians = read(sample / "documents.parquet")
    worn = IndexDirectory(tmp_path / "worn")
    shutil.copytree(indexed.path, worn.path)
    delete_documents(ids[::10], worn)
    searcher = LocalSearcher(worn, device="cpu", threads=1)
    monkeypatch.setattr(ExactSearch, "exhaustive", fails)
    (ranking,) = searcher.search(gaussians[1:2], TOP_K)
    assert ranking.ids[0] == ids[1]
    assert not set(ranking.ids) & set(ids[::10])
    # A walk that is to find so many would take longer than scoring.
    if searcher.manifest.kind is not IndexKind.HNSW:
        (ranking,) = searcher.search(gaussians[1:2], TOP_K, filter=Filter.parse({"number": {"lt": 1500}}))
        assert ranking.ids[0] == ids[1]


def test_the_few_documents_that_a_filter_leaves_are_scored_without_a_scan(
    indexed: IndexDirectory, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = LocalSearcher(indexed, device="cpu")
    opened = searcher._opened
    scanner = type(opened.codes.scanner if opened.codes is not None else opened.exact)
    monkeypatch.setattr(scanner, "scan", fails)
    (ranking,) = searcher.search(
        read(sample / "queries.parquet")[1][:1], TOP_K, filter=Filter.parse({"number": {"lt": FEW}})
    )
    assert len(ranking.ids) == TOP_K
