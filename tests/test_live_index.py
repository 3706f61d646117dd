"""Taking up an index and its later generations while requests run: loading, replacing, refusing, recovering."""

import asyncio
import functools
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from index import Gaussians, IndexDirectory, LocalSearcher, Ranking, Searcher, build_index
from index.errors import CorruptIndexError, InsufficientMemoryError
from index.interface import Stop
from index.selection import DocumentFilter
from service import live_index
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import MakeIndex, Serve, random_gaussians, write_corpus
from tests.serving import PATIENCE, Client, Served, wait_until

K = 3
QUERY = {"mean": [0.1] * K, "variance": [1.0] * K, "top_k": 5}


def gaussians(generation: int) -> Gaussians:
    return random_gaussians(20 + generation, K, seed=generation)


def ids(generation: int) -> list[str]:
    return [f"g{generation}-{row}" for row in range(20 + generation)]


def publish(directory: IndexDirectory, generation: int) -> None:
    corpus = directory.path.with_name(f"corpus-{generation}.parquet")
    build_index([write_corpus(corpus, gaussians(generation), ids(generation))], directory)


@pytest.fixture
def directory(make_index: MakeIndex) -> IndexDirectory:
    return make_index(gaussians(1), ids(1), name="live")


def spoil(directory: IndexDirectory) -> Path:
    """Flips a byte of the newest generation's vectors, as a bad disk would, and returns the file."""
    manifest = directory.manifest()
    path = directory.segments / manifest.segments[0].id / "vectors.faiss"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def serves(client: Client, generation: int) -> bool:
    return bool(client.get("/v1/index").json()["generation"] == generation)


def test_a_new_generation_is_taken_up_under_load_without_a_failed_or_mixed_answer(
    directory: IndexDirectory, serve: Serve
) -> None:
    client = serve(directory, reload_seconds=0.01)
    answers: list[Any] = []
    enough = threading.Event()

    def after_more_answers() -> None:
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 20)

    async def hammer() -> None:
        while not enough.is_set():
            answers.append(await client.send("/v1/search", QUERY))

    async def clients() -> None:
        await asyncio.gather(*(hammer() for _ in range(8)))

    load = threading.Thread(target=client.run, args=(clients(),))
    load.start()
    try:
        for generation in (2, 3):
            after_more_answers()
            publish(directory, generation)
            wait_until(functools.partial(serves, client, generation))
        after_more_answers()
    finally:
        enough.set()
        load.join(PATIENCE)
    assert {answer.status_code for answer in answers} == {200}
    served = []
    for answer in (answer.json() for answer in answers):
        served.append(answer["index"]["generation"])
        assert len(answer["results"]) == 5
        assert {result["id"].split("-")[0] for result in answer["results"]} == {f"g{served[-1]}"}
    assert set(served) == {1, 2, 3}
    assert client.metric("gaussearch_index_generation") == 3
    assert client.metric("gaussearch_index_documents") == 23
    # Counted once the generation is served.
    wait_until(lambda: client.metric("gaussearch_index_reloads_total") == 2)
    assert client.metric("gaussearch_index_reload_failures_total") == 0


def test_a_generation_that_cannot_be_served_is_reported_and_the_last_good_one_stays(
    directory: IndexDirectory, serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, release = live_index.load, threading.Event()

    def held(*loaded: Any) -> Searcher:
        # Until the new generation has been spoilt, or the service would take it up before.
        assert release.wait(PATIENCE)
        return load(*loaded)

    client = serve(directory, reload_seconds=0.01)
    monkeypatch.setattr(live_index, "load", held)
    with caplog.at_level(logging.ERROR, "gaussearch.index"):
        publish(directory, 2)
        spoilt = spoil(directory)
        release.set()
        wait_until(lambda: client.metric("gaussearch_index_reload_failures_total") == 1)
        # It is counted first and logged then, in another thread.
        wait_until(lambda: caplog.records)
    described = client.get("/v1/index").json()
    assert described["generation"] == 1
    assert described["reload"]["failures"] == 1
    assert str(spoilt) in described["reload"]["last_error"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(spoilt) in caplog.text
    answer = client.post("/v1/search", QUERY).json()
    assert answer["index"]["generation"] == 1
    assert client.get("/readyz").status_code == 200
    publish(directory, 3)
    wait_until(lambda: serves(client, 3))
    assert client.get("/v1/index").json()["reload"] == {"failures": 1, "last_error": None}
    # Counted once the generation is served.
    wait_until(lambda: client.metric("gaussearch_index_reloads_total") == 1)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory"), MemoryError("no room"), OSError("disk"), KeyError("anything")]
)
def test_whatever_goes_wrong_the_watch_goes_on(
    directory: IndexDirectory,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    client = serve(directory, reload_seconds=0.01)
    load = live_index.load

    def fails(*_: object) -> Searcher:
        raise error

    monkeypatch.setattr(live_index, "load", fails)
    publish(directory, 2)
    wait_until(lambda: client.state.live.failures == 1)
    assert type(error).__name__ in str(client.state.live.last_error)
    # It is counted first and logged then, in another thread.
    wait_until(lambda: type(error).__name__ in caplog.text)
    monkeypatch.setattr(live_index, "load", load)
    publish(directory, 3)
    wait_until(lambda: serves(client, 3))


def test_a_generation_that_failed_is_tried_again(
    directory: IndexDirectory, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was missing may have been memory, which comes back without a new generation."""
    client = serve(directory, reload_seconds=0.01)
    load = live_index.load
    attempts: list[int] = []

    def fails(*_: object) -> Searcher:
        attempts.append(1)
        raise InsufficientMemoryError("the vectors do not fit")

    monkeypatch.setattr(live_index, "load", fails)
    monkeypatch.setattr(live_index, "RETRY_SECONDS", 0.02)
    publish(directory, 2)
    wait_until(lambda: len(attempts) >= 3)
    # The same reason is reported once.
    assert client.get("/v1/index").json()["reload"]["failures"] == 1
    monkeypatch.setattr(live_index, "load", load)
    wait_until(lambda: serves(client, 2))


def test_a_directory_that_vanishes_leaves_the_index_that_is_in_memory(directory: IndexDirectory, serve: Serve) -> None:
    client = serve(directory, reload_seconds=0.01)
    answer = client.post("/v1/search", QUERY).json()["results"]
    moved = directory.path.rename(directory.path.with_name("moved"))
    wait_until(lambda: client.state.live.failures == 1)
    assert "does not exist" in str(client.state.live.last_error)
    assert client.post("/v1/search", QUERY).json()["results"] == answer
    shutil.move(moved, directory.path)
    publish(directory, 2)
    wait_until(lambda: serves(client, 2))


def test_nothing_is_loaded_again_without_a_new_generation(
    directory: IndexDirectory, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(directory, reload_seconds=0.001)
    looks: list[int] = []

    def loads(*_: object) -> Searcher:
        raise AssertionError("loaded without need")

    token = IndexDirectory.current_token

    def counted(directory: IndexDirectory) -> str:
        looks.append(1)
        return token(directory)

    monkeypatch.setattr(live_index, "load", loads)
    monkeypatch.setattr(IndexDirectory, "current_token", counted)
    wait_until(lambda: len(looks) > 5)
    assert (client.state.live.failures, client.state.live.last_error) == (0, None)


def test_before_the_first_load_everything_but_the_probes_is_not_ready(
    served: Served, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, release = live_index.load, threading.Event()

    def held(*loaded: Any) -> Searcher:
        assert release.wait(PATIENCE)
        return load(*loaded)

    monkeypatch.setattr(live_index, "load", held)
    client = serve(served.directory, ready=False)
    search = {"mean": [0] * 5, "variance": [1] * 5}
    for response in (
        client.get("/readyz"),
        client.get("/v1/index"),
        client.get("/v1/documents/d7"),
        client.post("/v1/search", search),
        client.post("/v1/search/batch", {"queries": [search]}),
        client.post("/v1/documents/d7/similar"),
    ):
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        assert response.headers["retry-after"] == "1"
    assert client.get("/livez").status_code == 200
    assert client.metric("gaussearch_index_generation") == 0
    release.set()
    wait_until(lambda: client.get("/readyz").status_code == 200)
    assert client.post("/v1/search", search).status_code == 200


def test_an_index_is_tried_by_a_search_before_anyone_may_search_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that returns other documents than it should is found by a document that does not find itself."""

    class Shifted(LocalSearcher):
        def search(
            self,
            queries: Gaussians,
            top_k: int,
            *,
            candidates: int | None = None,
            nprobe: int | None = None,
            exact: bool = False,
            filter: DocumentFilter | Mapping[str, object] | None = None,  # noqa: A002
            stop: Stop | None = None,
        ) -> list[Ranking]:
            return super().search(Gaussians(queries.means + 1, queries.variances), top_k, candidates=candidates)

    monkeypatch.setattr(live_index, "LocalSearcher", Shifted)
    with pytest.raises(Exception, match="'wn/00001740' itself scored -"):
        live_index.load(ServiceSettings(index=served.directory.path))


@pytest.mark.parametrize("error", [CorruptIndexError("vectors.faiss is torn"), MemoryError(), RuntimeError("CUDA")])
def test_an_index_that_cannot_be_loaded_at_all_is_handed_to_whoever_started_the_service(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fails(*_: object) -> Searcher:
        raise error

    failures: list[Exception] = []
    monkeypatch.setattr(live_index, "load", fails)
    client = Client(create_app(ServiceSettings(index=served.directory.path), failures.append))
    try:
        wait_until(lambda: failures)
        assert failures == [error]
        assert client.get("/readyz").status_code == 503
        assert [record.levelname for record in caplog.records if record.name == "gaussearch.app"] == ["CRITICAL"]
    finally:
        client.close()
