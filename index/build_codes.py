"""The second half of a build of kind fastscan: a codebook is fitted, segments are coded, candidates are chosen.

A build that is resumed finds the codebook that it fitted, and with it the segments that it coded.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index.build_fit import CodedIndex, CodesForm, Fitting, NotReachedError, measured_recall
from index.build_ladder import Ladder, steps
from index.calibration import CANDIDATE_SECONDS, FOUND_SECONDS, MOST_CANDIDATES
from index.code_scanning import CodeScanner
from index.codebook import Codebook
from index.codes import Codes
from index.codes_record import CodesRecord
from index.documents import Numbers
from index.records import FileEntry
from index.segment_records import SegmentEntry
from index.shortlist import Shortlist

__all__ = ["Coded", "build_codes", "coded"]

MORE_DIGITS = 1.5
"""How many times the digits are tried next, when they miss the target with any number of candidates."""
MOST_DIGITS = 512
STEP = 1.1


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Segments coded so that a scan of all codes reaches a recall, with `candidates` of a top_k, in pairs, chosen of
    `found` times as many. `name` and `file` are the codebook's, `ladder` has what held-out queries find."""

    name: str
    file: FileEntry
    coder: Codebook
    segments: list[SegmentEntry]
    codes: list[Codes]
    shortlist: Shortlist
    ladder: Ladder
    found: int
    candidates: list[list[int]]

    @property
    def breadth(self) -> float:
        """How many documents the scan finds for each candidate."""
        return self.found / self.candidates[0][1]


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
        breadth=it.breadth,
    )
    ranks = it.ladder.ranks(it.found)[1::2]
    return CodedIndex(it.segments, codes, measured_recall(fitting, ranks, it.candidates[0][1]))


def coded(fitting: Fitting, target: float) -> Coded:
    """Codes the staged documents so that scans reach the target; raises NotReachedError as `build_codes`."""
    plan, projection, at = fitting.plan, fitting.projection, fitting.target[1]
    model, energies = fitting.calibration.model(fitting.sample), projection.energies.numpy()
    dimensions = model.shortlist_dimensions(energies, target, at)
    digits = 2 * plan.code_bytes if plan.code_bytes is not None else model.digits(energies, target, at)
    # Two digits for a dimension are all that can be said of it.
    most = min(MOST_DIGITS, 2 * projection.dimensions)
    while True:
        digits = min(digits, most)
        name, coder, entry = fitting.kept_codebook(
            digits,
            Codebook.from_bytes,
            functools.partial(Codebook.fit, projection, digits, dimensions, fitting.vectors),
        )
        segments = fitting.encode(CodesForm(coder, entry.blake3))
        fitting.progress.phase("measuring recall", None)
        codes = [coder.read(fitting.file(segment, "vectors.faiss"), segment.documents) for segment in segments]
        projected = [
            coder.map_projected(fitting.file(segment, "projected.npy"), segment.documents) for segment in segments
        ]
        shortlist = Shortlist(projected, coder.ranges)
        ladder = _ladder(fitting, coder, codes, shortlist, target)
        is_last = plan.code_bytes is not None or digits == most
        try:
            found, candidates = ladder.broad(
                lambda found, candidates: FOUND_SECONDS * found + CANDIDATE_SECONDS * candidates
            )
        except NotReachedError as error:
            if is_last:
                raise NotReachedError(f"codes of {digits // 2} bytes do not do: {error}") from error
        else:
            # With candidates by hand, whatever they find is what is built, once there can be no more digits.
            reached = plan.candidates is None or ladder.recall(found, candidates[0][1], at) >= target
            if reached or is_last:
                return Coded(name, entry, coder, segments, codes, shortlist, ladder, found, candidates)
        digits = 2 * round(MORE_DIGITS * digits / 2)


def _ladder(fitting: Fitting, coder: Codebook, codes: Sequence[Codes], shortlist: Shortlist, target: float) -> Ladder:
    """What held-out queries find among so many documents that codes take for the likeliest."""
    scanner = CodeScanner(codes, shortlist, coder, fitting.standardisation, 1.0, threads=None)
    least = fitting.target[1] + fitting.held_out.are_documents
    rungs = steps(least, max(least, min(MOST_CANDIDATES, len(fitting.store))), STEP)
    projected, found = scanner.found(fitting.held_out.gaussians, max(rungs[-1], fitting.plan.candidates or 0))
    scores = shortlist.scores(projected, found)

    def best_of_the_first(count: int) -> Numbers:
        # As Shortlist.best, of which every rung would look at the same documents again.
        order = np.argsort(-scores[:, :count], axis=1, kind="stable")
        return np.take_along_axis(found[:, :count], order, axis=1)

    return Ladder(fitting, "the likeliest", rungs, best_of_the_first, target)
