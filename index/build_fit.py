"""What every approximate kind of index is fitted on, and what its recall is measured with.

Everything is fitted on a sample of the corpus and measured on queries that are not part of the fit: half of those that
are given, or else documents of the corpus. Of these, one half chooses how much a search takes and the other measures
what it finds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from index.calibration import Calibration, HeldOut, interval, recalls
from index.codes import Codes
from index.codes_record import CodesRecord
from index.documents import Numbers
from index.durable import checksum, write_atomically
from index.encoding import Encoding, encode_documents, encode_queries
from index.errors import BuildError, CorruptIndexError, SourceError
from index.gaussians import Gaussians
from index.manifest import MeasuredRecall
from index.progress import Progress
from index.projection import Projection
from index.records import FileEntry
from index.scanning import SCANNED
from index.segment_records import SegmentEntry
from index.sources import Corpus
from index.staged_documents import StagedDocuments
from index.staging import BuildPlan, Staging
from index.standardisation import Standardisation
from index.untrusted import IndexFile

__all__ = [
    "DEPTH",
    "CodedIndex",
    "Coder",
    "CodesForm",
    "Fitting",
    "GivenQueries",
    "NotReachedError",
    "measured_recall",
    "read_queries",
    "require_recall",
    "sample_of",
]

SEED = 2023
SAMPLE = 16_384
"""Documents that everything is fitted on."""
HELD_OUT = 512
"""Documents that are held out where no queries are given; of fewer than four times as many none is, and what is fitted
on is also what is measured with. One half of them chooses the candidates, the other measures recall."""
MOST_DIMENSIONS = 1024
"""k up to which codebooks are fitted: it takes some ten matrices of (2k+1)^2 float64."""
MOST_CODEBOOK_BYTES = 1 << 31
"""More than that of any such k has."""
MOST_QUERIES = 20_000
"""Queries of a file that are used, the first ones: half for the fit, of the other half MOST_HELD_OUT."""
MOST_HELD_OUT = 1_000
DEPTH = 10
"""How many times `recall_at` is also measured, for searches for more."""
FEWEST = 64
"""Documents with which a codebook is worth fitting: four for each value of a digit."""


class NotReachedError(Exception):
    """No search reaches the recall that was asked for; the message says how near it came."""


class Coder(Protocol):
    """A codebook: what makes codes of folded vectors."""

    @property
    def width(self) -> int:
        """w, the numbers of a folded vector."""

    def encode(self, vectors: torch.Tensor) -> tuple[Codes, ...]:
        """What is stored of folded document vectors (n, w), in arrays of n rows."""

    def write(self, folder: Path, *codes: Codes) -> dict[str, FileEntry]:
        """Writes these arrays of a segment, and returns their files' entries."""

    def to_bytes(self) -> bytes:
        """The codebook as a file."""


AnyCoder = TypeVar("AnyCoder", bound=Coder)


@dataclass(frozen=True, slots=True)
class CodedIndex:
    """What a build of an approximate kind adds to a manifest."""

    segments: list[SegmentEntry]
    codes: CodesRecord
    recall: MeasuredRecall


@dataclass(frozen=True, slots=True, eq=False)
class CodesForm:
    """Segments whose vectors.faiss holds codes: index.build_encoding.SegmentForm."""

    coder: Coder
    codebook: str
    encoding: Encoding = SCANNED
    streams: bool = False

    def write(self, folder: Path, documents: int, width: int, blocks: Iterator[torch.Tensor]) -> dict[str, FileEntry]:
        """As SegmentForm."""
        codes = [np.concatenate(parts) for parts in zip(*map(self.coder.encode, blocks), strict=True)]
        if len(codes[0]) != documents or width != self.coder.width:
            raise ValueError(f"{folder}: its blocks are not {documents} vectors of {width} numbers")
        return self.coder.write(folder, *codes)


@dataclass(frozen=True, slots=True, eq=False)
class GivenQueries:
    """The first queries of a file, and the digest of the file."""

    file: Path
    gaussians: Gaussians
    digest: str


def read_queries(file: Path, like: Corpus) -> GivenQueries:
    """The queries of a file that is read like the corpus; raises SourceError."""
    corpus = like.of_queries(file)
    batches, count = [], 0
    for batch in corpus.batches():
        batches.append(batch.gaussians)
        count += len(batch)
        if count >= MOST_QUERIES:
            break
    if count < 4:
        raise SourceError(
            f"{file} has {count} queries; at least 4 are needed: to fit, to choose by and to measure with"
        )
    return GivenQueries(file, Gaussians.concatenate(batches)[:MOST_QUERIES], corpus.digest())


@dataclass(frozen=True, slots=True, eq=False)
class Fitting:
    """A build of an approximate kind at the point where its documents are staged and its projection is fitted.

    sample: numbers (s,) of documents that stand for all; documents: these; vectors: theirs, folded (s, w). `encode`
    makes the staged segments complete.
    """

    staging: Staging
    store: StagedDocuments
    standardisation: Standardisation
    encode: Callable[[CodesForm], list[SegmentEntry]]
    progress: Progress
    held_out: HeldOut
    calibration: Calibration
    projection: Projection
    sample: Numbers
    documents: Gaussians
    vectors: torch.Tensor

    @classmethod
    def of(
        cls,
        staging: Staging,
        store: StagedDocuments,
        standardisation: Standardisation,
        queries: Gaussians | None,
        encode: Callable[[CodesForm], list[SegmentEntry]],
        progress: Progress,
    ) -> "Fitting":
        """Fits on the staged documents of `store`, and on half of the queries where there are any.

        Raises NotReachedError where there is too little to fit on, or too much to fit.
        """
        if len(store) < FEWEST:
            raise NotReachedError(f"a codebook is fitted on {FEWEST} documents or more, and there are {len(store)}")
        if store.k > MOST_DIMENSIONS:
            raise NotReachedError(f"a codebook is fitted for k up to {MOST_DIMENSIONS}, and k is {store.k}")
        sample, documents, asked, held_out = _drawn(store, queries)
        progress.phase("finding the true best of held-out queries", None)
        calibration = Calibration(store, standardisation, held_out, DEPTH * (staging.plan.recall_at or 1))
        progress.phase("fitting a codebook", None)
        vectors = encode_documents(documents, SCANNED, standardisation)
        projection = Projection.fit(vectors, encode_queries(asked, SCANNED, standardisation))
        return cls(
            staging,
            store,
            standardisation,
            encode,
            progress,
            held_out,
            calibration,
            projection,
            sample,
            documents,
            vectors,
        )

    @property
    def plan(self) -> BuildPlan:
        """What is to be built."""
        return self.staging.plan

    @property
    def target(self) -> tuple[float, int]:
        """The recall that is asked for, and of how many best documents."""
        return self.plan.target_recall or 0.0, self.plan.recall_at or 1

    def kept_codebook(
        self, number: int, from_bytes: Callable[[bytes], AnyCoder], fit: Callable[[], AnyCoder]
    ) -> tuple[str, AnyCoder, FileEntry]:
        """The codebook of that number: its file's name, itself, and the file's entry. What an earlier run fitted stays,
        because segments are coded with it."""
        folder = self.staging.directory.codebooks
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.staging.segment_id(number)}.safetensors"
        try:
            data = IndexFile(path, folders=1).contents(MOST_CODEBOOK_BYTES)
            return path.name, from_bytes(data), FileEntry(bytes=len(data), blake3=checksum(data))
        except (CorruptIndexError, ValueError):
            data = fit().to_bytes()
        write_atomically(path, data)
        return path.name, from_bytes(data), FileEntry(bytes=len(data), blake3=checksum(data))

    def folder(self, segment: SegmentEntry) -> Path:
        """Where a segment lies."""
        return self.staging.directory.segments / segment.id

    def file(self, segment: SegmentEntry, name: str) -> IndexFile:
        """A file of a segment that this build has written, or found whole."""
        self.store.fetch(segment.id, name)
        return IndexFile(self.folder(segment) / name, folders=2)


def _drawn(store: StagedDocuments, queries: Gaussians | None) -> tuple[Numbers, Gaussians, Gaussians, HeldOut]:
    """The numbers of a sample of documents, these, queries to fit with, and queries to measure with."""
    rng = np.random.default_rng(SEED)
    drawn = rng.permutation(len(store))[: SAMPLE + HELD_OUT].astype(np.int64)
    # Of a corpus too small to spare documents all are used for both.
    apart = HELD_OUT if len(drawn) >= 4 * HELD_OUT else 0
    sample, others = np.sort(drawn[apart:]), np.sort(drawn[:apart] if apart else drawn[:HELD_OUT])
    documents = store.batch(sample)
    if queries is None:
        return sample, documents, documents, HeldOut(store.batch(others), others)
    measured = queries[1::2][:MOST_HELD_OUT]
    given = queries[::2]
    # As much weight for queries, which say what will be asked, as for documents, which are more.
    repeated = given[torch.arange(len(documents)) % len(given)]
    held_out = HeldOut(measured, np.full(len(measured), -1, dtype=np.int64))
    return sample, documents, Gaussians.concatenate([documents, repeated]), held_out


def sample_of(documents: int) -> Numbers:
    """The numbers of some of so many documents, ascending, that stand for all."""
    drawn = np.random.default_rng(SEED).permutation(documents)[:SAMPLE].astype(np.int64)
    return np.sort(drawn)


def measured_recall(fitting: Fitting, ranks: Numbers, candidates: int) -> MeasuredRecall:
    """What is found of the true best, by their ranks (b, depth) in what a scan finds for queries that chose nothing."""
    target, at = fitting.target
    own = int(fitting.held_out.are_documents)
    recall = float(recalls(ranks, candidates - own, at).mean())
    low, high = interval(recall, len(ranks))
    return MeasuredRecall(
        at=at,
        recall=recall,
        low=low,
        high=high,
        queries=len(ranks),
        source="documents" if own else "queries",
        candidates=candidates,
        target=target,
    )


def require_recall(recall: MeasuredRecall | None, least: float | None) -> None:
    """Raises BuildError where a measured recall is below what may be published; None is that of an exact kind."""
    if recall is not None and least is not None and recall.recall < least:
        raise BuildError(
            f"the measured recall@{recall.at} is {recall.recall:.4f} over {recall.queries} queries, below --min-recall "
            f"{least}: nothing was published; build with a higher --target-recall, and leave "
            "--candidates, --nprobe and --code-bytes to the build, or raise them"
        )
