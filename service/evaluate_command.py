"""The command that measures a run, an index or a service against relevance judgements."""

import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from index import Columns, VarianceAs
from index.durable import write_where_told
from service.commands import errors
from service.evaluation import Evaluated, Measure, compare, cutoff, evaluate, measures_of
from service.evaluation_report import print_report, report
from service.prediction import predict, predicted_measure
from service.runs import Asked, QueryBatch, Runner, read_queries, search_batch
from service.search_options import (
    ApiKeyOption,
    CandidatesOption,
    CaOption,
    DeviceOption,
    ExactOption,
    IdColumnOption,
    MeanColumnOption,
    ModelOption,
    NprobeOption,
    SearchedIndexOption,
    TextColumnOption,
    UrlOption,
    VarianceAsOption,
    VarianceColumnOption,
    query_texts,
    runner_for,
)
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
def evaluate_command(
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
    index: SearchedIndexOption = None,
    url: UrlOption = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            help="Query Gaussians for --index or --url, as search takes them; with --model, texts.",
            show_default=False,
        ),
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
    candidates: CandidatesOption = None,
    nprobe: NprobeOption = None,
    exact: ExactOption = False,
    device: DeviceOption = "auto",
    api_key: ApiKeyOption = None,
    ca: CaOption = None,
    relevant_column: Annotated[
        str, typer.Option("--relevant-column", help="Column of relevant ids, where --qrels has Gaussians.")
    ] = "relevant",
    model: ModelOption = None,
    text_column: TextColumnOption = "text",
    id_column: IdColumnOption = "id",
    mean_column: MeanColumnOption = "mean",
    variance_column: VarianceColumnOption = "variance",
    variance_as: VarianceAsOption = VarianceAs.VARIANCE,
) -> None:
    """Measure a TREC run (--run), a directory (--index) or a service (--url) against relevance judgements.

    Queries of the judgements without a relevant document are left out; those without results count as 0.
    """
    _require_one_source(run, index, url, queries, save_run)
    with errors():
        columns = Columns(id_column, mean_column, variance_column)
        wanted = measures_of(measures)
        if run is None:
            _require_depth(wanted, top_k)
        for path in (per_query, save_run):
            _require_folder(path)
        judged = read_qrels(qrels, columns, variance_as, relevant_column)
        other = None if against is None else evaluate(judged, read_run(against), wanted)
        uncertainties: dict[str, Uncertainty] = {}
        if run is not None:
            found = read_run(run)
        else:
            runner = runner_for(index, url, device, api_key, ca)
            asked = Asked(top_k, candidates, nprobe, exact)
            texts = query_texts(model, device, id_column, text_column)
            file = Path(str(queries))
            batches = read_queries(file, columns, variance_as, texts)
            found, uncertainties = _search(runner, asked, batches, file)
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


def _require_one_source(
    run: Path | None, index: Path | None, url: str | None, queries: Path | None, save_run: Path | None
) -> None:
    if sum(source is not None for source in (run, index, url)) != 1:
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


def _require_folder(path: Path | None) -> None:
    """Raises EvaluationError before a long search, where its results could not be written."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise EvaluationError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'make its folder'}")


def _search(
    runner: Runner, asked: Asked, batches: Iterable[QueryBatch], file: Path
) -> tuple[Run, dict[str, Uncertainty]]:
    """What is found for every query of a file, and how uncertain each is."""
    run: Run = {}
    uncertainties: dict[str, Uncertainty] = {}
    for batch in batches:
        found = search_batch(runner, batch, asked)
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
    return report(evaluated, other, compared, predicted, predictions)


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
