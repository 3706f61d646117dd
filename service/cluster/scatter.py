"""Many shards asked at once, and asked again where a process dies, until all have answered or the time has passed.

Which of a shard's processes answers is Ray Serve's business, behind `ShardHandle`. What is asked changes nothing, so
that it may be asked again. All of it happens on one event loop, for which threads wait.
"""

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from index.documents import Stop
from index.errors import GaussearchError, SearchStoppedError
from service.problems import DeadlineExceededError, NotReadyError, OverloadedError

__all__ = ["LostError", "Question", "Scatter", "ShardHandle"]

AGAIN_SECONDS = 0.05
"""How long after a process has died its shard is asked again: by then the others are known to be all that is left."""
LOOK_SECONDS = 0.1
"""How often it is looked whether anybody still waits."""
CANNOT_NOW = (OverloadedError, NotReadyError, DeadlineExceededError)
"""What a shard answers that is not there for a search, as if it had not answered."""

Question = tuple[Any, ...]
"""The name of a method of ShardServer and its arguments behind the generation."""


class LostError(Exception):
    """The process that was asked has died, or cannot be reached; another may answer."""


class ShardHandle(Protocol):
    """One shard: some process of it answers."""

    async def ask(self, token: str, question: Question) -> Any:
        """What a method returns for the generation of a token. Raises LostError, OverloadedError where too much waits
        for its processes, and what the method raises."""

    async def warm(self, token: str) -> None:
        """Has every process open a generation; returns once all that live have, or have failed to."""


class Scatter:
    """The shards of a cluster, and the event loop on which they are asked. Safe to call from several threads, but from
    that of the loop."""

    def __init__(self, shards: Sequence[ShardHandle], loop: asyncio.AbstractEventLoop) -> None:
        self.shards = shards
        self._loop = loop

    def gather(
        self,
        token: str,
        questions: Mapping[int, Question],
        until: float,
        stop: Stop | None = None,
        enough: Callable[[Any], bool] | None = None,
        *,
        partial: bool = False,
    ) -> dict[int, Any]:
        """What the shards of these numbers answer, but for those that have not by `until`, a time.monotonic(), or by
        the time that one answer is `enough`; where a `partial` answer will do, also but for those that cannot now.

        Raises the first error that one of them answers, and SearchStoppedError where `stop` says so.
        """
        excused = CANNOT_NOW if partial else ()
        answers: dict[int, Any] = self._wait(self._gather(token, questions, until, enough, excused), stop)
        return answers

    def warm(self, token: str, numbers: Sequence[int], seconds: float) -> None:
        """Has every process of these shards open a generation; returns once they have, and after so many seconds at
        most."""

        async def all_of_them() -> None:
            tasks = [asyncio.ensure_future(self.shards[number].warm(token)) for number in numbers]
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()

        if numbers:
            self._wait(all_of_them(), None)

    def _wait(self, work: Any, stop: Stop | None) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            try:
                return future.result(None if stop is None else LOOK_SECONDS)
            except concurrent.futures.TimeoutError:
                if future.done() or stop is None:
                    raise
                if stop():
                    future.cancel()
                    raise SearchStoppedError("nobody waits for the results any more") from None

    async def _gather(
        self,
        token: str,
        questions: Mapping[int, Question],
        until: float,
        enough: Callable[[Any], bool] | None,
        excused: tuple[type[GaussearchError], ...],
    ) -> dict[int, Any]:
        tasks = {
            asyncio.ensure_future(self._ask(number, token, question)): number for number, question in questions.items()
        }
        waiting, answers = set(tasks), dict[int, Any]()
        refusal: GaussearchError | None = None
        try:
            while waiting:
                left = until - time.monotonic()
                if left <= 0:
                    break
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        answers[tasks[task]] = task.result()
                    except excused as error:
                        refusal = error
                if enough is not None and any(map(enough, answers.values())):
                    break
        finally:
            for task in tasks:
                if not task.cancel() and not task.cancelled():
                    # Of several errors one is raised; of the others the log is not to say that nobody looked.
                    task.exception()
        if refusal is not None and not answers:
            raise refusal
        return answers

    async def _ask(self, number: int, token: str, question: Question) -> Any:
        while True:
            try:
                answer = await self.shards[number].ask(token, question)
            except LostError:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if isinstance(answer, GaussearchError):
                raise answer
            return answer
