"""Functions run as tasks of a Ray cluster. Where they run, when, and what becomes of those whose worker has died, is
Ray's to decide."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from index.errors import ClusterError, GaussearchError

__all__ = ["Tasks"]

RETRIES: Final = 5
"""How often Ray runs a task again whose worker, or whose node, has died. What a task raises ends the build."""

ENDING_SECONDS: Final = 10.0
"""How long tasks that are cancelled are waited for."""

T = TypeVar("T")


class Tasks:
    """Runs functions on the cluster that this process is connected to, one core each."""

    def __init__(self, ray: Any, at_once: int | None = None) -> None:
        """`at_once` is how many tasks there are at most at a time; without it the cluster's cores decide."""
        self._ray, self._at_once = ray, at_once

    def share(self, value: T) -> T:
        """Something that many tasks are given, stored once on each machine; tasks see the value itself."""
        stored: T = self._ray.put(value)
        return stored

    def run(
        self, function: Callable[..., T], calls: Iterable[Sequence[object]], *, gpus: float = 0.0, returns: int = 1
    ) -> Iterator[T]:
        """What the function returns for each of these arguments, in order; of several `returns`, references to these.

        Raises what the first call, in order, raises, if it is an error of index.errors or of the system, and
        ClusterError where the cluster has not run it.
        """
        remote = self._ray.remote(max_retries=RETRIES, num_returns=returns)(function).options(num_gpus=gpus)
        waiting: deque[Any] = deque()
        try:
            for arguments in calls:
                waiting.append(remote.remote(*arguments))
                while self._at_once is not None and self._at_work(waiting) >= self._at_once:
                    if self._is_done(waiting[0]):
                        yield self._result(waiting.popleft())
                    else:
                        self._wait(waiting)
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            self._cancel([_first(each) for each in waiting])

    def _cancel(self, references: list[Any]) -> None:
        """Ends what nobody waits for any more, and lets it end: it may be writing where something else is to lie."""
        for each in references:
            self._ray.cancel(each)
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=ENDING_SECONDS, fetch_local=False)

    def get(self, value: Any) -> Any:
        """The value of a reference; raises as `run`."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(value)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, GaussearchError | OSError | MemoryError):
                raise cause from None
            if isinstance(cause, ImportError):
                raise ClusterError(
                    f"a node of the Ray cluster cannot run tasks of a build: {cause}. Install the same gaussearch on "
                    "every node, with its extra cpu or gpu"
                ) from error
            raise
        except errors.RayError as error:
            said = str(error).strip().partition("\n")[0]
            raise ClusterError(f"the Ray cluster has not finished a task of the build: {said}") from error

    def _result(self, reference: Any) -> Any:
        return reference if isinstance(reference, list) else self.get(reference)

    def _at_work(self, waiting: Iterable[Any]) -> int:
        references = [_first(each) for each in waiting]
        return len(self._ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)[1])

    def _is_done(self, reference: Any) -> bool:
        return bool(self._ray.wait([_first(reference)], timeout=0, fetch_local=False)[0])

    def _wait(self, waiting: Iterable[Any]) -> None:
        """Until one more of them is done."""
        references = [_first(each) for each in waiting]
        left = self._ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)[1]
        self._ray.wait(left, num_returns=1, fetch_local=False)


def _first(reference: Any) -> Any:
    """A call with several returns is done when the first of them is."""
    return reference[0] if isinstance(reference, list) else reference
