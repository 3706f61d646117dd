"""The commands that change an index: documents added and deleted, compaction, generations, backups.

Each publishes one new generation, which a running service takes up by itself.
"""

import datetime
import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from index import (
    AddOptions,
    ChangeSummary,
    CompactOptions,
    GaussearchError,
    IndexDirectory,
    Manifest,
    WriteOptions,
    add_documents,
    back_up,
    compact_index,
    delete_documents,
    roll_back,
)
from index import restore as restore_backup
from index.documents import DocumentStore
from index.drift import rebuild_reason
from index.errors import DocumentNotFoundError, SourceError
from index.generation_files import deleted_rows, open_segments
from service.commands import IndexOption, errors, print_table, rejected_rows
from service.files import contents_of
from service.options import with_options
from service.progress import progress_for
from service.runs import PlainConsole
from service.settings import ENV_PREFIX

__all__ = ["commands", "print_generations"]

SHOWN = 5
"""Missing ids that are named."""

WIDTH = 80
"""Columns of a terminal in which the list of generations is whole."""

commands = typer.Typer()


class Form(StrEnum):
    """How generations are listed."""

    TABLE = "table"
    JSON = "json"


@commands.command()
@with_options(AddOptions, ENV_PREFIX)
def add(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCES", help="Files, folders or globs, as for build.", show_default=False),
    ],
    index: IndexOption,
    options: AddOptions,
) -> None:
    """Add the documents of SOURCES to an index, each in place of the one with its id, if there is one.

    All of them or none; interrupted, the same command does it all again.
    """
    with errors():
        with progress_for(Console(stderr=True)) as progress:
            summary = add_documents(sources, IndexDirectory(index), options, progress)
        listed = rejected_rows(summary.rejected, options.rejected_to or index / "rejected.jsonl")
        _print_change(index, "added and published", summary, listed)
        model = summary.not_said_to_be_of
        if model is not None:
            print(
                f"these Gaussians do not say which model made them; the index's documents are of {model.name!r}, and "
                "one of another model is found by chance: gaussearch encode makes files that say so",
                file=sys.stderr,
            )


@commands.command()
@with_options(WriteOptions, ENV_PREFIX)
def delete(
    index: IndexOption,
    options: WriteOptions,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--ids",
            metavar="ID...",
            help="Ids of documents: several may follow, and --ids may be repeated, as for one that begins with -.",
            show_default=False,
        ),
    ] = None,
    more_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]", hidden=True)] = None,
    ids_file: Annotated[
        Path | None,
        typer.Option(
            "--ids-file",
            help="File of ids: each line is one, with all that is in it; - reads the input.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Delete documents by their ids; those that are not there are counted."""
    if more_ids and ids is None:
        raise typer.BadParameter(f"{more_ids[0]!r} does not follow --ids: give --ids {' '.join(more_ids)}")
    if (ids is None) == (ids_file is None):
        raise typer.BadParameter("give either --ids or --ids-file")
    with errors():
        wanted = [*ids, *(more_ids or [])] if ids else _lines(ids_file or Path("-"))
        summary = delete_documents(wanted, IndexDirectory(index), options)
        _print_change(index, "deleted and published" if summary.deleted else "nothing to delete", summary)
        for together in summary.missing[:SHOWN]:
            apart = _ids_apart(IndexDirectory(index), together)
            if apart:
                print(
                    f"{together!r} is one id, which is not there, and what its commas part is: "
                    f"{' '.join(f'--ids {shlex.quote(each)}' for each in apart)}",
                    file=sys.stderr,
                )


@commands.command()
@with_options(CompactOptions, ENV_PREFIX)
def compact(index: IndexOption, options: CompactOptions) -> None:
    """Put the documents of an index into full segments, without what was deleted; with --retrain build it anew."""
    with errors():
        directory = IndexDirectory(index)
        before = directory.live_generation()
        with progress_for(Console(stderr=True)) as progress:
            manifest = compact_index(directory, options, progress)
        title = "nothing to compact" if manifest.generation == before else "compacted and published"
        print_table(title, _described(index, manifest))


@commands.command()
def generations(
    index: IndexOption,
    pin: Annotated[
        int | None, typer.Option("--pin", help="Keep this one until it is unpinned.", show_default=False)
    ] = None,
    unpin: Annotated[
        int | None, typer.Option("--unpin", help="Leave this one to retention again.", show_default=False)
    ] = None,
    wait: Annotated[
        float,
        typer.Option("--wait", min=0, envvar=f"{ENV_PREFIX}WAIT", help=WriteOptions.model_fields["wait"].description),
    ] = 0.0,
    form: Annotated[Form, typer.Option("--format", help="table for people, json for programs.")] = Form.TABLE,
) -> None:
    """List the generations of an index that are kept, and pin or unpin one of them."""
    directory = IndexDirectory(index)
    with errors():
        directory.current_token()
        if pin is not None or unpin is not None:
            with directory.lock(wait):
                if pin is not None:
                    directory.pin(pin)
                if unpin is not None:
                    directory.unpin(unpin)
        rows = [row for number in directory.generations() if (row := _generation(directory, number)) is not None]
        if form is Form.JSON:
            print(json.dumps(rows))
        else:
            print_generations(index, rows)


@commands.command()
@with_options(WriteOptions, ENV_PREFIX)
def rollback(
    generation: Annotated[int, typer.Argument(metavar="GENERATION", help="Number of the generation to go back to.")],
    index: IndexOption,
    options: WriteOptions,
) -> None:
    """Go back to a generation that is kept: it is checked, and published once more under a new number."""
    with errors():
        manifest = roll_back(IndexDirectory(index), generation, options)
        print_table(f"generation {generation} is live again", _described(index, manifest))


@commands.command()
def backup(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="New folder, or new .tar, .tar.gz or .tar.zst.", show_default=False)
    ],
    index: IndexOption,
    generation: Annotated[
        int | None, typer.Option("--generation", help="Which one; the live one if not set.", show_default=False)
    ] = None,
) -> None:
    """Copy a generation of an index, checked, to a folder or a tar; writes go on meanwhile."""
    with errors():
        with progress_for(Console(stderr=True)) as progress:
            manifest = back_up(IndexDirectory(index), target, generation, progress)
        print_table(f"backed up to {target}", _described(index, manifest))


@commands.command()
@with_options(WriteOptions, ENV_PREFIX)
def restore(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder or tar that backup has written.", show_default=False)
    ],
    index: IndexOption,
    options: WriteOptions,
) -> None:
    """Make a backup the live generation of an index, after checking every byte of it."""
    with errors():
        with progress_for(Console(stderr=True)) as progress:
            manifest = restore_backup(source, IndexDirectory(index), options, progress)
        print_table("restored and published", _described(index, manifest))


def _lines(path: Path) -> list[str]:
    """The lines of a file that are not empty; raises SourceError for one that cannot be read or is no UTF-8."""
    data = sys.stdin.buffer.read() if str(path) == "-" else contents_of(path, "--ids-file", SourceError)
    lines = []
    # No other characters than these end a line: an id may have them.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            lines.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise SourceError(f"{path} line {number}: it is not UTF-8: {error}") from error
    return [line for line in lines if line]


def _described(index: Path, manifest: Manifest) -> dict[str, object]:
    return {
        "index": str(index),
        "generation": manifest.generation,
        "documents": f"{manifest.documents:,}",
        "segments": len(manifest.segments),
        "kind": manifest.kind,
    }


def _ids_apart(directory: IndexDirectory, together: str) -> list[str]:
    """The ids that commas in one part, where an index has documents of all of them: it may be that these were meant."""
    parts = [part.strip() for part in together.split(",")]
    if len(parts) == 1 or not all(parts):
        return []
    manifest = directory.manifest()
    deleted = [deleted_rows(directory, entry) for entry in manifest.segments]
    documents = DocumentStore(open_segments(directory, manifest, verify=False), deleted)
    try:
        return [documents.find(part).id for part in parts]
    except DocumentNotFoundError:
        return []


def _print_change(index: Path, title: str, summary: ChangeSummary, listed: dict[str, object] | None = None) -> None:
    """What was changed. `listed` is what is said of rows that were left out."""
    rows = _described(index, summary.manifest)
    if summary.written:
        rows["written"] = f"{summary.written:,}, {summary.replaced:,} in place of another"
        reason = rebuild_reason(summary.manifest)
        if reason is not None:
            rows["rebuild"] = reason
    rows |= listed or {}
    if summary.deleted:
        rows["deleted"] = f"{summary.deleted:,}"
    if summary.missing:
        more = "" if len(summary.missing) <= SHOWN else ", ..."
        rows["not there"] = f"{len(summary.missing):,}: {', '.join(map(repr, summary.missing[:SHOWN]))}{more}"
    print_table(title, rows)


def _generation(directory: IndexDirectory, number: int) -> dict[str, object] | None:
    """What is listed of a generation; of one that cannot be read, why. None where it has been removed meanwhile."""
    rest: dict[str, object] = {}
    try:
        manifest = directory.generation(number)
        rest = {
            "restores": manifest.restores,
            "created": manifest.created_at,
            "documents": manifest.documents,
            "kind": manifest.kind.value,
            "changes": manifest.changes,
            "bytes": sum(file.bytes for file in directory.files(manifest).values()),
        }
    except GaussearchError as error:
        if number not in directory.generations():
            return None
        rest = {"error": str(error)}
    pinned = number in directory.pinned()
    return {"generation": number, "live": number == directory.live_generation(), "pinned": pinned, **rest}


def print_generations(index: Path, rows: list[dict[str, object]]) -> None:
    """A table that a terminal of WIDTH columns shows whole; what cannot be read stands below it."""
    console = PlainConsole(sys.stdout)
    table = Table(title=str(index), title_justify="left")
    for name in ("generation", "created (UTC)", "documents", "changes", "size"):
        table.add_column(name, justify="right", no_wrap=console.width >= WIDTH, overflow="fold")
    table.add_column("", overflow="fold")
    for row in rows:
        shown = [""] * 4
        if "error" not in row:
            shown = [_time(row["created"]), f"{row['documents']:,}", f"{row['changes']:,}", _size(row["bytes"])]
        table.add_row(str(row["generation"]), *shown, ", ".join(_remarks(row)))
    console.print(table)
    for row in rows:
        if "error" in row:
            print(f"generation {row['generation']} cannot be read: {row['error']}")


def _remarks(row: dict[str, object]) -> list[str]:
    """What there is to say of a generation beside its numbers."""
    restores = row.get("restores")
    said = [name for name in ("live", "pinned") if row[name]] + ["damaged"] * ("error" in row)
    return said if restores is None else [*said, f"restores {restores}"]


def _time(written: object) -> str:
    return datetime.datetime.fromisoformat(str(written)).astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M")


def _size(value: object) -> str:
    size, unit = float(str(value)), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
