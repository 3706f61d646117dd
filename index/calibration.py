"""How long codes must be and how many candidates they must hand on, for the recall that is asked for.

The number of digits is predicted, because trying one means coding the whole corpus. The error of a score is nearly
normal, with the variance that the digits leave (index.allocation); with the true scores of some queries' best documents
and of a sample of the others, that says how many documents come before a true one. Of the digits whose predicted
candidates reach the target, those are taken with which a search takes the shortest. The number of candidates is then
measured, on the codes themselves: it is chosen with one half of the held-out queries, and the recall that is reported
is that of the other half.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index.allocation import Allocation
from index.documents import Numbers
from index.gaussians import Gaussians
from index.staged_documents import StagedDocuments
from index.standardisation import Standardisation

__all__ = ["Calibration", "CandidateModel", "HeldOut", "interval", "recalls"]

MARGIN = 10
"""Documents beyond those wanted that the float32 scan finds, of which float64 then chooses."""
DIGITS = (*range(16, 128, 8), *range(128, 257, 32))
MOST_CANDIDATES = 4096
DIGIT_SECONDS = 3.0e-11
"""What a scan takes for a digit of a document on one core, with registers of 256 bits, from memory."""
FOUND_SECONDS = 2.0e-7
"""What finding takes for each document that is found, and looking at it again."""
CANDIDATE_SECONDS = 1.0e-6
"""And what exact scoring takes for a candidate at k = 128. Only the ratios of these matter."""
DIMENSIONS = (*range(32, 257, 16), 320, 384, 448, 512)
SHORTLIST = 1000
"""Documents that codes find, about."""
VISITS, BREADTH = 28, 10
"""Documents that a walk looks at for each that its breadth counts, and the breadth that it takes to find one, if not
for the projection: both as measured at M = 24 and k = 128."""
VISIT_SECONDS, NUMBER_SECONDS = 4.0e-8, 2.7e-10
"""What it takes for a document, and for each of its numbers."""
ROUNDING = 1.3
"""How much larger than the digits' error a scan's is taken to be: it rounds what it looks up to 8 bits. An allowance,
not a measurement."""
NOT_FOUND = np.iinfo(np.int64).max
GRID = 32
MODELLED_QUERIES = 32
MODELLED_DOCUMENTS = 512

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Queries to measure with. `own` (b,) are the numbers of the documents that they are, or -1."""

    gaussians: Gaussians
    own: Numbers

    @property
    def are_documents(self) -> bool:
        """Whether the queries are documents of the index."""
        return bool((self.own >= 0).any())


class Calibration:
    """The true best documents of held-out queries, and what finding them takes.

    best: numbers (b, depth), best first, without the document that the query is; scores: their -KL.
    """

    def __init__(self, store: StagedDocuments, standardisation: Standardisation, held_out: HeldOut, depth: int) -> None:
        """Finds the `depth` best of each query, or as many as there are, by a scan of everything."""
        self.held_out, self.documents, self._store = held_out, len(store), store
        depth = min(depth, len(store) - held_out.are_documents)
        found = store.best(held_out.gaussians, min(depth + 1 + MARGIN, len(store)), standardisation)
        scores = store.scores(held_out.gaussians, found)
        scores[found == held_out.own[:, None]] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        self.best, self.scores = np.take_along_axis(found, order, axis=1), np.take_along_axis(scores, order, axis=1)

    @property
    def depth(self) -> int:
        """How many of each query's best are known."""
        return int(self.best.shape[1])

    def model(self, sample: Numbers) -> "CandidateModel":
        """What predicts candidates from the error of scores; `sample` are numbers (s,) of documents that stand for
        all."""
        step = max(1, len(self.best) // MODELLED_QUERIES)
        best = torch.from_numpy(self.scores[::step, :].copy())
        drawn = sample[:: max(1, len(sample) // MODELLED_DOCUMENTS)]
        modelled = self.held_out.gaussians[torch.arange(0, len(self.best), step)]
        others = torch.from_numpy(self._store.scores(modelled, np.tile(drawn, (len(best), 1))))
        return CandidateModel(best, others, self.documents)

    def ranks(self, found: Numbers) -> Numbers:
        """The place, from 0, of each of the best (b, depth) in what a scan found (b, c), not counting the query's own
        document; NOT_FOUND where it is not part of that."""
        ranks = np.full(self.best.shape, NOT_FOUND, dtype=np.int64)
        for query, (best, its, own) in enumerate(zip(self.best, found, self.held_out.own, strict=True)):
            others = its[(its >= 0) & (its != own)]
            if len(others) == 0:
                continue
            order = np.argsort(others)
            places = np.minimum(np.searchsorted(others, best, sorter=order), len(others) - 1)
            hits = others[order[places]] == best
            ranks[query, hits] = order[places[hits]]
        return ranks

    def candidates(self, ranks: Numbers, target: float, at: int) -> int | None:
        """The fewest candidates of which `target` of the `at` best are part, by their ranks; None where no number is.

        One more where the query is a document, which takes a place of its own.
        """
        at = min(at, self.depth)
        places = np.sort(ranks[:, :at], axis=None)
        needed = math.ceil(target * len(places) - 1e-9)
        last = int(places[max(0, needed - 1)])
        if last >= min(self.documents, MOST_CANDIDATES):
            return None
        return max(at, last + 1) + int(self.held_out.are_documents)


@dataclass(frozen=True, slots=True, eq=False)
class CandidateModel:
    """The true scores of some queries: of their best documents, best (q, depth), and of a sample of all, rest (q, s),
    that stands for so many `documents`."""

    best: Tensor
    rest: Tensor
    documents: int

    def digits(self, energies: Floats, target: float, at: int) -> int:
        """The number of digits with which searches for `at` documents take the shortest, at the recall `target`.

        energies: those of the projection (r,).
        """
        total = float(energies.sum() or 1.0)
        return self._fastest(
            DIGITS,
            lambda choice: self.candidates(
                ROUNDING * Allocation.best(energies, choice).left(energies) / total, target, at
            ),
            lambda choice, needed: DIGIT_SECONDS * choice * self.documents + FOUND_SECONDS * needed,
        )

    def shortlist_dimensions(self, energies: Floats, target: float, at: int) -> int:
        """The number of projected dimensions of the second look, by which candidates are chosen of what codes find."""
        return self._fastest(
            DIMENSIONS,
            lambda choice: self._truncated(energies, choice, target, at),
            lambda choice, needed: SHORTLIST * choice * NUMBER_SECONDS + CANDIDATE_SECONDS * needed,
        )

    def dimensions(self, energies: Floats, target: float, at: int) -> int:
        """The number of projected dimensions with which walks of a graph for `at` documents take the shortest, at the
        recall `target`."""

        def seconds(choice: int, needed: float) -> float:
            visits = VISITS * max(needed, BREADTH * at)
            return visits * (VISIT_SECONDS + choice * NUMBER_SECONDS) + CANDIDATE_SECONDS * needed

        return self._fastest(DIMENSIONS, lambda choice: self._truncated(energies, choice, target, at), seconds)

    @staticmethod
    def _fastest(
        choices: Sequence[int],
        candidates: Callable[[int], float | None],
        seconds: Callable[[int, float], float],
    ) -> int:
        """Of ascending choices the one whose candidates take the shortest; the last where none reach the target.

        A choice takes no less than with no candidates, and the ones after it no less than it: so what is slower even
        then ends the search.
        """
        fastest, best = math.inf, choices[-1]
        for choice in choices:
            if seconds(choice, 0.0) >= fastest:
                break
            needed = candidates(choice)
            if needed is not None and seconds(choice, needed) < fastest:
                fastest, best = seconds(choice, needed), choice
        return best

    def _truncated(self, energies: Floats, dimensions: int, target: float, at: int) -> float | None:
        """As `candidates`, with only so many dimensions of a projection."""
        return self.candidates(float(energies[dimensions:].sum() / (energies.sum() or 1.0)), target, at)

    def candidates(self, left: float, target: float, at: int) -> float | None:
        """The candidates that reach the target when a score's error has `left` of the scores' variance; None where
        MOST_CANDIDATES do not.

        Errors are larger for some queries than for others, and the model has one size for all: of what may be missed
        half is left to that.
        """
        target = (1 + target) / 2
        at = min(at, self.best.shape[1])
        error = (left**0.5 * self.rest.std(dim=1)).clamp(min=1e-12)[:, None]
        thresholds = self.best[:, at - 1 : at] + error * torch.linspace(2.0, -6.0, GRID, dtype=torch.float64)
        found = torch.special.ndtr((self.best[:, :at, None] - thresholds[:, None]) / error[:, None]).mean(dim=1)
        before = torch.special.ndtr((self.best[:, :, None] - thresholds[:, None]) / error[:, None]).sum(dim=1)
        beyond = (self.rest < self.best[:, -1:])[:, :, None]
        chances = torch.special.ndtr((self.rest[:, :, None] - thresholds[:, None]) / error[:, None])
        before += (chances * beyond).sum(dim=1) * (self.documents / self.rest.shape[1])
        for candidates in np.geomspace(at, MOST_CANDIDATES, 25).tolist():
            reached = [
                float(np.interp(candidates, expected, share))
                for expected, share in zip(before.numpy(), found.numpy(), strict=True)
            ]
            if float(np.mean(reached)) >= target:
                return float(candidates)
        return None


def recalls(ranks: Numbers, candidates: int, at: int) -> Floats:
    """The recall of each query, (b,), when so many candidates are scored exactly."""
    shares: Floats = (ranks[:, :at] < candidates).mean(axis=1)
    return shares


def interval(recall: float, queries: int) -> tuple[float, float]:
    """Wilson's 95% interval of a mean recall over that many queries.

    As if each query found all or nothing, which no recall varies more than: so it is wide enough, and not empty at 1.
    """
    z = 1.96
    centre = (recall + z * z / (2 * queries)) / (1 + z * z / queries)
    half = z / (1 + z * z / queries) * math.sqrt(recall * (1 - recall) / queries + z * z / (4 * queries**2))
    return max(0.0, centre - half), min(1.0, centre + half)
