"""Work on a few segments at a time, in threads, with the results in order."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

__all__ = ["SEGMENTS_AT_WORK", "BackgroundWork"]

SEGMENTS_AT_WORK = 4
"""On two cores, with one segment encoded and one written, the others are waited for on their way to the disk."""

T = TypeVar("T")


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
