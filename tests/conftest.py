"""What several test files need: the carried sample, random Gaussians, small indexes built from them, and clients of
services over those.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import uvicorn
from fastapi import FastAPI

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from service.settings import ENV_PREFIX
from tests.serving import PATIENCE, Client, GatedSearcher, Served, open_client, wait_until

# A shared machine may take any time for an example; what is slow shows in pytest's own timeout.
hypothesis.settings.register_profile("gaussearch", deadline=None)
hypothesis.settings.load_profile("gaussearch")

SAMPLE = Path(__file__).parent.parent / "sample" / "wordnet"

MakeIndex = Callable[..., IndexDirectory]
Serve = Callable[..., Client]


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the carried WordNet sample: documents.parquet and queries.parquet."""
    return SAMPLE


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The first CUDA device; tests that ask for it are skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


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


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """60 documents, k = 5, with ids that URLs and JSON have to quote. Not to be changed by any test."""
    folder = tmp_path_factory.mktemp("served")
    gaussians = random_gaussians(60, 5, seed=11)
    odd = ["wn/00001740", "naïve 雪", "100%", "a/similar", "q?x=1#y", "%2F"]
    ids = [*odd, *(f"d{row}" for row in range(len(odd), 60))]
    texts = [f"text of {name}" for name in ids]
    corpus = write_corpus(folder / "corpus.parquet", gaussians, ids, text=texts)
    directory = IndexDirectory(folder / "small")
    build_index([corpus], directory)
    return Served(directory, gaussians, ids, texts)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    """A client of `served` with default settings, shared by a module's tests."""
    opened = open_client(served.directory)
    yield opened
    opened.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Opens clients of applications with settings of their own: serve(directory, ready=True, **settings)."""
    with contextlib.ExitStack() as stack:

        def start(directory: IndexDirectory, ready: bool = True, **settings: Any) -> Client:
            opened = open_client(directory, ready, **settings)
            stack.callback(opened.close)
            return opened

        yield start


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch, served: Served) -> GatedSearcher:
    """A gated searcher of `served`, which every application made after this loads."""
    searcher = GatedSearcher(LocalSearcher(served.directory))
    monkeypatch.setattr("service.live_index.load", lambda _: searcher)
    return searcher


@pytest.fixture
def listen() -> Iterator[Callable[..., int]]:
    """Serves an application on a loopback port, over real sockets in this process: listen(app) -> port."""
    with contextlib.ExitStack() as stack:

        def start(app: FastAPI) -> int:
            server = uvicorn.Server(
                uvicorn.Config(app, host="127.0.0.1", port=0, http="httptools", ws="none", log_config=None)
            )
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(PATIENCE)
                assert not thread.is_alive()

            stack.callback(stop)
            wait_until(lambda: server.started)
            wait_until(lambda: app.state.gaussearch.live.ready)
            port: int = server.servers[0].sockets[0].getsockname()[1]
            return port

        yield start


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_caller() -> Iterator[None]:
    """Nothing of the caller's environment reaches a service under test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
            patch.delenv(name)
        yield
