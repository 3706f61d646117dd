"""What the tests of the mathematics compare with, and the Gaussians on which hypothesis makes them compare."""

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from index import Encoding, Gaussians, Standardisation, encode_documents, encode_queries

Array = npt.NDArray[np.float64]
Encode = Callable[..., Tensor]
"""encode_documents or encode_queries."""

DIMENSIONS = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 64, 128, 255, 256, 1000, 1024]))
"""k: small ones, which examples shrink to, and sizes at and beside those of vector registers and of real encoders."""


@st.composite
def mixed_gaussians(draw: st.DrawFn, *, rows: int = 5) -> Gaussians:
    """`rows` Gaussians in float64: means to 1e4, variances from 1e-8 to 1e8, both extremes in one Gaussian too.

    Hypothesis draws the dimensions, the ranges and a seed, from which NumPy draws the numbers: drawn one by one,
    thousands of floats would use up its budget before anything is tested.
    """
    k = draw(DIMENSIONS)
    low, high = sorted((draw(st.floats(-8, 8)), draw(st.floats(-8, 8))))
    reach = draw(st.sampled_from([0.0, 1e-3, 1.0, 100.0, 1e4]))
    extreme_share = draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (rows, k)
    means = reach * rng.uniform(-1, 1, shape)
    variances = 10.0 ** rng.uniform(low, high, shape)
    extreme = rng.random(shape) < extreme_share
    means = np.where(extreme, rng.choice([-1e4, 0.0, 1e4], shape), means)
    variances = np.where(extreme, rng.choice([1e-8, 1.0, 1e8], shape), variances)
    return Gaussians.from_arrays(means, variances)


@st.composite
def standardisations(draw: st.DrawFn, k: int) -> Standardisation:
    """Any shift to 1e4 and scales from 1e-3 to 1e3."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shift = draw(st.sampled_from([0.0, 1.0, 1e4])) * rng.uniform(-1, 1, k)
    return Standardisation(torch.from_numpy(shift), torch.from_numpy(10.0 ** rng.uniform(-3, 3, k)))


def in_float64(
    encode: Encode, gaussians: Gaussians, encoding: Encoding, standardisation: Standardisation | None = None
) -> Tensor:
    """Vectors before they are rounded to float32."""
    out = torch.full((len(gaussians), encoding.width(gaussians.k)), torch.nan, dtype=torch.float64)
    return encode(gaussians, encoding, standardisation, out=out)


def exact_products(
    queries: Gaussians, documents: Gaussians, encoding: Encoding, standardisation: Standardisation | None = None
) -> Array:
    """Inner products of float64 vectors in float64, (b, n)."""
    query_vectors = in_float64(encode_queries, queries, encoding, standardisation)
    products: Array = (query_vectors @ in_float64(encode_documents, documents, encoding, standardisation).T).numpy()
    return products


def torch_kl(queries: Gaussians, documents: Gaussians) -> Array:
    """KL(Q||D) of every query with every document, (b, n), by torch.distributions in float64."""
    query = Normal(queries.means.double()[:, None], queries.variances.double().sqrt()[:, None])
    document = Normal(documents.means.double(), documents.variances.double().sqrt())
    divergences: Array = kl_divergence(query, document).sum(dim=-1).numpy()
    return divergences


def simplified_score(queries: Gaussians, documents: Gaussians) -> Array:
    """s(Q,D) = - sum log v_D - sum v_Q/v_D - sum (m_Q - m_D)^2 / v_D, written as it reads: (b, n), float64."""
    means, variances = documents.means.double().numpy(), documents.variances.double().numpy()
    # One query at a time, for b x n x k numbers are more than they seem.
    scores: list[Array] = [
        -np.sum(np.log(variances) + variance / variances + (mean - means) ** 2 / variances, axis=1)
        for mean, variance in zip(queries.means.double().numpy(), queries.variances.double().numpy(), strict=True)
    ]
    return np.stack(scores)


def top(scores: Array, count: int) -> list[set[int]]:
    """The places of the `count` largest scores of each row."""
    return [set(row) for row in np.argsort(-scores, axis=1)[:, :count].tolist()]


def recall(found: Array, exact: Array, count: int = 10) -> float:
    """The mean share of the `count` best by `exact` scores that are among the `count` best by `found` ones."""
    pairs = zip(top(found, count), top(exact, count), strict=True)
    return float(np.mean([len(ours & theirs) / count for ours, theirs in pairs]))
