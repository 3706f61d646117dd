"""The command `gaussearch`: build, inspect, verify and search an index, and serve it over HTTP."""

import contextlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from index import (
    BuildOptions,
    BuildSummary,
    Columns,
    GaussearchError,
    IndexDirectory,
    Manifest,
    VarianceAs,
    build_index,
)
from index.manifest import IndexKind
from service.options import with_options
from service.progress import progress_for
from service.runs import Asked, LocalRunner, PlainConsole, RemoteRunner, RunFormat, Runner, RunWriter, read_queries
from service.server import run_server
from service.settings import ENV_PREFIX, ServiceSettings

__all__ = ["app", "main"]

app = typer.Typer(
    name="gaussearch",
    epilog="Start with: gaussearch build corpus.parquet --index my-index; gaussearch serve --index my-index",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

IndexOption = Annotated[
    Path, typer.Option("--index", envvar=f"{ENV_PREFIX}INDEX", help="Directory of the index.", show_default=False)
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gaussearch {importlib.metadata.version('gaussearch')}")
        raise typer.Exit


@app.callback()
def gaussearch(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Retrieval over distributions: documents and queries are diagonal Gaussians, ranked by -KL(Q||D)."""


@app.command()
@with_options(BuildOptions, ENV_PREFIX)
def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES",
            help="Files, folders or globs: Parquet, Arrow, NPZ, safetensors, JSON Lines (.gz, .zst), pickle.",
            show_default=False,
        ),
    ],
    index: IndexOption,
    options: BuildOptions,
) -> None:
    """Build an index of SOURCES and publish it; a service that serves the directory takes it up by itself.

    Interrupted at any moment, the live index is untouched, and the same command goes on where it stopped.
    """
    console = Console(stderr=True)
    with _errors(), progress_for(console) as progress:
        summary = build_index(sources, IndexDirectory(index), options, progress)
    _print_summary(summary)


@app.command()
def inspect(index: IndexOption) -> None:
    """Show what an index holds: documents, dimensions, encoding, segments, sizes, where it came from."""
    with _errors():
        manifest = IndexDirectory(index).manifest()
    size = sum(segment.bytes for segment in manifest.segments)
    rows: dict[str, object] = {
        "generation": manifest.generation,
        "created": f"{manifest.created_at} by {manifest.created_by}",
        "documents": f"{manifest.documents:,}",
        "dimensions (k)": manifest.k,
        "kind": manifest.kind,
        **_vector_rows(manifest),
        "size": f"{size:,} bytes ({size / manifest.documents:,.0f} per document)",
        "segments": len(manifest.segments),
        **_recall_rows(manifest),
        "sources": ", ".join(manifest.source.files),
        "rejected rows": manifest.source.rejected,
    }
    _print_table(str(index), rows)


@app.command()
def verify(index: IndexOption) -> None:
    """Check every checksum of an index; exits with 1 and names the file if one does not match."""
    with _errors():
        manifest = IndexDirectory(index).verify()
    print(f"{index}: generation {manifest.generation} is intact: {manifest.documents:,} documents")


@app.command()
def search(
    queries: Annotated[
        Path,
        typer.Option("--queries", help="Query Gaussians, in any format that corpora may have.", show_default=False),
    ],
    index: Annotated[
        Path | None, typer.Option("--index", help="Directory of the index to search.", show_default=False)
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="A running service to search instead.", show_default=False)
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Documents per query.")] = 10,
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            min=1,
            help="Documents scored exactly per query; as the index was measured if not set.",
            show_default=False,
        ),
    ] = None,
    nprobe: Annotated[
        int | None,
        typer.Option(
            "--nprobe",
            min=1,
            help="Lists that a query looks into, where there are any; as the index was measured if not set.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Scan every document, whatever the kind of index.")] = False,
    form: Annotated[
        RunFormat, typer.Option("--format", help="table for people, jsonl for programs, trec for trec_eval.")
    ] = RunFormat.TABLE,
    device: Annotated[str, typer.Option("--device", help="Where to search: auto, cpu, cuda or cuda:N.")] = "auto",
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar=f"{ENV_PREFIX}API_KEY", help="Key for --url.", show_default=False)
    ] = None,
    id_column: Annotated[str, typer.Option("--id-column", help="Column of the query ids.")] = "id",
    mean_column: Annotated[str, typer.Option("--mean-column", help="Column of the means.")] = "mean",
    variance_column: Annotated[str, typer.Option("--variance-column", help="Column of the variances.")] = "variance",
    variance_as: Annotated[VarianceAs, typer.Option("--variance-as", help="What it holds.")] = VarianceAs.VARIANCE,
) -> None:
    """Search with every Gaussian of a file, in a directory (--index) or through a service (--url)."""
    if (index is None) == (url is None):
        raise typer.BadParameter("give either --index or --url")
    with _errors():
        runner: Runner = RemoteRunner(url, api_key) if url else LocalRunner(Path(str(index)), device)
        writer = RunWriter(form, sys.stdout)
        for batch in read_queries(queries, Columns(id_column, mean_column, variance_column), variance_as):
            found = runner.search(batch.gaussians, Asked(top_k, candidates, nprobe, exact))
            for query_id, text, results in zip(batch.ids, batch.texts, found, strict=True):
                writer.write(query_id, text, results)


@app.command()
@with_options(ServiceSettings, ENV_PREFIX)
def serve(options: ServiceSettings) -> None:
    """Serve an index over HTTP until SIGTERM or Ctrl-C; /docs describes the interface."""
    with _errors():
        run_server(options)


def main() -> None:
    """Entry point of the command."""
    app()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turns what goes wrong on purpose into one line and an exit status, and SIGTERM into an orderly end."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
        # What is still buffered must meet a broken pipe here and not when the interpreter ends.
        sys.stdout.flush()
    except GaussearchError as error:
        _stop(f"{error} [{error.code}]", 1)
    except BrokenPipeError:
        # The reader of our output has enough (head, less).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:
        _stop(str(error), 1)
    except KeyboardInterrupt:
        _stop("interrupted; no index has changed, and a build goes on from here when it is started again", 130)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(message: str, status: int) -> None:
    print(f"gaussearch: {message}", file=sys.stderr)
    raise typer.Exit(status)


def _vector_rows(manifest: Manifest) -> dict[str, object]:
    """What is stored of a document to be scanned."""
    codes = manifest.codes
    if codes is not None:
        rows: dict[str, object] = {
            "codes": f"{codes.code_bytes} bytes per document, of {codes.dimensions} projected dimensions"
        }
        if codes.graph is not None:
            graph = codes.graph
            rows["graph"] = f"{graph.links} links (M), chosen of {graph.construction} (efConstruction)"
        if codes.factory is not None:
            rows["FAISS index"] = f"{codes.factory.factory}, one a segment"
        its = codes.lists or codes.factory
        if its is not None and its.nprobe is not None:
            probes = ", ".join(f"{nprobe:,} for the top {top_k:,}" for top_k, nprobe in its.nprobe)
            rows["lists"] = f"{its.lists:,}, of which a query looks into (nprobe) {probes}"
        return rows
    return {"encoding": f"{manifest.encoding} ({manifest.encoding.width(manifest.k)} numbers per document)"}


def _recall_rows(manifest: Manifest) -> dict[str, object]:
    """What is known of how much a search finds."""
    recall, codes = manifest.measured_recall, manifest.codes
    why: dict[str, object] = {} if manifest.reason is None else {"why this kind": manifest.reason}
    if recall is None or codes is None:
        return {**why, "measured recall": "exact by construction"}
    source = "given" if recall.source == "queries" else "that are documents"
    if recall.high < recall.target:
        missed = ", which it misses"
    else:
        missed = ", which is within that" if recall.recall < recall.target else ""
    broader = f", the best of {codes.breadth:.1f} times as many that are found" if codes.breadth > 1 else ""
    return {
        **why,
        "measured recall": f"{recall.recall:.4f} at {recall.at}, {recall.low:.4f} to {recall.high:.4f} with 95% "
        f"confidence, over {recall.queries:,} queries {source}; asked for {recall.target}{missed}",
        "scored exactly": ", ".join(f"{candidates:,} for the top {top_k:,}" for top_k, candidates in codes.candidates)
        + broader,
    }


def _print_summary(summary: BuildSummary) -> None:
    manifest = summary.manifest
    rows: dict[str, object] = {
        "index": str(summary.path),
        "generation": manifest.generation,
        "documents": f"{manifest.documents:,}",
        "dimensions (k)": manifest.k,
        "kind": manifest.kind,
        **({} if manifest.kind is IndexKind.FLAT and manifest.reason is None else _recall_rows(manifest)),
        **({} if manifest.codes is None else _vector_rows(manifest)),
        "size": f"{summary.bytes:,} bytes in {len(manifest.segments)} segments",
        "time": f"{summary.seconds:.1f} s",
    }
    if summary.resumed_documents:
        rows["resumed"] = f"{summary.resumed_documents:,} documents were there from an interrupted build"
    if manifest.source.rejected:
        rows["rejected rows"] = f"{manifest.source.rejected:,}"
    _print_table("already up to date" if summary.up_to_date else "built and published", rows)


def _print_table(title: str, rows: dict[str, object]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, str(value))
    PlainConsole(sys.stdout).print(table)
