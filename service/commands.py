"""What every command shares: the option that names an index, errors as one line and a status, and tables."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from index import GaussearchError, Manifest
from service.plain_console import PlainConsole
from service.settings import ENV_PREFIX

__all__ = ["LOCATION", "IndexOption", "described", "errors", "print_table", "rejected_rows"]

LOCATION = "a directory, or a URI of object storage: s3://bucket/prefix, gs://… or az://…"

IndexOption = Annotated[
    str,
    typer.Option(
        "--index", metavar="LOCATION", envvar=f"{ENV_PREFIX}INDEX", help=f"The index: {LOCATION}.", show_default=False
    ),
]


NO_MEMORY = (
    "can't start new thread",
    "Failed to launch worker thread",
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
)
"""What Python and Arrow say, where there is no room for the stack of a thread, and torch and FAISS, where there is no
memory."""


INDEX_INTERRUPTED = "the index is as it was, or as it was to be, and the same command goes on or does it again"


@contextlib.contextmanager
def errors(interrupted: str = INDEX_INTERRUPTED) -> Iterator[None]:
    """Turns what goes wrong on purpose into one line and an exit status, and SIGTERM into an orderly end.

    `interrupted` is what becomes of the command's work where it is told to end."""

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
    except Exception as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        said = str(error).partition("\n")[0]
        _stop(f"there is not enough memory{f' ({said})' if said else ''}: use a machine with more, or allow more", 1)
    except KeyboardInterrupt:
        _stop(f"interrupted; {interrupted}", 130)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(message: str, status: int) -> None:
    print(f"gaussearch: {message}", file=sys.stderr)
    raise typer.Exit(status)


def described(index: str, manifest: Manifest) -> dict[str, object]:
    """The rows of a table that say which generation a command has left live."""
    return {
        "index": index,
        "generation": manifest.generation,
        "documents": f"{manifest.documents:,}",
        "segments": len(manifest.segments),
        "kind": manifest.kind,
    }


def print_table(title: str, rows: dict[str, object]) -> None:
    """Prints names and values under a title."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, str(value))
    PlainConsole(sys.stdout).print(table)


def rejected_rows(count: int, listed: Path) -> dict[str, object]:
    """What a table says of rows that were left out, where there are any; `listed` is the file that lists them."""
    return {"rejected rows": f"{count:,}, listed in {listed}"} if count else {}
