"""The query-aware projection against its definition, and the allocation of digits against all that there are."""

import itertools

import numpy as np
import pytest
import torch

from index.allocation import GROUP, LEFT, Allocation
from index.projection import Projection

SHAPES = [(400, 300, 7), (50, 500, 21)]


def drawn(n: int, b: int, w: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents (n, w) around a large mean, and queries (b, w) that use some directions far more than others."""
    rng = torch.Generator().manual_seed(seed)
    documents = 100 + torch.randn(n, w, generator=rng) @ torch.randn(w, w, generator=rng)
    queries = torch.randn(b, w, generator=rng) * torch.logspace(1, -1, w)
    return documents.double(), queries.double()


@pytest.mark.parametrize(("n", "b", "w"), SHAPES)
def test_all_dimensions_keep_every_difference_of_scores(n: int, b: int, w: int) -> None:
    documents, queries = drawn(n, b, w)
    projection = Projection.fit(documents, queries)
    projected = (queries @ projection.queries) @ ((documents - projection.center) @ projection.documents).T
    exact = queries @ (documents - documents.mean(dim=0)).T
    torch.testing.assert_close(projected, exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
    assert projection.dimensions == w


@pytest.mark.parametrize(("n", "b", "w"), SHAPES)
def test_energies_are_the_share_of_the_scores_that_dimensions_have(n: int, b: int, w: int) -> None:
    """What r dimensions leave of scores, measured in each query's own deviation, is the energy of the others."""
    documents, queries = drawn(n, b, w)
    projection = Projection.fit(documents, queries)
    scores = queries @ (documents - documents.mean(dim=0)).T
    deviations = scores.square().mean(dim=1).sqrt()
    assert torch.all(projection.energies[:-1] >= projection.energies[1:])
    assert float(projection.energies.sum()) == pytest.approx(1.0, rel=1e-6)
    for r in (1, w // 2, w - 1):
        part = projection.truncated(r)
        kept = (queries @ part.queries) @ ((documents - part.center) @ part.documents).T
        left = ((scores - kept) / deviations[:, None]).square().mean()
        assert float(left) == pytest.approx(float(projection.energies[r:].sum()), rel=1e-4, abs=1e-9)


def test_no_r_dimensions_of_the_documents_alone_leave_less() -> None:
    documents, queries = drawn(400, 300, 21)
    projection = Projection.fit(documents, queries)
    centred = documents - documents.mean(dim=0)
    scores = queries @ centred.T
    weighed = scores / scores.square().mean(dim=1).sqrt()[:, None]
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    for r in (2, 5, 10):
        basis = components[:r].T
        plain = queries @ basis @ basis.T @ centred.T / scores.square().mean(dim=1).sqrt()[:, None]
        assert float(projection.energies[r:].sum()) < 0.9 * float((weighed - plain).square().mean())


@pytest.mark.parametrize("equal", ["documents", "queries", "both"])
def test_equal_documents_or_queries_have_a_projection(equal: str) -> None:
    documents, queries = drawn(40, 30, 7)
    if equal in ("documents", "both"):
        documents[:] = documents[0]
    if equal in ("queries", "both"):
        queries[:] = queries[0]
    projection = Projection.fit(documents, queries)
    assert projection.dimensions >= 1
    for matrix in (projection.center, projection.documents, projection.queries, projection.energies):
        assert torch.isfinite(matrix).all()


def every_allocation(digits: int, r: int) -> list[Allocation]:
    counts = itertools.product(range(digits // 2 + 1), range(digits + 1), range(digits + 1), range(digits + 1))
    return [
        Allocation(*count)
        for count in counts
        if 2 * count[0] + count[1] + count[2] + count[3] <= digits and count[0] <= r
    ]


@pytest.mark.parametrize("digits", [2, 4, 6, 8])
@pytest.mark.parametrize("slope", [0.0, 0.05, 0.5, 2.0])
def test_the_best_allocation_is_the_best_of_all(digits: int, slope: float) -> None:
    energies = np.exp(-slope * np.arange(20))
    best = Allocation.best(energies, digits)
    assert best in every_allocation(digits, len(energies))
    assert best.left(energies) == pytest.approx(min(it.left(energies) for it in every_allocation(digits, 20)))


def test_an_allocation_by_hand() -> None:
    """One dimension that says nearly everything gets two digits, and two that say little share one."""
    energies = np.array([100.0, 1.0, 1.0])
    best = Allocation.best(energies, 3)
    assert best == Allocation(double=1, single=0, pairs=1, quads=0)
    assert best.left(energies) == pytest.approx(100 * LEFT[8] + 2 * LEFT[2])
    assert best.groups(3) == [[0], [0], [1, 2]]


@pytest.mark.parametrize("digits", [2, 16, 64, 100])
@pytest.mark.parametrize("r", [1, 3, 40, 257])
def test_groups_are_of_distinct_dimensions_and_no_more_than_digits(digits: int, r: int) -> None:
    best = Allocation.best(np.power(0.97, np.arange(r, dtype=np.float64)), digits)
    groups = best.groups(r)
    assert len(groups) <= digits
    assert all(len(group) <= GROUP for group in groups)
    assert groups[: best.double] == groups[best.double : 2 * best.double]
    coded = [dimension for group in groups[best.double :] for dimension in group]
    assert sorted(coded) == list(range(len(coded)))
