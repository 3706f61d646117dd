"""The second half of a build of kind fastscan: a codebook is fitted, segments are coded, candidates are chosen.

A build that is resumed finds the codebook that it fitted, and with it the segments that it coded.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from index.build_fit import DEPTH, CodedIndex, CodesForm, Fitting, NotReachedError, measured_recall
from index.calibration import MOST_CANDIDATES, Calibration, recalls
from index.code_scanning import CodeScanner
from index.codebook import Codebook
from index.documents import Numbers
from index.manifest import CodesRecord, FileEntry, SegmentEntry

__all__ = ["Coded", "build_codes", "coded"]

MORE_DIGITS = 1.5
"""How many times the digits are tried next, when they miss the target with any number of candidates."""
MOST_DIGITS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Segments coded so that scans of all codes reach a recall: `candidates` pairs a top_k with how many documents
    that takes, and `ranks` are those of the true best of held-out queries. `name` and `file` are the codebook's."""

    name: str
    file: FileEntry
    coder: Codebook
    segments: list[SegmentEntry]
    candidates: list[list[int]]
    ranks: Numbers


def build_codes(fitting: Fitting) -> CodedIndex:
    """Codes the staged documents as the plan says.

    Raises NotReachedError where the plan leaves the code or the candidates open and none reach its recall.
    """
    it = coded(fitting, fitting.target[0])
    codes = CodesRecord(
        codebook=it.name,
        file=it.file,
        code_bytes=it.coder.code_bytes,
        dimensions=it.coder.dimensions,
        candidates=it.candidates,
    )
    return CodedIndex(it.segments, codes, measured_recall(fitting, it.ranks[1::2], it.candidates[0][1]))


def coded(fitting: Fitting, target: float) -> Coded:
    """Codes the staged documents so that scans reach the target; raises NotReachedError as `build_codes`."""
    plan, calibration, projection, at = fitting.plan, fitting.calibration, fitting.projection, fitting.target[1]
    if plan.code_bytes is not None:
        digits = 2 * plan.code_bytes
    else:
        model = calibration.model(fitting.sample)
        digits = model.digits(projection.energies.numpy(), target, at, plan.candidates)
    # Two digits for a dimension are all that can be said of it.
    most = min(MOST_DIGITS, 2 * projection.dimensions)
    while True:
        digits = min(digits, most)
        name, coder, entry = fitting.kept_codebook(
            digits, Codebook.from_bytes, functools.partial(Codebook.fit, projection, digits, fitting.vectors)
        )
        segments = fitting.encode(CodesForm(coder, entry.blake3))
        fitting.progress.phase("measuring recall", None)
        ranks = calibration.ranks(_scan(fitting, segments, coder))
        is_last = plan.code_bytes is not None or digits == most
        candidates = _candidates(calibration, ranks[::2], target, at, plan.candidates, is_last)
        if candidates:
            return Coded(name, entry, coder, segments, candidates, ranks)
        if is_last:
            reached = float(recalls(ranks, MOST_CANDIDATES, at).mean())
            raise NotReachedError(
                f"codes of {digits // 2} bytes found {reached:.4f} of the true best {at} among {MOST_CANDIDATES:,} "
                f"candidates, not {target}"
            )
        digits = 2 * round(MORE_DIGITS * digits / 2)


def _scan(fitting: Fitting, segments: Sequence[SegmentEntry], coder: Codebook) -> Numbers:
    """What the codes take for the likeliest documents of the held-out queries, (b, c)."""
    codes = [coder.read(fitting.vectors_file(segment), segment.documents) for segment in segments]
    count = max(MOST_CANDIDATES, fitting.plan.candidates or 0) + 1
    return CodeScanner(codes, coder, fitting.standardisation, threads=None).scan(fitting.held_out.gaussians, count)


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
