"""What a run is worth: measures against judgements, and their significance against another run.

Measures are those of ir-measures and tests those of scipy: the extra `evaluate`, imported where it is needed.
"""

import importlib
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.trec import RELEVANCE_LIMIT, EvaluationError, Qrels, Run

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "SEED",
    "Comparison",
    "Evaluated",
    "Floats",
    "Measure",
    "compare",
    "cutoff",
    "evaluate",
    "extra_module",
    "measures_of",
]

CONFIDENCE: Final = 0.95

RESAMPLES: Final = 10_000
"""Drawn by the randomisation test; where there are no more ways to swap the runs, it looks at all of them."""

SEED: Final = 0

MAX_CUTOFF: Final = 1_000_000

_BATCH: Final = 500
"""Resamples at a time, which bounds memory."""

Measure = Any
"""A measure of ir-measures; its text is its name."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Values by measure and query, of the queries with a relevant document, in the order of the judgements.

    without_results: how many of them the run has nothing for; they count as 0.
    without_relevant: queries of the judgements that are left out.
    not_judged: queries of the run that the judgements do not have.
    """

    queries: list[str]
    values: dict[str, Floats]
    without_results: int
    without_relevant: int
    not_judged: int

    def means(self) -> dict[str, float]:
        """The mean of each measure."""
        return {name: float(values.mean()) for name, values in self.values.items()}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired comparison of two runs in one measure; None where it takes more queries."""

    difference: float
    low: float | None
    high: float | None
    t_test: float | None
    randomisation: float | None


def extra_module(name: str) -> Any:
    """A module of the extra `evaluate`; raises EvaluationError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EvaluationError(
            f"evaluate needs ir-measures and scipy ({error}): pip install 'gaussearch[evaluate]'"
        ) from error


def measures_of(text: str) -> list[Measure]:
    """The measures that a list names, such as nDCG@10,RR@10,R@100; MRR@10 and Recall@100 are names, too.

    Raises EvaluationError for what is no measure, and where the extra is missing.
    """
    library = extra_module("ir_measures")
    extra_module("scipy.stats")
    measures: list[Measure] = []
    # Not at the commas inside of parentheses, as in nDCG(dcg='exp-log2',judged_only=True)@10.
    for name in re.split(r",(?![^()]*\))", text):
        try:
            measure = library.parse_measure(name.strip())
            measurable = library.DefaultPipeline.supports(measure) and _is_bounded(measure.params)
        except (NameError, ValueError, TypeError, KeyError, AssertionError, SyntaxError, RecursionError) as error:
            why = str(error).partition("\n")[0]
            raise EvaluationError(f"{name.strip()!r} is no measure: {why}; nDCG@10, RR@10 or R@100 are") from error
        if not measurable:
            raise EvaluationError(
                f"{name.strip()!r} cannot be measured: a cutoff is from 1 to {MAX_CUTOFF:,}, rel from 1 and gains from "
                f"0 to {RELEVANCE_LIMIT:,}, and the measure one that is installed"
            )
        if str(measure) not in map(str, measures):
            measures.append(measure)
    return measures


def _is_bounded(parameters: dict[str, Any]) -> bool:
    """Whether trec_eval's memory is: it holds arrays as long as a cutoff and as the highest gain."""
    gains = parameters.get("gains") or {}
    return (
        1 <= parameters.get("cutoff", 1) <= MAX_CUTOFF
        and 1 <= parameters.get("rel", 1) <= RELEVANCE_LIMIT
        and all(0 <= gain <= RELEVANCE_LIMIT for gain in gains.values())
    )


def cutoff(measure: Measure) -> int | None:
    """How many of the best documents a measure looks at; None for all of them."""
    found: int | None = measure.params.get("cutoff")
    return found


def evaluate(qrels: Qrels, run: Run, measures: Sequence[Measure]) -> Evaluated:
    """Each measure of each query that has a relevant document.

    Documents are ranked by their scores in float64, equal ones by their ids from the last to the first, as trec_eval
    has them. Raises EvaluationError where there is nothing to measure.
    """
    queries = [query for query, judged in qrels.items() if any(relevance > 0 for relevance in judged.values())]
    if not queries:
        raise EvaluationError("no query has a relevant document in the qrels: a relevance above 0 is needed")
    answered = sum(bool(run.get(query)) for query in queries)
    if not answered:
        raise EvaluationError(
            f"no query of the qrels has results: the qrels name queries such as {queries[0]!r}, the run such as "
            f"{next(iter(run), 'none')!r}"
        )
    return Evaluated(
        queries=queries,
        values=_values(qrels, run, queries, measures),
        without_results=len(queries) - answered,
        without_relevant=len(qrels) - len(queries),
        not_judged=sum(query not in qrels for query in run),
    )


def compare(values: Floats, other: Floats) -> Comparison:
    """The mean of values - other, with its confidence interval and two-sided paired tests.

    The interval and the t-test are Student's. The randomisation test swaps the runs of queries at random, and its p is
    the share of swaps whose mean is as far from 0 (Smucker, Allan and Carterette, CIKM 2007).
    """
    stats = extra_module("scipy.stats")
    # What lies below is rounding, and no spread.
    differences: Floats = np.round(values - other, 12)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Comparison(mean, None, None, None, None)
    if not differences.any():
        return Comparison(0.0, 0.0, 0.0, 1.0, 1.0)
    randomisation = stats.permutation_test(
        (differences,),
        _distance,
        permutation_type="samples",
        alternative="greater",
        n_resamples=RESAMPLES,
        batch=_BATCH,
        random_state=np.random.default_rng(SEED),
    )
    if np.ptp(differences) == 0:
        # Every query differs by as much: no spread, and so no t.
        return Comparison(mean, mean, mean, None, float(randomisation.pvalue))
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return Comparison(mean, float(interval.low), float(interval.high), float(test.pvalue), float(randomisation.pvalue))


def _distance(differences: Floats, axis: int) -> Floats:
    """How far a mean is from 0, either way."""
    distance: Floats = np.abs(differences.mean(axis=axis))
    return distance


def _values(qrels: Qrels, run: Run, queries: Sequence[str], measures: Sequence[Measure]) -> dict[str, Floats]:
    """Values of measures, of queries and documents under names of our own, in which no library finds a fault."""
    judged, ranked = {}, {}
    for row, query in enumerate(queries):
        results = sorted(run.get(query, {}).items(), key=lambda result: (result[1], result[0]))
        names = {document: str(place) for place, document in enumerate({**qrels[query], **dict(results)})}
        judged[str(row)] = {names[document]: relevance for document, relevance in qrels[query].items()}
        if results:
            ranked[str(row)] = {names[document]: float(place) for place, (document, _) in enumerate(results, start=1)}
    values = {str(measure): np.zeros(len(queries)) for measure in measures}
    try:
        for query, measure, value in extra_module("ir_measures").iter_calc(list(measures), judged, ranked):
            values[str(measure)][int(query)] = value
    except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        why = str(error).partition("\n")[0]
        raise EvaluationError(f"ir-measures cannot measure {', '.join(values)}: {why}") from error
    return values
