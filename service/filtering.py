"""Filters of requests, evaluated before their searches: that looks at all documents, and may be refused."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from index import Searcher
from index.errors import SearchStoppedError
from index.interface import RemoteSearcher
from index.selection import KEPT, DocumentFilter
from service.metrics import Metrics
from service.problems import DeadlineExceededError, OverloadedError

__all__ = ["FilterRoom"]

THREADS = 2


class FilterRoom:
    """Evaluates filters on threads of its own, in turn, and refuses more at a time than an index remembers: a search
    would have to evaluate those again, and everybody's searches would wait for it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(THREADS, "gaussearch-filter")
        self._searched_with: Counter[str] = Counter()

    def close(self) -> None:
        """Evaluates nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def enter(self, searcher: Searcher, wanted: DocumentFilter | None, deadline: float) -> AsyncIterator[None]:
        """A context within which a searcher remembers what a filter lets through, if there is one.

        Raises OverloadedError where there are too many others, DeadlineExceededError where `deadline`, a
        time.monotonic(), passes before, and InvalidOptionError for a filter that does not go with the index.
        """
        if wanted is None:
            yield
            return
        key = wanted.key
        if key not in self._searched_with and len(self._searched_with) >= KEPT:
            self._metrics.rejected.labels("overloaded").inc()
            raise OverloadedError(
                f"searches with {KEPT} other filters are under way, and no more may: try again later",
                headers={"Retry-After": "1"},
            )
        self._searched_with[key] += 1
        try:
            if not isinstance(searcher, RemoteSearcher):
                # Elsewhere, it is done there.
                await self._evaluate(searcher, wanted, deadline)
            yield
        finally:
            self._searched_with[key] -= 1
            if not self._searched_with[key]:
                del self._searched_with[key]

    async def _evaluate(self, searcher: Searcher, wanted: DocumentFilter, deadline: float) -> None:
        def evaluate() -> None:
            searcher.matching(wanted, stop=lambda: time.monotonic() >= deadline)

        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await asyncio.get_running_loop().run_in_executor(self._threads, evaluate)
        except (TimeoutError, SearchStoppedError) as error:
            self._metrics.rejected.labels("deadline").inc()
            raise DeadlineExceededError("the deadline passed before the filter was evaluated") from error
