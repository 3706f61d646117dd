"""`gaussearch inspect --plot`: a regular sample of an index's documents, and the figure that is drawn of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from index import Gaussians, IndexDirectory
from index.changes import delete_documents
from index.errors import InvalidInputError
from index.spread import spread_of
from service.cli import app
from service.spread_plot import draw, write_plot
from tests.conftest import MakeIndex, random_gaussians

DOCUMENTS, K = 101, 5


def inspect(directory: IndexDirectory, plot: Path) -> Result:
    return CliRunner().invoke(app, ["inspect", "--index", str(directory.path), "--plot", str(plot)])


def require_spread(directory: IndexDirectory, numbers: int, expected: Gaussians) -> None:
    spread = spread_of(directory, numbers)
    means, variances = expected.means.double().numpy(), expected.variances.double().numpy()
    np.testing.assert_allclose(spread.norms, np.sqrt((means**2).sum(axis=1)), rtol=1e-6)
    np.testing.assert_allclose(spread.log_determinants, np.log(variances).sum(axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(spread.variances, variances, rtol=1e-6)


@pytest.mark.parametrize("segment_docs", [10, 33, 1000])
def test_all_documents_are_looked_at_where_they_are_few(make_index: MakeIndex, segment_docs: int) -> None:
    gaussians = random_gaussians(DOCUMENTS, K)
    require_spread(make_index(gaussians, segment_docs=segment_docs), DOCUMENTS * K, gaussians)


@pytest.mark.parametrize("wanted", [1, 2, 9, 50, 100])
def test_of_many_every_so_manieth_is_that_is_not_deleted(make_index: MakeIndex, wanted: int) -> None:
    """Whatever segment it lies in; and no more than there is to be room for."""
    gaussians = random_gaussians(DOCUMENTS, K)
    directory = make_index(gaussians, segment_docs=10)
    gone = range(3, DOCUMENTS, 7)
    delete_documents([f"d{row}" for row in gone], directory)
    left = [row for row in range(DOCUMENTS) if row not in gone]
    step = -(-len(left) // wanted)
    require_spread(directory, wanted * K + 1, gaussians[torch.tensor(left[::step])])
    assert len(spread_of(directory, wanted * K + 1)) <= wanted


def test_an_index_without_documents_has_none(make_index: MakeIndex) -> None:
    directory = make_index(random_gaussians(2, K))
    delete_documents(["d0", "d1"], directory)
    with pytest.raises(InvalidInputError, match=f"{directory.path} holds no documents"):
        spread_of(directory)


def counts(axes: Any) -> list[float]:
    return [patch.get_height() for patch in axes.patches]


def bounds(axes: Any) -> tuple[float, float]:
    return axes.patches[0].get_x(), axes.patches[-1].get_x() + axes.patches[-1].get_width()


def test_a_figure_counts_all_that_is_in_the_sample(make_index: MakeIndex) -> None:
    spread = spread_of(make_index(random_gaussians(DOCUMENTS, K), segment_docs=40), 50 * K)
    figure = draw(spread, "an index")
    variances, norms, determinants = figure.axes
    assert figure.get_suptitle() == "an index: 34 of 101 documents, k = 5"
    assert variances.get_xscale() == "log"
    assert sum(counts(variances)) == 34 * K
    assert counts(norms) == np.histogram(spread.norms, bins=60)[0].tolist()
    assert counts(determinants) == np.histogram(spread.log_determinants, bins=60)[0].tolist()
    for axes, values in ((variances, spread.variances), (norms, spread.norms), (determinants, spread.log_determinants)):
        np.testing.assert_allclose(bounds(axes), (values.min(), values.max()), rtol=1e-5)


@pytest.mark.parametrize("name", ["a$b^$", r"a\$b$", "$$", "a_b^c"])
def test_a_name_is_no_formula(make_index: MakeIndex, tmp_path: Path, name: str) -> None:
    spread = spread_of(make_index(random_gaussians(4, K)))
    write_plot(tmp_path / "spread.svg", spread, name)
    assert draw(spread, name).get_suptitle() == f"{name}: 4 documents, k = 5"


def test_documents_that_are_all_alike_are_drawn(make_index: MakeIndex) -> None:
    same = Gaussians.from_arrays(np.ones((4, K)), np.full((4, K), 0.5))
    figure = draw(spread_of(make_index(same)), "alike")
    assert figure.get_suptitle() == "alike: 4 documents, k = 5"
    assert [sum(counts(axes)) for axes in figure.axes] == [4 * K, 4, 4]


@pytest.mark.parametrize(("name", "begins"), [("spread.svg", b"<?xml"), ("spread.PNG", b"\x89PNG")])
def test_the_command_writes_the_same_file_each_time(
    make_index: MakeIndex, tmp_path: Path, name: str, begins: bytes
) -> None:
    directory, path = make_index(random_gaussians(30, K)), tmp_path / name
    drawn = []
    for _ in range(2):
        done = inspect(directory, path)
        assert done.exit_code == 0, done.output
        assert "documents" in done.output
        drawn.append(path.read_bytes())
    assert drawn[0].startswith(begins)
    assert drawn[0] == drawn[1]


def test_what_cannot_be_drawn_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = IndexDirectory(tmp_path / "nowhere")
    refused = inspect(nowhere, tmp_path / "spread.jpeg")
    assert refused.exit_code == 1
    assert "spread.jpeg is neither an .svg nor a .png" in refused.stderr
    for path, why in ((tmp_path / "no folder" / "x.svg", "make its folder"), (tmp_path, "it is a folder")):
        refused = inspect(nowhere, path)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr == f"gaussearch: --plot: {path} cannot be written: {why} [invalid_option]\n"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused = inspect(nowhere, tmp_path / "spread.svg")
    assert refused.exit_code == 1
    assert "pip install 'gaussearch[plot]'" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_no_command_imports_what_only_some_need() -> None:
    others = {"matplotlib", "fastapi", "uvicorn"}
    program = f"import sys, service.cli; sys.exit(' '.join({others} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
