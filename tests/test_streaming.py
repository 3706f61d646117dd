"""The scan of documents that are not in memory, against the one of those that are."""

import numpy as np
import pytest
import torch

import index.streaming
from index import Encoding, Gaussians, encode_documents
from index.documents import GaussianStore
from index.errors import SearchStoppedError
from index.standardisation import MomentAccumulator
from index.streaming import StreamedScanner
from tests.conftest import random_gaussians
from tests.rankings import exact_scores


def scanner(documents: Gaussians, parts: int, threads: int | None = None) -> StreamedScanner:
    moments = MomentAccumulator(documents.k)
    moments.update(documents)
    both = torch.cat([documents.means, documents.variances], dim=1).numpy()
    standardisation = moments.standardisation()
    norm = float(encode_documents(documents, Encoding.FOLDED, standardisation).norm(dim=1).max())
    return StreamedScanner(GaussianStore(np.array_split(both, parts)), standardisation, norm, threads)


@pytest.mark.parametrize(("parts", "threads"), [(1, 1), (3, 2), (7, None)])
@pytest.mark.parametrize("count", [1, 20, 150, 1000])
def test_the_best_are_found_and_nothing_else_can_be_better_than_the_ceiling(
    monkeypatch: pytest.MonkeyPatch, parts: int, threads: int | None, count: int
) -> None:
    monkeypatch.setattr(index.streaming, "BLOCK_ROWS", 16)
    monkeypatch.setattr(index.streaming, "PART_ROWS", 50)
    documents, queries = random_gaussians(400, 5), random_gaussians(9, 5, seed=1)
    numbers, ceilings = scanner(documents, parts, threads).scan(queries, count)
    exact = exact_scores(queries, documents)
    for found, scores, ceiling in zip(numbers, exact, ceilings, strict=True):
        assert len(set(found.tolist())) == len(found) == min(count, 400)
        rest = np.delete(scores, found)
        assert len(rest) == 0 or rest.max() <= ceiling
        assert set(np.argsort(-scores)[: max(1, count - 2)]) <= set(found.tolist())
    assert count < 400 or np.all(ceilings == -np.inf)


def test_a_scan_that_nobody_waits_for_ends() -> None:
    with pytest.raises(SearchStoppedError):
        scanner(random_gaussians(400, 5), 2).scan(random_gaussians(1, 5), 3, stop=lambda: True)


@pytest.mark.parametrize("numbers", [[3, 399, 0, 0, 131], [0, 1, 2], [399, 399], [5, 4, 3, -1], [[7, 250], [1, 399]]])
@pytest.mark.parametrize("parts", [1, 3])
def test_gaussians_are_gathered_in_any_order(numbers: list[int], parts: int) -> None:
    both = torch.cat([random_gaussians(400, 5).means, random_gaussians(400, 5).variances], dim=1).numpy()
    wanted = np.array(numbers)
    means, variances = GaussianStore(np.array_split(both, parts)).gaussians(wanted)
    there = wanted >= 0
    np.testing.assert_array_equal(means[there], both[wanted[there], :5])
    np.testing.assert_array_equal(variances[there], both[wanted[there], 5:])
