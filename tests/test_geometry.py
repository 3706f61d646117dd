"""Fisher's geometry against its definition: near Gaussians lie at distances that are their divergence."""

import numpy as np
import torch

from index import Gaussians, Standardisation
from index.geometry import FisherGeometry
from tests.conftest import random_gaussians
from tests.oracles import torch_kl


def test_half_the_squared_distance_of_near_gaussians_is_their_divergence() -> None:
    """Of documents whose variances are those that the geometry takes for typical: KL to second order."""
    rng = np.random.default_rng(0)
    variances = np.exp(rng.normal(size=6))
    means = rng.normal(size=(400, 6))
    base = Gaussians.from_arrays(means, np.tile(variances, (400, 1)))
    near = Gaussians.from_arrays(
        means + 1e-3 * rng.normal(size=(400, 6)), variances * np.exp(1e-3 * rng.normal(size=(400, 6)))
    )
    geometry = FisherGeometry.fit(base, Standardisation.identity(6), 12)
    apart = np.square(geometry.points(base).astype(np.float64) - geometry.points(near)).sum(axis=1) / 2
    np.testing.assert_allclose(apart, np.diag(torch_kl(base, near)), rtol=0.02)


def test_standardisation_changes_no_distance() -> None:
    documents = random_gaussians(300, 5)
    standardisation = Standardisation(
        torch.tensor([1.0, -3, 0, 2, 50], dtype=torch.float64), torch.tensor([0.1, 1, 7, 2, 30], dtype=torch.float64)
    )
    apart = []
    for each in (Standardisation.identity(5), standardisation):
        points = FisherGeometry.fit(documents, each, 10).points(documents)
        apart.append(np.square(points[:, None] - points[None]).sum(axis=2))
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-3, atol=1e-3)


def test_fewer_dimensions_keep_what_distances_are_made_of() -> None:
    rng = np.random.default_rng(1)
    directions = np.linalg.qr(rng.normal(size=(20, 3)))[0]
    means = rng.normal(size=(500, 3)) @ directions.T
    documents = Gaussians.from_arrays(means, np.full((500, 20), 0.5))
    geometry = FisherGeometry.fit(documents, Standardisation.identity(20), 3)
    points = geometry.points(documents)
    assert points.shape == (500, 3)
    apart = np.square(points[:50, None] - points[None, :50]).sum(axis=2)
    true = np.square(means[:50, None] - means[None, :50]).sum(axis=2) / 0.5
    np.testing.assert_allclose(apart, true, rtol=1e-3, atol=1e-3)


def test_certain_documents_have_points() -> None:
    documents = random_gaussians(100, 4)
    variances = documents.variances.clone()
    variances[3, 1], variances[4] = 1e-38, 1e30
    points = FisherGeometry.fit(documents, Standardisation.identity(4), 8).points(Gaussians(documents.means, variances))
    assert np.isfinite(points).all()
