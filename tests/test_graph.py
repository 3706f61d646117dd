"""Graphs of kind hnsw: the walk against the score that it follows, what is on disk, and what can be set by hand."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import index.graph
from index import Encoding, Gaussians, LocalSearcher, Standardisation, encode_documents, encode_queries
from index.errors import CorruptIndexError
from index.graph import Graph, GraphBuilder
from index.projection import Projection
from index.scalar_codebook import ScalarCodebook
from index.scalar_codes import (
    decode,
    find_ranges,
    no_ranges,
    read_scalar_codes,
    scalar_codes,
    write_scalar_codes,
)
from index.untrusted import IndexFile
from tests.conftest import MakeIndex, random_gaussians


class Built:
    """A graph on disk over random points, and the codes of others by whose inner products it is walked."""

    def __init__(self, folder: Path, n: int = 3000) -> None:
        rng = np.random.default_rng(2)
        self.near = rng.normal(size=(n, 8)).astype(np.float32)
        self.points = np.concatenate([self.near, rng.normal(size=(n, 8)).astype(np.float32) * 0.01], axis=1)
        self.ranges = find_ranges(self.points)
        self.codes = scalar_codes(self.points, self.ranges)
        self.path = folder / "graph.faiss"
        builder = GraphBuilder(self.near[:500], 12, 60)
        builder.add(self.near[: n // 3])
        builder.add(self.near[n // 3 :])
        builder.write(self.path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("graph"))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_walk_finds_the_largest_inner_products(built: Built, bits: int) -> None:
    """Links are by L2 in one space, and the walk by inner products with unit vectors in another that is like it."""
    ranges = built.ranges if bits == 8 else no_ranges(16)
    codes = scalar_codes(built.points, ranges)
    graph = Graph(IndexFile(built.path), [codes[:1000], codes[1000:1001], codes[1001:]], ranges)
    assert len(graph) == 3000
    rng = np.random.default_rng(5)
    queries = rng.normal(size=(50, 16)).astype(np.float32)
    scores = queries @ decode(codes, ranges).T
    true = np.argsort(-scores, axis=1)[:, :10]
    found = graph.search(queries, 10, 400)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), true.tolist(), strict=True)]) > 0.98
    given = np.take_along_axis(scores, found, axis=1)
    assert np.all(given[:, :-1] - given[:, 1:] >= -1e-4)


def test_the_same_links_whatever_the_number_of_threads(built: Built, tmp_path: Path) -> None:
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(1)
        assert Built(tmp_path).path.read_bytes() == built.path.read_bytes()
    finally:
        faiss.omp_set_num_threads(before)


def test_a_file_of_links_holds_no_points(built: Built) -> None:
    """24 links of 4 bytes on the lowest level, and a few more above it."""
    assert 3000 * 24 * 4 < built.path.stat().st_size < 3000 * (24 * 4 + 30)


def test_another_file_is_refused(built: Built, tmp_path: Path) -> None:
    with pytest.raises(CorruptIndexError, match=r"graph\.faiss holds no graph .*: it links 3000 documents, not 2999"):
        Graph(IndexFile(built.path), [built.codes[:-1]], built.ranges)
    other = tmp_path / "other.faiss"
    faiss.write_index(faiss.IndexFlatL2(4), str(other))
    with pytest.raises(CorruptIndexError, match=r"other\.faiss holds no graph"):
        Graph(IndexFile(other), [built.codes], built.ranges)
    other.write_bytes(built.path.read_bytes()[:5000])
    with pytest.raises(CorruptIndexError, match=r"other\.faiss holds no graph .*: it ends after 5000 bytes"):
        Graph(IndexFile(other), [built.codes], built.ranges)


def test_links_that_did_not_reach_the_disk_are_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS writes to a full disk without a word: what it has written is read again."""
    whole: Any = faiss.write_index

    def truncated(made: Any, path: str, flags: int) -> None:
        whole(made, path, flags)
        Path(path).write_bytes(Path(path).read_bytes()[:-1000])

    monkeypatch.setattr(faiss, "write_index", truncated)
    with pytest.raises(OSError, match="was not written whole"):
        Built(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [8, 16])
def test_codes_come_back_from_a_file_that_faiss_reads(built: Built, tmp_path: Path, bits: int) -> None:
    ranges = built.ranges if bits == 8 else no_ranges(16)
    codes, path = scalar_codes(built.points, ranges), tmp_path / "vectors.faiss"
    entry = write_scalar_codes(path, codes, ranges)
    assert entry.bytes == path.stat().st_size
    np.testing.assert_array_equal(read_scalar_codes(IndexFile(path), 3000, ranges), codes)
    points = faiss.read_index(str(path)).reconstruct_n(0, 3000)
    step = (ranges[1] / 255).max() if bits == 8 else np.abs(built.points).max() * 2**-11
    np.testing.assert_allclose(points, built.points, atol=float(step))
    with pytest.raises(CorruptIndexError, match="3000 codes of 16 numbers, not 2999 of the index"):
        read_scalar_codes(IndexFile(path), 2999, ranges)
    if bits == 8:
        with pytest.raises(CorruptIndexError, match="other ranges"):
            read_scalar_codes(IndexFile(path), 3000, ranges + 1)


def test_what_16_bits_cannot_hold_is_the_largest_that_they_can() -> None:
    ranges = no_ranges(16)
    points = np.full((2, 16), 1e9, dtype=np.float32)
    points[1] = -1e30
    decoded = decode(scalar_codes(points, ranges), ranges)
    assert np.isfinite(decoded).all()
    assert decoded[0, 0] == pytest.approx(index.scalar_codes.LARGEST, rel=1e-3)


def test_links_and_their_choice_by_hand(make_index: MakeIndex) -> None:
    documents = random_gaussians(2000, 12, seed=4)
    options: dict[str, Any] = {"kind": "hnsw", "hnsw_m": 8, "hnsw_ef_construction": 40, "code_bytes": 16}
    manifest = make_index(documents, **options).manifest()
    assert manifest.codes is not None
    assert manifest.codes.graph is not None
    graph = manifest.codes.graph
    assert (graph.links, graph.construction, manifest.codes.code_bytes) == (8, 40, 16)
    fixed = make_index(documents, name="fixed", candidates=25, **options).manifest()
    assert fixed.codes is not None
    assert fixed.codes.candidates == [[10, 25]]
    assert fixed.codes.breadth >= 1


def test_numbers_take_16_bits_where_8_would_lose_too_much() -> None:
    """A few documents far away make a range so wide that all others have the same few values of it."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2000, 20))
    for far, bits in ((1, 8), (3000, 16)):
        means[::200] *= far
        documents = Gaussians.from_arrays(means, np.full((2000, 20), 0.5))
        identity = Standardisation.identity(20)
        vectors = encode_documents(documents, Encoding.FOLDED, identity)
        projection = Projection.fit(vectors, encode_queries(documents, Encoding.FOLDED, identity))
        fitted = ScalarCodebook.fit(projection, 16, vectors)
        assert (fitted.bits, fitted.code_bytes) == (bits, 2 * bits)
        assert ScalarCodebook.fit(projection, 16, vectors, eight_bits=True).bits == 8
        assert ScalarCodebook.from_bytes(fitted.to_bytes()).to_bytes() == fitted.to_bytes()
        with pytest.raises(ValueError, match="not a codebook"):
            ScalarCodebook.from_bytes(fitted.to_bytes()[:-1])


def test_a_broader_walk_finds_more(make_index: MakeIndex) -> None:
    documents = random_gaussians(3000, 16, seed=1)
    searcher = LocalSearcher(make_index(documents, kind="hnsw", target_recall=0.8))
    queries = random_gaussians(100, 16, seed=2)
    exact = [set(ranking.ids) for ranking in searcher.search(queries, 10, exact=True)]
    shares = []
    for candidates in (10, 60, 600):
        found = searcher.search(queries, 10, candidates=candidates)
        shares.append(np.mean([len(its & set(each.ids)) / 10 for its, each in zip(exact, found, strict=True)]))
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.97
