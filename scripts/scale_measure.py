"""Measures the constants of docs/scale.md on this machine: builds small indexes of every kind at two sizes, asks them,
and has searches come at random to one of them."""

from __future__ import annotations

import itertools
import json
import pickle
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmark_data import Data, write_gaussians
from benchmark_engine import torch_threads
from benchmark_kinds import memory_of
from benchmark_measure import environment
from scale_constants import Constants, Latencies, Measured, Wire

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, Precision, build_index
from index.durable import checksum
from index.manifest import IndexKind, Manifest
from index.scanning import SCANNED
from service.cluster.merging import merged
from service.cluster.messages import Answer, Asked

__all__ = ["KINDS", "measure", "queued", "under_load"]

KINDS = (IndexKind.FLAT, IndexKind.FASTSCAN, IndexKind.IVF_FASTSCAN, IndexKind.HNSW)
TARGET, TOP_K, BATCH = 0.95, 10, 32
QUERIES = 1_000
"""Half are given to builds, the other half asked."""
GRAPH_SHARE = 4
"""A graph takes so many times as long to build as the rest, and is measured on so many times fewer documents."""
MERGED = (1, 10, 100)
VERIFIED_BYTES = 1 << 28
PRECISION = Precision.FLOAT32
"""Of kind flat, for both sizes: left open, each would be scanned in what happens to be measured to be faster."""
ROUNDS = 8
"""In which loads take turns, so that what other work does to this one touches all of them."""
UTILISATIONS = (0.2, 0.4, 0.6, 0.8)
NOTE = (
    "Seconds are those of processors, so that other work on the machine changes little of them; latencies that came "
    "with --latencies are those of a clock. load_average_before says how much there was."
)

Say = Callable[[str], None]
Times = npt.NDArray[np.float64]


def measure(documents: int, arrivals: int, folder: Path, say: Say) -> Constants:
    """All constants, of indexes of `documents` and a quarter as many, the larger of kind fastscan being asked at random
    `arrivals` times for each share of the time that it is to be busy."""
    data = Data.read(None, None)
    asked = data.queries_about(documents + 1, QUERIES)
    given = write_gaussians(folder / "queries.parquet", asked[::2])
    queries = asked[1::2]
    kinds: dict[IndexKind, list[Measured]] = {}
    latencies: Latencies | None = None
    wire: Wire | None = None
    for kind, size in itertools.product(KINDS, (documents // 4, documents)):
        size = size // GRAPH_SHARE if kind is IndexKind.HNSW else size
        say(f"{kind}, {size:,} documents")
        directory, seconds = _built(data, kind, size, given, folder)
        searcher = LocalSearcher(directory, device="cpu", threads=1, verify=False, precision=PRECISION)
        kinds.setdefault(kind, []).append(_measured(directory, searcher, queries, seconds))
        if kind is IndexKind.FASTSCAN and size == documents:
            say("searches that come at random")
            latencies = under_load(searcher, queries, arrivals)
            wire = _wire(searcher, queries)
    if latencies is None or wire is None:
        raise ValueError("kind fastscan was not measured")
    return Constants(
        environment=environment({"documents": documents, "arrivals": arrivals}, "simulate_scale.py"),
        note=NOTE,
        k=data.k,
        target_recall=TARGET,
        top_k=TOP_K,
        kinds=kinds,
        wire=wire,
        manifest_bytes=_manifest_bytes(data, folder),
        verify_seconds=_verify_seconds(),
        latencies=latencies,
    )


def _built(data: Data, kind: IndexKind, documents: int, given: Path, folder: Path) -> tuple[IndexDirectory, float]:
    """An index, and the seconds of one processor that it took."""
    corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=False)
    # An effort that is chosen for queries, where the kind has one to choose.
    fitted = {} if kind is IndexKind.FLAT else {"queries": given, "target_recall": TARGET}
    directory = IndexDirectory(folder / f"{kind}-{documents}")
    began = time.process_time()
    build_index([corpus], directory, BuildOptions.model_validate({"kind": kind, **fitted}))
    seconds = time.process_time() - began
    corpus.unlink()
    return directory, seconds


def _measured(directory: IndexDirectory, alone: LocalSearcher, queries: Gaussians, seconds: float) -> Measured:
    manifest, codes = directory.manifest(), directory.manifest().codes
    structure = manifest.structure
    vectors = 4 * SCANNED.width(manifest.k) if codes is None else codes.code_bytes
    shared = 0 if codes is None else codes.file.bytes + (0 if structure is None else structure.file.bytes)
    effort = alone.effort_for(TOP_K, None, None)
    with torch_threads(1):
        one = [_processor(partial(alone.search, query, TOP_K)) for query in queries.chunks(1)]
    together = LocalSearcher(directory, device="cpu", verify=False, precision=PRECISION)
    batches = [batch for batch in queries.chunks(BATCH) if len(batch) == BATCH]
    many = [_processor(partial(together.search, batch, TOP_K)) / BATCH for batch in batches]
    return Measured(
        documents=manifest.documents,
        segment_bytes=sum(segment.bytes for segment in manifest.segments),
        shared_bytes=shared,
        memory_bytes=int(memory_of(directory, PRECISION)),
        build_seconds=seconds,
        # The first ones warm caches up.
        query_seconds=float(np.median(one[len(one) // 5 :])),
        batch_seconds=float(np.median(many[len(many) // 5 :])),
        scanned_bytes=0 if manifest.kind is IndexKind.HNSW else vectors,
        candidates=TOP_K if effort is None else effort.candidates,
        recall=None if manifest.measured_recall is None else manifest.measured_recall.recall,
    )


def _processor(work: Callable[[], object]) -> float:
    """Seconds of processors, all threads' together."""
    began = time.process_time()
    work()
    return time.process_time() - began


def under_load(searcher: LocalSearcher, queries: Gaussians, arrivals: int) -> Latencies:
    """Latencies, from when a search comes to when it is answered, of one shard that answers one at a time.

    Searches come at random (a Poisson process), and whoever sends them is this very thread: nothing of a client is in
    them. What each took is what it took of a processor, in means of its round, so that little of what else the machine
    does is in them either; it waited for those that came before it, at a rate that keeps the shard busy for a share of
    the time.
    """
    asked = list(queries.chunks(1))
    rng = np.random.default_rng(2023)
    service = float(np.mean([_processor(partial(searcher.search, query, TOP_K)) for query in asked]))
    gaps: dict[float, list[Times]] = {share: [] for share in UTILISATIONS}
    taken: dict[float, list[Times]] = {share: [] for share in UTILISATIONS}
    for _, share in itertools.product(range(ROUNDS), UTILISATIONS):
        between = rng.exponential(1 / share, -(-arrivals // ROUNDS))
        its = _as_they_come(searcher, asked, service * np.cumsum(between))
        gaps[share].append(between)
        taken[share].append(its / its.mean())
    found = {
        share: service * queued(np.cumsum(np.concatenate(gaps[share])), np.concatenate(taken[share]))
        for share in UTILISATIONS
    }
    return Latencies(
        what="one LocalSearcher of kind fastscan on one thread",
        documents=searcher.manifest.documents,
        service=service,
        samples={share: sorted(round(each, 6) for each in its.tolist()) for share, its in found.items()},
    )


def _as_they_come(searcher: LocalSearcher, asked: list[Gaussians], due: Times) -> Times:
    """What each search took of a processor, none of them begun before it is due: after a pause caches are cold."""
    began, taken = time.perf_counter(), []
    for row, at in enumerate(due.tolist()):
        ahead = at - (time.perf_counter() - began)
        if ahead > 0:
            time.sleep(ahead)
        taken.append(_processor(partial(searcher.search, asked[row % len(asked)], TOP_K)))
    return np.array(taken)


def queued(due: Times, taken: Times) -> Times:
    """From when each search comes (n,), ascending, to when it is answered, where it takes so long and one is answered
    at a time, in their order."""
    free, found = 0.0, []
    for at, seconds in zip(due.tolist(), taken.tolist(), strict=True):
        free = max(free, at) + seconds
        found.append(free - at)
    return np.array(found)


def _wire(searcher: LocalSearcher, queries: Gaussians) -> Wire:
    """What a cluster's ingress and a shard say to each other for one query, as Ray sends it, and what merging takes."""
    query = queries[:1]
    rankings = searcher.search(query, TOP_K)
    asked = Asked(query.means.double().numpy(), query.variances.double().numpy(), TOP_K, seconds=10.0)
    seconds = {}
    for shards in MERGED:
        parts = [(shard * len(searcher), rankings) for shard in range(shards)]
        taken = [_processor(partial(merged, parts, 1, TOP_K)) for _ in range(200)]
        seconds[shards] = max(float(np.median(taken)), 1e-9)
    return Wire(
        request_bytes=len(pickle.dumps(asked)),
        reply_bytes=len(pickle.dumps(Answer(rankings, None))),
        merge_seconds=seconds,
    )


def _manifest_bytes(data: Data, folder: Path) -> tuple[float, float]:
    """Those of a manifest without segments and those of one segment, by two indexes of different segments."""
    corpus = data.write_parquet(folder / "segments.parquet", 512, with_text=False)

    def length(segment_docs: int) -> tuple[int, int]:
        directory = IndexDirectory(folder / f"segments-{segment_docs}")
        manifest: Manifest = build_index([corpus], directory, BuildOptions(segment_docs=segment_docs)).manifest
        return len(manifest.segments), directory.manifest_file(manifest.generation).stat().st_size

    (few, less), (many, more) = length(256), length(16)
    each = (more - less) / (many - few)
    return less - few * each, each


def _verify_seconds() -> float:
    block = torch.zeros(VERIFIED_BYTES // 8, dtype=torch.int64).numpy().tobytes()
    return min(_processor(lambda: checksum(block)) for _ in range(3)) / VERIFIED_BYTES


def as_latencies(path: Path) -> Latencies:
    """Latencies that were measured elsewhere, such as those of the shards of a cluster, as a file of JSON has them."""
    given: Any = json.loads(path.read_bytes())
    return Latencies.model_validate(given)
