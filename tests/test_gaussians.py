"""The batch of Gaussians: what its validator takes, what it refuses and where, and what can be done with one."""

import re

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from torch import Tensor

from index import GaussearchError, Gaussians
from index.errors import InvalidGaussiansError
from index.gaussians import MAX_DIMENSIONS, find_defects

NAN, INFINITY = float("nan"), float("inf")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def numbers(rows: int, k: int, **changes: float) -> Tensor:
    """Ones but for some places: numbers(2, 3, r1c2=0.0) has a zero in row 1, component 2."""
    tensor = torch.ones(rows, k, dtype=torch.float64)
    for place, value in changes.items():
        row, component = re.findall(r"\d+", place)
        tensor[int(row), int(component)] = value
    return tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("mean", NAN, "mean is nan, it must be finite"),
        ("mean", INFINITY, "mean is inf, it must be finite"),
        ("mean", -INFINITY, "mean is -inf, it must be finite"),
        ("variance", NAN, "variance is nan, it must be finite"),
        ("variance", INFINITY, "variance is inf, it must be finite"),
        ("variance", -INFINITY, "variance is -inf, it must be above zero"),
        ("variance", 0.0, "variance is 0.0, it must be above zero"),
        ("variance", -0.0, "variance is -0.0, it must be above zero"),
        ("variance", -2.5, "variance is -2.5, it must be above zero"),
    ],
)
def test_bad_number_is_named(dtype: torch.dtype, field: str, value: float, reason: str) -> None:
    """Row, component, field, value and what it must be; and the place as numbers."""
    fields = {"mean": numbers(5, 4), "variance": numbers(5, 4)}
    fields[field][3, 2] = value
    with pytest.raises(InvalidGaussiansError) as caught:
        Gaussians(fields["mean"].to(dtype), fields["variance"].to(dtype))
    assert str(caught.value) == f"row 3, component 2: {reason}"
    assert (caught.value.row, caught.value.component) == (3, 2)
    assert caught.value.code == "invalid_gaussian"
    assert isinstance(caught.value, GaussearchError)


@pytest.mark.parametrize(
    ("means", "variances", "message"),
    [
        # The first row, whatever is wrong later; and in a row the first component, be it mean or variance.
        (numbers(3, 3, r2c0=NAN), numbers(3, 3, r1c2=0), "row 1, component 2: variance is 0.0"),
        (numbers(3, 3, r1c1=NAN), numbers(3, 3, r1c2=0), "row 1, component 1: mean is nan"),
        (numbers(3, 3, r1c2=NAN), numbers(3, 3, r1c1=-1), "row 1, component 1: variance is -1.0"),
        (numbers(3, 3, r0c0=INFINITY), numbers(3, 3, r0c0=-1), "row 0, component 0: mean is inf"),
    ],
)
def test_first_defect_is_named(means: Tensor, variances: Tensor, message: str) -> None:
    """Of several defects, the one that a reader comes to first."""
    with pytest.raises(InvalidGaussiansError, match=f"^{message}"):
        Gaussians(means, variances)


def test_all_defective_rows() -> None:
    """One defect a row, in row order, and no more than asked for: what a build reports and skips."""
    means, variances = numbers(6, 2, r5c1=NAN), numbers(6, 2, r1c0=0, r1c1=-1, r3c1=INFINITY)
    found = find_defects(means, variances)
    assert [(defect.row, defect.component, defect.field) for defect in found] == [
        (1, 0, "variance"),
        (3, 1, "variance"),
        (5, 1, "mean"),
    ]
    assert [defect.row for defect in find_defects(means, variances, limit=2)] == [1, 3]
    assert find_defects(means[2:3], variances[2:3]) == []


@given(
    means=arrays(np.float32, (4, 3), elements=st.floats(width=32) | st.just(0.0)),
    variances=arrays(np.float32, (4, 3), elements=st.floats(width=32) | st.just(1.0)),
)
def test_finds_what_a_loop_finds(means: npt.NDArray[np.float32], variances: npt.NDArray[np.float32]) -> None:
    """Any floats at all, NaN and infinities among them, against a row-by-row loop."""
    expected = []
    for row in range(4):
        for component in range(3):
            mean, variance = float(means[row, component]), float(variances[row, component])
            if not np.isfinite(mean) or not (0 < variance < INFINITY):
                expected.append((row, component, "variance" if np.isfinite(mean) else "mean"))
                break
    found = find_defects(torch.from_numpy(means), torch.from_numpy(variances))
    assert [(defect.row, defect.component, defect.field) for defect in found] == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_smallest_and_largest_are_valid(dtype: torch.dtype) -> None:
    """Denormal variances are variances, and the largest numbers numbers, in every precision."""
    limits = torch.finfo(dtype)
    denormal = torch.tensor([[limits.tiny / 2]], dtype=dtype)
    assert 0 < denormal.item() < limits.tiny
    assert len(Gaussians(torch.tensor([[limits.max]], dtype=dtype), denormal)) == 1
    assert len(Gaussians(torch.tensor([[limits.min]], dtype=dtype), torch.tensor([[limits.max]], dtype=dtype))) == 1


@pytest.mark.parametrize(
    ("means", "variances", "message"),
    [
        (torch.ones(3), torch.ones(3), r"mean must have two dimensions \(rows, k\), not shape \(3,\)"),
        (torch.ones(2, 3), torch.ones(2, 3, 1), r"variance must have two .* not shape \(2, 3, 1\)"),
        (torch.ones(2, 3), torch.ones(3, 3), r"mean has shape \(2, 3\) and variance \(3, 3\)"),
        (torch.ones(2, 3), torch.ones(2, 1), r"mean has shape \(2, 3\) and variance \(2, 1\)"),
        (torch.ones(2, 0), torch.ones(2, 0), "k is 0; it must be from 1 to 65536"),
        (torch.ones(1, MAX_DIMENSIONS + 1), torch.ones(1, MAX_DIMENSIONS + 1), "k is 65537"),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), r"mean must be floating point, not torch\.int64"),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), r"variance must be floating point, not torch\.bool"),
        (
            torch.ones(2, 3),
            torch.ones(2, 3).to(torch.complex64),
            r"variance must be floating point, not torch\.complex64",
        ),
        (torch.ones(2, 3), torch.ones(2, 3).double(), r"mean is torch\.float32 on cpu and variance torch\.float64"),
        (torch.ones(2, 3), torch.ones(2, 3, device="meta"), "on cpu and variance torch.float32 on meta"),
    ],
)
def test_bad_form_is_named(means: Tensor, variances: Tensor, message: str) -> None:
    """Shapes, precisions and devices, with both sides of a disagreement; no row, for none is to blame."""
    with pytest.raises(InvalidGaussiansError, match=message) as caught:
        Gaussians(means, variances)
    assert caught.value.row is None
    assert caught.value.component is None


def test_largest_k_is_valid() -> None:
    """The limit itself is inside."""
    assert Gaussians(torch.ones(1, MAX_DIMENSIONS), torch.ones(1, MAX_DIMENSIONS)).k == 65_536


@pytest.mark.parametrize(
    ("means", "variances", "dtype"),
    [
        ([[1, 2]], [[3, 4]], torch.float64),
        ([[1.0, 2.0]], ((3, 4),), torch.float64),
        (np.array([[1, 2]], np.float32), np.array([[3, 4]], np.float32), torch.float32),
        (np.array([[1, 2]], np.float16), np.array([[3, 4]], np.float32), torch.float32),
        (np.array([[1, 2]], np.float32), np.array([[3, 4]], np.int8), torch.float64),
        (np.array([[1, 2]], np.longdouble), np.array([[3, 4]], np.longdouble), torch.float64),
        (np.array([[1, 2]], ">f4"), np.array([[3, 4]], "<f4"), torch.float32),
        (np.array([[2, 1]], np.float32)[:, ::-1], np.asfortranarray(np.array([[3, 4]], np.float32)), torch.float32),
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.float32),
    ],
)
def test_from_arrays(means: npt.ArrayLike, variances: npt.ArrayLike, dtype: torch.dtype) -> None:
    """Lists, arrays of any byte order and stride, integers and tensors all become the same Gaussian."""
    gaussians = Gaussians.from_arrays(means, variances)
    assert gaussians.means.dtype == gaussians.variances.dtype == dtype
    assert gaussians.means.tolist() == [[1, 2]]
    assert gaussians.variances.tolist() == [[3, 4]]


def test_from_read_only_arrays() -> None:
    """Memory-mapped corpora are read-only, about which torch would warn."""
    frozen = np.ones((2, 3), np.float32)
    frozen.setflags(write=False)
    assert torch.equal(Gaussians.from_arrays(frozen, frozen).variances, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("means", "variances", "message"),
    [
        ([[1.0, 2.0], [3.0]], [[1.0, 2.0], [3.0, 4.0]], "mean is not a rectangular array of numbers"),
        ([[1.0, 2.0]], [["1", "2"]], "variance must be numbers, not <U1"),
        ([[1.0, None]], [[1.0, 2.0]], "mean must be numbers, not object"),
        ([[True, False]], [[1.0, 2.0]], "mean must be numbers, not bool"),
        ([[1j]], [[1.0]], "mean must be numbers, not complex128"),
        ([1.0, 2.0], [1.0, 2.0], r"mean must have two dimensions \(rows, k\), not shape \(2,\)"),
        ([], [], r"mean must have two dimensions \(rows, k\), not shape \(0,\)"),
        (1.0, 1.0, r"mean must have two dimensions \(rows, k\), not shape \(\)"),
        ([[1.0]], [[0]], "row 0, component 0: variance is 0.0"),
    ],
)
def test_from_bad_arrays(means: npt.ArrayLike, variances: npt.ArrayLike, message: str) -> None:
    """What NumPy cannot make a matrix of numbers of is refused by the library's own error."""
    with pytest.raises(InvalidGaussiansError, match=message):
        Gaussians.from_arrays(means, variances)


def test_another_k() -> None:
    """Both numbers are in the message; the right one passes."""
    with pytest.raises(InvalidGaussiansError, match="the Gaussians have 2 dimensions; the index holds 3"):
        Gaussians.from_arrays([[1.0, 2.0]], [[1.0, 2.0]], k=3)
    assert Gaussians.from_arrays([[1.0, 2.0]], [[1.0, 2.0]], k=2).k == 2
