"""Where documents lie near each other when they are alike as distributions, in the eyes of any query.

For two Gaussians that differ little, by dm and dv,

    KL(N(m, v) || N(m + dm, v + dv)) = 1/2 sum_i [ dm_i^2 / v_i + (d log v_i)^2 / 2 ] + smaller terms,

half the squared length of the step by Fisher's information metric (Costa, Santos & Strapasson, "Fisher information
distance: a geometrical reading", 2015). With the typical v_i of the corpus in place of each document's own that is half
the squared L2 distance of the points [m_i / sqrt(v_i), log v_i / sqrt 2], and every tool made for L2 applies. Principal
components of these keep what distances are made of in fewer numbers.

On WordNet Gaussians (k = 128), graphs with links by this distance lead a walk of breadth 128 to 0.957 of the true top
10; by the standardised means alone to 0.951, by the projected vectors that the walk is scored with to 0.894, and by
inner product on encoded vectors to a few hundredths.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index.gaussians import Gaussians
from index.standardisation import Standardisation

__all__ = ["FisherGeometry"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class FisherGeometry:
    """Points (n, g) for Gaussians of k dimensions, g at most 2k: `scale` (k,), `center` (2k,), `basis` (2k, g)."""

    standardisation: Standardisation
    scale: Tensor
    center: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, sample: Gaussians, standardisation: Standardisation, dimensions: int) -> "FisherGeometry":
        """The geometry of a corpus like the sample, in at most so many dimensions."""
        _, variances = standardisation.apply(sample)
        # The geometric mean: an arithmetic one of 1/v would be that of the surest document.
        scale = (-0.5 * variances.double().log().mean(dim=0)).exp()
        whole = cls(standardisation, scale, torch.zeros(2 * sample.k, dtype=torch.float64), torch.empty(0))
        points = whole._points(sample).double()
        center = points.mean(dim=0)
        centred = points - center
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        return cls(standardisation, scale, center, vectors.flip(1)[:, :dimensions].contiguous())

    def points(self, gaussians: Gaussians) -> Vectors:
        """The points of a batch, (n, g) float32."""
        return ((self._points(gaussians) - self.center.float()) @ self.basis.float()).numpy()

    def _points(self, gaussians: Gaussians) -> Tensor:
        means, variances = self.standardisation.apply(gaussians)
        # Clamped to what float32 has a square of: the distance to anything so far away says nothing else.
        return torch.cat([means * self.scale, variances.log() / 2**0.5], dim=1).clamp(-1e15, 1e15).float()
