"""What an index should hold, as a dictionary; what hypothesis draws for it, and the best documents by brute force."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import strategies as st

K = 2

ids = st.sampled_from([f"d{place}" for place in range(8)])
gaussians = st.tuples(
    st.tuples(*[st.integers(-16, 16).map(lambda n: n / 4)] * K),
    st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 3.0])] * K),
)
payloads = st.none() | st.integers(0, 5)
documents = st.dictionaries(ids, st.tuples(gaussians, payloads), min_size=1, max_size=3)

Gaussian = tuple[tuple[float, ...], tuple[float, ...]]
Document = tuple[Gaussian, int | None]
"""A Gaussian, and n of its payload."""


def score(query: Gaussian, document: Gaussian) -> float:
    """-KL(query || document)."""
    (qm, qv), (dm, dv) = ([np.array(part) for part in each] for each in (query, document))
    return float(-0.5 * np.sum(np.log(dv / qv) + (qv + (qm - dm) ** 2) / dv - 1))


def at_least(documents: Mapping[str, Document], least: int | None) -> dict[str, Document]:
    """Those of which n is no less, or all."""
    return {
        name: each for name, each in documents.items() if least is None or (each[1] is not None and each[1] >= least)
    }


def require_best(
    results: Sequence[tuple[str, float]], query: Gaussian, among: Mapping[str, Document], top_k: int
) -> None:
    """The results, ids and scores, are the best of these documents, in order."""
    scores = {name: score(query, gaussian) for name, (gaussian, _) in among.items()}
    found = [name for name, _ in results]
    assert len(found) == min(top_k, len(among)) == len(set(found))
    for name, its in results:
        assert its == pytest.approx(scores[name], rel=1e-9, abs=1e-9)
    assert list(results) == sorted(results, key=lambda each: (-each[1], each[0]))
    worst = min((its for _, its in results), default=-math.inf)
    assert all(scores[name] <= worst + 1e-9 for name in scores.keys() - set(found))
