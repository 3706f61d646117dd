"""Ten times the clients that a service can serve, over sockets: what it holds is bounded by its queue, so is how long
anyone waits, the others are told at once to come back, and afterwards all is as before.
"""

import gc
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI

from index import Gaussians, Ranking
from service.app import create_app
from service.batching import Batcher
from service.searching import SearchJob
from service.settings import ServiceSettings
from tests.serving import GatedSearcher, Served, listening, wait_until
from tests.sockets import Answer, ask, request

QUEUE, BATCH = 16, 8
CLIENTS = 10 * (QUEUE + BATCH)


class Course:
    """What happens in a service, in its order: a value for each query admitted, and those of each search."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, searcher: GatedSearcher) -> None:
        self.events: list[tuple[str, list[float]]] = []
        # The tracebacks of tests that have failed hold some.
        self.others = [each for each in gc.get_objects() if type(each) is SearchJob]
        self.most_rows = 0
        """The most queries that were in the queue and in a search together."""
        submit, search = Batcher.submit, searcher.search
        under_way: list[float] = []

        def watched_submit(batcher: Batcher, queries: Gaussians, *arguments: Any, **options: Any) -> Any:
            future = submit(batcher, queries, *arguments, **options)
            with batcher._changed:
                self.events.append(("admitted", queries.means[:, 0].tolist()))
                self.most_rows = max(self.most_rows, batcher._waiting + len(under_way))
            return future

        def watched_search(queries: Gaussians, *arguments: Any, **options: Any) -> list[Ranking]:
            under_way[:] = queries.means[:, 0].tolist()
            self.events.append(("searched", list(under_way)))
            try:
                return search(queries, *arguments, **options)
            finally:
                under_way.clear()

        monkeypatch.setattr(Batcher, "submit", watched_submit)
        searcher.search = watched_search  # type: ignore[method-assign]

    def values(self, kind: str) -> list[float]:
        return [value for name, values in self.events if name == kind for value in values]

    def searches(self) -> list[list[float]]:
        return [values for name, values in self.events if name == "searched"]

    def before(self, value: float) -> int:
        """How many queries were searched from the admission of that query on up to itself, in the order of batches."""
        (admitted,) = [place for place, event in enumerate(self.events) if event[0] == "admitted" and value in event[1]]
        searched = [value for name, values in self.events[admitted:] if name == "searched" for value in values]
        # None if the search began before this thread had made a note of the admission.
        return searched.index(value) + 1 if value in searched else 0


# Before `app`, which loads what this makes ready.
@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch, gated: GatedSearcher) -> Course:
    return Course(monkeypatch, gated)


@pytest.fixture
def app(served: Served) -> FastAPI:
    return create_app(ServiceSettings(index=served.directory.path, queue_rows=QUEUE, max_batch_rows=BATCH))


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    with listening(app) as port:
        yield port


def search(*values: float) -> bytes:
    """A request with a query for each value, which its mean carries."""
    queries = [{"mean": [value, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1]} for value in values]
    return request(json.dumps({"queries": queries, "top_k": 1}).encode(), path="/v1/search/batch")


def get(path: str) -> bytes:
    return request(b"", path=path, method="GET", declared=False)


def number(app: FastAPI, name: str, **labels: str) -> float:
    return app.state.gaussearch.metrics.registry.get_sample_value(name, labels) or 0.0


def jobs(course: Course) -> int:
    """How many jobs there are that were not there before."""
    return sum(type(each) is SearchJob for each in gc.get_objects()) - len(course.others)


def admitted(course: Course) -> int:
    return len(course.values("admitted"))


def assert_is_idle(app: FastAPI, port: int, course: Course) -> None:
    """The next request is searched at once, in a search of its own, and nothing is left of those before it."""
    before = len(course.searches())
    assert ask(port, search(-7)).status == 200
    assert course.searches()[before:] == [[-7]]
    assert number(app, "gaussearch_queue_rows") == 0
    gc.collect()
    assert jobs(course) == 0


def test_what_does_not_fit_is_turned_away_before_anything_is_done(
    gated: GatedSearcher, course: Course, app: FastAPI, port: int
) -> None:
    gated.gate.clear()
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked: list[Future[Answer]] = [clients.submit(ask, port, search(value)) for value in range(CLIENTS)]
        # Not one search comes to its end, and yet all but those who wait for one get their answers.
        wait_until(lambda: sum(future.done() for future in asked) == CLIENTS - admitted(course))
        refused = [future.result() for future in asked if future.done()]
        assert len(course.searches()) == 1
        assert admitted(course) == QUEUE + len(course.searches()[0])
        for answer in refused:
            assert (answer.status, answer.problem()) == (429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        for path in ("/livez", "/readyz", "/metrics", "/v1/index", "/v1/documents/d7"):
            assert ask(port, get(path)).status == 200
        assert jobs(course) == admitted(course)
        gated.gate.set()
        statuses = [future.result().status for future in asked]
    assert statuses.count(200) == admitted(course)
    assert statuses.count(429) == CLIENTS - admitted(course)
    # First come, first served.
    assert course.values("searched") == course.values("admitted")
    assert_is_idle(app, port, course)


def test_under_lasting_overload_nobody_waits_for_more_than_the_queue(course: Course, app: FastAPI, port: int) -> None:
    """Clients that ask again as soon as they are answered, with one to five queries at a time."""
    rounds, clients = 12, 48
    answers: list[Answer] = []
    begin = threading.Barrier(clients)

    def client(name: int) -> None:
        begin.wait()
        for turn in range(rounds):
            first = 1000 * name + 10 * turn
            answers.append(ask(port, search(*range(first, first + 1 + name % 5))))

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    statuses = [answer.status for answer in answers]
    assert len(statuses) == rounds * clients
    assert set(statuses) == {200, 429}
    assert number(app, "gaussearch_rejected_total", reason="overloaded") == statuses.count(429)
    assert course.values("searched") == course.values("admitted")
    assert course.most_rows <= QUEUE + BATCH
    assert max(map(len, course.searches())) <= BATCH
    for value in course.values("admitted"):
        assert course.before(value) <= QUEUE + BATCH
    assert_is_idle(app, port, course)


def test_bad_queries_of_some_clients_change_nothing_for_the_others(
    gated: GatedSearcher, served: Served, course: Course
) -> None:
    """What only the search itself can refuse, in the middle of a batch."""
    app = create_app(ServiceSettings(index=served.directory.path))
    bad = {3, 11, 12, 20}
    bodies = {
        value: {
            "mean": [value / 8, 0, 0, 0, 0],
            "variance": [1, 1, 1e-60 if value in bad else 1, 1, 1],
            "top_k": 1 + value % 4,
        }
        for value in range(24)
    }
    data = {value: request(json.dumps(body).encode()) for value, body in bodies.items()}
    with listening(app) as port, ThreadPoolExecutor(len(data) + 1) as clients:
        alone = {value: ask(port, data[value]) for value in data}
        gated.gate.clear()
        occupied = clients.submit(ask, port, search(-1))
        wait_until(lambda: course.searches()[-1] == [-1])
        asked = {value: clients.submit(ask, port, data[value]) for value in data}
        wait_until(lambda: number(app, "gaussearch_queue_rows") == len(data))
        gated.gate.set()
        together = {value: future.result() for value, future in asked.items()}
        assert occupied.result().status == 200
    assert max(map(len, course.searches())) == len(data)
    for value, answer in together.items():
        assert answer.status == alone[value].status == (422 if value in bad else 200)
        if value in bad:
            assert answer.problem() == "invalid_gaussian"
            assert answer.json()["detail"].startswith("row 0, component 2")
        else:
            assert answer.json()["results"] == alone[value].json()["results"]
