"""The commands that change the documents of an index: add, delete and compact.

Each publishes one new generation, which a running service takes up by itself.
"""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from index import (
    AddOptions,
    ChangeSummary,
    CompactOptions,
    GaussearchError,
    IndexDirectory,
    WriteOptions,
    add_documents,
    compact_index,
    delete_documents,
)
from index.documents import DocumentStore
from index.drift import rebuild_reason
from index.errors import DocumentNotFoundError, SourceError
from index.generation_files import deleted_rows, open_segments
from service.commands import IndexOption, described, errors, print_table, rejected_rows
from service.files import contents_of
from service.options import with_options
from service.progress import progress_for
from service.settings import ENV_PREFIX

__all__ = ["commands"]

SHOWN = 5
"""Missing ids that are named."""

commands = typer.Typer()


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
        directory = IndexDirectory.of(index)
        with progress_for(Console(stderr=True)) as progress:
            summary = add_documents(sources, directory, options, progress)
        listed = rejected_rows(summary.rejected, options.rejected_to or directory.path / "rejected.jsonl")
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
        directory = IndexDirectory.of(index)
        summary = delete_documents(wanted, directory, options)
        _print_change(index, "deleted and published" if summary.deleted else "nothing to delete", summary)
        for together, apart in _ids_apart(directory, summary.missing[:SHOWN]).items():
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
        directory = IndexDirectory.of(index)
        before = directory.live_generation()
        with progress_for(Console(stderr=True)) as progress:
            manifest = compact_index(directory, options, progress)
        title = "nothing to compact" if manifest.generation == before else "compacted and published"
        print_table(title, described(index, manifest))


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


def _ids_apart(directory: IndexDirectory, missing: Sequence[str]) -> dict[str, list[str]]:
    """The ids that commas in these part, where an index has documents of all of them: it may be that these were meant.

    Nothing where the index cannot be looked at: the command has done what it was to do.
    """
    parted = {together: [part.strip() for part in together.split(",")] for together in missing}
    parted = {together: parts for together, parts in parted.items() if len(parts) > 1 and all(parts)}
    if not parted:
        # To open a large index takes seconds.
        return {}
    found: dict[str, list[str]] = {}
    with contextlib.suppress(GaussearchError, OSError):
        number = directory.manifest().generation
        with directory.hold(number):
            manifest = directory.generation(number)
            lease = directory.fetch(manifest)
            deleted = [deleted_rows(directory, entry) for entry in manifest.segments]
            documents = DocumentStore(open_segments(directory, manifest, verify=False), deleted)
            for together, parts in parted.items():
                with contextlib.suppress(DocumentNotFoundError):
                    found[together] = [documents.find(part).id for part in parts]
            del lease
    return found


def _print_change(index: str, title: str, summary: ChangeSummary, listed: dict[str, object] | None = None) -> None:
    """What was changed. `listed` is what is said of rows that were left out."""
    rows = described(index, summary.manifest)
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
