"""The tables of docs/scale.md, each made of the constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scale_constants import Constants, Growth, Latencies
from scale_limits import LOAD, MACHINE, SIZES, limits_table, seconds, segments_table, shown, size
from scale_sizing import Plan, plan
from scale_tail import Policy, scatter
from update_readme import table

from index.manifest import IndexKind

__all__ = ["SHARDS", "TABLES", "hedged_after", "updated"]

SHARDS = (1, 2, 10, 30, 100)
SEED = 2023
BUSY = 0.6
"""Of the table of means: what a service should be planned for."""


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
