"""An index, or a service over one, as a transformer of PyTerrier. The only module that needs it; it starts no Java.

import pyterrier as pt
from service.pyterrier import GaussianSearch
from service.runs import LocalRunner

search = GaussianSearch(LocalRunner(Path("my-index"), device="auto"), top_k=1000)
pt.Experiment([search], topics, qrels, ["nDCG@10"])
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pyterrier as pt

from index import Gaussians
from service.runs import BATCH_QUERIES, Asked, Runner

__all__ = ["GaussianSearch"]

COLUMNS = ["docno", "score", "rank"]


class GaussianSearch(pt.Transformer):
    """Queries in, ranked documents out: every column of a query, then docno, score (-KL in nats) and rank, from 0.

    A query is its columns `query_mean` and `query_variance`, or with `encode`, which makes Gaussians of texts, `query`.
    """

    def __init__(
        self, runner: Runner, *, top_k: int = 1000, encode: Callable[[Sequence[str]], Gaussians] | None = None
    ) -> None:
        self._runner, self._encode = runner, encode
        self._asked = Asked(top_k, candidates=None, nprobe=None, exact=False)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """As Transformer."""
        needed = ["query"] if self._encode is not None else ["query_mean", "query_variance"]
        pt.validate.query_frame(inp, extra_columns=needed)
        queries = inp.drop(columns=COLUMNS, errors="ignore").reset_index(drop=True)
        if queries.empty:
            return queries.assign(docno=pd.Series(dtype=str), score=pd.Series(dtype=float), rank=pd.Series(dtype=int))
        counts: list[int] = []
        ranked: list[tuple[str, float, int]] = []
        # Some at a time, for results come with payload, of which nothing is kept.
        for first in range(0, len(queries), BATCH_QUERIES):
            gaussians = self._gaussians(queries.iloc[first : first + BATCH_QUERIES])
            for its in self._runner.search(gaussians, self._asked):
                counts.append(len(its))
                ranked += [(each.id, each.score, rank) for rank, each in enumerate(its)]
        repeated = queries.loc[np.repeat(queries.index, counts)].reset_index(drop=True)
        return repeated.join(pd.DataFrame(ranked, columns=COLUMNS))

    def _gaussians(self, queries: pd.DataFrame) -> Gaussians:
        if self._encode is not None:
            return self._encode(queries["query"].tolist())
        return Gaussians.from_arrays(np.stack(queries["query_mean"]), np.stack(queries["query_variance"]))
