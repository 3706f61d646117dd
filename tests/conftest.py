"""What several test files need: the carried sample, random Gaussians, and small indexes built from them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index import BuildOptions, Gaussians, IndexDirectory, build_index

# A shared machine may take any time for an example; what is slow shows in pytest's own timeout.
hypothesis.settings.register_profile("gaussearch", deadline=None)
hypothesis.settings.load_profile("gaussearch")

SAMPLE = Path(__file__).parent.parent / "sample" / "wordnet"

MakeGaussians = Callable[..., Gaussians]
MakeIndex = Callable[..., IndexDirectory]


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the carried WordNet sample: documents.parquet and queries.parquet."""
    return SAMPLE


def random_gaussians(n: int, k: int, seed: int = 0, *, center: float = 0.0, deviation: float = 1.0) -> Gaussians:
    """n Gaussians over k dimensions in float32, means around `center`, variances around deviation squared."""
    rng = np.random.default_rng(seed)
    means = center + deviation * rng.normal(size=(n, k))
    variances = deviation**2 * rng.gamma(4.0, 0.25, size=(n, k)) + 1e-3 * deviation**2
    return Gaussians.from_arrays(means.astype(np.float32), variances.astype(np.float32))


def write_corpus(path: Path, gaussians: Gaussians, ids: Sequence[str] | None = None, **payload: object) -> Path:
    """Writes Gaussians as a Parquet corpus, with ids d0, d1, ... unless given, and any payload columns."""
    table = {
        "id": list(ids) if ids is not None else [f"d{row}" for row in range(len(gaussians))],
        "mean": list(gaussians.means.numpy()),
        "variance": list(gaussians.variances.numpy()),
        **payload,
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture
def make_index(tmp_path: Path) -> MakeIndex:
    """Builds an index of some Gaussians under tmp_path: make_index(gaussians, ids, name=..., text=[...], **options)."""

    def make(
        gaussians: Gaussians, ids: Sequence[str] | None = None, *, name: str = "index", **options: object
    ) -> IndexDirectory:
        fields = {key: value for key, value in options.items() if key in BuildOptions.model_fields}
        payload = {key: value for key, value in options.items() if key not in BuildOptions.model_fields}
        corpus = write_corpus(tmp_path / f"{name}.parquet", gaussians, ids, **payload)
        directory = IndexDirectory(tmp_path / name)
        build_index([corpus], directory, BuildOptions.model_validate(fields))
        return directory

    return make
