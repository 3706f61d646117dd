"""Kind flat on a CUDA device against the least that the device could do for it: the bytes of its documents read once,
and the multiplications of its scores made as fast as a large matrix product makes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import torch
from benchmark_data import Data
from benchmark_engine import searching
from benchmark_measure import Contender, Figure, Series, repeating, take_turns

from index import BuildOptions, Encoding, Gaussians, IndexDirectory, LocalSearcher, Precision, build_index
from index.scanning import SCANNED

BATCHES = (1, 32, 128)
CANDIDATES = 100
SQUARE = 8192
"""Rows and columns of the matrices whose product shows how fast a device multiplies."""
TYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}
READ_BYTES = 1 << 31


def gpu_part(
    data: Data, sizes: list[int], folder: Path, seconds: float, rounds: int, device: torch.device
) -> Iterator[Figure]:
    """Searches, scans, bare matrix products of a scan's shape, and the floor of both, in float32 and in bfloat16."""
    precisions = [Precision.BFLOAT16] + ([Precision.FLOAT32] if has_faiss_gpu(device) else [])
    reading = _rate(_reading(device), seconds, rounds)
    yield Figure.of("gpu", "the device", "reads", reading / 1e9, "GB/s")
    for precision in precisions:
        multiplying = _rate(_multiplying(device, TYPES[precision]), seconds, rounds)
        yield Figure.of("gpu", "the device", f"multiplies, {precision}", multiplying / 1e12, "TFLOP/s")
        for documents in sizes:
            directory = IndexDirectory(folder / f"{documents}")
            if not directory.current_file.exists():
                corpus = data.write_parquet(folder / f"{documents}.parquet", documents, with_text=False)
                build_index([corpus], directory, BuildOptions(encoding=Encoding.FOLDED, device=str(device)))
                corpus.unlink()
            yield from _scans(directory, data.queries, precision, reading, multiplying, seconds, rounds, device)


def has_faiss_gpu(device: torch.device) -> bool:
    """Whether float32 can be scanned there."""
    return device.type == "cpu" or hasattr(faiss, "StandardGpuResources")


def _scans(
    directory: IndexDirectory,
    queries: Gaussians,
    precision: Precision,
    reading: float,
    multiplying: float,
    seconds: float,
    rounds: int,
    device: torch.device,
) -> Iterator[Figure]:
    searcher = LocalSearcher(directory, device=str(device), precision=precision, verify=False)
    width = SCANNED.width(queries.k) + (precision is Precision.BFLOAT16)
    # The product is of rows that begin where 16 bytes do, which is faster, and the limit of no more than is needed.
    rows = torch.randn(len(searcher), -(-width // 8) * 8, device=device).to(TYPES[precision])
    numbers = len(searcher) * width
    for batch in BATCHES:
        asked = torch.randn(batch, rows.shape[1], device=device).to(rows.dtype)
        contenders = {
            "search": searching(searcher, queries, batch),
            "scan": _scanning(searcher, queries, batch),
            "product": repeating(_synchronised(batch, device, lambda asked=asked: asked @ rows.T)),  # type: ignore[misc]
        }
        series = take_turns(contenders, seconds=seconds, rounds=rounds)
        least = max(numbers * rows.itemsize / reading, 2.0 * batch * numbers / multiplying)
        setting = f"{len(searcher)} documents, {precision}, batch {batch}"
        yield from _figures(setting, series, batch / least)


def _figures(setting: str, series: dict[str, Series], most: float) -> Iterator[Figure]:
    for name, one in series.items():
        yield Figure.rate("gpu", setting, name, one, "queries/s")
    yield Figure.of("gpu", setting, "the device's limit", most, "queries/s")
    for name, one in series.items():
        yield Figure.of("gpu", setting, f"{name} over the device's limit", one.rate().median / most, "ratio")
    yield Figure.of("gpu", setting, "scan over product", series["scan"].over(series["product"]), "ratio")


def _scanning(searcher: LocalSearcher, queries: Gaussians, batch: int) -> Contender:
    """What a search does on the device, and the proof that it goes with."""
    asked = itertools.cycle(
        queries[torch.arange(first, first + batch) % len(queries)] for first in range(0, 999, batch)
    )

    def scan() -> int:
        searcher._opened.exact.scan(next(asked), CANDIDATES)
        return batch

    return repeating(scan)


def _reading(device: torch.device) -> Callable[[], float]:
    source = torch.empty(READ_BYTES // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _synchronised(2 * source.nbytes, device, lambda: target.copy_(source))


def _multiplying(device: torch.device, kind: torch.dtype) -> Callable[[], float]:
    side = SQUARE if device.type == "cuda" else 256
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return _synchronised(2.0 * side**3, device, lambda: one @ other)


def _rate(operation: Callable[[], float], seconds: float, rounds: int) -> float:
    """Work per second."""
    return take_turns({"": repeating(operation)}, seconds=seconds, rounds=rounds)[""].rate().median


def _synchronised(work: float, device: torch.device, operation: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        operation()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return work

    return run
