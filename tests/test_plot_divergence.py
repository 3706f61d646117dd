"""The README's example in which KL and the cosine of the means disagree: what is drawn is what is scored."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.patches import Ellipse

from tests.oracles import torch_kl
from tests.readme_commands import README, ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("plot_divergence")


def test_the_two_rank_in_opposite_orders(script: ModuleType) -> None:
    by_kl, by_cosine = script.scores()
    np.testing.assert_allclose(by_kl, -torch_kl(script.QUERY, script.DOCUMENTS)[0], rtol=1e-5)
    assert np.argsort(by_kl).tolist() == np.argsort(by_cosine)[::-1].tolist()
    assert [each.split()[0] for each in script.ranking(by_kl).split("   ")] == ["C", "B", "A"]


def test_every_gaussian_is_drawn_and_both_rankings_are_written(script: ModuleType) -> None:
    (axes,) = script.drawn().axes
    drawn = [patch for patch in axes.patches if isinstance(patch, Ellipse)]
    gaussians = [script.QUERY, *(script.DOCUMENTS[row : row + 1] for row in range(3))]
    for ellipse, gaussian in zip(drawn, gaussians, strict=True):
        np.testing.assert_allclose(ellipse.center, gaussian.means[0], rtol=1e-6)
        np.testing.assert_allclose([ellipse.width, ellipse.height], 2 * gaussian.variances[0].sqrt(), rtol=1e-6)
    by_kl, by_cosine = axes.get_title(loc="left").splitlines()
    assert script.ranking(script.scores()[0]) in by_kl
    assert script.ranking(script.scores()[1]) in by_cosine
    assert axes.get_legend() is not None
    script.plt.close("all")


def test_the_readme_shows_it_and_it_is_the_same_each_time(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "(docs/kl-and-cosine.svg)" in README
    assert (ROOT / "docs" / "kl-and-cosine.svg").read_bytes().startswith(b"<?xml")
    written = []
    for name in ("first.svg", "second.svg"):
        monkeypatch.setattr(sys, "argv", ["plot_divergence.py", str(tmp_path / name)])
        script.main()
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
