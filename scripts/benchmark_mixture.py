"""Gaussians of any number that are like those of a source: samples of a mixture fitted to it.

A document or query is a point of 2k numbers, its means and log-variances. The mixture has a component for every 200
points, up to 512, found by k-means, each with a full covariance that is drawn towards the average one as if by 100
points of it. On WordNet's documents, of 1 to 8,192 components and of diagonal, low-rank, shared and own covariances,
that gives points that were held out the largest likelihood by far (66 nats a point; 512 components with one covariance
24, with 32 directions of their own and a diagonal below 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

POINTS_PER_COMPONENT, MOST_COMPONENTS = 200, 512
PRIOR_POINTS = 100.0
SEED = 2023


@dataclass(frozen=True, slots=True)
class Mixture:
    """weights (c,), centers (c, 2k), and roots (c, 2k, 2k) of the covariances."""

    weights: npt.NDArray[np.float64]
    centers: Vectors
    roots: Vectors

    @classmethod
    def fit(cls, means: Vectors, variances: Vectors) -> Mixture:
        """The mixture of Gaussians of means and variances (n, k)."""
        points = np.concatenate([means, np.log(variances)], axis=1)
        scale = points.std(axis=0) + 1e-12
        points = np.ascontiguousarray(points / scale, dtype=np.float32)
        components = max(1, min(MOST_COMPONENTS, len(points) // POINTS_PER_COMPONENT))
        kmeans = faiss.Kmeans(points.shape[1], components, niter=10, seed=SEED, min_points_per_centroid=1)
        kmeans.train(points)
        members = kmeans.index.search(points, 1)[1][:, 0]
        counts = np.bincount(members, minlength=components)
        centers = np.zeros((components, points.shape[1]), dtype=np.float32)
        np.add.at(centers, members, points)
        centers /= np.maximum(counts, 1)[:, None]
        rest = points - centers[members]
        average = rest.T @ rest / len(points)
        roots = np.empty((components, points.shape[1], points.shape[1]), dtype=np.float32)
        for component in range(components):
            own = rest[members == component]
            covariance = (own.T @ own + PRIOR_POINTS * average) / (counts[component] + PRIOR_POINTS)
            values, directions = np.linalg.eigh(covariance)
            roots[component] = (directions * np.sqrt(np.maximum(values, 0))).T * scale
        return cls(counts / counts.sum(), np.asarray(centers * scale, dtype=np.float32), roots)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Vectors, Vectors]:
        """Means and variances (count, k) of as many Gaussians."""
        components = rng.choice(len(self.weights), size=count, p=self.weights)
        points = rng.standard_normal((count, self.centers.shape[1]), dtype=np.float32)
        for component in np.unique(components).tolist():
            rows = components == component
            points[rows] = points[rows] @ self.roots[component] + self.centers[component]
        k = points.shape[1] // 2
        return points[:, :k], np.exp(points[:, k:])
