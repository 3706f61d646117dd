"""The tables of docs/scale.md, each made of the constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scale_constants import Constants, Growth, Latencies
from scale_sizing import MOST, Load, Machine, Plan, plan, segments_of
from scale_tail import Policy, scatter
from update_readme import table

from index.array_files import rows_to_bytes
from index.build_fit import HELD_OUT, MOST_DIMENSIONS, SAMPLE
from index.build_lists import MOST_LISTS_BYTES
from index.build_options import BuildOptions
from index.calibration import MOST_CANDIDATES
from index.code_scanning import MOST_FOUND
from index.generations import MANIFEST_BYTES
from index.manifest import IndexKind

__all__ = ["SHARDS", "SIZES", "TABLES", "hedged_after", "shown", "updated"]

SIZES = {"10 million": 10_000_000, "1 billion": 1_000_000_000, "100 billion": 100_000_000_000}
SHARDS = (1, 2, 10, 30, 100)
SEED = 2023
BUSY = 0.6
"""Of the table of means: what a service should be planned for."""
MACHINE, LOAD = Machine(), Load()
SEGMENT_DOCS = (25_000, 1_000_000, 10_000_000)
DUPLICATE_BYTES = 16
"""For each id, while they are looked through: index/duplicates.py."""
MEMBER_BYTES = 4
"""The list of a document."""

_DECIMAL = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def shown(value: float, digits: int = 2) -> str:
    """A number with so many digits that mean anything, and no exponent."""
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    places = digits - 1 - int(np.floor(np.log10(abs(value))))
    rounded = round(value, places)
    return f"{rounded:,.{max(0, places)}f}" if places > 0 else f"{rounded:,.0f}"


def size(value: float) -> str:
    """Bytes, in powers of a thousand."""
    for unit, name in _DECIMAL:
        if value >= unit:
            return f"{shown(value / unit)} {name}"
    return f"{shown(value)} bytes"


def seconds(value: float) -> str:
    """A time in a unit that suits it."""
    for unit, name in ((3600 * 24, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if value >= unit * (3 if name in ("days", "min") else 1):
            return f"{shown(value / unit)} {name}"
    return f"{shown(value * 1e6)} µs"


def constants_table(constants: Constants) -> str:
    """What an index of each kind takes for a document."""
    rows = []
    for kind, pair in constants.kinds.items():
        growth, larger = Growth.of(kind, pair), pair[-1]
        rows.append(
            [
                f"`{kind}`",
                " and ".join(f"{each.documents:,}" for each in pair),
                shown(growth.disk.each, 3),
                shown(growth.memory.each, 3),
                shown(1e6 * growth.build.each, 3),
                shown(1 / growth.build.each),
                f"{shown(1e3 * larger.query_seconds)}, {shown(1e3 * growth.query.at(1e6))}",
                shown(1e3 * larger.batch_seconds),
                "exact" if larger.recall is None else f"{larger.recall:.3f}",
            ]
        )
    header = ["kind", "documents", "bytes on disk", "bytes in memory", "build, core-µs", "built a second and core",
              "ms for a query, and of 1,000,000", "core-ms of 32 together", "recall@10"]  # fmt: skip
    return table(header, rows)


def rest_table(constants: Constants) -> str:
    """What does not depend on the kind."""
    wire, (base, each) = constants.wire, constants.manifest_bytes
    merges = ", ".join(seconds(value) for value in wire.merge_seconds.values())
    return table(
        ["constant", "value"],
        [
            ["bytes of a query to one shard, and of its answer", f"{wire.request_bytes:,} and {wire.reply_bytes:,}"],
            [f"merging the answers of {', '.join(map(str, wire.merge_seconds))} shards", merges],
            ["bytes of a manifest, and of each segment in it", f"{base:,.0f} and {each:,.0f}"],
            ["checking a checksum, a second and core", size(1 / constants.verify_seconds)],
            [f"a search of {constants.latencies.documents:,} documents ({constants.latencies.what})",
             seconds(constants.latencies.service)],
        ],
    )  # fmt: skip


def plans(constants: Constants) -> list[tuple[str, IndexKind, Plan | str]]:
    """Every size with every kind."""
    return [
        (name, kind, plan(constants, kind, documents, MACHINE, LOAD))
        for name, documents in SIZES.items()
        for kind in constants.kinds
    ]


def machines_table(constants: Constants) -> str:
    """Machines, and what decided how many."""
    rows = []
    for name, kind, its in plans(constants):
        if isinstance(its, str):
            cells = [its, *[""] * 6]
        else:
            cells = [
                f"{its.shards:,} x {its.replicas:,} = {its.machines:,}",
                its.bound,
                shown(its.shard_documents, 3),
                size(its.memory_bytes),
                size(its.disk_bytes),
                seconds(its.latency),
                f"{its.busy:.0%}",
            ]
        rows.append([name, f"`{kind}`", *cells])
    header = ["documents", "kind", "shards x replicas = machines", "bound", "documents of one", "memory of one",
              "disk of one", "latency of one", "busy"]  # fmt: skip
    return table(header, rows)


def rest_of_plans_table(constants: Constants) -> str:
    """Storage, network and time."""
    rows = []
    for name, kind, its in plans(constants):
        if not isinstance(its, str):
            rows.append(
                [
                    name,
                    f"`{kind}`",
                    size(its.storage_bytes),
                    f"{size(its.gathered_bytes)}/s",
                    seconds(its.merge),
                    f"{shown(its.build_core_hours)} h, {seconds(3600 * its.build_hours)}",
                    _measuring(its),
                    seconds(its.opening),
                ]
            )
    header = ["documents", "kind", "in storage", "gathered", "merge", "build on one core, on these machines",
              "memory to measure recall",
              "until a new machine serves"]  # fmt: skip
    return table(header, rows)


def _measuring(its: Plan) -> str:
    if not its.measuring_bytes:
        return "none"
    over = " (too much)" if its.measuring_bytes > MACHINE.usable * MACHINE.memory_bytes else ""
    return f"{size(its.measuring_bytes)}{over}"


def segments_table(constants: Constants) -> str:
    """Segments and their manifest, by how large segments are."""
    rows = []
    for name, documents in SIZES.items():
        cells = []
        for segment_docs in SEGMENT_DOCS:
            segments, manifest = segments_of(documents, segment_docs, constants.manifest_bytes)
            over = " (too many)" if manifest > MANIFEST_BYTES else ""
            cells.append(f"{segments:,}, {size(manifest)}{over}")
        rows.append([name, *cells, size(DUPLICATE_BYTES * documents), size(MEMBER_BYTES * documents)])
    header = ["documents", *(f"segments of {each:,}, manifest" for each in SEGMENT_DOCS), "ids looked through",
              "lists' file"]  # fmt: skip
    return table(header, rows)


def limits_table(constants: Constants) -> str:
    """Bounds of the design, and where each is."""
    base, each = constants.manifest_bytes
    most = int((MANIFEST_BYTES - base) / each)
    largest = next(
        int(bound.le) for bound in BuildOptions.model_fields["segment_docs"].metadata if hasattr(bound, "le")
    )
    lists = next(int(bound.le) for bound in BuildOptions.model_fields["lists"].metadata if hasattr(bound, "le"))
    row_bits = 8 * (len(rows_to_bytes(np.arange(2))) - len(rows_to_bytes(np.arange(1))))
    rows = [
        ["a manifest has 16 MiB", f"{most:,} segments", "`index/generations.py`"],
        ["a segment", f"{largest:,} documents", "`index/build_options.py`"],
        ["rows of a segment are numbered in", f"{row_bits} bits", "`index/segment_writing.py`, `index/array_files.py`"],
        ["documents of an index are numbered in", "64 bits", "`index/documents.py`"],
        ["ids that one process looks through for duplicates", f"{DUPLICATE_BYTES} bytes each; with `--ray` the "
         "workers share them", "`index/duplicates.py`"],
        ["one graph over all documents of `hnsw`, its links int32", f"one machine, {MOST[IndexKind.HNSW]:,} documents",
         "`index/graph.py`"],
        [f"one file with the list of each document of `ivf-fastscan`, {MOST_LISTS_BYTES >> 30} GiB, that every shard "
         "reads", f"{MOST[IndexKind.IVF_FASTSCAN]:,} documents, {lists:,} lists", "`index/build_lists.py`"],
        ["the codes of all documents are in the memory of the machine that measures a build's recall, with `--ray`, too",
         f"{_measured_at_most(constants):,.0f} of `fastscan` on a machine as above", "`index/build_codes.py`"],
        ["documents that all is fitted on, and held out", f"{SAMPLE:,} and {HELD_OUT}, however many there are",
         "`index/build_fit.py`"],
        ["candidates whose recall is measured, and documents that are found for them",
         f"{MOST_CANDIDATES:,} and {MOST_FOUND:,}", "`index/calibration.py`, `index/code_scanning.py`"],
        ["dimensions of approximate kinds", f"k up to {MOST_DIMENSIONS:,}", "`index/build_fit.py`"],
    ]  # fmt: skip
    return table(["what", "limit", "where"], rows)


def _measured_at_most(constants: Constants) -> float:
    growth = Growth.of(IndexKind.FASTSCAN, constants.kinds[IndexKind.FASTSCAN])
    return float(f"{growth.memory.most(MACHINE.usable * MACHINE.memory_bytes):.2g}")


def _most(option: str) -> int:
    """The largest value of a build's option."""
    return next(int(bound.le) for bound in BuildOptions.model_fields[option].metadata if hasattr(bound, "le"))


def tails_table(constants: Constants) -> str:
    """Median and 99th percentile of searches by shards and load."""
    latencies = constants.latencies
    rows = []
    for shards in SHARDS:
        cells = []
        for its in latencies.samples.values():
            found = scatter(its, shards, Policy(), seed=SEED)
            cells.append(" / ".join(_times(found.quantile(share), latencies) for share in (0.5, 0.99)))
        rows.append([str(shards), *cells])
    return table(["shards", *(f"{share:.0%} busy" for share in latencies.samples)], rows)


def hedged_after(samples: list[float], share: float) -> float:
    """The latency that so many searches of one shard do not exceed."""
    return float(np.quantile(samples, share, method="higher"))


def means_table(constants: Constants) -> str:
    """What each means does for searches of the most shards."""
    latencies = constants.latencies
    its, shards = latencies.samples[BUSY], SHARDS[-1]
    late, later, latest = (hedged_after(its, share) for share in (0.9, 0.99, 0.999))
    policies = {
        "none": Policy(),
        "asked again after the 99th percentile of a shard": Policy(hedge=later),
        "asked again after the 90th": Policy(hedge=late),
        "what has come by the 99th": Policy(cut=later),
        "asked again after the 90th, what has come by the 99.9th": Policy(hedge=late, cut=latest),
    }
    rows = []
    for name, policy in policies.items():
        found = scatter(its, shards, policy, seed=SEED)
        rows.append(
            [
                name,
                *(_times(found.quantile(share), latencies) for share in (0.5, 0.99, 0.999)),
                f"{found.requests:.3f}",
                f"{found.coverage:.4f}",
                f"{found.complete:.3f}",
            ]
        )
    header = ["means", "p50", "p99", "p99.9", "requests for each", "share of the index answered from",
              "searches answered from all of it"]  # fmt: skip
    return table(header, rows)


def _times(value: float, latencies: Latencies) -> str:
    return f"{value / latencies.service:.1f}"


TABLES: dict[str, Callable[[Constants], str]] = {
    "constants": constants_table,
    "other constants": rest_table,
    "machines": machines_table,
    "storage, network, time": rest_of_plans_table,
    "segments": segments_table,
    "limits": limits_table,
    "tails": tails_table,
    "means": means_table,
}


def updated(text: str, constants: Constants, names: Iterable[str] = tuple(TABLES)) -> str:
    """The document with every table as the constants have it; ValueError where a mark is missing."""
    for name in names:
        before, opening, rest = text.partition(f"<!-- table: {name} -->\n")
        _, closing, after = rest.partition("<!-- end -->")
        if not opening or not closing:
            raise ValueError(f"docs/scale.md has no marks for the table {name!r}")
        text = f"{before}{opening}{TABLES[name](constants)}\n{closing}{after}"
    return text
