"""Services under test: clients of applications in this process, and a searcher that waits to be told to go on."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import uvicorn
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from index import Gaussians, IndexDirectory, Ranking, Searcher
from index.interface import Stop
from index.selection import DocumentFilter
from service.app import create_app
from service.server import uvicorn_options
from service.settings import ServiceSettings
from service.state import State

PATIENCE = 60.0
"""Seconds that anything may take before a test says that it hangs; no test measures time."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Served:
    """A small index for the service's tests, and what it was built from."""

    directory: IndexDirectory
    gaussians: Gaussians
    ids: list[str]
    texts: list[str]


class Client:
    """An application in this process, its lifespan entered on an event loop of its own; ask it from any thread."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.state: State = app.state.gaussearch
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._lifespan = app.router.lifespan_context(app)
        self.run(self._lifespan.__aenter__())
        # What the application raises is answered by a server, and so it is here.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=PATIENCE)

    def close(self) -> None:
        """Leaves the lifespan, as a server does when it stops, and ends the loop."""
        self.run(self._http.aclose())
        self.run(self._lifespan.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the application's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    async def send(self, path: str, json: Any, **options: Any) -> httpx.Response:
        """POST, for coroutines that `run` runs."""
        return await self._http.post(path, json=json, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; options as httpx takes them."""
        return self.run(self._http.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        """POST, of JSON if given."""
        return self.request("POST", path, json=json, **options)

    def metric(self, name: str, **labels: str) -> float:
        """A number of /metrics; 0 where it is not there yet."""
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return 0.0


def wait_until(holds: Callable[[], object]) -> None:
    """Returns once `holds()` is true; fails where that takes longer than any machine should need."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def open_client(directory: IndexDirectory | str, ready: bool = True, **settings: Any) -> Client:
    """A client of a new application; `ready` waits for the index to be loaded."""
    index = directory.path if isinstance(directory, IndexDirectory) else directory
    app = create_app(ServiceSettings(index=index, **settings))
    client = Client(app)
    if ready:
        wait_until(lambda: client.state.live.ready)
    return client


@contextlib.contextmanager
def listening(app: FastAPI, *, port: int = 0, ready: bool = True) -> Iterator[int]:
    """Serves an application over real sockets, in a thread of this process, as `gaussearch serve` does: its port.
    `ready` waits for the index to be loaded."""
    options = {**uvicorn_options(app.state.gaussearch.settings), "port": port}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        wait_until(lambda: app.state.gaussearch.live.ready or not ready)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


class GatedSearcher:
    """A searcher whose searches say that they have begun and wait for `gate`; `error`, if set, is raised instead."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self.manifest, self.name, self.device = searcher.manifest, searcher.name, searcher.device
        self.precision = searcher.precision
        self.document, self.payloads, self.explain = searcher.document, searcher.payloads, searcher.explain
        self.effort_for, self.matching = searcher.effort_for, searcher.matching
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.rows: list[int] = []
        """How many queries each search had, in order."""

    def search(
        self,
        queries: Gaussians,
        top_k: int,
        *,
        candidates: int | None = None,
        nprobe: int | None = None,
        exact: bool = False,
        filter: DocumentFilter | None = None,  # noqa: A002
        stop: Stop | None = None,
    ) -> list[Ranking]:
        """As LocalSearcher, once the gate is open."""
        self.rows.append(len(queries))
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self._searcher.search(
            queries, top_k, candidates=candidates, nprobe=nprobe, exact=exact, filter=filter, stop=stop
        )
