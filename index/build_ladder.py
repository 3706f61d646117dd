"""How much of its work a search does, chosen by what held-out queries find: a walk's breadth, a scan's lists."""

import bisect
from collections.abc import Callable, Sequence

from index.build_fit import DEPTH, Fitting, NotReachedError
from index.calibration import MOST_CANDIDATES, recalls
from index.documents import Numbers

__all__ = ["Ladder", "steps"]

GAIN = 0.001
"""Of recall, below which twice as much is not worth it, where with the candidates that are given nothing reaches it."""
TRIED = 5
"""Rungs, from the first that reaches the target, of which the cheapest is chosen: higher ones need fewer candidates,
but soon hardly fewer."""


def steps(least: int, most: int, factor: float) -> list[int]:
    """Whole numbers from `least` to `most`, each about that factor larger than the last."""
    found = [least]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, round(found[-1] * factor))))
    return found


class Ladder:
    """Values of one quantity, ascending, of which each finds more than the last and takes longer."""

    def __init__(
        self,
        fitting: Fitting,
        name: str,
        rungs: Sequence[int],
        scan: Callable[[int], Numbers],
        target: float | None = None,
    ) -> None:
        """`name` says what has a value, and `scan` gives what is found for the held-out queries with one, (b, c),
        likeliest first. `target` is the fitting's if not set."""
        self.name, self.rungs = name, rungs
        self._fitting, self._scan, self._target = fitting, scan, fitting.target[0] if target is None else target
        self._own = int(fitting.held_out.are_documents)
        self._ranks: dict[int, Numbers] = {}

    def ranks(self, value: int) -> Numbers:
        """Calibration.ranks of what is found with a value, whether it is a rung or not."""
        if value not in self._ranks:
            self._ranks[value] = self._fitting.calibration.ranks(self._scan(value))
        return self._ranks[value]

    def recall(self, value: int, candidates: int, at: int) -> float:
        """The recall of the queries that choose."""
        return float(recalls(self.ranks(value)[::2], candidates - self._own, at).mean())

    def candidates(self, value: int, at: int) -> int | None:
        """The fewest candidates that reach the target with a value; None where none do."""
        return self._fitting.calibration.candidates(self.ranks(value)[::2], self._target, at)

    def cheapest(self, at: int, cost: Callable[[int, int], float]) -> tuple[int, int]:
        """The value and the candidates that reach the target for `at` documents at the least cost of both.

        Raises NotReachedError where no value does.
        """
        first = self.first(lambda place: self.candidates(self.rungs[place], at) is not None)
        if first is None:
            reached, target = self.recall(self.rungs[-1], MOST_CANDIDATES, at), self._target
            raise NotReachedError(
                f"{self.name} {self.rungs[-1]:,} found {reached:.4f} of the true best {at}, not {target}"
            )
        choices = [
            (value, candidates)
            for value in self.rungs[first : first + TRIED]
            if (candidates := self.candidates(value, at)) is not None
        ]
        return min(choices, key=lambda choice: cost(*choice))

    def cheapest_or_all(self, at: int, cost: Callable[[int, int], float]) -> tuple[int, int]:
        """As `cheapest`; where no value reaches the target, the last one and as many candidates as there ever are."""
        try:
            return self.cheapest(at, cost)
        except NotReachedError:
            return self.rungs[-1], MOST_CANDIDATES

    def given(self, candidates: int, start: int) -> tuple[int, int]:
        """The same where the candidates are given: the first of `start` and its doubles that reaches the target, or
        after which the next gains less recall than GAIN."""
        target, at = self._target, self._fitting.target[1]
        candidates = min(self._fitting.calibration.documents, max(at + self._own, candidates))
        value = max(start, self.rungs[0])
        reached = self.recall(value, candidates, at)
        while reached < target and value < self.rungs[-1]:
            next_value = min(2 * value, self.rungs[-1])
            more = self.recall(next_value, candidates, at)
            if more < reached + GAIN:
                break
            value, reached = next_value, more
        return value, candidates

    def first(self, reaches: Callable[[int], bool], start: int = 0) -> int | None:
        """The first place among the rungs, from `start` on, that reaches what all after it reach; None where none does.

        In strides that grow, and then between the last two: the high rungs take long.
        """
        low, stride = start, 1
        while not reaches(high := min(low + stride, len(self.rungs) - 1)):
            if high == len(self.rungs) - 1:
                return None
            low, stride = high + 1, 2 * stride
        return bisect.bisect_left(range(high), True, lo=low, key=reaches)

    @property
    def deeper(self) -> int | None:
        """How many of the best a search for more is measured by; None in a corpus that has too few, where these are
        more than are ever candidates, or where the candidates are given."""
        at = DEPTH * self._fitting.target[1]
        is_known = self._fitting.calibration.depth == at and at <= MOST_CANDIDATES
        return at if is_known and self._fitting.plan.candidates is None else None

    def broad(self, cost: Callable[[int, int], float]) -> tuple[int, list[list[int]]]:
        """The value of a search that looks at so many documents to find its candidates, and the pairs of a top_k and
        its candidates: those for more documents are found by as many times more.

        As `cheapest`, and where the candidates are given as `given`.
        """
        target, at = self._target, self._fitting.target[1]
        fixed = self._fitting.plan.candidates
        if fixed is not None:
            value, candidates = self.given(fixed, fixed)
            return max(value, candidates), [[at, candidates]]
        value, candidates = self.cheapest(at, cost)
        value = max(value, candidates)
        if self.deeper is None:
            return value, [[at, candidates]]
        deeper = self.deeper

        def candidates_of(place: int) -> int:
            return int(self.rungs[place] * candidates / value)

        last = len(self.rungs) - 1
        start = bisect.bisect_left(range(last), deeper, key=candidates_of)
        place = self.first(lambda place: self.recall(self.rungs[place], candidates_of(place), deeper) >= target, start)
        more = candidates_of(last if place is None else place)
        return value, [[at, candidates], [deeper, max(deeper, candidates, more)]]
