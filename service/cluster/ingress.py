"""The index of a cluster, as service.live_index takes it up: a generation is opened by all shards, then searched with,
and only then served."""

import asyncio
from collections.abc import Sequence

from index import Searcher
from index.current import named_by
from index.errors import CorruptIndexError
from index.records import ModelRecord
from service.cluster.cluster_searcher import ClusterSearcher
from service.cluster.scatter import Scatter, ShardHandle
from service.cluster.sharding import shards_of
from service.live_index import require_sound
from service.settings import ServiceSettings

__all__ = ["Cluster"]

OPENING_SECONDS = 600.0
"""How long processes have to open a generation before it is served without those that have not: they open it when
they are asked."""


class Cluster:
    """The shards that an ingress asks, and how many batches it may have them search at once."""

    def __init__(self, shards: Sequence[ShardHandle], loop: asyncio.AbstractEventLoop, *, max_batches: int) -> None:
        """`loop` is the event loop on which shards are asked."""
        self._scatter = Scatter(shards, loop)
        self.max_batches = max_batches

    def open(
        self, settings: ServiceSettings, _known: Searcher | None = None, model: ModelRecord | None = None
    ) -> Searcher:
        """As service.live_index.load, of all shards; shards know what they have open.

        Blocks until every process of every shard that lives has the live generation open.
        """
        directory = settings.directory
        token = directory.current_token()
        named = named_by(token)
        if named is None or directory.token(named.generation) != token:
            raise CorruptIndexError(f"{settings.index}: CURRENT does not name a generation that is kept")
        manifest = directory.generation(named.generation)
        shards = shards_of(manifest, len(self._scatter.shards))
        self._scatter.warm(token, [shard.number for shard in shards if shard.places], OPENING_SECONDS)
        searcher = ClusterSearcher(directory.name, token, manifest, shards, self._scatter)
        require_sound(searcher, str(settings.index), model)
        return searcher
