"""The index that is being served: loaded in the background, checked by a search, replaced when a newer one appears."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable

from index import GaussearchError, LocalSearcher, Searcher
from index.cores import available_cores
from index.records import ModelRecord
from index.text.matching import require_model
from service.metrics import Metrics
from service.problems import NotReadyError
from service.settings import ServiceSettings

__all__ = ["LiveIndex", "load"]

logger = logging.getLogger("gaussearch.index")

RETRY_SECONDS = 30.0
"""How long after a failure the same generation is tried again: what failed may have been memory, not the index."""


def load(settings: ServiceSettings, known: Searcher | None = None, model: ModelRecord | None = None) -> Searcher:
    """Opens the live generation and answers a search with it before anyone else may; `known` is the one before it.

    Raises the errors of LocalSearcher, ModelMismatchError where it is not of the `model` that reads words, and
    GaussearchError where the search does not find what it must.
    """
    threads = settings.threads or max(1, available_cores() // settings.workers)
    searcher = LocalSearcher(
        settings.directory,
        device=settings.device,
        threads=threads,
        verify=settings.verify,
        precision=settings.precision,
        known=known if isinstance(known, LocalSearcher) else None,
    )
    of_index = searcher.manifest.model
    require_model(of_index, model, str(settings.index), reads=True, otherwise="serve it without --model")
    first = searcher.first_document()
    if first is None:
        # Everything has been deleted, and may be written again.
        return searcher
    (ranking,) = searcher.search(first.gaussian, top_k=1)
    # Codes may miss any document, so that only a score that no document can have shows that something is wrong.
    if (ranking.scores[0] != 0.0) if searcher.manifest.codes is None else not -math.inf < ranking.scores[0] <= 0.0:
        raise GaussearchError(
            f"{settings.index}: a search for document {first.id!r} itself scored {ranking.scores[0]} instead of 0"
        )
    return searcher


class LiveIndex:
    """Holds the searcher that requests use. A searcher that has been replaced lives on until its last request ends."""

    def __init__(
        self, settings: ServiceSettings, metrics: Metrics, model: Callable[[], ModelRecord | None] = lambda: None
    ) -> None:
        """`model` is asked for the one that reads words."""
        self._model = model
        self._settings = settings
        self._metrics = metrics
        self._directory = settings.directory
        self._searcher: Searcher | None = None
        self._token = self._served = ""
        self._retry_at = math.inf
        # A writer's generation and one that is looked for must not overtake each other.
        self._turn = threading.Lock()
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

    def local(self) -> LocalSearcher:
        """The live searcher, of an index that lies here; raises NotReadyError where that is not so."""
        searcher = self.searcher()
        if not isinstance(searcher, LocalSearcher):
            raise NotReadyError("this index is not written to here")
        return searcher

    def is_current(self, searcher: Searcher) -> bool:
        """Whether this is the searcher in use, of what CURRENT names now. By its token: a folder that takes the index's
        place may have generations of the same numbers. Blocks; raises what `current_token` raises, and OSError."""
        token = self._directory.current_token()
        return token == self._served and searcher is self._searcher

    async def load_first(self) -> None:
        """Loads the index; raises what `load` raises, since there is nothing to fall back on."""
        await asyncio.to_thread(self.reload)

    async def watch(self) -> None:
        """Looks for new generations for ever. One that cannot be served is reported, and the last good one stays."""
        while True:
            await asyncio.sleep(self._settings.reload_seconds)
            try:
                if await asyncio.to_thread(self.reload):
                    self._metrics.reloads.inc()
            except (GaussearchError, OSError, MemoryError) as error:
                self._refuse(error)
            except Exception as error:
                # CUDA and FAISS, for one, run out of memory with a RuntimeError. Nothing may end the watch.
                logger.exception("a new generation could not be loaded")
                self._refuse(error)

    def reload(self) -> bool:
        """Takes up the live generation of the directory, unless it is in use; whether it did. Blocks; safe to call from
        any thread. Raises what `load` raises."""
        with self._turn:
            started = time.monotonic()
            token = self._directory.current_token()
            if token == self._token == self._served:
                # What could not be looked at before could be now, and is what is served.
                self.last_error = None
                return False
            if token == self._token and started < self._retry_at:
                return False
            self._take_up(token, started)
            return True

    def catch_up(self) -> None:
        """Returns once the live generation of the directory is served; tries to take it up even where that just failed.

        Who builds on a generation has to know that it is in order. Blocks, and raises, as `reload`; what it raises is
        reported, too.
        """
        try:
            with self._turn:
                token = self._directory.current_token()
                if token != self._served:
                    self._take_up(token, time.monotonic())
        except Exception as error:
            self._refuse(error)
            raise

    def _take_up(self, token: str, started: float) -> None:
        # In case it cannot be loaded; once it has been, there is nothing to try again.
        self._token, self._retry_at = token, started + RETRY_SECONDS
        searcher = load(self._settings, self._searcher, self._model())
        self._retry_at = math.inf
        manifest = searcher.manifest
        # Before the searcher: who is answered by the new generation is not told of the last one's state.
        self.last_error = None
        self._metrics.generation.set(manifest.generation)
        self._metrics.documents.set(manifest.documents)
        # For `is_current`, in another thread: no searcher stands beside the token of another.
        self._served = ""
        self._searcher = searcher
        self._served = token
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
