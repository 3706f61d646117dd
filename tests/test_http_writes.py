"""Documents written, deleted and filtered over HTTP: what is answered is durable, and the next search sees it."""

import asyncio
import base64
import datetime
import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index import (
    BuildOptions,
    Gaussians,
    IndexDirectory,
    LocalSearcher,
    add_documents,
    back_up,
    build_index,
    delete_documents,
    restore,
    roll_back,
)
from service.writing import LOOKS
from tests.conftest import Serve, random_gaussians, write_corpus
from tests.rankings import exact_scores
from tests.serving import PATIENCE, Client, wait_until

ADMIN = "an-admin-key-of-enough-letters"
AUTHORISED = {"Authorization": f"Bearer {ADMIN}"}
K = 4


@pytest.fixture
def directory(tmp_path: Path) -> IndexDirectory:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(40, K), year=[1980 + i for i in range(40)])
    made = IndexDirectory(tmp_path / "index")
    build_index([corpus], made, BuildOptions(segment_docs=25))
    return made


@pytest.fixture
def client(serve: Serve, directory: IndexDirectory) -> Client:
    return serve(directory, admin_key=ADMIN, reload_seconds=3600)


def body_of(gaussians: Gaussians, ids: list[str], **payload: Any) -> dict[str, Any]:
    documents = []
    for row, name in enumerate(ids):
        mean, variance = gaussians.means[row].tolist(), gaussians.variances[row].tolist()
        its = {field: values[row] for field, values in payload.items()}
        documents.append({"id": name, "mean": mean, "variance": variance, "payload": its})
    return {"documents": documents}


def write(client: Client, body: dict[str, Any], **headers: str) -> Any:
    return client.post("/v1/documents", body, headers={**AUTHORISED, **headers})


def nearest(client: Client, gaussian: Gaussians, **options: Any) -> Any:
    query = {"mean": gaussian.means[0].tolist(), "variance": gaussian.variances[0].tolist(), **options}
    return client.post("/v1/search", query).json()


def test_what_is_written_is_found_by_the_next_search_and_lies_on_disk(
    client: Client, directory: IndexDirectory
) -> None:
    new = random_gaussians(3, K, seed=5)
    answer = write(client, body_of(new, ["a", "b", "d7"], year=[2001, 2002, 2003]))
    assert answer.status_code == 200
    assert {key: answer.json()[key] for key in ("written", "replaced", "index")} == {
        "written": 3,
        "replaced": 1,
        "index": {"name": "index", "generation": 2},
    }
    for row, name in enumerate(["a", "b", "d7"]):
        found = nearest(client, new[row : row + 1], top_k=1)
        assert found["results"] == [{"id": name, "score": 0.0, "payload": {"year": 2001 + row}}]
        assert found["index"]["generation"] == 2
    assert client.get("/v1/documents/d7").json()["payload"] == {"year": 2003}
    assert client.get("/v1/index").json()["documents"] == 42
    again = LocalSearcher(directory)
    assert (again.manifest.generation, len(again)) == (2, 42)
    assert directory.verify().written == 3


def test_deleted_documents_are_found_no_more(client: Client, directory: IndexDirectory) -> None:
    gaussians = random_gaussians(40, K)
    answer = client.request("DELETE", "/v1/documents/d3", headers=AUTHORISED)
    assert (answer.status_code, answer.json()["deleted"]) == (200, 1)
    assert client.get("/v1/documents/d3").status_code == 404
    assert client.request("DELETE", "/v1/documents/d3", headers=AUTHORISED).json()["code"] == "document_not_found"
    answer = client.post("/v1/documents/delete", {"ids": ["d0", "d1", "none", "d3"]}, headers=AUTHORISED)
    assert (answer.json()["deleted"], answer.json()["missing"]) == (2, 2)
    left = [row for row in range(40) if row not in (0, 1, 3)]
    query = gaussians[3:4]
    ranking = nearest(client, query, top_k=37, with_payload=False)["results"]
    means, variances = gaussians.means.numpy()[left], gaussians.variances.numpy()[left]
    (scores,) = exact_scores(query, Gaussians.from_arrays(means, variances))
    assert [each["id"] for each in ranking] == [f"d{left[place]}" for place in np.argsort(-scores)]
    assert directory.verify().documents == 37


def test_everything_can_be_deleted_and_written_again(client: Client) -> None:
    ids = [f"d{row}" for row in range(40)]
    assert client.post("/v1/documents/delete", {"ids": ids}, headers=AUTHORISED).json()["deleted"] == 40
    query = random_gaussians(1, K)
    assert nearest(client, query)["results"] == []
    assert client.get("/readyz").status_code == 200
    assert write(client, body_of(query, ["one"])).json()["written"] == 1
    assert [each["id"] for each in nearest(client, query)["results"]] == ["one"]


def test_writes_that_arrive_together_share_a_generation(client: Client) -> None:
    before = client.get("/v1/index").json()["generation"]
    new = random_gaussians(40, K, seed=6)

    async def all_at_once() -> list[Any]:
        bodies = [body_of(new[row : row + 1], [f"n{row % 30}"]) for row in range(40)]
        return await asyncio.gather(*(client.send("/v1/documents", body, headers=AUTHORISED) for body in bodies))

    answers = client.run(all_at_once())
    assert [answer.status_code for answer in answers] == [200] * 40
    assert client.get("/v1/index").json()["generation"] - before < 20
    assert client.get("/v1/index").json()["documents"] == 70
    assert sum(answer.json()["replaced"] for answer in answers) == 10
    # The last write of an id is what stays.
    assert nearest(client, new[35:36], top_k=1)["results"][0]["id"] == "n5"


def test_a_write_that_cannot_be_made_fails_alone(client: Client) -> None:
    new = random_gaussians(3, K, seed=6)

    async def all_at_once() -> list[Any]:
        bodies = [
            body_of(new[:1], ["good"], year=[1]),
            body_of(new[1:2], ["bad"], year=["nineteen"]),
            body_of(new[2:3], ["fine"], year=[2.5]),
        ]
        return await asyncio.gather(*(client.send("/v1/documents", body, headers=AUTHORISED) for body in bodies))

    answers = client.run(all_at_once())
    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert "year" in answers[1].json()["detail"]
    found = [client.get(f"/v1/documents/{name}").status_code for name in ("good", "bad", "fine")]
    assert found == [200, 404, 200]


def test_a_write_sent_again_with_its_key_is_made_once(client: Client, serve: Serve, directory: IndexDirectory) -> None:
    new = random_gaussians(2, K, seed=7)
    body = body_of(new[:1], ["once"])
    key = {"Idempotency-Key": "k-1"}
    first = write(client, body, **key)
    assert "idempotency-replayed" not in first.headers
    # Another client deletes it in between: sent again, the write must not bring it back.
    client.request("DELETE", "/v1/documents/once", headers=AUTHORISED)
    again = write(client, body, **key)
    assert again.headers["idempotency-replayed"] == "true"
    assert {name: again.json()[name] for name in ("written", "replaced")} == {"written": 1, "replaced": 0}
    assert again.json()["index"] == first.json()["index"]
    assert client.get("/v1/documents/once").status_code == 404
    other = write(client, body_of(new[1:], ["other"]), **key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    # It is part of the index, so another process knows of it.
    later = serve(directory, admin_key=ADMIN)
    assert write(later, body, **key).headers["idempotency-replayed"] == "true"


def test_a_write_that_another_process_has_taken_back_is_made_again(client: Client, directory: IndexDirectory) -> None:
    """Even where the service has not seen yet that it was taken back."""
    body, key = body_of(random_gaussians(1, K, seed=7), ["once"]), {"Idempotency-Key": "k-1"}
    write(client, body, **key)
    roll_back(directory, 1)
    assert client.get("/v1/documents/once").status_code == 200
    again = write(client, body, **key)
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (200, None)
    assert again.json()["index"]["generation"] == 4
    assert client.get("/v1/documents/once").status_code == 200


def test_a_write_that_a_replaced_folder_does_not_have_is_made_again(
    client: Client, directory: IndexDirectory, tmp_path: Path
) -> None:
    """Even where the folder has got to a generation of the same number."""
    body, key = body_of(random_gaussians(1, K, seed=7), ["once"]), {"Idempotency-Key": "k-1"}
    back_up(directory, tmp_path / "backup")
    assert write(client, body, **key).json()["index"]["generation"] == 2
    directory.path.rename(tmp_path / "gone")
    restore(tmp_path / "backup", directory)
    delete_documents(["d0"], directory)
    assert directory.live_generation() == 2
    again = write(client, body, **key)
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (200, None)
    assert client.get("/v1/documents/once").status_code == 200
    assert client.get("/v1/documents/d0").status_code == 404
    assert directory.verify().documents == 40


@pytest.fixture
def hung(client: Client) -> Iterator[None]:
    """CURRENT, which cannot be read before the test has ended."""
    release, live = threading.Event(), client.state.live

    def wait() -> str:
        assert release.wait(PATIENCE)
        return IndexDirectory.current_token(live._directory)

    live._directory.current_token = wait  # type: ignore[method-assign]
    yield
    release.set()


def test_a_write_sent_again_waits_no_longer_than_it_may(
    client: Client, request: pytest.FixtureRequest, directory: IndexDirectory
) -> None:
    body, key = body_of(random_gaussians(1, K, seed=7), ["once"]), {"Idempotency-Key": "k-1"}
    write(client, body, **key)
    request.getfixturevalue("hung")
    short = {"X-Request-Timeout-Ms": "50"}
    for number in range(LOOKS + 2):
        late = write(client, body, **key, **short)
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert ("before it was known whether it has been made" in late.json()["detail"]) == (number < LOOKS)
    named = [thread.name for thread in threading.enumerate()]
    assert named.count("gaussearch-look") == LOOKS
    assert directory.live_generation() == 2


def test_a_write_sent_again_is_queued_where_current_cannot_be_read(
    client: Client, directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, key = body_of(random_gaussians(1, K, seed=7), ["once"]), {"Idempotency-Key": "k-1"}
    write(client, body, **key)

    def fail(_: object) -> str:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(IndexDirectory, "current_token", fail)
        failed = write(client, body, **key)
    assert (failed.status_code, failed.json()["code"]) == (503, "write_failed")
    assert write(client, body, **key).headers["idempotency-replayed"] == "true"
    assert directory.live_generation() == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"documents": []}, "documents: "),
        ({"documents": [{"id": "", "mean": [0] * K, "variance": [1] * K}]}, "documents.0.id"),
        ({"documents": [{"id": "é" * 257, "mean": [0] * K, "variance": [1] * K}]}, "documents.0.id: it has 514 bytes"),
        ({"documents": [{"id": "a", "mean": [0] * 3, "variance": [1] * 3}]}, "row 0: mean has 3 numbers"),
        ({"documents": [{"id": "a", "mean": [0] * K, "variance": [0.0] * K}]}, "row 0, component 0: variance is 0.0"),
        ({"documents": [{"id": "a", "mean": [1e39] * K, "variance": [1] * K}]}, "row 0, component 0"),
        ({"documents": [{"id": "a", "mean": [0] * K, "variance": [1e-60] * K}]}, "row 0, component 0"),
        ({"documents": [{"id": "a", "mean": [0] * K}]}, "documents.0: give either variance or logvar"),
        ({"documents": [{"id": "a", "mean": [0] * K, "variance": [1] * K}] * 2}, "id 'a' comes twice"),
        (
            {"documents": [{"id": "a", "mean": [0] * K, "variance": [1] * K, "text": "x"}]},
            "documents.0: give either text or mean",
        ),
    ],
)
def test_what_cannot_be_written_is_named(client: Client, body: dict[str, Any], message: str) -> None:
    answer = write(client, body)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert client.get("/v1/index").json()["generation"] == 1


def test_limits_of_a_write(serve: Serve, directory: IndexDirectory) -> None:
    client = serve(directory, admin_key=ADMIN, max_documents=3)
    new = random_gaussians(4, K, seed=8)
    answer = write(client, body_of(new, list("abcd")))
    assert (answer.status_code, answer.json()["code"]) == (422, "limit_exceeded")
    assert write(client, body_of(new[:3], list("abc"))).status_code == 200
    answer = client.post("/v1/documents/delete", {"ids": list("abcd")}, headers=AUTHORISED)
    assert answer.json()["code"] == "limit_exceeded"
    assert client.get("/v1/index").json()["limits"]["max_documents"] == 3


def test_vectors_may_come_as_base64_and_variances_as_logarithms(client: Client) -> None:
    mean, logvar = np.arange(K, dtype="<f4"), np.full(K, -1.0, dtype="<f4")
    coded = {"mean": base64.b64encode(mean.tobytes()).decode(), "logvar": base64.b64encode(logvar.tobytes()).decode()}
    assert write(client, {"documents": [{"id": "coded", **coded}]}).status_code == 200
    found = client.get("/v1/documents/coded").json()
    assert found["mean"] == mean.tolist()
    assert found["variance"] == pytest.approx(np.exp(logvar).tolist(), rel=1e-6)
    assert found["payload"] == {}


def test_writing_takes_an_admin_key(serve: Serve, directory: IndexDirectory) -> None:
    client = serve(directory, admin_key=ADMIN, api_key="a-search-key-of-enough-letters")
    body = body_of(random_gaussians(1, K), ["a"])
    requests = [
        ("POST", "/v1/documents", body),
        ("POST", "/v1/documents/delete", {"ids": ["d0"]}),
        ("DELETE", "/v1/documents/d0", None),
        ("POST", "/v1/index/compact", {}),
    ]
    for method, path, content in requests:
        assert client.request(method, path, json=content).json()["code"] == "unauthorized"
        headers = {"X-API-Key": "a-search-key-of-enough-letters"}
        assert client.request(method, path, json=content, headers=headers).json()["code"] == "forbidden"
    closed = serve(directory)
    for method, path, content in requests:
        assert closed.request(method, path, json=content, headers=AUTHORISED).json()["code"] == "writes_disabled"
    assert directory.manifest().generation == 1


def test_compaction_runs_while_searches_go_on(client: Client, directory: IndexDirectory) -> None:
    for row in range(5):
        write(client, body_of(random_gaussians(1, K, seed=50 + row), [f"n{row}"], year=[2020]))
    client.request("DELETE", "/v1/documents/d3", headers=AUTHORISED)
    before = nearest(client, random_gaussians(1, K, seed=9), top_k=44)["results"]
    assert client.get("/v1/index").json()["deleted_rows"] == 1
    for retrain in (False, True):
        answer = client.post("/v1/index/compact", {"retrain": retrain}, headers=AUTHORISED)
        assert (answer.status_code, answer.json()) == (202, {"status": "accepted"})
        wait_until(lambda: not client.get("/v1/index").json()["compaction"]["running"])
        described = client.get("/v1/index").json()
        assert described["compaction"] == {"running": False, "last_error": None}
        assert (described["segments"], described["deleted_rows"], described["documents"]) == (2, 0, 44)
        assert nearest(client, random_gaussians(1, K, seed=9), top_k=44)["results"] == before
    assert directory.verify().documents == 44


def test_one_compaction_at_a_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def held(*_: object) -> None:
        assert release.wait(PATIENCE)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("service.writing.compact_index", held)
    assert client.post("/v1/index/compact", {}, headers=AUTHORISED).status_code == 202
    answer = client.post("/v1/index/compact", {}, headers=AUTHORISED)
    assert (answer.status_code, answer.json()["code"]) == (409, "compaction_running")
    release.set()
    wait_until(lambda: not client.get("/v1/index").json()["compaction"]["running"])
    assert "Input/output error" in client.get("/v1/index").json()["compaction"]["last_error"]
    assert client.get("/livez").status_code == 200


def test_many_small_writes_leave_few_segments(client: Client, directory: IndexDirectory) -> None:
    new = random_gaussians(60, K, seed=10)
    for row in range(60):
        assert write(client, body_of(new[row : row + 1], [f"n{row}"])).status_code == 200
    assert len(directory.manifest().segments) < 20
    for row in (0, 31, 59):
        assert nearest(client, new[row : row + 1], top_k=1)["results"][0]["id"] == f"n{row}"
    assert directory.verify().documents == 100


@pytest.mark.parametrize(
    ("wanted", "years"),
    [
        ({"year": 1985}, {1985}),
        ({"year": {"gte": 1990, "lt": 1993}}, {1990, 1991, 1992}),
        ({"or": [{"year": 1980}, {"not": {"year": {"lt": 2019}}}]}, {1980, 2019}),
        ({"year": {"in": [1, 2]}}, set()),
    ],
)
def test_only_what_a_filter_lets_through_is_found(client: Client, wanted: dict[str, Any], years: set[int]) -> None:
    found = nearest(client, random_gaussians(1, K, seed=3), filter=wanted, top_k=40)
    assert found["matched"] == len(years)
    assert {each["payload"]["year"] for each in found["results"]} == years
    body = {"queries": [{"mean": [0.0] * K, "variance": [1.0] * K}] * 2, "filter": wanted, "top_k": 40}
    batch = client.post("/v1/search/batch", body).json()
    assert (batch["matched"], [len(results) for results in batch["results"]]) == (len(years), [len(years)] * 2)


def test_a_filter_sees_what_has_been_written(client: Client) -> None:
    new = random_gaussians(1, K, seed=3)
    wanted = {"year": {"gte": 2019}}
    assert nearest(client, new, filter=wanted)["matched"] == 1
    write(client, body_of(new, ["new"], year=[2040]))
    found = nearest(client, new, filter=wanted)
    assert (found["matched"], found["results"][0]["id"]) == (2, "new")
    client.request("DELETE", "/v1/documents/new", headers=AUTHORISED)
    assert nearest(client, new, filter=wanted)["matched"] == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "filter is empty"),
        ({"yaer": 1}, "no document has a field 'yaer'; they have year"),
        ({"year": "1985"}, "filter.year"),
        ({"year": {"above": 3}}, "filter.year"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(client: Client, wanted: dict[str, Any], message: str) -> None:
    query = {"mean": [0.0] * K, "variance": [1.0] * K, "filter": wanted}
    answer = client.post("/v1/search", query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
    assert message in answer.json()["detail"]


def test_writes_wait_for_no_other_process_for_long(client: Client, directory: IndexDirectory) -> None:
    with directory.lock():
        answer = write(client, body_of(random_gaussians(1, K), ["a"]))
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "another process is writing" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "5"
    assert write(client, body_of(random_gaussians(1, K), ["a"])).status_code == 200


@pytest.fixture
def failing_publication(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OSError]]:
    """Errors that the next publications fail with."""
    errors: list[OSError] = []
    publish = IndexDirectory.publish

    def fail(*arguments: Any, **options: Any) -> None:
        if errors:
            raise errors.pop()
        publish(*arguments, **options)

    monkeypatch.setattr(IndexDirectory, "publish", fail)
    return errors  # type: ignore[return-value]


def test_a_full_disk_fails_the_write_and_nothing_else(
    client: Client, directory: IndexDirectory, failing_publication: list[OSError]
) -> None:
    failing_publication.append(OSError(28, "No space left on device"))
    answer = write(client, body_of(random_gaussians(1, K, seed=3), ["a"]))
    assert (answer.status_code, answer.json()["code"]) == (503, "write_failed")
    assert "no space left" in answer.json()["detail"]
    assert client.get("/livez").status_code == 200
    assert directory.verify().generation == 1
    assert len(list(directory.segments.iterdir())) == 2
    assert write(client, body_of(random_gaussians(1, K, seed=3), ["a"])).status_code == 200


def test_whole_numbers_and_fractions_share_a_column(client: Client, directory: IndexDirectory) -> None:
    """A whole number that no float64 holds must not stand in the way of merging for ever."""
    new = random_gaussians(16, K, seed=20)
    for row in range(16):
        value = 2**60 + 1 if row % 2 else row + 0.5
        assert write(client, body_of(new[row : row + 1], [f"n{row}"], size=[value])).status_code == 200
    # The last write is answered before what is due after it.
    wait_until(lambda: len(directory.manifest().segments) == 4)
    assert client.get("/v1/documents/n2").json()["payload"]["size"] == 2.5
    assert client.get("/v1/documents/n3").json()["payload"]["size"] == 2.0**60


def test_payload_that_cannot_be_stored_fails_alone(client: Client) -> None:
    nested: Any = 1
    for _ in range(80):
        nested = [nested]
    new = random_gaussians(2, K, seed=21)

    async def both() -> list[Any]:
        bodies = [body_of(new[:1], ["good"], year=[1]), body_of(new[1:], ["deep"], nested=[nested])]
        return await asyncio.gather(*(client.send("/v1/documents", body, headers=AUTHORISED) for body in bodies))

    assert [answer.status_code for answer in client.run(both())] == [200, 422]
    assert client.get("/v1/documents/good").status_code == 200


def test_a_column_may_have_any_name(client: Client) -> None:
    new = random_gaussians(2, K, seed=22)
    body = {"documents": body_of(new[:1], ["a"], **{"": [7]})["documents"] + body_of(new[1:], ["b"])["documents"]}
    assert write(client, body).status_code == 200
    assert client.get("/v1/documents/a").json()["payload"] == {"": 7}


def test_generations_are_kept_as_the_service_is_told(serve: Serve, directory: IndexDirectory) -> None:
    client = serve(directory, admin_key=ADMIN, keep_generations=4)
    for row in range(3):
        write(client, body_of(random_gaussians(1, K, seed=row), [f"n{row}"]))
    assert directory.generations() == [1, 2, 3, 4]
    client.post("/v1/index/compact", {}, headers=AUTHORISED)
    wait_until(lambda: not client.get("/v1/index").json()["compaction"]["running"])
    # What is compacted holds the same documents as the one before, for which it stands.
    assert {1, 2, 3} <= set(directory.generations())
    # Nor does a request that changes nothing push one out.
    for number in range(4):
        headers = {**AUTHORISED, "Idempotency-Key": f"k{number}"}
        assert client.request("DELETE", "/v1/documents/nobody", headers=headers).status_code == 404
    assert {1, 2, 3} <= set(directory.generations())


def test_a_late_write_is_not_said_to_have_failed(client: Client, directory: IndexDirectory) -> None:
    headers = {**AUTHORISED, "X-Request-Timeout-Ms": "300"}
    with directory.lock():
        answer = client.post("/v1/documents", body_of(random_gaussians(1, K), ["late"]), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert "not known whether it will be" in answer.json()["detail"]


COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "day": (pa.date32(), datetime.date(2021, 5, 5)),
    "days": (pa.date64(), datetime.date(2021, 5, 6)),
    "at": (pa.timestamp("us"), datetime.datetime(2021, 5, 5, 12, 30, 1, 250000)),
    "second": (pa.timestamp("s"), datetime.datetime(2021, 5, 5, 12, 30)),
    "zoned": (pa.timestamp("ms", "UTC"), datetime.datetime(2021, 5, 5, 12, 30, tzinfo=datetime.UTC)),
    "clock": (pa.time64("us"), datetime.time(12, 30, 1)),
    "price": (pa.decimal128(10, 2), Decimal("12.50")),
    "bytes": (pa.binary(), b"ab\xff"),
    "fixed": (pa.binary(3), b"abc"),
    "dates": (pa.list_(pa.date32()), [datetime.date(2021, 5, 5), None]),
    "text": (pa.string(), "YWI="),
}


@pytest.fixture
def typed(tmp_path: Path, serve: Serve) -> Client:
    """Documents of every type that JSON writes as text."""
    payload = {name: pa.array([value] * 3, kind) for name, (kind, value) in COLUMNS.items()}
    corpus = write_corpus(tmp_path / "typed.parquet", random_gaussians(3, 2), ["a", "b", "c"], **payload)
    directory = IndexDirectory(tmp_path / "typed")
    build_index([corpus], directory, BuildOptions(device="cpu"))
    return serve(directory, admin_key=ADMIN)


def test_what_has_been_read_can_be_written_back_and_stays_what_it_was(typed: Client) -> None:
    read = typed.get("/v1/documents/a").json()
    for _ in range(2):
        answer = typed.post("/v1/documents", {"documents": [{**read, "id": "new"}]}, headers=AUTHORISED)
        assert answer.status_code == 200, answer.text
        written = typed.get("/v1/documents/new").json()
        assert written["payload"] == read["payload"]
        assert typed.post("/v1/index/compact", {}, headers=AUTHORISED).status_code == 202
        wait_until(lambda: not typed.get("/v1/index").json()["compaction"]["running"])
        assert typed.get("/v1/documents/new").json()["payload"] == read["payload"]
    body = {"mean": [0.0] * 2, "variance": [1.0] * 2, "filter": {"id": "new", "day": {"gte": "2021-05-05"}}}
    assert typed.post("/v1/search", body).json()["matched"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("day", "2021-13-05"),
        ("at", "yesterday"),
        ("zoned", "2021-05-05T12:30:00"),
        ("at", "2021-05-05T12:30:00+01:00"),
        ("price", "12.505"),
        ("bytes", "no base64!"),
        ("fixed", "YWI="),
        ("dates", ["2021-05-05", "never"]),
        ("clock", "25:00"),
        ("day", 5.5),
    ],
)
def test_text_that_its_column_cannot_be_is_refused_by_its_name(typed: Client, name: str, value: Any) -> None:
    document = {"id": "new", "mean": [0.0] * 2, "variance": [1.0] * 2, "payload": {name: value}}
    answer = typed.post("/v1/documents", {"documents": [document]}, headers=AUTHORISED)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert name in answer.json()["detail"]
    assert typed.get("/v1/documents/new").status_code == 404


@pytest.mark.usefixtures("typed")
def test_json_lines_are_added_to_columns_of_dates(tmp_path: Path) -> None:
    directory = IndexDirectory(tmp_path / "typed")
    line = {"id": "line", "mean": [0.0] * 2, "variance": [1.0] * 2, "day": "2020-02-29", "price": "1.25"}
    (tmp_path / "more.jsonl").write_text(json.dumps(line))
    add_documents([tmp_path / "more.jsonl"], directory)
    payload = LocalSearcher(directory).document("line").payload
    assert (payload["day"], payload["price"]) == (datetime.date(2020, 2, 29), Decimal("1.25"))
