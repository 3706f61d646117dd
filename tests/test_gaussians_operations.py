"""What can be done with a batch of Gaussians: slices, chunks, other precisions and devices, several made one."""

import re

import pytest
import torch

from index import Gaussians
from index.errors import InvalidGaussiansError
from tests.conftest import random_gaussians


def equal(ours: Gaussians, theirs: Gaussians) -> bool:
    """Whether means and variances are the same numbers in the same precision."""
    return (
        ours.means.dtype == theirs.means.dtype == ours.variances.dtype
        and torch.equal(ours.means, theirs.means)
        and torch.equal(ours.variances, theirs.variances)
    )


def one(mean: float, variance: float, dtype: torch.dtype = torch.float64) -> Gaussians:
    """A single one-dimensional Gaussian."""
    return Gaussians(torch.tensor([[mean]], dtype=dtype), torch.tensor([[variance]], dtype=dtype))


def test_size() -> None:
    """Rows, dimensions and device."""
    gaussians = random_gaussians(7, 3)
    assert (len(gaussians), gaussians.k, gaussians.device) == (7, 3, torch.device("cpu"))


def test_slices_are_views() -> None:
    """A slice shares memory with what it was taken from."""
    gaussians = random_gaussians(7, 3)
    part = gaussians[2:5]
    assert equal(part, Gaussians(gaussians.means[2:5], gaussians.variances[2:5]))
    assert part.means.data_ptr() == gaussians.means[2:].data_ptr()
    assert part.variances.data_ptr() == gaussians.variances[2:].data_ptr()
    assert len(gaussians[7:]) == 0


def test_rows_by_number() -> None:
    """In the order asked for, repeated where repeated, none where none."""
    gaussians = random_gaussians(7, 3)
    rows = [6, 0, 0, 3]
    assert equal(gaussians[torch.tensor(rows)], Gaussians(gaussians.means[rows], gaussians.variances[rows]))
    assert len(gaussians[torch.tensor([], dtype=torch.int64)]) == 0


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_chunks(rows: int, sizes: list[int]) -> None:
    """Every row once and in order, at most `rows` at a time."""
    gaussians = random_gaussians(7, 3)
    chunks = list(gaussians.chunks(rows))
    assert [len(chunk) for chunk in chunks] == sizes
    assert equal(Gaussians.concatenate(chunks), gaussians)


def test_concatenate() -> None:
    """Precisions that agree are kept; where they differ float64 holds them all, bfloat16 and float16 too."""
    half = one(0.5, 2.0, torch.float16)
    assert equal(Gaussians.concatenate([half, half]), half[torch.tensor([0, 0])])
    assert Gaussians.concatenate([half]) is half
    mixed = Gaussians.concatenate([half, one(1e30, 1e-30, torch.bfloat16), one(1e300, 1e-300)])
    assert mixed.means.dtype == mixed.variances.dtype == torch.float64
    assert mixed.means.flatten().tolist() == [0.5, torch.tensor(1e30).bfloat16().item(), 1e300]
    assert mixed.variances.flatten().tolist() == [2.0, torch.tensor(1e-30).bfloat16().item(), 1e-300]


# Exact in bfloat16 and float32, and nothing in float16.
TINY = 2.0**-30


@pytest.mark.parametrize(
    ("gaussian", "dtype", "message"),
    [
        (one(0.0, 1e-60), torch.float32, "variance is 1e-60, which torch.float32 cannot hold"),
        (one(0.0, 1e60), torch.float32, "variance is 1e+60, which torch.float32 cannot hold"),
        (one(-1e60, 1.0), torch.float32, "mean is -1e+60, which torch.float32 cannot hold"),
        (one(7e4, 1.0, torch.float32), torch.float16, "mean is 70000.0, which torch.float16 cannot hold"),
        (
            one(0.0, TINY, torch.float32),
            torch.float16,
            f"variance is {TINY!r}, which torch.float16 cannot hold",
        ),
        # As many bits, fewer of them for the exponent.
        (one(2.0**17, 1.0, torch.bfloat16), torch.float16, "mean is 131072.0, which torch.float16 cannot hold"),
        (
            one(0.0, TINY, torch.bfloat16),
            torch.float16,
            f"variance is {TINY!r}, which torch.float16 cannot hold",
        ),
    ],
)
def test_narrowing_that_loses_a_gaussian(gaussian: Gaussians, dtype: torch.dtype, message: str) -> None:
    """What would become zero or infinite in the narrower precision is refused, by row, component and value."""
    pair = Gaussians.concatenate([one(0.0, 1.0, gaussian.means.dtype), gaussian])
    with pytest.raises(InvalidGaussiansError, match=f"^row 1, component 0: {re.escape(message)}$"):
        pair.to(dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    """The numbers rounded; a widening and back loses nothing; the same precision copies nothing."""
    gaussians = random_gaussians(7, 3)
    there = gaussians.to(dtype=dtype)
    assert equal(there, Gaussians(gaussians.means.to(dtype), gaussians.variances.to(dtype)))
    assert equal(there.to("cpu", torch.float64).to(dtype=dtype), there)
    assert there.to("cpu").means.data_ptr() == there.means.data_ptr()


def test_a_models_graph_is_left_behind() -> None:
    """Gaussians are data: what a model in training puts out does not keep its graph alive in an index."""
    weights = torch.ones(2, 3, requires_grad=True)
    gaussians = Gaussians(2 * weights, weights.exp())
    assert not gaussians.means.requires_grad
    assert not gaussians.variances.requires_grad
    assert gaussians.to(dtype=torch.float64)[:1].means.numpy().tolist() == [[2.0, 2.0, 2.0]]


@pytest.mark.gpu
def test_to_a_gpu_and_back(cuda: torch.device) -> None:
    """The same numbers on either side, checked there as here."""
    gaussians = random_gaussians(7, 3)
    there = gaussians.to(cuda)
    assert there.device == cuda
    assert equal(there.to("cpu"), gaussians)
    with pytest.raises(InvalidGaussiansError, match=r"mean is torch.float32 on cpu and variance torch.float32 on cuda"):
        Gaussians(gaussians.means, there.variances)
    with pytest.raises(InvalidGaussiansError, match=r"^row 0, component 0: variance is 0\.0"):
        Gaussians(there.means, torch.zeros_like(there.variances))
