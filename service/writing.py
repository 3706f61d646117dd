"""Puts writes that arrive together into one generation, on one thread, behind a bounded queue.

A write is answered once it is on disk and the next search sees it. That takes a few dozen syncs, however many documents
there are, so what has come in while one generation was published goes into the next one together (group commit). A
write that cannot be made fails alone. Between writes the same thread merges small segments.
"""

import asyncio
import contextlib
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from index import CompactOptions, GaussearchError, IndexDirectory, WriteOptions, compact_index
from index.build_encoding import NotEncodableError
from index.document_writing import DocumentBatch
from index.errors import IndexDirectoryError, IndexLockedError, ModelMismatchError, NotSyncedError, SourceError
from index.maintenance import is_due, measure_due, merge_due
from index.manifest import AppliedRequest
from index.writer import IndexWriter
from service.live_index import LiveIndex
from service.metrics import Metrics
from service.problems import (
    CompactionRunningError,
    DeadlineExceededError,
    IdempotencyMismatchError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    WriteFailedError,
)

__all__ = ["NOT_WRITTEN", "Change", "Done", "RequestKey", "Writer"]

logger = logging.getLogger("gaussearch.writing")

NOT_WRITTEN = "the deadline passed before it was written, and it will not be"
LOCK_SECONDS = 1.0
"""How long to wait for another process that writes to the index, before the queue is told to come again."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Digests of an Idempotency-Key and of what was asked with it."""

    key: str
    request: str


@dataclass(frozen=True, slots=True)
class Change:
    """What one request wants: documents written, none of one id, or documents deleted."""

    documents: DocumentBatch | None
    deletes: tuple[str, ...] = ()
    key: RequestKey | None = None

    @property
    def rows(self) -> int:
        """How many documents it is about."""
        return len(self.deletes) + (len(self.documents.ids) if self.documents is not None else 0)


@dataclass(frozen=True, slots=True)
class Done:
    """A change that is on disk, and that searches of this generation see; `replayed` if an earlier request made it."""

    counts: dict[str, int]
    generation: int
    replayed: bool = False


@dataclass(slots=True, eq=False)
class _Job:
    change: Change
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Done]"
    ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        documents = self.change.documents
        self.ids = documents.ids.to_pylist() if documents is not None else list(self.change.deletes)


class Writer:
    """A thread that writes, and its queue of at most `queue_documents` documents."""

    def __init__(
        self, directory: IndexDirectory, live: LiveIndex, metrics: Metrics, options: WriteOptions, queue_documents: int
    ) -> None:
        self._directory, self._live, self._metrics, self._options = directory, live, metrics, options
        self._limit = queue_documents
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._compaction: CompactOptions | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="gaussearch-write", daemon=True)
        self.compaction_error: str | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is there to do its work."""
        return self._thread.is_alive()

    @property
    def compacting(self) -> bool:
        """Whether a compaction has been asked for that has not ended."""
        return self._compaction is not None

    def close(self, seconds: float) -> None:
        """Takes no more work, finishes what is queued and ends the thread; blocks until then, or so many seconds: a
        compaction may take longer, and is safe to be cut off."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def submit(self, change: Change, deadline: float) -> "asyncio.Future[Done]":
        """Queues a change and returns the future of its end; cancel it to drop what has not begun.

        `deadline` is a time.monotonic(). Raises OverloadedError where the queue has no room, and NotReadyError once the
        writer is closing or its thread has died. Call from an event loop.
        """
        loop = asyncio.get_running_loop()
        job = _Job(change, deadline, loop, loop.create_future())
        with self._changed:
            self._require_alive()
            if self._waiting + change.rows > self._limit:
                self._drop_given_up()
            if self._jobs and self._waiting + change.rows > self._limit:
                self._metrics.rejected.labels("overloaded").inc()
                raise OverloadedError(
                    f"{self._waiting} documents are waiting to be written and {self._limit} may: try again later",
                    headers={"Retry-After": "1"},
                )
            self._jobs.append(job)
            self._waiting += change.rows
            self._changed.notify()
        return job.future

    def _drop_given_up(self) -> None:
        """Makes room of what nobody waits for any more: a compaction may keep it in the queue for minutes."""
        self._jobs = deque(job for job in self._jobs if not _is_dropped(job))
        self._waiting = sum(job.change.rows for job in self._jobs)

    def compact(self, options: CompactOptions) -> None:
        """Has the index compacted once the writes that are queued are done; raises CompactionRunningError where one is
        under way."""
        with self._changed:
            self._require_alive()
            if self._compaction is not None:
                raise CompactionRunningError("a compaction is under way; GET /v1/index says when it has ended")
            # What else is kept is the service's to say.
            self._compaction = options.model_copy(update=self._options.model_dump())
            self._changed.notify()

    def _require_alive(self) -> None:
        if self._closing or not self._thread.is_alive():
            raise NotReadyError("the service is shutting down or its writing thread has died")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._jobs or self._compaction or self._closing):
                    self._changed.wait()
                jobs, self._waiting = list(self._jobs), 0
                self._jobs.clear()
                # Behind these jobs, and before those that come meanwhile.
                compaction = self._compaction
                if not jobs and self._closing:
                    return
            if jobs:
                self._commit_or_fail([job for job in jobs if not _is_dropped(job)])
                self._maintain()
            if compaction is not None:
                self._compact(compaction)

    def _commit_or_fail(self, jobs: list[_Job]) -> None:
        try:
            if jobs:
                self._commit(jobs)
        except (NotEncodableError, SourceError) as error:
            if len(jobs) == 1:
                _fail(jobs[0], InvalidRequestError(str(error)))
                return
            # One of these is at fault; alone, each fails or succeeds for itself.
            for job in jobs:
                self._commit_or_fail([job])
        except NotSyncedError as error:
            logger.exception("writes of %d requests may not have reached the disk", len(jobs))
            _fail_all(
                jobs,
                WriteFailedError(f"it has been made, and whether it outlives a power cut is not known: {error}"),
            )
        except IndexLockedError as error:
            _fail_all(jobs, NotReadyError(f"{error}: send it again later", headers={"Retry-After": "5"}))
        except WriteFailedError as error:
            _fail_all(jobs, error)
        except (OSError, IndexDirectoryError) as error:
            logger.exception("writes of %d requests failed", len(jobs))
            _fail_all(jobs, _write_failure(error))
        except Exception as error:
            # Whatever one write raises, the thread must live on for the others.
            logger.exception("writes of %d requests failed", len(jobs))
            _fail_all(jobs, GaussearchError(f"the write failed: {error!r}"))

    def _commit(self, jobs: list[_Job]) -> None:
        """Publishes one generation with the changes of these jobs, has it searched, and answers them."""
        started = time.perf_counter()
        # Taking the lock would make a folder that has gone.
        self._directory.current_token()
        with self._directory.lock(LOCK_SECONDS):
            # What another process has published may be damaged: then nothing is built on it, and retention does not
            # take the last good generation away.
            try:
                self._live.catch_up()
            except ModelMismatchError as error:
                raise WriteFailedError(f"another process has published what is not served here: {error}") from error
            searcher = self._live.local()
            with IndexWriter(self._directory, known=searcher.store.segments) as writer:
                known = {each.key: each for each in writer.manifest.applied}
                new, again = _new_and_again(jobs, known)
                counts = self._apply(writer, new)
                generation, applied = writer.generation, _applied(new, counts, writer.generation)
                changed = writer.has_changes
                if changed or applied:
                    written = sum(its.get("written", 0) for its in counts.values())
                    writer.publish(
                        writer.entries(),
                        retention=self._options.retention,
                        written=written,
                        applied=applied,
                        changed=changed,
                    )
                else:
                    generation = writer.manifest.generation
        self._show()
        self._metrics.write(len(new), sum(job.change.rows for job in new), time.perf_counter() - started)
        for job in new:
            _call(job, Done(counts[id(job)], generation))
        known |= {each.key: each for each in applied}
        for job, key in again:
            _answer_again(job, key, known[key.key])

    def _show(self) -> None:
        """Has searches see what has been written."""
        try:
            self._live.catch_up()
        except (GaussearchError, RuntimeError, MemoryError, OSError) as error:
            logger.exception("what has been written cannot be loaded")
            raise WriteFailedError(
                "it is on the disk, but this service could not load it, and tries again; the log says why"
            ) from error

    def _apply(self, writer: IndexWriter, new: list[_Job]) -> dict[int, dict[str, int]]:
        """Makes the changes of these jobs in their order; what each counts, by its id()."""
        for job in new:
            if job.change.documents is not None:
                writer.check(job.change.documents)
        touched = pa.array(dict.fromkeys(name for job in new for name in job.ids), pa.string())
        there = set(writer.remove(touched)) if len(touched) else set()
        last: dict[str, _Job] = {}
        counts: dict[int, dict[str, int]] = {}
        for job in new:
            names = set(job.ids)
            found = len(names & there)
            last |= dict.fromkeys(job.ids, job)
            if job.change.documents is not None:
                counts[id(job)] = {"written": len(names), "replaced": found}
                there |= names
            else:
                counts[id(job)] = {"deleted": found, "missing": len(names) - found}
                there -= names
        for job in new:
            if job.change.documents is not None:
                rows = [row for row, name in enumerate(job.ids) if last[name] is job]
                if rows:
                    writer.add(job.change.documents.take(rows))
        return counts

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


def _new_and_again(
    jobs: list[_Job], known: Mapping[str, AppliedRequest]
) -> tuple[list[_Job], list[tuple[_Job, RequestKey]]]:
    """The jobs that are to be done, and those whose Idempotency-Key has come before: in an earlier generation, or with
    another of them."""
    new: list[_Job] = []
    again: list[tuple[_Job, RequestKey]] = []
    seen = set(known)
    for job in jobs:
        key = job.change.key
        if key is not None and key.key in seen:
            again.append((job, key))
        else:
            new.append(job)
            seen |= {key.key} if key is not None else set()
    return new, again


def _applied(jobs: list[_Job], counts: dict[int, dict[str, int]], generation: int) -> list[AppliedRequest]:
    return [
        AppliedRequest(
            key=job.change.key.key, request=job.change.key.request, generation=generation, answer=counts[id(job)]
        )
        for job in jobs
        if job.change.key is not None
    ]


def _answer_again(job: _Job, key: RequestKey, before: AppliedRequest) -> None:
    if key.request != before.request:
        _fail(job, IdempotencyMismatchError("this Idempotency-Key has come with another request: use a new one"))
    else:
        _call(job, Done(before.answer, before.generation, replayed=True))


def _write_failure(error: Exception) -> WriteFailedError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "there is no space left for it" if full else "the index could not be written"
    return WriteFailedError(
        f"{why}; the log says more under this request id. Repeat it, with the same Idempotency-Key if it has one",
        headers={"Retry-After": "10"},
    )


def _is_dropped(job: _Job) -> bool:
    """Whether nobody waits for a queued job any more; if so, it is answered."""
    if time.monotonic() >= job.deadline:
        _fail(job, DeadlineExceededError(NOT_WRITTEN))
        return True
    return job.future.done()


def _fail_all(jobs: list[_Job], error: GaussearchError) -> None:
    for job in jobs:
        _fail(job, error)


def _fail(job: _Job, error: GaussearchError) -> None:
    _in_loop(job, lambda: None if job.future.done() else job.future.set_exception(error))


def _call(job: _Job, done: Done) -> None:
    _in_loop(job, lambda: None if job.future.done() else job.future.set_result(done))


def _in_loop(job: _Job, call: Callable[[], None]) -> None:
    # A loop that has been closed has nobody waiting on it.
    with contextlib.suppress(RuntimeError):
        job.loop.call_soon_threadsafe(call)
