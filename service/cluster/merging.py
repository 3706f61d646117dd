"""What shards found, put together: by exact score, and equal scores by document id."""

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np

from index import Evidence, Ranking

__all__ = ["merged"]

Proof = Literal["bound", "exhaustive"]


def merged(
    parts: Sequence[tuple[int, Sequence[Ranking]]], queries: int, top_k: int, covered: int | None = None
) -> list[Ranking]:
    """The top_k of each query, of what each shard found for it, its own numbers behind the first one's `start`.

    `parts` are (start, rankings). Their scores are exact, so that they need no calibration. `covered` is how many
    documents there were to be found, where that is not all.
    """
    return [_merged([(start, rankings[row]) for start, rankings in parts], top_k, covered) for row in range(queries)]


def _merged(parts: Sequence[tuple[int, Ranking]], top_k: int, covered: int | None) -> Ranking:
    lists = [
        [
            (-score, name, number + start)
            for score, name, number in zip(
                ranking.scores.tolist(), ranking.ids, ranking.documents.tolist(), strict=True
            )
        ]
        for start, ranking in parts
    ]
    best = heapq.merge(*lists)
    top = [each for each, _ in zip(best, range(top_k), strict=False)]
    return Ranking(
        ids=[name for _, name, _ in top],
        scores=np.array([-divergence for divergence, _, _ in top], dtype=np.float64),
        documents=np.array([number for _, _, number in top], dtype=np.int64),
        evidence=_evidence([ranking.evidence for _, ranking in parts], is_complete=covered is None),
        covered=covered,
    )


def _evidence(parts: Sequence[Evidence | None], *, is_complete: bool) -> Evidence | None:
    """What the results rest on together: all that was looked at, and a proof where every part has one."""
    known = [each for each in parts if each is not None]
    if len(known) < len(parts) or not known:
        return None
    scanned = [each.scanned for each in known if each.scanned is not None]
    proofs = {each.proof for each in known}
    proof: Proof | None = None if None in proofs or not is_complete else "bound" if "bound" in proofs else "exhaustive"
    return Evidence(sum(scanned) if len(scanned) == len(known) else None, sum(each.candidates for each in known), proof)
