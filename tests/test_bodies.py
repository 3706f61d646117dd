"""All bodies that are arriving share one room, and those that find none are answered 429."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.bodies import BodyRoom
from service.metrics import Metrics
from service.problems import OverloadedError
from tests.conftest import Serve
from tests.serving import Client, Served

SEARCH = json.dumps({"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1]}).encode()


def test_bodies_share_the_room_and_one_alone_is_always_let_in() -> None:
    room = BodyRoom(10, Metrics())
    with room.enter() as first, room.enter() as second:
        first.take(6)
        second.take(4)
        with pytest.raises(OverloadedError, match="have 10 bytes, and may have 10") as refused:
            second.take(1)
        assert refused.value.headers == {"Retry-After": "1"}
    with room.enter() as alone:
        alone.take(6)
        alone.take(60)
        with room.enter() as late, pytest.raises(OverloadedError):
            late.take(1)
    with room.enter() as again, room.enter() as other:
        again.take(9)
        other.take(1)


def test_a_body_that_fails_gives_its_room_back() -> None:
    room = BodyRoom(10, Metrics())

    def fail() -> None:
        with room.enter() as failing:
            failing.take(10)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with room.enter() as first, room.enter() as second:
        first.take(1)
        second.take(9)


class Body:
    """A body that arrives in two halves: the second when the test says so."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.began, self.goes_on = asyncio.Event(), asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        half = len(self._content) // 2
        yield self._content[:half]
        # The application asks for the next part once it has counted this one.
        self.began.set()
        await self.goes_on.wait()
        yield self._content[half:]


def test_what_finds_no_room_is_answered_429_and_what_is_there_goes_on(served: Served, serve: Serve) -> None:
    client = serve(served.directory, queue_bytes=len(SEARCH))

    async def scenario() -> tuple[Any, Any]:
        slow = Body(SEARCH)
        waiting = asyncio.create_task(send(client, slow))
        await slow.began.wait()
        refused = await send(client, SEARCH)
        slow.goes_on.set()
        return await waiting, refused

    answered, refused = client.run(scenario())
    assert answered.status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert client.metric("gaussearch_rejected_total", reason="overloaded") == 1
    for _ in range(3):
        assert client.post("/v1/search", content=SEARCH).status_code == 200, "the room is empty again"


def test_a_body_that_is_given_up_gives_its_room_back(served: Served, serve: Serve) -> None:
    client = serve(served.directory, queue_bytes=len(SEARCH))

    async def scenario() -> Any:
        return await send(client, Body(SEARCH), {"X-Request-Timeout-Ms": "50"})

    assert client.run(scenario()).status_code == 504
    assert client.post("/v1/search", content=SEARCH).status_code == 200


async def send(client: Client, content: Any, headers: dict[str, str] | None = None) -> Any:
    return await client.send("/v1/search", None, content=content, headers=headers)
