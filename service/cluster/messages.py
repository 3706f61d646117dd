"""What an ingress and the shards say to each other: numbers of documents are those of the shard."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from index import Document, Ranking
from index.documents import Numbers
from index.selection import DocumentFilter

__all__ = ["Answer", "Asked", "Opened"]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Searches that are made together: means and variances (b, k) float64, options as index.interface.Searcher has
    them, and after how many `seconds` nobody waits for them any more. Clocks of two machines differ; what passes does
    not."""

    means: npt.NDArray[np.float64]
    variances: npt.NDArray[np.float64]
    top_k: int
    seconds: float
    candidates: int | None = None
    nprobe: int | None = None
    exact: bool = False
    filter: DocumentFilter | None = None
    with_payload: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The ranking of each query; the payload of the documents found, where it was asked for, in the order of `shown`,
    which ascends; and how many documents the filter lets through, if there is one."""

    rankings: list[Ranking]
    matched: int | None
    shown: Numbers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    payloads: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What a shard has of a generation: how many documents, the columns of their payload, where it searches, and some
    document, if there is one."""

    documents: int
    fields: frozenset[str]
    device: str
    precision: str
    first: Document | None
