"""Where the segments of a build lie while they are made, as whoever works on one of them sees it.

Where the index lies in a folder, that is the folder, which all machines must see. Where it lies in object storage, it
is a folder of its own for each task, into which the files that it needs are fetched, and of which those that it has
made are put into storage: so no machine holds more of the index than the segments it works on.
"""

import contextlib
import socket
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from index.distributed.stored import StoredSegments
from index.durable import Syncer
from index.errors import ClusterError
from index.remote.remote_index import RemoteIndex
from index.segment_records import SegmentEntry
from index.staging import BuildPlan, ReadSegment, Staging
from index.storage import IndexDirectory

__all__ = ["BuildSite", "Workspace"]


class Workspace(Protocol):
    """The folder in which a task works on one segment."""

    @property
    def staging(self) -> Staging:
        """Where it lies, and what is called how."""

    @property
    def syncer(self) -> Syncer:
        """What has files on disk."""

    def finished(self, ordinal: int) -> ReadSegment | None:
        """The segment, where an earlier run has read it completely."""

    def bring(self, ordinal: int, read: ReadSegment, names: Collection[str]) -> Path:
        """Has these of the files that were written as it was read there, and returns the segment's folder."""

    def completed(self, ordinal: int, documents: int, codebook: str | None) -> SegmentEntry | None:
        """The segment's entry, where it is complete in the form of this codebook."""

    def keep_read(self, ordinal: int, segment: ReadSegment) -> None:
        """Leaves a segment that has been read where others find it; its record last."""

    def keep_complete(self, ordinal: int, read: ReadSegment) -> None:
        """Leaves what makes a segment complete where others find it; segment.json last."""


@dataclass(frozen=True, slots=True)
class BuildSite:
    """An index that is being built, as a task is told of it."""

    directory: IndexDirectory
    plan: BuildPlan
    generation: int

    @classmethod
    def of(cls, staging: Staging) -> "BuildSite":
        """That of an unfinished build."""
        directory = staging.directory
        # Tasks run in other folders than the driver.
        seen = IndexDirectory(directory.path.absolute()) if directory.is_local else directory
        return cls(seen, staging.plan, staging.generation)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """Where a task works; raises ClusterError where this machine does not see the index."""
        with Syncer() as syncer, contextlib.ExitStack() as stack:
            if isinstance(self.directory, RemoteIndex):
                scratch = IndexDirectory(stack.enter_context(tempfile.TemporaryDirectory(prefix="gaussearch-")))
                yield StoredSegments(self._staging_in(scratch), self.directory.storage, syncer)
            else:
                yield _SharedFolder(self._staging_in(self.directory), syncer)
                syncer.finish()

    def _staging_in(self, directory: IndexDirectory) -> Staging:
        return Staging(directory, self.plan, self.generation)


class _SharedFolder:
    """The index's own folder, which this machine sees as the driver does."""

    def __init__(self, staging: Staging, syncer: Syncer) -> None:
        if not (staging.path / "plan.json").is_file():
            raise ClusterError(
                f"{socket.gethostname()}, a node of the Ray cluster, does not see {staging.directory.path}, where the "
                "index is being built: give a path that all nodes share, or a location in object storage (s3://...)"
            )
        self.staging, self.syncer = staging, syncer

    def finished(self, ordinal: int) -> ReadSegment | None:
        """As Workspace."""
        return self.staging.finished_segment(ordinal, self.staging.rejected_of(ordinal))

    def bring(self, ordinal: int, read: ReadSegment, names: Collection[str]) -> Path:
        """As Workspace: they are there."""
        del read, names
        return self.staging.folder(ordinal)

    def completed(self, ordinal: int, documents: int, codebook: str | None) -> SegmentEntry | None:
        """As Workspace: the encoding looks itself."""
        del ordinal, documents, codebook
        return None

    def keep_read(self, ordinal: int, segment: ReadSegment) -> None:
        """As Workspace."""
        # Before the record says that they are there: the driver, on another machine, could not learn that they are not.
        self.syncer.finish()
        self.staging.write_record(ordinal, segment)

    def keep_complete(self, ordinal: int, read: ReadSegment) -> None:
        """As Workspace: it lies there."""
