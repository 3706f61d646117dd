"""What several test files need: the carried sample, random Gaussians, small indexes built from them, and clients of
services over those.
"""

import contextlib
import gc
import importlib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi import FastAPI

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from service.settings import ENV_PREFIX
from tests import ray_cluster
from tests.serving import Client, GatedSearcher, Served, listening, open_client

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browsing import Tab
    from tests.object_storage import FaultyStorage, Storage
    from tests.remote_workers import Workers

# A shared machine may take any time for an example; what is slow shows in pytest's own timeout.
hypothesis.settings.register_profile("gaussearch", deadline=None)
hypothesis.settings.load_profile("gaussearch")

# Ray reads these once, when the first module of tests that needs it is imported: later is too late, and what a process
# then knows of tokens no cluster of these tests takes.
os.environ.update(ray_cluster.ENVIRONMENT)

SAMPLE = Path(__file__).parent.parent / "sample" / "wordnet"

MakeIndex = Callable[..., IndexDirectory]
Serve = Callable[..., Client]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the modules (pytest -n), what may take longest is begun first, so that nothing long
    is left to one of them at the end."""
    if not hasattr(config, "workerinput"):
        return
    patience: dict[Path, float] = {}
    for item in items:
        limit = item.get_closest_marker("timeout")
        patience[item.path] = max(patience.get(item.path, 0.0), limit.args[0] if limit is not None else 0.0)
    items.sort(key=lambda item: -patience[item.path])


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Imports a module of scripts/."""
    before = list(sys.path)
    sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
    yield importlib.import_module
    sys.path[:] = before


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of the carried WordNet sample: documents.parquet and queries.parquet."""
    return SAMPLE


@pytest.fixture
def no_collections() -> Iterator[None]:
    """No garbage is collected. CPython 3.11 cannot parse ("AST constructor recursion depth mismatch") where a
    collection in the middle of it leads to something that parses, too, as the printing of a traceback does; and
    hypothesis and schemathesis parse all the time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


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
    monkeypatch.setattr("service.live_index.load", lambda *_: searcher)
    return searcher


@pytest.fixture
def listen() -> Iterator[Callable[..., int]]:
    """Serves an application on a loopback port as the product does, but in this process: listen(app) -> port."""
    with contextlib.ExitStack() as stack:

        def start(app: FastAPI) -> int:
            return stack.enter_context(listening(app))

        yield start


PARTS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


@pytest.fixture(scope="session")
def dictionary(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> IndexDirectory:
    """An index of the whole sample, with two more fields to filter by. Not to be changed by any test."""
    folder = tmp_path_factory.mktemp("dictionary")
    table = pq.read_table(sample / "documents.parquet")
    texts, ids = table["text"].to_pylist(), table["id"].to_pylist()
    table = table.append_column("part", pa.array([PARTS[name[0]] for name in ids]))
    table = table.append_column("words", pa.array([len(text.split()) for text in texts]))
    pq.write_table(table, folder / "documents.parquet")
    directory = IndexDirectory(folder / "wordnet")
    build_index([folder / "documents.parquet"], directory)
    return directory


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium; tests that ask for it are skipped where there is none. A module's, because while it is open asyncio
    takes a loop to be running in this thread."""
    # Here, so that what needs no browser runs where Playwright is not installed.
    from tests.browsing import open_browser

    with open_browser() as opened:
        yield opened


@pytest.fixture
def open_tab(browser: "Browser") -> Iterator[Callable[..., "Tab"]]:
    """Opens the page of a service: open_tab(port, path, **options); what must not happen in it fails the test."""
    from tests.browsing import Tab

    with contextlib.ExitStack() as stack:

        def start(port: int, path: str = "", **options: Any) -> Tab:
            tab = Tab.open(browser, port, path, **options)
            stack.callback(tab.close)
            return tab

        yield start


@contextlib.contextmanager
def folder_in_memory(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: for hundreds of publications, whose syncs take time on a disk."""
    shared = Path("/dev/shm")  # noqa: S108 (the folder made in it is not shared)
    if not os.access(shared, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="gaussearch-", dir=shared) as made:
        yield Path(made)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with folder_in_memory(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="session")
def faulty_storage() -> Iterator["FaultyStorage"]:
    """A server of S3 behind a proxy with faults."""
    # A second, which only tests of object storage need.
    from tests.object_storage import FaultyStorage

    faulty = FaultyStorage()
    with faulty.serving():
        yield faulty


@pytest.fixture
def storage(faulty_storage: "FaultyStorage", tmp_path: Path) -> Iterator["Storage"]:
    """A place in object storage that is the test's own, and caches that stand for machines."""
    from tests.object_storage import storage_for

    with storage_for(faulty_storage, tmp_path, f"{secrets.token_hex(4)}/index") as opened:
        yield opened


@pytest.fixture(scope="session")
def workers(faulty_storage: "FaultyStorage") -> Iterator["Workers"]:
    """Processes that read and write indexes in object storage."""
    from tests.remote_workers import Workers

    with Workers.open(faulty_storage) as opened:
        yield opened


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_caller() -> Iterator[None]:
    """Nothing of the caller's environment reaches a service under test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
            patch.delenv(name)
        yield
