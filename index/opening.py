"""A generation of an index, opened: read into memory what is scanned, mapped the rest, and taken over from the
generation before what that has open already."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from index.approximate import OpenedCodes, tail_starts
from index.documents import DocumentStore, GaussianStore
from index.errors import CorruptIndexError
from index.generation_files import deleted_rows, open_segments
from index.half_scanning import HalfScanner, bfloat16_is_faster
from index.interface import Precision
from index.manifest import Manifest
from index.memory import require_memory
from index.part import Part
from index.scanning import Scanner
from index.segment_records import SegmentEntry
from index.segments import Segment
from index.selection import Selector
from index.storage import IndexDirectory
from index.streaming import StreamedScanner
from index.tailed import TailedHalfScanner

__all__ = ["ExactScanner", "How", "OpenedIndex"]

ExactScanner = HalfScanner | TailedHalfScanner | Scanner | StreamedScanner

WORTH_COMPARING = 1 << 21
"""Documents times k from which it is measured whether bfloat16 is faster: what is smaller is scanned at once anyway."""


@dataclass(frozen=True, slots=True)
class How:
    """How an index is opened: two generations that are opened alike can share what they have in memory."""

    path: Path
    device: torch.device
    threads: int | None
    precision: Precision


@dataclass(frozen=True, slots=True, eq=False)
class OpenedIndex:
    """One generation; `codes` is None of kind flat. `half` are the folders of the segments in bfloat16."""

    how: How
    manifest: Manifest
    store: DocumentStore
    selector: Selector
    exact: ExactScanner
    codes: OpenedCodes | None
    half: tuple[Path, ...]
    lease: object
    """What keeps its files where they are, of an index in object storage."""

    @classmethod
    def open(
        cls,
        directory: IndexDirectory,
        how: How,
        manifest: Manifest | None,
        *,
        verify: bool,
        known: "OpenedIndex | None",
        segments: Sequence[str] | None = None,
    ) -> "OpenedIndex":
        """Opens the live generation, or a given one; of these segments alone, where their ids are given.

        `known` is another generation, of the same index or not. Raises the errors of IndexDirectory and of Part.of, and
        InsufficientMemoryError; a live generation that is removed while it is opened, because newer ones were
        published, is no error: the newest is opened.
        """
        known = known if known is not None and known.how == how else None
        repaired = False
        while True:
            token = directory.current_token() if manifest is None else ""
            its = manifest
            try:
                # Also the manifest may go while it is read.
                its = its or directory.manifest()
                return cls._open(directory, how, Part.of(its, segments), verify=verify, known=known)
            except (CorruptIndexError, FileNotFoundError):
                if manifest is None and directory.current_token() != token:
                    continue
                # What was fetched and has been damaged since is fetched again; once, for the disk may damage it again.
                if its is None or repaired or not directory.repair(its):
                    raise
                repaired = True

    @classmethod
    def _open(
        cls, directory: IndexDirectory, how: How, part: Part, *, verify: bool, known: "OpenedIndex | None"
    ) -> "OpenedIndex":
        manifest = part.manifest
        opened = {entry.blake3: each for entry, each in known.entries()} if known is not None else {}
        new = [entry for entry in manifest.segments if entry.blake3 not in opened]
        require_memory(manifest, directory, how.device, rows=sum(entry.documents for entry in new))
        lease = directory.fetch(manifest)
        segments = open_segments(directory, manifest, verify=verify, known=opened)
        store = DocumentStore(segments, [deleted_rows(directory, entry) for entry in manifest.segments])
        selector = Selector(segments, store.deleted, has_all_fields=part.is_whole)
        if manifest.codes is None:
            exact, half = _flat(how, manifest, segments, known, verify=verify)
            return cls(how, manifest, store, selector, exact, None, half, lease)
        codes = OpenedCodes.open(
            directory,
            part,
            manifest.codes,
            segments,
            how.threads,
            known=known.codes if known is not None else None,
        )
        max_norm = max(segment.manifest.max_norm for segment in segments)
        streamed = StreamedScanner(store, manifest.standardisation.restore(), max_norm, how.threads)
        return cls(how, manifest, store, selector, streamed, codes, (), lease)

    def entries(self) -> list[tuple[SegmentEntry, Segment]]:
        """Its segments, and how its manifest refers to them."""
        return list(zip(self.manifest.segments, self.store.segments, strict=True))


def _flat(
    how: How, manifest: Manifest, segments: list[Segment], known: OpenedIndex | None, *, verify: bool
) -> tuple[ExactScanner, tuple[Path, ...]]:
    """The scan of all segments of kind flat, and the folders of those that it has in bfloat16."""
    if known is not None and known.manifest.standardisation != manifest.standardisation:
        # Its vectors are others.
        known = None
    if known is not None:
        # As it was measured then.
        wants_half = bool(known.half)
    else:
        wants_half = how.precision is Precision.BFLOAT16 or (
            how.precision is Precision.AUTO
            and sum(map(len, segments)) * manifest.k >= WORTH_COMPARING
            and bfloat16_is_faster(how.device, manifest.k)
        )
    if not wants_half:
        vectors = known.exact if known is not None and isinstance(known.exact, Scanner) else None
        return Scanner(manifest, segments, how.device, how.threads, vectors), ()
    start = tail_starts(known.half, segments) if known is not None and known.half else None
    if known is not None and start is not None:
        base = known.exact.base if isinstance(known.exact, TailedHalfScanner) else known.exact
    else:
        for segment in segments if verify else ():
            # Nobody else reads them.
            segment.file("vectors.faiss").verify()
        base = HalfScanner(
            GaussianStore([each.gaussians for each in segments]),
            manifest.standardisation.restore(),
            how.device,
            how.threads,
        )
        start = len(segments)
    folders = tuple(each.folder for each in segments[:start])
    if start == len(segments) or not isinstance(base, HalfScanner):
        return base, folders
    tail = Scanner(manifest, segments[start:], how.device, how.threads)
    return TailedHalfScanner(base, sum(map(len, segments[:start])), tail), folders
