"""Measure the engine, the service, the build and the encoding against what one would otherwise use, on this machine.

    python scripts/benchmark.py                                            everything, on 117,659 documents
    python scripts/benchmark.py --parts engine --corpus docs.parquet --queries queries.parquet
    python scripts/benchmark.py --json figures.json --markdown figures.md

Without --corpus, the documents are made from the carried sample (see benchmark_data.py). Everything is measured on this
machine in this run, and what is compared takes turns (see benchmark_measure.py), so ratios hold on a busy machine too;
the numbers of queries per second do not. Each part has a process of its own. What is measured:

quality   on the sample: the ranking by -KL beside cosine, and what float32 and HNSW find on the vectors as they are.
engine    LocalSearcher.search(queries, top_k=10), which encodes the queries, scans and scores exactly, over
          IndexFlatIP.search of encoded queries on the index's own document vectors (3k+1), with FAISS's defaults and
          with its matrix multiplication forced for every batch; and the folded over the simplified encoding, as
          IndexFlatIP scans them and as gaussearch does.
kinds     kind fastscan over IndexFlatIP and over FAISS's own 4-bit codes with exact scores, PQ...x4fs,RFlat, both with
          as many candidates as the same recall takes; its memory, its time to build, and its service over HTTP.
service   `gaussearch serve` over HTTP in a closed loop, over the engine in-process in batches of as many queries as
          there are clients, and over a FastAPI service without batching (benchmark_naive.py). The load generator takes
          its share of the same cores.
ray-serve the service on Ray Serve with one and with two shards over the service of one process, on this machine, where
          it is overhead alone; and, with --shard-samples, how long calls of a shard take under four loads, for
          scripts/simulate_scale.py.
writes    `gaussearch serve` with an admin key, kinds flat and fastscan: documents written one by one, by 16 clients and
          in batches, beside SQLite's commits of the same rows; publications per request; searches under a stream of
          writes over searches without; memory after 2,000 writes; compaction over a build.
filters   LocalSearcher, one query, one thread, kinds flat and fastscan: filters that let through half of the documents
          down to one in 10,000, over no filter and over IndexFlatIP with an IDSelectorBitmap; recall over float64
          brute force; a filter's first evaluation; a tenth of the documents deleted over none.
build     build_index from a file to a published, checksummed and synced index, over a loop that encodes arrays in
          memory and adds them to one IndexFlatIP; and the peak memory of `gaussearch build` at two sizes of corpus.
ray-build build_index on a Ray cluster of this machine, 1, 2 and 4 tasks at a time, over the same in this process, kinds
          flat and ivf-fastscan; and the peak memory of a worker at two sizes of corpus and of segment.
encoding  encode_documents on a CUDA device, over a copy of as many bytes within its memory.
gpu       kind flat on a CUDA device, in bfloat16 and, with faiss-gpu, in float32, at two sizes of corpus: searches, and
          scans alone, over the fewest bytes and operations that the device can do it with.
curves    recall against latency of every kind, of FAISS, and of the peers that are installed (the extra `peers`), with
          build time, bytes of a document and peak memory; scripts/benchmark_plot.py draws them. Takes half an hour.
growth    the same of our kinds from 10,000 documents on. Takes half an hour up to 1,000,000.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from benchmark_build import MEMORY_IS_SHOWN, build_part, memory_part
from benchmark_curves import curves_part, growth_part
from benchmark_data import Data
from benchmark_engine import encoding_part, engine_part
from benchmark_filters import filters_part
from benchmark_gpu import gpu_part
from benchmark_kinds import kinds_part
from benchmark_measure import Figure, environment
from benchmark_quality import quality_part
from benchmark_ray_build import ray_build_part
from benchmark_ray_serve import ray_part
from benchmark_service import service_part
from benchmark_writes import writes_part
from rich.console import Console
from rich.table import Table

PARTS = (
    "quality",
    "engine",
    "kinds",
    "service",
    "ray-serve",
    "writes",
    "filters",
    "build",
    "ray-build",
    "encoding",
    "gpu",
    "curves",
    "growth",
)
RAY = "ray-serve"
COMPARED = {"engine": engine_part, "service": service_part, "filters": filters_part, RAY: ray_part}
"""Parts that are measured over one corpus, for so many seconds a contender."""
LONG_PARTS = ("curves", "growth")
GPU_PARTS = ("encoding", "gpu")
ROUNDS = {"engine": 15, "kinds": 15, "service": 9, "writes": 9, "filters": 15, "build": 15, "encoding": 15, "gpu": 9}
ROUNDS |= {RAY: 9, "ray-build": 5}
DOCUMENTS = 117_659
LARGE = 1_000_000
GROWTH = [10_000, 100_000, 1_000_000]
HEADINGS = ("setting", "measure", "median", "quartiles", "p50 / p99, ms", "target")
NUMBERS = HEADINGS[2:5]


def main() -> None:
    _end_in_order()
    options = _options()
    data = Data.read(options.corpus, options.queries)
    arguments = {"documents": _documents(options, data), "k": data.k, "queries": len(data.queries)}
    report = environment({**arguments, **_settings(options)})
    console = _console()
    figures: list[Figure] = []
    skipped: list[str] = []
    for part in options.parts:
        if part in GPU_PARTS and not torch.cuda.is_available():
            skipped.append(f"{part}: torch sees no CUDA device")
            continue
        found = _in_a_process_of_its_own(part, options)
        figures += found
        console.print(_table(part, found))
    if "build" in options.parts and not MEMORY_IS_SHOWN:
        skipped.append("build: peak memory is read from /proc, which is not here")
    for reason in skipped:
        console.print(f"skipped: {reason}")
    report |= {"figures": [dataclasses.asdict(figure) for figure in figures], "skipped": skipped}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(report, figures), encoding="utf-8")


def _in_a_process_of_its_own(part: str, options: argparse.Namespace) -> list[Figure]:
    """The figures of one part. What it allocates and how many threads it starts must not speed up the next one: a
    bare loop that builds an index is a quarter faster in a process that has searched for a minute."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # A daemon is terminated when this process ends, unless it is killed.
    process = context.Process(target=_measure, args=(part, options, sender), daemon=True)
    process.start()
    sender.close()
    try:
        found: list[Figure] = receiver.recv()
    except EOFError:
        process.join()
        sys.exit(f"{part} could not be measured: its process ended with {process.exitcode}")
    process.join()
    return found


def _measure(part: str, options: argparse.Namespace, sender: Connection) -> None:
    _end_in_order()
    data = Data.read(options.corpus, options.queries)
    with tempfile.TemporaryDirectory(prefix="gaussearch-benchmark-", dir=options.scratch) as folder:
        figures = _run(part, data, _documents(options, data), Path(folder), options)
        found = _watched(figures, _console())
    sender.send(found)


def _end_in_order() -> None:
    # So that a benchmark that is stopped stops its children and removes its files, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _documents(options: argparse.Namespace, data: Data) -> int:
    return options.documents or (len(data) if options.corpus else DOCUMENTS)


def _console() -> Console:
    # Off a terminal, lines as wide as they come: a table that is cut to 80 columns is hard to read in a log.
    return Console(width=None if sys.stdout.isatty() else 160)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--documents", type=int, help="size of the corpus (default 117659, or that of --corpus)")
    add(
        "--parts",
        type=_parts,
        default=[part for part in PARTS if part not in LONG_PARTS],
        help=f"what to measure, of {', '.join(PARTS)} (default all but the last two, which take an hour)",
    )
    add("--corpus", type=Path, help="documents to use, in any format of a build (default: made from the sample)")
    add("--queries", type=Path, help="queries to use (default: the sample's, or the first 400 documents of --corpus)")
    add("--seconds", type=float, default=2.0, help="for each contender of a comparison (default %(default)s)")
    add("--rounds", type=int, help=f"rounds of each comparison (default {ROUNDS})")
    add(
        "--memory-documents",
        type=int,
        nargs=2,
        default=[100_000, 1_000_000],
        metavar=("SMALL", "LARGE"),
        help="sizes of corpus at which a build's memory is measured (default %(default)s)",
    )
    add("--kinds-documents", type=int, nargs="+", help=f"sizes of corpus for kinds and gpu (default that and {LARGE})")
    add(
        "--growth-documents",
        type=int,
        nargs="+",
        default=GROWTH,
        help="sizes of corpus for growth (default %(default)s)",
    )
    add("--writes", type=int, default=2_000, help="writes over which memory is measured (default %(default)s)")
    add("--memory-segment", type=int, default=25_000, help="its documents per segment (default %(default)s)")
    add("--shard-samples", type=Path, help="file to write ray-serve's times of calls of a shard to, as JSON")
    add("--scratch", type=Path, help="folder for temporary files, a few gigabytes (default: the system's)")
    add("--json", type=Path, help="file to write all figures to")
    add("--markdown", type=Path, help="file to write the tables to")
    options = parser.parse_args()
    positive = (options.documents, options.seconds, options.rounds, options.writes)
    if any(value is not None and value <= 0 for value in positive):
        parser.error("--documents, --seconds, --rounds and --writes must be above 0")
    return options


def _parts(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    return chosen


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    corpus = options.corpus.name if options.corpus else "made from the sample"
    return {"corpus": corpus, "seconds": options.seconds, "rounds": options.rounds or ROUNDS}


def _run(part: str, data: Data, documents: int, folder: Path, options: argparse.Namespace) -> Iterator[Figure]:
    rounds = options.rounds or ROUNDS.get(part, 1)
    sizes = options.kinds_documents or sorted({documents, max(documents, LARGE)})
    if part == "quality":
        yield from quality_part()
    elif part in COMPARED:
        compared = functools.partial(ray_part, samples=options.shard_samples) if part == RAY else COMPARED[part]
        yield from compared(data, documents, folder, options.seconds, rounds)
    elif part == "kinds":
        yield from kinds_part(data, sizes, folder, options.seconds, rounds)
    elif part == "curves":
        yield from curves_part(data, documents, folder)
    elif part == "growth":
        yield from growth_part(data, options.growth_documents, folder)
    elif part == "writes":
        yield from writes_part(data, documents, folder, options.seconds, rounds, options.writes)
    elif part in ("build", "ray-build"):
        yield from _builds(part, data, documents, folder, options)
    elif part == "encoding":
        yield from encoding_part(data, options.seconds, rounds)
    else:
        yield from gpu_part(data, sizes, folder, options.seconds, rounds, torch.device("cuda"))


def _builds(part: str, data: Data, documents: int, folder: Path, options: argparse.Namespace) -> Iterator[Figure]:
    rounds, sizes = options.rounds or ROUNDS[part], tuple(options.memory_documents)
    if part == "ray-build":
        yield from ray_build_part(data, documents, folder, rounds, sizes, options.memory_segment)
        return
    yield from build_part(data, documents, folder, rounds)
    if MEMORY_IS_SHOWN:
        yield from memory_part(data, sizes, options.memory_segment, folder)


def _watched(figures: Iterable[Figure], console: Console) -> list[Figure]:
    """All figures; a line for each setting as it is done. A moving display would take turns, too."""
    found: list[Figure] = []
    for figure in figures:
        if not found or figure.setting != found[-1].setting:
            console.print(f"{figure.part}: {figure.setting}", style="dim")
        found.append(figure)
    return found


def _table(part: str, figures: list[Figure]) -> Table:
    table = Table(title=part, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", justify="right" if heading in NUMBERS else "left")
    previous = ""
    for figure in figures:
        if figure.setting != previous and previous:
            table.add_section()
        style = {None: "", True: "green", False: "red"}[figure.met]
        setting, *cells = _cells(figure)
        table.add_row("" if figure.setting == previous else setting, *cells, style=style)
        previous = figure.setting
    return table


def _cells(figure: Figure) -> tuple[str, ...]:
    value = _number(figure.value) + ("" if figure.unit == "ratio" else f" {figure.unit}")
    quartiles = " to ".join(map(_number, figure.quartiles)) if figure.quartiles else ""
    latency = " / ".join(map(_number, figure.latency_ms)) if figure.latency_ms else ""
    target = f"{figure.target}: {'met' if figure.met else 'missed'}" if figure.target else ""
    return figure.setting, figure.measure, value, quartiles, latency, target


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def markdown(report: dict[str, Any], figures: list[Figure]) -> str:
    """The figures as one table for each part, under what they were made with."""
    machine, arguments = report["machine"], report["arguments"]
    device = f", {machine['cuda_device']}" if machine["cuda_device"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{arguments['documents']:,} documents, k = {arguments['k']}, {arguments['queries']} queries, top 10. "
        f"{machine['cpu']}, {machine['cores']} cores{device}; {versions}; {report['date'][:10]}. "
        "Medians over rounds in which the contenders take turns, with quartiles.",
        "",
        f"    {report['command']}",
    ]
    for part in dict.fromkeys(figure.part for figure in figures):
        lines += ["", f"| {part}: {' | '.join(HEADINGS)} |", "|---|---|--:|--:|--:|---|"]
        lines += [f"| {' | '.join(_cells(figure))} |" for figure in figures if figure.part == part]
    lines += [line for reason in report["skipped"] for line in ("", f"Skipped: {reason}.")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
