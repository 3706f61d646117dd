"""What a manifest says of codes: how they are scanned, and how much of them a search looks at."""

import itertools
import math
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, FiniteFloat

from index.records import MOST, FileEntry, PositiveInt, Strict

__all__ = ["CodesRecord", "FactoryRecord", "GraphRecord", "ListsRecord"]


class GraphRecord(Strict):
    """The graph over the documents of an index's first segments, as many as `segments` says, in their order.

    `name` is that of its file in structures/. `links` and `construction` are what it was built with (M and
    efConstruction of HNSW).
    """

    name: Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.faiss$")]
    file: FileEntry
    segments: PositiveInt
    links: PositiveInt
    construction: PositiveInt


def _ascends(pairs: list[list[int]]) -> list[list[int]]:
    if any(first >= later or least > most for (first, least), (later, most) in itertools.pairwise(pairs)):
        raise ValueError("pairs must ascend")
    return pairs


Pairs = Annotated[
    list[Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]],
    Field(min_length=1, max_length=1000, fail_fast=True),
    AfterValidator(_ascends),
]


class ListsRecord(Strict):
    """The lists that the documents of an index's first segments are in, as many as `segments` says, in their order.

    `name` is that of their file in structures/, `lists` how many there are. `nprobe` pairs a top_k with how many of
    them a query looks into, both ascending, as measured when there were so many `documents`.
    """

    name: Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.safetensors$")]
    file: FileEntry
    segments: PositiveInt
    lists: PositiveInt
    nprobe: Pairs
    documents: PositiveInt


class FactoryRecord(Strict):
    """What FAISS made the index of each segment of: a string of its factory, how many lists that has, if any, and pairs
    of a top_k and how many of them are looked into, as measured when there were so many `documents`."""

    factory: str
    lists: PositiveInt | None
    nprobe: Pairs | None
    documents: PositiveInt


class CodesRecord(Strict):
    """What the codes of an index are scanned with.

    `codebook` is the name of its file in codebooks/, `dimensions` how many projected ones a code says something about.
    `candidates` pairs a top_k with how many documents are scored exactly for it, both ascending. `breadth` is how many
    more a scan finds, of which they are chosen by their projected vectors, or how much broader than they are many a
    walk is (efSearch). With a `graph`, codes are not scanned but met on a walk; with `lists`, those of some lists are
    scanned.
    """

    codebook: Annotated[str, Field(pattern=r"^[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.safetensors$")]
    file: FileEntry
    code_bytes: PositiveInt
    dimensions: PositiveInt
    candidates: Pairs
    breadth: Annotated[FiniteFloat, Field(ge=1, le=MOST)]
    graph: GraphRecord | None = None
    lists: ListsRecord | None = None
    factory: FactoryRecord | None = None

    @property
    def list_count(self) -> int | None:
        """How many lists there are to look into; None where there are none."""
        return (self.lists or self.factory or _NO_LISTS).lists

    def nprobe_for(self, top_k: int, among: int | None = None) -> int | None:
        """How many lists a search for top_k documents looks into, where it is to find them among so many; None where
        there are none."""
        its = self.lists or self.factory or _NO_LISTS
        if its.nprobe is None or its.lists is None:
            return None
        if among is not None and its.documents > among:
            # The best of few are spread over as many lists as more of the best of many.
            top_k = math.ceil(top_k * its.documents / max(1, among))
        # Beyond what was measured as it grew there: twice as many documents are by far not in twice as many lists.
        (first, least), (last, most) = its.nprobe[0], its.nprobe[-1]
        power = math.log(most / least) / math.log(last / first) if last > first else 0.0
        if top_k < last:
            return min(its.lists, _between(its.nprobe, top_k))
        # Compared before it is raised to a power that may be any.
        beyond = math.log(most) + power * math.log(top_k / last)
        return its.lists if beyond >= math.log(its.lists) else math.ceil(most * (top_k / last) ** power)

    def candidates_for(self, top_k: int) -> int:
        """How many candidates a search for top_k documents takes."""
        return max(top_k, _between(self.candidates, top_k))

    @property
    def structure(self) -> GraphRecord | ListsRecord | None:
        """What makes it unnecessary to look at all documents, if anything does."""
        return self.graph or self.lists


_NO_LISTS = FactoryRecord(factory="", lists=None, nprobe=None, documents=1)


def _between(pairs: list[list[int]], top_k: int) -> int:
    """What goes with top_k: as measured, geometrically in between, in proportion beyond."""
    (first, least), (last, most) = pairs[0], pairs[-1]
    if top_k <= first:
        return least
    if top_k >= last:
        return math.ceil(most * top_k / last)
    measured, values = zip(*pairs, strict=True)
    power = np.interp(math.log(top_k), np.log(measured), np.log(values))
    # Not one more for a rounding.
    return math.ceil(math.exp(power) * (1 - 1e-9))
