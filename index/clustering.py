"""Documents in lists by KL: which of them a query must look into, its divergence from each list's own Gaussian says.

Hard clustering with a Bregman divergence (Banerjee, Merugu, Dhillon & Ghosh, "Clustering with Bregman divergences",
2005; for Gaussians, Davis & Dhillon, "Differential entropic clustering of multivariate Gaussians", 2006): a document
belongs to the centroid of the least KL(document || centroid), and the Gaussian with the least divergence from all of a
list's documents is the one with the moments of their mixture,

    m_c = mean of m,    v_c = mean of (v + m^2) - m_c^2,

so that alternating between the two never makes the sum of divergences larger. Everything is standardised, and a
divergence is an inner product of folded vectors (index.encoding), so that a step is a matrix product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from index.encoding import Encoding, encode_documents, encode_queries
from index.gaussians import Gaussians
from index.standardisation import Standardisation

__all__ = ["cluster", "nearest_lists"]

ITERATIONS = 8
"""On WordNet Gaussians six find as much as twelve."""
LEAST_VARIANCE = 1e-12
"""Of a standardised centroid: of equal, certain documents the moments cancel."""
COMPARED_NUMBERS = 1 << 24
"""Divergences computed at a time: 64 MiB."""


@dataclass(slots=True)
class _Moments:
    """Sums over the documents of each list: counts (lists,), means and second moments (lists, k), float64."""

    counts: Tensor
    first: Tensor
    second: Tensor


def cluster(sample: Gaussians, lists: int, standardisation: Standardisation, seed: int, device: torch.device) -> Tensor:
    """The centroids of at most so many lists of documents like those of the sample, as folded document vectors
    (lists, 2k+1) float32 on the CPU.

    Takes memory for the sample's vectors, and time in proportion to its size times `lists`. Of fewer different
    documents than lists, some centroids are equal, and all but one of these have an empty list.
    """
    generator = torch.Generator().manual_seed(seed)
    lists = min(lists, len(sample))
    means, variances = (each.to(device) for each in standardisation.apply(sample))
    queries = encode_queries(sample.to(device), Encoding.FOLDED, standardisation)
    chosen = torch.randperm(len(sample), generator=generator)[:lists].to(device)
    centroids = (means[chosen], variances[chosen])
    for _ in range(ITERATIONS):
        members = nearest_lists(queries, _folded(*centroids))
        moments = _moments(members, lists, means, variances)
        centroids = _updated(moments, means, variances, generator)
    return _folded(*centroids).cpu()


def nearest_lists(queries: Tensor, centroids: Tensor) -> Tensor:
    """The list (n,) int64 of the least divergence from each Gaussian, given as folded query vectors (n, 2k+1)."""
    rows = max(1, COMPARED_NUMBERS // len(centroids))
    transposed = centroids.to(queries.device).T
    parts = [queries[start : start + rows] for start in range(0, len(queries), rows)]
    return torch.cat([(part @ transposed).argmax(dim=1) for part in parts])


def _folded(means: Tensor, variances: Tensor) -> Tensor:
    identity = Standardisation.identity(means.shape[1])
    return encode_documents(Gaussians.unchecked(means, variances), Encoding.FOLDED, identity)


def _moments(members: Tensor, lists: int, means: Tensor, variances: Tensor) -> _Moments:
    empty = torch.zeros(lists, means.shape[1], dtype=means.dtype, device=means.device)
    return _Moments(
        torch.bincount(members, minlength=lists).to(means.dtype)[:, None],
        empty.index_add(0, members, means),
        empty.index_add(0, members, variances + means * means),
    )


def _updated(moments: _Moments, means: Tensor, variances: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The Gaussians with the lists' moments; in place of empty lists, documents drawn at random."""
    counts = moments.counts.clamp(min=1)
    first = moments.first / counts
    second = (moments.second / counts - first * first).clamp(min=LEAST_VARIANCE)
    empty = moments.counts[:, 0] == 0
    drawn = torch.randint(len(means), (int(empty.sum()),), generator=generator).to(means.device)
    first[empty], second[empty] = means[drawn], variances[drawn]
    return first, second
