"""How the Gaussians of an index are spread, by a regular sample of its documents."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.compaction import BATCH_ROWS, live_rows
from index.errors import InvalidInputError
from index.gaussians import Gaussians
from index.generation_files import deleted_rows, open_segments
from index.manifest import Manifest
from index.storage import IndexDirectory

__all__ = ["Spread", "spread_of"]

NUMBERS = 4_000_000
"""Variances that a sample holds at most: 16 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """What a sample of an index's documents is like: (m,) norms of means, (m,) log-determinants of covariances and
    (m, k) variances, in float32, of m of so many documents."""

    documents: int
    norms: npt.NDArray[np.float32]
    log_determinants: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.norms)


def spread_of(directory: IndexDirectory, numbers: int = NUMBERS) -> Spread:
    """Looks at every so-manieth document of the live generation, so that no more than `numbers` variances are held.

    Raises CorruptIndexError, InvalidGaussiansError for what is no Gaussian, and InvalidInputError where there are none.
    """
    manifest = directory.manifest()
    if not manifest.documents:
        raise InvalidInputError(f"{directory} holds no documents")
    with directory.hold(manifest.generation):
        wanted = max(1, numbers // manifest.k)
        step = max(1, -(-manifest.documents // wanted))
        parts = list(_sampled(directory, manifest, step))
    norms, variances = (np.concatenate(each) for each in zip(*parts, strict=True))
    logarithms = np.log(variances).sum(axis=1, dtype=np.float64)
    return Spread(manifest.documents, norms, logarithms.astype(np.float32), variances)


def _sampled(
    directory: IndexDirectory, manifest: Manifest, step: int
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Norms of means, and variances, of every step-th document, batch by batch."""
    passed, lease = 0, directory.fetch(manifest)
    for segment, entry in zip(open_segments(directory, manifest, verify=False), manifest.segments, strict=True):
        rows = live_rows(segment, deleted_rows(directory, entry))
        chosen = rows[-passed % step :: step]
        passed += len(rows)
        for start in range(0, len(chosen), BATCH_ROWS):
            both = np.array(segment.gaussians[chosen[start : start + BATCH_ROWS]])
            sample = Gaussians.from_arrays(both[:, : manifest.k], both[:, manifest.k :])
            yield np.linalg.norm(sample.means.numpy(), axis=1), sample.variances.numpy()
    del lease
