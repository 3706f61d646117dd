#!/usr/bin/env python3
"""A service under mixed load for as long as you like: does it come to hold more memory or file descriptors?

    python scripts/soak.py --seconds 3600

It starts `gaussearch serve` on an index of the sample and sends searches, batches, mistakes, deadlines that pass and
requests that are broken off, in rounds; in each of them another half of the documents is published. After a round, when
all is quiet, /metrics says what the process holds. Rounds that follow the warm-up must not add to it, and no answer may
be another than its request deserves: otherwise the status is 1. --json FILE writes what was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from benchmark_build import GAUSSEARCH
from benchmark_service import free_port, running
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from index import IndexDirectory, build_index

SAMPLE = Path(__file__).resolve().parent.parent / "sample" / "wordnet"
CLIENTS = 8
Held = dict[str, float]
PATIENCE = 60.0
"""Seconds within which anything is answered, and all is quiet after a round."""
RETAINED_MIB = 48
"""How much more memory later rounds may end with than the warm-up: freed memory that the allocator keeps for reuse
differs by as much from one round to the next."""


class Soak:
    """The traffic of one service, and what came back."""

    def __init__(self, url: str, seed: int) -> None:
        self._url, self._random = url, random.Random(seed)
        rows = pq.read_table(SAMPLE / "queries.parquet", columns=["mean", "variance"]).to_pylist()
        self._queries = [{name: [float(x) for x in row[name]] for name in ("mean", "variance")} for row in rows]
        self._ids = pq.read_table(SAMPLE / "documents.parquet", columns=["id"])["id"].to_pylist()
        bad: list[dict[str, Any]] = [{"top_k": 0}, {"mean": [1.0, 2.0]}, {"variance": [0.0] * 128}, {"unknown": 1}]
        self._mistakes = [
            *((json.dumps({**self._queries[0], **fields}).encode(), 422) for fields in bad),
            *((body, 400) for body in (b"{" * 1000, b"\0" * 10_000, b'{"mean": "\\ud800"}')),
            (b" " * (17 * 2**20), 413),
        ]
        self.sent = 0
        self.seen: Counter[str] = Counter()
        self.unexpected: list[str] = []

    async def round(self, requests: int, until: float) -> None:
        """Sends so many requests, or as many as there is time for, from clients that each wait for their answers."""
        last = self.sent + requests
        async with httpx.AsyncClient(base_url=self._url, trust_env=False, timeout=PATIENCE) as http:

            async def client() -> None:
                while self.sent < last and time.monotonic() < until:
                    self.sent += 1
                    await self._random.choices(list(self._actions), list(self._actions.values()))[0](self, http)

            await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def _expect(self, what: str, answer: Awaitable[httpx.Response], *statuses: int) -> None:
        response = await answer
        self.seen[f"{what}: {response.status_code}"] += 1
        if response.status_code not in statuses:
            self.unexpected.append(f"{what}: {response.status_code} {response.text[:200]}")

    def _query(self, **options: Any) -> dict[str, Any]:
        return {**self._random.choice(self._queries), **options}

    async def _search(self, http: httpx.AsyncClient) -> None:
        body = self._query(top_k=self._random.choice((1, 10, 100)), explain=self._random.random() < 0.1)
        await self._expect("search", http.post("/v1/search", json=body), 200)

    async def _batch(self, http: httpx.AsyncClient) -> None:
        body = {"queries": [self._query() for _ in range(self._random.randint(1, 16))], "top_k": 20}
        await self._expect("batch", http.post("/v1/search/batch", json=body), 200)

    async def _document(self, http: httpx.AsyncClient) -> None:
        # Half of them are in the generation of the moment.
        path = f"/v1/documents/{self._random.choice(self._ids)}"
        await self._expect("document", http.get(path), 200, 404)
        await self._expect("similar", http.post(f"{path}/similar", json={"top_k": 5}), 200, 404)

    async def _mistake(self, http: httpx.AsyncClient) -> None:
        body, status = self._random.choice(self._mistakes)
        await self._expect("mistake", http.post("/v1/search", content=body), status)

    async def _deadline(self, http: httpx.AsyncClient) -> None:
        headers = {"X-Request-Timeout-Ms": str(self._random.choice((0.1, 1, 2)))}
        await self._expect("deadline", http.post("/v1/search", json=self._query(), headers=headers), 200, 504)

    async def _leave(self, http: httpx.AsyncClient) -> None:
        data = http.build_request("POST", "/v1/search", json=self._query())
        head = f"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: {data.headers['content-length']}\r\n\r\n"
        request = head.encode() + data.content
        _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(request[: self._random.choice((0, 10, 100, 1000, len(request)))])
        await asyncio.sleep(self._random.choice((0, 0, 0.01)))
        writer.transport.abort()
        self.seen["broken off"] += 1

    async def _look(self, http: httpx.AsyncClient) -> None:
        for path in ("/metrics", "/v1/index", "/livez", "/readyz", "/openapi.json"):
            await self._expect("look", http.get(path), 200)

    _actions: dict[Callable[[Soak, httpx.AsyncClient], Awaitable[None]], int] = {  # noqa: RUF012 (never changed)
        _search: 60,
        _batch: 10,
        _document: 10,
        _mistake: 8,
        _deadline: 5,
        _leave: 5,
        _look: 2,
    }

    def holds(self) -> Held:
        """What the process holds now, by its own account: MiB of memory, file descriptors; and its generation."""
        text = httpx.get(f"{self._url}/metrics", trust_env=False, timeout=PATIENCE).text
        families = text_string_to_metric_families(text)
        samples = {sample.name: sample.value for family in families for sample in family.samples}
        return {
            "memory": samples["process_resident_memory_bytes"] / 2**20,
            "descriptors": samples["process_open_fds"],
            "generation": samples["gaussearch_index_generation"],
            "requests": self.sent,
        }

    def wait_for_quiet(self, generation: int, descriptors: float) -> Held:
        """What the process holds once it serves that generation and has closed what was open; or after long enough."""
        deadline = time.monotonic() + PATIENCE
        while True:
            now = self.holds()
            if (now["generation"] == generation and now["descriptors"] <= descriptors) or time.monotonic() > deadline:
                return now
            time.sleep(0.1)


def halves(folder: Path) -> list[Path]:
    """The sample's documents as two corpora."""
    documents = pq.read_table(SAMPLE / "documents.parquet")
    middle = len(documents) // 2
    paths = [folder / "first.parquet", folder / "second.parquet"]
    for path, part in zip(paths, (documents[:middle], documents[middle:]), strict=True):
        pq.write_table(part, path)
    return paths


def soak(traffic: Soak, directory: IndexDirectory, corpora: list[Path], options: argparse.Namespace) -> list[Held]:
    """All rounds: what the process held before the first and after each."""
    held = [traffic.holds()]
    started = time.monotonic()
    for number in range(1, options.rounds + 1):
        until = started + options.seconds * number / options.rounds
        asyncio.run(one_round(traffic, options.requests // options.rounds, until, corpora[number % 2], directory))
        held.append(traffic.wait_for_quiet(directory.manifest().generation, held[0]["descriptors"]))
    return held


async def one_round(traffic: Soak, requests: int, until: float, corpus: Path, directory: IndexDirectory) -> None:
    await asyncio.gather(traffic.round(requests, until), asyncio.to_thread(build_index, [corpus], directory))


def faults(traffic: Soak, held: list[Held], options: argparse.Namespace) -> list[str]:
    """What must not be."""
    found = []
    if traffic.unexpected:
        found.append(f"{len(traffic.unexpected)} answers are not those expected, the first {traffic.unexpected[0]}")
    warm = max(1, options.rounds // 3)
    growth = max(after["memory"] for after in held[warm + 1 :]) - held[warm]["memory"]
    if growth > options.max_growth:
        found.append(f"memory grew by {growth:.1f} MiB after the warm-up; {options.max_growth} may be retained")
    before, most = held[0]["descriptors"], max(after["descriptors"] for after in held)
    if most > before:
        found.append(f"{most:.0f} file descriptors stay open when all is quiet; before, {before:.0f} were")
    if held[-1]["generation"] != len(held):
        found.append(f"generation {len(held)} was published, and {held[-1]['generation']:.0f} is served")
    return found


def show(traffic: Soak, held: list[Held], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("round", "requests", "generation", "memory, MiB", "file descriptors"):
        table.add_column(column, justify="right")
    for number, each in enumerate(held):
        requests, generation, descriptors = (f"{each[name]:,.0f}" for name in ("requests", "generation", "descriptors"))
        table.add_row(str(number), requests, generation, f"{each['memory']:.1f}", descriptors)
    console.print(table)
    console.print(", ".join(f"{what} {count:,}" for what, count in sorted(traffic.seen.items())))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--requests", type=int, default=10**9, help="how many requests at most")
    parser.add_argument(
        "--rounds", type=int, default=6, help="in how many rounds, a third of them to warm up (default 6)"
    )
    parser.add_argument("--max-growth", type=float, default=RETAINED_MIB, help=f"MiB (default {RETAINED_MIB})")
    parser.add_argument("--seed", type=int, default=1, help="of the traffic (default 1)")
    parser.add_argument("--json", type=Path, help="file to write what was seen to")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: one to warm up, one to compare")
    with tempfile.TemporaryDirectory(prefix="gaussearch-soak-") as name:
        folder, port = Path(name), free_port()
        corpora, directory = halves(folder), IndexDirectory(folder / "index")
        build_index([corpora[0]], directory)
        command = [*GAUSSEARCH, "serve", "--index", str(directory.path), "--port", str(port)]
        command += ["--reload-seconds", "0.2", "--device", "cpu", "--log-level", "warning"]
        with running(command, port, "/readyz", folder / "serve.log"):
            traffic = Soak(f"http://127.0.0.1:{port}", options.seed)
            held = soak(traffic, directory, corpora, options)
        log = (folder / "serve.log").read_text(encoding="utf-8", errors="replace")
    found = faults(traffic, held, options)
    if "ERROR" in log:
        found.append(f"the service reported errors:\n{log[-4000:]}")
    show(traffic, held, Console())
    if options.json:
        options.json.write_text(json.dumps({"held": held, "seen": traffic.seen, "faults": found}), encoding="utf-8")
    for fault in found:
        print(f"soak: {fault}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
