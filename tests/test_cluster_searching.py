"""A search over shards beside one over all: the same results, whatever the kind; and what becomes of it where shards
are late or lost. The shards are of this process, as are those that fail."""

import asyncio
import contextlib
import functools
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from index import (
    BuildOptions,
    Evidence,
    Filter,
    Gaussians,
    IndexDirectory,
    LocalSearcher,
    Ranking,
    add_documents,
    build_index,
    delete_documents,
)
from index.errors import DocumentNotFoundError, InvalidOptionError, SearchStoppedError
from index.interface import RemoteSearcher, Terms
from index.manifest import IndexKind
from service.cluster.deployments import Ingress
from service.cluster.merging import merged
from service.keys import Keys
from service.problems import NotReadyError, OverloadedError, ShardUnavailableError
from tests.conftest import random_gaussians, write_corpus
from tests.object_storage import Storage
from tests.serving import PATIENCE, Client, Served, wait_until
from tests.shards import FakeCluster, FakeShard, cluster_client, fake_cluster

K = 6
ROWS = 1200
FAR = 1e6
KINDS = [IndexKind.FLAT, IndexKind.FASTSCAN, IndexKind.IVF_FASTSCAN, IndexKind.FAISS]


def corpus_of(folder: Path, gaussians: Gaussians, name: str, first: int = 0) -> Path:
    ids = [f"d{first + row:04d}" for row in range(len(gaussians))]
    years = [1990 + row % 30 for row in range(len(gaussians))]
    return write_corpus(folder / f"{name}.parquet", gaussians, ids, year=years, text=[f"about {each}" for each in ids])


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[IndexKind, IndexDirectory]:
    """An index of each kind, in several segments, some of them written later, of which documents were deleted."""
    folder = tmp_path_factory.mktemp("kinds")
    gaussians = random_gaussians(ROWS, K, seed=5)
    built = {}
    for kind in (*KINDS, IndexKind.HNSW):
        directory = IndexDirectory(folder / kind)
        named: dict[str, Any] = {"factory": "IVF8,Flat"} if kind is IndexKind.FAISS else {}
        options = BuildOptions(kind=kind, segment_docs=200, min_recall=0.01, **named)
        build_index([corpus_of(folder, gaussians, "corpus")], directory, options)
        add_documents([corpus_of(folder, random_gaussians(90, K, seed=6), "later", ROWS)], directory)
        delete_documents([f"d{row:04d}" for row in range(0, ROWS, 7)], directory)
        built[kind] = directory
    return built


@pytest.fixture
def flat(indexes: dict[IndexKind, IndexDirectory]) -> IndexDirectory:
    return indexes[IndexKind.FLAT]


@pytest.fixture
def fakes(flat: IndexDirectory) -> Iterator[FakeCluster]:
    with fake_cluster(flat, 3) as opened:
        yield opened


def queries(count: int = 8) -> Gaussians:
    return random_gaussians(count, K, seed=99).to(dtype=torch.float64)


FILTERS = [
    None,
    Filter.parse({"year": {"gte": 2000, "lt": 2005}}),
    Filter.parse({"id": "d0003"}),
    Filter.parse({"year": 1}),
]


def assert_same(found: list[Ranking], expected: list[Ranking]) -> None:
    for its, others in zip(found, expected, strict=True):
        assert its.ids == others.ids
        assert its.scores.tobytes() == others.scores.tobytes()
        assert its.covered is None


def assert_no_worse(found: list[Ranking], expected: list[Ranking]) -> None:
    for its, others in zip(found, expected, strict=True):
        assert len(its.ids) >= len(others.ids)
        assert len(set(its.ids)) == len(its.ids)
        assert (its.scores[: len(others.ids)] >= others.scores).all()


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_results_of_kind_flat_are_those_of_one_process_to_the_last_bit(flat: IndexDirectory, shards: int) -> None:
    whole = LocalSearcher(flat)
    with fake_cluster(flat, shards) as fakes:
        searcher = fakes.searcher()
        assert isinstance(searcher, RemoteSearcher)
        assert searcher.shards == min(shards, len(flat.manifest().segments))
        for wanted in FILTERS:
            for top_k in (1, 10, 2000):
                found = searcher.search(queries(), top_k, filter=wanted)
                assert_same(found, whole.search(queries(), top_k, filter=wanted))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_approximate_search_finds_no_worse_and_an_exact_one_the_same(
    indexes: dict[IndexKind, IndexDirectory], kind: IndexKind
) -> None:
    whole = LocalSearcher(indexes[kind])
    with fake_cluster(indexes[kind], 3) as fakes:
        searcher = fakes.searcher()
        for wanted in FILTERS:
            assert_same(
                searcher.search(queries(), 10, exact=True, filter=wanted),
                whole.search(queries(), 10, exact=True, filter=wanted),
            )
            found, expected = (each.search(queries(), 10, filter=wanted) for each in (searcher, whole))
            assert_no_worse(found, expected)
        assert searcher.effort_for(10, None, None) == whole.effort_for(10, None, None)


def test_lists_are_probed_in_every_shard_as_they_are_in_one_process(indexes: dict[IndexKind, IndexDirectory]) -> None:
    directory = indexes[IndexKind.IVF_FASTSCAN]
    whole = LocalSearcher(directory)
    lists = directory.manifest().codes
    assert lists is not None
    assert lists.list_count is not None
    with fake_cluster(directory, len(directory.manifest().segments)) as fakes:
        # One shard has nothing but what was written since the lists were made.
        searcher = fakes.searcher()
        for nprobe in (1, lists.list_count):
            found, expected = (each.search(queries(), 10, candidates=50, nprobe=nprobe) for each in (searcher, whole))
            assert_no_worse(found, expected)


def test_a_graph_has_one_shard_and_more_are_refused(indexes: dict[IndexKind, IndexDirectory]) -> None:
    directory = indexes[IndexKind.HNSW]
    with fake_cluster(directory, 1) as fakes:
        assert_same(fakes.searcher().search(queries(), 10), LocalSearcher(directory).search(queries(), 10))
    with fake_cluster(directory, 2) as fakes, pytest.raises(InvalidOptionError, match="1 shard with several replicas"):
        fakes.searcher()


def test_a_part_with_a_graph_is_refused(indexes: dict[IndexKind, IndexDirectory]) -> None:
    directory = indexes[IndexKind.HNSW]
    first = directory.manifest().segments[0].id
    with pytest.raises(InvalidOptionError, match="open it whole"):
        LocalSearcher(directory, segments=[first])
    with pytest.raises(InvalidOptionError, match="no segment nowhere"):
        LocalSearcher(directory, segments=["nowhere"])


def test_documents_payload_and_explanations_come_from_their_shards(fakes: FakeCluster, flat: IndexDirectory) -> None:
    searcher, whole = fakes.searcher(), LocalSearcher(flat)
    for name in ("d0001", "d1199", "d1250"):
        found, expected = searcher.document(name), whole.document(name)
        assert (found.id, found.payload) == (expected.id, expected.payload)
        assert torch.equal(found.gaussian.means, expected.gaussian.means)
    with pytest.raises(DocumentNotFoundError, match="d0000"):
        searcher.document("d0000")  # deleted
    (ranking,), (other,) = (each.search(queries(1), 50) for each in (searcher, whole))
    assert searcher.payloads(ranking.documents) == whole.payloads(other.documents)
    assert searcher.explain(queries(1), ranking.documents) == whole.explain(queries(1), other.documents)


def test_payload_that_comes_with_results_is_not_fetched_again(fakes: FakeCluster) -> None:
    bound = fakes.searcher().within(Terms(time.monotonic() + FAR, with_payload=True))
    (ranking,) = bound.search(queries(1), 20)
    assert [its["text"] for its in bound.payloads(ranking.documents)] == [f"about {name}" for name in ranking.ids]
    assert all("payloads" not in shard.asked for shard in fakes.shards)


def test_a_filter_on_a_field_that_some_shards_lack_is_none_that_is_unknown(tmp_path: Path) -> None:
    directory = IndexDirectory(tmp_path / "index")
    gaussians = random_gaussians(40, K, seed=1)
    ids = [f"d{row}" for row in range(40)]
    build_index(
        [write_corpus(tmp_path / "one.parquet", gaussians[:20], ids[:20], tag=["a"] * 20)],
        directory,
        BuildOptions(segment_docs=20),
    )
    add_documents([write_corpus(tmp_path / "two.parquet", gaussians[20:], ids[20:], rank=[1] * 20)], directory)
    whole = LocalSearcher(directory)
    with fake_cluster(directory, 2) as fakes:
        searcher = fakes.searcher()
        for given in ({"tag": "a"}, {"rank": 1}, {"not": {"tag": "a"}}):
            wanted = Filter.parse(given)
            assert_same(searcher.search(queries(), 40, filter=wanted), whole.search(queries(), 40, filter=wanted))
            assert searcher.matching(wanted) == whole.matching(wanted) == 20
        for method in (functools.partial(searcher.search, queries(), 1), searcher.matching):
            with pytest.raises(InvalidOptionError) as found:
                method(filter=Filter.parse({"no": 1}))
            with pytest.raises(InvalidOptionError) as expected:
                whole.search(queries(), 1, filter=Filter.parse({"no": 1}))
            assert str(found.value) == str(expected.value)


def test_what_results_rest_on_is_added_up(fakes: FakeCluster) -> None:
    documents = len(LocalSearcher(fakes.options.index))
    (ranking,) = fakes.searcher().search(queries(1), 2000)
    assert ranking.evidence is not None
    assert ranking.evidence.candidates == documents
    assert ranking.evidence.proof is not None


def ranking(*pairs: tuple[float, str], evidence: Evidence | None = None) -> Ranking:
    return Ranking(
        [name for _, name in pairs], np.array([score for score, _ in pairs]), np.arange(len(pairs)), evidence
    )


def test_equal_scores_are_merged_by_id_and_numbers_are_those_of_all() -> None:
    first, second = ranking((-0.0, "b"), (-2.0, "a")), ranking((-0.0, "a"), (-1.0, "c"), (-2.0, "b"))
    (found,) = merged([(0, [first]), (10, [second])], 1, 4)
    assert found.ids == ["a", "b", "c", "a"]
    assert found.documents.tolist() == [10, 0, 11, 1]
    assert found.scores.tolist() == [0.0, 0.0, -1.0, -2.0]


@pytest.mark.parametrize(
    ("proofs", "covered", "expected"),
    [
        (("bound", "exhaustive"), None, "bound"),
        (("exhaustive", "exhaustive"), None, "exhaustive"),
        (("bound", None), None, None),
        (("bound", "bound"), 7, None),
    ],
)
def test_results_are_proven_where_all_of_their_parts_are(proofs: Any, covered: int | None, expected: Any) -> None:
    parts = [(0, [ranking((-1.0, "a"), evidence=Evidence(5, 2, proof))]) for proof in proofs]
    (found,) = merged(parts, 1, 1, covered)
    assert found.evidence == Evidence(10, 4, expected)
    assert found.covered == covered


def test_nothing_is_said_where_a_part_says_nothing() -> None:
    (found,) = merged([(0, [ranking(evidence=Evidence(5, 2, None))]), (1, [ranking()])], 1, 1)
    assert found.evidence is None


def test_a_lost_process_is_asked_again(fakes: FakeCluster) -> None:
    searcher = fakes.searcher()
    expected = searcher.search(queries(), 5)
    before = [shard.asked.count("search") for shard in fakes.shards]
    fakes.shards[1].lost = 2
    assert_same(searcher.search(queries(), 5), expected)
    assert [shard.asked.count("search") for shard in fakes.shards] == [before[0] + 1, before[1] + 3, before[2] + 1]


def test_a_shard_that_does_not_answer_is_named(fakes: FakeCluster) -> None:
    searcher = fakes.searcher()
    fakes.shards[2].stuck = True
    with pytest.raises(ShardUnavailableError, match="shard 2 has not answered in time, of 3"):
        searcher.within(Terms(time.monotonic() + 0.2)).search(queries(), 5)
    # And so is one of which every process is lost.
    fakes.shards[2].lost = 10**9
    with pytest.raises(ShardUnavailableError, match="shard 2 has"):
        searcher.within(Terms(time.monotonic() + 0.2)).search(queries(), 5)


def test_what_the_others_find_is_had_where_that_is_allowed(fakes: FakeCluster, flat: IndexDirectory) -> None:
    searcher, whole = fakes.searcher(), LocalSearcher(flat)
    fakes.shards[2].stuck = True
    # Long enough for the others on any machine.
    bound = searcher.within(Terms(time.monotonic() + 4.0, allow_partial=True))
    found = bound.search(queries(), 2000)
    here = fakes.shards[0].opened(searcher.token).searcher, fakes.shards[1].opened(searcher.token).searcher
    documents = sum(len(each) for each in here if each is not None)
    everything = whole.search(queries(), 2000)
    for its, others in zip(found, everything, strict=True):
        assert its.covered == len(its.ids) == documents
        assert [name for name in others.ids if name in set(its.ids)] == its.ids
        assert its.evidence is not None
        assert its.evidence.proof is None


def test_nothing_is_no_part(fakes: FakeCluster) -> None:
    searcher = fakes.searcher()
    for shard in fakes.shards:
        shard.stuck = True
    with pytest.raises(ShardUnavailableError, match="shards 0, 1, 2 have"):
        searcher.within(Terms(time.monotonic() + 0.1, allow_partial=True)).search(queries(), 5)


def test_an_error_of_a_shard_is_the_search_s(fakes: FakeCluster) -> None:
    searcher = fakes.searcher()
    fakes.shards[1].fails = OverloadedError("too much")
    fakes.shards[2].stuck = True
    with pytest.raises(OverloadedError, match="too much"):
        searcher.search(queries(), 5)


def test_a_shard_that_has_too_much_to_do_is_not_there_for_a_search_that_allows_a_part(fakes: FakeCluster) -> None:
    searcher = fakes.searcher()
    for shard in fakes.shards[1:]:
        shard.fails = OverloadedError("too much")
    allowed = Terms(time.monotonic() + PATIENCE, allow_partial=True)
    for its in searcher.within(allowed).search(queries(), 2000):
        assert its.covered == len(its.ids) == len(fakes.shards[0].opened(searcher.token).searcher or ())
    fakes.shards[0].fails = OverloadedError("too much")
    with pytest.raises(OverloadedError, match="too much"):
        searcher.within(allowed).search(queries(), 5)


def test_errors_of_several_shards_are_one_and_no_lines_of_the_log(
    fakes: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    searcher = fakes.searcher()
    for shard in fakes.shards:
        shard.fails = OverloadedError("too much")
    for _ in range(5):
        with contextlib.suppress(OverloadedError):
            searcher.search(queries(), 5)
        gc.collect()
    assert not caplog.records


def test_a_document_is_had_though_another_shard_does_not_answer(fakes: FakeCluster) -> None:
    searcher = fakes.searcher()
    opened = fakes.shards[0].opened(searcher.token).searcher
    assert opened is not None
    here = opened.search(queries(1), 1)[0].ids[0]
    fakes.shards[2].stuck = True
    assert searcher.document(here).id == here
    with pytest.raises(ShardUnavailableError, match="shard 2"):
        searcher.within(Terms(time.monotonic() + 0.1)).document("nobody")


def test_a_search_that_nobody_waits_for_is_given_up(fakes: FakeCluster) -> None:
    searcher = fakes.searcher()
    fakes.shards[0].stuck = True
    with pytest.raises(SearchStoppedError):
        searcher.search(queries(), 5, stop=lambda: True)


def asked(**more: Any) -> dict[str, Any]:
    return {"mean": [0.1] * K, "variance": [1.0] * K, "top_k": 5, **more}


def test_http_answers_are_those_of_one_process(fakes: FakeCluster, flat: IndexDirectory, serve: Any) -> None:
    alone = serve(flat)
    with cluster_client(fakes) as client:
        for path, body in (
            ("/v1/search", asked()),
            ("/v1/search", asked(filter={"year": 2001}, with_payload=False)),
            ("/v1/search", asked(allow_partial=True, top_k=300)),
            ("/v1/search/batch", {"queries": [{"mean": [0.2] * K, "logvar": [0.0] * K}] * 3, "min_score": -3.0}),
            ("/v1/documents/d0001/similar", {"top_k": 3}),
            ("/v1/documents/d0000/similar", {"top_k": 3}),
            ("/v1/search", asked(nprobe=1)),
            ("/v1/search", asked(filter={"no": 1})),
        ):
            its, other = client.post(path, body), alone.post(path, body)
            assert its.status_code == other.status_code, path
            for answer in (its := its.json(), other := other.json()):
                answer.pop("took_ms", None), answer.pop("request_id", None)
            assert its == other, path
        assert client.get("/v1/documents/d0001").json() == alone.get("/v1/documents/d0001").json()
        explained = client.post("/v1/search", asked(explain=True)).json()
        assert explained["results"] == alone.post("/v1/search", asked(explain=True)).json()["results"]
        assert client.get("/v1/index").json()["shards"] == 3


def test_coverage_is_told_to_whoever_allows_a_part(fakes: FakeCluster) -> None:
    with cluster_client(fakes) as client:
        documents = client.get("/v1/index").json()["documents"]
        assert "coverage" not in client.post("/v1/search", asked()).json()
        whole = client.post("/v1/search", asked(allow_partial=True)).json()
        assert whole["coverage"] == {"documents": documents, "of": documents}
        fakes.shards[0].stuck = True
        # Long enough for the others on any machine.
        headers = {"X-Request-Timeout-Ms": "3000"}
        part = client.post("/v1/search", asked(allow_partial=True), headers=headers)
        assert part.status_code == 200
        assert 0 < part.json()["coverage"]["documents"] < documents
        assert part.json()["coverage"]["of"] == documents
        assert client.metric("gaussearch_partial_answers_total") == 1
        filtered = client.post("/v1/search", asked(allow_partial=True, filter={"year": 2001}), headers=headers)
        assert filtered.json()["matched"] < whole["coverage"]["of"]
        refused = client.post("/v1/search", asked(), headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (504, "shard_unavailable")


def _asked_more(shard: FakeShard, begun: int) -> bool:
    return shard.asked.count("search") > begun


def test_one_stuck_search_keeps_nobody_waiting(fakes: FakeCluster) -> None:
    with cluster_client(fakes) as client:
        fakes.shards[0].stuck = True
        patient = {"X-Request-Timeout-Ms": "60000"}
        send = functools.partial(client.post, "/v1/search", asked(), headers=patient)
        hung = [threading.Thread(target=send, daemon=True) for _ in range(3)]
        for thread in hung:
            begun = fakes.shards[0].asked.count("search")
            thread.start()
            wait_until(functools.partial(_asked_more, fakes.shards[0], begun))
        fakes.shards[0].stuck = False
        assert client.post("/v1/search", asked()).status_code == 200
        assert all(thread.is_alive() for thread in hung)
        fakes.shards[0].release()
        for thread in hung:
            thread.join(PATIENCE)


def test_a_full_shard_is_answered_429(fakes: FakeCluster) -> None:
    with cluster_client(fakes) as client:
        fakes.shards[1].fails = OverloadedError("too many calls wait", headers={"Retry-After": "1"})
        answer = client.post("/v1/search", asked())
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert answer.headers["retry-after"] == "1"


def test_a_cluster_takes_no_writes(flat: IndexDirectory) -> None:
    with fake_cluster(flat, 2, admin_key="s" * 32) as fakes, cluster_client(fakes) as client:
        for path, body in (("/v1/documents", {"documents": []}), ("/v1/documents/delete", {"ids": ["a"]})):
            answer = client.post(path, body, headers={"X-API-Key": "s" * 32})
            assert (answer.status_code, answer.json()["code"]) == (403, "writes_disabled")
            assert "gaussearch add" in answer.json()["detail"]


def test_a_new_generation_is_taken_up_by_all_shards(tmp_path: Path) -> None:
    directory = IndexDirectory(tmp_path / "index")
    gaussians = random_gaussians(60, K, seed=3)
    build_index([corpus_of(tmp_path, gaussians, "one")], directory, BuildOptions(segment_docs=20))
    with fake_cluster(directory, 3, reload_seconds=0.01) as fakes, cluster_client(fakes) as client:
        before = fakes.searcher()
        build_index([corpus_of(tmp_path, gaussians[:45], "two", 100)], directory, BuildOptions(segment_docs=20))
        wait_until(lambda: client.get("/v1/index").json()["generation"] == 2)
        found = client.post("/v1/search", asked(top_k=60)).json()
        assert {each["id"] for each in found["results"]} == {f"d{100 + row:04d}" for row in range(45)}
        # Who began with the one before it ends with it.
        assert {name for each in before.search(queries(1), 60) for name in each.ids} == {
            f"d{row:04d}" for row in range(60)
        }


def test_a_shard_fetches_its_own_segments_alone(tmp_path: Path, storage: Storage) -> None:
    corpus = corpus_of(tmp_path, random_gaussians(100, K, seed=3), "corpus")
    local = IndexDirectory(tmp_path / "local")
    for directory in (local, storage.on("builder")):
        build_index([corpus], directory, BuildOptions(kind=IndexKind.IVF_FASTSCAN, segment_docs=20, min_recall=0.01))
    with fake_cluster(storage.uri, 2, machines=tmp_path / "machines") as fakes:
        found = fakes.searcher().search(queries(), 7, exact=True)
        assert_same(found, LocalSearcher(local).search(queries(), 7, exact=True))
        fetched = []
        for number, shard in enumerate(fakes.shards):
            (generation,) = shard.generations.values()
            assert generation.searcher is not None
            segments = {entry.id for entry in generation.searcher.manifest.segments}
            lying = {path.parent.name for path in (tmp_path / "machines" / str(number)).rglob("gaussians.npy")}
            assert lying == segments
            fetched += sorted(segments)
    assert sorted(fetched) == sorted(entry.id for entry in local.manifest().segments)


def test_an_ingress_that_could_not_load_the_index_is_to_be_replaced(fakes: FakeCluster) -> None:
    fakes.shards[1].fails = OverloadedError("too much")
    # Not one of its own: it would look for Ray Serve when it goes.
    ingress: Any = SimpleNamespace(_options=fakes.options, _keys=Keys(), _cluster=fakes.cluster, _failure=None)
    ingress._note_failure = functools.partial(Ingress._note_failure, ingress)
    client = Client(Ingress.__serve_build_asgi_app__(ingress))
    try:
        wait_until(lambda: ingress._failure is not None)
        with pytest.raises(NotReadyError, match="could not be loaded: too much"):
            asyncio.run(Ingress.check_health(ingress))
        assert client.get("/readyz").status_code == 503
    finally:
        client.close()


def test_one_segment_for_three_shards_is_one_that_is_asked(served: Served) -> None:
    with fake_cluster(served.directory, 3) as fakes:
        searcher = fakes.searcher()
        assert searcher.shards == 1
        query = served.gaussians[:1]
        assert_same(searcher.search(query, 5), LocalSearcher(served.directory).search(query, 5))
        assert sorted(len(shard.asked) for shard in fakes.shards)[:2] == [0, 0]
