"""Where the design of an index ends: the tables of docs/scale.md about segments and limits, and numbers as all of its
tables have them."""

from __future__ import annotations

import numpy as np
from scale_constants import Constants, Growth
from scale_sizing import MOST, Load, Machine, segments_of
from update_readme import table

from index.array_files import rows_to_bytes
from index.build_fit import HELD_OUT, MOST_DIMENSIONS, SAMPLE
from index.build_lists import MOST_LISTS_BYTES
from index.build_options import BuildOptions
from index.calibration import MOST_CANDIDATES
from index.code_scanning import MOST_FOUND
from index.generations import MANIFEST_BYTES
from index.manifest import IndexKind

__all__ = ["LOAD", "MACHINE", "SIZES", "limits_table", "seconds", "segments_table", "shown", "size"]

SIZES = {"10 million": 10_000_000, "1 billion": 1_000_000_000, "100 billion": 100_000_000_000}
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
        ["shards", "as many as there are segments; 1 of `hnsw`", "`service/cluster/sharding.py`"],
        ["rows of a segment are numbered in", f"{row_bits} bits", "`index/segment_writing.py`, `index/array_files.py`"],
        ["documents of an index are numbered in", "64 bits", "`index/documents.py`"],
        ["ids that one process looks through for duplicates", f"{DUPLICATE_BYTES} bytes each; with `--ray` the "
         "workers share them", "`index/duplicates.py`"],
        ["one graph over all documents of `hnsw`, its links int32", f"one machine, {MOST[IndexKind.HNSW]:,} documents",
         "`index/graph.py`"],
        [f"one file with the list of each document of `ivf-fastscan`, {MOST_LISTS_BYTES >> 30} GiB, that every shard "
         "reads", f"{MOST[IndexKind.IVF_FASTSCAN]:,} documents, {lists:,} lists", "`index/build_lists.py`"],
        ["the codes of all documents are in the memory of the machine that measures a build's recall, with `--ray` too",
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
