"""Disk work beside computing: one piece at a time, in a thread of its own, results in order."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

__all__ = ["BackgroundWriter"]

T = TypeVar("T")


class BackgroundWriter(Generic[T]):
    """Lets a build write, hash and sync one segment while it reads or encodes the next; so two are in memory at most.

    A context manager; leaving it waits for the work under way.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gaussearch-writer")
        self._pending: Future[T] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def submit(self, work: Callable[..., T], *arguments: object) -> list[T]:
        """Waits for the work under way, starts this one, and returns the result of the former, if there was any."""
        before = self.finish()
        self._pending = self._thread.submit(work, *arguments)
        return before

    def finish(self) -> list[T]:
        """Waits for the work under way and returns its result, or nothing; raises what it raised."""
        pending, self._pending = self._pending, None
        return [] if pending is None else [pending.result()]
