"""What an evaluation says: as one JSON object, and as tables of it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TextIO

from rich.table import Table

from service.evaluation import CONFIDENCE, Comparison, Evaluated
from service.plain_console import PlainConsole
from service.prediction import LEAST_QUERIES, Correlation

__all__ = ["print_report", "report"]


def report(
    evaluated: Evaluated,
    other: Evaluated | None,
    compared: dict[str, Comparison] | None,
    predicted: str,
    predictions: dict[str, dict[str, Correlation | None]] | None,
    predictable: int = 0,
) -> dict[str, Any]:
    """Everything that is printed, as JSON has it: what could not be computed is null. `predictable` is how many queries
    the predictions are about."""
    told: dict[str, Any] = {
        "queries": {
            "evaluated": len(evaluated.queries),
            "without_results": evaluated.without_results,
            "without_relevant": evaluated.without_relevant,
            "not_judged": evaluated.not_judged,
        },
        "measures": evaluated.means(),
    }
    if other is not None and compared is not None:
        told["against"] = {
            "without_results": other.without_results,
            "measures": other.means(),
            "comparison": {name: asdict(comparison) for name, comparison in compared.items()},
        }
    if predictions is not None:
        told["prediction"] = {
            "measure": predicted,
            "queries": predictable,
            "predictors": {
                name: {kind: None if each is None else asdict(each) for kind, each in correlations.items()}
                for name, correlations in predictions.items()
            },
        }
    return told


def print_report(told: dict[str, Any], stream: TextIO) -> None:
    """The same as tables."""
    console = PlainConsole(stream)
    # A title of a table would be broken where the table is narrow.
    stream.write(f"{told['queries']['evaluated']:,} queries evaluated\n")
    console.print(_measures(told))
    if "prediction" in told:
        stream.write(f"{told['prediction']['measure']} by the uncertainty of queries")
        without = _why_without(told["prediction"])
        stream.write(f": {without}\n" if without else " (p)\n")
        if not without:
            console.print(_predictors(told["prediction"]))
    for remark in _remarks(told):
        stream.write(f"{remark}\n")


def _measures(told: dict[str, Any]) -> Table:
    against = told.get("against")
    table = Table()
    table.add_column("measure", no_wrap=True)
    names = ["mean"]
    if against is not None:
        names += ["against", "change", f"its {CONFIDENCE:.0%} interval", "p by\nt-test", "p by\nswaps"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for name, mean in told["measures"].items():
        cells = [_number(mean)]
        if against is not None:
            each = against["comparison"][name]
            interval = "" if each["low"] is None else f"{each['low']:+.4f}, {each['high']:+.4f}"
            cells += [_number(against["measures"][name]), f"{each['difference']:+.4f}", interval]
            cells += [_p(each["t_test"]), _p(each["randomisation"])]
        table.add_row(name, *cells)
    return table


def _predictors(prediction: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("predictor", no_wrap=True)
    for name in ("Pearson", "Spearman", "Kendall"):
        table.add_column(name, justify="right")
    for name, correlations in prediction["predictors"].items():
        cells = [
            "" if each is None else f"{each['coefficient']:+.3f} ({_p(each['p'])})" for each in correlations.values()
        ]
        table.add_row(name.replace("_", " "), *cells)
    return table


def _why_without(prediction: dict[str, Any]) -> str | None:
    """Why nothing correlates, where nothing does."""
    if any(each is not None for correlations in prediction["predictors"].values() for each in correlations.values()):
        return None
    if prediction["queries"] < LEAST_QUERIES:
        return f"it takes {LEAST_QUERIES} queries or more to correlate them, and there are {prediction['queries']}"
    return "nothing goes with what is the same for all queries"


def _remarks(told: dict[str, Any]) -> Iterator[str]:
    """What there is to say of queries that are no part of the mean, or count as 0."""
    counts = told["queries"]
    if counts["without_results"]:
        yield f"{counts['without_results']:,} of them without results, which count as 0"
    if "against" in told and told["against"]["without_results"]:
        yield f"{told['against']['without_results']:,} of them without results in the other run"
    if counts["without_relevant"]:
        yield f"{counts['without_relevant']:,} more without a relevant document in the qrels, left out"
    if counts["not_judged"]:
        yield f"{counts['not_judged']:,} more that are not in the qrels, left out"


def _number(value: float) -> str:
    return f"{value:.4f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
