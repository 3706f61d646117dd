"""Encodes the texts of requests with a model, on one thread, in batches of its own, behind a bounded queue.

It is a queue of its own, before that of searches: a model takes milliseconds for what a search takes one, and searches
with Gaussians must not wait for it. Requests take turns: a batch has some texts of each that waits, so that one of
hundreds does not keep the others, and what nobody waits for any more is not encoded, begun or not.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from index import GaussearchError, Gaussians
from index.errors import InvalidGaussiansError
from index.records import ModelRecord
from index.text import Role, TextEncoder, load_encoder
from service.jobs import Job, JobThread
from service.metrics import Metrics
from service.problems import NoModelError, NotReadyError
from service.settings import ServiceSettings

__all__ = ["Encoding", "located"]

logger = logging.getLogger("gaussearch.encoding")

TOGETHER = 32
"""Texts that are encoded together at most: a few tenths of a second on two cores, which is how long a request that has
just come waits for those before it, and how long a service that is to end waits for the last."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Job(Job[Gaussians]):
    """The texts of one request; `rows` of them are not begun yet."""

    texts: Sequence[str]
    role: Role
    made: list[Gaussians] = field(default_factory=list)


class Encoding(JobThread[_Job]):
    """An encoding thread and its queue; without a model in the settings, nothing but the error that says so."""

    DOING = "encoding"
    WAITING = "texts are waiting"
    LATE = "the deadline passed before the texts were encoded"

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        super().__init__("gaussearch-encode", settings.queue_rows, metrics)
        self._settings = settings
        self._encoder: TextEncoder | None = None

    @property
    def model(self) -> ModelRecord | None:
        """The model; None where there is none, or it is not loaded yet."""
        return None if self._encoder is None else self._encoder.record

    @property
    def alive(self) -> bool:
        """Whether what there is to do is done: the thread lives, or there is none to live."""
        return self._encoder is None or super().alive

    def load(self) -> None:
        """Loads the model, if there is one, and starts to encode. Blocks; raises what load_encoder raises."""
        settings = self._settings
        if settings.model is None:
            return
        started = time.monotonic()
        encoder = load_encoder(settings.model, device=settings.device, precision=settings.model_precision)
        # Nothing is submitted before there is an encoder, so that the thread begins by waiting.
        self.start()
        self._encoder = encoder
        logger.info("encoding with %s, loaded in %.2f s", encoder.record.name, time.monotonic() - started)

    def submit(self, texts: Sequence[str], role: Role, deadline: float) -> "asyncio.Future[Gaussians]":
        """Queues texts and returns the future of their Gaussians (n, k); cancel it to drop them.

        `deadline` is a time.monotonic(). Raises NoModelError, OverloadedError where the queue has no room for them,
        unless it is empty, and NotReadyError while the model is loaded, and at the end. Call from an event loop.
        """
        if self._settings.model is None:
            raise NoModelError(
                "a text is read by a model, and this service has none: start it with --model, or send mean and variance"
            )
        if self._encoder is None:
            raise NotReadyError("the model is being loaded", headers={"Retry-After": "1"})
        job = _Job(deadline=deadline, rows=len(texts), texts=texts, role=role)
        with self._changed:
            self._queue(job)
            self._changed.notify()
        return job.future

    def _work(self) -> None:
        while turns := self._take():
            self._encode(turns)
            # While nothing comes, texts of requests that have been answered must not be kept.
            turns.clear()
            self._batch.clear()

    def _take(self) -> list[tuple[_Job, range]]:
        """The texts of the next batch, some of each request that waits and has the role of the first; nothing once
        there is an end to it. What is left of a request stays in the queue, behind the others."""
        with self._changed:
            while True:
                self._drop_abandoned()
                if self._jobs:
                    break
                if self._closing:
                    return []
                self._changed.wait()
            role = self._jobs[0].role
            alike = [job for job in self._jobs if job.role is role][:TOGETHER]
            room = TOGETHER
            turns: list[tuple[_Job, range]] = []
            # Those with few texts first: what they leave of their share is for the others.
            for place, job in enumerate(sorted(alike, key=lambda each: each.rows)):
                begun = len(job.texts) - job.rows
                rows = range(begun, begun + min(job.rows, room // (len(alike) - place)))
                turns.append((job, rows))
                room -= len(rows)
                job.rows -= len(rows)
                self._jobs.remove(job)
                if job.rows:
                    self._jobs.append(job)
            self._set_waiting(sum(job.rows for job in self._jobs))
            self._batch = [job for job, _ in turns]
            return turns

    def _encode(self, turns: list[tuple[_Job, range]]) -> None:
        started = time.perf_counter()
        try:
            made = self._gaussians(turns)
        except Exception as error:  # noqa: BLE001 (told to whoever asked, and logged where it is a bug)
            # Whatever one batch raises, the thread must live on for the others; and one of these may be at fault alone.
            if len(turns) > 1:
                for turn in turns:
                    self._encode([turn])
                return
            self._fail(*turns[0], error)
        else:
            seconds, first = time.perf_counter() - started, 0
            for job, rows in turns:
                job.made.append(made[first : first + len(rows)])
                first += len(rows)
                if sum(map(len, job.made)) == len(job.texts):
                    job.settle(Gaussians.concatenate(job.made))
            self._metrics.encoded(len(made), seconds)
            self._took(seconds, len(made))

    def _fail(self, job: _Job, rows: range, error: Exception) -> None:
        """Answers a request of which these texts could not be encoded, and encodes no more of it."""
        with self._changed, contextlib.suppress(ValueError):
            self._jobs.remove(job)
        if isinstance(error, InvalidGaussiansError):
            job.settle(located(error, rows))
        elif isinstance(error, GaussearchError):
            job.settle(error)
        else:
            logger.error("texts of a request could not be encoded", exc_info=error)
            job.settle(GaussearchError(f"the encoding failed: {error!r}"))

    def _gaussians(self, turns: list[tuple[_Job, range]]) -> Gaussians:
        if self._encoder is None:
            raise NotReadyError("the model is being loaded")
        return self._encoder.encode([job.texts[row] for job, rows in turns for row in rows], turns[0][0].role)


def located(error: InvalidGaussiansError, rows: Sequence[int]) -> InvalidGaussiansError:
    """The same error of rows that are called otherwise where they come from: its row 0 is `rows[0]` there."""
    if error.row is None:
        return error
    row = rows[error.row]
    said = str(error).removeprefix(f"row {error.row}")
    return InvalidGaussiansError(f"row {row}{said}", row=row, component=error.component)
