"""The index that is being served: loaded in the background, checked by a search, replaced when a newer one appears."""

import asyncio
import logging
import math
import time

from index import GaussearchError, Gaussians, IndexDirectory, LocalSearcher, Searcher
from index.cores import available_cores
from service.metrics import Metrics
from service.problems import NotReadyError
from service.settings import ServiceSettings

__all__ = ["LiveIndex", "load"]

logger = logging.getLogger("gaussearch.index")

RETRY_SECONDS = 30.0
"""How long after a failure the same generation is tried again: what failed may have been memory, not the index."""


def load(settings: ServiceSettings) -> Searcher:
    """Opens the live generation and answers a search with it before anyone else may.

    Raises the errors of LocalSearcher, and GaussearchError where the search does not find what it must.
    """
    threads = settings.threads or max(1, available_cores() // settings.workers)
    searcher = LocalSearcher(
        IndexDirectory(settings.index),
        device=settings.device,
        threads=threads,
        verify=settings.verify,
        precision=settings.precision,
    )
    first = searcher.document_at(0)
    (ranking,) = searcher.search(Gaussians(first.gaussian.means, first.gaussian.variances), top_k=1)
    # Codes may miss any document, so that only a score that no document can have shows that something is wrong.
    if (ranking.scores[0] != 0.0) if searcher.manifest.codes is None else not -math.inf < ranking.scores[0] <= 0.0:
        raise GaussearchError(
            f"{settings.index}: a search for document {first.id!r} itself scored {ranking.scores[0]} instead of 0"
        )
    return searcher


class LiveIndex:
    """Holds the searcher that requests use. A searcher that has been replaced lives on until its last request ends."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._directory = IndexDirectory(settings.index)
        self._searcher: Searcher | None = None
        self._token = ""
        self._retry_at = math.inf
        self.failures = 0
        self.last_error: str | None = None

    @property
    def ready(self) -> bool:
        """Whether there is an index to search."""
        return self._searcher is not None

    def searcher(self) -> Searcher:
        """The live searcher; raises NotReadyError before the first is loaded."""
        if self._searcher is None:
            raise NotReadyError("the index is being loaded", headers={"Retry-After": "1"})
        return self._searcher

    async def load_first(self) -> None:
        """Loads the index; raises what `load` raises, since there is nothing to fall back on."""
        started = time.monotonic()
        self._token = await asyncio.to_thread(self._directory.current_token)
        self._take_up(await asyncio.to_thread(load, self._settings), started)

    async def watch(self) -> None:
        """Looks for new generations for ever. One that cannot be served is reported, and the last good one stays."""
        while True:
            await asyncio.sleep(self._settings.reload_seconds)
            started = time.monotonic()
            try:
                token = await asyncio.to_thread(self._directory.current_token)
                if token == self._token and started < self._retry_at:
                    continue
                self._token = token
                self._take_up(await asyncio.to_thread(load, self._settings), started)
                self._metrics.reloads.inc()
            except (GaussearchError, OSError, MemoryError) as error:
                self._refuse(error)
            except Exception as error:
                # CUDA and FAISS, for one, run out of memory with a RuntimeError. Nothing may end the watch.
                logger.exception("a new generation could not be loaded")
                self._refuse(error)

    def _take_up(self, searcher: Searcher, started: float) -> None:
        self._searcher = searcher
        self._retry_at = math.inf
        self.last_error = None
        manifest = searcher.manifest
        self._metrics.generation.set(manifest.generation)
        self._metrics.documents.set(manifest.documents)
        logger.info(
            "serving generation %d of %s: %d documents, k=%d, %s, %s, loaded in %.2f s",
            manifest.generation,
            searcher.name,
            manifest.documents,
            manifest.k,
            manifest.kind,
            manifest.encoding,
            time.monotonic() - started,
        )

    def _refuse(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        message = f"{type(error).__name__}: {error}"
        if message == self.last_error:
            return
        self.last_error = message
        self.failures += 1
        self._metrics.reload_failures.inc()
        logger.error("a new generation cannot be served, the last good one stays: %s", message)
