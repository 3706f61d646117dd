"""What one application owns, for its routes to use."""

from dataclasses import dataclass

from service.batching import Batcher
from service.bodies import BodyRoom
from service.encoding import Encoding
from service.filtering import FilterRoom
from service.keys import Keys
from service.live_index import LiveIndex
from service.metrics import Metrics
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
