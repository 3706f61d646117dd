"""The command `gaussearch`: build, inspect, verify, search and evaluate an index, and serve it over HTTP."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from index import (
    BuildOptions,
    BuildSummary,
    IndexDirectory,
    Manifest,
    build_index,
)
from index.drift import rebuild_reason
from index.manifest import IndexKind
from index.spread import spread_of
from service import encode_command, evaluate_command, generation_commands, write_commands
from service.cluster.options import ClusterSettings, ServeOptions
from service.commands import IndexOption, errors, print_table, rejected_rows
from service.descriptors import allow_descriptors
from service.options import option_name, with_options
from service.progress import progress_for
from service.ray_option import RayCommand, RayGpusOption, RayOption, RayTasksOption, on_ray
from service.run_formats import RunFormat, RunWriter
from service.runs import search_batch
from service.search_options import Searching, with_searching
from service.settings import ENV_PREFIX
from service.spread_plot import require_drawable, write_plot

__all__ = ["app", "main"]

app = typer.Typer(
    name="gaussearch",
    epilog="Start with: gaussearch build corpus.parquet --index my-index; gaussearch serve --index my-index",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.command(cls=RayCommand)
@with_options(BuildOptions, ENV_PREFIX)
def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES",
            help="Files, folders or globs: Parquet, Arrow, NPZ, safetensors, JSON Lines (.gz, .zst), pickle; of texts, "
            "with --model: Parquet, Arrow, JSON Lines, TSV.",
            show_default=False,
        ),
    ],
    index: IndexOption,
    options: BuildOptions,
    ray: RayOption = None,
    ray_tasks: RayTasksOption = None,
    ray_gpus: RayGpusOption = 1.0,
) -> None:
    """Build an index of SOURCES and publish it; a service that serves the directory takes it up by itself.

    Interrupted at any moment, the live index is untouched, and the same command goes on where it stopped.
    """
    with errors():
        directory = IndexDirectory.of(index)
        with on_ray(ray, ray_tasks, ray_gpus) as place, progress_for(Console(stderr=True)) as progress:
            summary = build_index(sources, directory, options, progress, place=place)
        _print_summary(index, summary, options.rejected_to or directory.path / "rejected.jsonl")


@app.command()
def inspect(
    index: IndexOption,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="File (.svg or .png) to draw how variances, means and certainty are distributed, by a sample.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what an index holds: documents, dimensions, encoding, segments, sizes, where it came from."""
    with errors():
        if plot is not None:
            require_drawable(plot)
        directory = IndexDirectory.of(index)
        _print_inspected(index, directory.manifest())
        if plot is not None:
            write_plot(plot, spread_of(directory), directory.name)


def _print_inspected(index: str, manifest: Manifest) -> None:
    size = sum(segment.bytes for segment in manifest.segments)
    rows: dict[str, object] = {
        "generation": manifest.generation,
        "created": f"{manifest.created_at} by {manifest.created_by}",
        "documents": f"{manifest.documents:,}",
        "dimensions (k)": manifest.k,
        **({} if manifest.model is None else {"model": f"{manifest.model.name} ({manifest.model.encoder})"}),
        "kind": manifest.kind,
        **_vector_rows(manifest),
        "size": f"{size:,} bytes ({size / max(1, manifest.documents):,.0f} per document)",
        "segments": len(manifest.segments),
        **_recall_rows(manifest),
        "sources": ", ".join(manifest.source.files),
        "rejected rows": manifest.source.rejected,
        **_change_rows(manifest),
    }
    print_table(index, rows)


@app.command()
def verify(
    index: IndexOption,
    generation: Annotated[
        int | None, typer.Option("--generation", help="Which one; the live one if not set.", show_default=False)
    ] = None,
) -> None:
    """Check every checksum of an index; exits with 1 and names the file if one does not match."""
    with errors():
        directory = IndexDirectory.of(index)
        manifest = directory.verify(generation)
        directory.verify_stored(manifest)
        print(f"{index}: generation {manifest.generation} is intact: {manifest.documents:,} documents")


@app.command()
@with_searching
def search(
    searching: Searching,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            help="Query Gaussians, in any format that corpora may have; with --model or --url, texts.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="One query, in words.", show_default=False)] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Documents per query.")] = 10,
    form: Annotated[
        RunFormat, typer.Option("--format", help="table for people, jsonl for programs, trec for trec_eval.")
    ] = RunFormat.TABLE,
) -> None:
    """Search with every Gaussian or text of a file, or with words, in a directory (--index) or through a service."""
    if (searching.index is None) == (searching.url is None):
        raise typer.BadParameter("give either --index or --url")
    if (queries is None) == (text is None):
        raise typer.BadParameter("give either --queries or --text")
    if text is not None and not text.strip():
        raise typer.BadParameter("--text is empty")
    with errors():
        runner = searching.runner()
        writer = RunWriter(form, sys.stdout)
        for batch in [searching.words(runner, str(text))] if queries is None else searching.queries(runner, queries):
            found = search_batch(runner, batch, searching.asked(top_k))
            for query_id, words, results in zip(batch.ids, batch.texts, found, strict=True):
                writer.write(query_id, words, results)


@app.command(cls=RayCommand)
@with_options(ServeOptions, ENV_PREFIX)
def serve(
    options: ServeOptions,
    ray: RayOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="With --ray: show what would run where, and end.")] = False,
) -> None:
    """Serve an index over HTTP until SIGTERM or Ctrl-C; /docs describes the interface.

    With --ray, on a Ray cluster: Ray Serve runs as many processes as there are shards and replicas.
    """
    if ray is None:
        its = [option_name(name) for name in ClusterSettings.model_fields if name in options.model_fields_set]
        if its or plan:
            raise typer.BadParameter(f"{its[0] if its else '--plan'} is of a service on a Ray cluster: give --ray, too")
    with errors():
        if ray is not None:
            from service.cluster.run import run_cluster

            run_cluster(options, ray, plan_only=plan)
            return
        from service.server import run_server  # a third of a second that only this command needs

        run_server(options)


app.add_typer(encode_command.commands)
app.add_typer(evaluate_command.commands)
app.add_typer(write_commands.commands)
app.add_typer(generation_commands.commands)


def main() -> None:
    """Entry point of the command."""
    allow_descriptors()
    app()


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


def _change_rows(manifest: Manifest) -> dict[str, object]:
    """What has become of the index since it was built."""
    rows: dict[str, object] = {}
    if manifest.changes:
        rows["changes"] = f"{manifest.changes:,} since the build, {manifest.written:,} documents written"
    gone = sum(entry.documents for entry in manifest.segments) - manifest.documents
    if gone:
        rows["deleted rows"] = f"{gone:,}, which gaussearch compact clears away"
    if manifest.restores is not None:
        rows["restores"] = f"generation {manifest.restores}"
    drift = manifest.drift
    if drift is not None:
        what = "proved by the first scan" if manifest.codes is None else f"recall at {drift.at}"
        rows["newest documents"] = (
            f"{what}: {drift.recall:.3f}, {drift.low:.3f} to {drift.high:.3f} with 95% confidence"
        )
    rows["rebuild"] = rebuild_reason(manifest) or "not due"
    return rows


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _print_summary(index: str, summary: BuildSummary, rejected_to: Path) -> None:
    """What was built. `rejected_to` lists the rows that were left out."""
    manifest, replaced = summary.manifest, summary.replaced
    if replaced is not None:
        changes = f", and {replaced.changes:,} change{'s' * (replaced.changes > 1)} made to it since it was built"
        print(
            f"replaces generation {replaced.generation} of {replaced.documents:,} documents, k = {replaced.k}"
            f"{changes if replaced.changes else ''}; gaussearch rollback {replaced.generation} goes back to it"
        )
    rows: dict[str, object] = {
        "index": index,
        "generation": manifest.generation,
        "documents": f"{manifest.documents:,}",
        "dimensions (k)": manifest.k,
        "kind": manifest.kind,
        **({} if manifest.kind is IndexKind.FLAT and manifest.reason is None else _recall_rows(manifest)),
        **({} if manifest.codes is None else _vector_rows(manifest)),
        "size": f"{summary.bytes:,} bytes in {_counted(len(manifest.segments), 'segment')}",
        "time": f"{summary.seconds:.1f} s",
    }
    if summary.resumed_documents:
        rows["resumed"] = f"{summary.resumed_documents:,} documents were there from an interrupted build"
    if not summary.up_to_date:
        rows |= rejected_rows(manifest.source.rejected, rejected_to)
    elif manifest.source.rejected:
        # They were listed by the build that made it, wherever that was told to.
        rows["rejected rows"] = f"{manifest.source.rejected:,}"
    print_table("already up to date" if summary.up_to_date else "built and published", rows)
