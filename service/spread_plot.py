"""How the Gaussians of an index are spread, as a figure. The only module that needs matplotlib."""

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.durable import write_where_told
from index.errors import InvalidOptionError
from index.spread import Spread
from service.files import require_place

__all__ = ["FORMATS", "draw", "require_drawable", "write_plot"]

FORMATS = (".svg", ".png")
BINS = 60


def require_drawable(path: Path) -> None:
    """Raises InvalidOptionError unless a figure can be drawn as that file: before a sample is read."""
    require_place(path, "--plot", InvalidOptionError)
    if path.suffix.lower() not in FORMATS:
        raise InvalidOptionError(f"--plot: {path} is neither an .svg nor a .png")
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise InvalidOptionError(f"--plot needs matplotlib ({error}): pip install 'gaussearch[plot]'") from error


def draw(spread: Spread, name: str) -> Any:
    """A matplotlib figure of three histograms: variances, norms of means, log-determinants of covariances."""
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(11, 3.6), layout="constrained")
    variances, norms, determinants = figure.subplots(1, 3)
    _, k = spread.variances.shape
    variances.hist(spread.variances.ravel(), bins=_logarithmic(spread.variances))
    variances.set_xscale("log")
    variances.set_xlabel("variance of a component (log)")
    norms.hist(spread.norms, bins=BINS)
    norms.set_xlabel("norm of a mean")
    determinants.hist(spread.log_determinants, bins=BINS)
    determinants.set_xlabel("log-determinant (lower: more certain)")
    variances.set_ylabel("components")
    norms.set_ylabel("documents")
    of = "" if len(spread) == spread.documents else f"{len(spread):,} of "
    # The name is no formula, whatever dollars it holds.
    figure.suptitle(f"{name}: {of}{spread.documents:,} documents, k = {k}", parse_math=False)
    for axes in (variances, norms, determinants):
        axes.grid(alpha=0.3)
    return figure


def write_plot(path: Path, spread: Spread, name: str) -> None:
    """Draws a figure as a file, the same each time."""
    matplotlib = importlib.import_module("matplotlib")
    drawn, form = io.BytesIO(), path.suffix.lower().removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "gaussearch"}):
        draw(spread, name).savefig(drawn, format=form, metadata={"Date": None} if form == "svg" else None)
    write_where_told(path, drawn.getvalue())


def _logarithmic(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Bounds of bins that are equally wide on a logarithmic axis."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low / 2, high * 2
    return np.geomspace(low, high, BINS + 1)
