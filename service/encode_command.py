"""The command that makes Gaussians of texts."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from index.build_options import EncodeOptions
from index.text.files import PART_ROWS, encode_texts
from service.commands import errors, print_table, rejected_rows
from service.options import with_options
from service.progress import progress_for
from service.settings import ENV_PREFIX

__all__ = ["commands"]

INTERRUPTED = (
    f"what has been encoded is kept, all but the last {PART_ROWS:,} rows, and the same command goes on from there"
)

commands = typer.Typer()


@commands.command()
@with_options(EncodeOptions, ENV_PREFIX)
def encode(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Texts: a file, folder or glob of JSON Lines, TSV (also .gz, .zst), Parquet or Arrow, or "
            "ir_datasets:NAME, where its data are on this machine.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT.parquet", help="What to make.", show_default=False)],
    options: EncodeOptions,
) -> None:
    """Make Gaussians of the texts of INPUT, a Parquet file that build, add, search and evaluate take.

    Interrupted at any moment, the same command goes on where it stopped.
    """
    with errors(INTERRUPTED):
        with progress_for(Console(stderr=True)) as progress:
            summary = encode_texts(source, output, options, progress)
        rows: dict[str, object] = {
            "output": str(summary.output),
            "rows": f"{summary.rows:,}",
            "dimensions (k)": summary.model.k,
            "model": f"{summary.model.name} ({summary.model.encoder})",
        }
        if summary.resumed:
            rows["resumed"] = f"{summary.resumed:,} rows were there from an interrupted run"
        print_table("encoded", rows | rejected_rows(summary.rejected, summary.rejected_to))
