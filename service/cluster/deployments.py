"""The deployments of Ray Serve: one for each shard, and the one that takes requests."""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from index import Document, Explanation, GaussearchError
from index.documents import Numbers
from index.selection import DocumentFilter
from service.app import create_app
from service.cluster.ingress import Cluster
from service.cluster.messages import Answer, Asked, Opened
from service.cluster.options import ServeOptions
from service.cluster.ray_handles import RayShard
from service.cluster.shard import Generation, ShardServer, settled
from service.keys import Keys
from service.logs import configure_logging
from service.problems import NotReadyError

__all__ = ["Ingress", "ShardReplica"]

logger = logging.getLogger("gaussearch.shard")

Outcome = TypeVar("Outcome")

WAITING_THREADS = 256
"""Threads of an ingress that wait for shards: as many documents and explanations may be asked for at a time, while a
shard does not answer, before they keep others waiting."""
OPEN = 2
"""Generations that a process has open at most: the one that is served and the next one. What is searched keeps a third
until it has been."""


class ShardReplica:
    """One process of a shard. Ray Serve knows which of them have which generation open, and sends searches there."""

    async def __init__(self, options: ServeOptions, number: int, shards: int, threads: int) -> None:  # type: ignore[misc]
        """Returns once the live generation is open, or cannot be: from then on it is asked."""
        configure_logging(options.log_level, options.log_format)
        torch.set_num_threads(1)
        self._server = ShardServer(options, number, shards, threads)
        opened = None
        while opened != (current := await asyncio.to_thread(self._server.current)):
            try:
                await self._opened(current)
            except GaussearchError:
                # The one before it may be served, which is opened when it is asked for.
                logger.exception("the live generation cannot be opened")
            opened = current

    @serve.multiplexed(max_num_models_per_replica=OPEN)  # type: ignore[untyped-decorator]
    async def _generation(self, token: str) -> Generation:
        return await asyncio.to_thread(self._server.open, token)

    async def _opened(self, token: str) -> Generation:
        # Whoever gives up waiting does not end it: a thread goes on anyway, and who asks next would begin a second one
        # beside it, with memory of its own.
        its: Generation = await asyncio.shield(asyncio.ensure_future(self._generation(token)))
        return its

    async def _of_request(self, work: Callable[[Generation], Awaitable[Outcome]]) -> Outcome | GaussearchError:
        async def opened_and_done() -> Outcome:
            return await work(await self._opened(serve.get_multiplexed_model_id()))

        return await settled(opened_and_done)

    async def current(self) -> str:
        """As ShardServer."""
        return await asyncio.to_thread(self._server.current)

    async def warm(self, token: str) -> None:
        """Opens a generation."""
        await self._opened(token)

    async def describe(self) -> Opened | GaussearchError:
        """As ShardServer."""

        async def described(generation: Generation) -> Opened:
            return self._server.describe(generation)

        return await self._of_request(described)

    async def search(self, asked: Asked) -> Answer | GaussearchError:
        """As ShardServer."""
        return await self._of_request(functools.partial(self._server.search, asked=asked))

    async def matching(self, wanted: DocumentFilter, seconds: float) -> int | GaussearchError:
        """As ShardServer."""
        return await self._of_request(functools.partial(self._server.matching, wanted=wanted, seconds=seconds))

    async def document(self, document_id: str) -> Document | GaussearchError | None:
        """As ShardServer."""
        return await self._of_request(functools.partial(self._server.document, document_id=document_id))

    async def payloads(self, documents: Numbers) -> list[dict[str, Any]] | GaussearchError:
        """As ShardServer."""
        return await self._of_request(functools.partial(self._server.payloads, documents=np.array(documents)))

    async def explain(
        self, query: tuple[torch.Tensor, torch.Tensor], documents: Numbers
    ) -> list[Explanation] | GaussearchError:
        """As ShardServer."""
        return await self._of_request(
            functools.partial(self._server.explain, query=query, documents=np.array(documents))
        )


@serve.ingress()
class Ingress:
    """The application of service.app, over the shards."""

    async def __init__(self, options: ServeOptions, keys: Keys, *shards: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        """Returns once the index can be searched; raises what Cluster.open raises."""
        configure_logging(options.log_level, options.log_format)
        torch.set_num_threads(1)
        self._options, self._keys = options, keys
        self._failure: Exception | None = None
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(WAITING_THREADS, "gaussearch-wait"))
        self._cluster = Cluster(
            [RayShard(handle, number) for number, handle in enumerate(shards)],
            loop,
            max_batches=options.max_batches,
        )
        await asyncio.to_thread(self._cluster.open, options)

    def __serve_build_asgi_app__(self) -> FastAPI:
        self.app_of_replica = create_app(self._options, self._note_failure, self._keys, self._cluster)
        return self.app_of_replica

    def _note_failure(self, error: Exception) -> None:
        self._failure = error

    async def check_health(self) -> None:
        """What Ray Serve asks; raises NotReadyError where the index could not be loaded or a thread has died, and the
        process is to be replaced."""
        if self._failure is not None:
            raise NotReadyError(f"the index could not be loaded: {self._failure}")
        self.app_of_replica.state.gaussearch.require_alive()
