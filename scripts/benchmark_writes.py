"""Writes over HTTP: how long one takes until it is on disk and searched, what group commit makes of many, what searches
lose meanwhile, and what it takes to tidy up after them.

SQLite stands for what one would otherwise keep rows in: the same bytes in a table, every commit synced. It finds no
document by its Gaussian.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from benchmark_build import GAUSSEARCH, MEMORY_IS_SHOWN, process_memory
from benchmark_data import Data
from benchmark_measure import Contender, Figure, Series, Spread, Turn, once, repeating, take_turns
from benchmark_service import LoadGenerator, free_port, running
from prometheus_client.parser import text_string_to_metric_families

from index import BuildOptions, CompactOptions, IndexDirectory, Manifest, build_index, compact_index, delete_documents

KINDS = ("flat", "fastscan")
MANY = 1_000
"""Documents in a batch: the service's limit."""
WRITERS, SEARCHERS = 16, 4
REBUILDS = 3
ONE_DELETED_OF = 10
"""Before an index is compacted: every segment has some."""


def writes_part(data: Data, documents: int, folder: Path, seconds: float, rounds: int, writes: int) -> Iterator[Figure]:
    """Latency, throughput, searches under writes, memory and compaction, of each kind; `writes` are those, one after
    the other, over which memory is measured."""
    corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=True)
    rows = _Rows.of(data)
    for kind in KINDS:
        directory = IndexDirectory(folder / kind)
        build_index([corpus], directory, BuildOptions.model_validate({"kind": kind}))
        with _serving(directory, data, rows) as service:
            yield from _alone(service, kind, writes)
            yield from _together(service, rows, folder / f"{kind}.sqlite", kind, seconds, rounds)
            yield from _searched(service, kind, seconds, rounds)
        yield from _compacted(corpus, directory, documents, kind, min(rounds, REBUILDS))
        shutil.rmtree(directory.path)


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is written, again and again: the source's own documents, under new ids. `gaussians` are float32, means |
    variances."""

    ids: list[str]
    gaussians: list[bytes]
    texts: list[str]

    @classmethod
    def of(cls, data: Data) -> _Rows:
        count = -(-len(data) // MANY) * MANY
        both = np.concatenate([data.means, data.variances], axis=1).astype("<f4")
        rows = [row % len(data) for row in range(count)]
        return cls([f"w{row}" for row in range(count)], [both[row].tobytes() for row in rows], _take(data.texts, rows))

    def bodies(self, together: int) -> list[str]:
        """Requests that write so many documents each."""
        documents = [self._document(row) for row in range(len(self.ids))]
        starts = range(0, len(documents), together)
        return [json.dumps({"documents": documents[start : start + together]}) for start in starts]

    def _document(self, row: int) -> dict[str, object]:
        both = self.gaussians[row]
        mean, variance = (base64.b64encode(half).decode() for half in (both[: len(both) // 2], both[len(both) // 2 :]))
        return {"id": self.ids[row], "mean": mean, "variance": variance, "payload": {"text": self.texts[row]}}


def _take(texts: list[str], rows: list[int]) -> list[str]:
    return [texts[row] for row in rows]


@dataclass(frozen=True, slots=True)
class _Service:
    """A service that takes writes, and the loads that it is put under: writes "one" or "many" at a time, searches."""

    pid: int
    port: int
    writes: LoadGenerator
    searches: LoadGenerator

    def published(self) -> tuple[float, float]:
        """How many times writes have been published since it began, and of how many requests."""
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False).text
        samples = {
            sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
        }
        return samples["gaussearch_writes_together_count"], samples["gaussearch_writes_together_sum"]


@contextlib.contextmanager
def _serving(directory: IndexDirectory, data: Data, rows: _Rows) -> Iterator[_Service]:
    port, key = free_port(), secrets.token_hex(16)
    keys = directory.path.with_suffix(".keys")
    keys.write_text(key, encoding="ascii")
    command = [*GAUSSEARCH, "serve", "--index", str(directory.path), "--device", "cpu", "--log-level", "warning"]
    command += ["--admin-key-file", str(keys), "--port", str(port)]
    bodies = {"one": rows.bodies(1), "many": rows.bodies(MANY)}
    writes = LoadGenerator(
        dict.fromkeys(bodies, port), dict.fromkeys(bodies, "/v1/documents"), bodies, {"authorization": f"Bearer {key}"}
    )
    with (
        running(command, port, "/readyz", directory.path.with_suffix(".log")) as process,
        writes,
        LoadGenerator.searching({"gaussearch": port}, data.queries) as searches,
    ):
        yield _Service(process.pid, port, writes, searches)


def _alone(service: _Service, kind: str, writes: int) -> Iterator[Figure]:
    """So many one-document writes, one after the other, and what they leave in memory."""
    # What the first searches and writes of a process take is no part of what later ones add.
    service.searches.window("gaussearch", SEARCHERS, seconds=0.0, requests=10 * SEARCHERS)
    service.writes.window("one", 1, seconds=0.0, requests=10)
    before = process_memory(service.pid)
    answer = service.writes.window("one", 1, seconds=0.0, requests=writes)
    after = process_memory(service.pid)
    setting = f"{kind}, {writes:,} writes of one document, 1 client"
    turn = Turn(len(answer["latencies"]), answer["seconds"], answer["latencies"])
    yield Figure.rate("writes", setting, "until on disk and searched", Series([turn]), "requests/s")
    if MEMORY_IS_SHOWN:
        for name, field in (("resident", "VmRSS"), ("anonymous", "RssAnon")):
            yield Figure.of("writes", setting, f"memory before, {name}", before[field] / 2**20, "MiB")
            yield Figure.of(
                "writes", setting, f"memory after over before, {name}", after[field] / before[field], "ratio"
            )


def _together(
    service: _Service, rows: _Rows, database: Path, kind: str, seconds: float, rounds: int
) -> Iterator[Figure]:
    """One client and many, one document at a time and a batch, and SQLite."""
    published = [0.0, 0.0]
    many_clients = service.writes.contender("one", WRITERS)

    def counted(its_seconds: float) -> Turn:
        before = service.published()
        turn = many_clients(its_seconds)
        for place, (new, old) in enumerate(zip(service.published(), before, strict=True)):
            published[place] += new - old
        return turn

    batches = service.writes.contender("many", 1)
    ours, ours_many = "1 client, one document", f"1 client, batches of {MANY:,}"
    theirs, theirs_many = "SQLite, one row a commit", f"SQLite, {MANY:,} rows a commit"
    with contextlib.closing(_database(database)) as connection:
        contenders = {
            ours: service.writes.contender("one", 1),
            f"{WRITERS} clients, one document": counted,
            ours_many: lambda its_seconds: _of_documents(batches(its_seconds)),
            theirs: repeating(_inserting(connection, rows, 1)),
            theirs_many: repeating(_inserting(connection, rows, MANY)),
        }
        series = take_turns(contenders, seconds=seconds * len(contenders), rounds=rounds)
    for name, one in series.items():
        yield Figure.rate("writes", kind, name, one, "documents/s")
    several = series[f"{WRITERS} clients, one document"]
    yield Figure.of("writes", kind, f"{WRITERS} clients over 1", several.over(series[ours]), "ratio")
    share = published[0] / published[1]
    yield Figure.of("writes", kind, f"publications per request, {WRITERS} clients", share, "ratio")
    yield Figure.of("writes", kind, "one document, over SQLite", series[ours].over(series[theirs]), "ratio")
    measure = f"batches of {MANY:,}, over SQLite"
    yield Figure.of("writes", kind, measure, series[ours_many].over(series[theirs_many]), "ratio")


def _of_documents(turn: Turn) -> Turn:
    return Turn(MANY * turn.work, turn.seconds, turn.latencies)


def _database(path: Path) -> sqlite3.Connection:
    """A table for the same rows; a write-ahead log takes one sync a commit, the least that survives a power cut."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE documents (id TEXT PRIMARY KEY, gaussian BLOB, text TEXT)")
    return connection


def _inserting(connection: sqlite3.Connection, rows: _Rows, together: int) -> Callable[[], float]:
    everything = list(zip(rows.ids, rows.gaussians, rows.texts, strict=True))
    parts = itertools.cycle([everything[start : start + together] for start in range(0, len(everything), together)])

    def insert() -> float:
        connection.execute("BEGIN")
        connection.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", next(parts))
        connection.execute("COMMIT")
        return together

    return insert


def _searched(service: _Service, kind: str, seconds: float, rounds: int) -> Iterator[Figure]:
    """Searches of a few clients, with nothing else going on and while one-document writes follow one another, small
    segments being merged in between."""
    quiet = service.searches.contender("gaussearch", SEARCHERS)
    written: list[float] = []

    def written_meanwhile(its_seconds: float) -> Turn:
        with ThreadPoolExecutor(1) as pool:
            # Searches end first, and so all of them meet writes.
            options = {"seconds": its_seconds + 0.1, "requests": 2}
            writing = pool.submit(service.writes.window, "one", 1, **options)
            turn = quiet(its_seconds)
            answer = writing.result()
        written.append(len(answer["latencies"]) / answer["seconds"])
        return turn

    contenders = {"no writes": quiet, "under writes": written_meanwhile}
    # Merges come every few dozen writes: turns are long enough to meet some.
    series = take_turns(contenders, seconds=2 * seconds * len(contenders), rounds=rounds)
    setting = f"{kind}, searches of {SEARCHERS} clients"
    for name, one in series.items():
        yield Figure.rate("writes", setting, name, one, "requests/s")
    yield Figure.of("writes", setting, "writes meanwhile", Spread.of(written[1:]), "requests/s")
    for percent in (50, 99):
        slower = Spread.of(
            float(np.percentile(under.latencies, percent) / np.percentile(without.latencies, percent))
            for under, without in zip(series["under writes"].turns, series["no writes"].turns, strict=True)
        )
        yield Figure.of("writes", setting, f"p{percent} under writes over without", slower, "ratio")


def _compacted(corpus: Path, directory: IndexDirectory, documents: int, kind: str, rounds: int) -> Iterator[Figure]:
    """Documents per second of a compaction, and of one that builds anew, beside a build's of the corpus."""
    worn = IndexDirectory(directory.path.with_name(f"{kind}-worn"))
    _copy(directory.path, worn.path)
    delete_documents([f"d{row}" for row in range(0, documents, ONE_DELETED_OF)], worn)
    built = directory.path.with_name(f"{kind}-built")
    options = BuildOptions.model_validate({"kind": kind})

    def build() -> float:
        return build_index([corpus], IndexDirectory(built), options).manifest.documents

    def retrain(copied: IndexDirectory) -> Manifest:
        return compact_index(copied, CompactOptions(retrain=True))

    contenders = {
        "build": once(build, lambda: shutil.rmtree(built)),
        "compact, after writes": _changing(directory.path, compact_index),
        f"compact, 1 in {ONE_DELETED_OF} deleted": _changing(worn.path, compact_index),
        f"compact --retrain, 1 in {ONE_DELETED_OF} deleted": _changing(worn.path, retrain),
    }
    series = take_turns(contenders, seconds=0.0, rounds=rounds)
    for name, one in series.items():
        yield Figure.of("writes", f"{kind}, compaction", name, one.rate(), "documents/s")
    for name, one in list(series.items())[1:]:
        measure = f"time of a document, {name}, over build"
        yield Figure.of("writes", f"{kind}, compaction", measure, series["build"].over(one), "ratio")


def _changing(source: Path, change: Callable[[IndexDirectory], Manifest]) -> Contender:
    """Changes a copy of an index, each turn a new one."""
    copy = source.with_name(f"copy-{secrets.token_hex(4)}")
    _copy(source, copy)
    return once(lambda: float(change(IndexDirectory(copy)).documents), lambda: _copy(source, copy))


def _copy(source: Path, target: Path) -> None:
    # By links: files of an index are never changed in place.
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link)
