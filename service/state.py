"""What one application owns, for its routes to use."""

from dataclasses import dataclass

from service.batching import Batcher
from service.live_index import LiveIndex
from service.metrics import Metrics
from service.settings import ServiceSettings

__all__ = ["State"]


@dataclass(frozen=True, slots=True)
class State:
    """Hangs on `app.state.gaussearch`."""

    settings: ServiceSettings
    keys: list[bytes]
    version: str
    metrics: Metrics
    live: LiveIndex
    batcher: Batcher
