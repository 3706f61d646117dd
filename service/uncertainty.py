"""How uncertain a query is: the numbers by which its results can be predicted before it is searched for."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index import Gaussians

__all__ = ["Uncertainty", "uncertainty"]


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """How uncertain a query Gaussian of k dimensions and variances s_1 ... s_k is.

    log_determinant: ln det = ln s_1 + ... + ln s_k, which is twice the entropy but for a constant.
    mean_variance: (s_1 + ... + s_k) / k.
    variance_norm: (s_1^2 + ... + s_k^2)^(1/2), the predictor that Zamani and Bendersky report (Multivariate
        Representation Learning for Information Retrieval, SIGIR 2023, doi:10.1145/3539618.3591727).
    """

    log_determinant: float
    mean_variance: float
    variance_norm: float

    @property
    def shown(self) -> dict[str, float]:
        """What an answer to a query in words says of it."""
        return {"log_determinant": self.log_determinant, "mean_variance": self.mean_variance}


def uncertainty(queries: Gaussians) -> list[Uncertainty]:
    """How uncertain each query is, in float64."""
    variances: npt.NDArray[np.float64] = queries.variances.double().cpu().numpy()
    logs, means, norms = np.log(variances).sum(1), variances.mean(1), np.linalg.norm(variances, axis=1)
    return [Uncertainty(*row) for row in zip(logs.tolist(), means.tolist(), norms.tolist(), strict=True)]
