"""The second half of a build: the staged segments are encoded and written in the form that their kind of index scans.

Each core makes one segment, block after block: encoded, hashed and written while the block is in its cache. That shares
the work out without handing anything over from one thread to another, which costs more than it saves: threads that
encoded for others to write took a tenth longer on two cores.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from index.background import in_order
from index.cores import available_cores, one_core_each
from index.duplicates import read_ids
from index.durable import Syncer
from index.encoding import Encoding, encode_documents
from index.errors import InvalidGaussiansError, SourceError
from index.gaussians import Gaussians
from index.manifest import FORMAT_VERSION
from index.progress import Progress, SilentProgress
from index.records import FileEntry
from index.segment_records import OPTIONAL_FILES, SegmentEntry, SegmentManifest
from index.segment_writing import complete_segment
from index.segments import find_segment
from index.sources import DocumentSource
from index.standardisation import Standardisation
from index.vectors import write_vectors

__all__ = [
    "VECTORS",
    "DocumentFiles",
    "FlatForm",
    "NotEncodableError",
    "SegmentForm",
    "encode_segment",
    "encode_segments",
    "not_encodable",
]

BLOCK_NUMBERS = 1 << 20
"""Numbers of vectors (4 MiB) that are encoded, hashed and written at a time: they stay in the processor's cache."""
GPU_BLOCK_NUMBERS = 1 << 25
"""The same for a GPU (128 MiB), for which starting an operation must cost little beside doing it."""
SYNCED_BYTES = 1 << 23
"""How much of a file is written before the disk begins with it: the less is left for the end, which is waited for."""
SEGMENTS_WAITING = 1
"""Segments at work beyond one a core, or one on a GPU: they use what the others leave while they wait for the disk."""

VECTORS = "vectors.faiss"

Block = npt.NDArray[np.float32]


class NotEncodableError(Exception):
    """A document whose vector float32 cannot hold: `row` of the segment that lies in `folder`."""

    def __init__(self, error: InvalidGaussiansError, folder: Path) -> None:
        super().__init__(str(error))
        self.folder, self.row = folder, error.row or 0

    def located(self, corpus: DocumentSource) -> SourceError:
        """The same, with where the document stands, which only its corpus can tell."""
        return not_encodable(corpus, read_ids(self.folder / "ids.arrow")[self.row].as_py(), str(self))


def not_encodable(corpus: DocumentSource, document_id: str, said: str) -> SourceError:
    """The error for a document of which a NotEncodableError says something."""
    (places,) = corpus.locate([document_id]).values()
    _, _, reason = said.partition(": ")
    where = " or ".join(places) or "the corpus"
    return SourceError(f"{where}, document {document_id!r}: {reason}. Correct the row, or leave it out")


class SegmentForm(Protocol):
    """What becomes of a segment's encoded documents.

    `codebook` is the checksum of what the form was made with, if that is more than the encoding.
    """

    @property
    def encoding(self) -> Encoding:
        """How documents are encoded."""

    @property
    def codebook(self) -> str | None:
        """See above."""

    @property
    def streams(self) -> bool:
        """Whether it writes each block when it comes, out of the host's memory, wherever it was encoded."""

    def write(self, folder: Path, documents: int, width: int, blocks: Iterator[torch.Tensor]) -> dict[str, FileEntry]:
        """Writes so many vectors, which come in blocks (any, width), to vectors.faiss and what else it takes, and
        returns the files' entries."""


@dataclass(frozen=True, slots=True)
class FlatForm:
    """The vectors themselves."""

    encoding: Encoding
    codebook: str | None = None
    streams: bool = True

    def write(self, folder: Path, documents: int, width: int, blocks: Iterator[torch.Tensor]) -> dict[str, FileEntry]:
        """As SegmentForm."""
        numbers = (block.numpy() for block in blocks)
        return {VECTORS: write_vectors(folder / VECTORS, documents, width, numbers)}


class DocumentFiles(Protocol):
    """What is known of the documents of a segment."""

    @property
    def documents(self) -> int:
        """How many there are."""

    @property
    def k(self) -> int:
        """Of how many dimensions."""

    @property
    def files(self) -> dict[str, FileEntry]:
        """Their files' entries."""


class _Staged(NamedTuple):
    """A segment that has been read, and its documents (n, 2k), means | variances."""

    folder: Path
    read: DocumentFiles
    gaussians: Block

    @classmethod
    def of(cls, folder: Path, read: DocumentFiles) -> "_Staged":
        # Mapped for writing, in private, because torch takes no memory that it must not write to.
        return cls(folder, read, np.load(folder / "gaussians.npy", mmap_mode="c", allow_pickle=False))


def encode_segment(
    folder: Path,
    segment: DocumentFiles,
    form: SegmentForm,
    standardisation: Standardisation,
    device: torch.device,
    syncer: Syncer,
) -> SegmentEntry:
    """As `encode_segments`, of one, in this thread; torch should keep to one core there."""
    return _complete(form, standardisation, device, SilentProgress(), syncer, _Staged.of(folder, segment))


def encode_segments(
    folders: Sequence[Path],
    segments: Sequence[DocumentFiles],
    form: SegmentForm,
    standardisation: Standardisation,
    device: torch.device,
    progress: Progress,
    syncer: Syncer,
    proceed: Callable[[], object] = lambda: None,
) -> list[SegmentEntry]:
    """Makes the segments that have been read into `folders` complete, but for those that an earlier run has completed.

    `proceed` is called before each; what it raises ends the work. Raises NotEncodableError for a document that float32
    cannot hold, and OSError.
    """

    def staged() -> Iterator[_Staged]:
        for folder, segment in zip(folders, segments, strict=True):
            proceed()
            # Here and not in the threads: NumPy parses the header as Python, in which CPython 3.11 fails now and then
            # when two threads do it (SystemError: AST constructor recursion depth mismatch).
            yield _Staged.of(folder, segment)

    complete = partial(_complete, form, standardisation, device, progress, syncer)
    at_work = (available_cores() if device.type == "cpu" else 1) + SEGMENTS_WAITING
    with one_core_each(at_work) as threads:
        return list(in_order(threads, complete, staged(), ahead=at_work - 1))


def _complete(
    form: SegmentForm,
    standardisation: Standardisation,
    device: torch.device,
    progress: Progress,
    syncer: Syncer,
    staged: _Staged,
) -> SegmentEntry:
    """Writes the vectors of a segment, and then the manifest that makes it whole."""
    folder, read, gaussians = staged
    finished = find_segment(folder, read.documents, form.codebook)
    if finished is not None:
        progress.advance(read.documents)
        return finished
    try:
        files, max_norm = _write_encoded(folder, gaussians, form, standardisation, device, progress, syncer)
    except InvalidGaussiansError as error:
        raise NotEncodableError(error, folder) from error
    # What another form has left of a build that went on to this one.
    for name in OPTIONAL_FILES - {*read.files, *files}:
        (folder / name).unlink(missing_ok=True)
    for name in files:
        syncer.sync(folder / name)
    manifest = SegmentManifest(
        format_version=FORMAT_VERSION,
        id=folder.name,
        documents=read.documents,
        k=read.k,
        encoding=form.encoding,
        max_norm=max_norm,
        codebook=form.codebook,
        files={**read.files, **files},
    )
    entry = complete_segment(folder, manifest)
    syncer.sync(folder / "segment.json")
    return entry


def _write_encoded(
    folder: Path,
    gaussians: Block,
    form: SegmentForm,
    standardisation: Standardisation,
    device: torch.device,
    progress: Progress,
    syncer: Syncer,
) -> tuple[dict[str, FileEntry], float]:
    """Writes documents (n, 2k), means | variances, encoded on `device`, in the form's way to files in `folder`.

    Returns the files' entries and the largest L2 norm of a vector. Of what is streamed all but the end is on its way to
    the disk.
    Raises InvalidGaussiansError with the row whose vector does not fit float32.
    """
    documents, k = len(gaussians), gaussians.shape[1] // 2
    width, largest = form.encoding.width(k), 0.0
    numbers = BLOCK_NUMBERS if device.type == "cpu" else GPU_BLOCK_NUMBERS
    rows = max(1, min(documents, numbers // width))
    # Taken once: new memory for each block would have to be mapped and cleared.
    memory = torch.empty(rows, width)

    def blocks() -> Iterator[torch.Tensor]:
        nonlocal largest
        unsynced = 0
        for start in range(0, documents, rows):
            block = torch.from_numpy(gaussians[start : start + rows]).to(device)
            # Checked when they were read.
            part = Gaussians.unchecked(block[:, :k], block[:, k:])
            vectors = memory[: len(block)]
            # On a GPU there first: straight into the memory of the host, each column would be a copy of its own.
            out = vectors if device.type == "cpu" else None
            try:
                encoded = encode_documents(part, form.encoding, standardisation, out=out)
            except InvalidGaussiansError as error:
                raise InvalidGaussiansError(str(error), row=start + (error.row or 0)) from error
            if form.streams and out is None:
                encoded = vectors.copy_(encoded)
            largest = max(largest, _largest_norm(encoded.cpu().numpy()))
            yield encoded
            progress.advance(len(vectors))
            unsynced += vectors.nbytes
            if form.streams and unsynced >= SYNCED_BYTES:
                syncer.sync(folder / VECTORS)
                unsynced = 0

    return form.write(folder, documents, width, blocks()), largest


def _largest_norm(vectors: Block) -> float:
    largest = float(np.sqrt(np.einsum("ij,ij->i", vectors, vectors).max()))
    if math.isfinite(largest):
        return largest
    # The square of a large float32 is not one; float64 takes seven times as long, and holds it.
    return float(np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1).max()))
