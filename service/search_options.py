"""The options that commands which search share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

from index import VarianceAs
from index.build_options import TextOptions
from index.build_reading import text_source
from index.text import Role
from index.text.rows import TextSource
from service.runs import LocalRunner, RemoteRunner, Runner
from service.settings import ENV_PREFIX

__all__ = [
    "ApiKeyOption",
    "CaOption",
    "CandidatesOption",
    "DeviceOption",
    "ExactOption",
    "IdColumnOption",
    "MeanColumnOption",
    "ModelOption",
    "NprobeOption",
    "SearchedIndexOption",
    "TextColumnOption",
    "UrlOption",
    "VarianceAsOption",
    "VarianceColumnOption",
    "query_texts",
    "runner_for",
]

SearchedIndexOption = Annotated[
    Path | None, typer.Option("--index", help="Directory of the index to search.", show_default=False)
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="A running service to search instead.", show_default=False)
]
CandidatesOption = Annotated[
    int | None,
    typer.Option(
        "--candidates",
        min=1,
        help="Documents scored exactly per query; as the index was measured if not set.",
        show_default=False,
    ),
]
NprobeOption = Annotated[
    int | None,
    typer.Option(
        "--nprobe",
        min=1,
        help="Lists that a query looks into, where there are any; as the index was measured if not set.",
        show_default=False,
    ),
]
ExactOption = Annotated[bool, typer.Option("--exact", help="Scan every document, whatever the kind of index.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where to search: auto, cpu, cuda or cuda:N.")]
ApiKeyOption = Annotated[
    str | None, typer.Option("--api-key", envvar=f"{ENV_PREFIX}API_KEY", help="Key for --url.", show_default=False)
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        help="File of certificates (PEM) to trust an https --url by; the usual authorities if not set.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model that makes Gaussians of the queries' texts: its folder, package:NAME or hub:NAME. Without one they "
        "are Gaussians.",
        show_default=False,
    ),
]
TextColumnOption = Annotated[str, typer.Option("--text-column", help="Column of the texts, with --model.")]
IdColumnOption = Annotated[str, typer.Option("--id-column", help="Column of the query ids.")]
MeanColumnOption = Annotated[str, typer.Option("--mean-column", help="Column of the means.")]
VarianceColumnOption = Annotated[str, typer.Option("--variance-column", help="Column of the variances.")]
VarianceAsOption = Annotated[VarianceAs, typer.Option("--variance-as", help="What it holds.")]


def runner_for(index: Path | None, url: str | None, device: str, api_key: str | None, ca: Path | None) -> Runner:
    """What searches the one of the two that is given."""
    return RemoteRunner(url, api_key, ca) if url else LocalRunner(Path(str(index)), device)


def query_texts(model: str | None, device: str, id_column: str, text_column: str) -> TextSource | None:
    """What makes Gaussians of texts of queries, where a model is named; raises ModelError."""
    options = TextOptions(model=model, device=device, id_column=id_column, text_column=text_column)
    return text_source(options, None, Role.QUERY)
