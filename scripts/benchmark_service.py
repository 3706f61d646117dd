"""The service over HTTP, against the engine called in-process and against the service anyone would write."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import faiss
import httpx
import numpy as np
import orjson
from benchmark_build import GAUSSEARCH
from benchmark_data import Data
from benchmark_engine import TOP_K, searching
from benchmark_measure import Contender, Figure, Series, Spread, Turn, take_turns

from index import Encoding, Gaussians, IndexDirectory, LocalSearcher, build_index, encode_documents

CONCURRENCIES = (1, 16, 64)
WAVES = 3
"""How many requests each client sends in a window at least."""
START_SECONDS = 300.0
HERE = Path(__file__).resolve().parent
PATHS = {"gaussearch": "/v1/search", "naive": "/search"}


def service_part(data: Data, documents: int, folder: Path, seconds: float, rounds: int) -> Iterator[Figure]:
    """Requests per second and latency at several concurrencies; client, services and engine share the cores."""
    corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=True)
    directory = IndexDirectory(folder / "index")
    build_index([corpus], directory)
    corpus.unlink()
    write_naive(data, documents, folder)
    engine = LocalSearcher(directory, device="cpu", verify=False)
    ports = {name: free_port() for name in PATHS}
    ours = [*GAUSSEARCH, "serve", "--index", str(directory.path), "--device", "cpu", "--log-level", "warning"]
    naive = [sys.executable, str(HERE / "benchmark_naive.py"), "--folder", str(folder)]
    with (
        running([*ours, "--port", str(ports["gaussearch"])], ports["gaussearch"], "/readyz", folder / "serve.log"),
        running([*naive, "--port", str(ports["naive"])], ports["naive"], "/openapi.json", folder / "naive.log"),
        LoadGenerator.searching(ports, data.queries) as load,
    ):
        yield from _check_answers(load, engine, data.queries)
        for concurrency in CONCURRENCIES:
            contenders = {
                "gaussearch": load.contender("gaussearch", concurrency),
                "naive service": load.contender("naive", concurrency),
                "engine": searching(engine, data.queries, concurrency),
            }
            series = take_turns(contenders, seconds=seconds, rounds=rounds)
            yield from _figures(concurrency, series)
        added = _added_latency(load, engine, data.queries, seconds)
        yield Figure.of("service", "concurrency 1", "latency added to the engine's", added, "ms", at_most=1.5)


def _figures(concurrency: int, series: dict[str, Series]) -> Iterator[Figure]:
    setting = f"concurrency {concurrency}"
    for name in ("gaussearch", "naive service"):
        yield Figure.rate("service", setting, name, series[name], "requests/s")
    ours, naive, engine = series["gaussearch"], series["naive service"], series["engine"]
    yield Figure.rate("service", setting, f"engine in-process, batches of {concurrency}", engine, "queries/s")
    target = 0.6 if concurrency >= 16 else None
    yield Figure.of("service", setting, "gaussearch over the engine", ours.over(engine), "ratio", at_least=target)
    target = 3.0 if concurrency == 16 else None
    yield Figure.of("service", setting, "gaussearch over the naive service", ours.over(naive), "ratio", at_least=target)


def _added_latency(load: LoadGenerator, engine: LocalSearcher, queries: Gaussians, seconds: float) -> Spread:
    """How many milliseconds more a query takes over HTTP than in-process, over queries asked both ways in turn.

    In turn, query by query, because a process that has just waited is scheduled sooner than one that never does.
    """
    differences: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < 2 * seconds or len(differences) < 2:
        number = len(differences) % len(queries)
        (over_http,) = load.window("gaussearch", 1, seconds=0.0, requests=1, first=number)["latencies"]
        before = time.perf_counter()
        engine.search(queries[number : number + 1], TOP_K)
        differences.append(1e3 * (over_http - (time.perf_counter() - before)))
    return Spread.of(differences[1:])


def write_naive(data: Data, documents: int, folder: Path) -> None:
    """What the naive service loads: one IndexFlatIP of all documents, and their ids and texts."""
    flat = faiss.IndexFlatIP(Encoding.SIMPLIFIED.width(data.k))
    names: list[tuple[str, str]] = []
    for chunk in data.chunks(documents):
        gaussians = Gaussians.from_arrays(chunk.means, chunk.variances)
        flat.add(encode_documents(gaussians, Encoding.SIMPLIFIED).numpy())
        names += zip(chunk.ids, chunk.texts, strict=True)
    faiss.write_index(flat, str(folder / "vectors.faiss"))
    (folder / "documents.json").write_text(json.dumps(names), encoding="utf-8")


def _check_answers(load: LoadGenerator, engine: LocalSearcher, queries: Gaussians) -> Iterator[Figure]:
    """Both services must answer what the engine finds: fast and wrong is no result."""
    expected = [ranking.ids for ranking in engine.search(queries, TOP_K)]
    for name, least in (("gaussearch", 1.0), ("naive", 0.99)):
        answers = load.collect(name, concurrency=16)
        found = [[result["id"] for result in answer["results"]] for answer in answers]
        pairs = list(zip(expected, found, strict=True))
        if name == "gaussearch":
            share = float(np.mean([ids == ours for ids, ours in pairs]))
            measure = "rankings equal to the engine's"
        else:
            share = float(np.mean([len(set(ids) & set(theirs)) / len(ids) for ids, theirs in pairs]))
            measure = "naive service's top 10 in the engine's"
        yield Figure.of("service", "all queries", measure, share, "share", at_least=least)


class LoadGenerator:
    """benchmark_load.py as a child: a context manager."""

    def __init__(
        self,
        ports: Mapping[str, int],
        paths: Mapping[str, str],
        bodies: Mapping[str, list[str]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Ports, paths and JSON bodies of each target; `headers` come with every request."""
        self._setup = {"ports": ports, "paths": paths, "bodies": bodies, "headers": headers or {}}

    @classmethod
    def searching(cls, ports: Mapping[str, int], queries: Gaussians, **options: int) -> LoadGenerator:
        """One that sends each of these queries to services out of PATHS, or to others of ours."""
        pairs = zip(queries.means.double().tolist(), queries.variances.double().tolist(), strict=True)
        bodies = [
            json.dumps({"mean": mean, "variance": variance, "top_k": TOP_K, **options}) for mean, variance in pairs
        ]
        paths = {name: PATHS.get(name, PATHS["gaussearch"]) for name in ports}
        return cls(ports, paths, dict.fromkeys(ports, bodies))

    def __enter__(self) -> LoadGenerator:
        command = [sys.executable, str(HERE / "benchmark_load.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._say(self._setup)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stop(self._process)

    def contender(self, target: str, concurrency: int) -> Contender:
        """So many clients, each of which sends its next request when the last one is answered."""

        def work_for(seconds: float) -> Turn:
            answer = self.window(target, concurrency, seconds=seconds, requests=WAVES * concurrency)
            return Turn(len(answer["latencies"]), answer["seconds"], answer["latencies"])

        return work_for

    def window(self, target: str, concurrency: int, **options: float) -> dict[str, Any]:
        """One window of load; see benchmark_load.py."""
        return self._ask({"target": target, "concurrency": concurrency, **options})

    def collect(self, target: str, concurrency: int) -> list[dict[str, Any]]:
        """The answer to every query, in their order."""
        answer = self._ask({"target": target, "concurrency": concurrency, "collect": True})
        return [orjson.loads(response) for response in answer["responses"]]

    def _say(self, message: object) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the load generator has no standard input")
        self._process.stdin.write(orjson.dumps(message) + b"\n")

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        self._say(command)
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise RuntimeError("the load generator has ended")
        answer: dict[str, Any] = orjson.loads(line)
        if answer["failures"]:
            raise RuntimeError(f"{command['target']} failed under load: {answer['failures'][0]}")
        return answer


@contextlib.contextmanager
def running(command: list[str], port: int, path: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a child, from the moment it answers 200 at `path` to the end of the block."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("GAUSSEARCH_")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=settings)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}{path}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} does not serve:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)
        yield process
    finally:
        stop(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a child: asked first, killed if it does not go."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
