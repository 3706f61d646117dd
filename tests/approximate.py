"""What tests of approximate kinds share: corpora, recall, and builds that are stopped on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from index import BuildOptions, Gaussians, IndexDirectory, Ranking, build_index
from index.manifest import IndexKind
from tests.conftest import random_gaussians
from tests.oracles import Array

KINDS = [IndexKind.FASTSCAN, IndexKind.IVF_FASTSCAN, IndexKind.HNSW]
"""Those that need no more to be said; kind faiss has tests of its own."""


def read(path: Path) -> tuple[list[str], Gaussians]:
    table = pq.read_table(path)
    means, variances = (np.stack(table[name].to_numpy()) for name in ("mean", "variance"))
    return table["id"].to_pylist(), Gaussians.from_arrays(means, variances)


def recall(rankings: list[Ranking], exact: Array, top_k: int) -> float:
    """The share of results that are as good as the true last one: equal documents are as good as each other."""
    least = -np.sort(-exact, axis=1)[:, top_k - 1]
    return float(
        np.mean(
            [(ranking.scores >= last - 1e-9 * abs(last)).mean() for ranking, last in zip(rankings, least, strict=True)]
        )
    )


def assert_scores_are_exact(rankings: list[Ranking], exact: Array, ids: list[str]) -> None:
    """Whatever was found has its true score, best first, and nothing is found twice."""
    rows = {document_id: row for row, document_id in enumerate(ids)}
    for ranking, scores in zip(rankings, exact, strict=True):
        assert len(set(ranking.ids)) == len(ranking.ids)
        np.testing.assert_allclose(ranking.scores, scores[[rows[name] for name in ranking.ids]], rtol=1e-6, atol=1e-12)
        assert np.all(np.diff(ranking.scores) <= 0)


def stopped_build(
    corpus: Path,
    directory: IndexDirectory,
    options: BuildOptions,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    function: str,
) -> None:
    """Has a build end where it calls that function."""

    def interrupts(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, function, interrupts)
        with pytest.raises(KeyboardInterrupt):
            build_index([corpus], directory, options)


def all_equal() -> Gaussians:
    return random_gaussians(1, 4)[torch.zeros(6000, dtype=torch.int64)]
