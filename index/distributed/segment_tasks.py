"""What a task of a build does with one segment, or one file: plain functions, which a cluster runs on any machine.

Each does what the local build does for a segment in one of its threads, on one core, so that every number is the same.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from index.build_encoding import NotEncodableError, SegmentForm, encode_segment
from index.cores import torch_on_one_core
from index.distributed.sites import BuildSite
from index.distributed.slices import Counted, Slice, batches_of, count_rows
from index.document_writing import DocumentWriter
from index.duplicates import Hashes, hashed, ids_with_hashes, read_ids, repeated_hashes
from index.errors import ClusterError, CorruptIndexError, InvalidGaussiansError
from index.gaussians import Gaussians
from index.records import FileEntry
from index.rescoring import negative_kl
from index.rows import Columns, VarianceAs
from index.scanning import Found
from index.segment_records import SegmentEntry
from index.segments import read_segment_manifest
from index.source_hashes import hash_pieces
from index.sources import Corpus, RejectedRows
from index.staged_documents import READ_TOGETHER, ListNumbers, LocalDocuments, lists_of_block
from index.staging import ReadSegment
from index.standardisation import Standardisation
from index.vectors import resolve_device

__all__ = [
    "Completed",
    "CorpusFiles",
    "Read",
    "Staged",
    "Unencodable",
    "complete_segment",
    "count_file",
    "gather",
    "hash_ids",
    "hash_part",
    "ids_with",
    "list_documents",
    "read_slice",
    "repeated_of",
    "scan_segment",
    "score_pairs",
]

PARTITION_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Spreads the hashes of short ids, which are small numbers, over all partitions."""


@dataclass(frozen=True, slots=True)
class CorpusFiles:
    """A corpus, as a task is told of it: file names as the user gave them, and the folder that they are relative to."""

    files: tuple[Path, ...]
    folder: Path
    columns: Columns
    variance_as: VarianceAs
    skips: bool

    @contextlib.contextmanager
    def opened(self, rejected: RejectedRows | None = None) -> Iterator[Corpus]:
        """The corpus; raises ClusterError where this machine does not see one of its files."""
        with self.seen(self.files):
            yield Corpus(self.files, columns=self.columns, variance_as=self.variance_as, rejected=rejected)

    @contextlib.contextmanager
    def seen(self, files: tuple[Path, ...]) -> Iterator[None]:
        """Within the block the names are those of the files; raises ClusterError where one of these is not there."""
        before = Path.cwd()
        for file in files:
            if not (self.folder / file).is_file():
                raise ClusterError(
                    f"{socket.gethostname()}, a node of the Ray cluster, does not see {self.folder / file}: give "
                    "sources at a path that all nodes share"
                )
        if any(not file.is_absolute() for file in files):
            # So that messages call them what the local build calls them; a worker runs one task at a time.
            os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)


class Read(NamedTuple):
    """A slice that has been read: its segment, None where it has no good row; whether an earlier run had read it; how
    many rows were left out, the file that lists them, and the first of them in words."""

    segment: ReadSegment | None
    resumed: bool
    rejected: int
    listed: bytes
    first_rejected: str | None


class Staged(NamedTuple):
    """A segment that has been read, and where."""

    site: BuildSite
    ordinal: int
    segment: ReadSegment


class Completed(NamedTuple):
    """A complete segment's entry, and its files'."""

    entry: SegmentEntry
    files: dict[str, FileEntry]


class Unencodable(NamedTuple):
    """A document that float32 cannot hold, and what is said of it."""

    document_id: str
    said: str


def hash_part(corpus: CorpusFiles, index: int, first: int, pieces: int) -> list[str]:
    """As index.source_hashes.hash_pieces, of a file."""
    file = corpus.files[index]
    with corpus.seen((file,)):
        return hash_pieces(file, first, pieces, threads=1)


def count_file(corpus: CorpusFiles, index: int, k: int | None) -> list[Counted]:
    """As index.distributed.slices.count_rows."""
    with torch_on_one_core(), corpus.opened() as opened:
        return count_rows(opened, index, k, skips=corpus.skips)


def read_slice(site: BuildSite, corpus: CorpusFiles, part: Slice, k: int | None) -> Read:
    """Reads a slice into a segment, unless an earlier run has. Raises SourceError and OSError."""
    with site.workspace() as work:
        staging, ordinal = work.staging, part.ordinal
        listed_in = staging.rejected_of(ordinal)
        finished = work.finished(ordinal)
        if finished is not None:
            return _read(finished, listed_in, None, resumed=True)
        # What a task that was killed has listed there.
        listed_in.unlink(missing_ok=True)
        rejected = RejectedRows(listed_in) if corpus.skips else None
        with (
            corpus.opened(rejected) as opened,
            rejected or contextlib.nullcontext(),
            torch_on_one_core(),
            DocumentWriter(staging.folder, site.plan.segment_docs, ordinal, work.syncer) as writing,
        ):
            for batch in batches_of(opened, part, k):
                writing.add(batch)
            listed = (rejected.count, rejected.entry) if rejected is not None else (0, None)
            first = None if rejected is None else rejected.first
            if not writing.documents:
                return Read(None, False, listed[0], _content(listed_in), first)
            segment = ReadSegment.of(writing.finish(), part.last[:2], listed)
        work.keep_read(ordinal, segment)
        return _read(segment, listed_in, first, resumed=False)


def _read(segment: ReadSegment, listed_in: Path, first: str | None, *, resumed: bool) -> Read:
    return Read(segment, resumed, segment.rejected, _content(listed_in), first)


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def complete_segment(
    staged: Staged, form: SegmentForm, standardisation: Standardisation, device: str
) -> Completed | Unencodable:
    """Makes a segment that has been read complete, unless an earlier run has. Raises DeviceUnavailableError."""
    site, ordinal, read = staged
    with site.workspace() as work, torch_on_one_core():
        entry = work.completed(ordinal, read.documents, form.codebook)
        folder = work.staging.folder(ordinal)
        if entry is None:
            work.bring(ordinal, read, ["gaussians.npy"])
            try:
                entry = encode_segment(folder, read, form, standardisation, resolve_device(device), work.syncer)
            except NotEncodableError as error:
                work.bring(ordinal, read, ["ids.arrow"])
                return Unencodable(read_ids(folder / "ids.arrow")[error.row].as_py(), str(error))
            work.keep_complete(ordinal, read)
        return Completed(entry, read_segment_manifest(folder, entry).files)


def hash_ids(staged: Staged, base: int, partitions: int) -> list[Hashes]:
    """The hashes of a segment's ids, in partitions: equal ids are in the same one, of all segments."""
    with _opened(staged, "ids.arrow") as folder:
        chunks = read_ids(folder / "ids.arrow").chunks
        hashes = np.concatenate([part for chunk in chunks for _, part in hashed(chunk, base)])
    owners = ((hashes * PARTITION_FACTOR) >> np.uint64(32)) % np.uint64(partitions)
    return [hashes[owners == partition] for partition in range(partitions)]


def repeated_of(*partition: Hashes) -> Hashes:
    """The hashes that are there more than once in a partition, of which each segment has given its own."""
    return repeated_hashes(partition)


def ids_with(staged: Staged, base: int, wanted: Hashes) -> set[str]:
    """The ids of a segment that have one of these hashes."""
    with _opened(staged, "ids.arrow") as folder:
        return ids_with_hashes(read_ids(folder / "ids.arrow").chunks, base, wanted)


def gather(staged: Staged, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The Gaussians (m, 2k) of rows (m,) of a segment, means | variances."""
    with _gaussians(staged) as documents:
        return documents.take(rows)


def scan_segment(
    staged: Staged, queries: Gaussians, count: int, standardisation: Standardisation
) -> list[Found] | InvalidGaussiansError:
    """What is found in each part of a segment, rows numbered from 0; the error for a document that float32 cannot
    hold, whose cause would be lost on the way."""
    with _gaussians(staged) as documents:
        try:
            return list(documents.parts(queries, count, standardisation, threads=1))
        except CorruptIndexError as error:
            if not isinstance(error.__cause__, InvalidGaussiansError):
                raise
            return error.__cause__


def score_pairs(
    staged: Staged, queries: Gaussians, which: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Exact -KL (m,) of queries number `which` (m,) and rows (m,) of a segment."""
    means, variances = queries.means.double().numpy(), queries.variances.double().numpy()
    with _gaussians(staged) as documents:
        scores = np.empty(len(rows))
        for start in range(0, len(rows), READ_TOGETHER):
            part = slice(start, start + READ_TOGETHER)
            its = which[part]
            scores[part] = negative_kl(means[its], variances[its], *documents.gaussians(rows[part]))
        return scores


def list_documents(
    staged: Staged, centroids: torch.Tensor, standardisation: Standardisation, device: str
) -> ListNumbers:
    """The lists of a segment's documents, (n,)."""
    on_device = centroids.to(resolve_device(device))
    with _gaussians(staged) as documents, torch_on_one_core():
        blocks = documents.batches(READ_TOGETHER)
        return np.concatenate([lists_of_block(on_device, standardisation, block) for block in blocks])


@contextlib.contextmanager
def _opened(staged: Staged, name: str) -> Iterator[Path]:
    """The folder of a segment, with a file of it."""
    with staged.site.workspace() as work:
        yield work.bring(staged.ordinal, staged.segment, [name])


@contextlib.contextmanager
def _gaussians(staged: Staged) -> Iterator[LocalDocuments]:
    """The documents of a segment."""
    with _opened(staged, "gaussians.npy") as folder:
        yield LocalDocuments([np.load(folder / "gaussians.npy", mmap_mode="r", allow_pickle=False)])
