"""A batch of diagonal Gaussians, and the only validator of one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index.errors import InvalidGaussiansError

__all__ = ["Defect", "Gaussians", "extremes", "find_defects"]

MAX_DIMENSIONS = 65_536
"""The largest k accepted: far above any encoder's, and small enough that 3k+1 floats are never a surprise."""


@dataclass(frozen=True, slots=True)
class Defect:
    """The first thing wrong with one row: 0-based `row` and `component`, the field's name and its value."""

    row: int
    component: int
    field: str
    value: float
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}, component {self.component}: {self.field} is {self.value!r}, {self.reason}"


@dataclass(frozen=True, slots=True, eq=False)
class Gaussians:
    """n diagonal Gaussians over k latent dimensions, checked when made and never changed after.

    means: (n, k) floating point. variances: (n, k), the same dtype and device, finite and above zero (variances, not
    standard deviations or their logarithms).

    Raises InvalidGaussiansError where shapes, dtypes or devices disagree, or naming the first row and component that
    is not finite or whose variance is not above zero.
    """

    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        _check_form(self.means, self.variances)
        # What a model in training hands over is data here; kept, its graph would grow into every vector and score.
        if self.means.requires_grad or self.variances.requires_grad:
            object.__setattr__(self, "means", self.means.detach())
            object.__setattr__(self, "variances", self.variances.detach())
        defects = find_defects(self.means, self.variances, limit=1)
        if defects:
            raise InvalidGaussiansError(str(defects[0]), row=defects[0].row, component=defects[0].component)

    @classmethod
    def from_arrays(cls, means: npt.ArrayLike, variances: npt.ArrayLike, *, k: int | None = None) -> "Gaussians":
        """Gaussians of anything numpy takes as two (n, k) arrays.

        Floats keep their dtype, or become the wider of the two; integers become float64. With `k`, also raises
        InvalidGaussiansError unless the arrays have that many columns.
        """
        mean, variance = _as_tensor(means, "mean"), _as_tensor(variances, "variance")
        if mean.dtype != variance.dtype:
            dtype = torch.promote_types(mean.dtype, variance.dtype)
            mean, variance = mean.to(dtype), variance.to(dtype)
        gaussians = cls(mean, variance)
        if k is not None:
            gaussians.require_dimensions(k)
        return gaussians

    def require_dimensions(self, k: int) -> None:
        """Raises InvalidGaussiansError unless these Gaussians have k latent dimensions."""
        if self.k != k:
            raise InvalidGaussiansError(f"the Gaussians have {self.k} dimensions; the index holds {k}")

    def __len__(self) -> int:
        return int(self.means.shape[0])

    @property
    def k(self) -> int:
        """Number of latent dimensions."""
        return int(self.means.shape[1])

    @property
    def device(self) -> torch.device:
        """Where both tensors lie."""
        return self.means.device

    def __getitem__(self, rows: slice | Tensor) -> "Gaussians":
        """The Gaussians at a slice (as a view) or at an integer tensor of row numbers."""
        return self.unchecked(self.means[rows], self.variances[rows])

    def chunks(self, rows: int) -> Iterator["Gaussians"]:
        """Views of at most `rows` rows each, in order."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Gaussians":
        """The same Gaussians elsewhere or in another precision.

        A narrower dtype can turn a small variance into zero or a large mean into infinity; that raises
        InvalidGaussiansError, as it does at construction.
        """
        device = self.device if device is None else torch.device(device)
        dtype = self.means.dtype if dtype is None else dtype
        means, variances = self.means.to(device, dtype), self.variances.to(device, dtype)
        # Not by the number of bits: float16 and bfloat16 have the same, and neither holds the other's values.
        if torch.promote_types(dtype, self.means.dtype) != dtype:
            for defect in find_defects(means, variances, limit=1):
                source = self.means if defect.field == "mean" else self.variances
                value = float(source[defect.row, defect.component])
                raise InvalidGaussiansError(
                    f"row {defect.row}, component {defect.component}: {defect.field} is {value!r}, which {dtype} "
                    "cannot hold",
                    row=defect.row,
                    component=defect.component,
                )
        return self.unchecked(means, variances)

    @classmethod
    def concatenate(cls, batches: "list[Gaussians]") -> "Gaussians":
        """One batch out of several on one device, in float64 where their precisions differ."""
        if len(batches) == 1:
            return batches[0]
        if len({batch.means.dtype for batch in batches}) > 1:
            batches = [batch.to(dtype=torch.float64) for batch in batches]
        return cls.unchecked(torch.cat([b.means for b in batches]), torch.cat([b.variances for b in batches]))

    @classmethod
    def unchecked(cls, means: Tensor, variances: Tensor) -> "Gaussians":
        """Gaussians of tensors that have been checked: those of other Gaussians, or in which `find_defects` found none.

        They need the form that the class describes, and no graph of autograd.
        """
        made = object.__new__(cls)
        object.__setattr__(made, "means", means)
        object.__setattr__(made, "variances", variances)
        return made


def find_defects(means: Tensor, variances: Tensor, *, limit: int | None = None) -> list[Defect]:
    """The first defect of each defective row, in row order, at most `limit` of them.

    means, variances: (n, k). A row is defective where a mean is not finite, or a variance is not finite or not above
    zero.
    """
    if _extremes_are_valid(means, variances):
        return []
    bad_mean = ~torch.isfinite(means)
    # `> 0` is false for NaN too, so infinity is the only case left to ask about.
    bad_variance = ~(variances > 0) | torch.isinf(variances)
    bad = bad_mean | bad_variance
    rows = torch.nonzero(bad.any(dim=1)).flatten()[:limit].tolist()
    return [_first_defect(row, means[row], variances[row], bad_mean[row], bad[row]) for row in rows]


def _extremes_are_valid(means: Tensor, variances: Tensor) -> bool:
    """Whether no row has a defect, in one pass over each tensor: extremes are NaN where anything is."""
    if means.numel() == 0:
        return True
    (mean_low, mean_high), (variance_low, variance_high) = extremes(means), extremes(variances)
    return all(map(math.isfinite, (mean_low, mean_high, variance_high))) and variance_low > 0


def extremes(tensor: Tensor) -> tuple[float, float]:
    """The least and the greatest number of a tensor that has any; NaN where one is."""
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        # On one core NumPy is as fast as torch, and it does not wait for another core that may be busy.
        array = tensor.numpy()
        return float(np.minimum.reduce(array, axis=None)), float(np.maximum.reduce(array, axis=None))
    low, high = torch.aminmax(tensor)
    return float(low), float(high)


def _first_defect(row: int, mean: Tensor, variance: Tensor, bad_mean: Tensor, bad: Tensor) -> Defect:
    component = int(torch.nonzero(bad)[0])
    if bool(bad_mean[component]):
        return Defect(row, component, "mean", float(mean[component]), "it must be finite")
    value = float(variance[component])
    reason = "it must be above zero" if value <= 0 else "it must be finite"
    return Defect(row, component, "variance", value, reason)


def _check_form(means: Tensor, variances: Tensor) -> None:
    for name, tensor in (("mean", means), ("variance", variances)):
        if tensor.ndim != 2:
            raise InvalidGaussiansError(f"{name} must have two dimensions (rows, k), not shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise InvalidGaussiansError(f"{name} must be floating point, not {tensor.dtype}")
    if means.shape != variances.shape:
        raise InvalidGaussiansError(
            f"mean has shape {tuple(means.shape)} and variance {tuple(variances.shape)}; they must be the same"
        )
    if means.dtype != variances.dtype or means.device != variances.device:
        raise InvalidGaussiansError(
            f"mean is {means.dtype} on {means.device} and variance {variances.dtype} on {variances.device}; "
            "they must agree"
        )
    if not 1 <= means.shape[1] <= MAX_DIMENSIONS:
        raise InvalidGaussiansError(f"k is {means.shape[1]}; it must be from 1 to {MAX_DIMENSIONS}")


def _as_tensor(values: npt.ArrayLike, name: str) -> Tensor:
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except ValueError as error:
        raise InvalidGaussiansError(f"{name} is not a rectangular array of numbers: {error}") from error
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise InvalidGaussiansError(f"{name} must be numbers, not {array.dtype}")
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # torch refuses foreign byte orders and negative strides, and warns about arrays it must not write to.
    if not (array.dtype.isnative and array.flags.c_contiguous and array.flags.writeable):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)
