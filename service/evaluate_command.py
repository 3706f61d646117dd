"""The command that measures a run, an index or a service against relevance judgements."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from index.durable import write_where_told
from service.commands import errors
from service.evaluation import Evaluated, Measure, compare, cutoff, evaluate, measures_of
from service.evaluation_report import print_report, report
from service.files import require_place
from service.prediction import predict, predicted_measure
from service.runs import search_batch
from service.search_options import Searching, with_searching
from service.trec import EvaluationError, Run, read_qrels, read_run, write_run
from service.uncertainty import Uncertainty, uncertainty

__all__ = ["commands"]

DEFAULT_MEASURES = "nDCG@10,RR@10,R@100"

commands = typer.Typer()


class Form(StrEnum):
    """How an evaluation is printed."""

    TABLE = "table"
    JSON = "json"


def _output(name: str, what: str) -> Any:
    return typer.Option(name, help=f"{what}, in place of what is there.", show_default=False)


@commands.command("evaluate")
@with_searching
def evaluate_command(
    searching: Searching,
    qrels: Annotated[
        Path,
        typer.Option(
            "--qrels",
            help="Relevance judgements: a TREC or BEIR file, or one of query Gaussians with a column of relevant ids.",
            show_default=False,
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="TREC run to measure, instead of a search.", show_default=False)
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", help="Queries for --index or --url, as search takes them.", show_default=False),
    ] = None,
    measures: Annotated[
        str, typer.Option("--measures", help="Measures of ir-measures; MRR@10 is RR@10, and Recall@100 is R@100.")
    ] = DEFAULT_MEASURES,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="TREC run to compare with, with tests of significance.", show_default=False),
    ] = None,
    per_query: Annotated[
        Path | None, _output("--per-query", "File for each query's measures and uncertainty, JSON Lines")
    ] = None,
    save_run: Annotated[Path | None, _output("--save-run", "File for what the search finds, a TREC run")] = None,
    form: Annotated[Form, typer.Option("--format", help="table for people, json for programs.")] = Form.TABLE,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Documents per query that are searched for.")] = 100,
    relevant_column: Annotated[
        str, typer.Option("--relevant-column", help="Column of relevant ids, where --qrels has Gaussians.")
    ] = "relevant",
) -> None:
    """Measure a TREC run (--run), a directory (--index) or a service (--url) against relevance judgements.

    Queries of the judgements without a relevant document are left out; those without results count as 0.
    """
    _require_one_source(run, searching, queries, save_run)
    with errors():
        wanted = measures_of(measures)
        if run is None:
            _require_depth(wanted, top_k)
        require_place(per_query, "--per-query", EvaluationError)
        require_place(save_run, "--save-run", EvaluationError)
        judged = read_qrels(qrels, searching.columns, searching.variance_as, relevant_column)
        other = None if against is None else evaluate(judged, read_run(against), wanted)
        found, uncertainties = (read_run(run), {}) if run else _search(searching, top_k, Path(str(queries)))
        if save_run is not None:
            write_run(save_run, found)
        evaluated = evaluate(judged, found, wanted)
        if per_query is not None:
            write_where_told(per_query, _per_query(evaluated, uncertainties))
        told = _report(evaluated, other, wanted, uncertainties)
        if form is Form.JSON:
            print(json.dumps(told))
        else:
            print_report(told, sys.stdout)


def _require_one_source(run: Path | None, searching: Searching, queries: Path | None, save_run: Path | None) -> None:
    if sum(source is not None for source in (run, searching.index, searching.url)) != 1:
        raise typer.BadParameter("give one of --run, --index and --url")
    if (run is None) != (queries is not None):
        raise typer.BadParameter(
            "give --queries with --index or --url" if run is None else "--queries goes with --index or --url, not --run"
        )
    if run is not None and save_run is not None:
        raise typer.BadParameter("--save-run goes with --index or --url, not --run")


def _require_depth(measures: list[Measure], top_k: int) -> None:
    for measure in measures:
        depth = cutoff(measure)
        if depth is not None and depth > top_k:
            raise EvaluationError(f"{measure} looks at {depth:,} documents and --top-k is {top_k:,}: raise --top-k")


def _search(searching: Searching, top_k: int, file: Path) -> tuple[Run, dict[str, Uncertainty]]:
    """What is found for every query of a file, and how uncertain each is."""
    run: Run = {}
    uncertainties: dict[str, Uncertainty] = {}
    runner = searching.runner()
    for batch in searching.queries(runner, file):
        found = search_batch(runner, batch, searching.asked(top_k))
        for query, results, each in zip(batch.ids, found, uncertainty(batch.gaussians), strict=True):
            if query in run:
                raise EvaluationError(f"{file}: query {query!r} is there twice; ids of queries must be unique")
            run[query] = {result.id: result.score for result in results}
            uncertainties[query] = each
    return run, uncertainties


def _report(
    evaluated: Evaluated, other: Evaluated | None, measures: list[Measure], uncertainties: dict[str, Uncertainty]
) -> dict[str, Any]:
    compared = None
    if other is not None:
        compared = {name: compare(values, other.values[name]) for name, values in evaluated.values.items()}
    predicted = predicted_measure(measures)
    predictions = predict(evaluated, predicted, uncertainties) if uncertainties else None
    predictable = sum(query in uncertainties for query in evaluated.queries)
    return report(evaluated, other, compared, predicted, predictions, predictable)


def _per_query(evaluated: Evaluated, uncertainties: dict[str, Uncertainty]) -> bytes:
    """One line a query: its id, each measure and, of a Gaussian, its uncertainty."""
    lines = []
    for row, query in enumerate(evaluated.queries):
        line: dict[str, object] = {"query": query}
        line |= {name: float(values[row]) for name, values in evaluated.values.items()}
        if query in uncertainties:
            each = uncertainties[query]
            line |= {name: getattr(each, name) for name in Uncertainty.__dataclass_fields__}
        lines.append(json.dumps(line) + "\n")
    return "".join(lines).encode()
