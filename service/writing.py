"""Puts writes that arrive together into one generation, on one thread, behind a bounded queue.

A write is answered once it is on disk and the next search sees it. That takes a few dozen syncs, however many documents
there are, so what has come in while one generation was published goes into the next one together (group commit). A
write that cannot be made fails alone. Between writes the same thread merges small segments.
"""

import asyncio
import logging
import threading
import time

from index import CompactOptions, IndexDirectory, WriteOptions, compact_index
from index.maintenance import is_due, measure_due, merge_due
from service.committing import Change, Committer, Done, RequestKey, WriteJob, answered_before
from service.jobs import JobThread, hand_over
from service.live_index import LiveIndex
from service.metrics import Metrics
from service.problems import CompactionRunningError, IdempotencyMismatchError

__all__ = ["NOT_WRITTEN", "Writer"]

logger = logging.getLogger("gaussearch.writing")

NOT_WRITTEN = "the deadline passed before it was written, and it will not be"

LOOKS = 4
"""Requests sent again for which CURRENT is read at a time: where the disk hangs, as many threads hang with it."""
LONGEST_WAIT = 60.0
"""Seconds after which whoever finds the queue full is asked to come again, at most."""


class Writer(JobThread[WriteJob]):
    """A thread that writes, and its queue of at most `queue_documents` documents."""

    DOING = "writing"
    WAITING = "documents are waiting to be written"
    LATE = NOT_WRITTEN

    def __init__(
        self, directory: IndexDirectory, live: LiveIndex, metrics: Metrics, options: WriteOptions, queue_documents: int
    ) -> None:
        super().__init__("gaussearch-write", queue_documents, metrics)
        self._directory, self._live, self._options = directory, live, options
        self._committer = Committer(directory, live, metrics, options)
        self._compaction: CompactOptions | None = None
        self.compaction_error: str | None = None
        self._looks = threading.BoundedSemaphore(LOOKS)
        self._begun: float | None = None
        self._seconds = 0.0

    @property
    def compacting(self) -> bool:
        """Whether a compaction has been asked for that has not ended."""
        return self._compaction is not None

    def submit(self, change: Change, deadline: float) -> "asyncio.Future[Done]":
        """Queues a change and returns the future of its end; cancel it to drop what has not begun.

        `deadline` is a time.monotonic(). Raises OverloadedError where the queue has no room, and NotReadyError once the
        writer is closing or its thread has died. Call from an event loop.
        """
        ids = change.ids()
        job = WriteJob(deadline=deadline, rows=len(ids), change=change, ids=ids)
        with self._changed:
            self._queue(job)
            self._changed.notify()
        return job.future

    def made_before(self, key: RequestKey) -> "asyncio.Future[Done | None]":
        """The future of what a request with this key has done that is part of the live generation; of None where it has
        to be queued to know. It fails with IdempotencyMismatchError. Raises NotReadyError. Call from an event loop."""
        future: asyncio.Future[Done | None] = asyncio.get_running_loop().create_future()
        searcher = self._live.searcher()
        before = next((each for each in searcher.manifest.applied if each.key == key.key), None)
        if before is None or not self._looks.acquire(blocking=False):
            future.set_result(None)
            return future

        def look() -> None:
            outcome: Done | Exception | None = None
            try:
                # What is served may be older than what is live, to which another process may have gone back.
                if self._live.is_current(searcher):
                    outcome = answered_before(key, before)
            except IdempotencyMismatchError as error:
                outcome = error
            except Exception:
                # What is wrong with the index is told by the write itself.
                logger.debug("CURRENT could not be read for a request sent again", exc_info=True)
            finally:
                self._looks.release()
            hand_over([(future, outcome)])

        # A thread of its own that does not keep the process: a disk that hangs must not take those of others.
        try:
            threading.Thread(target=look, name="gaussearch-look", daemon=True).start()
        except RuntimeError:
            # There are as many threads as there may be.
            self._looks.release()
            future.set_result(None)
        return future

    def compact(self, options: CompactOptions) -> None:
        """Has the index compacted once the writes that are queued are done; raises CompactionRunningError where one is
        under way."""
        with self._changed:
            self._require_accepting()
            if self._compaction is not None:
                raise CompactionRunningError("a compaction is under way; GET /v1/index says when it has ended")
            # What else is kept is the service's to say.
            self._compaction = options.model_copy(update=self._options.model_dump())
            self._changed.notify()

    def _drop_if_given_up(self, job: WriteJob) -> bool:
        # Not counted: the metric is of what is not searched.
        return job.drop_if_given_up(self.LATE) is not None

    def _retry_seconds(self) -> float:
        # All that waits is taken at once. What is under way may take as long again as it has taken.
        begun = self._begun
        under_way = 0.0 if begun is None else time.monotonic() - begun
        return min(max(self._seconds, under_way), LONGEST_WAIT)

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            if self._compaction is not None:
                self.compaction_error = "the writing thread ended before it was done"
                self._compaction = None

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._jobs or self._compaction or self._closing):
                    self._changed.wait()
                jobs = list(self._jobs)
                self._jobs.clear()
                self._set_waiting(0)
                # Behind these jobs, and before those that come meanwhile.
                compaction = self._compaction
                if not jobs and self._closing:
                    return
            self._begun = started = time.monotonic()
            if jobs:
                # No `_batch` that is told if the thread dies: whether these have been made is not known then.
                self._committer.commit([job for job in jobs if not self._drop_if_given_up(job)])
                # Their documents must not be kept while nothing comes.
                jobs.clear()
                self._maintain()
                self._seconds = time.monotonic() - started
            if compaction is not None:
                self._compact(compaction)
            self._begun = None

    def _maintain(self) -> None:
        """What is due after a write, and for which nobody waits."""
        try:
            # The generation that has just been published, mostly: it need not be read again to see that nothing is.
            if not is_due(self._live.local().manifest):
                return
            merged = merge_due(self._directory, self._options)
            measured = measure_due(self._directory, self._options, self._live.local())
            if merged is not None or measured is not None:
                self._live.catch_up()
        except Exception:
            # The documents are where they were, and the thread must live on for others; the next write tries again.
            logger.exception("small segments could not be merged, or recall not be measured")

    def _compact(self, options: CompactOptions) -> None:
        try:
            self._live.catch_up()
            compact_index(self._directory, options)
            self._live.catch_up()
            self.compaction_error = None
        except Exception as error:
            # Whatever it raises, the thread must live on for writes.
            logger.exception("the index could not be compacted")
            self.compaction_error = f"{type(error).__name__}: {error}"
        finally:
            self._compaction = None
