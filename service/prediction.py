"""Query performance prediction: whether queries whose Gaussians are uncertain have the worse results."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from service.evaluation import Evaluated, Floats, Measure, extra_module
from service.uncertainty import Uncertainty

__all__ = ["LEAST_QUERIES", "Correlation", "correlate", "predict", "predicted_measure"]

LEAST_QUERIES = 3
"""Any two queries lie on a line."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """A coefficient and its two-sided p-value."""

    coefficient: float
    p: float


def predicted_measure(measures: Iterable[Measure]) -> str:
    """The measure whose values uncertainty is held against: nDCG@10 where it is measured, the first where not."""
    names = [str(measure) for measure in measures]
    return "nDCG@10" if "nDCG@10" in names else names[0]


def predict(
    evaluated: Evaluated, measure: str, uncertainties: dict[str, Uncertainty]
) -> dict[str, dict[str, Correlation | None]]:
    """Query performance prediction: how each predictor goes with a measure, over the queries that have both.

    A predictor is worth something where its coefficient is far below 0: the more uncertain, the worse the results.
    """
    both = [row for row, query in enumerate(evaluated.queries) if query in uncertainties]
    values = evaluated.values[measure][both]
    known = [uncertainties[evaluated.queries[row]] for row in both]
    return {
        name: correlate(np.array([getattr(each, name) for each in known], dtype=np.float64), values)
        for name in Uncertainty.__dataclass_fields__
    }


def correlate(predictor: Floats, values: Floats) -> dict[str, Correlation | None]:
    """Pearson's r, Spearman's rho and Kendall's tau-b; None where there are under three queries, or one value."""
    stats = extra_module("scipy.stats")
    tests = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    if len(values) < LEAST_QUERIES or np.ptp(values) == 0 or np.ptp(predictor) == 0:
        return dict.fromkeys(tests)
    with warnings.catch_warnings():
        # Nearly all the same, which scipy warns of: what comes of it is nan, or as good as any.
        warnings.simplefilter("ignore")
        found = {name: test(predictor, values) for name, test in tests.items()}
    return {
        name: Correlation(float(result.statistic), float(result.pvalue)) if np.isfinite(result.pvalue) else None
        for name, result in found.items()
    }
