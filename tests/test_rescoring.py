"""Exact scores: -KL by torch.distributions, the same to the last bit in any company, and what they are made of."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from index import Gaussians
from index.rescoring import explain, negative_kl, rescore
from tests.conftest import random_gaussians
from tests.oracles import DIMENSIONS, Array, mixed_gaussians, torch_kl

FLOATS: list[type[np.floating]] = [np.float16, np.float32, np.float64]


def arrays(gaussians: Gaussians) -> tuple[Array, Array]:
    """Means and variances in float64."""
    return gaussians.means.double().numpy(), gaussians.variances.double().numpy()


def all_scores(queries: Gaussians, documents: Gaussians) -> Array:
    """-KL of every query with every document, (b, n)."""
    means, variances = arrays(queries)
    return negative_kl(means[:, None], variances[:, None], *arrays(documents))


def test_hand_computed() -> None:
    """N(1, 1) against N(3, 2), N(1, 1) itself, N(1, 4); and a sum over two dimensions."""
    one, three, two, four = (np.array([number]) for number in (1.0, 3.0, 2.0, 4.0))
    # KL = 1/2 [1/2 - 1 + ln 2 + (1-3)^2/2] = 3/4 + 1/2 ln 2.
    assert negative_kl(one, one, three, two) == pytest.approx(-0.75 - np.log(2) / 2, rel=1e-15)
    # KL = 1/2 [1/4 - 1 + ln 4] = ln 2 - 3/8; the other way round it is 1/2 [4 - 1 - ln 4] = 3/2 - ln 2.
    assert negative_kl(one, one, one, four) == pytest.approx(0.375 - np.log(2), rel=1e-15)
    assert negative_kl(one, four, one, one) == pytest.approx(np.log(2) - 1.5, rel=1e-15)
    both = negative_kl(np.array([1.0, 1.0]), np.array([1.0, 4.0]), np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    assert both == pytest.approx(-2.25 + np.log(2) / 2, rel=1e-15)


@given(gaussians=mixed_gaussians())
def test_is_torchs_kl(gaussians: Gaussians) -> None:
    """Every Gaussian against every other, with itself on the diagonal, over all ranges."""
    scores = all_scores(gaussians, gaussians)
    np.testing.assert_allclose(scores, -torch_kl(gaussians, gaussians), rtol=1e-6, atol=1e-12)
    assert (scores <= 0).all()


@given(gaussians=mixed_gaussians(), size=st.sampled_from([1e-15, 1e-12, 1e-8, 1e-4]), seed=st.integers(0, 999))
def test_near_itself(gaussians: Gaussians, size: float, seed: int) -> None:
    """Where nearly everything cancels scores are still right to 1e-12, and none is above zero."""
    rng = np.random.default_rng(seed)
    means, variances = arrays(gaussians)
    near = Gaussians.from_arrays(
        means + size * np.sqrt(variances) * rng.uniform(-1, 1, means.shape),
        variances * (1 + size * rng.uniform(-1, 1, means.shape)),
    )
    scores = negative_kl(means, variances, *arrays(near))
    # Half of x - 1 - ln x is x^2/4 near 1, and torch's own formula loses as many digits here as any.
    ratio = variances / near.variances.numpy() - 1
    exact = 0.5 * (ratio - np.log1p(ratio) + (means - near.means.numpy()) ** 2 / near.variances.numpy()).sum(axis=-1)
    np.testing.assert_allclose(scores, -exact, rtol=1e-6, atol=1e-12)
    assert (scores <= 0).all()


@given(gaussians=mixed_gaussians(), dtype=st.sampled_from([np.float32, np.float64]))
def test_itself_is_exactly_zero(gaussians: Gaussians, dtype: type[np.floating]) -> None:
    """Not minus zero either, which would be shown as -0.0."""
    means, variances = (array.astype(dtype) for array in arrays(gaussians))
    scores = negative_kl(means, variances, means, variances)
    assert (scores == 0).all()
    assert not np.signbit(scores).any()


@pytest.mark.parametrize("query_dtype", FLOATS)
@pytest.mark.parametrize("document_dtype", FLOATS)
def test_any_precision(query_dtype: type[np.floating], document_dtype: type[np.floating]) -> None:
    """Whatever comes in is computed in float64, and left as it is."""
    query, document = arrays(random_gaussians(3, 20, seed=1)), arrays(random_gaussians(3, 20, seed=2))
    narrow = *(array.astype(query_dtype) for array in query), *(array.astype(document_dtype) for array in document)
    before = [array.copy() for array in narrow]
    scores = negative_kl(*narrow)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, negative_kl(*(array.astype(np.float64) for array in narrow)))
    for array, copy in zip(narrow, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_limits_of_float32() -> None:
    """The smallest and largest float32 variances and means side by side: finite, and without a warning."""
    limits = np.finfo(np.float32)
    variances = np.array([limits.smallest_subnormal, limits.max] * 4, np.float32)
    means = np.array([limits.max, limits.min] * 4, np.float32)
    score = negative_kl(means, variances, -means, variances[::-1])
    expected = torch_kl(Gaussians.from_arrays([means], [variances]), Gaussians.from_arrays([-means], [variances[::-1]]))
    assert np.isfinite(score)
    assert score == pytest.approx(-expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("queries", "documents", "scores"),
    [((5,), (5,), ()), ((5,), (4, 5), (4,)), ((3, 1, 5), (4, 5), (3, 4)), ((3, 1, 5), (3, 4, 5), (3, 4))],
)
def test_shapes(queries: tuple[int, ...], documents: tuple[int, ...], scores: tuple[int, ...]) -> None:
    """One and one, one and many, all with all, and each with candidates of its own, as NumPy broadcasts."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=queries), rng.gamma(2, size=queries)
    document = rng.normal(size=documents), rng.gamma(2, size=documents)
    found = negative_kl(*query, *document)
    assert found.shape == scores
    for place in np.ndindex(scores):
        pair = [np.broadcast_to(array, (*scores, 5))[place] for array in (*query, *document)]
        assert found[place] == negative_kl(*pair)


@given(k=DIMENSIONS, batch=st.integers(1, 40), candidates=st.integers(1, 40), seed=st.integers(0, 999))
def test_alone_or_in_company(k: int, batch: int, candidates: int, seed: int) -> None:
    """A score is the same to the last bit alone, in batches of any size, and in arrays of any layout."""
    documents = arrays(random_gaussians(batch * candidates, k, seed))
    means, variances = (array.reshape(batch, candidates, k) for array in documents)
    query = arrays(random_gaussians(batch, k, seed + 1))
    scores = rescore(*query, means, variances)
    row, column = batch - 1, candidates // 2
    alone = negative_kl(query[0][row], query[1][row], means[row, column], variances[row, column])
    assert scores[row, column] == alone
    np.testing.assert_array_equal(scores[:1], rescore(query[0][:1], query[1][:1], means[:1], variances[:1]))
    transposed = [np.asfortranarray(array) for array in (*query, means[:, column], variances[:, column])]
    np.testing.assert_array_equal(scores[:, column], negative_kl(*transposed))


def test_no_candidates_and_no_queries() -> None:
    """Empty in, empty out."""
    empty = np.empty((0, 5)), np.empty((0, 5))
    assert rescore(*empty, np.empty((0, 7, 5)), np.empty((0, 7, 5))).shape == (0, 7)
    some = np.ones((2, 5)), np.ones((2, 5))
    assert rescore(*some, np.empty((2, 0, 5)), np.empty((2, 0, 5))).shape == (2, 0)


def test_explanation_hand_computed() -> None:
    """N(1, 1) x N(1, 4) against N(3, 2) x N(1, 1)."""
    found = explain(np.array([1.0, 1.0]), np.array([1.0, 4.0]), np.array([3.0, 1.0]), np.array([2.0, 1.0]))
    # 1/2 [ln 2 - ln 4]; 1/2 [1/2 + 4 - 2]; 1/2 [4/2 + 0].
    assert found.log_determinant == pytest.approx(-np.log(2) / 2, rel=1e-15)
    assert found.trace == pytest.approx(1.25, rel=1e-15)
    assert found.mahalanobis == pytest.approx(1.0, rel=1e-15)
    # 3/4 + 1/2 ln 2 = 1.10 in the first dimension, 3/2 - ln 2 = 0.81 in the second.
    assert found.dimensions == [0, 1]
    assert found.contributions == pytest.approx([0.75 + np.log(2) / 2, 1.5 - np.log(2)], rel=1e-15)


@given(gaussians=mixed_gaussians(rows=2), dimensions=st.integers(0, 12))
def test_explanation_adds_up(gaussians: Gaussians, dimensions: int) -> None:
    """The parts sum to KL; the dimensions are those that contribute most, in order, and none is below zero."""
    (query, document), (query_variance, document_variance) = arrays(gaussians)
    found = explain(query, query_variance, document, document_variance, dimensions=dimensions)
    divergence = -float(negative_kl(query, query_variance, document, document_variance))
    scale = abs(found.log_determinant) + abs(found.trace) + found.mahalanobis
    parts = found.log_determinant + found.trace + found.mahalanobis
    assert parts == pytest.approx(divergence, rel=1e-9, abs=1e-12 * max(1.0, scale))
    each = np.array(
        [
            -negative_kl(query[i : i + 1], query_variance[i : i + 1], document[i : i + 1], document_variance[i : i + 1])
            for i in range(gaussians.k)
        ]
    )
    count = min(dimensions, gaussians.k)
    assert len(set(found.dimensions)) == len(found.dimensions) == count
    assert found.contributions == pytest.approx(each[found.dimensions], rel=1e-9, abs=1e-12)
    assert found.contributions == sorted(found.contributions, reverse=True)
    assert found.contributions == pytest.approx(np.sort(each)[::-1][:count], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("relative", [1e-3, 1e-5, 1e-7])
def test_near_duplicates_keep_their_digits(relative: float) -> None:
    """KL is second order in a small difference: sums of terms near 1 would have none of its digits left."""
    rng = np.random.default_rng(3)
    variances = rng.uniform(0.5, 2.0, size=(20, 1024))
    others = variances * (1 + relative * rng.standard_normal(variances.shape))
    means = rng.standard_normal(variances.shape)
    scores = negative_kl(means, others, means, variances)
    # In 80 bits, x - log(1+x) loses half as many digits again as it has to spare.
    excess = (others.astype(np.longdouble) - variances) / variances
    expected = 0.5 * (np.log1p(excess) - excess).sum(axis=1)
    np.testing.assert_allclose(scores, expected.astype(np.float64), rtol=1e-6)
