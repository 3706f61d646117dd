"""Draws an example in two dimensions in which KL and the cosine of the means rank documents in opposite orders.

    python scripts/plot_divergence.py docs/kl-and-cosine.svg

Ellipses are one standard deviation of a Gaussian around its mean. The scores are computed as the index computes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Ellipse

from index import Encoding, Gaussians, encode_documents, encode_queries, negative_kl

QUERY = Gaussians.from_arrays([[2.0, 1.0]], [[0.15, 0.1]])
DOCUMENTS = Gaussians.from_arrays(
    [[4.0, 2.0], [2.35, 1.05], [1.7, 1.35]],
    [[0.3, 0.3], [0.03, 0.03], [0.5, 0.4]],
)
NAMES = ("A", "B", "C")
SAID = (
    "A: the same direction, and far away",
    "B: near, and too sure of itself",
    "C: covers what the query may be about",
)
COLOURS = ("#0072b2", "#009e73", "#d55e00")
"""That people with any colour vision tell apart, on white."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    # The same file whenever it is drawn. Its ground is white, so that it can be read on any page.
    plt.rcParams["svg.hashsalt"] = "gaussearch"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = drawn()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def scores() -> tuple[list[float], list[float]]:
    """Of each document, -KL(query || document), and the cosine of the means."""
    cosines = torch.cosine_similarity(QUERY.means, DOCUMENTS.means)
    products = encode_queries(QUERY, Encoding.SIMPLIFIED) @ encode_documents(DOCUMENTS, Encoding.SIMPLIFIED).T
    return negative_kl(products, QUERY, Encoding.SIMPLIFIED)[0].tolist(), cosines.tolist()


def ranking(values: list[float]) -> str:
    """The documents by their scores, the best first."""
    order = sorted(range(len(values)), key=lambda row: -values[row])
    return "   ".join(f"{NAMES[row]} {values[row]:.3f}" for row in order)


def drawn() -> Any:
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    _gaussian(axes, QUERY, "black", "query", linestyle="--")
    for row, (colour, said) in enumerate(zip(COLOURS, SAID, strict=True)):
        _gaussian(axes, DOCUMENTS[row : row + 1], colour, said)
        x, y = DOCUMENTS.means[row].tolist()
        axes.plot([0, x], [0, y], color=colour, linewidth=0.8, alpha=0.5)
        axes.annotate(NAMES[row], (x, y), xytext=(5, 5), textcoords="offset points", color=colour, weight="bold")
    by_kl, by_cosine = scores()
    axes.set_title(
        f"by -KL(query || document):  {ranking(by_kl)}\nby the cosine of the means:  {ranking(by_cosine)}",
        loc="left",
        fontsize=10,
    )
    axes.set_aspect("equal")
    axes.set_xlim(-0.1, 4.9)
    axes.set_ylim(-0.1, 2.75)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    return figure


def _gaussian(axes: Any, gaussian: Gaussians, colour: str, label: str, linestyle: str = "-") -> None:
    (mean,), (deviations,) = gaussian.means.tolist(), gaussian.variances.sqrt().tolist()
    axes.add_patch(
        Ellipse(mean, 2 * deviations[0], 2 * deviations[1], facecolor=(*matplotlib.colors.to_rgb(colour), 0.12),
                edgecolor=colour, linewidth=1.8, linestyle=linestyle, label=label)
    )  # fmt: skip
    axes.plot(*mean, marker="o", markersize=4, color=colour)


if __name__ == "__main__":
    main()
