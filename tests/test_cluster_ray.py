"""`gaussearch serve --ray` on a Ray cluster of three nodes on this machine: what it answers, and what becomes of it
while an index is replaced, a shard hangs, and a node dies.

One cluster and one service for all tests, which run in their order: the last one kills a node.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from index import BuildOptions, Gaussians, IndexDirectory, build_index
from tests.conftest import random_gaussians, write_corpus
from tests.ray_cluster import RayNodes, ray_nodes
from tests.serving import Client, open_client

pytestmark = pytest.mark.timeout(600)

K = 8
ROWS = 400
PATIENCE = 240.0
"""Seconds that anything of Ray's may take on a busy machine."""
SHARDS, REPLICAS = 2, 2
OPTIONS = {
    "shards": SHARDS,
    "replicas": REPLICAS,
    # A core of the head is too little for one: processes of shards are on the other nodes.
    "replica-cpus": 1.2,
    "replica-memory": 50_000_000,
    "reload-seconds": 0.2,
    # Eight queries are a batch, which waits for no others.
    "max-batch-rows": 8,
    "max-ongoing": 2,
    # More than the clients of a test send, and less than max-batches.
    "max-queued": 8,
}


def corpus(folder: Path, generation: int) -> Path:
    gaussians = random_gaussians(ROWS + generation, K, seed=generation)
    ids = [f"g{generation}-{row}" for row in range(len(gaussians))]
    years = [1990 + row % 30 for row in range(len(gaussians))]
    return write_corpus(folder / f"corpus-{generation}.parquet", gaussians, ids, year=years, text=ids)


def publish(directory: IndexDirectory, generation: int) -> None:
    build_index([corpus(directory.path.parent, generation)], directory, BuildOptions(segment_docs=100))


@dataclass(frozen=True, eq=False)
class Running:
    """A service on Ray, and a service in this process beside it."""

    nodes: RayNodes
    workers: list[Any]
    directory: IndexDirectory
    http: httpx.Client
    process: "subprocess.Popen[str]"

    def search(self, body: dict[str, Any], *, batch: bool = False, seconds: float = 60.0) -> httpx.Response:
        """A search that may take so long."""
        return self.http.post(
            f"/v1/search{'/batch' if batch else ''}",
            json=body,
            headers={"X-Request-Timeout-Ms": str(1000 * seconds)},
            timeout=PATIENCE,
        )

    def processes(self, deployment: str) -> list[psutil.Process]:
        """Those that Ray Serve runs of a deployment."""
        raylets = [
            info.process.pid
            for node in self.nodes.cluster.list_all_nodes()
            for kind, infos in node.all_processes.items()
            if kind == "raylet"
            for info in infos
        ]
        found = []
        for pid in raylets:
            for child in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if f"ServeReplica:gaussearch:{deployment}" in " ".join(child.cmdline()):
                        found.append(child)
        return found


def patiently(holds: Any) -> None:
    """As tests.serving.wait_until, for what Ray takes."""
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("ray")
    directory = IndexDirectory(folder / "index")
    publish(directory, 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ray_nodes(1, 5, 5) as nodes:
        workers = nodes.cluster.list_all_nodes()[1:]
        options = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-c", "from service.cli import main; main()", "serve", "--ray", nodes.address]
        log = (folder / "serve.log").open("w+")
        process = subprocess.Popen(
            [*command, "--index", str(directory.path), "--port", str(port), *options], stdout=log, stderr=log, text=True
        )
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        service = Running(nodes, workers, directory, http, process)

        def answers() -> bool:
            assert process.poll() is None, (folder / "serve.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                return http.get("/readyz").status_code == 200
            return False

        try:
            patiently(answers)
            yield service
        finally:
            http.close()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
                log.close()


@pytest.fixture
def alone(running: Running) -> Iterator[Client]:
    """One process that serves the same index."""
    client = open_client(running.directory)
    yield client
    client.close()


def asked(seed: int = 0, count: int = 1, **more: Any) -> dict[str, Any]:
    """Queries, and options of a search."""
    given = random_gaussians(count, K, seed=1000 + seed)
    queries = [_query(given, row) for row in range(count)]
    return {**(queries[0] if count == 1 else {"queries": queries}), "top_k": 5, **more}


def _query(given: Gaussians, row: int) -> dict[str, Any]:
    return {"mean": given.means[row].tolist(), "variance": given.variances[row].tolist()}


def _timeless(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("took_ms", "request_id")}


def test_answers_are_those_of_one_process(running: Running, alone: Client) -> None:
    for path, body in (
        ("/v1/search", asked()),
        ("/v1/search", asked(top_k=300, filter={"year": {"gte": 2010}})),
        ("/v1/search", asked(allow_partial=True, exact=True, with_payload=False)),
        ("/v1/search/batch", asked(count=20, top_k=30)),
        ("/v1/documents/g1-7/similar", {"top_k": 9}),
        ("/v1/documents/nobody/similar", {"top_k": 9}),
        ("/v1/search", asked(filter={"no": 1})),
        ("/v1/search", asked(nprobe=2)),
        ("/v1/search", {"mean": [1.0]}),
    ):
        found, expected = running.http.post(path, json=body), alone.post(path, body)
        assert found.status_code == expected.status_code, (path, found.text)
        assert _timeless(found.json()) == _timeless(expected.json()), path
    explained = asked(explain=True)
    found, expected = running.http.post("/v1/search", json=explained), alone.post("/v1/search", explained)
    assert found.json()["results"] == expected.json()["results"]
    assert found.json()["search"]["proven"]
    assert running.http.get("/v1/documents/g1-3").json() == alone.get("/v1/documents/g1-3").json()
    assert running.http.get("/v1/documents/nobody").status_code == 404


def test_the_service_says_what_it_is(running: Running) -> None:
    index = running.http.get("/v1/index").json()
    assert (index["shards"], index["documents"]) == (SHARDS, ROWS + 1)
    assert "gaussearch_index_documents 401.0" in running.http.get("/metrics").text
    assert running.http.get("/livez").json() == {"status": "ok"}
    page = running.http.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers.get_list("x-request-id") == [page.headers["x-request-id"]]
    refused = running.http.post("/v1/documents/delete", json={"ids": ["g1-1"]})
    assert (refused.status_code, refused.json()["code"]) == (403, "writes_disabled")
    for name in ("shard-0", "shard-1"):
        assert len(running.processes(name)) == REPLICAS


@dataclass(eq=False)
class Load:
    """Clients that search until they are told to stop, and what they were answered."""

    running: Running
    seconds: float
    answers: list[tuple[float, httpx.Response]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)

    def hammer(self, seed: int) -> None:
        while not self.enough.is_set():
            started = time.monotonic()
            try:
                answer = self.running.search(asked(seed), seconds=self.seconds)
            except httpx.TransportError as error:
                self.failures.append(error)
            else:
                self.answers.append((time.monotonic() - started, answer))

    def after_more(self) -> None:
        """Returns once some more have been answered."""
        seen = len(self.answers)
        patiently(lambda: len(self.answers) > seen + 10)

    @contextlib.contextmanager
    def running_clients(self, count: int = 4) -> Iterator["Load"]:
        threads = [threading.Thread(target=self.hammer, args=(seed,)) for seed in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.enough.set()
            for thread in threads:
                thread.join(PATIENCE)


def test_an_index_is_replaced_under_load_without_a_failed_or_mixed_answer(running: Running) -> None:
    with Load(running, 60.0).running_clients() as load:
        load.after_more()
        for generation in (2, 3):
            publish(running.directory, generation)
            patiently(lambda number=generation: running.http.get("/v1/index").json()["generation"] == number)
            load.after_more()
    assert not load.failures
    assert {answer.status_code for _, answer in load.answers} == {200}
    served = set()
    for _, answer in load.answers:
        body = answer.json()
        served.add(body["index"]["generation"])
        assert len(body["results"]) == 5
        assert {result["id"].split("-")[0] for result in body["results"]} == {f"g{body['index']['generation']}"}
    assert served == {1, 2, 3}


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """These processes do nothing meanwhile."""
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)


def test_a_shard_that_hangs_is_an_error_or_a_partial_answer_and_many_calls_to_it_are_refused(running: Running) -> None:
    whole = running.search(asked(allow_partial=True, top_k=500)).json()
    assert whole["coverage"] == {"documents": ROWS + 3, "of": ROWS + 3}
    with stopped(running.processes("shard-1")), ThreadPoolExecutor(40) as threads:
        refused = threads.submit(running.search, asked(), seconds=3.0)
        part = threads.submit(running.search, asked(allow_partial=True, top_k=500), seconds=3.0)
        assert (refused.result().status_code, refused.result().json()["code"]) == (504, "shard_unavailable")
        assert "shard 1 has not answered in time, of 2" in refused.result().json()["detail"]
        body = part.result().json()
        assert part.result().status_code == 200, body
        assert 0 < body["coverage"]["documents"] < body["coverage"]["of"] == ROWS + 3
        assert len(body["results"]) == body["coverage"]["documents"]
        # What remains is what would be among them anyway, in the same order.
        remaining = {each["id"] for each in body["results"]}
        assert [each for each in whole["results"] if each["id"] in remaining] == body["results"]
        many = [threads.submit(running.search, asked(count=8), batch=True, seconds=6.0) for _ in range(40)]
        answers = [each.result() for each in many]
        codes = {answer.json()["code"] for answer in answers}
        assert codes == {"overloaded", "shard_unavailable"}
        assert all(answer.status_code == 429 for answer in answers if answer.json()["code"] == "overloaded")
    patiently(lambda: running.search(asked()).status_code == 200)


def test_a_node_that_dies_under_load_loses_no_request_and_is_made_up_for(running: Running, alone: Client) -> None:
    expected = {seed: alone.post("/v1/search", asked(seed)).json()["results"] for seed in range(4)}
    seconds = 60.0
    with Load(running, seconds).running_clients() as load:
        load.after_more()
        running.nodes.remove(running.workers[0])
        died = time.monotonic()
        patiently(
            lambda: all(
                len(running.processes(name)) == REPLICAS and running.search(asked()).status_code == 200
                for name in ("shard-0", "shard-1")
            )
        )
        print(f"whole again after {time.monotonic() - died:.1f} s")
        load.after_more()
    assert not load.failures
    wrong = [answer.text for _, answer in load.answers if answer.status_code not in (200, 504)]
    assert not wrong
    for took, answer in load.answers:
        if answer.status_code == 504:
            # Not before its time.
            assert took > 0.9 * seconds
        else:
            assert answer.json()["results"] in expected.values()


def test_told_to_end_it_ends_the_service_and_leaves_the_cluster(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(PATIENCE) == 0
    patiently(lambda: not running.processes(""))
    with pytest.raises(httpx.TransportError):
        running.http.get("/readyz")
    with running.nodes.connected():
        import ray

        assert ray.cluster_resources()["CPU"] == 6  # type: ignore[no-untyped-call]
