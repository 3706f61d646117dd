"""Draws the curves that scripts/benchmark.py has measured: recall against latency, and growth; and
quality against k, that scripts/text_quality.py --by-k has.

python scripts/benchmark_plot.py figures.json --curves docs/recall-latency.svg --growth docs/growth.svg
python scripts/benchmark_plot.py by-k.json --quality docs/quality-by-k.svg
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

FLOOR = 0.95
Figures = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--growth", type=Path)
    parser.add_argument("--quality", type=Path)
    options = parser.parse_args()
    # The same file from the same figures, whenever it is drawn.
    plt.rcParams["svg.hashsalt"] = "gaussearch"
    figures = json.loads(options.figures.read_text(encoding="utf-8"))["figures"]
    if options.curves:
        _save(_curves([each for each in figures if each["part"] == "curves"]), options.curves)
    if options.growth:
        _save(_growth([each for each in figures if each["part"] == "growth"]), options.growth)
    if options.quality:
        _save(_quality([each for each in figures if each["part"] == "text"]), options.quality)


def _points(figures: Figures) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(setting, contender) -> recall and median latency of each of its points."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for each in figures:
        if each["unit"] == "recall@10":
            name = each["measure"].rpartition(", ")[0]
            found[each["setting"], name].append((each["value"], each["latency_ms"][0]))
    return found


def _curves(figures: Figures) -> Any:
    points = _points(figures)
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for (_, name), its in points.items():
        ours = name.startswith("gaussearch")
        ordered = sorted(its)
        axes.plot(*zip(*ordered, strict=True), marker="o", markersize=4 if ours else 3, label=name,
                  linewidth=2.2 if ours else 1, linestyle="-" if ours else "--")  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(0, 1.005)
    axes.set_xlabel("recall@10, over exact -KL")
    axes.set_ylabel("milliseconds for one query on one thread, median (log)")
    axes.set_title(f"{next(iter(points))[0]}: lower and further right is better")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", ncols=2)
    return figure


def _growth(figures: Figures) -> Any:
    """Latency at the least effort that reaches the floor, build time and peak memory, by corpus size."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {"ms": defaultdict(list), "s": defaultdict(list),
                                                            "MiB": defaultdict(list)}  # fmt: skip
    for (setting, name), its in _points(figures).items():
        reached = [latency for recall, latency in its if recall >= FLOOR]
        if reached:
            series["ms"][name].append((_size(setting), min(reached)))
    for each in figures:
        name, _, what = each["measure"].partition(": ")
        if what in ("build", "peak memory"):
            series[each["unit"]][name].append((_size(each["setting"]), each["value"]))
    titles = {"ms": f"one query, ms, recall@10 ≥ {FLOOR}", "s": "build, seconds", "MiB": "peak memory, MiB"}
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for axes, (unit, title) in zip(panels, titles.items(), strict=True):
        for name, its in series[unit].items():
            axes.plot(*zip(*sorted(its), strict=True), marker="o", markersize=3, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("documents")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    return figure


def _quality(figures: Figures) -> Any:
    """Each measure of heads by their k, over a line at that of cosine."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for each in figures:
        found[each["setting"]][each["measure"]] = each["value"]
    cosine = found.pop("cosine")
    heads = sorted(found.values(), key=lambda values: values["k"])
    names = {"RR@10": "MRR@10", "nDCG@10": "nDCG@10", "R@100": "Recall@100"}
    figure, panels = plt.subplots(1, len(names), figsize=(11, 3.6), layout="constrained")
    for axes, (measure, title) in zip(panels, names.items(), strict=True):
        sizes = [values["k"] for values in heads]
        axes.plot(sizes, [values[measure] for values in heads], marker="o", markersize=4, label="-KL, head of k")
        axes.axhline(cosine[measure], color="gray", linestyle="--", label=f"cosine, {cosine['k']:.0f} dimensions")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("k")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7, loc="lower right")
    return figure


def _size(setting: str) -> int:
    return int(setting.split()[0].replace(",", ""))


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
