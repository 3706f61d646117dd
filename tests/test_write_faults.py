"""Writes that come too fast, too late, twice, broken or all at once: acknowledged or refused, and never by halves."""

import asyncio
import gc
import json
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from index import BuildOptions, IndexDirectory, build_index
from index.errors import NotSyncedError
from service.app import create_app
from service.committing import WriteJob
from service.settings import ServiceSettings
from tests.conftest import Serve, random_gaussians, write_corpus
from tests.forked_server import ADMIN, AUTHORISED
from tests.serving import PATIENCE, Client, wait_until
from tests.test_server_process import Server
from tests.write_history import Connection, History, K, NoAnswer, Write, document

BASE = 6


@pytest.fixture
def directory(memory: Path) -> IndexDirectory:
    corpus = write_corpus(memory / "corpus.parquet", random_gaussians(BASE, K), request=[-1] * BASE)
    made = IndexDirectory(memory / "index")
    build_index([corpus], made, BuildOptions(device="cpu"))
    return made


class Gate:
    """Where publications wait; `errors` are what the next ones fail with."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.errors: list[OSError] = []
        self.waiting = 0

    def close(self) -> None:
        """Has the next publications wait."""
        self.waiting = 0
        self.open.clear()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made, publish = Gate(), IndexDirectory.publish

    def gated(*arguments: Any, **options: Any) -> None:
        made.waiting += 1
        assert made.open.wait(PATIENCE)
        if made.errors:
            raise made.errors.pop()
        publish(*arguments, **options)

    monkeypatch.setattr(IndexDirectory, "publish", gated)
    yield made
    made.open.set()


def post(client: Client, ids: list[str], headers: dict[str, str] | None = None, number: int = 1) -> Any:
    body = {"documents": [document(name, number) for name in ids]}
    return client.send("/v1/documents", body, headers={**AUTHORISED, **(headers or {})})


def begin(client: Client, *requests: Any) -> Callable[[], list[Any]]:
    """Begins requests, one after the other; what returns their answers."""
    futures = [asyncio.run_coroutine_threadsafe(request, client._loop) for request in requests]
    return lambda: [future.result(PATIENCE) for future in futures]


def is_there(client: Client, name: str) -> bool:
    return bool(client.get(f"/v1/documents/{name}").status_code == 200)


def test_a_full_queue_refuses_and_loses_nothing_that_it_took(
    directory: IndexDirectory, serve: Serve, gate: Gate
) -> None:
    client = serve(directory, admin_key=ADMIN, queue_documents=4)
    writer = client.state.writer
    gate.close()
    first = begin(client, post(client, ["first-0", "first-1"]))
    wait_until(lambda: gate.waiting)
    taken = begin(client, *(post(client, [f"taken{place}-0", f"taken{place}-1"]) for place in range(2)))
    wait_until(lambda: len(writer._jobs) == 2)
    for place in range(5):
        (answer,) = begin(client, post(client, [f"refused{place}"]))()
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert int(answer.headers["Retry-After"]) > 0
        assert (len(writer._jobs), writer._waiting) == (2, 4)
    answer = client.post("/v1/documents/delete", {"ids": ["first-0"]}, headers=AUTHORISED)
    assert answer.status_code == 429
    assert client.post("/v1/search", {"mean": [0.0] * K, "variance": [1.0] * K}).status_code == 200
    assert client.metric("gaussearch_rejected_total", reason="overloaded") == 6
    gate.open.set()
    assert [answer.status_code for answer in (*first(), *taken())] == [200] * 3
    assert all(is_there(client, f"{name}-{half}") for name in ("first", "taken0", "taken1") for half in range(2))
    assert directory.verify().documents == BASE + 6
    (answer,) = begin(client, post(client, ["refused0"]))()
    assert answer.status_code == 200


def test_a_queue_that_a_compaction_keeps_full_is_not_to_be_asked_every_second(
    directory: IndexDirectory, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(directory, admin_key=ADMIN, queue_documents=1)
    writer, begun, release = client.state.writer, threading.Event(), threading.Event()

    def held(*_: object) -> None:
        begun.set()
        assert release.wait(PATIENCE)

    monkeypatch.setattr("service.writing.compact_index", held)
    assert client.post("/v1/index/compact", {}, headers=AUTHORISED).status_code == 202
    assert begun.wait(PATIENCE)
    waiting = begin(client, post(client, ["a"]))
    wait_until(lambda: writer._jobs)
    for seconds, least, most in ((20, 20, 59), (3600, 60, 60)):
        writer._begun = time.monotonic() - seconds
        (answer,) = begin(client, post(client, ["b"]))()
        assert answer.status_code == 429
        assert least <= int(answer.headers["Retry-After"]) <= most
    release.set()
    assert waiting()[0].status_code == 200
    wait_until(lambda: writer._begun is None)


def test_what_has_been_written_is_not_kept_while_nothing_comes(directory: IndexDirectory, serve: Serve) -> None:
    client = serve(directory, admin_key=ADMIN)
    assert begin(client, post(client, ["a"]))()[0].status_code == 200
    wait_until(lambda: not any(type(each) is WriteJob for each in gc.get_objects()))


def test_writes_that_have_been_given_up_take_nobodys_place_in_the_queue(
    directory: IndexDirectory, serve: Serve, gate: Gate
) -> None:
    """A compaction, or a slow disk, may keep them there for minutes."""
    client = serve(directory, admin_key=ADMIN, queue_documents=4)
    gate.close()
    first = begin(client, post(client, ["first"]))
    wait_until(lambda: gate.waiting)
    short = {"X-Request-Timeout-Ms": "50"}
    hasty = begin(client, *(post(client, [f"hasty{place}-0", f"hasty{place}-1"], short) for place in range(2)))
    assert [answer.status_code for answer in hasty()] == [504] * 2
    patient = begin(client, post(client, ["patient"]))
    wait_until(lambda: len(client.state.writer._jobs) == 1)
    gate.open.set()
    assert [answer.status_code for answer in (*first(), *patient())] == [200] * 2
    assert not is_there(client, "hasty0-0")


def test_a_write_whose_last_sync_fails_is_not_said_to_have_failed(
    directory: IndexDirectory, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(directory, admin_key=ADMIN, reload_seconds=0.01)
    publish = IndexDirectory.publish

    def not_synced(*arguments: Any, **options: Any) -> None:
        publish(*arguments, **options)
        raise NotSyncedError("it is live, but has not reached the disk")

    with monkeypatch.context() as patch:
        patch.setattr(IndexDirectory, "publish", not_synced)
        (answer,) = begin(client, post(client, ["new"]))()
    assert (answer.status_code, answer.json()["code"]) == (503, "write_failed")
    assert "it has been made, and whether it outlives a power cut is not known" in answer.json()["detail"]
    wait_until(lambda: is_there(client, "new"))
    assert directory.verify().documents == BASE + 1


def raw(port: int, path: str, body: Any) -> socket.socket:
    """A connection on which a request has been sent and no answer been read."""
    content = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
    head += [f"{name}: {value}" for name, value in AUTHORISED.items()]
    made = socket.create_connection(("127.0.0.1", port), PATIENCE)
    made.sendall("\r\n".join([*head, "", ""]).encode() + content)
    return made


def test_what_a_client_does_not_wait_for_is_dropped_or_written_whole(
    directory: IndexDirectory, listen: Callable[[FastAPI], int], gate: Gate
) -> None:
    app = create_app(ServiceSettings(index=directory.path, admin_key=SecretStr(ADMIN)))
    port = listen(app)
    writer = app.state.gaussearch.writer
    gate.close()
    begun = raw(port, "/v1/documents", {"documents": [document(f"begun-{half}", 1) for half in range(2)]})
    wait_until(lambda: gate.waiting)
    queued = raw(port, "/v1/documents", {"documents": [document(f"queued-{half}", 2) for half in range(2)]})
    deleting = raw(port, "/v1/documents/delete", {"ids": ["d0", "d1"]})
    wait_until(lambda: len(writer._jobs) == 2)
    futures = [job.future for job in list(writer._jobs)]
    for each in (begun, queued, deleting):
        each.close()
    wait_until(lambda: all(future.cancelled() for future in futures))
    gate.open.set()
    with closing(Connection(port)) as connection:
        last = Write(3, "POST", "/v1/documents", ["last"], ["last"])
        connection.send(last)
        found = [connection.ask("GET", f"/v1/documents/{name}")[0] for name in ("begun-0", "begun-1", "d0", "d1")]
        assert found == [200] * 4
        assert connection.ask("GET", "/v1/documents/queued-0")[0] == 404
    assert directory.verify().documents == BASE + 3


def test_a_deadline_leaves_a_write_whole_or_not_there(directory: IndexDirectory, serve: Serve, gate: Gate) -> None:
    client = serve(directory, admin_key=ADMIN)
    requests = [
        post(client, [f"r{number}-0", f"r{number}-1"], {"X-Request-Timeout-Ms": str(1 + number % 25)}, number)
        for number in range(100)
    ]
    answers = begin(client, *requests)()
    assert {answer.status_code for answer in answers} <= {200, 504}
    assert 504 in {answer.status_code for answer in answers}
    assert all(answer.json()["code"] == "deadline_exceeded" for answer in answers if answer.status_code == 504)
    # Behind all of them.
    assert begin(client, post(client, ["last"]))()[0].status_code == 200
    for number, answer in enumerate(answers):
        halves = {is_there(client, f"r{number}-{half}") for half in range(2)}
        assert len(halves) == 1
        assert halves == {True} or answer.status_code == 504
    gate.close()
    begun = begin(client, post(client, ["begun"]))
    wait_until(lambda: gate.waiting)
    (late,) = begin(client, post(client, ["late"], {"X-Request-Timeout-Ms": "20"}))()
    assert late.status_code == 504
    gate.open.set()
    begun()
    assert begin(client, post(client, ["last"]))()[0].status_code == 200
    assert not is_there(client, "late")


def test_a_key_sent_twice_at_once_writes_once(directory: IndexDirectory, serve: Serve, gate: Gate) -> None:
    client = serve(directory, admin_key=ADMIN)
    for place in count():
        gate.close()
        first = begin(client, post(client, [f"first{place}"]))
        wait_until(lambda: gate.waiting)
        key = {"Idempotency-Key": f"k{place}"}
        # Together with each other, or the one while the other is being published.
        wanted = [post(client, [f"a{place}", f"b{place}"], key) for _ in range(3)]
        other = post(client, [f"c{place}"], key)
        twice = begin(client, *wanted, other)
        wait_until(lambda: len(client.state.writer._jobs) == 4)
        gate.open.set()
        first()
        *answers, mismatch = twice()
        assert [answer.status_code for answer in answers] == [200] * 3
        contents = [{**answer.json(), "took_ms": 0} for answer in answers]
        assert contents == [contents[0]] * 3
        assert contents[0]["replaced"] == 0
        assert sorted(answer.headers.get("Idempotency-Replayed", "") for answer in answers) == ["", "true", "true"]
        assert (mismatch.status_code, mismatch.json()["code"]) == (422, "idempotency_mismatch")
        assert not is_there(client, f"c{place}")
        if place == 3:
            break
    assert directory.verify().written == 4 * 3


def test_what_was_refused_with_a_key_is_not_made_behind_its_clients_back(
    directory: IndexDirectory, serve: Serve, gate: Gate
) -> None:
    client = serve(directory, admin_key=ADMIN)
    gate.close()
    first = begin(client, post(client, ["second"]))
    wait_until(lambda: gate.waiting)
    twice = begin(client, *(post(client, ["b"], {"Idempotency-Key": "l"}) for _ in range(2)))
    wait_until(lambda: len(client.state.writer._jobs) == 2)
    gate.errors += [OSError(28, "No space left on device"), OSError(28, "No space left on device")]
    gate.open.set()
    assert first()[0].status_code == 503
    assert [answer.status_code for answer in twice()] == [503, 503]
    assert begin(client, post(client, ["last"]))()[0].status_code == 200
    assert (is_there(client, "second"), is_there(client, "b")) == (False, False)
    (answer,) = begin(client, post(client, ["b"], {"Idempotency-Key": "l"}))()
    assert (answer.status_code, "Idempotency-Replayed" in answer.headers) == (200, False)


def test_the_last_of_many_writers_wins_everywhere(directory: IndexDirectory, listen: Callable[[FastAPI], int]) -> None:
    port = listen(create_app(ServiceSettings(index=directory.path, admin_key=SecretStr(ADMIN))))
    history, numbers, lock = History(BASE), count(1), threading.Lock()
    ids = ["a", "b", "c"]

    def write(client: int) -> None:
        with closing(Connection(port)) as connection:
            for turn in range(8):
                with lock:
                    number = next(numbers)
                    deletes = (client + turn) % 5 == 4
                    path = "/v1/documents/delete" if deletes else "/v1/documents"
                    made = Write(number, "POST", path, ids, [])
                    history.writes.append(made)
                connection.send(made)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    # One request more, so that something is there.
    history.writes.append(Write(next(numbers), "POST", "/v1/documents", ids[:2], []))
    with closing(Connection(port)) as connection:
        connection.send(history.writes[-1])
        there: dict[str, int] = {}
        for name in ids:
            status, found, _ = connection.ask("GET", f"/v1/documents/{name}")
            if status == 200:
                there[name] = found["payload"]["request"]
        query = json.dumps({"mean": [0.0] * K, "variance": [1.0] * K, "top_k": BASE + 3})
        found = {each["id"]: each for each in connection.ask("POST", "/v1/search", query)[1]["results"]}
    assert {name: each["payload"]["request"] for name, each in found.items() if name in ids} == there
    assert len(found) == BASE + len(there)
    for name, number in there.items():
        one = 1.0 + number
        assert found[name]["score"] == pytest.approx(-0.5 * K * (math.log(one) + 1 / one - 1 + number**2 / one))
    assert history.check(directory) == set()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_VECTOR = st.lists(st.floats(width=32) | st.floats(), min_size=K, max_size=K) | _JSON
_DOCUMENT = st.fixed_dictionaries(
    {"id": st.text(max_size=4) | _JSON, "mean": st.just([0.5] * K) | _VECTOR},
    optional={
        "variance": st.just([1.0] * K) | _VECTOR,
        "logvar": _VECTOR,
        "payload": st.dictionaries(st.sampled_from(["request", "a", ""]) | st.text(max_size=3), _JSON, max_size=3),
    },
)
_BODIES: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("POST", "/v1/documents"): st.fixed_dictionaries({"documents": st.lists(_DOCUMENT, max_size=3)}) | _JSON,
    ("POST", "/v1/documents/delete"): st.fixed_dictionaries({"ids": st.lists(st.text(max_size=4)) | _JSON}) | _JSON,
    ("POST", "/v1/index/compact"): st.dictionaries(st.sampled_from(["retrain", "x"]), _JSON) | _JSON,
    ("DELETE", "/v1/documents/"): st.text(max_size=8),
}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[IndexDirectory, Client]]:
    folder = tmp_path_factory.mktemp("fuzzed")
    corpus = write_corpus(folder / "corpus.parquet", random_gaussians(BASE, K), request=[-1] * BASE)
    directory = IndexDirectory(folder / "index")
    build_index([corpus], directory, BuildOptions(device="cpu"))
    client = Client(create_app(ServiceSettings(index=directory.path, admin_key=SecretStr(ADMIN), reload_seconds=3600)))
    wait_until(lambda: client.state.live.ready)
    yield directory, client
    client.close()


@pytest.mark.parametrize("route", _BODIES, ids=" ".join)
@given(data=st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_no_body_breaks_a_write(
    fuzzed: tuple[IndexDirectory, Client], route: tuple[str, str], data: st.DataObject
) -> None:
    directory, client = fuzzed
    method, path = route
    body = data.draw(_BODIES[route])
    cut = data.draw(st.none() | st.integers(0, 40))
    key = data.draw(st.none() | st.sampled_from(["k1", "k2", "a b", "", "x" * 256]))
    headers = AUTHORISED if key is None else {**AUTHORISED, "Idempotency-Key": key}
    before = directory.current_token()
    if method == "DELETE":
        answer = client.request(method, path + quote(body, safe=""), headers=headers)
    else:
        content = json.dumps(body).encode()[:cut]
        answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code < 500, answer.text
    wait_until(lambda: not client.state.writer.compacting)
    assert client.state.writer.compaction_error is None
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"code", "detail", "status"} <= answer.json().keys()
        if answer.json()["code"] != "document_not_found":
            assert directory.current_token() == before
    else:
        directory.verify()
    assert client.get("/livez").status_code == 200
    assert client.post("/v1/search", {"mean": [0.0] * K, "variance": [1.0] * K}).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_writing_thread_is_told_and_searches_go_on(
    directory: IndexDirectory, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(directory, admin_key=ADMIN)
    writer = client.state.writer
    assert client.get("/livez").status_code == 200

    taken = threading.Event()

    def end(_: Any) -> None:
        taken.set()
        wait_until(lambda: writer._jobs)
        raise SystemExit

    monkeypatch.setattr(writer._committer, "commit", end)
    begun = begin(client, post(client, ["a"], {"X-Request-Timeout-Ms": "50"}))
    assert taken.wait(PATIENCE)
    assert client.post("/v1/index/compact", {}, headers=AUTHORISED).status_code == 202
    assert client.get("/v1/index").json()["compaction"]["running"]
    (waiting,) = begin(client, post(client, ["b"]))()
    assert (waiting.status_code, waiting.json()["code"]) == (503, "not_ready")
    assert "writing thread has died" in waiting.json()["detail"]
    # Of what it had begun nobody knows.
    (answer,) = begun()
    assert answer.status_code == 504
    wait_until(lambda: client.get("/livez").status_code == 503)
    assert "writing thread has died" in client.get("/livez").json()["detail"]
    compaction = client.get("/v1/index").json()["compaction"]
    assert compaction == {"running": False, "last_error": "the writing thread ended before it was done"}
    (answer,) = begin(client, post(client, ["a"]))()
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    answer = client.post("/v1/index/compact", {}, headers=AUTHORISED)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert client.post("/v1/search", {"mean": [0.0] * K, "variance": [1.0] * K}).status_code == 200


def test_a_service_that_is_told_to_end_ends_its_writes(directory: IndexDirectory, tmp_path: Path) -> None:
    server = Server(tmp_path / "log", "--index", str(directory.path), "--port", "0", GAUSSEARCH_ADMIN_KEY=ADMIN)
    port = int(server.url.rsplit(":", 1)[1])
    history, numbers, lock = History(BASE), count(1), threading.Lock()
    refused: set[int] = set()

    def write(_: int) -> None:
        with closing(Connection(port)) as connection:
            while True:
                with lock:
                    number = next(numbers)
                    ids = [f"r{number}-{half}" for half in range(2)]
                    made = Write(number, "POST", "/v1/documents", ids, ids)
                    history.writes.append(made)
                try:
                    made.began = time.monotonic()
                    status, content, _ = connection.ask("POST", made.path, made.body)
                except NoAnswer:
                    return
                if status != 200:
                    assert (status, content["code"]) == (503, "not_ready")
                    refused.add(number)
                    return
                made.acknowledged = time.monotonic()

    try:
        with ThreadPoolExecutor(12) as pool:
            ended = [pool.submit(write, client) for client in range(12)]
            wait_until(lambda: sum(each.acknowledged < math.inf for each in history.writes) > 30)
            server.process.send_signal(signal.SIGTERM)
            for each in ended:
                each.result(PATIENCE)
        assert server.process.wait(PATIENCE) == 0
    finally:
        server.process.kill()
        server.process.wait(PATIENCE)
    made = history.check(directory)
    assert not made & refused
