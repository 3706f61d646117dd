"""Search results are those of float64 brute force, in every layout of the index and however queries arrive."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index import BuildOptions, Encoding, Filter, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.errors import InvalidGaussiansError, InvalidOptionError
from tests.conftest import MakeIndex, random_gaussians, write_corpus
from tests.rankings import assert_exact, assert_identical, exact_scores, ids_of

N = 150


def read_sample(path: Path) -> tuple[Gaussians, list[str]]:
    table = pq.read_table(path, columns=["id", "mean", "variance"])
    means, variances = (np.stack(table[name].to_numpy()).astype(np.float32) for name in ("mean", "variance"))
    return Gaussians.from_arrays(means, variances), table["id"].to_pylist()


@pytest.fixture(scope="module")
def wordnet(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalSearcher:
    """The sample in three segments, the last of them smaller."""
    directory = IndexDirectory(tmp_path_factory.mktemp("wordnet") / "index")
    build_index([sample / "documents.parquet"], directory, BuildOptions(segment_docs=1500))
    return LocalSearcher(directory)


def test_all_queries_of_the_sample_get_the_results_of_brute_force(wordnet: LocalSearcher, sample: Path) -> None:
    documents, ids = read_sample(sample / "documents.parquet")
    queries, _ = read_sample(sample / "queries.parquet")
    assert (len(documents), len(queries), documents.k) == (4000, 400, 128)
    # torch.distributions takes a minute for all queries; three products of float64 matrices that agree with it do not.
    means, inverses = documents.means.double().numpy(), 1 / documents.variances.double().numpy()
    query_means, query_variances = queries.means.double().numpy(), queries.variances.double().numpy()
    distances = (query_variances + query_means**2) @ inverses.T - 2 * query_means @ (means * inverses).T
    distances += (means**2 * inverses).sum(axis=1)
    logarithms = np.log(query_variances).sum(axis=1)[:, None] + np.log(inverses).sum(axis=1)
    scores = 0.5 * (logarithms + documents.k - distances)
    np.testing.assert_allclose(scores[::25], exact_scores(queries[::25], documents), rtol=1e-10)
    assert_exact(wordnet.search(queries, 10), scores, ids, 10)


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("k", [1, 2, 17, 128])
def test_results_are_exact_in_every_encoding_and_width(make_index: MakeIndex, encoding: Encoding, k: int) -> None:
    documents, queries = random_gaussians(N, k, seed=k), random_gaussians(7, k, seed=1000 + k)
    searcher = LocalSearcher(make_index(documents, encoding=encoding, segment_docs=64))
    assert len(searcher.manifest.segments) == 3
    exact = exact_scores(queries, documents)
    for top_k in (1, 10, N, N + 5):
        assert_exact(searcher.search(queries, top_k), exact, ids_of(N), top_k)


@pytest.mark.parametrize("encoding", Encoding)
def test_results_are_exact_where_raw_float32_would_fail(make_index: MakeIndex, encoding: Encoding) -> None:
    documents = random_gaussians(400, 64, seed=1, center=100.0, deviation=0.1)
    queries = random_gaussians(20, 64, seed=2, center=100.0, deviation=0.1)
    searcher = LocalSearcher(make_index(documents, encoding=encoding))
    assert_exact(searcher.search(queries, 10), exact_scores(queries, documents), ids_of(400), 10)


@pytest.mark.parametrize("exponent", [8, 15])
def test_results_are_exact_with_heavy_tailed_variances(make_index: MakeIndex, exponent: int) -> None:
    rng = np.random.default_rng(3)
    means = rng.normal(size=(N + 20, 5)).astype(np.float32)
    variances = (10 ** rng.uniform(-exponent, exponent, size=means.shape)).astype(np.float32)
    documents = Gaussians.from_arrays(means[:N], variances[:N])
    queries = Gaussians.from_arrays(means[N:], variances[N:])
    searcher = LocalSearcher(make_index(documents, segment_docs=50))
    exact = exact_scores(queries, documents)
    for top_k in (1, 10, N):
        assert_exact(searcher.search(queries, top_k), exact, ids_of(N), top_k)


@pytest.mark.parametrize("k", [1, 2, 17, 128])
def test_a_query_scores_the_same_alone_in_a_batch_and_from_many_threads(make_index: MakeIndex, k: int) -> None:
    documents, queries = random_gaussians(N, k, seed=4), random_gaussians(64, k, seed=5)
    searcher = LocalSearcher(make_index(documents, segment_docs=40))
    together = searcher.search(queries, 10)
    alone = [searcher.search(queries[row : row + 1], 10)[0] for row in range(64)]
    assert_identical(alone, together)
    assert_identical(searcher.exhaustive_search(queries, 10), together)
    with ThreadPoolExecutor(8) as pool:
        for concurrent in pool.map(lambda _: searcher.search(queries, 10), range(24)):
            assert_identical(concurrent, together)


def test_the_cut_into_segments_changes_no_bit_of_any_result(make_index: MakeIndex) -> None:
    documents, queries = random_gaussians(N, 16, seed=6), random_gaussians(20, 16, seed=7)
    whole, *cut = (
        LocalSearcher(make_index(documents, name=f"by{rows}", segment_docs=rows)).search(queries, 25)
        for rows in (1000, 75, 31, 10)
    )
    for rankings in cut:
        assert_identical(rankings, whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_queries_of_any_precision_are_scored_as_they_are(make_index: MakeIndex, dtype: torch.dtype) -> None:
    documents, queries = random_gaussians(N, 9, seed=8), random_gaussians(10, 9, seed=9).to(dtype=torch.float64)
    # Off the grid of float32 by more than the tolerance of the comparison, so that a silent rounding would show.
    queries = Gaussians(queries.means * (1 + 3e-5), queries.variances).to(dtype=dtype)
    assert_exact(
        LocalSearcher(make_index(documents)).search(queries, N), exact_scores(queries, documents), ids_of(N), N
    )


def test_a_query_equal_to_a_document_finds_it_with_a_score_of_zero(make_index: MakeIndex) -> None:
    documents = random_gaussians(N, 33, seed=10, center=-5.0, deviation=3.0)
    for row, ranking in enumerate(LocalSearcher(make_index(documents)).search(documents, 1)):
        assert (ranking.ids, ranking.scores[0]) == ([f"d{row}"], 0.0)


def test_no_queries_have_no_rankings(make_index: MakeIndex) -> None:
    documents = random_gaussians(5, 3)
    assert LocalSearcher(make_index(documents)).search(documents[:0], 3) == []


@pytest.mark.parametrize(("top_k", "candidates"), [(0, None), (-1, None), (1, 0), (1, -5)])
def test_options_outside_their_limits_are_refused(make_index: MakeIndex, top_k: int, candidates: int | None) -> None:
    documents = random_gaussians(5, 3)
    name, value = ("top_k", top_k) if candidates is None else ("candidates", candidates)
    with pytest.raises(InvalidOptionError, match=f"{name} is {value}; it must be at least 1"):
        LocalSearcher(make_index(documents)).search(documents, top_k, candidates=candidates)


def test_queries_of_another_width_are_refused(make_index: MakeIndex) -> None:
    searcher = LocalSearcher(make_index(random_gaussians(5, 3)))
    for search in (searcher.search, searcher.exhaustive_search):
        with pytest.raises(InvalidGaussiansError, match="4 dimensions; the index holds 3"):
            search(random_gaussians(1, 4), 1)


@pytest.mark.parametrize(("mean", "variance"), [(1e39, 1.0), (0.0, 1e-46), (0.0, 1e39), (1e25, 1.0)])
def test_a_query_that_float32_cannot_hold_is_refused_by_its_row(
    make_index: MakeIndex, mean: float, variance: float
) -> None:
    searcher = LocalSearcher(make_index(random_gaussians(5, 2)))
    queries = Gaussians.from_arrays([[0.0, 0.0]] * 2 + [[0.0, mean]], [[1.0, 1.0]] * 2 + [[1.0, variance]])
    with pytest.raises(InvalidGaussiansError, match="row 2") as caught:
        searcher.search(queries, 1)
    assert caught.value.row == 2


# Few different numbers, so that equal documents and exact matches come up; none so far apart that nothing is close.
NUMBERS = st.sampled_from([-3.0, -1.0, -0.25, 0.0, 0.1, 1.0, 2.5])
SPREADS = st.sampled_from([1e-4, 0.1, 1.0, 1.5, 30.0])


@st.composite
def corpora(draw: st.DrawFn) -> tuple[Gaussians, Gaussians]:
    k = draw(st.integers(1, 4))

    def gaussians(most: int) -> Gaussians:
        n = draw(st.integers(1, most))
        means = [draw(st.lists(NUMBERS, min_size=k, max_size=k)) for _ in range(n)]
        variances = [draw(st.lists(SPREADS, min_size=k, max_size=k)) for _ in range(n)]
        return Gaussians.from_arrays(np.array(means, np.float32), np.array(variances, np.float32))

    return gaussians(40), gaussians(3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    corpus=corpora(),
    top_k=st.integers(1, 45),
    segment_docs=st.integers(8, 40),
    encoding=st.sampled_from(list(Encoding)),
)
def test_any_small_corpus_is_searched_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    corpus: tuple[Gaussians, Gaussians],
    top_k: int,
    segment_docs: int,
    encoding: Encoding,
) -> None:
    documents, queries = corpus
    folder = tmp_path_factory.mktemp("any")
    directory = IndexDirectory(folder / "index")
    options = BuildOptions(segment_docs=segment_docs, encoding=encoding)
    build_index([write_corpus(folder / "corpus.parquet", documents)], directory, options)
    searcher = LocalSearcher(directory)
    rankings = searcher.search(queries, top_k)
    assert_identical(rankings, searcher.exhaustive_search(queries, top_k))
    for ranking, scores in zip(rankings, exact_scores(queries, documents), strict=True):
        # Different documents can be equally far from a query; rounding then decides which of them brute force prefers.
        np.testing.assert_allclose(ranking.scores, np.sort(scores)[::-1][:top_k], rtol=1e-9, atol=1e-12)
        rows = [int(document_id[1:]) for document_id in ranking.ids]
        np.testing.assert_allclose(ranking.scores, scores[rows], rtol=1e-9, atol=1e-12)
        assert len(set(rows)) == len(rows)
        pairs = list(zip(-ranking.scores, ranking.ids, strict=True))
        assert pairs == sorted(pairs)
        copies = {(*documents.means[row].tolist(), *documents.variances[row].tolist()) for row in rows}
        assert len(set(ranking.scores.tolist())) <= len(copies)


def test_what_is_no_query_and_no_id_is_a_type_error_that_says_what_is_wanted(make_index: MakeIndex) -> None:
    searcher = LocalSearcher(make_index(random_gaussians(4, 2)))
    pair: Any = ([[0.0, 1.0]], [[1.0, 1.0]])
    wanted = r"queries must be Gaussians, not tuple: make them with Gaussians\.from_arrays\(means, variances\)"
    calls: list[Callable[[], object]] = [
        lambda: searcher.search(pair, 1),
        lambda: searcher.exhaustive_search(pair, 1),
        lambda: searcher.explain(pair, np.array([0])),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=wanted):
            call()
    for wrong, said in ((3, "not int: 3"), (None, "not NoneType: None"), (b"d1", "not bytes: b'd1'")):
        with pytest.raises(TypeError, match=f"the id of a document must be a string, {said}"):
            searcher.document(wrong)  # type: ignore[arg-type]


def test_a_filter_may_be_the_mapping_that_it_is_parsed_of(make_index: MakeIndex) -> None:
    searcher = LocalSearcher(make_index(random_gaussians(9, 2), year=list(range(9))))
    conditions = {"year": {"gte": 2, "lt": 6}}
    for asked in (conditions, MappingProxyType(conditions)):
        (ranking,) = searcher.search(random_gaussians(1, 2, seed=1), 9, filter=asked)
        assert sorted(ranking.ids) == ["d2", "d3", "d4", "d5"]
        assert searcher.matching(asked) == searcher.matching(Filter.parse(conditions)) == 4
    with pytest.raises(InvalidOptionError, match=r"filter\.year"):
        searcher.search(random_gaussians(1, 2), 1, filter={"year": {"above": 2}})
