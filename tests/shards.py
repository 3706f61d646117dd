"""Shards in this process, for tests of what is above them: they answer, are lost, do not answer, as a test says."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index import IndexDirectory
from service.app import create_app
from service.cluster.cluster_searcher import ClusterSearcher
from service.cluster.ingress import Cluster
from service.cluster.options import ServeOptions
from service.cluster.scatter import LostError, Question
from service.cluster.shard import Generation, ShardServer, settled
from tests.serving import PATIENCE, Client, wait_until

__all__ = ["FakeCluster", "FakeShard", "cluster_client", "fake_cluster"]


@dataclass(eq=False)
class FakeShard:
    """A service.cluster.scatter.ShardHandle over a ShardServer of this process."""

    server: ShardServer
    generations: dict[str, Generation] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    lost: int = 0
    """How many more calls find their process dead."""
    stuck: bool = False
    """Whether it answers nothing of what it is asked from now on."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None
    fails: Exception | None = None
    """What it raises in place of an answer."""

    async def ask(self, token: str, question: Question) -> Any:
        method, *arguments = question
        self.asked.append(method)
        if self.lost:
            self.lost -= 1
            raise LostError("the process has died")
        if self.fails is not None:
            raise self.fails
        self.loop = asyncio.get_running_loop()
        if self.stuck:
            await self.released.wait()
        generation = self.opened(token)
        if method == "describe":
            return self.server.describe(generation)
        return await settled(lambda: getattr(self.server, method)(generation, *arguments))

    def release(self) -> None:
        """Answers what it has been asked all the same."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.released.set)

    async def warm(self, token: str) -> None:
        self.opened(token)

    def opened(self, token: str) -> Generation:
        if token not in self.generations:
            self.generations[token] = self.server.open(token)
        return self.generations[token]


@dataclass(frozen=True, eq=False)
class FakeCluster:
    """Shards, and a Cluster of them."""

    options: ServeOptions
    shards: list[FakeShard]
    cluster: Cluster

    def searcher(self) -> ClusterSearcher:
        """A searcher of the live generation."""
        opened = self.cluster.open(self.options)
        assert isinstance(opened, ClusterSearcher)
        return opened


@contextlib.contextmanager
def fake_cluster(
    index: IndexDirectory | str, count: int, *, machines: Path | None = None, **settings: Any
) -> Iterator[FakeCluster]:
    """A cluster of so many shards, asked on an event loop of its own; each has a cache in the folder `machines`."""
    options = ServeOptions(index=index if isinstance(index, str) else index.path, **settings)
    each = [options.model_copy(update={"cache": machines and machines / str(number)}) for number in range(count)]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    shards = [FakeShard(ShardServer(its, number, count, 1)) for number, its in enumerate(each)]
    try:
        yield FakeCluster(options, shards, Cluster(shards, loop, max_batches=options.max_batches))
    finally:
        for shard in shards:
            for generation in shard.generations.values():
                generation.close()
            shard.server.close()
        asyncio.run_coroutine_threadsafe(_ended(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()


async def _ended() -> None:
    """Nothing is left on the loop that a test has given up on."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


@contextlib.contextmanager
def cluster_client(fakes: FakeCluster) -> Iterator[Client]:
    """A client of the application over a cluster, ready."""
    client = Client(create_app(fakes.options, cluster=fakes.cluster))
    try:
        wait_until(lambda: client.state.live.ready)
        yield client
    finally:
        client.close()
