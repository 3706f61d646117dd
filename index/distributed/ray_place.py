"""Builds on a Ray cluster: which cluster, and how much of it a build takes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from index.build_options import BuildOptions
from index.distributed.ray_session import ray_session
from index.distributed.ray_work import RayWork
from index.distributed.segment_tasks import CorpusFiles, hash_part
from index.distributed.tasks import Tasks
from index.errors import BuildError, DeviceUnavailableError
from index.progress import Progress
from index.source_hashes import HASHED_BYTES
from index.sources import Columns, Corpus, RejectedRows, Stamps
from index.vectors import resolve_device

__all__ = ["RayOptions", "RayPlace", "ray_place"]

PIECES = 128
"""Of a file, hashed by a task: a gigabyte."""


class RayOptions(BaseModel):
    """What a build takes of a cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: Annotated[str, Field(description="See index.distributed.ray_session.address_of.")] = ""
    tasks: Annotated[
        int | None,
        Field(ge=1, description="Tasks at a time, of one core each; as many as the cluster has cores for if not set."),
    ] = None
    gpus: Annotated[
        float,
        Field(ge=0, le=1, description="GPUs of a task that encodes, or the share of one, where the cluster has any."),
    ] = 1.0


@contextlib.contextmanager
def ray_place(options: RayOptions | None = None) -> Iterator["RayPlace"]:
    """Where a build is made on a cluster, which is joined, or started and ended with the block.

    Raises ClusterError where there is none.
    """
    options = options or RayOptions()
    with ray_session(options.address) as ray:
        yield RayPlace(Tasks(ray, options.tasks), options.gpus, has_gpus=ray.cluster_resources().get("GPU", 0) > 0)


class RayPlace:
    """index.build_work.BuildPlace on a cluster that this process is connected to."""

    def __init__(self, tasks: Tasks, gpus: float, *, has_gpus: bool) -> None:
        self._tasks, self._gpus, self._has_gpus = tasks, gpus, has_gpus

    def require(self, options: BuildOptions, *, of_texts: bool) -> torch.device:
        """As BuildPlace."""
        if of_texts:
            raise BuildError(
                "on a Ray cluster an index is built of Gaussians: make them of the texts first, on as many machines as "
                "there are files (gaussearch encode), and leave out --model"
            )
        if options.device.startswith("cuda:"):
            raise BuildError(
                f"--device {options.device}: on a Ray cluster Ray chooses which GPU; give auto, cpu or cuda"
            )
        if options.device == "cuda" and not self._has_gpus:
            raise DeviceUnavailableError("--device cuda: no node of the Ray cluster has a GPU")
        return resolve_device("cpu" if options.device == "cpu" else "auto")

    def digest(self, corpus: Corpus, options: BuildOptions) -> str:
        """As BuildPlace."""
        files, calls, counts = self._tasks.share(_files(corpus, options)), [], []
        for index, file in enumerate(corpus.files):
            parts = max(1, -(-file.stat().st_size // (PIECES * HASHED_BYTES)))
            calls += [(files, index, part * PIECES, PIECES) for part in range(parts)]
            counts.append(parts)
        hashes = self._tasks.run(hash_part, calls)
        return corpus.digest([[it for _ in range(parts) for it in next(hashes)] for parts in counts])

    def work(
        self,
        corpus: Corpus,
        options: BuildOptions,
        stamps: Stamps,
        rejected: RejectedRows,
        rejected_to: Path,
        progress: Progress,
    ) -> RayWork:
        """As BuildPlace."""
        gpus = self._gpus if self._has_gpus and options.device != "cpu" else 0.0
        return RayWork(self._tasks, corpus, _files(corpus, options), stamps, rejected, rejected_to, gpus, progress)


def _files(corpus: Corpus, options: BuildOptions) -> CorpusFiles:
    columns = Columns(options.id_column, options.mean_column, options.variance_column)
    return CorpusFiles(corpus.files, Path.cwd(), columns, options.variance_as, options.on_error == "skip")
