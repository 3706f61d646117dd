"""What an index of any size takes, and how late the slowest of its shards is: makes docs/scale.md's tables and figure.

    python scripts/simulate_scale.py                     the tables and the figure anew, of docs/scale-constants.json
    python scripts/simulate_scale.py --check             changes nothing, and exits with 1 where a table is out of date
    python scripts/simulate_scale.py measure             measures the constants anew on this machine: minutes
    python scripts/simulate_scale.py measure --latencies shard.json    with latencies that were measured elsewhere

Everything follows from the constants and a seed: the same file makes the same tables, and the same figure.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import typer
from matplotlib.ticker import LogLocator, NullFormatter
from scale_constants import CONSTANTS, Constants, read, write
from scale_tables import SEED, SHARDS, hedged_after, updated
from scale_tail import Policy, scatter

DOCUMENT = CONSTANTS.with_name("scale.md")
FIGURE = CONSTANTS.with_name("tail-latency.svg")
COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00")
"""That people with any colour vision tell apart, on white."""
HEDGED_AFTER = 0.9

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def document(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 where a table differs.")] = False,
    constants: Annotated[Path, typer.Option(help="What was measured.")] = CONSTANTS,
) -> None:
    """Write docs/scale.md's tables, and docs/tail-latency.svg."""
    if context.invoked_subcommand is not None:
        return
    measured = read(constants)
    before = DOCUMENT.read_text(encoding="utf-8")
    after = updated(before, measured)
    if check:
        if after != before:
            print("docs/scale.md is out of date: run python scripts/simulate_scale.py", file=sys.stderr)
        raise typer.Exit(int(after != before))
    DOCUMENT.write_text(after, encoding="utf-8")
    save(measured, FIGURE)


@app.command()
def measure(
    documents: Annotated[int, typer.Option(min=4_000, help="Of the larger index; hnsw a quarter.")] = 400_000,
    arrivals: Annotated[int, typer.Option(min=10, help="Searches that come at random, for each load.")] = 2_000,
    latencies: Annotated[Path | None, typer.Option(help="JSON of a shard's latencies to take.")] = None,
    to: Annotated[Path, typer.Option(help="File to write.")] = CONSTANTS,
    scratch: Annotated[Path | None, typer.Option(help="Folder for indexes; a temporary one if not set.")] = None,
) -> None:
    """Measure the constants anew, on this machine."""
    # It imports FAISS and all of the benchmark.
    from scale_measure import as_latencies, measure

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = measure(documents, arrivals, Path(folder), lambda text: print(text, file=sys.stderr))
    if latencies is not None:
        found = found.model_copy(update={"latencies": as_latencies(latencies)})
    write(found, to)


def drawn(constants: Constants) -> Any:
    """The 99th percentile of searches by how many shards they ask, with and without asking again."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    its = constants.latencies
    for colour, (share, samples) in zip(COLOURS, its.samples.items(), strict=False):
        for hedged in (False, True):
            policy = Policy(hedge=hedged_after(samples, HEDGED_AFTER)) if hedged else Policy()
            tails = [scatter(samples, shards, policy, seed=SEED).quantile(0.99) / its.service for shards in SHARDS]
            label = f"{share:.0%} busy" + (", asked again after the 90th percentile" if hedged else "")
            axes.plot(SHARDS, tails, color=colour, marker="o", markersize=4, linewidth=1 if hedged else 2,
                      linestyle="--" if hedged else "-", label=label)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(SHARDS, [str(shards) for shards in SHARDS])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("shards that a search asks")
    axes.set_ylabel("99th percentile, in searches that wait for none")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def save(constants: Constants, path: Path) -> None:
    """Writes the figure: the same file whenever it is drawn."""
    plt.rcParams["svg.hashsalt"] = "gaussearch"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = drawn(constants)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    app()
