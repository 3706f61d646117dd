"""Kind faiss: indexes of FAISS's own factory, measured like the rest, and those that are refused."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.errors import BuildError, CorruptIndexError
from index.manifest import IndexKind
from tests.approximate import assert_scores_are_exact, recall
from tests.conftest import MakeIndex, Serve, random_gaussians, write_corpus
from tests.rankings import exact_scores, ids_of

FAISS = IndexKind.FAISS


@pytest.fixture(scope="module")
def documents() -> Gaussians:
    return random_gaussians(3000, 12, seed=4)


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF20,Flat", "IVF16,PQ16x4fs", "PQ16x4fs", "PCA16,IVF10,Flat"])
def test_any_index_of_faisss_is_measured_and_scored_exactly(
    make_index: MakeIndex, documents: Gaussians, factory: str
) -> None:
    searcher = LocalSearcher(make_index(documents, kind="faiss", factory=factory, segment_docs=1100))
    manifest = searcher.manifest
    assert (manifest.kind, manifest.reason) == (FAISS, None)
    assert manifest.codes is not None
    assert manifest.codes.factory is not None
    assert manifest.measured_recall is not None
    assert manifest.measured_recall.recall >= 0.98
    assert (manifest.codes.factory.lists is None) == ("IVF" not in factory)
    queries = random_gaussians(60, 12, seed=8)
    exact = exact_scores(queries, documents)
    found = searcher.search(queries, 10)
    assert_scores_are_exact(found, exact, ids_of(3000))
    assert recall(found, exact, 10) >= 0.95


def test_fewer_lists_find_less(make_index: MakeIndex, documents: Gaussians, serve: Serve) -> None:
    directory = make_index(documents, kind="faiss", factory="IVF20,Flat", segment_docs=1100)
    searcher, queries = LocalSearcher(directory), random_gaussians(60, 12, seed=8)
    exact = exact_scores(queries, documents)
    shares = [recall(searcher.search(queries, 10, nprobe=nprobe), exact, 10) for nprobe in (1, 5, 1000)]
    assert shares[0] < shares[1] < shares[2]
    described = serve(directory).get("/v1/index").json()["codes"]["factory"]
    assert described == {"factory": "IVF20,Flat", "lists": 20, "nprobe": described["nprobe"]}


@pytest.mark.parametrize("factory", ["HNSW32", "HNSW16,Flat", "IVF100_HNSW32,Flat", "NSG32"])
def test_graphs_by_inner_product_are_refused_with_the_reason(tmp_path: Path, factory: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(100, 4))
    directory = IndexDirectory(tmp_path / "index")
    with pytest.raises(BuildError, match=r"links documents by inner product, .* use --kind hnsw"):
        build_index([corpus], directory, BuildOptions(kind=FAISS, factory=factory))
    assert not directory.staging.exists()


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (None, "--kind faiss needs --factory"),
        ("Nonsense", "index factory makes nothing of 'Nonsense'"),
        ("PQ16x4fs,RFlat", r"refines what it finds, .* leave it out"),
        ("L2norm,Flat", r"changes the scores or the numbers of documents"),
        ("IDMap,Flat", r"changes the scores or the numbers of documents"),
        ("PQ7x4", r"makes nothing of 'PQ7x4', with \d+ projected dimensions: .* --code-bytes sets how many"),
        ("IVF5000,Flat", r"'IVF5000,Flat' cannot be trained on \d+ documents: .*5000"),
    ],
)
def test_a_string_that_will_not_do_is_named_and_leaves_nothing_behind(
    tmp_path: Path, factory: str | None, message: str
) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(300, 4))
    directory = IndexDirectory(tmp_path / "index")
    with pytest.raises(BuildError, match=message):
        build_index([corpus], directory, BuildOptions(kind=FAISS, factory=factory))
    assert not directory.staging.exists()


def test_candidates_by_hand(make_index: MakeIndex, documents: Gaussians) -> None:
    manifest = make_index(documents, kind="faiss", factory="IVF20,SQ8", candidates=30).manifest()
    assert manifest.codes is not None
    assert manifest.codes.candidates == [[10, 30]]


def test_two_builds_write_the_same_files(make_index: MakeIndex, documents: Gaussians) -> None:
    options = {"kind": "faiss", "factory": "IVF16,PQ16x4fs", "segment_docs": 1100}
    one, other = (make_index(documents, name="index", **options).manifest() for _ in range(2))
    unlike = {"created_at", "generation"}
    assert one.model_dump(exclude=unlike) == other.model_dump(exclude=unlike)


def test_an_index_of_other_documents_is_refused(make_index: MakeIndex, documents: Gaussians) -> None:
    directory = make_index(documents, kind="faiss", factory="SQ8")
    directory.verify()
    (entry,) = directory.manifest().segments
    path = directory.segments / entry.id / "vectors.faiss"
    faiss.write_index(faiss.IndexFlatIP(4), str(path))
    with pytest.raises(CorruptIndexError, match=r"vectors\.faiss"):
        LocalSearcher(directory)


def test_queries_that_float32_cannot_hold_are_answered_exactly(make_index: MakeIndex, documents: Gaussians) -> None:
    searcher = LocalSearcher(make_index(documents, kind="faiss", factory="Flat"))
    means = documents.means[:2].clone()
    means[1] = 5e18
    queries = Gaussians(means, documents.variances[:2])
    (_, far), (_, true) = searcher.search(queries, 5), searcher.search(queries, 5, exact=True)
    assert far.ids == true.ids
    np.testing.assert_array_equal(far.scores, true.scores)
