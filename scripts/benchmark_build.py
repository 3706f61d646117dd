"""The build against a bare loop over arrays in memory, and its peak memory at two sizes of corpus."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import torch
from benchmark_data import Data
from benchmark_measure import Contender, Figure, once, take_turns

from index import Encoding, Gaussians, IndexDirectory, build_index, encode_documents

LOOP_ROWS = 8192
SAMPLING_SECONDS = 0.02
MEMORY_IS_SHOWN = Path("/proc/self/status").exists()
GAUSSEARCH = (sys.executable, "-c", "from service.cli import main; main()")
"""The command `gaussearch`, by the Python that runs the benchmark."""


def build_part(data: Data, documents: int, folder: Path, rounds: int) -> Iterator[Figure]:
    """Documents per second: from file to published index, over arrays in memory to IndexFlatIP."""
    _, means, variances = data.arrays(documents)
    arrays = Gaussians(torch.from_numpy(means), torch.from_numpy(variances))
    parquet = data.write_parquet(folder / "corpus.parquet", documents, with_text=False)
    npz = data.write_npz(folder / "corpus.npz", documents)
    contenders = {
        "gaussearch, from Parquet": _build(parquet, folder, documents),
        "gaussearch, from NPZ": _build(npz, folder, documents),
        "bare loop, in memory": _loop(arrays, None),
        "bare loop, written and synced": _loop(arrays, folder / "loop.faiss"),
    }
    series = take_turns(contenders, seconds=0.0, rounds=rounds)
    parquet.unlink()
    npz.unlink()
    setting = f"{documents:,} documents"
    for name, one in series.items():
        yield Figure.of("build", setting, name, one.rate(), "documents/s")
    for ours, loop in itertools.product(list(series)[:2], list(series)[2:]):
        # What is asked of the build is measured against the loop that does less: it leaves nothing on disk.
        target = 0.7 if loop == "bare loop, in memory" else None
        measure = f"{ours.removeprefix('gaussearch, ')}, over {loop}"
        yield Figure.of("build", setting, measure, series[ours].over(series[loop]), "ratio", at_least=target)


def _build(corpus: Path, folder: Path, documents: int) -> Contender:
    """Reads, checks, standardises, encodes, writes, checksums, syncs and publishes."""
    target = folder / "built"

    def build() -> int:
        build_index([corpus], IndexDirectory(target))
        return documents

    return once(build, lambda: shutil.rmtree(target))


def _loop(arrays: Gaussians, path: Path | None) -> Contender:
    """Encodes and adds, and, given a path, writes the index there and syncs it."""

    def loop() -> int:
        vectors = faiss.IndexFlatIP(Encoding.SIMPLIFIED.width(arrays.k))
        for chunk in arrays.chunks(LOOP_ROWS):
            vectors.add(encode_documents(chunk, Encoding.SIMPLIFIED).numpy())
        if path is not None:
            faiss.write_index(vectors, str(path))
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return len(arrays)

    def tidy() -> None:
        if path is not None:
            path.unlink()

    return once(loop, tidy)


def memory_part(data: Data, sizes: tuple[int, int], segment_docs: int, folder: Path) -> Iterator[Figure]:
    """Peak memory of `gaussearch build` in a process of its own, at two sizes of corpus and one of segment.

    Resident memory counts pages of files that are mapped, which the system takes back when it needs them; anonymous
    memory is what the process itself holds.
    """
    peaks = []
    for documents in sizes:
        corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=False)
        command = [*GAUSSEARCH, "build", str(corpus), "--index", str(folder / "built")]
        peak = _peak_memory([*command, "--segment-docs", str(segment_docs)], folder / "build.log")
        shutil.rmtree(folder / "built")
        corpus.unlink()
        peaks.append(peak)
        setting = f"{documents:,} documents, segments of {segment_docs:,}"
        yield Figure.of("build", setting, "peak memory, resident", peak.resident / 2**20, "MiB")
        yield Figure.of("build", setting, "peak memory, anonymous", peak.anonymous / 2**20, "MiB")
    setting = f"{sizes[1]:,} over {sizes[0]:,} documents"
    small, large = peaks
    yield Figure.of("build", setting, "peak memory, resident", large.resident / small.resident, "ratio")
    anonymous = large.anonymous / small.anonymous
    yield Figure.of("build", setting, "peak memory, anonymous", anonymous, "ratio", at_most=1.15)


@dataclass(frozen=True, slots=True)
class _Peak:
    """In bytes."""

    resident: int
    anonymous: int


def _peak_memory(command: list[str], log: Path) -> _Peak:
    """Runs a command to its end and watches its memory.

    /proc rather than getrusage, whose ru_maxrss begins at what the parent had when it forked.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GAUSSEARCH_")}
    resident = anonymous = 0
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            while process.poll() is None:
                status = process_memory(process.pid)
                resident = max(resident, status.get("VmHWM", 0))
                anonymous = max(anonymous, status.get("RssAnon", 0))
                time.sleep(SAMPLING_SECONDS)
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{log.read_text(errors='replace')[-4000:]}")
    return _Peak(resident, anonymous)


def process_memory(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes; none once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.removesuffix(":"): 1024 * int(size) for name, size, _ in fields}
