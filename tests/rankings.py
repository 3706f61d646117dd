"""Brute force by torch.distributions, and how rankings compare with it."""

from collections.abc import Sequence

import numpy as np
import torch

from index import Gaussians, Ranking
from tests.oracles import Array, torch_kl


def exact_scores(queries: Gaussians, documents: Gaussians) -> Array:
    """-KL(Q||D) of every query with every document, (b, n), a few queries at a time; equal documents score equally."""
    both = torch.cat([documents.means.double(), documents.variances.double()], dim=1)
    different, which = torch.unique(both, dim=0, return_inverse=True)
    unique = Gaussians(different[:, : documents.k], different[:, documents.k :])
    # As many queries at a time as keep torch's temporaries in the processor's cache.
    rows = max(1, (1 << 18) // different.numel())
    scores = np.concatenate([-torch_kl(part, unique) for part in queries.chunks(rows)])
    return np.asarray(scores[:, which.numpy()], dtype=np.float64)


def assert_exact(rankings: Sequence[Ranking], exact: Array, ids: Sequence[str], top_k: int) -> None:
    """The rankings are the top_k by `exact` scores (b, n) in order, equal scores by id, and have those scores."""
    assert len(rankings) == len(exact)
    for ranking, scores in zip(rankings, exact, strict=True):
        expected = sorted(zip(-scores, ids, strict=True))[:top_k]
        assert ranking.ids == [document_id for _, document_id in expected]
        np.testing.assert_allclose(ranking.scores, [-divergence for divergence, _ in expected], rtol=1e-6, atol=1e-12)


def assert_identical(some: Sequence[Ranking], others: Sequence[Ranking]) -> None:
    """Two lists of rankings have the same ids and the same scores to the last bit."""
    assert [ranking.ids for ranking in some] == [ranking.ids for ranking in others]
    for one, other in zip(some, others, strict=True):
        assert one.scores.tobytes() == other.scores.tobytes()


def ids_of(count: int) -> list[str]:
    """The ids that `tests.conftest.write_corpus` gives to documents without ids."""
    return [f"d{row}" for row in range(count)]
