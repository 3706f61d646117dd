"""One shard: the segments that are its own, of the generations that are asked for, and what is found there.

It knows nothing of Ray: service.cluster.deployments makes a deployment of it. What goes wrong because of a request is
returned rather than raised, since what is raised in another process comes back as an error of Ray's.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import torch

from index import Document, Explanation, GaussearchError, Gaussians, LocalSearcher
from index.current import named_by
from index.documents import Numbers
from index.errors import CorruptIndexError, DocumentNotFoundError, SearchStoppedError
from index.selection import DocumentFilter
from service.batching import Batcher
from service.cluster.messages import Answer, Asked, Opened
from service.cluster.sharding import shards_of
from service.filtering import FilterRoom
from service.metrics import Metrics
from service.problems import DeadlineExceededError, NotReadyError
from service.searching import Found
from service.settings import ServiceSettings

__all__ = ["Generation", "ShardServer", "settled"]

logger = logging.getLogger("gaussearch.shard")

Outcome = TypeVar("Outcome")

PATIENCE = 5.0
"""Seconds that searches of a generation which makes room for another have to finish."""


class Generation:
    """What a shard has of one generation, open, and the thread that searches it; nothing where it has no segments."""

    def __init__(self, token: str, searcher: LocalSearcher | None, settings: ServiceSettings) -> None:
        self.token, self.searcher = token, searcher
        self.batcher: Batcher | None = None
        if searcher is not None:
            its = searcher
            self.batcher = Batcher(
                lambda: its, Metrics(), max_rows=settings.max_batch_rows, queue_rows=settings.queue_rows
            )
            self.batcher.start()

    def close(self) -> None:
        """Ends its thread, once what it has been asked is done."""
        batcher, self.batcher = self.batcher, None
        if batcher is not None:
            batcher.close(PATIENCE)

    def __del__(self) -> None:
        """What Ray Serve calls where it makes room for another generation."""
        self.close()


class ShardServer:
    """Shard `number` of so many `shards` of the index of these settings."""

    def __init__(self, settings: ServiceSettings, number: int, shards: int, threads: int | None) -> None:
        """`threads` is how many cores one search uses; all if None."""
        self._settings, self._number, self._shards, self._threads = settings, number, shards, threads
        self._directory = settings.directory
        self._last: LocalSearcher | None = None
        self._filters = FilterRoom(Metrics())

    def close(self) -> None:
        """Evaluates no more filters."""
        self._filters.close()

    def current(self) -> str:
        """The token of the live generation; raises what IndexDirectory.current_token raises."""
        return self._directory.current_token()

    def open(self, token: str) -> Generation:
        """Opens what it has of the generation of a token; what the one before it has open already is shared.

        Raises the errors of LocalSearcher, and CorruptIndexError for a token that is not that of a generation which is
        kept.
        """
        started = time.monotonic()
        named = named_by(token)
        if named is None or self._directory.token(named.generation) != token:
            raise CorruptIndexError(f"{self._settings.index} has no generation of the token {token!r}")
        manifest = self._directory.generation(named.generation)
        mine = shards_of(manifest, self._shards)[self._number]
        searcher: LocalSearcher | None = None
        if mine.places:
            searcher = LocalSearcher(
                self._directory,
                device=self._settings.device,
                threads=self._threads,
                verify=self._settings.verify,
                precision=self._settings.precision,
                manifest=manifest,
                known=self._last,
                segments=mine.segments,
            )
            self._last = searcher
        logger.info(
            "shard %d of %d has generation %d: %d documents in %d segments, opened in %.2f s",
            self._number,
            self._shards,
            manifest.generation,
            mine.documents,
            len(mine.places),
            time.monotonic() - started,
        )
        return Generation(token, searcher, self._settings)

    def describe(self, generation: Generation) -> Opened:
        """What there is of a generation."""
        searcher = generation.searcher
        if searcher is None:
            return Opened(0, frozenset(), "cpu", "float32", None)
        device = str(searcher.device)
        return Opened(len(searcher), searcher.fields, device, searcher.precision, searcher.first_document())

    async def search(self, generation: Generation, asked: Asked) -> Answer:
        """What is found there; raises what LocalSearcher.search and Batcher.submit raise, and DeadlineExceededError."""
        searcher, batcher = _searched(generation)
        deadline = time.monotonic() + asked.seconds
        async with self._filters.enter(searcher, asked.filter, deadline):
            found = await batcher.submit(
                # Copied, for what has come from another process is not to be written to, and torch wants that.
                Gaussians.unchecked(torch.from_numpy(asked.means.copy()), torch.from_numpy(asked.variances.copy())),
                asked.top_k,
                asked.candidates,
                deadline,
                nprobe=asked.nprobe if _has_lists(searcher) else None,
                exact=asked.exact,
                filter=asked.filter,
                with_payload=asked.with_payload,
            )
        if not asked.with_payload:
            return Answer(found.rankings, found.matched)
        return await asyncio.to_thread(_with_payload, found)

    async def matching(self, generation: Generation, wanted: DocumentFilter, seconds: float) -> int:
        """How many documents a filter lets through; raises as LocalSearcher.matching, and DeadlineExceededError."""
        searcher, _ = _searched(generation)
        until = time.monotonic() + seconds
        try:
            return await asyncio.to_thread(searcher.matching, wanted, stop=lambda: time.monotonic() >= until)
        except SearchStoppedError as error:
            raise DeadlineExceededError("the deadline passed before the filter was evaluated") from error

    async def document(self, generation: Generation, document_id: str) -> Document | None:
        """The document of this id, if it is here."""
        searcher, _ = _searched(generation)
        try:
            return await asyncio.to_thread(searcher.document, document_id)
        except DocumentNotFoundError:
            return None

    async def payloads(self, generation: Generation, documents: Numbers) -> list[dict[str, Any]]:
        """The payload of documents (m,), in their order."""
        searcher, _ = _searched(generation)
        return await asyncio.to_thread(searcher.payloads, documents)

    async def explain(
        self, generation: Generation, query: tuple[torch.Tensor, torch.Tensor], documents: Numbers
    ) -> list[Explanation]:
        """The parts of KL between a query, its mean and variance (1, k) each, and documents (m,), in their order."""
        searcher, _ = _searched(generation)
        return await asyncio.to_thread(searcher.explain, Gaussians.unchecked(*query), documents)


async def settled(work: Callable[[], Awaitable[Outcome]]) -> Outcome | GaussearchError:
    """What work comes to: its result, or the error that says what is wrong with it."""
    try:
        return await work()
    except GaussearchError as error:
        return error


def _searched(generation: Generation) -> tuple[LocalSearcher, Batcher]:
    if generation.searcher is None:
        raise GaussearchError("a shard without documents was asked for some")
    if generation.batcher is None:
        raise NotReadyError("the generation has made room for newer ones: try again", headers={"Retry-After": "1"})
    return generation.searcher, generation.batcher


def _has_lists(searcher: LocalSearcher) -> bool:
    codes = searcher.manifest.codes
    return codes is not None and codes.list_count is not None


def _with_payload(found: Found) -> Answer:
    """An answer with the payload of what was found, as the search thread fetched it, or fetched here where it is of
    many."""
    shown = np.unique(np.concatenate([ranking.documents for ranking in found.rankings]))
    if found.payloads is None:
        payloads = found.searcher.payloads(shown)
    else:
        payloads = [found.payloads[number] for number in shown.tolist()]
    return Answer(found.rankings, found.matched, shown, payloads)
