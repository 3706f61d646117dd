"""One generation with the changes of all requests that wait, and what each of them is told.

A request whose Idempotency-Key has come before is told what the first one was, and changes nothing.
"""

import errno
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from index import GaussearchError, IndexDirectory, WriteOptions
from index.build_encoding import NotEncodableError
from index.document_writing import DocumentBatch
from index.errors import (
    IndexDirectoryError,
    IndexLockedError,
    InsufficientCacheError,
    ModelMismatchError,
    NotSyncedError,
    PublicationConflictError,
    SourceError,
    StorageError,
)
from index.manifest import AppliedRequest
from index.writer import IndexWriter
from service.jobs import Job, hand_over
from service.live_index import LiveIndex
from service.metrics import Metrics
from service.problems import IdempotencyMismatchError, InvalidRequestError, NotReadyError, WriteFailedError

__all__ = ["Change", "Committer", "Done", "RequestKey", "WriteJob", "answered_before"]

logger = logging.getLogger("gaussearch.writing")

LOCK_SECONDS = 1.0
"""How long to wait for another process that writes to the index, before the queue is told to come again."""


CONFLICTS = 5
"""How often writes are made again where another machine has published meanwhile."""


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

    def ids(self) -> list[str]:
        """The documents that it is about."""
        return self.documents.ids.to_pylist() if self.documents is not None else list(self.deletes)


@dataclass(frozen=True, slots=True)
class Done:
    """A change that is on disk, and that searches of this generation see; `replayed` if an earlier request made it."""

    counts: dict[str, int]
    generation: int
    replayed: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class WriteJob(Job[Done]):
    """The change of one request, and the ids that it is about."""

    change: Change
    ids: list[str]


class Committer:
    """Publishes changes, one call at a time."""

    def __init__(self, directory: IndexDirectory, live: LiveIndex, metrics: Metrics, options: WriteOptions) -> None:
        self._directory, self._live, self._metrics, self._options = directory, live, metrics, options

    def commit(self, jobs: list[WriteJob]) -> None:
        """Makes the changes of these jobs and settles them; those that fail, fail alone where they are at fault."""
        try:
            if jobs:
                self._commit_after_others(jobs)
        except (NotEncodableError, SourceError) as error:
            if len(jobs) == 1:
                jobs[0].settle(InvalidRequestError(str(error)))
                return
            # One of these is at fault; alone, each fails or succeeds for itself.
            for job in jobs:
                self.commit([job])
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
        except (OSError, IndexDirectoryError, StorageError, InsufficientCacheError) as error:
            logger.exception("writes of %d requests failed", len(jobs))
            _fail_all(jobs, _write_failure(error))
        except Exception as error:
            # Whatever one write raises, the thread must live on for the others.
            logger.exception("writes of %d requests failed", len(jobs))
            _fail_all(jobs, GaussearchError(f"the write failed: {error!r}"))

    def _commit_after_others(self, jobs: list[WriteJob]) -> None:
        """`_commit`, on what another machine has published where that came first."""
        last: PublicationConflictError | None = None
        for _ in range(CONFLICTS):
            try:
                self._commit(jobs)
                return
            except PublicationConflictError as error:
                # Nothing of these has been published, and none of these has been told anything.
                last = error
                logger.warning("writes of %d requests are made again: %s", len(jobs), error)
        raise WriteFailedError(
            f"others have published {CONFLICTS} times meanwhile: repeat it, with the same Idempotency-Key if any",
            headers={"Retry-After": "5"},
        ) from last

    def _commit(self, jobs: list[WriteJob]) -> None:
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
        self._metrics.write(len(new), sum(job.rows for job in new), time.perf_counter() - started)
        for job in new:
            job.settle(Done(counts[id(job)], generation))
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

    def _apply(self, writer: IndexWriter, new: list[WriteJob]) -> dict[int, dict[str, int]]:
        """Makes the changes of these jobs in their order; what each counts, by its id()."""
        for job in new:
            if job.change.documents is not None:
                writer.check(job.change.documents)
        touched = pa.array(dict.fromkeys(name for job in new for name in job.ids), pa.string())
        there = set(writer.remove(touched)) if len(touched) else set()
        last: dict[str, WriteJob] = {}
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


def _new_and_again(
    jobs: list[WriteJob], known: Mapping[str, AppliedRequest]
) -> tuple[list[WriteJob], list[tuple[WriteJob, RequestKey]]]:
    """The jobs that are to be done, and those whose Idempotency-Key has come before: in an earlier generation, or with
    another of them."""
    new: list[WriteJob] = []
    again: list[tuple[WriteJob, RequestKey]] = []
    seen = set(known)
    for job in jobs:
        key = job.change.key
        if key is not None and key.key in seen:
            again.append((job, key))
        else:
            new.append(job)
            seen |= {key.key} if key is not None else set()
    return new, again


def _applied(jobs: list[WriteJob], counts: dict[int, dict[str, int]], generation: int) -> list[AppliedRequest]:
    return [
        AppliedRequest(
            key=job.change.key.key, request=job.change.key.request, generation=generation, answer=counts[id(job)]
        )
        for job in jobs
        if job.change.key is not None
    ]


def _answer_again(job: WriteJob, key: RequestKey, before: AppliedRequest) -> None:
    try:
        job.settle(answered_before(key, before))
    except IdempotencyMismatchError as error:
        job.settle(error)


def answered_before(key: RequestKey, before: AppliedRequest) -> Done:
    """What is answered to a request whose key has come before; raises IdempotencyMismatchError where that came with
    another request."""
    if key.request != before.request:
        raise IdempotencyMismatchError("this Idempotency-Key has come with another request: use a new one")
    return Done(before.answer, before.generation, replayed=True)


def _write_failure(error: Exception) -> WriteFailedError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "there is no space left for it" if full else "the index could not be written"
    return WriteFailedError(
        f"{why}; the log says more under this request id. Repeat it, with the same Idempotency-Key if it has one",
        headers={"Retry-After": "10"},
    )


def _fail_all(jobs: list[WriteJob], error: GaussearchError) -> None:
    hand_over((job.future, error) for job in jobs)
