"""The documents of a build's segments where each is looked at by a task: index.staged_documents.StagedDocuments."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from index.candidates import Scores
from index.distributed.segment_tasks import Staged, gather, list_documents, scan_segment, score_pairs
from index.distributed.tasks import Tasks
from index.documents import Numbers
from index.errors import CorruptIndexError, InvalidGaussiansError
from index.gaussians import Gaussians
from index.layout import Folder
from index.progress import Progress
from index.records import FileEntry
from index.remote.remote_index import RemoteIndex
from index.scanning import Found
from index.staged_documents import ListNumbers, LocalDocuments
from index.standardisation import Standardisation
from index.storage import IndexDirectory
from index.streaming import merged

__all__ = ["RayDocuments"]


class RayDocuments:
    """Documents that no machine holds all of, but for what `batches` is used for."""

    def __init__(self, tasks: Tasks, directory: IndexDirectory, staged: Sequence[Staged], gpus: float) -> None:
        """`gpus` are those of a task that encodes, where the cluster has any."""
        self._tasks, self._directory, self._staged, self._gpus = tasks, directory, staged, gpus
        self._starts = np.cumsum([0, *(each.segment.documents for each in staged)]).astype(np.int64)
        self.files: dict[str, dict[str, FileEntry]] = {}
        """Of each complete segment, by its id."""

    @property
    def k(self) -> int:
        """As StagedDocuments."""
        return self._staged[0].segment.k

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, numbers: Numbers) -> Gaussians:
        """As StagedDocuments."""
        both = np.empty((len(numbers), 2 * self.k), np.float32)
        owners = self._owners(numbers)
        parts = self._parts(owners)
        calls = [(self._staged[owner], numbers[places] - self._starts[owner]) for owner, places in parts]
        for (_, places), its in zip(parts, self._tasks.run(gather, calls), strict=True):
            both[places] = its
        return Gaussians.unchecked(
            torch.from_numpy(both[:, : self.k].copy()), torch.from_numpy(both[:, self.k :].copy())
        )

    def batches(self, rows: int) -> Iterator[Gaussians]:
        """As StagedDocuments: here, one segment after the other."""
        for site, ordinal, segment in self._staged:
            with site.workspace() as work:
                folder = work.bring(ordinal, segment, ["gaussians.npy"])
                yield from LocalDocuments([np.load(folder / "gaussians.npy", mmap_mode="r")]).batches(rows)

    def best(self, queries: Gaussians, count: int, standardisation: Standardisation) -> Numbers:
        """As StagedDocuments."""
        queries, standardisation = self._tasks.share(queries), self._tasks.share(standardisation)
        calls = [(each, queries, count, standardisation) for each in self._staged]

        def parts() -> Iterator[Found]:
            for start, found in zip(self._starts, self._tasks.run(scan_segment, calls), strict=False):
                if isinstance(found, InvalidGaussiansError):
                    raise CorruptIndexError(f"gaussians.npy, counted from document {start}: {found}") from found
                yield from ((scores, np.where(rows < 0, -1, rows + start), most) for scores, rows, most in found)

        return merged(parts(), count)[1]

    def scores(self, queries: Gaussians, numbers: Numbers) -> Scores:
        """As StagedDocuments."""
        scores = np.full(numbers.size, -np.inf)
        flat, which = numbers.ravel(), np.repeat(np.arange(len(numbers)), numbers.shape[1])
        parts = self._parts(self._owners(flat))
        shared = self._tasks.share(queries)
        calls = [
            (self._staged[owner], shared, which[places], flat[places] - self._starts[owner]) for owner, places in parts
        ]
        for (_, places), its in zip(parts, self._tasks.run(score_pairs, calls), strict=True):
            scores[places] = its
        return scores.reshape(numbers.shape)

    def lists(
        self, centroids: torch.Tensor, standardisation: Standardisation, device: torch.device, progress: Progress
    ) -> ListNumbers:
        """As StagedDocuments; `device` is where the driver clusters, and says nothing of the tasks."""
        del device
        shared, standardisation = self._tasks.share(centroids), self._tasks.share(standardisation)
        where = "cuda" if self._gpus else "cpu"
        calls = [(each, shared, standardisation, where) for each in self._staged]
        members = []
        for its in self._tasks.run(list_documents, calls, gpus=self._gpus):
            members.append(its)
            progress.advance(len(its))
        return np.concatenate(members)

    def fetch(self, segment: str, name: str) -> None:
        """As StagedDocuments: where all machines see the folder, it is there."""
        if isinstance(self._directory, RemoteIndex):
            folder = self._directory.segments / segment
            folder.mkdir(parents=True, exist_ok=True)
            entry = self.files[segment][name]
            self._directory.storage.download(f"{Folder.SEGMENTS}/{segment}/{name}", folder / name, entry)

    def _owners(self, numbers: Numbers) -> Numbers:
        """The segment of each document (m,); -1 where there is none."""
        return np.where(numbers < 0, -1, np.searchsorted(self._starts, numbers, side="right") - 1)

    def _parts(self, owners: Numbers) -> list[tuple[int, Numbers]]:
        """The segments that own any, and the places of theirs."""
        order = np.argsort(owners, kind="stable")
        values, firsts = np.unique(owners[order], return_index=True)
        return [
            (int(owner), places)
            for owner, places in zip(values, np.split(order, firsts[1:]), strict=True)
            if owner >= 0
        ]
