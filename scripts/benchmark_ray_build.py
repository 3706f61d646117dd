"""The build on a Ray cluster of this machine beside the local build, with 1, 2 and 4 tasks at a time, and what a task's
worker holds in memory for each segment."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from benchmark_build import process_memory
from benchmark_data import Data
from benchmark_measure import Contender, Figure, once, take_turns

from index import BuildOptions, IndexDirectory, build_index
from index.distributed.ray_place import RayOptions, ray_place
from index.manifest import IndexKind

TASKS = (1, 2, 4)
KINDS = (IndexKind.FLAT, IndexKind.IVF_FASTSCAN)
SAMPLING_SECONDS = 0.02
OBJECT_STORE_BYTES = 300_000_000


def ray_build_part(
    data: Data, documents: int, folder: Path, rounds: int, sizes: tuple[int, int], segment_docs: int
) -> Iterator[Figure]:
    """Documents per second, from a Parquet file to a published index, and the memory of a worker."""
    corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=False)
    with _cluster(max(TASKS)):
        for kind in KINDS:
            # Some for each task, whatever the size.
            options = BuildOptions(kind=kind, segment_docs=max(1, min(segment_docs, documents // (2 * max(TASKS)))))
            contenders = {"this process": _build(corpus, folder, documents, options, None)}
            contenders |= {
                f"Ray, {tasks} at a time": _build(corpus, folder, documents, options, tasks) for tasks in TASKS
            }
            series = take_turns(contenders, seconds=0.0, rounds=rounds)
            setting = f"{kind}, {documents:,} documents, segments of {options.segment_docs:,}"
            for name, one in series.items():
                yield Figure.of("ray-build", setting, name, one.rate(), "documents/s")
            for name in list(series)[1:]:
                over = series[name].over(series["this process"])
                yield Figure.of("ray-build", setting, f"{name}, over this process", over, "ratio")
    corpus.unlink()
    yield from _memory(data, folder, sizes, segment_docs)


def _build(corpus: Path, folder: Path, documents: int, options: BuildOptions, tasks: int | None) -> Contender:
    target = folder / "built"

    def build() -> int:
        with contextlib.ExitStack() as stack:
            place = None if tasks is None else stack.enter_context(ray_place(RayOptions(tasks=tasks)))
            build_index([corpus], IndexDirectory(target), options, place=place)
        return documents

    return once(build, lambda: shutil.rmtree(target))


def _memory(data: Data, folder: Path, sizes: tuple[int, int], segment_docs: int) -> Iterator[Figure]:
    """What the largest worker holds, kind flat: at two sizes of corpus, and with segments four times as large."""
    peaks = {}
    for documents, segment in ((sizes[0], segment_docs), (sizes[1], segment_docs), (sizes[1], 4 * segment_docs)):
        corpus = data.write_parquet(folder / "corpus.parquet", documents, with_text=False)
        with _cluster(2), _Watched() as watched, ray_place(RayOptions(tasks=2)) as place:
            built = build_index(
                [corpus], IndexDirectory(folder / "built"), BuildOptions(segment_docs=segment), place=place
            )
        largest = max(entry.bytes for entry in built.manifest.segments)
        shutil.rmtree(folder / "built")
        corpus.unlink()
        peaks[documents, segment] = watched.anonymous
        setting = f"flat, {documents:,} documents, segments of {segment:,}"
        yield Figure.of("ray-build", setting, "a segment on disk", largest / 2**20, "MiB")
        yield Figure.of("ray-build", setting, "peak memory of a worker, anonymous", watched.anonymous / 2**20, "MiB")
    setting = f"{sizes[1]:,} over {sizes[0]:,} documents"
    ratio = peaks[sizes[1], segment_docs] / peaks[sizes[0], segment_docs]
    yield Figure.of("ray-build", setting, "peak memory of a worker, anonymous", ratio, "ratio", at_most=1.15)


@contextlib.contextmanager
def _cluster(cpus: int) -> Iterator[None]:
    """A cluster of this machine that runs so many tasks at a time, however many cores there are."""
    # Before Ray is imported: it listens on loopback alone, and reports nothing.
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:
        yield
    finally:
        ray.shutdown()


class _Watched:
    """The most anonymous memory that a worker of this process's cluster has held, in bytes."""

    def __init__(self) -> None:
        self.anonymous = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLING_SECONDS):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if (process.cmdline() or [""])[0].startswith("ray::"):
                        self.anonymous = max(self.anonymous, process_memory(process.pid).get("RssAnon", 0))
