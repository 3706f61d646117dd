"""The scan in bfloat16: its bound against exact scores, and its results against float64 brute force."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import index.half_scanning
import index.opening
from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, Precision, build_index
from index.documents import GaussianStore
from index.half_scanning import HalfScanner, bfloat16_is_faster
from index.standardisation import MomentAccumulator
from tests.conftest import MakeIndex, Serve, random_gaussians
from tests.oracles import mixed_gaussians, torch_kl
from tests.rankings import assert_exact, exact_scores, ids_of

CPU = torch.device("cpu")


def scanner_of(documents: Gaussians, device: torch.device = CPU) -> HalfScanner:
    moments = MomentAccumulator(documents.k)
    moments.update(documents)
    both = torch.cat([documents.means, documents.variances], dim=1).float().numpy()
    return HalfScanner(GaussianStore([both]), moments.standardisation(), device, threads=1)


def assert_no_other_scores_above_the_ceiling(scanner: HalfScanner, documents: Gaussians, queries: Gaussians) -> None:
    exact = -torch_kl(queries, documents)
    for count in (1, 5, 40):
        numbers, ceilings = scanner.scan(queries, count)
        for row, (found, ceiling) in enumerate(zip(numbers, ceilings, strict=True)):
            others = np.setdiff1d(np.arange(len(documents)), found)
            if len(others):
                assert exact[row, others].max() <= ceiling + 1e-9 * abs(ceiling)
            else:
                assert ceiling == -np.inf


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_what_is_not_found_scores_at_most_the_ceiling(data: st.DataObject) -> None:
    drawn = data.draw(mixed_gaussians(rows=60))
    # As they are stored.
    both = Gaussians.from_arrays(drawn.means.float(), drawn.variances.float())
    documents, queries = both[:50], both[50:]
    assert_no_other_scores_above_the_ceiling(scanner_of(documents), documents, queries)


@pytest.mark.parametrize("k", [1, 12, 100])
def test_the_ceiling_holds_for_ordinary_documents(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(index.half_scanning, "BLOCK_ROWS", 300)
    monkeypatch.setattr(index.half_scanning, "ENCODED_ROWS", 170)
    documents, queries = random_gaussians(1000, k), random_gaussians(40, k, seed=1)
    assert_no_other_scores_above_the_ceiling(scanner_of(documents), documents, queries)


def test_the_bound_allows_for_the_largest_roundings() -> None:
    """Numbers in the middle between two of bfloat16, which lie 2^-7 apart above 1: both sides are rounded by 2^-8."""
    for value in (1 + 2.0**-8, 1 + 3 * 2.0**-8):
        number = torch.tensor([value], dtype=torch.float64)
        rounded = number.to(torch.bfloat16).double()
        assert abs(float(rounded - number)) / value > 0.98 * 2.0**-8
        assert abs(float(rounded - number)) <= index.half_scanning.UNIT * value
    values = torch.rand(10_000, dtype=torch.float64) * 100
    assert bool((index.half_scanning._up(values).double() >= values).all())
    rng = np.random.default_rng(0)
    for _ in range(200):
        q = torch.from_numpy((1 + rng.choice([1, 3], 64) * 2.0**-8) * rng.choice([-1, 1], 64))
        d = torch.from_numpy((1 + rng.choice([1, 3], 64) * 2.0**-8) * rng.choice([-1, 1], 64))
        q_rounded, d_rounded = (each.to(torch.bfloat16).double() for each in (q, d))
        error = (d - d_rounded).norm() + index.half_scanning.UNIT * d_rounded.norm()
        assert float(q @ d) <= float(q_rounded @ d_rounded + q.norm() * error)


def test_without_its_last_dimension_it_would_be_no_bound() -> None:
    """The dimension is what makes the difference: products of rounded vectors alone are above and below."""
    documents, queries = random_gaussians(1000, 40), random_gaussians(40, 40, seed=1)
    scanner = scanner_of(documents)
    scanner._rows[:, 2 * documents.k + 1] = 0
    with pytest.raises(AssertionError):
        assert_no_other_scores_above_the_ceiling(scanner, documents, queries)


def test_the_sample_is_found_and_proved(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = IndexDirectory(tmp_path / "index")
    build_index([sample / "documents.parquet"], directory, BuildOptions(segment_docs=1500))
    table = pq.read_table(sample / "queries.parquet")
    means, variances = (np.stack(table[name].to_numpy()) for name in ("mean", "variance"))
    queries = Gaussians.from_arrays(means, variances)
    searcher = LocalSearcher(directory, precision=Precision.BFLOAT16)
    assert searcher.precision is Precision.BFLOAT16
    rows: list[int] = []
    scan = HalfScanner.scan

    def counted(self: HalfScanner, asked: Gaussians, count: int) -> object:
        rows.append(len(asked))
        return scan(self, asked, count)

    monkeypatch.setattr(HalfScanner, "scan", counted)
    found = searcher.search(queries, 10)
    exact = LocalSearcher(directory, precision=Precision.FLOAT32).search(queries, 10)
    for one, other in zip(found, exact, strict=True):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.scores, other.scores)
    # The first scan proves nearly all of them; the second, sixteen times as wide, what is left.
    assert rows[0] == 400
    assert sum(rows[1:]) <= 40


def equal() -> Gaussians:
    return random_gaussians(1, 4)[torch.zeros(3000, dtype=torch.int64)]


def sharp() -> Gaussians:
    drawn = random_gaussians(2000, 8)
    variances = drawn.variances.clone()
    variances[::10, 3] = 1e-8
    return Gaussians(drawn.means, variances)


@pytest.mark.parametrize("make", [equal, sharp, lambda: random_gaussians(3, 5), lambda: random_gaussians(3000, 1)])
def test_whatever_the_corpus_results_are_exact(make_index: MakeIndex, make: Callable[[], Gaussians]) -> None:
    documents = make()
    searcher = LocalSearcher(make_index(documents, segment_docs=1100), precision=Precision.BFLOAT16)
    queries = documents[torch.arange(0, len(documents), max(1, len(documents) // 20))]
    top_k = min(10, len(documents))
    assert_exact(searcher.search(queries, 10), exact_scores(queries, documents), ids_of(len(documents)), top_k)


@pytest.mark.parametrize("faster", [True, False])
def test_auto_takes_what_was_measured_to_be_faster(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    directory = make_index(random_gaussians(50, 4))
    asked: list[int] = []

    def measured(_: torch.device, k: int) -> bool:
        asked.append(k)
        return faster

    monkeypatch.setattr(index.opening, "bfloat16_is_faster", measured)
    assert LocalSearcher(directory).precision is Precision.FLOAT32
    assert asked == []
    monkeypatch.setattr(index.opening, "WORTH_COMPARING", 1)
    assert LocalSearcher(directory).precision is (Precision.BFLOAT16 if faster else Precision.FLOAT32)
    assert asked == [4]


def test_the_comparison_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for half, whole, expected in ((1.0, 2.0, True), (2.0, 1.0, False)):
        monkeypatch.setattr(
            index.half_scanning,
            "_seconds",
            lambda queries, _, half=half, whole=whole: half if queries.dtype == torch.bfloat16 else whole,
        )
        assert bfloat16_is_faster(CPU, 4) is expected


def test_a_service_scans_as_it_is_told(make_index: MakeIndex, serve: Serve) -> None:
    directory = make_index(random_gaussians(200, 4))
    for precision in ("bfloat16", "float32"):
        assert serve(directory, precision=precision).get("/v1/index").json()["precision"] == precision


@pytest.mark.gpu
def test_on_a_gpu_results_are_those_of_the_cpu(make_index: MakeIndex, cuda: torch.device) -> None:
    """Without faiss-gpu: torch is all that it takes."""
    documents, queries = random_gaussians(5000, 24), random_gaussians(40, 24, seed=1)
    searcher = LocalSearcher(make_index(documents), device=str(cuda), precision=Precision.BFLOAT16)
    assert searcher.device.type == "cuda"
    assert_exact(searcher.search(queries, 10), exact_scores(queries, documents), ids_of(5000), 10)
    assert_no_other_scores_above_the_ceiling(scanner_of(documents, cuda), documents, queries)


def test_where_all_documents_are_found_nothing_else_scores_anything() -> None:
    documents = random_gaussians(30, 5)
    scanner = scanner_of(documents)
    for count in (30, 100):
        numbers, ceilings = scanner.scan(random_gaussians(3, 5, seed=1), count)
        assert (np.sort(numbers, axis=1) == np.arange(30)).all()
        assert (ceilings == -np.inf).all()
    assert scanner.scan(documents[:0], 5)[0].shape[0] == 0
