"""Requests that nobody waits for any more, through HTTP: deadlines, disconnections, a full queue, a dead thread."""

import asyncio
import json
import socket
from typing import Any

import pytest

import service.searching
from service.app import create_app
from service.batching import Batcher
from service.settings import ServiceSettings
from tests.conftest import Serve
from tests.serving import Client, GatedSearcher, Served, wait_until

SEARCH = {"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1]}
TIMEOUT = "X-Request-Timeout-Ms"


@pytest.fixture
def slow(gated: GatedSearcher, served: Served, serve: Serve) -> Client:
    """A service whose searches last until `gated.gate` is opened."""
    client = serve(served.directory, max_batch_rows=2, queue_rows=2)
    gated.gate.clear()
    return client


async def under_way(client: Client, gated: GatedSearcher) -> "asyncio.Task[Any]":
    """A request whose search has begun."""
    begun = len(gated.rows)
    task = asyncio.create_task(client.send("/v1/search", SEARCH))
    await asyncio.to_thread(wait_until, lambda: len(gated.rows) > begun)
    return task


async def queued(client: Client, rows: int) -> None:
    """Returns once that many queries wait."""
    registry = client.state.metrics.registry
    await asyncio.to_thread(wait_until, lambda: registry.get_sample_value("gaussearch_queue_rows") == rows)


def rejected(client: Client, reason: str) -> float:
    return client.metric("gaussearch_rejected_total", reason=reason)


@pytest.mark.parametrize("by_header", [True, False])
def test_a_search_that_takes_too_long_is_a_504(
    gated: GatedSearcher, served: Served, serve: Serve, by_header: bool
) -> None:
    client = serve(served.directory, **({} if by_header else {"timeout_ms": 50}))
    gated.gate.clear()
    response = client.post("/v1/search", SEARCH, headers={TIMEOUT: "50"} if by_header else {})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    gated.gate.set()
    assert client.post("/v1/search", SEARCH, headers={TIMEOUT: "60000"}).status_code == 200


def test_a_request_that_is_late_before_its_search_is_never_searched(slow: Client, gated: GatedSearcher) -> None:
    async def scenario() -> None:
        first = await under_way(slow, gated)
        late = await slow.send("/v1/search", SEARCH, headers={TIMEOUT: "20"})
        assert late.status_code == 504
        gated.gate.set()
        assert (await first).status_code == 200

    slow.run(scenario())
    wait_until(lambda: rejected(slow, "deadline") == 1)
    assert gated.rows == [1]


def test_a_full_queue_answers_429_and_recovers(slow: Client, gated: GatedSearcher) -> None:
    async def scenario() -> None:
        tasks = [await under_way(slow, gated)]
        tasks += [asyncio.create_task(slow.send("/v1/search", SEARCH)) for _ in range(2)]
        await queued(slow, 2)
        refused = await slow.send("/v1/search", SEARCH)
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        gated.gate.set()
        assert [(await task).status_code for task in tasks] == [200, 200, 200]

    slow.run(scenario())
    assert gated.rows == [1, 2]
    assert rejected(slow, "overloaded") == 1
    assert slow.post("/v1/search", SEARCH).status_code == 200


def test_a_client_that_disconnects_is_dropped(slow: Client, gated: GatedSearcher) -> None:
    """At the level of ASGI, where the moment of going is ours to choose."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/search",
        "raw_path": b"/v1/search",
        "query_string": b"",
        "headers": [],
    }

    async def scenario() -> None:
        first = await under_way(slow, gated)
        gone = asyncio.Event()
        messages = iter([{"type": "http.request", "body": json.dumps(SEARCH).encode()}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        request = asyncio.create_task(slow.app(scope, receive, send))
        await queued(slow, 1)
        gone.set()
        await request
        gated.gate.set()
        await first

    slow.run(scenario())
    wait_until(lambda: rejected(slow, "cancelled") == 1)
    assert gated.rows == [1]
    assert sent[0]["status"] == 499
    assert slow.metric("gaussearch_requests_total", route="/v1/search", method="POST", status="499") == 1


def test_a_closed_socket_is_noticed(gated: GatedSearcher, served: Served, listen: Any) -> None:
    app = create_app(ServiceSettings(index=served.directory.path))
    port = listen(app)
    gated.gate.clear()
    body = json.dumps(SEARCH).encode()
    head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    registry = app.state.gaussearch.metrics.registry
    with (
        socket.create_connection(("127.0.0.1", port)) as first,
        socket.create_connection(("127.0.0.1", port)) as second,
    ):
        first.sendall(head + body)
        wait_until(lambda: gated.rows == [1])
        second.sendall(head + body)
        wait_until(lambda: registry.get_sample_value("gaussearch_queue_rows") == 1)
        second.close()
        labels = {"route": "/v1/search", "method": "POST", "status": "499"}
        wait_until(lambda: registry.get_sample_value("gaussearch_requests_total", labels) == 1)
        gated.gate.set()
        assert first.recv(15).startswith(b"HTTP/1.1 200")
    wait_until(lambda: registry.get_sample_value("gaussearch_rejected_total", {"reason": "cancelled"}) == 1)
    assert gated.rows == [1]


def test_a_dead_search_thread_is_not_alive_and_not_ready(
    served: Served, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batcher, "_run", lambda _: None)
    client = serve(served.directory)
    wait_until(lambda: not client.state.batcher.alive)
    for response in (client.get("/livez"), client.get("/readyz"), client.post("/v1/search", SEARCH)):
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_search_thread_that_dies_under_load_leaves_nobody_to_their_deadlines(
    slow: Client, gated: GatedSearcher
) -> None:
    async def scenario() -> None:
        tasks = [await under_way(slow, gated)]
        tasks += [asyncio.create_task(slow.send("/v1/search", SEARCH, headers={TIMEOUT: "60000"})) for _ in range(2)]
        await queued(slow, 2)
        gated.error = SystemExit()
        gated.gate.set()
        for task in tasks:
            answer = await task
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")

    slow.run(scenario())
    wait_until(lambda: not slow.state.batcher.alive)
    for path in ("/livez", "/readyz"):
        assert slow.get(path).status_code == 503
    assert slow.post("/v1/search", SEARCH).status_code == 503


def test_bad_queries_that_wait_together_fail_alone(slow: Client, gated: GatedSearcher) -> None:
    """A variance that float64 holds and float32 does not is found by the searcher, in the middle of a batch."""

    async def scenario() -> None:
        first = await under_way(slow, gated)
        good = asyncio.create_task(slow.send("/v1/search", SEARCH))
        bad = asyncio.create_task(slow.send("/v1/search", {**SEARCH, "variance": [1, 1, 1e-60, 1, 1]}))
        await queued(slow, 2)
        gated.gate.set()
        assert [(await task).status_code for task in (first, good, bad)] == [200, 200, 422]
        # The row is the request's own, not the batch's.
        assert (await bad).json()["detail"].startswith("row 0, component 2")
        assert (await good).json()["results"] == (await first).json()["results"]

    slow.run(scenario())
    assert gated.rows == [1, 2, 1, 1]


def test_requests_for_few_and_for_many_documents_share_a_batch(
    gated: GatedSearcher, served: Served, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.searching, "FETCHED_TOGETHER", 3)
    client = serve(served.directory)
    gated.gate.clear()

    async def scenario() -> list[Any]:
        first = await under_way(client, gated)
        few, many = (asyncio.create_task(client.send("/v1/search", {**SEARCH, "top_k": n})) for n in (2, 5))
        await queued(client, 2)
        gated.gate.set()
        return [(await task).json()["results"] for task in (first, few, many)]

    first, few, many = client.run(scenario())
    assert gated.rows[-1] == 2
    assert (len(few), len(many)) == (2, 5)
    assert few == many[:2] == first[:2]
    assert all(result["payload"] for result in many)
