"""The bound on float32 inner products, which proves results complete: never exceeded, and small enough to be of use."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given

from index import Encoding, Gaussians, Standardisation, encode_documents, encode_queries
from index.encoding import inner_product_error
from index.standardisation import MomentAccumulator
from tests.conftest import random_gaussians
from tests.oracles import Array, exact_products, mixed_gaussians, simplified_score, standardisations

Vectors = npt.NDArray[np.float32]


def in_any_order(queries: Vectors, documents: Vectors) -> list[Array]:
    """Products (b, n) of float32 vectors, added in float32: by BLAS, from left to right, backwards, smallest first."""
    terms = queries[:, None] * documents[None]
    by_size = np.take_along_axis(terms, np.argsort(np.abs(terms), axis=-1), axis=-1)
    # Unlike sum, cumsum adds one by one.
    sums = [np.cumsum(order, axis=-1)[..., -1] for order in (terms, terms[..., ::-1], by_size)]
    return [product.astype(np.float64) for product in (queries @ documents.T, *sums)]


def observed_and_bound(
    queries: Gaussians, documents: Gaussians, encoding: Encoding, by: Standardisation | None
) -> tuple[Array, Array]:
    """The largest |float32 - exact| over the orders, (b, n), and the bound, (b, 1), as a search computes it."""
    query_vectors, document_vectors = encode_queries(queries, encoding, by), encode_documents(documents, encoding, by)
    exact = exact_products(queries, documents, encoding, by)
    products = in_any_order(query_vectors.numpy(), document_vectors.numpy())
    observed: Array = np.max([np.abs(product - exact) for product in products], axis=0)
    largest = float(document_vectors.norm(dim=1).max())
    bound = inner_product_error(query_vectors.norm(dim=1), largest, query_vectors.shape[1], torch.float32)
    return observed, bound.numpy()[:, None]


@given(gaussians=mixed_gaussians(), encoding=st.sampled_from(Encoding), data=st.data())
def test_holds_for_any_gaussians(gaussians: Gaussians, encoding: Encoding, data: st.DataObject) -> None:
    """Norms from 1 to 1e18, standardised or not."""
    by = data.draw(st.none() | standardisations(gaussians.k))
    observed, bound = observed_and_bound(gaussians[:2], gaussians[2:], encoding, by)
    assert (observed <= bound).all()


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize(
    ("center", "deviation"), [(1000.0, 1.0), (100.0, 0.1), (1e4, 1e-3)], ids=["1e6", "1e8", "1e18"]
)
def test_holds_where_everything_cancels(encoding: Encoding, center: float, deviation: float) -> None:
    """Scores of some hundreds as differences of numbers of 1e6 and more, where float32 is wrong by more than that."""
    gaussians = random_gaussians(28, 255, center=center, deviation=deviation)
    queries, documents = gaussians[:8], gaussians[8:]
    observed, bound = observed_and_bound(queries, documents, encoding, None)
    assert observed.max() > np.ptp(simplified_score(queries, documents))
    assert (observed <= bound).all()


def test_grows_with_the_width() -> None:
    """Equal terms added one by one are all rounded the same way: no bound of a few roundings would hold."""
    gaussians = Gaussians(torch.full((2, 1024), 0.3).double(), torch.full((2, 1024), 0.7).double())
    observed, bound = observed_and_bound(gaussians[:1], gaussians[1:], Encoding.FOLDED, None)
    unit = bound.item() / (2049 + 2)
    assert 20 * unit < observed.item() <= bound.item()


def test_hand_computed() -> None:
    """Norms 3 and 4, width 2: 12 x (2 + 2) / 2^24 = 12 / 2^22, and a hundredth more."""
    bound = inner_product_error(torch.tensor([3.0, 0.0]), 4.0, 2, torch.float32)
    assert bound.dtype == torch.float64
    np.testing.assert_allclose(bound.numpy(), [1.01 * 12 / 2**22, 0.0], rtol=1e-6)


def test_of_an_infinite_norm() -> None:
    """Squares that float32 cannot hold prove nothing, rather than something wrong."""
    assert inner_product_error(torch.tensor([1e30]).square(), 4.0, 2, torch.float32).tolist() == [np.inf]


def read(path: Path, rows: int | None = None) -> Gaussians:
    """The first Gaussians of a Parquet file."""
    table = pq.read_table(path, columns=["mean", "variance"])[:rows].combine_chunks()
    means, variances = (
        table[name].chunk(0).flatten().to_numpy().reshape(len(table), -1) for name in table.column_names
    )
    return Gaussians.from_arrays(means, variances)


def test_proves_results_of_real_documents(sample: Path) -> None:
    """On the carried corpus, ten candidates beyond the top ten prove the results of every query, with room to spare."""
    queries, documents = read(sample / "queries.parquet", rows=50), read(sample / "documents.parquet")
    moments = MomentAccumulator(documents.k)
    moments.update(documents)
    by = moments.standardisation()
    vectors = encode_queries(queries, Encoding.SIMPLIFIED, by)
    largest = float(encode_documents(documents, Encoding.SIMPLIFIED, by).norm(dim=1).max())
    errors = inner_product_error(vectors.norm(dim=1), largest, vectors.shape[1], vectors.dtype).numpy()
    best = -np.sort(-simplified_score(queries, documents), axis=1)
    # The cutoff of 20 candidates is off by one error, and what it kept out by another; the largest ratio is near 1/20.
    assert (2 * errors < (best[:, 9] - best[:, 19]) / 2).all()
