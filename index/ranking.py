"""Scored candidates, put in order: best first, and equal scores by document id."""

from collections.abc import Sequence

import numpy as np

from index.documents import DocumentStore, Numbers
from index.interface import Evidence, Ranking, Scores

__all__ = ["NOTHING", "may_be_in_top", "rank"]

NOTHING = Ranking([], np.empty(0), np.empty(0, dtype=np.int64), Evidence(0, 0, "exhaustive"))
"""What is found where there is nothing to find."""


def rank(
    store: DocumentStore, documents: Numbers, scores: Scores, top_k: int, evidence: Sequence[Evidence]
) -> list[Ranking]:
    """Sorts rows of documents and their scores, both (p, c), and keeps the top_k of each row. `evidence` is what each
    row rests on."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, : top_k + 1]
    rows = np.arange(len(order))[:, None]
    best, numbers = scores[rows, order], documents[rows, order[:, :top_k]]
    tied = (best[:, 1:] == best[:, :-1]).any(axis=1)
    ids = store.ids(numbers.ravel())
    rankings = []
    for row, (has_ties, its) in enumerate(zip(tied.tolist(), evidence, strict=True)):
        if has_ties:
            rankings.append(_rank_by_id(store, documents[row], scores[row], top_k, its))
        else:
            start = row * numbers.shape[1]
            rankings.append(Ranking(ids[start : start + numbers.shape[1]], best[row, :top_k], numbers[row], its))
    return rankings


def _rank_by_id(store: DocumentStore, documents: Numbers, scores: Scores, top_k: int, evidence: Evidence) -> Ranking:
    """One row where equal scores leave the order, or the last place, to the ids."""
    keep = may_be_in_top(scores, top_k)
    best = sorted(zip(-scores[keep], store.ids(documents[keep]), documents[keep], strict=True))[:top_k]
    return Ranking(
        ids=[document_id for _, document_id, _ in best],
        scores=np.array([-divergence for divergence, _, _ in best]),
        documents=np.array([number for _, _, number in best], dtype=np.int64),
        evidence=evidence,
    )


def may_be_in_top(scores: Scores, top_k: int) -> Numbers:
    """Indices of the top_k scores and of everything that ties with the last of them: ids decide about those."""
    if len(scores) <= top_k:
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
