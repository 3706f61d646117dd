"""Filters that take long keep nobody waiting but those who ask for them, and not beyond their deadlines."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import index.selection
from index import Filter, IndexDirectory
from index.errors import InvalidOptionError, SearchStoppedError
from service.filtering import FilterRoom
from service.metrics import Metrics
from service.problems import DeadlineExceededError, OverloadedError
from tests.conftest import MakeIndex, Serve, random_gaussians
from tests.serving import PATIENCE, wait_until

SLOW, QUICK = "slow", "quick"


class Evaluator:
    """Stands for a searcher: evaluates a filter until its gate opens or it is told to stop."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.evaluated: list[str] = []

    def matching(self, filter: Filter, *, stop: Callable[[], bool]) -> int:  # noqa: A002
        while not self.gate.wait(0.001):
            if stop():
                break
        # As an evaluation does that comes to where it looks only after the gate has been opened.
        if stop():
            raise SearchStoppedError("nobody waits")
        self.evaluated.append(filter.key)
        return 1


def filter_of(number: int) -> Filter:
    return Filter.parse({"number": number})


def run(work: Callable[[FilterRoom, Any], Coroutine[Any, Any, None]]) -> None:
    room, evaluator = FilterRoom(Metrics()), Evaluator()

    async def both() -> None:
        await work(room, evaluator)

    try:
        asyncio.run(both())
    finally:
        evaluator.gate.set()
        room.close()


def test_a_filter_that_is_not_evaluated_in_time_is_given_up_at_the_deadline() -> None:
    async def work(room: FilterRoom, evaluator: Any) -> None:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            async with room.enter(evaluator, filter_of(1), started + 0.05):
                pytest.fail("it has not been evaluated")
        assert time.monotonic() - started < PATIENCE / 2
        evaluator.gate.set()
        # What was given up is not in anybody's way.
        async with room.enter(evaluator, filter_of(2), time.monotonic() + PATIENCE):
            assert evaluator.evaluated == [filter_of(2).key]

    run(work)


def test_more_filters_than_an_index_remembers_are_refused_and_the_same_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.filtering.KEPT", 2)

    async def work(room: FilterRoom, evaluator: Any) -> None:
        evaluator.gate.set()
        deadline = time.monotonic() + PATIENCE
        async with room.enter(evaluator, filter_of(1), deadline), room.enter(evaluator, filter_of(2), deadline):
            async with room.enter(evaluator, filter_of(2), deadline), room.enter(evaluator, None, deadline):
                pass
            with pytest.raises(OverloadedError, match="searches with 2 other filters"):
                await room.enter(evaluator, filter_of(3), deadline).__aenter__()
        async with room.enter(evaluator, filter_of(3), deadline):
            pass

    run(work)


def test_a_filter_that_is_refused_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.filtering.KEPT", 1)

    async def work(room: FilterRoom, evaluator: Any) -> None:
        def refuse(*_: Any, **__: Any) -> int:
            raise InvalidOptionError("no document has that field")

        deadline = time.monotonic() + PATIENCE
        evaluator.matching, matching = refuse, evaluator.matching
        with pytest.raises(InvalidOptionError):
            await room.enter(evaluator, filter_of(1), deadline).__aenter__()
        evaluator.matching = matching
        evaluator.gate.set()
        async with room.enter(evaluator, filter_of(2), deadline):
            pass

    run(work)


@pytest.fixture
def directory(make_index: MakeIndex) -> IndexDirectory:
    return make_index(random_gaussians(40, 3), segment_docs=10, tag=[SLOW, QUICK] * 20)


def search(tag: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"mean": [0.0] * 3, "variance": [1.0] * 3, "top_k": 3}
    return body if tag is None else {**body, "filter": {"tag": tag}}


def test_others_search_while_a_slow_filter_is_evaluated(
    directory: IndexDirectory, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate, begun = serve(directory), threading.Event(), threading.Event()
    mask = index.selection._mask

    def slow(segment: Any, wanted: Any, key: str) -> Any:
        if SLOW in wanted.key:
            begun.set()
            assert gate.wait(PATIENCE)
        return mask(segment, wanted, key)

    monkeypatch.setattr(index.selection, "_mask", slow)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.post, "/v1/search", search(SLOW), headers={"X-Request-Timeout-Ms": "60000"})
        assert begun.wait(PATIENCE)
        for tag in (None, QUICK):
            assert client.post("/v1/search", search(tag)).status_code == 200
        answer = client.post("/v1/search", search(SLOW), headers={"X-Request-Timeout-Ms": "50"})
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        gate.set()
        found = late.result(PATIENCE).json()
    assert found["matched"] == 20
    assert len(found["results"]) == 3


def test_an_evaluation_that_nobody_waits_for_ends_at_the_next_segment(
    directory: IndexDirectory, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, segments = serve(directory), list[str]()
    mask = index.selection._mask

    def slow(segment: Any, wanted: Any, key: str) -> Any:
        segments.append(segment.folder.name)
        time.sleep(0.1)
        return mask(segment, wanted, key)

    monkeypatch.setattr(index.selection, "_mask", slow)
    answer = client.post("/v1/search", search(SLOW), headers={"X-Request-Timeout-Ms": "50"})
    assert answer.status_code == 504
    wait_until(lambda: client.post("/v1/search", search(None)).status_code == 200)
    time.sleep(0.3)
    assert len(segments) == 1
