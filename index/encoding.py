"""Negative KL divergence between diagonal Gaussians as one inner product: all that is known of its forms.

With v = variance and m = mean, and sums over the k latent dimensions,

    -KL(Q||D) = 1/2 [ s(Q,D) + sum log v_Q + k ]
    s(Q,D)    = - sum log v_D - sum v_Q/v_D - sum (m_Q - m_D)^2 / v_D

Only s depends on the document, and it is an inner product of a vector of Q alone with a vector of D alone (Zamani &
Bendersky, "Multivariate Representation Learning for Information Retrieval", SIGIR 2023, Eq. 10, where the sign of the
logarithm is corrected here). `Encoding` names the ways to write it down:

    encoding    width  query vector               document vector
    simplified  3k+1   [1, v, m^2, m]             [g, -1/v, -1/v, 2m/v],   g = -sum(log v + m^2/v)
    full        3k+2   [1, sum log v, v, m^2, m]  [g, 1, -1/v, -1/v, 2m/v]
    folded      2k+1   [1, v + m^2, m]            [g, -1/v, 2m/v]

KL does not change when both Gaussians are shifted by c and scaled by 1/t in each dimension (m' = (m-c)/t,
v' = v/t^2). index.standardisation has such a c and t, fitted on the corpus. It is what makes float32 enough: with means
near 100 and deviations near 0.1, g and 2 m m_Q/v are numbers near 1e8 whose difference is near 1.

Vectors are computed in float64 and rounded once, to the dtype of the output.
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index.errors import InvalidGaussiansError
from index.gaussians import Gaussians, extremes
from index.standardisation import CHUNK_ELEMENTS, Standardisation, computed_in

__all__ = [
    "Encoding",
    "QueryFolder",
    "encode_documents",
    "encode_queries",
    "fold_documents",
    "inner_product_error",
    "negative_kl",
    "query_constant",
]

GPU_CHUNK_ELEMENTS = 1 << 24
"""What CHUNK_ELEMENTS is on a CPU, elsewhere: 128 MiB per temporary, so that starting an operation costs little
beside doing it."""


class Encoding(StrEnum):
    """How a Gaussian becomes a vector; see the module's table."""

    SIMPLIFIED = "simplified"
    FULL = "full"
    FOLDED = "folded"

    def width(self, k: int) -> int:
        """Length d of an encoded vector of a k-dimensional Gaussian."""
        return {Encoding.SIMPLIFIED: 3 * k + 1, Encoding.FULL: 3 * k + 2, Encoding.FOLDED: 2 * k + 1}[self]


def encode_documents(
    documents: Gaussians,
    encoding: Encoding,
    standardisation: Standardisation | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Document vectors (n, d), on the documents' device, in float32 unless `out` says otherwise.

    With `out`, a preallocated (n, d) tensor of any floating dtype and device, vectors are written there; memory beyond
    it is bounded by `CHUNK_ELEMENTS` or `GPU_CHUNK_ELEMENTS`. Raises InvalidGaussiansError naming the row where a
    vector does not fit the output's dtype, ValueError where `out` has another shape or is not floating point.
    """
    return _encode(documents, encoding, standardisation, out, _write_documents)


def fold_documents(vectors: Tensor, encoding: Encoding, *, out: Tensor) -> None:
    """Document vectors (n, d) of any encoding in their folded form, into `out` (n, 2k+1) of the same dtype.

    Drops numbers and computes none: the result is what `encode_documents` gives under the folded encoding, bit by bit.
    """
    k = (out.shape[1] - 1) // 2
    if vectors.shape != (len(out), encoding.width(k)) or vectors.dtype != out.dtype:
        raise ValueError(f"{vectors.dtype} {tuple(vectors.shape)} cannot be folded into {out.dtype} {tuple(out.shape)}")
    out[:, 0] = vectors[:, 0]
    out[:, 1:] = vectors[:, -2 * k :]


def encode_queries(
    queries: Gaussians,
    encoding: Encoding,
    standardisation: Standardisation | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Query vectors (n, d); everything else as `encode_documents`."""
    return _encode(queries, encoding, standardisation, out, _write_queries)


class QueryFolder:
    """Folds queries for an approximate scan: what `encode_queries` gives, by a few operations of NumPy, which take a
    fifth of torch's time for a query alone."""

    def __init__(self, standardisation: Standardisation) -> None:
        self._shift = standardisation.shift.numpy()
        self._per_scale = 1 / standardisation.scale.numpy()
        self._per_square = self._per_scale * self._per_scale

    def __call__(self, queries: Gaussians) -> npt.NDArray[np.float64]:
        """Folded query vectors (b, 2k+1) in float64 on the CPU, unrounded and unchecked: infinite where that cannot
        hold them."""
        k = queries.k
        if queries.means.dtype is not torch.float32 or queries.device.type != "cpu":
            queries = queries.to("cpu", torch.float64)
        vectors = np.empty((len(queries), 2 * k + 1))
        vectors[:, 0] = 1.0
        squares, means = vectors[:, 1 : k + 1], vectors[:, k + 1 :]
        with np.errstate(over="ignore"):
            np.subtract(queries.means.numpy(), self._shift, out=means)
            means *= self._per_scale
            np.multiply(means, means, out=squares)
            squares += queries.variances.numpy() * self._per_square
        return vectors


def query_constant(queries: Gaussians, standardisation: Standardisation | None = None) -> Tensor:
    """sum log v_Q of each query, standardised like its vector: (n,) float64."""
    standardisation = standardisation or Standardisation.identity(queries.k)
    return torch.log(standardisation.apply(queries)[1]).sum(dim=1)


def negative_kl(
    inner_products: Tensor,
    queries: Gaussians,
    encoding: Encoding,
    standardisation: Standardisation | None = None,
) -> Tensor:
    """-KL(Q||D) in nats, (n, any), from inner products (n, any) of those queries' vectors with documents' vectors.

    1/2 [s + sum log v_Q + k]; under the full encoding the inner product holds the logarithms already.
    """
    constant = torch.full((len(queries),), float(queries.k), dtype=torch.float64, device=queries.device)
    if encoding is not Encoding.FULL:
        constant += query_constant(queries, standardisation)
    return 0.5 * (inner_products.double() + constant.to(inner_products.device).unsqueeze(1))


def inner_product_error(query_norms: Tensor, document_norm: float, width: int, dtype: torch.dtype) -> Tensor:
    """Bound on |computed - exact| of an inner product of rounded vectors, (n,) like `query_norms`.

    Both vectors carry one rounding per component, and a sum of `width` products in any order is off by at most
    gamma_width |x|.|y|, gamma_w = w u / (1 - w u) (Higham, "Accuracy and Stability of Numerical Algorithms", 2002,
    Eq. 3.5); |x|.|y| <= ||x|| ||y|| by Cauchy and Schwarz. `query_norms` and `document_norm` are L2 norms of the
    rounded vectors, `document_norm` the largest of the documents concerned. Valid for widths below 1/u. Infinite where
    a product or sum may overflow: no bound holds then.
    """
    # Two more roundings for the components; a hundredth more for the float64 arithmetic of the encoders and the norms.
    unit = torch.finfo(dtype).eps / 2
    roundings = (width + 2) * unit
    norms = query_norms.double() * (1.01 * document_norm)
    return torch.where(norms > torch.finfo(dtype).max, torch.inf, norms * (roundings / (1 - roundings)))


def _encode(
    gaussians: Gaussians,
    encoding: Encoding,
    standardisation: Standardisation | None,
    out: Tensor | None,
    write: Callable[[Encoding, Tensor, Tensor, Sequence[Tensor], Tensor], None],
) -> Tensor:
    standardisation = standardisation or Standardisation.identity(gaussians.k)
    shape = (len(gaussians), encoding.width(gaussians.k))
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=gaussians.device)
    if tuple(out.shape) != shape or not out.is_floating_point():
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}; floating point of shape {shape} is needed")
    gaussians.require_dimensions(standardisation.k)
    device = gaussians.device
    elements = CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS
    rows = max(1, min(len(gaussians), elements // gaussians.k))
    standardiser = standardisation.on(device)
    # Taken once: given back and taken again for every operation, it is mapped and cleared anew each time, which takes
    # three times as long as the arithmetic.
    scratch = torch.empty(4, rows, gaussians.k, dtype=computed_in(device), device=device).unbind()
    for start in range(0, len(gaussians), rows):
        # A query alone would wait longer for slices than for its vector.
        whole = rows == len(gaussians)
        target, part = (out, gaussians) if whole else (out[start : start + rows], gaussians[start : start + rows])
        means, variances, *free = scratch if whole else (each[: len(part)] for each in scratch)
        standardiser.into(part, means, variances)
        write(encoding, means, variances, free, target)
        _require_finite(target, start)
    return out


def _write_documents(encoding: Encoding, means: Tensor, variances: Tensor, free: Sequence[Tensor], out: Tensor) -> None:
    """The vectors of standardised documents into `out`. All the others, `free` too, are (n, k) and written over."""
    k = means.shape[1]
    inverse = torch.reciprocal(variances, out=free[0])
    linear = torch.mul(means, inverse, out=free[1])
    out[:, 0] = variances.log_().add_(means.mul_(linear)).sum(dim=1).neg_()
    if encoding is Encoding.FULL:
        out[:, 1] = 1.0
    out[:, -k:] = linear.mul_(2)
    out[:, -2 * k : -k] = inverse.neg_()
    if encoding is not Encoding.FOLDED:
        out[:, -3 * k : -2 * k] = out[:, -2 * k : -k]


def _write_queries(encoding: Encoding, means: Tensor, variances: Tensor, free: Sequence[Tensor], out: Tensor) -> None:
    """The vectors of standardised queries into `out`; everything else as `_write_documents`."""
    k = means.shape[1]
    squares = torch.mul(means, means, out=free[0])
    out[:, 0] = 1.0
    if encoding is Encoding.FULL:
        out[:, 1] = torch.log(variances, out=free[1]).sum(dim=1)
    out[:, -k:] = means
    if encoding is Encoding.FOLDED:
        out[:, -2 * k : -k] = squares.add_(variances)
    else:
        out[:, -2 * k : -k] = squares
        out[:, -3 * k : -2 * k] = variances


def _require_finite(vectors: Tensor, first_row: int) -> None:
    # One pass that carries NaN and infinity through; isfinite().all() takes a quarter of the whole encoding's time.
    if len(vectors) == 0 or all(map(math.isfinite, extremes(vectors))):
        return
    row, column = torch.nonzero(~torch.isfinite(vectors))[0].tolist()
    raise InvalidGaussiansError(
        f"row {first_row + row}: column {column} of its vector does not fit {vectors.dtype}: the variance is too far "
        f"from the corpus's, or the mean too many deviations away (limit {torch.finfo(vectors.dtype).max:.3g})",
        row=first_row + row,
    )
