"""What Ray raises where a shard was asked, as what service.cluster.scatter knows; and generations that are opened for
whoever has given up."""

import asyncio
import threading
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


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_what_is_lost_with_a_process_is_asked_again(error: Exception) -> None:
    async def answered() -> Any:
        raise error

    handle = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: answered()))
    shard = RayShard(handle, 3)  # type: ignore[arg-type]
    with pytest.raises(LostError, match="shard 3"):
        asyncio.run(shard.ask("token", ("search",)))


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
