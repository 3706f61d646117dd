"""Every approximate kind from build to answer: recall, exact scores, and corpora that it cannot hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import index.build_codes
import index.build_fit
import index.build_graph
import index.build_ladder
import index.build_lists
import index.build_run
from index import BuildOptions, Encoding, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.calibration import Calibration
from index.documents import Numbers
from index.errors import BuildError, CorruptIndexError
from index.manifest import IndexKind
from tests.approximate import KINDS, all_equal, assert_scores_are_exact, read, recall, stopped_build
from tests.conftest import MakeIndex, random_gaussians, write_corpus
from tests.rankings import assert_exact, assert_identical, exact_scores, ids_of

pytestmark = pytest.mark.timeout(400)


class Sample:
    """The carried sample as an index of some kind, with real queries for the fit or without, and the true scores."""

    def __init__(self, sample: Path, folder: Path, kind: IndexKind, with_queries: bool) -> None:
        self.ids, documents = read(sample / "documents.parquet")
        _, self.queries = read(sample / "queries.parquet")
        self.exact = exact_scores(self.queries, documents)
        self.kind, self.directory = kind, IndexDirectory(folder / "index")
        queries = sample / "queries.parquet" if with_queries else None
        build_index(
            [sample / "documents.parquet"],
            self.directory,
            BuildOptions(kind=kind, queries=queries, segment_docs=1500),
        )
        self.searcher = LocalSearcher(self.directory)


@pytest.fixture(
    scope="module",
    params=[(kind, with_queries) for kind in KINDS for with_queries in (False, True)],
    ids=[f"{kind}, fitted on {source}" for kind in KINDS for source in ("documents", "queries")],
)
def built(request: pytest.FixtureRequest, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(sample, tmp_path_factory.mktemp("kind"), *request.param)


def test_the_sample_is_found_with_the_recall_that_was_asked_for(built: Sample) -> None:
    manifest = built.searcher.manifest
    assert manifest.reason is None
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
    assert codes.code_bytes <= {IndexKind.HNSW: 256}.get(built.kind, 96)
    on_disk = sum(segment.manifest.files["vectors.faiss"].bytes for segment in built.searcher.store.segments)
    # And in each of three segments what a digit stands for, 16 levels of up to 4 numbers, or the range of a number.
    assert on_disk < 4000 * codes.code_bytes + 3 * (2 * codes.code_bytes * 16 * 4 * 4 + 1000)


def test_exact_searches_are_exact(built: Sample) -> None:
    few = built.queries[:40]
    assert_exact(built.searcher.search(few, 10, exact=True), built.exact[:40], built.ids, 10)


def test_every_document_a_candidate_is_every_document_found(built: Sample) -> None:
    nprobe = 10**9 if built.kind is IndexKind.IVF_FASTSCAN else None
    everything = built.searcher.search(built.queries[:20], 10, candidates=10**9, nprobe=nprobe)
    assert_exact(everything, built.exact[:20], built.ids, 10)


def test_more_candidates_find_more(built: Sample) -> None:
    shares = [
        recall(built.searcher.search(built.queries, 10, candidates=count), built.exact, 10) for count in (1, 15, 400)
    ]
    assert shares[0] < shares[1] <= shares[2]
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
    build_index(
        [sample / "documents.parquet"], again, BuildOptions(kind=built.kind, queries=queries, segment_docs=1500)
    )
    unlike = {"created_at", "created_by"}
    assert again.manifest().model_dump(exclude=unlike) == built.searcher.manifest.model_dump(exclude=unlike)


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
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_corpus_recall_holds_or_the_index_says_that_it_is_flat(
    make_index: MakeIndex, kind: IndexKind, name: str
) -> None:
    documents = DEGENERATE[name]()
    searcher = LocalSearcher(make_index(documents, kind=kind))
    queries = documents[torch.arange(0, len(documents), max(1, len(documents) // 50 - 1))]
    exact, top_k = exact_scores(queries, documents), min(10, len(documents))
    found = searcher.search(queries, 10)
    assert all(len(ranking.ids) == top_k for ranking in found)
    assert_scores_are_exact(found, exact, ids_of(len(documents)))
    if searcher.manifest.kind is kind:
        assert recall(found, exact, top_k) >= 0.98
    else:
        assert searcher.manifest.reason is not None
        assert searcher.manifest.reason.startswith(f"asked for {kind}, but ")
        assert_exact(found, exact, ids_of(len(documents)), top_k)


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_too_large_for_the_projection_is_answered_exactly(make_index: MakeIndex, kind: IndexKind) -> None:
    documents = random_gaussians(2000, 12, seed=4)
    searcher = LocalSearcher(make_index(documents, kind=kind))
    means = torch.cat([documents.means[:3], torch.full((1, 12), 5e18), documents.means[3:5]])
    queries = Gaussians(means, documents.variances[:6])
    found = searcher.search(queries, 10)
    assert_identical(found[3:4], searcher.search(queries[3:4], 10, exact=True))
    assert_identical(found[:3], searcher.search(queries[:3], 10))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_published_below_the_least_recall(tmp_path: Path, kind: IndexKind) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(2000, 12, seed=4))
    directory = IndexDirectory(tmp_path / "index")
    build_index([corpus], directory)
    few = BuildOptions(kind=kind, target_recall=0.5, min_recall=0.95)
    with pytest.raises(BuildError, match=r"measured recall@10 is 0\.\d+ over 256 queries, below --min-recall 0\.95"):
        build_index([corpus], directory, few)
    assert directory.manifest().kind is IndexKind.FLAT
    # Nothing is left that stands in the way of another try.
    summary = build_index([corpus], directory, BuildOptions(kind=kind, min_recall=0.95))
    assert (summary.resumed_documents, summary.manifest.kind) == (0, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_rankings_of_one_searcher_repeat(make_index: MakeIndex, kind: IndexKind) -> None:
    documents = random_gaussians(2000, 12, seed=4)
    searcher = LocalSearcher(make_index(documents, kind=kind, segment_docs=300))
    queries = random_gaussians(20, 12, seed=2)
    assert_identical(searcher.search(queries, 10), searcher.search(queries, 10))


STOPS: list[tuple[IndexKind, Any, str]] = [
    *((kind, index.build_fit.Fitting, "kept_codebook") for kind in KINDS),
    (IndexKind.FASTSCAN, index.build_codes, "_ladder"),
    (IndexKind.HNSW, index.build_graph, "_linked"),
    (IndexKind.HNSW, index.build_ladder.Ladder, "broad"),
    (IndexKind.IVF_FASTSCAN, index.build_lists, "_listed"),
    (IndexKind.IVF_FASTSCAN, index.build_lists, "measured_recall"),
    *((kind, index.build_run, "require_recall") for kind in KINDS),
]


@pytest.mark.parametrize(("kind", "where", "stop"), STOPS, ids=[f"{kind} at {stop}" for kind, _, stop in STOPS])
def test_an_interrupted_build_goes_on_to_the_same_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: IndexKind, where: Any, stop: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(2000, 12, seed=4))
    options = BuildOptions(kind=kind, segment_docs=700)
    whole, interrupted = IndexDirectory(tmp_path / "whole"), IndexDirectory(tmp_path / "interrupted")
    build_index([corpus], whole, options)

    stopped_build(corpus, interrupted, options, monkeypatch, where, stop)
    assert interrupted.live_generation() is None
    assert build_index([corpus], interrupted, options).resumed_documents == 2000
    unlike = {"created_at"}
    assert interrupted.manifest().model_dump(exclude=unlike) == whole.manifest().model_dump(exclude=unlike)
    interrupted.verify()


@pytest.mark.parametrize("kind", [IndexKind.HNSW, IndexKind.IVF_FASTSCAN])
def test_a_graph_or_lists_that_are_damaged_or_gone_are_named(make_index: MakeIndex, kind: IndexKind) -> None:
    directory = make_index(random_gaussians(2000, 12, seed=4), kind=kind)
    directory.verify()
    (path,) = directory.structures.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for use in (directory.verify, lambda: LocalSearcher(directory), lambda: LocalSearcher(directory, verify=False)):
        with pytest.raises(CorruptIndexError, match=rf"{path.name} does not match its checksum"):
            use()
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptIndexError, match=rf"{path.name} has \d+ bytes, not \d+"):
        LocalSearcher(directory, verify=False)
    path.unlink()
    with pytest.raises(CorruptIndexError, match=rf"{path.name} is missing"):
        LocalSearcher(directory, verify=False)


@pytest.mark.parametrize("kind", [IndexKind.HNSW, IndexKind.IVF_FASTSCAN])
def test_graphs_and_lists_that_no_generation_needs_are_removed(tmp_path: Path, kind: IndexKind) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(2000, 12, seed=4))
    directory = IndexDirectory(tmp_path / "index")
    for target in (0.9, 0.95, 0.99):
        build_index([corpus], directory, BuildOptions(kind=kind, target_recall=target))
    assert len(list(directory.structures.iterdir())) == 2
    build_index([corpus], directory)
    build_index([corpus], directory, BuildOptions(encoding=Encoding.FOLDED))
    assert list(directory.structures.iterdir()) == []
    directory.verify()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_any_precision_are_taken(make_index: MakeIndex, kind: IndexKind, dtype: torch.dtype) -> None:
    searcher = LocalSearcher(make_index(random_gaussians(2000, 12, seed=4), kind=kind))
    queries = random_gaussians(20, 12, seed=2).to(dtype=dtype)
    found, same = searcher.search(queries, 5), searcher.search(queries.to(dtype=torch.float64), 5)
    assert [ranking.ids for ranking in found] == [ranking.ids for ranking in same]


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_for_more_that_cannot_be_reached_keeps_the_kind(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch, kind: IndexKind
) -> None:
    """Recall at ten is what is asked for; at a hundred it is measured for searches for more, and may fall short."""
    candidates = Calibration.candidates

    def at_ten_alone(self: Calibration, ranks: Numbers, target: float, at: int) -> int | None:
        return candidates(self, ranks, target, at) if at == 10 else None

    monkeypatch.setattr(Calibration, "candidates", at_ten_alone)
    searcher = LocalSearcher(make_index(random_gaussians(3000, 12, seed=4), kind=kind))
    assert searcher.manifest.kind is kind
    assert all(len(ranking.ids) == 500 for ranking in searcher.search(random_gaussians(3, 12, seed=1), 500))


@pytest.mark.parametrize("kind", [IndexKind.HNSW, IndexKind.IVF_FASTSCAN])
def test_a_structure_that_is_damaged_when_a_build_goes_on_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: IndexKind
) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(2000, 12, seed=4))
    directory, options = IndexDirectory(tmp_path / "index"), BuildOptions(kind=kind)
    stopped_build(corpus, directory, options, monkeypatch, index.build_run, "require_recall")
    (path,) = directory.structures.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    build_index([corpus], directory, options)
    assert path.read_bytes() == whole
    directory.verify()


def test_what_became_flat_leaves_no_files_of_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def misses(*_: object) -> None:
        raise index.build_fit.NotReachedError("it was not to be")

    monkeypatch.setattr(index.build_codes, "measured_recall", misses)
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(2000, 12, seed=4))
    directory = IndexDirectory(tmp_path / "index")
    manifest = build_index([corpus], directory, BuildOptions(kind=IndexKind.FASTSCAN)).manifest
    assert manifest.reason == "asked for fastscan, but it was not to be: flat instead, which is exact"
    for segment in manifest.segments:
        assert not (directory.segments / segment.id / "projected.npy").exists()
    directory.verify()


def test_projected_vectors_that_are_gone_are_named(make_index: MakeIndex) -> None:
    directory = make_index(random_gaussians(2000, 12, seed=4), kind="fastscan")
    (entry,) = directory.manifest().segments
    path = directory.segments / entry.id / "projected.npy"
    path.unlink()
    with pytest.raises(CorruptIndexError, match=r"projected\.npy is missing"):
        LocalSearcher(directory)


def test_what_results_rest_on_is_said(built: Sample) -> None:
    searcher, queries = built.searcher, built.queries[torch.arange(4)]
    codes = searcher.manifest.codes
    assert codes is not None
    looks_at_all = built.kind is IndexKind.FASTSCAN
    for ranking in searcher.search(queries, 10):
        assert ranking.evidence == (4000 if looks_at_all else None, codes.candidates_for(10), None)
    for ranking in searcher.search(queries, 10, exact=True):
        assert ranking.evidence is not None
        assert (ranking.evidence.scanned, ranking.evidence.proof) == (4000, "bound")
    if looks_at_all:
        # FAISS may leave one document out: then there is no proof.
        for ranking in searcher.search(queries, 10, candidates=4000):
            assert ranking.evidence is not None
            assert (ranking.evidence.proof is not None) == (ranking.evidence.candidates == 4000)
