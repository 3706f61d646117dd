"""Standardisation: the shift and scale of each dimension that bring a corpus near 0 and 1, and how they are fitted.

KL does not change by it, and float32 is enough with it: index.encoding says why.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from index.gaussians import Gaussians

__all__ = ["CHUNK_ELEMENTS", "MomentAccumulator", "Standardisation", "Standardiser", "computed_in"]

CHUNK_ELEMENTS = 1 << 17
"""Gaussian components handled at a time on a CPU: 1 MiB per float64 temporary, so that a few stay in a cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Standardisation:
    """A shift c and a scale t per latent dimension: m' = (m - c) / t, v' = v / t^2.

    shift, scale: (k,) float64 on the CPU, finite, scale above zero; ValueError otherwise.
    """

    shift: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if self.shift.shape != self.scale.shape or self.shift.ndim != 1:
            raise ValueError(f"shift {tuple(self.shift.shape)} and scale {tuple(self.scale.shape)} must both be (k,)")
        if not bool(torch.isfinite(self.shift).all() and torch.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("shift and scale must be finite and scale above zero")

    @classmethod
    def identity(cls, k: int) -> "Standardisation":
        """Leaves Gaussians as they are."""
        return cls(torch.zeros(k, dtype=torch.float64), torch.ones(k, dtype=torch.float64))

    @property
    def k(self) -> int:
        """Number of latent dimensions."""
        return int(self.shift.shape[0])

    def apply(self, gaussians: Gaussians) -> tuple[Tensor, Tensor]:
        """Standardised means and variances, (n, k) each, in float64 on the Gaussians' device.

        A device without float64 (Apple's MPS) computes in float32.
        """
        gaussians.require_dimensions(self.k)
        device, shape = gaussians.device, (len(gaussians), self.k)
        means, variances = (torch.empty(shape, dtype=computed_in(device), device=device) for _ in range(2))
        self.on(device).into(gaussians, means, variances)
        return means, variances

    def on(self, device: torch.device) -> "Standardiser":
        """The same where Gaussians are."""
        dtype = computed_in(device)
        shift, scale = self.shift.to(device, dtype), self.scale.to(device, dtype)
        return Standardiser(shift, scale, scale * scale)


@dataclass(frozen=True, slots=True, eq=False)
class Standardiser:
    """A Standardisation on a device: shift, scale and the square of scale, (k,) each."""

    shift: Tensor
    scale: Tensor
    squared_scale: Tensor

    def into(self, gaussians: Gaussians, means: Tensor, variances: Tensor) -> None:
        """Writes the standardised means and variances, (n, k) each; narrower Gaussians are widened first."""
        means.copy_(gaussians.means).sub_(self.shift).div_(self.scale)
        variances.copy_(gaussians.variances).div_(self.squared_scale)


def computed_in(device: torch.device) -> torch.dtype:
    """What a device computes in: float64, where it has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class MomentAccumulator:
    """Fits a Standardisation on a stream: the mean and deviation of the corpus seen as one mixture of its Gaussians.

    c = E[m] and t^2 = Var[m] + E[v] are the moments of that mixture (law of total variance), so the standardised
    corpus has mean 0 and variance 1 in every dimension, and t is above zero even where all means are equal. Moments of
    batches are combined in float64 by the pairwise update of Chan, Golub & LeVeque (1983), which does not cancel.
    """

    def __init__(self, k: int) -> None:
        self.count = 0
        self.mean = np.zeros(k)
        self.squared_deviations = np.zeros(k)
        self.variance_sum = np.zeros(k)

    def update(self, gaussians: Gaussians) -> None:
        """Adds a batch of any size; its dimensions must be the accumulator's k."""
        gaussians.require_dimensions(len(self.mean))
        for part in gaussians.chunks(self.chunk):
            deviations = part.means.cpu().to(torch.float64, copy=True)
            mean = deviations.mean(dim=0)
            batch = MomentAccumulator(part.k)
            batch.count = len(part)
            batch.mean = mean.numpy()
            batch.squared_deviations = deviations.sub_(mean).square_().sum(dim=0).numpy()
            batch.variance_sum = part.variances.cpu().double().sum(dim=0).numpy()
            self.merge(batch)

    @property
    def chunk(self) -> int:
        """How many Gaussians are added at a time: to the last bit, the moments depend on which are."""
        return max(1, CHUNK_ELEMENTS // max(1, len(self.mean)))

    def merge(self, other: "MomentAccumulator") -> None:
        """Adds what another accumulator of the same k has seen."""
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.squared_deviations += other.squared_deviations + delta**2 * (self.count * other.count / total)
        self.mean += delta * (other.count / total)
        self.variance_sum += other.variance_sum
        self.count = total

    def standardisation(self) -> Standardisation:
        """The fit so far; ValueError before the first document."""
        if self.count == 0:
            raise ValueError("no documents to fit a standardisation on")
        scale = np.sqrt((self.squared_deviations + self.variance_sum) / self.count)
        return Standardisation(torch.from_numpy(self.mean.copy()), torch.from_numpy(scale))
