"""How much of the bodies of all requests may be in memory while they arrive."""

from types import TracebackType
from typing import Self

from service.metrics import Metrics
from service.problems import OverloadedError

__all__ = ["BodyRoom"]


class BodyRoom:
    """Counts the bytes of the bodies that are arriving, and refuses more than `limit` of them.

    A body that is alone is always let in, so that no limit is too small for the largest that is allowed.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._held = 0

    def enter(self) -> "Seat":
        """A context within which one body arrives."""
        return Seat(self)

    def take(self, size: int, of_it: int) -> None:
        """Counts `size` bytes of a body that holds `of_it`; raises OverloadedError where others leave no room."""
        if self._held > of_it and self._held + size > self._limit:
            self._metrics.rejected.labels("overloaded").inc()
            raise OverloadedError(
                f"the bodies that are arriving have {self._held} bytes, and may have {self._limit}: try again later",
                headers={"Retry-After": "1"},
            )
        self._held += size

    def give_back(self, size: int) -> None:
        """Forgets what a body held."""
        self._held -= size


class Seat:
    """One body's share of the room."""

    __slots__ = ("_room", "size")

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._room.give_back(self.size)

    def take(self, size: int) -> None:
        """Counts more of the body; raises OverloadedError."""
        self._room.take(size, self.size)
        self.size += size
