"""The second half of a build of kind fastscan: a codebook is fitted, segments are coded, recall is measured.

Everything is fitted on a sample of the corpus and measured on queries that are not part of the fit: half of those that
are given, or else documents of the corpus. Of these, one half chooses the number of candidates and the other measures.
A build that is resumed finds the codebook that it fitted, and with it the segments that it coded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from index.calibration import MOST_CANDIDATES, Calibration, HeldOut, interval, recalls
from index.code_scanning import CodeScanner
from index.codebook import Codebook
from index.codes import read_codes, write_codes
from index.documents import GaussianStore, Numbers
from index.durable import checksum, measure, write_atomically
from index.encoding import Encoding, Standardisation, encode_documents, encode_queries
from index.errors import BuildError, SourceError
from index.gaussians import Gaussians
from index.manifest import CodesRecord, FileEntry, MeasuredRecall, SegmentEntry
from index.progress import Progress
from index.projection import Projection
from index.scanning import SCANNED
from index.sources import Corpus
from index.staging import Staging

__all__ = [
    "CodedIndex",
    "CodesForm",
    "GivenQueries",
    "NotReachedError",
    "build_codes",
    "read_queries",
    "require_recall",
]

SEED = 2023
SAMPLE = 16_384
"""Documents that everything is fitted on."""
HELD_OUT = 512
"""Documents that are held out where no queries are given; of fewer than four times as many none is, and what is fitted
on is also what is measured with. One half of them chooses the candidates, the other measures recall."""
MOST_DIMENSIONS = 1024
"""k up to which codebooks are fitted: it takes some ten matrices of (2k+1)^2 float64."""
MOST_QUERIES = 20_000
"""Queries of a file that are used, the first ones: half for the fit, of the other half MOST_HELD_OUT."""
MOST_HELD_OUT = 1_000
DEPTH = 10
"""How many times `recall_at` is also measured, for searches for more."""
FEWEST = 64
"""Documents with which a codebook is worth fitting: four for each value of a digit."""
MORE_DIGITS = 1.5
"""How many times the digits are tried next, when they miss the target with any number of candidates."""
MOST_DIGITS = 512

Encode = Callable[["CodesForm"], list[SegmentEntry]]


class NotReachedError(Exception):
    """No codes reach the recall that was asked for; the message says how near they came."""


@dataclass(frozen=True, slots=True)
class CodedIndex:
    """What a build of codes adds to a manifest."""

    segments: list[SegmentEntry]
    codes: CodesRecord
    recall: MeasuredRecall


@dataclass(frozen=True, slots=True, eq=False)
class CodesForm:
    """Segments whose vectors.faiss holds codes: index.build_encoding.SegmentForm."""

    coder: Codebook
    codebook: str
    encoding: Encoding = SCANNED
    streams: bool = False

    def write(self, path: Path, documents: int, width: int, blocks: Iterator[torch.Tensor]) -> FileEntry:
        """As SegmentForm."""
        codes = np.concatenate([self.coder.encode(block) for block in blocks])
        if len(codes) != documents or width != len(self.coder.center):
            raise ValueError(f"{path}: its blocks are not {documents} vectors of {width} numbers")
        return write_codes(path, codes, self.coder.centroids)


@dataclass(frozen=True, slots=True, eq=False)
class GivenQueries:
    """The first queries of a file, and the digest of the file."""

    file: Path
    gaussians: Gaussians
    digest: str


def read_queries(file: Path, like: Corpus) -> GivenQueries:
    """The queries of a file that is read like the corpus; raises SourceError."""
    corpus = Corpus([file], columns=like.columns, variance_as=like.variance_as)
    batches, count = [], 0
    for batch in corpus.batches():
        batches.append(batch.gaussians)
        count += len(batch)
        if count >= MOST_QUERIES:
            break
    if count < 2:
        raise SourceError(f"{file} has {count} queries; at least 2 are needed, to fit and to measure")
    return GivenQueries(file, Gaussians.concatenate(batches)[:MOST_QUERIES], corpus.digest())


def build_codes(
    staging: Staging,
    store: GaussianStore,
    standardisation: Standardisation,
    queries: Gaussians | None,
    encode: Encode,
    progress: Progress,
) -> CodedIndex:
    """Codes the staged documents of `store`, by way of `encode`, as the plan says.

    Raises NotReachedError where the plan leaves the code or the candidates open and none reach its recall.
    """
    if len(store) < FEWEST:
        raise NotReachedError(f"a codebook is fitted on {FEWEST} documents or more, and there are {len(store)}")
    if store.k > MOST_DIMENSIONS:
        raise NotReachedError(f"a codebook is fitted for k up to {MOST_DIMENSIONS}, and k is {store.k}")
    plan = staging.plan
    target, at = plan.target_recall or 0.0, plan.recall_at or 1
    fit = _Fit.of(store, queries)
    progress.phase("finding the true best of held-out queries", None)
    calibration = Calibration(store, standardisation, fit.held_out, DEPTH * at)
    progress.phase("fitting a codebook", None)
    vectors = encode_documents(fit.documents, SCANNED, standardisation)
    projection = Projection.fit(vectors, encode_queries(fit.queries, SCANNED, standardisation))
    if plan.code_bytes is not None:
        digits = 2 * plan.code_bytes
    else:
        digits = calibration.digits(projection.energies.numpy(), fit.sample, target, at, plan.candidates)
    # Two digits for a dimension are all that can be said of it.
    most = min(MOST_DIGITS, 2 * projection.dimensions)
    while True:
        digits = min(digits, most)
        name, coder, entry = _codebook(staging, projection, digits, vectors)
        segments = encode(CodesForm(coder, entry.blake3))
        progress.phase("measuring recall", None)
        scanned = max(MOST_CANDIDATES, plan.candidates or 0) + 1
        found = _scan(staging, segments, coder, standardisation, fit.held_out.gaussians, scanned)
        ranks = calibration.ranks(found)
        is_last = plan.code_bytes is not None or digits == most
        candidates = _candidates(calibration, ranks[::2], target, at, plan.candidates, is_last)
        if candidates:
            break
        if is_last:
            reached = float(recalls(ranks, MOST_CANDIDATES, at).mean())
            raise NotReachedError(
                f"codes of {digits // 2} bytes found {reached:.4f} of the true best {at} among {MOST_CANDIDATES:,} "
                f"candidates, not {target}"
            )
        digits = 2 * round(MORE_DIGITS * digits / 2)
    codes = CodesRecord(codebook=name, file=entry, digits=digits, dimensions=coder.dimensions, candidates=candidates)
    return CodedIndex(segments, codes, _measured(fit.held_out, ranks[1::2], at, candidates[0][1], target))


def _measured(held_out: HeldOut, ranks: Numbers, at: int, candidates: int, target: float) -> MeasuredRecall:
    own = int(held_out.are_documents)
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


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """What is fitted on (`documents`, whose numbers are `sample`, and `queries`), and what is measured with."""

    sample: Numbers
    documents: Gaussians
    queries: Gaussians
    held_out: HeldOut

    @classmethod
    def of(cls, store: GaussianStore, queries: Gaussians | None) -> "_Fit":
        rng = np.random.default_rng(SEED)
        drawn = rng.permutation(len(store))[: SAMPLE + HELD_OUT].astype(np.int64)
        # Of a corpus too small to spare documents all are used for both.
        apart = HELD_OUT if len(drawn) >= 4 * HELD_OUT else 0
        sample, others = np.sort(drawn[apart:]), np.sort(drawn[:apart] if apart else drawn[:HELD_OUT])
        documents = _gaussians(store, sample)
        if queries is None:
            return cls(sample, documents, documents, HeldOut(_gaussians(store, others), others))
        measured = queries[1::2][:MOST_HELD_OUT]
        given = queries[::2]
        # As much weight for queries, which say what will be asked, as for documents, which are more.
        repeated = given[torch.arange(len(documents)) % len(given)]
        held_out = HeldOut(measured, np.full(len(measured), -1, dtype=np.int64))
        return cls(sample, documents, Gaussians.concatenate([documents, repeated]), held_out)


def _gaussians(store: GaussianStore, numbers: Numbers) -> Gaussians:
    means, variances = store.gaussians(numbers)
    return Gaussians.unchecked(torch.from_numpy(means), torch.from_numpy(variances))


def _codebook(
    staging: Staging, projection: Projection, digits: int, sample: torch.Tensor
) -> tuple[str, Codebook, FileEntry]:
    """The codebook of so many digits: its file's name, itself, and the file's entry. What an earlier run fitted stays,
    because segments are coded with it."""
    folder = staging.directory.codebooks
    folder.mkdir(exist_ok=True)
    path = folder / f"{staging.segment_id(digits)}.safetensors"
    try:
        return path.name, Codebook.from_bytes(path.read_bytes()), measure(path)
    except (FileNotFoundError, ValueError):
        data = Codebook.fit(projection, digits, sample).to_bytes()
    write_atomically(path, data)
    return path.name, Codebook.from_bytes(data), FileEntry(bytes=len(data), blake3=checksum(data))


def _scan(
    staging: Staging,
    segments: Sequence[SegmentEntry],
    coder: Codebook,
    standardisation: Standardisation,
    queries: Gaussians,
    count: int,
) -> Numbers:
    """The `count` documents that codes take for the likeliest, (b, c)."""
    folder = staging.directory.segments
    codes = [read_codes(folder / it.id / "vectors.faiss", it.documents, coder.centroids) for it in segments]
    return CodeScanner(codes, coder, standardisation, threads=None).scan(queries, count)


def _candidates(
    calibration: Calibration, ranks: Numbers, target: float, at: int, given: int | None, is_last: bool
) -> list[list[int]] | None:
    """Pairs of a top_k and its candidates, for `at` and, where the corpus has as many, for DEPTH times that.

    None where no number of candidates reaches the target, or the `given` one does not and other digits may.
    """
    own = int(calibration.held_out.are_documents)
    if given is not None:
        # As a search does: no fewer than are wanted, of which a query that is a document takes one.
        taken = min(calibration.documents, max(at + own, given))
        reached = float(recalls(ranks, taken - own, at).mean()) >= target
        return [[at, taken]] if reached or is_last else None
    fewest = calibration.candidates(ranks, target, at)
    if fewest is None:
        return None
    more = calibration.candidates(ranks, target, DEPTH * at) if calibration.depth == DEPTH * at else None
    return [[at, fewest]] if more is None else [[at, fewest], [DEPTH * at, max(fewest, more)]]


def require_recall(recall: MeasuredRecall | None, least: float | None) -> None:
    """Raises BuildError where a measured recall is below what may be published; None is that of an exact kind."""
    if recall is not None and least is not None and recall.recall < least:
        raise BuildError(
            f"the measured recall@{recall.at} is {recall.recall:.4f} over {recall.queries} queries, below --min-recall "
            f"{least}: nothing was published; build with a higher --target-recall, more --candidates or --code-bytes"
        )
