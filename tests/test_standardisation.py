"""Standardisation: what it is fitted to, that it changes no KL, and that float32 finds the neighbours only with it."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from index import Encoding, Gaussians, Standardisation, encode_documents, encode_queries
from index.errors import InvalidGaussiansError
from index.standardisation import MomentAccumulator
from tests.conftest import random_gaussians
from tests.oracles import Array, mixed_gaussians, recall, simplified_score, standardisations, torch_kl


def fitted(*batches: Gaussians) -> Standardisation:
    """The standardisation of a stream of batches."""
    moments = MomentAccumulator(batches[0].k)
    for batch in batches:
        moments.update(batch)
    return moments.standardisation()


def agree(ours: Standardisation, theirs: Standardisation) -> None:
    """Shifts equal to a billionth of a deviation, and scales to a billionth."""
    np.testing.assert_allclose(((ours.shift - theirs.shift) / theirs.scale).numpy(), 0.0, atol=1e-9)
    np.testing.assert_allclose(ours.scale.numpy(), theirs.scale.numpy(), rtol=1e-9)


def test_hand_computed() -> None:
    """Mean and deviation of an equal mixture of N(1, 3) and N(5, 5), and of two equal N(2, 9)."""
    # Means 1 and 5: mean 3, variance 4; variances 3 and 5: mean 4; in all 8. Then 2, 0 and 9.
    by = fitted(Gaussians.from_arrays([[1.0, 2.0], [5.0, 2.0]], [[3.0, 9.0], [5.0, 9.0]]))
    assert by.shift.tolist() == [3.0, 2.0]
    assert by.scale.tolist() == [np.sqrt(8), 3.0]
    means, variances = by.apply(Gaussians.from_arrays([[7.0, -1.0]], [[2.0, 18.0]]))
    # (7-3)/sqrt 8 and 2/8; (-1-2)/3 and 18/9.
    np.testing.assert_allclose(means.numpy(), [[np.sqrt(2), -1.0]], rtol=1e-15)
    np.testing.assert_allclose(variances.numpy(), [[0.25, 2.0]], rtol=1e-15)


def test_standardised_corpus_has_mean_zero_and_variance_one() -> None:
    """As one mixture of its Gaussians, which is what is fitted."""
    corpus = random_gaussians(500, 8, center=40.0, deviation=0.3)
    means, variances = fitted(corpus).apply(corpus)
    np.testing.assert_allclose(means.mean(dim=0).numpy(), 0.0, atol=1e-12)
    np.testing.assert_allclose((means.var(dim=0, correction=0) + variances.mean(dim=0)).numpy(), 1.0, rtol=1e-12)


@given(gaussians=mixed_gaussians(rows=12), data=st.data())
def test_any_split_gives_the_same_fit(gaussians: Gaussians, data: st.DataObject) -> None:
    """Batches of any sizes, empty ones too, streamed or merged from accumulators of their own, against one pass."""
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, 12), max_size=5))), 12]
    batches = [gaussians[start:end] for start, end in itertools.pairwise(cuts)]
    means, variances = gaussians.means.numpy(), gaussians.variances.numpy()
    scale = np.sqrt(means.var(axis=0) + variances.mean(axis=0))
    expected = Standardisation(torch.from_numpy(means.mean(axis=0)), torch.from_numpy(scale))
    agree(fitted(*batches), expected)
    whole = MomentAccumulator(gaussians.k)
    for batch in batches:
        part = MomentAccumulator(gaussians.k)
        part.update(batch)
        whole.merge(part)
    assert whole.count == 12
    agree(whole.standardisation(), expected)


def test_large_offset_does_not_cancel() -> None:
    """Means 1e8 away with deviation 1: a sum of squares in float64 would keep no digit of the deviation."""
    deviations = np.random.default_rng(0).normal(size=(10_000, 3))
    corpus = Gaussians.from_arrays(1e8 + deviations, np.full_like(deviations, 1e-6))
    by = fitted(*corpus.chunks(777))
    np.testing.assert_allclose(by.shift.numpy() - 1e8, deviations.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(by.scale.numpy(), np.sqrt(deviations.var(axis=0) + 1e-6), rtol=1e-6)
    squares = (corpus.means.numpy() ** 2).mean(axis=0) - corpus.means.numpy().mean(axis=0) ** 2
    assert (np.abs(squares - deviations.var(axis=0)) > 0.5).all(), "the naive formula should fail, or this test is easy"


@pytest.mark.parametrize("variance", [1e-40, 1e-8, 1.0, 1e8])
def test_equal_means(variance: float) -> None:
    """One document over and over, or just one: the scale is its deviation, not zero."""
    corpus = Gaussians.from_arrays(np.full((4, 2), 5.0), np.full((4, 2), variance))
    for batch in (corpus, corpus[:1]):
        by = fitted(batch)
        np.testing.assert_allclose(by.scale.numpy(), np.sqrt(variance), rtol=1e-12)
        means, variances = by.apply(batch)
        assert bool((means == 0).all())
        np.testing.assert_allclose(variances.numpy(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_fits_in_float64(dtype: torch.dtype) -> None:
    """Moments of narrower numbers are those of the same numbers in float64: in float16, 6e4 squared is infinite."""
    corpus = Gaussians(torch.tensor([[6e4], [-6e4], [1.0]], dtype=dtype), torch.ones(3, 1, dtype=dtype))
    agree(fitted(corpus), fitted(corpus.to(dtype=torch.float64)))
    assert fitted(corpus).scale.dtype == torch.float64


def test_accumulator_refuses() -> None:
    """A fit on nothing, and Gaussians of another k."""
    moments = MomentAccumulator(3)
    moments.update(random_gaussians(2, 3)[:0])
    moments.merge(MomentAccumulator(3))
    with pytest.raises(ValueError, match="no documents to fit a standardisation on"):
        moments.standardisation()
    with pytest.raises(InvalidGaussiansError, match="4 dimensions; the index holds 3"):
        moments.update(random_gaussians(2, 4))


@pytest.mark.parametrize(
    ("shift", "scale", "message"),
    [
        ([0.0, 0.0], [1.0], r"shift \(2,\) and scale \(1,\) must both be \(k,\)"),
        ([[0.0]], [[1.0]], r"shift \(1, 1\) and scale \(1, 1\) must both be \(k,\)"),
        ([float("nan")], [1.0], "must be finite"),
        ([0.0], [float("inf")], "must be finite"),
        ([0.0], [0.0], "scale above zero"),
        ([0.0], [-1.0], "scale above zero"),
    ],
)
def test_refuses(shift: list[float], scale: list[float], message: str) -> None:
    """What is no shift and scale."""
    with pytest.raises(ValueError, match=message):
        Standardisation(torch.tensor(shift), torch.tensor(scale))


def test_identity() -> None:
    """Leaves numbers as they are, and does not hand out the caller's own tensors."""
    gaussians = random_gaussians(3, 4).to(dtype=torch.float64)
    means, variances = Standardisation.identity(4).apply(gaussians)
    assert torch.equal(means, gaussians.means)
    assert torch.equal(variances, gaussians.variances)
    assert means.data_ptr() != gaussians.means.data_ptr()
    assert variances.data_ptr() != gaussians.variances.data_ptr()


@given(gaussians=mixed_gaussians(), data=st.data())
def test_kl_is_unchanged(gaussians: Gaussians, data: st.DataObject) -> None:
    """KL by torch.distributions of standardised Gaussians is that of the Gaussians themselves."""
    by = data.draw(standardisations(gaussians.k) | st.just(fitted(gaussians)))
    ours, theirs = (np.sqrt(np.maximum(torch_kl(g, g), 0)) for g in (Gaussians(*by.apply(gaussians)), gaussians))
    # m - c is rounded, and with it a distance in deviations by epsilon (|m| + |c|) / deviation in each dimension.
    rounding = 1e-15 * ((gaussians.means.abs() + by.shift.abs()) / gaussians.variances.sqrt()).max().item()
    assert (np.abs(ours - theirs) <= 1e-7 + 1e-9 * theirs + rounding * np.sqrt(gaussians.k)).all()


@pytest.fixture(scope="module")
def hard_case() -> tuple[Gaussians, Gaussians, Array]:
    """30 queries and 4,000 documents with means near 100 and deviations near 0.1, and their exact scores."""
    corpus = random_gaussians(4030, 255, seed=5, center=100.0, deviation=0.1)
    exact = simplified_score(corpus[:30], corpus[30:])
    # Where places 10 and 11 all but tie, a product of any precision may swap them.
    best = -np.sort(-exact, axis=1)
    assert (best[:, 9] - best[:, 10]).min() > 0.1
    return corpus[:30], corpus[30:], exact


@pytest.mark.parametrize("encoding", Encoding)
def test_float32_needs_it(hard_case: tuple[Gaussians, Gaussians, Array], encoding: Encoding) -> None:
    """The float32 inner product finds the true top 10 if the Gaussians are standardised, and nearly none if not."""
    queries, documents, exact = hard_case

    def recall_in_float32(by: Standardisation | None) -> float:
        vectors = encode_queries(queries, encoding, by), encode_documents(documents, encoding, by)
        return recall((vectors[0] @ vectors[1].T).numpy(), exact)

    assert recall_in_float32(None) < 0.1
    assert recall_in_float32(fitted(documents)) == 1.0
