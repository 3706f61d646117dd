"""What one application owns, for its routes to use."""

from dataclasses import dataclass
from typing import Any

from service.batching import Batcher
from service.bodies import BodyRoom
from service.encoding import Encoding
from service.filtering import FilterRoom
from service.jobs import JobThread
from service.keys import Keys
from service.live_index import LiveIndex
from service.metrics import Metrics
from service.problems import NotReadyError, WritesDisabledError
from service.settings import ServiceSettings
from service.writing import Writer

__all__ = ["State"]


@dataclass(frozen=True, slots=True)
class State:
    """Hangs on `app.state.gaussearch`."""

    settings: ServiceSettings
    keys: Keys
    version: str
    metrics: Metrics
    live: LiveIndex
    batcher: Batcher
    bodies: BodyRoom
    filters: FilterRoom
    encoding: Encoding
    writer: Writer
    in_cluster: bool
    """Whether shards of a cluster search."""

    @property
    def takes_writes(self) -> bool:
        """Whether there is a thread that writes: not in a cluster, and for those with a key alone."""
        return bool(self.keys.admin) and not self.in_cluster

    def require_writable(self) -> None:
        """Raises WritesDisabledError where the index is not changed over HTTP."""
        if self.in_cluster:
            raise WritesDisabledError(
                "a cluster takes no changes over HTTP: change the index with the commands (gaussearch add, delete, "
                "compact, build), and the shards take it up"
            )

    def require_alive(self) -> None:
        """Raises NotReadyError where a thread has died that searches, encodes texts or writes."""
        threads: list[JobThread[Any]] = [self.batcher, self.encoding]
        if self.takes_writes:
            threads.append(self.writer)
        for thread in threads:
            if not thread.alive:
                raise NotReadyError(f"the {thread.DOING} thread has died: restart the process")
