"""How long the slowest of many shards takes: searches that are scattered and gathered, simulated from latencies that
were measured of one shard.

A search of s shards ends when the last of them has answered: the tail of one shard becomes the middle of many. Against
it there are three means: to leave machines idle, to ask another replica where the first is late, and to answer with
what has come by a deadline, saying how much of the index that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Gathered", "Policy", "expected_maximum", "harmonic", "maximum_quantile", "scatter"]

Latencies = npt.NDArray[np.float64]

SEARCHES = 20_000
"""Simulated of each setting: of its 99.9th percentile 20 lie beyond."""
AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class Policy:
    """What is done about shards that are late. `hedge` is the latency after which the same is asked of another replica,
    `cut` that at which what has come is the answer; neither where it is None."""

    hedge: float | None = None
    cut: float | None = None


class Gathered(NamedTuple):
    """What came of it: the latencies of searches, ascending; how many requests a shard had for each search; the share
    of the index that searches were answered from, and of the searches those that were answered from all of it."""

    latencies: Latencies
    requests: float
    coverage: float
    complete: float

    def quantile(self, share: float) -> float:
        """The latency that so many searches do not exceed."""
        return float(np.quantile(self.latencies, share, method="higher"))


def scatter(
    samples: Sequence[float] | Latencies, shards: int, policy: Policy, *, seed: int, searches: int = SEARCHES
) -> Gathered:
    """Searches of so many shards, each of whose latencies is drawn from `samples`, independently of all others.

    That is the friendly case: shards that are late together, as for a slow query or a busy network, are not helped by
    replicas, and add up to less than this where all are late. A request that is sent again is drawn anew, and what was
    sent first is not taken back.
    """
    drawn_from = np.asarray(samples, dtype=np.float64)
    rng = np.random.default_rng(seed)
    found, hedged, came, complete = [], 0, 0, 0
    for first in range(0, searches, AT_ONCE):
        shape = (min(AT_ONCE, searches - first), shards)
        latencies = drawn_from[rng.integers(len(drawn_from), size=shape)]
        if policy.hedge is not None:
            late = latencies > policy.hedge
            again = policy.hedge + drawn_from[rng.integers(len(drawn_from), size=shape)]
            latencies = np.where(late, np.minimum(latencies, again), latencies)
            hedged += int(late.sum())
        slowest = latencies.max(axis=1)
        if policy.cut is not None:
            in_time = latencies <= policy.cut
            came, complete = came + int(in_time.sum()), complete + int(in_time.all(axis=1).sum())
            slowest = np.minimum(slowest, policy.cut)
        else:
            came, complete = came + latencies.size, complete + len(latencies)
        found.append(slowest)
    asked = searches * shards
    return Gathered(np.sort(np.concatenate(found)), 1 + hedged / asked, came / asked, complete / searches)


def harmonic(n: int) -> float:
    """H_n, the expected longest of n times that are exponential with mean 1."""
    return float((1 / np.arange(1, n + 1)).sum())


def maximum_quantile(samples: Sequence[float] | Latencies, shards: int, share: float) -> float:
    """What `scatter` without any means comes to: the latency that this share of searches does not exceed is that which
    a shard does not exceed with probability share^(1/shards)."""
    return float(np.quantile(np.asarray(samples), share ** (1 / shards), method="inverted_cdf"))


def expected_maximum(samples: Sequence[float] | Latencies, shards: int) -> float:
    """The expected longest of so many latencies drawn from the samples: sum over them, ascending, of
    x_i ((i/m)^shards - ((i-1)/m)^shards)."""
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    steps = np.linspace(0.0, 1.0, len(ordered) + 1) ** shards
    return float((ordered * np.diff(steps)).sum())
