"""Kind fastscan from build to answer: recall, exact scores, corpora that codes cannot hold, and what is on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import index.build_codes
import index.builder
import index.calibration
from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, Ranking, build_index
from index.errors import BuildError, CorruptIndexError, SourceError
from index.manifest import CodesRecord, FileEntry, IndexKind, Manifest
from tests.conftest import MakeIndex, Serve, random_gaussians, write_corpus
from tests.oracles import Array
from tests.rankings import assert_exact, assert_identical, exact_scores, ids_of
from tests.serving import wait_until

FASTSCAN = IndexKind.FASTSCAN


def read(path: Path) -> tuple[list[str], Gaussians]:
    table = pq.read_table(path)
    means, variances = (np.stack(table[name].to_numpy()) for name in ("mean", "variance"))
    return table["id"].to_pylist(), Gaussians.from_arrays(means, variances)


def recall(rankings: list[Ranking], exact: Array, top_k: int) -> float:
    """The share of results that are as good as the true last one: equal documents are as good as each other."""
    least = -np.sort(-exact, axis=1)[:, top_k - 1]
    return float(
        np.mean(
            [(ranking.scores >= last - 1e-9 * abs(last)).mean() for ranking, last in zip(rankings, least, strict=True)]
        )
    )


def assert_scores_are_exact(rankings: list[Ranking], exact: Array, ids: list[str]) -> None:
    """Whatever was found has its true score, best first, and nothing is found twice."""
    rows = {document_id: row for row, document_id in enumerate(ids)}
    for ranking, scores in zip(rankings, exact, strict=True):
        assert len(set(ranking.ids)) == len(ranking.ids)
        np.testing.assert_allclose(ranking.scores, scores[[rows[name] for name in ranking.ids]], rtol=1e-6, atol=1e-12)
        assert np.all(np.diff(ranking.scores) <= 0)


def stopped_build(
    corpus: Path,
    directory: IndexDirectory,
    options: BuildOptions,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    function: str,
) -> None:
    """Has a build end where it calls that function."""

    def interrupts(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, function, interrupts)
        with pytest.raises(KeyboardInterrupt):
            build_index([corpus], directory, options)


class Sample:
    """The carried sample as a fastscan index, with real queries for the fit or without, and the true scores."""

    def __init__(self, sample: Path, folder: Path, with_queries: bool) -> None:
        self.ids, documents = read(sample / "documents.parquet")
        _, self.queries = read(sample / "queries.parquet")
        self.exact = exact_scores(self.queries, documents)
        self.directory = IndexDirectory(folder / "index")
        queries = sample / "queries.parquet" if with_queries else None
        build_index(
            [sample / "documents.parquet"],
            self.directory,
            BuildOptions(kind=FASTSCAN, queries=queries, segment_docs=1500),
        )
        self.searcher = LocalSearcher(self.directory)


@pytest.fixture(scope="module", params=[False, True], ids=["fitted on documents", "fitted on queries"])
def built(request: pytest.FixtureRequest, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(sample, tmp_path_factory.mktemp("fastscan"), request.param)


def test_the_sample_is_found_with_the_recall_that_was_asked_for(built: Sample) -> None:
    manifest = built.searcher.manifest
    assert (manifest.kind, manifest.reason) == (FASTSCAN, None)
    measured = manifest.measured_recall
    assert measured is not None
    assert measured.target == 0.99
    # On other queries than the candidates were chosen by.
    assert measured.recall >= 0.98
    assert measured.low < measured.recall < measured.high <= 1
    found = built.searcher.search(built.queries, 10)
    assert_scores_are_exact(found, built.exact, built.ids)
    # Real queries are harder than documents: without them, what was measured is not quite what is found.
    assert recall(found, built.exact, 10) >= (0.985 if measured.source == "queries" else 0.97)


def test_searches_for_more_have_their_candidates(built: Sample) -> None:
    found = built.searcher.search(built.queries, 100)
    assert all(len(ranking.ids) == 100 for ranking in found)
    assert_scores_are_exact(found, built.exact, built.ids)
    assert recall(found, built.exact, 100) >= 0.97


def test_a_code_is_a_fraction_of_a_vector(built: Sample) -> None:
    codes = built.searcher.manifest.codes
    assert codes is not None
    assert 10 * codes.digits // 2 <= 4 * (3 * 128 + 1)
    on_disk = sum(segment.manifest.files["vectors.faiss"].bytes for segment in built.searcher._store.segments)
    # And in each of three segments what the digits stand for: 16 levels of up to 4 numbers.
    assert on_disk < 4000 * codes.digits // 2 + 3 * (codes.digits * 16 * 4 * 4 + 1000)


def test_exact_searches_are_exact(built: Sample) -> None:
    few = built.queries[:40]
    assert_exact(built.searcher.search(few, 10, exact=True), built.exact[:40], built.ids, 10)


def test_every_document_a_candidate_is_every_document_found(built: Sample) -> None:
    everything = built.searcher.search(built.queries[:20], 10, candidates=10**9)
    assert_exact(everything, built.exact[:20], built.ids, 10)


def test_more_candidates_find_more(built: Sample) -> None:
    shares = [
        recall(built.searcher.search(built.queries, 10, candidates=count), built.exact, 10) for count in (1, 40, 400)
    ]
    assert shares[0] < shares[1] < shares[2]
    # Fewer than the results that are wanted are none fewer than those.
    assert all(len(ranking.ids) == 10 for ranking in built.searcher.search(built.queries[:3], 10, candidates=1))


def test_threads_and_company_change_no_score(built: Sample) -> None:
    alone = LocalSearcher(built.directory, threads=1)
    together = built.searcher.search(built.queries[:64], 10)
    apart = [alone.search(built.queries[row : row + 1], 10)[0] for row in range(64)]
    # Ties for the last candidate may go either way; whoever is found by both has the same score to the last bit.
    for one, other in zip(together, apart, strict=True):
        scores = dict(zip(one.ids, one.scores.tolist(), strict=True))
        both = [name for name in other.ids if name in scores]
        assert len(both) >= 9
        assert [scores[name] for name in both] == [
            dict(zip(other.ids, other.scores.tolist(), strict=True))[name] for name in both
        ]


def test_two_builds_write_the_same_files(built: Sample, sample: Path, tmp_path: Path) -> None:
    again = IndexDirectory(tmp_path / "again")
    measured = built.searcher.manifest.measured_recall
    assert measured is not None
    queries = sample / "queries.parquet" if measured.source == "queries" else None
    build_index([sample / "documents.parquet"], again, BuildOptions(kind=FASTSCAN, queries=queries, segment_docs=1500))
    unlike = {"created_at", "created_by"}
    assert again.manifest().model_dump(exclude=unlike) == built.searcher.manifest.model_dump(exclude=unlike)


def all_equal() -> Gaussians:
    return random_gaussians(1, 4)[torch.zeros(6000, dtype=torch.int64)]


def sharp_in_one_dimension() -> Gaussians:
    drawn = random_gaussians(3000, 8)
    variances = drawn.variances.clone()
    variances[::10, 3] = 1e-8
    return Gaussians(drawn.means, variances)


def heavy_tailed() -> Gaussians:
    rng = np.random.default_rng(5)
    means = rng.standard_t(2.5, size=(3000, 12)) * 10
    variances = np.exp(rng.standard_t(3.0, size=(3000, 12)))
    return Gaussians.from_arrays(means.astype(np.float32), np.clip(variances, 1e-6, 1e6).astype(np.float32))


DEGENERATE: dict[str, Callable[[], Gaussians]] = {
    "one document": lambda: random_gaussians(1, 6),
    "five documents": lambda: random_gaussians(5, 6),
    "k = 1": lambda: random_gaussians(3000, 1),
    "all documents equal": all_equal,
    "a dimension with variance 1e-8": sharp_in_one_dimension,
    "heavy-tailed": heavy_tailed,
    "two groups far apart": lambda: Gaussians(
        torch.cat([random_gaussians(1500, 6).means, 1e4 + random_gaussians(1500, 6, seed=2).means]),
        random_gaussians(3000, 6, seed=3).variances,
    ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_whatever_the_corpus_recall_holds_or_the_index_says_that_it_is_flat(make_index: MakeIndex, name: str) -> None:
    documents = DEGENERATE[name]()
    searcher = LocalSearcher(make_index(documents, kind="fastscan"))
    queries = documents[torch.arange(0, len(documents), max(1, len(documents) // 50 - 1))]
    exact, top_k = exact_scores(queries, documents), min(10, len(documents))
    found = searcher.search(queries, 10)
    assert all(len(ranking.ids) == top_k for ranking in found)
    assert_scores_are_exact(found, exact, ids_of(len(documents)))
    if searcher.manifest.kind is FASTSCAN:
        assert recall(found, exact, top_k) >= 0.98
    else:
        assert searcher.manifest.reason is not None
        assert searcher.manifest.reason.startswith("asked for fastscan, but ")
        assert_exact(found, exact, ids_of(len(documents)), top_k)


@pytest.mark.parametrize(
    ("n", "k", "top_k", "options"),
    [(3000, 1, 3000, {}), (100, 6, 100, {"code_bytes": 1}), (3000, 1, 2, {"code_bytes": 1, "candidates": 2})],
)
def test_documents_that_the_scan_leaves_out_are_found_where_they_are_wanted(
    make_index: MakeIndex, n: int, k: int, top_k: int, options: dict[str, int]
) -> None:
    """FAISS finds no document whose looked-up values are all the least, however many are asked for."""
    documents = random_gaussians(n, k)
    searcher = LocalSearcher(make_index(documents, kind="fastscan", **options))
    queries = documents[:40]
    found = searcher.search(queries, top_k)
    assert all(len(ranking.ids) == top_k for ranking in found)
    assert_scores_are_exact(found, exact_scores(queries, documents), ids_of(n))
    if top_k == n:
        assert_exact(found, exact_scores(queries, documents), ids_of(n), n)


def test_codes_that_say_nothing_find_something_all_the_same(make_index: MakeIndex) -> None:
    documents = all_equal()[:2000]
    searcher = LocalSearcher(make_index(documents, kind="fastscan", code_bytes=4, candidates=20))
    assert searcher.manifest.kind is FASTSCAN
    (ranking,) = searcher.search(random_gaussians(1, 4, seed=1), 5)
    assert len(set(ranking.ids)) == 5


def test_a_query_too_large_for_the_projection_is_answered_exactly(make_index: MakeIndex, documents: Gaussians) -> None:
    searcher = LocalSearcher(make_index(documents, kind="fastscan"))
    means = torch.cat([documents.means[:3], torch.full((1, 12), 5e18), documents.means[3:5]])
    queries = Gaussians(means, documents.variances[:6])
    found = searcher.search(queries, 10)
    assert_identical(found[3:4], searcher.search(queries[3:4], 10, exact=True))
    assert_identical(found[:3], searcher.search(queries[:3], 10))


def test_queries_that_see_no_difference_between_equal_documents_build_flat(
    make_index: MakeIndex, tmp_path: Path
) -> None:
    queries = write_corpus(tmp_path / "queries.parquet", random_gaussians(40, 4, seed=1))
    manifest = make_index(all_equal(), kind="fastscan", queries=queries).manifest()
    assert manifest.kind is IndexKind.FLAT


def test_more_dimensions_than_a_codebook_is_fitted_for_build_flat(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index.build_codes, "MOST_DIMENSIONS", 5)
    manifest = make_index(random_gaussians(100, 6), kind="fastscan").manifest()
    assert manifest.reason == (
        "asked for fastscan, but a codebook is fitted for k up to 5, and k is 6: flat instead, which is exact"
    )


def test_a_document_that_float32_cannot_hold_is_named(tmp_path: Path) -> None:
    documents = random_gaussians(300, 4)
    means, variances = documents.means.clone(), documents.variances.clone()
    variances[123] = 1e-38
    means[123] = 1e5
    corpus = write_corpus(tmp_path / "corpus.parquet", Gaussians(means, variances))
    directory = IndexDirectory(tmp_path / "index")
    with pytest.raises(SourceError, match=r"corpus\.parquet.* 123.*'d123'"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN))
    assert not directory.staging.exists()


def test_candidates_by_hand_have_the_digits_that_reach_the_target(make_index: MakeIndex, documents: Gaussians) -> None:
    few = make_index(documents, name="few", kind="fastscan", candidates=40).manifest()
    many = make_index(documents, name="many", kind="fastscan", candidates=500).manifest()
    for manifest in (few, many):
        assert manifest.measured_recall is not None
        assert manifest.measured_recall.recall >= 0.98
    assert few.codes is not None
    assert many.codes is not None
    assert few.codes.digits > many.codes.digits


def test_more_digits_are_tried_where_those_predicted_miss_the_target(
    make_index: MakeIndex, documents: Gaussians, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index.calibration.Calibration, "digits", lambda *_: 4)
    monkeypatch.setattr(index.build_codes, "MOST_CANDIDATES", 60)
    monkeypatch.setattr(index.calibration, "MOST_CANDIDATES", 60)
    directory = make_index(documents, kind="fastscan", segment_docs=600)
    manifest = directory.manifest()
    assert manifest.codes is not None
    assert manifest.codes.digits > 8
    assert [path.name for path in directory.codebooks.iterdir()] == [manifest.codes.codebook]
    directory.verify()


def test_a_codebook_that_was_not_whole_is_fitted_anew(
    tmp_path: Path, documents: Gaussians, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    stopped_build(corpus, directory, BuildOptions(kind=FASTSCAN), monkeypatch, index.build_codes, "_scan")
    (path,) = directory.codebooks.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    build_index([corpus], directory, BuildOptions(kind=FASTSCAN))
    assert path.read_bytes() == whole
    directory.verify()


def test_an_index_below_the_least_recall_is_not_called_up_to_date(tmp_path: Path, documents: Gaussians) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    few = BuildOptions(kind=FASTSCAN, code_bytes=3, candidates=12)
    build_index([corpus], directory, few)
    with pytest.raises(BuildError, match="below --min-recall"):
        build_index([corpus], directory, few.model_copy(update={"min_recall": 0.95}))


def test_documents_that_are_all_equal_are_what_codes_cannot_tell_apart(make_index: MakeIndex) -> None:
    manifest = make_index(all_equal(), kind="fastscan").manifest()
    assert manifest.kind is IndexKind.FLAT
    assert manifest.codes is None


@pytest.fixture(scope="module")
def documents() -> Gaussians:
    return random_gaussians(2000, 12, seed=4)


def test_code_length_and_candidates_by_hand(make_index: MakeIndex, documents: Gaussians) -> None:
    manifest = make_index(documents, kind="fastscan", code_bytes=5, candidates=33).manifest()
    assert manifest.codes is not None
    assert manifest.measured_recall is not None
    assert (manifest.codes.digits, manifest.codes.candidates, manifest.measured_recall.candidates) == (
        10,
        [[10, 33]],
        33,
    )
    assert 0.2 < manifest.measured_recall.recall < 0.99


def test_a_higher_target_takes_more(make_index: MakeIndex, documents: Gaussians) -> None:
    candidates = {}
    for target in (0.5, 0.9, 0.999):
        codes = (
            make_index(documents, name=str(target), kind="fastscan", target_recall=target, code_bytes=8)
            .manifest()
            .codes
        )
        assert codes is not None
        candidates[target] = codes.candidates[0][1]
    assert candidates[0.5] < candidates[0.9] < candidates[0.999]


def test_nothing_is_published_below_the_least_recall(tmp_path: Path, documents: Gaussians) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", documents)
    directory = IndexDirectory(tmp_path / "index")
    build_index([corpus], directory)
    few = BuildOptions(kind=FASTSCAN, code_bytes=3, candidates=12, min_recall=0.95)
    with pytest.raises(BuildError, match=r"measured recall@10 is 0\.\d+ over 256 queries, below --min-recall 0\.95"):
        build_index([corpus], directory, few)
    assert directory.manifest().kind is IndexKind.FLAT
    # Nothing is left that stands in the way of another try.
    summary = build_index([corpus], directory, BuildOptions(kind=FASTSCAN, min_recall=0.95))
    assert (summary.resumed_documents, summary.manifest.kind) == (0, FASTSCAN)


@pytest.mark.parametrize("stop", ["_codebook", "_scan", "require_recall"])
def test_an_interrupted_build_goes_on_to_the_same_index(
    tmp_path: Path, documents: Gaussians, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", documents)
    options = BuildOptions(kind=FASTSCAN, segment_docs=700)
    whole, interrupted = IndexDirectory(tmp_path / "whole"), IndexDirectory(tmp_path / "interrupted")
    build_index([corpus], whole, options)

    module = index.builder if stop == "require_recall" else index.build_codes
    stopped_build(corpus, interrupted, options, monkeypatch, module, stop)
    assert interrupted.live_generation() is None
    assert build_index([corpus], interrupted, options).resumed_documents == 2000
    unlike = {"created_at"}
    assert interrupted.manifest().model_dump(exclude=unlike) == whole.manifest().model_dump(exclude=unlike)
    interrupted.verify()


def test_another_target_does_not_go_on_with_an_unfinished_build(
    tmp_path: Path, documents: Gaussians, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    stopped_build(corpus, directory, BuildOptions(kind=FASTSCAN), monkeypatch, index.build_codes, "_scan")
    with pytest.raises(BuildError, match="another target_recall"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, target_recall=0.9))


def test_queries_must_be_of_the_corpuss_dimensions_and_two(tmp_path: Path, documents: Gaussians) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    other = write_corpus(tmp_path / "other.parquet", random_gaussians(10, 7))
    with pytest.raises(SourceError, match=r"other\.parquet has queries of 7 dimensions, .* have 12"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, queries=other))
    one = write_corpus(tmp_path / "one.parquet", random_gaussians(1, 12))
    with pytest.raises(SourceError, match=r"one\.parquet has 1 queries; at least 2"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, queries=one))
    with pytest.raises(SourceError, match="absent"):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, queries=tmp_path / "absent.parquet"))


def test_a_codebook_that_is_damaged_or_gone_is_named(make_index: MakeIndex, documents: Gaussians) -> None:
    directory = make_index(documents, kind="fastscan")
    directory.verify()
    (path,) = directory.codebooks.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for use in (directory.verify, lambda: LocalSearcher(directory)):
        with pytest.raises(CorruptIndexError, match=rf"{path.name} does not match its checksum"):
            use()
    path.unlink()
    with pytest.raises(CorruptIndexError, match=rf"{path.name} is missing"):
        LocalSearcher(directory)


def test_codebooks_that_no_generation_needs_are_removed(tmp_path: Path, documents: Gaussians) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus.parquet", documents), IndexDirectory(tmp_path / "index")
    for target in (0.9, 0.95, 0.99):
        build_index([corpus], directory, BuildOptions(kind=FASTSCAN, target_recall=target))
    kept = [json.loads(path.read_text())["codes"]["codebook"] for path in directory.manifests.iterdir()]
    assert len(kept) == 2
    assert sorted(path.name for path in directory.codebooks.iterdir()) == sorted(kept)


@pytest.mark.parametrize(
    ("candidates", "top_k", "expected"),
    [
        ([[10, 80]], 1, 80),
        ([[10, 80]], 10, 80),
        ([[10, 80]], 25, 200),
        ([[10, 80], [100, 320]], 5, 80),
        ([[10, 80], [100, 320]], 100, 320),
        ([[10, 80], [100, 320]], 1000, 3200),
        # Halfway between, in orders of magnitude.
        ([[10, 100], [1000, 10000]], 100, 1000),
    ],
)
def test_candidates_for_other_numbers_of_results(candidates: list[list[int]], top_k: int, expected: int) -> None:
    entry = FileEntry(bytes=1, blake3="0" * 64)
    name = "0" * 12 + "-00000001-00064.safetensors"
    codes = CodesRecord(codebook=name, file=entry, digits=64, dimensions=9, candidates=candidates)
    assert codes.candidates_for(top_k) == expected


def test_a_manifest_has_codes_if_and_only_if_its_kind_has(make_index: MakeIndex, documents: Gaussians) -> None:
    manifest = make_index(documents, kind="fastscan").manifest()
    for change in ({"kind": "flat"}, {"codes": None}, {"measured_recall": None}):
        with pytest.raises(ValueError, match="does not go with its codes"):
            Manifest.model_validate({**manifest.model_dump(mode="json"), **change}, strict=False)


def test_the_service_says_what_it_scans_and_answers_exactly_where_asked(
    make_index: MakeIndex, documents: Gaussians, serve: Serve
) -> None:
    directory = make_index(documents, kind="fastscan", code_bytes=4, candidates=20)
    client, searcher = serve(directory), LocalSearcher(directory)
    described = client.get("/v1/index").json()
    measured = directory.manifest().measured_recall
    assert measured is not None
    assert described["kind"] == "fastscan"
    assert described["measured_recall"] == measured.model_dump()
    assert described["codes"] == {
        "bytes_per_document": 4,
        "dimensions": described["codes"]["dimensions"],
        "candidates": [[10, 20]],
    }
    queries = random_gaussians(30, 12, seed=9)
    body = {
        "queries": [
            {"mean": m.tolist(), "variance": v.tolist()} for m, v in zip(queries.means, queries.variances, strict=True)
        ]
    }

    def ids(**options: object) -> list[list[str]]:
        response = client.post("/v1/search/batch", body | options)
        assert response.status_code == 200, response.text
        return [[result["id"] for result in results] for results in response.json()["results"]]

    exact = exact_scores(queries, documents)
    true = [[f"d{row}" for row in np.argsort(-scores)[:10]] for scores in exact]
    assert ids(exact=True) == true
    assert ids(candidates=2000) == true
    assert ids() == [ranking.ids for ranking in searcher.search(queries, 10)] != true


def test_an_index_of_another_kind_is_taken_up(
    make_index: MakeIndex, documents: Gaussians, serve: Serve, tmp_path: Path
) -> None:
    directory = make_index(documents)
    client = serve(directory, reload_seconds=0.05)
    assert client.get("/v1/index").json()["kind"] == "flat"
    build_index([tmp_path / "index.parquet"], directory, BuildOptions(kind=FASTSCAN))
    wait_until(lambda: client.get("/v1/index").json()["generation"] == 2)
    assert client.get("/v1/index").json()["kind"] == "fastscan"


def test_rankings_of_one_searcher_repeat(make_index: MakeIndex, documents: Gaussians) -> None:
    searcher = LocalSearcher(make_index(documents, kind="fastscan", segment_docs=300))
    queries = random_gaussians(20, 12, seed=2)
    assert_identical(searcher.search(queries, 10), searcher.search(queries, 10))
