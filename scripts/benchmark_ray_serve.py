"""The service on Ray Serve beside the one of one process, on this machine: what a cluster costs where it gains nothing.

All of it, load generator, proxy, ingress and shards, shares the cores. So these are figures of the overhead, not of
what several machines do.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_build import GAUSSEARCH
from benchmark_data import Data
from benchmark_engine import TOP_K
from benchmark_measure import Figure, Series, Spread, take_turns
from benchmark_service import LoadGenerator, free_port, running

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index

__all__ = ["ray_part"]

SHARDS = (1, 2)
CONCURRENCIES = (1, 16)
SEGMENTS = 8
BUSY = (0.2, 0.4, 0.6, 0.8)
"""Shares of its time for which a shard works, at which its answers are timed."""
LEAST_SAMPLES = 200


def ray_part(
    data: Data, documents: int, folder: Path, seconds: float, rounds: int, samples: Path | None = None
) -> Iterator[Figure]:
    """Requests per second and latency at several concurrencies, with one and with two shards; how long calls of a shard
    take goes to the file `samples`, if given, as scripts/simulate_scale.py reads it."""
    corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=True)
    directory = IndexDirectory(folder / "index")
    build_index([corpus], directory, BuildOptions(segment_docs=-(-documents // SEGMENTS)))
    corpus.unlink()
    port = free_port()
    ours = [*GAUSSEARCH, "serve", "--index", str(directory.path), "--device", "cpu", "--log-level", "warning"]
    with running([*ours, "--port", str(port)], port, "/readyz", folder / "serve.log"):
        for shards in SHARDS:
            with _on_ray(directory, shards) as cluster:
                yield from _compared(data, directory, {"gaussearch": port, "ray": cluster}, shards, seconds, rounds)
                if samples is not None and shards == max(SHARDS):
                    samples.write_text(json.dumps(_calls(data.queries, documents, seconds)), encoding="utf-8")


def _compared(
    data: Data, directory: IndexDirectory, ports: dict[str, int], shards: int, seconds: float, rounds: int
) -> Iterator[Figure]:
    part = "ray-serve"
    with LoadGenerator.searching(ports, data.queries) as load:
        expected = [ranking.ids for ranking in LocalSearcher(directory, verify=False).search(data.queries, TOP_K)]
        found = [[each["id"] for each in answer["results"]] for answer in load.collect("ray", concurrency=16)]
        share = float(np.mean([ids == theirs for ids, theirs in zip(expected, found, strict=True)]))
        named = f"{shards} shard{'s' * (shards > 1)}"
        yield Figure.of(part, named, "rankings equal to the engine's", share, "share", at_least=1.0)
        for concurrency in CONCURRENCIES:
            setting = f"{named}, concurrency {concurrency}"
            contenders = {name: load.contender(name, concurrency) for name in ports}
            series = take_turns(contenders, seconds=seconds, rounds=rounds)
            yield Figure.rate(part, setting, "one process", series["gaussearch"], "requests/s")
            yield Figure.rate(part, setting, "Ray Serve", series["ray"], "requests/s")
            yield Figure.of(
                part, setting, "Ray Serve over one process", series["ray"].over(series["gaussearch"]), "ratio"
            )
            yield Figure.of(part, setting, "latency added, p50", _added(series), "ms")


def _added(series: dict[str, Series]) -> Spread:
    pairs = zip(series["ray"].turns, series["gaussearch"].turns, strict=True)
    return Spread.of(1e3 * float(np.median(ray.latencies) - np.median(alone.latencies)) for ray, alone in pairs)


@contextmanager
def _on_ray(directory: IndexDirectory, shards: int) -> Iterator[int]:
    """A service of so many shards on a cluster of this machine alone, of which this process is the driver: its port."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from index.distributed.ray_session import ray_session

    port = free_port()
    with ray_session("local"):
        from ray import serve

        from service.cluster.app import LOGGING, application, machines
        from service.cluster.options import ServeOptions
        from service.cluster.plan import plan_for
        from service.keys import Keys

        options = ServeOptions(index=directory.path, port=port, shards=shards, device="cpu", log_level="warning")
        plan = plan_for(directory.manifest(), machines(), options)
        serve.start("HeadOnly", {"host": options.host, "port": port}, logging_config=LOGGING)
        serve.run(application(options, Keys.load(options), plan), name="gaussearch", route_prefix="/")
        try:
            yield port
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _calls(queries: Gaussians, documents: int, seconds: float) -> dict[str, Any]:
    """Seconds that calls of the first shard take, one query each: alone, and at random moments so that it is busy for
    given shares of its time."""
    shard = _Shard(queries)
    alone = [shard.timed(number) for number in range(LEAST_SAMPLES)][10:]
    service = float(np.mean(alone))
    random = np.random.default_rng(0)
    samples: dict[str, list[float]] = {}
    for share in BUSY:
        count = max(LEAST_SAMPLES, int(share * seconds * 5 / service))
        with concurrent.futures.ThreadPoolExecutor(64) as threads:
            pending, due = [], time.perf_counter()
            for number, gap in enumerate(random.exponential(service / share, count).tolist()):
                due += gap
                threading.Event().wait(max(0.0, due - time.perf_counter()))
                pending.append(threads.submit(shard.timed, number, due))
            samples[str(share)] = [each.result() for each in pending]
    return {
        "what": f"calls of one of two shards on Ray Serve, kind flat, k={queries.k}, one query each",
        "documents": documents // 2,
        "service": service,
        "samples": samples,
    }


class _Shard:
    """The first shard's deployment, asked as an ingress asks it."""

    def __init__(self, queries: Gaussians) -> None:
        from ray import serve

        from service.cluster.messages import Asked

        self._handle = serve.get_deployment_handle("shard-0", "gaussearch")
        self._token = self._handle.current.remote().result()
        self._asked = [
            Asked(
                queries.means[row : row + 1].double().numpy(),
                queries.variances[row : row + 1].double().numpy(),
                TOP_K,
                60.0,
            )
            for row in range(len(queries))
        ]

    def timed(self, number: int, due: float | None = None) -> float:
        """Seconds of one call, from when it was due."""
        started = time.perf_counter() if due is None else due
        handle = self._handle.options(method_name="search", multiplexed_model_id=self._token)
        handle.remote(self._asked[number % len(self._asked)]).result()
        return time.perf_counter() - started
