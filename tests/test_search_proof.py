"""What a search does when scores tie, when the scan cannot prove its results, and when memory runs short."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import index.candidates
import index.exact_search
import index.memory
import index.scanning
from index import BuildOptions, Encoding, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.encoding import inner_product_error
from index.errors import InsufficientMemoryError
from tests.conftest import MakeIndex, random_gaussians
from tests.rankings import assert_exact, assert_identical, exact_scores, ids_of

Spy = Callable[[LocalSearcher], dict[str, list[int]]]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Records how many queries a searcher scans, and how many it scores exhaustively, call by call."""

    def watch(searcher: LocalSearcher) -> dict[str, list[int]]:
        calls: dict[str, list[int]] = {}

        def count(name: str) -> None:
            real, calls[name] = getattr(searcher._exact, name), []

            def counted(queries: Gaussians, *rest: Any) -> Any:
                calls[name].append(len(queries))
                return real(queries, *rest)

            monkeypatch.setattr(searcher._exact, name, counted)

        count("_scan_and_prove")
        count("exhaustive")
        return calls

    return watch


def repeated(gaussians: Gaussians, times: int) -> Gaussians:
    return gaussians[torch.arange(len(gaussians)).repeat(times)]


def test_the_first_scan_proves_every_top_10_of_the_sample(sample: Path, tmp_path: Path, spy: Spy) -> None:
    directory = IndexDirectory(tmp_path / "index")
    build_index([sample / "documents.parquet"], directory)
    searcher = LocalSearcher(directory)
    table = pq.read_table(sample / "queries.parquet")
    means, variances = (np.stack(table[name].to_numpy()) for name in ("mean", "variance"))
    calls = spy(searcher)
    assert len(searcher.search(Gaussians.from_arrays(means, variances), 10)) == 400
    assert calls == {"_scan_and_prove": [400], "exhaustive": []}


@pytest.mark.parametrize("segment_docs", [50, 1000])
def test_equal_documents_rank_by_id_after_an_exhaustive_scan(
    make_index: MakeIndex, spy: Spy, segment_docs: int
) -> None:
    documents = repeated(random_gaussians(1, 4), 600)
    ids = [f"{(row * 7919) % 600:03}" for row in range(600)]
    searcher = LocalSearcher(make_index(documents, ids, segment_docs=segment_docs))
    calls = spy(searcher)
    queries = random_gaussians(3, 4, seed=1)
    for ranking in searcher.search(queries, 5):
        assert ranking.ids == ["000", "001", "002", "003", "004"]
        assert len(set(ranking.scores)) == 1
    assert calls == {"_scan_and_prove": [3, 3], "exhaustive": [3]}


@pytest.mark.parametrize("segment_docs", [7, 1000])
def test_groups_of_equal_documents_rank_by_id_across_segments(make_index: MakeIndex, segment_docs: int) -> None:
    documents = repeated(random_gaussians(20, 6), 4)
    # In descending order, so that the order of rows is never the order of ids. Not padded: "d9" comes after "d10".
    ids = ids_of(80)[::-1]
    queries = random_gaussians(6, 6, seed=1)
    searcher, exact = (
        LocalSearcher(make_index(documents, ids, segment_docs=segment_docs)),
        exact_scores(queries, documents),
    )
    for top_k in (1, 2, 3, 4, 5, 10, 79, 80):
        assert_exact(searcher.search(queries, top_k), exact, ids, top_k)


def test_ids_are_ordered_as_python_orders_strings(make_index: MakeIndex) -> None:
    ids = ["é", "z", "Z", "10", "9", "\U0001f600", "\uffff", "ab", "a"]
    searcher = LocalSearcher(make_index(repeated(random_gaussians(1, 2), len(ids)), ids, segment_docs=4))
    (ranking,) = searcher.search(random_gaussians(1, 2, seed=1), len(ids))
    assert ranking.ids == sorted(ids)


def test_only_queries_without_a_proof_are_searched_again(make_index: MakeIndex, spy: Spy) -> None:
    # A query near the crowd of equal documents cannot be decided by the scan; one far from it can.
    crowd, others = repeated(random_gaussians(1, 3, seed=1), 400), random_gaussians(50, 3, seed=2, center=40.0)
    means, variances = torch.cat([crowd.means, others.means]), torch.cat([crowd.variances, others.variances])
    documents = Gaussians(means, variances)
    queries = documents[torch.tensor([405, 0, 410])]
    searcher = LocalSearcher(make_index(documents))
    calls = spy(searcher)
    rankings = searcher.search(queries, 1)
    assert [ranking.ids for ranking in rankings] == [["d405"], ["d0"], ["d410"]]
    assert calls == {"_scan_and_prove": [3, 1], "exhaustive": [1]}
    assert_exact(rankings, exact_scores(queries, documents), ids_of(450), 1)


@pytest.mark.parametrize("candidates", [1, 10, 11, 100, 10**12])
def test_the_number_of_candidates_changes_no_result(make_index: MakeIndex, candidates: int) -> None:
    documents, queries = random_gaussians(120, 8), random_gaussians(9, 8, seed=1)
    searcher = LocalSearcher(make_index(documents, segment_docs=50))
    assert_identical(searcher.search(queries, 10, candidates=candidates), searcher.search(queries, 10))


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("top_k", [1, 10, 145])
def test_a_document_whose_inner_product_overflows_is_still_found(
    make_index: MakeIndex, encoding: Encoding, top_k: int
) -> None:
    # Standardised, the outlier's vector fits float32, and its inner product with itself does not: FAISS drops it.
    means, variances = np.arange(150.0)[:, None], np.ones((150, 1))
    means[7], variances[7] = 1e15, 3.9e-9
    documents = Gaussians.from_arrays(means.astype(np.float32), variances.astype(np.float32))
    searcher = LocalSearcher(make_index(documents, encoding=encoding))
    (ranking,) = searcher.search(documents[7:8], top_k)
    assert (ranking.ids[0], ranking.scores[0]) == ("d7", 0.0)
    assert_exact([ranking], exact_scores(documents[7:8], documents), ids_of(150), top_k)


def test_there_is_no_bound_on_inner_products_that_may_overflow() -> None:
    finite, infinite = inner_product_error(torch.tensor([1e8, 1e10]), 1e29, 5, torch.float32).tolist()
    assert 0 < finite < 1e32
    assert infinite == np.inf


def test_memory_is_bounded_however_many_candidates_are_rescored(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = random_gaussians(500, 64)
    searcher = LocalSearcher(make_index(documents))
    expected = searcher.search(documents[:200], 500)
    monkeypatch.setattr(index.candidates, "GATHERED_NUMBERS", 1 << 18)
    everything = 200 * 500 * 2 * 64 * 4
    tracemalloc.start()
    try:
        rankings = searcher.search(documents[:200], 500)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_identical(rankings, expected)
    assert peak < everything / 2


@pytest.mark.parametrize(
    ("encoding", "numbers"),
    # Of other encodings a segment is read, here of 60 documents, before it is folded.
    [(Encoding.FOLDED, 100 * 17), (Encoding.SIMPLIFIED, 100 * 17 + 60 * 25), (Encoding.FULL, 100 * 17 + 60 * 26)],
)
@pytest.mark.parametrize(("missing", "fits"), [(1, False), (0, True)])
def test_an_index_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch, encoding: Encoding, numbers: int, missing: int, fits: bool
) -> None:
    directory = make_index(random_gaussians(100, 8), encoding=encoding, segment_docs=60)
    needed = 4 * numbers
    monkeypatch.setattr(index.memory, "available_memory", lambda: needed - missing)
    if fits:
        assert len(LocalSearcher(directory, device="cpu")) == 100
        return
    (directory.segments / directory.manifest().segments[0].id / "vectors.faiss").unlink()
    with pytest.raises(InsufficientMemoryError, match=r"take 0\.00 GiB; cpu has 0\.00 GiB free"):
        LocalSearcher(directory, device="cpu")


def test_available_memory_is_that_of_the_container_where_it_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index.memory, "_CGROUP", tmp_path)
    machine = index.memory.available_memory()
    assert machine > 1 << 20
    # Files that have been read count as used, and are given back when needed.
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 2000\nactive_file 1000\n")
    for limit, expected in (("1500\n", 500), ("900\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert index.memory.available_memory() == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert index.memory.available_memory() > 1 << 20


def test_threads_change_no_result(make_index: MakeIndex) -> None:
    documents = random_gaussians(200, 8)
    directory = make_index(documents)
    one, all_cores = LocalSearcher(directory, threads=1), LocalSearcher(directory)
    assert_identical(one.search(documents, 10), all_cores.search(documents, 10))


def test_an_open_searcher_keeps_its_generation(tmp_path: Path, make_index: MakeIndex) -> None:
    old, new = random_gaussians(30, 4), random_gaussians(40, 4, seed=1)
    directory = make_index(old, text=[f"old {row}" for row in range(30)])
    searcher = LocalSearcher(directory)
    before = searcher.search(new[:5], 5)
    for seed in range(3):
        make_index(random_gaussians(40, 4, seed=2 + seed))
    assert directory.manifest().generation == 4
    assert_identical(searcher.search(new[:5], 5), before)
    assert searcher.payloads(before[0].documents)[0]["text"].startswith("old ")
    assert len(LocalSearcher(directory)) == 40
    assert build_index([tmp_path / "index.parquet"], directory, BuildOptions()).up_to_date


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_shards_of_the_scan_change_nothing(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Cut anywhere, across segments and into pieces smaller than top_k, with ties that span the cuts."""
    gaussians = repeated(random_gaussians(23, 5, seed=4), 3)
    directory = make_index(gaussians, segment_docs=30)
    queries = random_gaussians(9, 5, seed=5)
    whole = LocalSearcher(directory, threads=1).search(queries, 20)
    monkeypatch.setattr(index.scanning, "SHARD_NUMBERS", 1)
    assert_identical(LocalSearcher(directory, threads=threads).search(queries, 20), whole)


def test_evidence_says_what_was_looked_at_and_why_it_is_enough(make_index: MakeIndex) -> None:
    documents = random_gaussians(200, 6, seed=8)
    searcher = LocalSearcher(make_index(documents, half=[row % 2 for row in range(200)]))
    queries = random_gaussians(3, 6, seed=9)
    rankings = searcher.search(queries, 5)
    assert [ranking.evidence for ranking in rankings] == [(200, 15, "bound")] * 3
    assert rankings[0].top(2).without(rankings[0].ids[0]).evidence == rankings[0].evidence
    # So few that all of them are scored.
    (few,) = searcher.search(queries[:1], 5, filter={"half": 1})
    assert few.evidence == (0, 100, "exhaustive")
    (none,) = searcher.search(queries[:1], 5, filter={"half": 2})
    assert (none.ids, none.evidence) == ([], (0, 0, "exhaustive"))
    assert searcher.exhaustive_search(queries[:1], 5)[0].evidence == (0, 200, "exhaustive")


def test_evidence_of_a_tie_is_that_all_were_scored(make_index: MakeIndex) -> None:
    searcher = LocalSearcher(make_index(repeated(random_gaussians(1, 4, seed=2), 1000)))
    (ranking,) = searcher.search(random_gaussians(1, 4, seed=3), 5)
    assert ranking.evidence == (0, 1000, "exhaustive")
