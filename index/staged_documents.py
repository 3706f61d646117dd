"""The documents of a build's segments, as everything that is fitted on them and measured with them sees them.

Segment by segment, so that it is the same work and the same numbers, to the last bit, wherever the segments are looked
at: on one core each, whose products do not depend on how many there are.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from index.background import in_order
from index.candidates import CandidateScorer, Scores
from index.clustering import nearest_lists
from index.cores import available_cores, one_core_each
from index.documents import GaussianStore, Numbers
from index.encoding import Encoding, encode_queries
from index.gaussians import Gaussians
from index.progress import Progress
from index.scanning import Found
from index.standardisation import Standardisation
from index.streaming import StreamedScanner, merged

__all__ = ["READ_TOGETHER", "ListNumbers", "LocalDocuments", "StagedDocuments", "lists_of_block"]

READ_TOGETHER = 1 << 14

ListNumbers = npt.NDArray[np.int32]


class StagedDocuments(Protocol):
    """Documents of k dimensions, numbered from 0 in the order of their segments."""

    @property
    def k(self) -> int:
        """Of how many dimensions they are."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Numbers) -> Gaussians:
        """These documents (m,)."""

    def batches(self, rows: int) -> Iterator[Gaussians]:
        """All documents in order, at most `rows` at a time."""

    def best(self, queries: Gaussians, count: int, standardisation: Standardisation) -> Numbers:
        """The `count` likeliest of each query, (b, count), in no particular order, by float32.

        Raises CorruptIndexError, for an InvalidGaussiansError, where float32 cannot hold a document, and the latter
        where it cannot hold a query.
        """

    def scores(self, queries: Gaussians, numbers: Numbers) -> Scores:
        """Exact -KL of each query and documents of its own, (b, c): (b, c), -infinity for -1."""

    def lists(
        self, centroids: torch.Tensor, standardisation: Standardisation, device: torch.device, progress: Progress
    ) -> ListNumbers:
        """The list of each document, (n,): that of whose centroids (lists, w) it diverges least."""

    def fetch(self, segment: str, name: str) -> None:
        """Has a file of a complete segment where the build's own process reads it."""


class LocalDocuments(GaussianStore):
    """Documents of this machine."""

    def best(self, queries: Gaussians, count: int, standardisation: Standardisation) -> Numbers:
        """As StagedDocuments."""
        return merged(self.parts(queries, count, standardisation), count)[1]

    def parts(
        self, queries: Gaussians, count: int, standardisation: Standardisation, threads: int | None = None
    ) -> Iterator[Found]:
        """What `best` finds in one part after the other: those of a segment are the same among others and alone."""
        return StreamedScanner(self, standardisation, max_norm=math.inf, threads=threads).parts(queries, count)

    def scores(self, queries: Gaussians, numbers: Numbers) -> Scores:
        """As StagedDocuments."""
        return CandidateScorer(self, available_cores()).scores(queries, numbers)

    def lists(
        self, centroids: torch.Tensor, standardisation: Standardisation, device: torch.device, progress: Progress
    ) -> ListNumbers:
        """As StagedDocuments."""
        nearest = partial(lists_of_block, centroids.to(device), standardisation)
        threads, members = available_cores() if device.type == "cpu" else 1, []
        with one_core_each(threads) as pool:
            for its in in_order(pool, nearest, self.batches(READ_TOGETHER), ahead=threads):
                members.append(its)
                progress.advance(len(its))
        return np.concatenate(members)

    def fetch(self, segment: str, name: str) -> None:
        """As StagedDocuments: it is there."""


def lists_of_block(centroids: torch.Tensor, standardisation: Standardisation, block: Gaussians) -> ListNumbers:
    """The list of each document of a block, where the centroids (lists, w) are."""
    vectors = encode_queries(block.to(centroids.device), Encoding.FOLDED, standardisation)
    return nearest_lists(vectors, centroids).to(torch.int32).cpu().numpy()
