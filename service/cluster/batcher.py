"""The batcher of an ingress: a search is a wait for shards, so that others may begin before it ends.

As long as shards answer as they usually do, few batches are under way, and queries gather in the next one: to a shard a
large batch is little more than a small one. Where one does not answer, batches that have waited for longer than usual
keep nobody else waiting, up to as many of them as `most`.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from index import Searcher
from service.batching import Batcher
from service.metrics import Metrics
from service.searching import SearchJob

__all__ = ["ClusterBatcher"]

USUAL = 2
"""Batches under way at once: while shards search for one, another is sent or put together."""
LATE = 2.0
"""How many times as long as usual a batch takes that others do not wait for."""
SHORTEST = 0.02
"""Seconds within which nothing is late."""
REMEMBERED = 16
"""Batches of which the shortest is what is usual: one that waits for a dead machine is not."""


class ClusterBatcher(Batcher):
    """As Batcher, with up to `most` batches under way."""

    def __init__(
        self, searcher: Callable[[], Searcher], metrics: Metrics, *, max_rows: int, queue_rows: int, most: int
    ) -> None:
        super().__init__(searcher, metrics, max_rows=max_rows, queue_rows=queue_rows)
        self._most = most
        self._under_way = 0
        self._begun = 0.0
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def _work(self) -> None:
        with ThreadPoolExecutor(self._most, "gaussearch-cluster") as pool:
            while True:
                with self._changed:
                    self._wait_for_a_batch()
                    while (seconds := self._wait_seconds()) is None or seconds > 0:
                        self._changed.wait(seconds)
                    batch = self._take()
                    if batch:
                        self._under_way += 1
                        self._begun = time.monotonic()
                    elif self._closing:
                        return
                if batch:
                    pool.submit(self._search_in_turn, batch)

    def _wait_seconds(self) -> float | None:
        """How long the next batch has to wait at least; None for until one ends."""
        if self._under_way < min(USUAL, self._most):
            return 0.0
        if self._under_way >= self._most:
            return None
        usual = max(SHORTEST, LATE * min(self._seconds, default=0.0))
        return self._begun + usual - time.monotonic()

    def _search_in_turn(self, batch: list[SearchJob]) -> None:
        started = time.monotonic()
        try:
            self._search(batch)
        finally:
            # Its results hold the searcher.
            batch.clear()
            with self._changed:
                self._under_way -= 1
                self._seconds.append(time.monotonic() - started)
                self._changed.notify()
