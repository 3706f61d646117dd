"""What Ray raises where a shard was asked, as what service.cluster.scatter knows; and generations that are opened for
whoever has given up."""

import asyncio
import threading
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError

from service.cluster.deployments import ShardReplica
from service.cluster.ray_handles import RayShard
from service.cluster.scatter import LostError

LOST = [
    ActorDiedError(),
    WorkerCrashedError(),
    NodeDiedError("gone"),  # type: ignore[no-untyped-call]
    OutOfMemoryError("killed"),  # type: ignore[no-untyped-call]
    ObjectLostError("ab" * 28, None, ""),
]


class Response:
    """Of a call that Ray Serve makes: it comes to an error, or to nothing."""

    def __init__(self, error: BaseException | None) -> None:
        self.begun, self.is_cancelled = asyncio.Event(), False
        self._error = error

    def __await__(self) -> Generator[Any, None, None]:
        self.begun.set()
        if self._error is not None:
            raise self._error
        yield from asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        self.is_cancelled = True


def shard_of(response: Response) -> RayShard:
    handle: Any = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: response))
    return RayShard(handle, 3)


@pytest.mark.parametrize("error", [*LOST, asyncio.CancelledError()], ids=lambda error: type(error).__name__)
def test_what_is_lost_with_a_process_is_asked_again(error: BaseException) -> None:
    with pytest.raises(LostError, match="shard 3"):
        asyncio.run(shard_of(Response(error)).ask("token", ("search",)))


def test_a_call_that_is_given_up_is_ended_there_too() -> None:
    async def given_up() -> Response:
        response = Response(None)
        asking = asyncio.ensure_future(shard_of(response).ask("token", ("search",)))
        await response.begun.wait()
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        return response

    assert asyncio.run(given_up()).is_cancelled


def test_a_generation_is_opened_once_though_whoever_asked_first_has_given_up() -> None:
    begun: list[str] = []
    is_begun = asyncio.Event()
    opened: dict[str, str] = {}
    turn, may_end = asyncio.Lock(), threading.Event()

    async def generation(token: str) -> str:
        # As Ray Serve's multiplexing does it.
        async with turn:
            if token not in opened:
                begun.append(token)
                is_begun.set()
                await asyncio.to_thread(may_end.wait)
                opened[token] = f"opened {token}"
            return opened[token]

    async def asked_twice() -> Any:
        replica = ShardReplica.__new__(ShardReplica)
        replica._generation = generation
        first = asyncio.ensure_future(replica._opened("new"))
        await is_begun.wait()
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        second = asyncio.ensure_future(replica._opened("new"))
        await asyncio.sleep(0)
        may_end.set()
        return await second

    assert asyncio.run(asked_twice()) == "opened new"
    assert begun == ["new"]
