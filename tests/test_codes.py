"""Codes: digits against brute force, the scan against what digits stand for, files that are not what they say."""

from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
import torch

from index import Encoding, Gaussians, encode_documents, encode_queries
from index.allocation import GROUP
from index.code_scanning import CodeScanner
from index.codebook import Codebook
from index.codes import CodeIndex, Codes, nearest_digits, read_codes, train_centroids, write_codes
from index.encoding import QueryFolder
from index.errors import CorruptIndexError
from index.projection import Projection
from index.scalar_codebook import ScalarCodebook
from index.scalar_codes import no_ranges
from index.shortlist import Shortlist
from index.standardisation import MomentAccumulator, Standardisation
from index.untrusted import IndexFile
from tests.conftest import random_gaussians

DIGITS = 24


class Fitted:
    """A codebook of random documents, and what goes with it."""

    def __init__(self, n: int = 3000, k: int = 10) -> None:
        self.documents, self.queries = random_gaussians(n, k), random_gaussians(64, k, seed=1)
        moments = MomentAccumulator(k)
        moments.update(self.documents)
        self.standardisation: Standardisation = moments.standardisation()
        self.vectors = encode_documents(self.documents, Encoding.FOLDED, self.standardisation)
        self.asked = encode_queries(self.queries, Encoding.FOLDED, self.standardisation)
        self.projection = Projection.fit(
            self.vectors, encode_queries(self.documents, Encoding.FOLDED, self.standardisation)
        )
        self.codebook = Codebook.fit(self.projection, DIGITS, 16, self.vectors)
        self.codes, self.projected = self.codebook.encode(self.vectors)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return Fitted()


def digits_of(codes: Codes) -> npt.NDArray[np.int64]:
    """(n, M), one digit a number."""
    return np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1).astype(np.int64)


def weighed(codebook: Codebook, queries: Gaussians, standardisation: Standardisation) -> npt.NDArray[np.float32]:
    """Queries laid out for a scan."""
    return codebook.laid_out(codebook.weigh(QueryFolder(standardisation)(queries)))


def what_codes_say(codes: Codes, codebook: Codebook) -> npt.NDArray[np.float32]:
    """The points (n, M * GROUP) that codes stand for."""
    digits = digits_of(codes)
    return codebook.centroids[np.arange(len(codebook.centroids)), digits].reshape(len(codes), -1)


def test_digits_are_the_nearest_centroids() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 6 * GROUP)).astype(np.float32)
    centroids = train_centroids(points, seed=1)
    apart = np.square(points.reshape(500, 6, 1, GROUP) - centroids[None]).sum(axis=3)
    np.testing.assert_array_equal(digits_of(nearest_digits(points, centroids)), apart.argmin(axis=2))


def test_training_leaves_about_what_the_theory_says() -> None:
    """Sixteen levels for a normal variable leave 0.0115 of its variance: Max, 1960."""
    points = np.zeros((8000, 2 * GROUP), dtype=np.float32)
    points[:, [0, GROUP]] = np.random.default_rng(3).normal(size=(8000, 2))
    centroids = train_centroids(points, seed=1)
    said = centroids[np.arange(2), digits_of(nearest_digits(points, centroids))].reshape(points.shape)
    assert np.square(points - said).sum(axis=1).mean() / 2 == pytest.approx(0.01154, rel=0.2)


def test_a_codebook_leaves_about_what_its_allocation_says(fitted: Fitted) -> None:
    """The error of a score, in the query's deviation of scores, on documents that the codebook has seen."""
    weights = weighed(fitted.codebook, fitted.queries, fitted.standardisation).astype(np.float64)
    said = weights @ what_codes_say(fitted.codes, fitted.codebook).astype(np.float64).T
    exact = (fitted.asked.double() @ fitted.vectors.double().T).numpy()
    errors = (said - said.mean(axis=1, keepdims=True)) - (exact - exact.mean(axis=1, keepdims=True))
    left = float(np.mean((errors / exact.std(axis=1, keepdims=True)) ** 2))
    assert left < 0.02
    more = Codebook.fit(fitted.projection, 2 * DIGITS, 16, fitted.vectors)
    weights = weighed(more, fitted.queries, fitted.standardisation).astype(np.float64)
    said = weights @ what_codes_say(more.encode(fitted.vectors)[0], more).T.astype(np.float64)
    errors = (said - said.mean(axis=1, keepdims=True)) - (exact - exact.mean(axis=1, keepdims=True))
    assert float(np.mean((errors / exact.std(axis=1, keepdims=True)) ** 2)) < left / 3


def test_a_second_digit_says_what_the_first_leaves(fitted: Fitted) -> None:
    assert fitted.codebook.double > 0
    points = what_codes_say(fitted.codes, fitted.codebook)
    projected = (fitted.vectors.numpy() - fitted.codebook.center) @ fitted.codebook.documents
    first, second = points[:, 0], points[:, fitted.codebook.double * GROUP]
    alone = np.square(projected[:, 0] - first).mean()
    assert np.square(projected[:, 0] - first - second).mean() < alone / 10


@pytest.mark.parametrize("n", [1, 31, 32, 33, 3000])
def test_the_scan_ranks_by_what_the_codes_say(fitted: Fitted, n: int) -> None:
    """Looked-up values are rounded to 8 bits: whatever is clearly better comes first, and everything comes once."""
    index = CodeIndex(fitted.codes[:n], fitted.codebook.centroids)
    weights = weighed(fitted.codebook, fitted.queries, fitted.standardisation)
    scores, rows = index.search(weights, 2 * n)
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(n), (len(rows), 1)))
    said = weights.astype(np.float64) @ what_codes_say(fitted.codes[:n], fitted.codebook).T.astype(np.float64)
    found = np.take_along_axis(said, rows, axis=1)
    spans = (weights.reshape(64, DIGITS, 1, GROUP) * fitted.codebook.centroids).sum(axis=3)
    rounding = DIGITS * (spans.max(axis=2) - spans.min(axis=2)).max(axis=1) / 255
    assert np.all(found[:, :-1] - found[:, 1:] >= -2 * rounding[:, None])
    np.testing.assert_allclose(scores, found, atol=float(rounding.max()))


def all_scores(fitted: Fitted, queries: Gaussians) -> npt.NDArray[np.float32]:
    """The scan's score (b, n) of every document."""
    weights = weighed(fitted.codebook, queries, fitted.standardisation)
    scores, rows = CodeIndex(fitted.codes, fitted.codebook.centroids).search(weights, len(fitted.codes))
    by_row = np.empty_like(scores)
    np.put_along_axis(by_row, rows, scores, axis=1)
    return by_row


@pytest.mark.parametrize("shards", [1, 3])
def test_cut_up_and_in_parts_documents_have_the_scores_of_one_scan(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """Rounding depends on the query alone. Which of the documents that tie for the last place are found does not."""
    monkeypatch.setattr("index.code_scanning.SHARD_BYTES", 1000)
    parts = [fitted.codes[:1000], fitted.codes[1000:1007], fitted.codes[1007:]]
    shortlist = Shortlist([fitted.projected], fitted.codebook.ranges)
    scanner = CodeScanner(parts, shortlist, fitted.codebook, fitted.standardisation, 2.0, threads=shards)
    assert len(scanner._shards) == shards
    scores = all_scores(fitted, fitted.queries)
    _, found = scanner.found(fitted.queries, 50)
    assert all(len(set(row)) == 50 for row in found.tolist())
    np.testing.assert_array_equal(np.take_along_axis(scores, found, axis=1), -np.sort(-scores, axis=1)[:, :50])


def test_one_query_is_scanned_alike_alone_and_in_company(fitted: Fitted) -> None:
    together = all_scores(fitted, fitted.queries)
    for row in range(0, 64, 9):
        np.testing.assert_array_equal(all_scores(fitted, fitted.queries[row : row + 1])[0], together[row])


def test_a_fit_is_the_same_each_time(fitted: Fitted) -> None:
    again = Fitted()
    assert again.codebook.to_bytes() == fitted.codebook.to_bytes()
    np.testing.assert_array_equal(again.codes, fitted.codes)


def test_a_codebook_comes_back_from_its_file(fitted: Fitted) -> None:
    restored = Codebook.from_bytes(fitted.codebook.to_bytes())
    assert restored.to_bytes() == fitted.codebook.to_bytes()
    np.testing.assert_array_equal(restored.encode(fitted.vectors[:9])[0], fitted.codes[:9])
    for data in (b"", b"nonsense", fitted.codebook.to_bytes()[:-1]):
        with pytest.raises(ValueError, match="not a codebook"):
            Codebook.from_bytes(data)


def test_codes_come_back_from_a_file_that_faiss_reads(fitted: Fitted, tmp_path: Path) -> None:
    path = tmp_path / "vectors.faiss"
    entry = write_codes(path, fitted.codes, fitted.codebook.centroids)
    assert entry.bytes == path.stat().st_size
    np.testing.assert_array_equal(read_codes(IndexFile(path), 3000, fitted.codebook.centroids), fitted.codes)
    index = faiss.read_index(str(path))
    np.testing.assert_allclose(
        index.reconstruct_n(0, 3000), what_codes_say(fitted.codes, fitted.codebook), rtol=1e-6, atol=1e-6
    )


def test_a_file_of_anything_else_is_refused(fitted: Fitted, tmp_path: Path) -> None:
    centroids, path = fitted.codebook.centroids, tmp_path / "vectors.faiss"
    write_codes(path, fitted.codes, centroids)
    with pytest.raises(CorruptIndexError, match=r"vectors\.faiss holds \(3000, 12\) codes, not 2999 of 24 digits"):
        read_codes(IndexFile(path), 2999, centroids)
    with pytest.raises(CorruptIndexError, match="other centroids"):
        read_codes(IndexFile(path), 3000, centroids + 1)
    faiss.write_index(faiss.IndexFlatIP(4), str(path))
    with pytest.raises(CorruptIndexError, match="holds no codes, but something of the form 'IxFI'"):
        read_codes(IndexFile(path), 3000, centroids)
    path.write_bytes(b"nothing")
    with pytest.raises(CorruptIndexError, match="holds no codes"):
        read_codes(IndexFile(path), 3000, centroids)


def test_vectors_may_lie_anywhere_in_memory(fitted: Fitted) -> None:
    strided = torch.empty(2 * len(fitted.vectors), fitted.vectors.shape[1])[::2]
    strided.copy_(fitted.vectors)
    np.testing.assert_array_equal(fitted.codebook.encode(strided)[0], fitted.codes)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("cut", [[], [1000, 1007]])
def test_the_shortlist_is_ranked_by_projected_vectors(fitted: Fitted, bits: int, cut: list[int]) -> None:
    """Against the vectors themselves: only what lies within the rounding may be in another order."""
    whole = ScalarCodebook.fit(fitted.projection, 16, fitted.vectors, eight_bits=bits == 8)
    ranges = whole.ranges if bits == 8 else no_ranges(whole.dimensions)
    whole = ScalarCodebook(whole.center, whole.documents, whole.queries, ranges)
    (codes,) = whole.encode(fitted.vectors)
    assert codes.shape == (3000, whole.dimensions * bits // 8)
    shortlist = Shortlist(np.split(codes, cut), ranges)
    queries = whole.weigh(QueryFolder(fitted.standardisation)(fitted.queries))
    rng = np.random.default_rng(0)
    numbers = np.stack([rng.permutation(3000)[:700] for _ in range(len(queries))])
    numbers[3, 5:] = -1
    best = shortlist.best(queries, numbers, 20)
    assert best.shape == (64, 20)
    assert sorted(best[3, :5]) == sorted(numbers[3, :5])
    assert (best[3, 5:] == -1).all()
    scores = queries.astype(np.float64) @ whole.points(fitted.vectors).T
    steps = ranges[1] / 255 if bits == 8 else np.abs(whole.points(fitted.vectors)).max(axis=0) * 2**-10
    for query in (0, 1, 2, *range(4, 64)):
        rounding = float(np.abs(queries[query]) @ steps)
        found = scores[query, best[query]]
        assert np.all(np.diff(found) <= rounding)
        others = np.setdiff1d(numbers[query], best[query])
        assert scores[query, others].max() <= found.min() + rounding
