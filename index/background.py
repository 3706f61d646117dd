"""Work on a few segments at a time, in threads, with the results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

__all__ = ["SEGMENTS_AT_WORK", "BackgroundWork", "in_order"]

SEGMENTS_AT_WORK = 2
"""One is hashed and written while another is read or encoded; a third took memory and no time off (2 cores)."""

T = TypeVar("T")
U = TypeVar("U")


class BackgroundWork(Generic[T]):
    """Lets a build read on while the segments read before are encoded, hashed, written and synced.

    Takes `SEGMENTS_AT_WORK` segments at a time, which are what it holds in memory. A context manager; leaving it waits
    for the work under way and drops what has not begun.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(SEGMENTS_AT_WORK, thread_name_prefix="gaussearch-segment")
        self._pending: deque[Future[T]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def submit(self, work: Callable[..., T], *arguments: object) -> list[T]:
        """Starts this work, once there is a thread for it, and returns the results that had to be waited for.

        Raises what the work that was waited for raised.
        """
        done = [self._pending.popleft().result()] if len(self._pending) == SEGMENTS_AT_WORK else []
        self._pending.append(self._threads.submit(work, *arguments))
        return done

    def finish(self) -> list[T]:
        """Waits for all work under way and returns its results; raises what the first that failed raised."""
        return [self._pending.popleft().result() for _ in range(len(self._pending))]


def in_order(pool: ThreadPoolExecutor, work: Callable[[U], T], items: Iterable[U], *, ahead: int) -> Iterator[T]:
    """The results of `work` on each item, in order, `ahead` of which are begun before they are asked for.

    Unlike the pool's own map, which begins all of them and holds every result that has not been asked for.
    """
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
