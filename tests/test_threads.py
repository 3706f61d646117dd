"""Sixteen threads at once get what one gets: the same ids and the same scores, bit for bit, of every kind of index."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from index import BuildOptions, IndexDirectory, LocalSearcher, Ranking, build_index
from index.manifest import IndexKind
from tests.conftest import random_gaussians, write_corpus
from tests.rankings import assert_identical
from tests.serving import Client, open_client

K, DOCUMENTS, THREADS = 6, 1300, 16
FACTORY = {IndexKind.FAISS: "IVF20,SQ8"}
LISTED = {IndexKind.IVF_FASTSCAN, IndexKind.FAISS}


@pytest.fixture(scope="module", params=[kind for kind in IndexKind if kind != "auto"], ids=str)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> IndexDirectory:
    """An index of the kind in three segments, with documents that are equal to each other."""
    folder = tmp_path_factory.mktemp("threads")
    documents = random_gaussians(DOCUMENTS, K, seed=6)
    documents.means[100:110] = documents.means[100]
    documents.variances[100:110] = documents.variances[100]
    corpus = write_corpus(folder / "corpus.parquet", documents, text=["text"] * DOCUMENTS)
    directory = IndexDirectory(folder / "index")
    options = BuildOptions(kind=request.param, factory=FACTORY.get(request.param), segment_docs=500)
    assert build_index([corpus], directory, options).manifest.kind == request.param
    return directory


def works(kind: IndexKind, count: int) -> list[dict[str, Any]]:
    """Searches with options that change what is looked at, each with up to five queries."""
    rng = np.random.default_rng(7)
    made = []
    for number in range(count):
        options: dict[str, Any] = {"top_k": [1, 10, 50][number % 3]}
        if number % 4 == 1:
            options["candidates"] = int(rng.integers(50, 400))
        if number % 4 == 2 and kind in LISTED:
            options["nprobe"] = int(rng.integers(1, 12))
        if number % 8 == 3:
            options["exact"] = True
        made.append({"queries": random_gaussians(1 + number % 5, K, seed=100 + number), **options})
    return made


def search(searcher: LocalSearcher, work: dict[str, Any]) -> list[Ranking]:
    return searcher.search(**work)


def test_threads_that_search_at_once(directory: IndexDirectory) -> None:
    searcher = LocalSearcher(directory)
    todo = works(searcher.manifest.kind, 3 * THREADS)
    serial = [search(searcher, work) for work in todo]
    begin = Barrier(THREADS)

    def one_thread(name: int) -> dict[int, list[Ranking]]:
        begin.wait()
        # Each begins elsewhere, so that unlike searches meet.
        mine = np.roll(np.arange(len(todo)), -3 * name)[: len(todo) // 2].tolist()
        return {number: search(searcher, todo[number]) for number in mine}

    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(one_thread, range(THREADS)):
            for number, rankings in found.items():
                assert_identical(rankings, serial[number])


@pytest.fixture
def client(directory: IndexDirectory) -> Iterator[Client]:
    opened = open_client(directory)
    yield opened
    opened.close()


def body(work: dict[str, Any]) -> dict[str, Any]:
    queries = work["queries"]
    rows = zip(queries.means.double().tolist(), queries.variances.double().tolist(), strict=True)
    return {**work, "queries": [{"mean": mean, "variance": variance} for mean, variance in rows]}


def test_clients_whose_searches_are_put_together(client: Client) -> None:
    """Whatever options the others in a batch have."""
    todo = [body(work) for work in works(client.state.live.searcher().manifest.kind, 6 * THREADS)]

    async def ask(work: dict[str, Any]) -> Any:
        answer = await client.send("/v1/search/batch", work)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    async def one_client(name: int) -> list[Any]:
        return [await ask(work) for work in todo[name::THREADS]]

    async def all_clients() -> list[list[Any]]:
        return await asyncio.gather(*(one_client(name) for name in range(THREADS)))

    serial = [client.run(ask(work)) for work in todo]
    alone = client.metric("gaussearch_batch_rows_count")
    together = client.run(all_clients())
    for name, results in enumerate(together):
        assert results == serial[name::THREADS]
    # They did meet in fewer searches.
    assert client.metric("gaussearch_batch_rows_count") - alone < alone
