"""The options that commands which search share, each declared once."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from index import Columns, VarianceAs
from index.build_options import TextOptions
from index.build_reading import text_source
from index.formats import is_of_texts
from index.rows import text_columns
from index.text import Role
from index.text.rows import TextSource
from service.commands import LOCATION
from service.runs import Asked, LocalRunner, QueryBatch, RemoteRunner, Runner, in_words, read_queries
from service.settings import ENV_PREFIX

__all__ = ["Searching", "with_searching"]


@dataclass(frozen=True, slots=True)
class Searching:
    """What a search on the command line is told: where, how, and what its queries are called in their file."""

    index: Annotated[
        str | None,
        typer.Option("--index", metavar="LOCATION", help=f"The index to search: {LOCATION}.", show_default=False),
    ] = None
    url: Annotated[
        str | None, typer.Option("--url", help="A running service to search instead.", show_default=False)
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Model that makes Gaussians of the queries' texts: its folder, package:NAME or hub:NAME. Without one "
            "they are Gaussians, or with --url texts that the service reads.",
            show_default=False,
        ),
    ] = None
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            min=1,
            help="Documents scored exactly per query; as the index was measured if not set.",
            show_default=False,
        ),
    ] = None
    nprobe: Annotated[
        int | None,
        typer.Option(
            "--nprobe",
            min=1,
            help="Lists that a query looks into, where there are any; as the index was measured if not set.",
            show_default=False,
        ),
    ] = None
    exact: Annotated[bool, typer.Option("--exact", help="Scan every document, whatever the kind of index.")] = False
    device: Annotated[str, typer.Option("--device", help="Where to search: auto, cpu, cuda or cuda:N.")] = "auto"
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar=f"{ENV_PREFIX}API_KEY", help="Key for --url.", show_default=False)
    ] = None
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            help="File of certificates (PEM) to trust an https --url by; the usual authorities if not set.",
            show_default=False,
        ),
    ] = None
    id_column: Annotated[str, typer.Option("--id-column", help="Column of the query ids.")] = "id"
    text_column: Annotated[str, typer.Option("--text-column", help="Column of the texts, where queries are such.")] = (
        "text"
    )
    mean_column: Annotated[str, typer.Option("--mean-column", help="Column of the means.")] = "mean"
    variance_column: Annotated[str, typer.Option("--variance-column", help="Column of the variances.")] = "variance"
    variance_as: Annotated[VarianceAs, typer.Option("--variance-as", help="What it holds.")] = VarianceAs.VARIANCE

    @property
    def columns(self) -> Columns:
        """Those of Gaussians; raises SourceError where they are not three."""
        return Columns(self.id_column, self.mean_column, self.variance_column)

    def asked(self, top_k: int) -> Asked:
        """What is asked of every query."""
        return Asked(top_k, self.candidates, self.nprobe, self.exact)

    def runner(self) -> Runner:
        """What searches, in the directory or through the service, whichever is named."""
        if self.url:
            return RemoteRunner(self.url, self.api_key, self.ca)
        return LocalRunner(str(self.index), self.device)

    def queries(self, runner: Runner, file: Path) -> Iterator[QueryBatch]:
        """Those of a file, which is of Gaussians, or of texts for the model or for the service to read.

        Raises SourceError, ModelError, and RemoteError where the service reads no texts.
        """
        texts = self._texts()
        if texts is None and isinstance(runner, RemoteRunner) and is_of_texts(file, self.columns, self.text_column):
            texts = TextSource(runner, Role.QUERY, text_columns(self.id_column, self.text_column))
        return read_queries(file, self.columns, self.variance_as, texts)

    def words(self, runner: Runner, text: str) -> QueryBatch:
        """One query in words; raises ModelError, and RemoteError where the service reads no texts."""
        return in_words(runner, text, self._texts())

    def _texts(self) -> TextSource | None:
        """What makes Gaussians of texts, where a model is named."""
        options = TextOptions(
            model=self.model, device=self.device, id_column=self.id_column, text_column=self.text_column
        )
        return text_source(options, None, Role.QUERY)


def with_searching(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a Typer command that takes `searching: Searching` so that it has one option per field of it."""
    parameters = inspect.signature(command).parameters
    hints = get_type_hints(Searching, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(Searching)
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in parameters.items()
        if name != "searching"
    ]

    def run(**arguments: Any) -> None:
        given = {parameter.name: arguments.pop(parameter.name) for parameter in shared}
        command(**arguments, searching=Searching(**given))

    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run
