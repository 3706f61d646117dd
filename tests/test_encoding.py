"""The encodings: hand-computed vectors, and inner products equal to KL by torch.distributions over wide ranges."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from index import Encoding, Gaussians, Standardisation, encode_documents, encode_queries, negative_kl
from index.encoding import fold_documents, query_constant
from tests.oracles import (
    Array,
    exact_products,
    in_float64,
    mixed_gaussians,
    simplified_score,
    standardisations,
    torch_kl,
)

EPSILON = torch.finfo(torch.float64).eps

# Two dimensions whose variances are powers of two, so that every number below can be checked in one's head.
QUERY = Gaussians.from_arrays([[3.0, -2.0]], [[4.0, 0.5]])
DOCUMENT = Gaussians.from_arrays([[2.0, -1.0]], [[2.0, 0.25]])

# m^2/v is 4/2 = 2 and 1/(1/4) = 4; log v is ln 2 and -2 ln 2; so g = -(2 + 4 + ln 2 - 2 ln 2) = ln 2 - 6.
G = np.log(2) - 6
DOCUMENT_VECTORS = {
    Encoding.SIMPLIFIED: [G, -0.5, -4, -0.5, -4, 2, -8],
    Encoding.FULL: [G, 1, -0.5, -4, -0.5, -4, 2, -8],
    Encoding.FOLDED: [G, -0.5, -4, 2, -8],
}
# log v is 2 ln 2 and -ln 2, which sum to ln 2; m^2 is 9 and 4; v + m^2 is 13 and 4.5.
QUERY_VECTORS = {
    Encoding.SIMPLIFIED: [1, 4, 0.5, 9, 4, 3, -2],
    Encoding.FULL: [1, np.log(2), 4, 0.5, 9, 4, 3, -2],
    Encoding.FOLDED: [1, 13, 4.5, 3, -2],
}
# v_Q/v_D is 2 and 2; (m_Q - m_D)^2/v_D is 1/2 and 4; -sum log v_D is ln 2: s = ln 2 - 4 - 4.5.
SCORE = np.log(2) - 8.5
# 1/2 (s + sum log v_Q + k) = 1/2 (ln 2 - 8.5 + ln 2 + 2).
NEGATIVE_KL = np.log(2) - 3.25

HALVING = Standardisation(torch.tensor([1.0, 0.0]).double(), torch.tensor([2.0, 0.5]).double())
# m' is (2-1)/2 = 1/2 and -1/(1/2) = -2; v' is 2/4 = 1/2 and (1/4)/(1/4) = 1; m'^2/v' is 1/2 and 4; log v' is -ln 2, 0.
STANDARDISED_DOCUMENT = [np.log(2) - 4.5, -2, -1, -2, -1, 2, -4]
# m' is (3-1)/2 = 1 and -2/(1/2) = -4; v' is 4/4 = 1 and (1/2)/(1/4) = 2.
STANDARDISED_QUERY = [1, 1, 2, 1, 16, 1, -4]


def tolerance(queries: Gaussians, documents: Gaussians, encoding: Encoding, by: Standardisation | None) -> Array:
    """What rounding in float64 can make of -KL, (b, n): a few epsilons of everything that is added and cancels."""
    query_vectors = in_float64(encode_queries, queries, encoding, by)
    document_vectors = in_float64(encode_documents, documents, encoding, by)
    by = by or Standardisation.identity(queries.k)
    means, variances = by.apply(documents)
    # g is itself a sum that cancels, and so is the query's sum of logarithms.
    added = query_vectors.abs() @ document_vectors.abs().T + (variances.log().abs() + means**2 / variances).sum(dim=1)
    added += by.apply(queries)[1].log().abs().sum(dim=1, keepdim=True) + queries.k
    bound: Array = (EPSILON * (encoding.width(queries.k) + 16) * added).numpy()
    return bound


@pytest.mark.parametrize("k", [1, 2, 255])
def test_widths(k: int) -> None:
    """Three numbers a dimension, or two, and one more; 766 at the paper's k."""
    assert [encoding.width(k) for encoding in Encoding] == [3 * k + 1, 3 * k + 2, 2 * k + 1]
    assert Encoding.SIMPLIFIED.width(255) == 766


@pytest.mark.parametrize("encoding", Encoding)
def test_hand_computed(encoding: Encoding) -> None:
    """Each component of both vectors, their inner product, and -KL, in float64."""
    document, query = in_float64(encode_documents, DOCUMENT, encoding), in_float64(encode_queries, QUERY, encoding)
    np.testing.assert_allclose(document.numpy(), [DOCUMENT_VECTORS[encoding]], rtol=1e-15)
    np.testing.assert_allclose(query.numpy(), [QUERY_VECTORS[encoding]], rtol=1e-15)
    product = query @ document.T
    logarithm = np.log(2) if encoding is Encoding.FULL else 0.0
    assert product.item() == pytest.approx(SCORE + logarithm, rel=1e-14)
    assert negative_kl(product, QUERY, encoding).item() == pytest.approx(NEGATIVE_KL, rel=1e-14)
    assert torch_kl(QUERY, DOCUMENT).item() == pytest.approx(-NEGATIVE_KL, rel=1e-14)
    assert query_constant(QUERY).item() == pytest.approx(np.log(2), rel=1e-15)


def test_hand_computed_standardised() -> None:
    """The same pair shifted by (1, 0) and scaled by (2, 1/2): other vectors, the same -KL."""
    document = in_float64(encode_documents, DOCUMENT, Encoding.SIMPLIFIED, HALVING)
    query = in_float64(encode_queries, QUERY, Encoding.SIMPLIFIED, HALVING)
    np.testing.assert_allclose(document.numpy(), [STANDARDISED_DOCUMENT], rtol=1e-15)
    np.testing.assert_allclose(query.numpy(), [STANDARDISED_QUERY], rtol=1e-15)
    score = negative_kl(query @ document.T, QUERY, Encoding.SIMPLIFIED, HALVING)
    assert score.item() == pytest.approx(NEGATIVE_KL, rel=1e-14)


@given(gaussians=mixed_gaussians(), encoding=st.sampled_from(Encoding), data=st.data())
def test_inner_product_is_kl(gaussians: Gaussians, encoding: Encoding, data: st.DataObject) -> None:
    """-KL of every query with every document by torch.distributions, with and without standardisation."""
    queries, documents = gaussians[:2], gaussians[2:]
    by = data.draw(st.none() | standardisations(gaussians.k))
    products = torch.from_numpy(exact_products(queries, documents, encoding, by))
    ours = negative_kl(products, queries, encoding, by).numpy()
    difference = np.abs(ours + torch_kl(queries, documents))
    assert (difference <= tolerance(queries, documents, encoding, by)).all()


@given(gaussians=mixed_gaussians(), encoding=st.sampled_from(Encoding))
def test_inner_product_is_the_simplified_score(gaussians: Gaussians, encoding: Encoding) -> None:
    """s(Q,D) as the formula reads; under the full encoding with the query's logarithms added."""
    queries, documents = gaussians[:2], gaussians[2:]
    products = exact_products(queries, documents, encoding)
    expected = simplified_score(queries, documents)
    if encoding is Encoding.FULL:
        expected += np.log(queries.variances.numpy()).sum(axis=1, keepdims=True)
    assert (np.abs(products - expected) <= tolerance(queries, documents, encoding, None)).all()


@given(gaussians=mixed_gaussians(), data=st.data())
def test_folding_adds_the_two_blocks(gaussians: Gaussians, data: st.DataObject) -> None:
    """Folded vectors are simplified ones with the variances' and the squared means' blocks made one."""
    by, k = data.draw(st.none() | standardisations(gaussians.k)), gaussians.k
    documents, folded = (
        in_float64(encode_documents, gaussians, encoding, by) for encoding in (Encoding.SIMPLIFIED, Encoding.FOLDED)
    )
    assert torch.equal(documents[:, 1 : k + 1], documents[:, k + 1 : 2 * k + 1])
    assert torch.equal(torch.cat([documents[:, :1], documents[:, k + 1 :]], dim=1), folded)
    queries, folded = (
        in_float64(encode_queries, gaussians, encoding, by) for encoding in (Encoding.SIMPLIFIED, Encoding.FOLDED)
    )
    assert torch.equal(queries[:, 1 : k + 1] + queries[:, k + 1 : 2 * k + 1], folded[:, 1 : k + 1])
    assert torch.equal(queries[:, 2 * k + 1 :], folded[:, k + 1 :])


@pytest.mark.parametrize("encoding", Encoding)
def test_folded_vectors_are_those_that_would_have_been_encoded(encoding: Encoding) -> None:
    out = torch.full((1, 5), torch.nan, dtype=torch.float64)
    fold_documents(torch.tensor([DOCUMENT_VECTORS[encoding]], dtype=torch.float64), encoding, out=out)
    assert out.tolist() == [DOCUMENT_VECTORS[Encoding.FOLDED]]


@given(gaussians=mixed_gaussians(), encoding=st.sampled_from(Encoding), data=st.data())
def test_folding_and_encoding_give_the_same_bits(gaussians: Gaussians, encoding: Encoding, data: st.DataObject) -> None:
    by = data.draw(st.none() | standardisations(gaussians.k))
    folded = in_float64(encode_documents, gaussians, Encoding.FOLDED, by)
    out = torch.empty_like(folded)
    fold_documents(in_float64(encode_documents, gaussians, encoding, by), encoding, out=out)
    assert torch.equal(out, folded)


@pytest.mark.parametrize(
    ("vectors", "out"),
    [
        (torch.zeros(2, 8), torch.zeros(2, 5)),
        (torch.zeros(2, 7), torch.zeros(1, 5)),
        (torch.zeros(2, 7), torch.zeros(2, 7)),
        (torch.zeros(2, 7), torch.zeros(2, 5).double()),
    ],
    ids=["another encoding", "other rows", "another width", "another precision"],
)
def test_what_cannot_be_folded_is_refused(vectors: torch.Tensor, out: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="cannot be folded"):
        fold_documents(vectors, Encoding.SIMPLIFIED, out=out)
