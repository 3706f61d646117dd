"""Clients that are slow, go away or never read, many at a time and over sockets: they get what they deserve, their work
is dropped, and everyone else is served meanwhile.
"""

import contextlib
import json
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from index import IndexDirectory, build_index
from service import answers
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import random_gaussians, write_corpus
from tests.serving import GatedSearcher, Served, listening, wait_until
from tests.sockets import BODY, SEARCH, Peer, ask, chunked, request

MANY = 40
TIMEOUT = "X-Request-Timeout-Ms: {}"


@pytest.fixture
def app(served: Served) -> FastAPI:
    return create_app(ServiceSettings(index=served.directory.path))


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    with listening(app) as port:
        yield port


@contextlib.contextmanager
def peers(port: int, count: int = MANY) -> Iterator[list[Peer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Peer(port)) for _ in range(count)]


def number(app: FastAPI, name: str, **labels: str) -> float:
    return app.state.gaussearch.metrics.registry.get_sample_value(name, labels) or 0.0


def answered(app: FastAPI, status: int, route: str = "/v1/search") -> float:
    return number(app, "gaussearch_requests_total", route=route, method="POST", status=str(status))


def waiting(app: FastAPI, rows: int) -> None:
    wait_until(lambda: number(app, "gaussearch_queue_rows") == rows)


def rejected(app: FastAPI, reason: str) -> float:
    return number(app, "gaussearch_rejected_total", reason=reason)


@pytest.mark.parametrize("form", ["declared", "chunked"])
def test_bodies_that_trickle_end_at_their_deadline_and_keep_nobody_waiting(app: FastAPI, port: int, form: str) -> None:
    length = f"Content-Length: {len(BODY)}" if form == "declared" else "Transfer-Encoding: chunked"
    head = request(b"", TIMEOUT.format(600), length, declared=False)
    with peers(port) as slow:
        for peer in slow:
            peer.write(head)
        for byte in BODY[:10]:
            part = bytes([byte])
            for peer in slow:
                peer.write(part if form == "declared" else chunked(part))
            assert ask(port).status == 200
        for peer in slow:
            answer = peer.read()
            assert (answer.status, answer.problem()) == (504, "deadline_exceeded")
    assert answered(app, 504) == MANY
    assert number(app, "gaussearch_batch_rows_sum") == 10


def test_heads_that_trickle_keep_nobody_waiting(app: FastAPI, port: int) -> None:
    data = request(BODY, "X-Padding: " + "x" * 100)
    with peers(port) as slow:
        for start in range(0, 60, 3):
            for peer in slow:
                peer.write(data[start : start + 3])
            assert ask(port).status == 200
        # Nothing has begun for them; whoever ends it in time is served like anyone else.
        assert number(app, "gaussearch_batch_rows_sum") == 20
        slow[0].write(data[60:])
        assert slow[0].read().status == 200


def test_connections_that_say_nothing_keep_nobody_waiting(port: int) -> None:
    with peers(port, 5 * MANY):
        assert [ask(port).status for _ in range(20)] == [200] * 20


@pytest.fixture(scope="module")
def verbose(tmp_path_factory: pytest.TempPathFactory) -> IndexDirectory:
    """60 documents of 100 kB: more than all buffers between the two ends of a connection hold."""
    folder = tmp_path_factory.mktemp("verbose")
    corpus = write_corpus(folder / "corpus.parquet", random_gaussians(60, 5, seed=11), text=["x" * 100_000] * 60)
    directory = IndexDirectory(folder / "verbose")
    build_index([corpus], directory)
    return directory


def test_whoever_never_reads_has_one_answer_made_and_keeps_nobody_waiting(verbose: IndexDirectory) -> None:
    app = create_app(ServiceSettings(index=verbose.path))
    body = json.dumps({**SEARCH, "top_k": 60, "with_payload": True}).encode()
    with listening(app) as port, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Peer(port, receive_buffer=4096)) for _ in range(10)]
        for peer in silent:
            peer.write(request(body) * 20)
        wait_until(lambda: answered(app, 200) == len(silent))
        for _ in range(10):
            assert ask(port).status == 200
        # Of their 200 requests one each has been answered, and one more is found and waits to be sent.
        assert answered(app, 200) == len(silent) + 10
        assert number(app, "gaussearch_batch_rows_sum") <= 2 * len(silent) + 10
        # And whoever then reads misses nothing.
        first = silent[0]
        found = [len(first.read().json()["results"]) for _ in range(20)]
    assert found == [60] * 20


def test_whoever_reads_slowly_gets_everything(verbose: IndexDirectory) -> None:
    body = json.dumps({**SEARCH, "top_k": 60, "with_payload": True}).encode()
    with listening(create_app(ServiceSettings(index=verbose.path))) as port:
        expected = ask(port, request(body)).json()["results"]
        with Peer(port, receive_buffer=4096) as peer:
            peer.write(request(body, "Connection: close"))
            received = bytearray()
            while part := peer.socket.recv(1000 if len(received) < 20_000 else 1 << 20):
                received += part
                if len(received) < 20_000:
                    assert ask(port).status == 200
    head, _, content = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(content)["results"] == expected


@pytest.mark.parametrize("pipelined", [1, 3])
def test_of_clients_that_go_away_nothing_is_searched(
    gated: GatedSearcher, app: FastAPI, port: int, pipelined: int
) -> None:
    """However many requests they have sent: of those in one write only the first has begun, and it is dropped too."""
    gated.gate.clear()
    with peers(port) as leaving, Peer(port) as patient:
        patient.write(request())
        wait_until(lambda: gated.rows == [1])
        for peer in leaving:
            peer.write(request() * pipelined)
        waiting(app, MANY)
        for peer in leaving:
            peer.close()
        wait_until(lambda: answered(app, 499) == MANY)
        patient.write(request())
        gated.gate.set()
        assert [patient.read().status for _ in range(2)] == [200, 200]
    assert gated.rows == [1, 1]
    wait_until(lambda: rejected(app, "cancelled") == MANY)
    assert number(app, "gaussearch_queue_rows") == 0


def test_clients_that_go_away_within_their_bodies_leave_nothing(app: FastAPI, port: int) -> None:
    with peers(port) as leaving:
        for peer in leaving:
            peer.write(request()[:-5])
        assert ask(port).status == 200
    wait_until(lambda: answered(app, 499) == MANY)
    assert number(app, "gaussearch_batch_rows_sum") == 1
    assert ask(port).status == 200


def test_clients_that_go_away_within_their_heads_leave_nothing(app: FastAPI, port: int) -> None:
    with peers(port) as leaving:
        for place, peer in enumerate(leaving):
            peer.write(request()[:place])
    assert ask(port).status == 200
    counted = [sample for family in app.state.gaussearch.metrics.requests.collect() for sample in family.samples]
    assert [(sample.labels["status"], sample.value) for sample in counted] == [("200", 1)]


def test_deadlines_of_a_millisecond_in_mass(gated: GatedSearcher, app: FastAPI, port: int) -> None:
    gated.gate.clear()
    with Peer(port) as patient, peers(port) as hasty:
        patient.write(request())
        wait_until(lambda: gated.rows == [1])
        for _ in range(5):
            for peer in hasty:
                peer.write(request(BODY, TIMEOUT.format(1)))
            for peer in hasty:
                answer = peer.read()
                assert (answer.status, answer.problem()) == (504, "deadline_exceeded")
        gated.gate.set()
        assert patient.read().status == 200
    # None of them was searched, and none of them is in anyone's way.
    assert ask(port).status == 200
    assert gated.rows == [1, 1]
    assert answered(app, 504) == 5 * MANY


def test_results_are_not_put_together_for_whom_they_come_too_late(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explanations of many documents take longer than the search; their time counts too."""
    made: list[int] = []
    results = answers._results

    def slowly(*arguments: object) -> answers.Results:
        made.append(1)
        wait_until(lambda: answered(late, 504, "/v1/search/batch") == 1)
        return results(*arguments)  # type: ignore[arg-type]

    late = create_app(ServiceSettings(index=served.directory.path))
    monkeypatch.setattr(answers, "_results", slowly)
    body = json.dumps({"queries": [{name: SEARCH[name] for name in ("mean", "variance")}] * 8, "top_k": 60}).encode()
    with listening(late) as port:
        answer = ask(port, request(body, TIMEOUT.format(200), path="/v1/search/batch"))
    assert (answer.status, answer.problem()) == (504, "deadline_exceeded")
    assert "put together" in answer.json()["detail"]
    # Those of the first query were under way; nobody waits for those of the others.
    assert made == [1]
