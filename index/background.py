"""Work in threads beside a build, with the results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order", "read_ahead"]

T = TypeVar("T")
U = TypeVar("U")


def in_order(pool: ThreadPoolExecutor, work: Callable[[U], T], items: Iterable[U], *, ahead: int) -> Iterator[T]:
    """The results of `work` on each item, in order, `ahead` of which are begun before they are asked for.

    Unlike the pool's own map, which begins all of them and holds every result that has not been asked for. Ends with
    what the first item that fails raises; those after it that have not begun never do.
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


def read_ahead(items: Generator[T]) -> Iterator[T]:
    """What a generator yields, the next of which it makes in a thread of its own while the last is used.

    What it raises is raised in its place. An iterator that is dropped drops the generator, too, once it has made the
    item that it is making; nothing waits for that. The garbage collector, which may be who drops it, runs in any
    thread, at any moment, and under any of the locks that such waiting would need.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="gaussearch-read")
    try:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
