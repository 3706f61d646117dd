"""Segments put together: small ones, and those of which much has been deleted, become full ones again.

Every write makes a segment, and a scan looks into each. So eight small ones of about a size are merged into one, which
in the end is full: a document is written a few times in all (log-structured merging: O'Neil et al., "The log-structured
merge-tree", 1996, in its tiered form). Compaction, asked for, does so with all that are not full, and makes a graph or
lists anew.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch

from index.build_fit import sample_of
from index.build_graph import link_documents
from index.codes_record import CodesRecord, GraphRecord
from index.document_writing import DocumentBatch
from index.documents import Numbers
from index.durable import checksum, write_atomically
from index.gaussians import Gaussians
from index.generation_files import structure_file
from index.lists import Lists
from index.manifest import Manifest
from index.records import FileEntry
from index.segment_records import SegmentEntry
from index.segments import Segment, open_segment, verify_segment
from index.staged_documents import LocalDocuments
from index.writer import IndexWriter

__all__ = ["BATCH_ROWS", "compact", "due_merges", "live_batches", "live_rows", "merge", "rows_batch"]

FANOUT = 8
"""Segments that are merged into one; a document is written again for each tier that it goes up."""
MOSTLY_DELETED = 0.5
"""The share of a segment's rows whose deletion makes it worth writing it anew."""
BATCH_ROWS = 4096


def live_rows(segment: Segment, deleted: Numbers) -> Numbers:
    """The rows of a segment that are documents, ascending."""
    return np.setdiff1d(np.arange(len(segment)), deleted, assume_unique=True)


def rows_batch(segment: Segment, rows: Numbers) -> DocumentBatch:
    """These documents of a segment."""
    both = torch.from_numpy(segment.gaussians[rows])
    k = both.shape[1] // 2
    taken = pa.array(rows)
    payload = segment.payload.take(taken) if segment.payload is not None else None
    ids = pa.concat_arrays(segment.ids.take(taken).chunks)
    return DocumentBatch(segment.folder, ids, Gaussians.unchecked(both[:, :k], both[:, k:]), payload)


def live_batches(segment: Segment, deleted: Numbers) -> Iterator[DocumentBatch]:
    """The documents of a segment, some at a time."""
    rows = live_rows(segment, deleted)
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows_batch(segment, rows[start : start + BATCH_ROWS])


def due_merges(manifest: Manifest) -> list[list[int]]:
    """The places of segments that are worth merging, those that become one together."""
    full = manifest.settings.segment_docs
    tiers: dict[int, list[int]] = {}
    worn: list[list[int]] = []
    for place, entry in enumerate(manifest.segments[manifest.covered :], start=manifest.covered):
        if entry.live < entry.documents * (1 - MOSTLY_DELETED) and manifest.documents:
            worn.append([place])
        elif 2 * entry.live <= full:
            tiers.setdefault(int(math.log(max(1, entry.live), FANOUT)), []).append(place)
    return [*worn, *(places for places in tiers.values() if len(places) >= FANOUT)]


def merge(writer: IndexWriter, groups: Sequence[Sequence[int]]) -> None:
    """Writes the documents of each of these groups of segments into segments of their own.

    Raises CorruptIndexError for a segment that does not match its checksums: damage must not get new ones; and
    SourceError where payload columns have types that do not go together.
    """
    for places in groups:
        writer.cut()
        for place in places:
            verify_segment(writer.segments[place].folder, writer.manifest.segments[place])
            writer.rewrite(place, live_batches(writer.segments[place], writer.deleted[place]))
    writer.cut()


def compact(writer: IndexWriter, device: torch.device) -> tuple[list[SegmentEntry], CodesRecord | None] | None:
    """Puts all documents that are not in full segments into such, without what was deleted, and makes a structure anew
    over all: the segments and codes of the generation, or None where there is nothing to do."""
    manifest = writer.manifest
    if not manifest.documents:
        return None
    codes, full = manifest.codes, manifest.settings.segment_docs
    places = [
        place for place, entry in enumerate(manifest.segments) if entry.deletes is not None or entry.documents < full
    ]
    is_whole = manifest.structure is None or manifest.covered == len(manifest.segments)
    if is_whole and (not places or (len(places) == 1 and manifest.segments[places[0]].deletes is None)):
        return None
    merge(writer, [places])
    entries = writer.entries()
    if codes is None or manifest.structure is None:
        return entries, codes
    return entries, _restructured(writer, codes, entries, device)


def _restructured(
    writer: IndexWriter, codes: CodesRecord, entries: list[SegmentEntry], device: torch.device
) -> CodesRecord:
    """The codes with a graph over, or lists of, the documents of all these segments."""
    directory = writer.directory
    opened = [open_segment(directory.segments / entry.id, entry, verify=False) for entry in entries]
    store = LocalDocuments([segment.gaussians for segment in opened])
    standardisation = writer.manifest.standardisation.restore()
    directory.structures.mkdir(exist_ok=True)
    if codes.graph is not None:
        path = directory.structures / f"{writer.segment_id(0)}.faiss"
        sample = store.batch(sample_of(len(store)))
        links, construction = codes.graph.links, codes.graph.construction
        entry = link_documents(store, sample, standardisation, links, construction, path, writer.progress)
        graph = GraphRecord(name=path.name, file=entry, segments=len(entries), links=links, construction=construction)
        return codes.model_copy(update={"graph": graph})
    if codes.lists is None:
        return codes
    path = directory.structures / f"{writer.segment_id(0)}.safetensors"
    stored = structure_file(directory, codes.lists).contents(codes.lists.file.bytes)
    centroids = Lists.from_bytes(stored).centroids
    writer.progress.phase("putting documents into lists", len(store))
    members = store.lists(torch.from_numpy(centroids), standardisation, device, writer.progress)
    data = Lists(centroids, members).to_bytes()
    write_atomically(path, data)
    file = FileEntry(bytes=len(data), blake3=checksum(data))
    record = codes.lists.model_copy(update={"name": path.name, "file": file, "segments": len(entries)})
    return codes.model_copy(update={"lists": record})
