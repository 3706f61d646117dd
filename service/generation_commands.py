"""The commands about the generations of an index: list, pin, roll back, back up and restore."""

import datetime
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from index import GaussearchError, IndexDirectory, WriteOptions, back_up, roll_back
from index import restore as restore_backup
from service.commands import IndexOption, described, errors, print_table
from service.options import with_options
from service.plain_console import PlainConsole
from service.progress import progress_for
from service.settings import ENV_PREFIX

__all__ = ["commands", "print_generations"]

WIDTH = 80
"""Columns of a terminal in which the list of generations is whole."""

commands = typer.Typer()


class Form(StrEnum):
    """How generations are listed."""

    TABLE = "table"
    JSON = "json"


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
    with errors():
        directory = IndexDirectory.of(index)
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
        manifest = roll_back(IndexDirectory.of(index), generation, options)
        print_table(f"generation {generation} is live again", described(index, manifest))


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
            manifest = back_up(IndexDirectory.of(index), target, generation, progress)
        print_table(f"backed up to {target}", described(index, manifest))


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
            manifest = restore_backup(source, IndexDirectory.of(index), options, progress)
        print_table("restored and published", described(index, manifest))


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


def print_generations(index: str, rows: list[dict[str, object]]) -> None:
    """A table that a terminal of WIDTH columns shows whole; what cannot be read stands below it."""
    console = PlainConsole(sys.stdout)
    table = Table(title=index, title_justify="left")
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
