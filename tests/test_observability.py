"""What an operator sees: request ids, log lines and metrics."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest

from service.logs import configure_logging
from tests.conftest import Serve
from tests.serving import Client, Served

SEARCH = {"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1]}


@pytest.fixture
def fresh(served: Served, serve: Serve) -> Client:
    """A client whose service has counted nothing yet."""
    return serve(served.directory)


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """The lines that the service has logged to standard error since the last call; logging is restored afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: [line for line in capsys.readouterr().err.splitlines() if "httpx" not in line]
    root.handlers[:] = handlers
    root.setLevel(level)


def answered(client: Client, route: str, status: int, method: str = "POST") -> float:
    return client.metric("gaussearch_requests_total", route=route, method=method, status=str(status))


@pytest.mark.parametrize("given", ["abc", "A.b_c-9", "x" * 64])
def test_a_request_id_is_kept(client: Client, given: str) -> None:
    for response in (
        client.post("/v1/search", SEARCH, headers={"X-Request-Id": given}),
        client.get("/nowhere", headers={"X-Request-Id": given}),
    ):
        assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", [b"", b"x" * 65, b"a b", b"a\tb", b"\xe9", b'"}', b"a;b"])
def test_a_request_id_that_could_forge_a_log_line_is_replaced(client: Client, given: bytes) -> None:
    made = client.post("/v1/search", SEARCH, headers=[(b"x-request-id", given)]).headers["x-request-id"]
    assert made.encode() != given
    assert len(made) == 16


def test_every_request_gets_an_id_of_its_own(client: Client) -> None:
    assert len({client.get("/livez").headers["x-request-id"] for _ in range(20)}) == 20


def test_a_request_is_one_json_line(fresh: Client, log: Callable[[], list[str]]) -> None:
    configure_logging("info", "json")
    fresh.post("/v1/search", SEARCH, headers={"X-Request-Id": "mine"})
    fresh.get("/v1/documents/no%0Abody")
    found, missing = map(json.loads, log())
    assert {
        "level": "INFO",
        "logger": "gaussearch.request",
        "request_id": "mine",
        "status": 200,
    }.items() <= found.items()
    assert found["message"] == "POST /v1/search 200"
    assert 0 < found["milliseconds"] < 60_000
    assert found["time"]
    assert (missing["status"], missing["message"]) == (404, "GET /v1/documents/no%0Abody 404")


def test_probes_are_logged_only_at_debug(fresh: Client, log: Callable[[], list[str]]) -> None:
    configure_logging("info", "json")
    for path in ("/livez", "/readyz", "/metrics"):
        fresh.get(path)
    assert log() == []
    configure_logging("debug", "json")
    fresh.get("/livez")
    found = [json.loads(line) for line in log()]
    assert [line["message"] for line in found if line["logger"] == "gaussearch.request"] == ["GET /livez 200"]


def test_a_line_break_in_a_path_starts_no_line_of_a_text_log(fresh: Client, log: Callable[[], list[str]]) -> None:
    configure_logging("info", "text")
    fresh.get("/v1/documents/x%0A2026-01-01 00:00:00 CRITICAL forged")
    (line,) = log()
    assert "gaussearch.request" in line


def test_an_error_is_logged_with_its_traceback_in_one_json_line(log: Callable[[], list[str]]) -> None:
    configure_logging("info", "json")
    try:
        raise ValueError("first line\nsecond line")
    except ValueError:
        logging.getLogger("gaussearch.test").exception("it failed", extra={"color_message": "it failed, coloured"})
    (line,) = map(json.loads, log())
    assert "second line" in line["exc_info"]
    assert "color_message" not in line


def test_requests_are_counted_by_template_and_status(fresh: Client) -> None:
    fresh.post("/v1/search", SEARCH)
    fresh.post("/v1/search", SEARCH)
    fresh.post("/v1/search", {})
    fresh.post("/v1/search/batch", {"queries": [SEARCH] * 3})
    fresh.get("/v1/documents/d7")
    fresh.get("/v1/documents/wn/00001740")
    fresh.get("/v1/documents/nobody")
    fresh.post("/v1/documents/d7/similar")
    fresh.get("/v1/index")
    fresh.get("/some/path")
    fresh.get("/another/path")
    fresh.request("PUT", "/v1/search")
    assert answered(fresh, "/v1/search", 200) == 2
    assert answered(fresh, "/v1/search", 422) == 1
    assert answered(fresh, "/v1/search/batch", 200) == 1
    assert answered(fresh, "/v1/documents/{document_id:path}", 200, "GET") == 2
    assert answered(fresh, "/v1/documents/{document_id:path}", 404, "GET") == 1
    assert answered(fresh, "/v1/documents/{document_id:path}/similar", 200) == 1
    assert answered(fresh, "/v1/index", 200, "GET") == 1
    assert answered(fresh, "unmatched", 404, "GET") == 2
    text = fresh.get("/metrics").text
    assert not any(path in text for path in ("d7", "nobody", "00001740", "/some/path"))
    assert fresh.metric("gaussearch_request_seconds_count", route="/v1/search") >= 3
    assert fresh.metric("gaussearch_request_seconds_sum", route="/v1/search") > 0
    # Two single searches, a batch of three, and the similar documents of one.
    assert fresh.metric("gaussearch_batch_rows_sum") == 6
    assert fresh.metric("gaussearch_batch_rows_count") == 4
    assert fresh.metric("gaussearch_search_seconds_count") == 4
    assert fresh.metric("gaussearch_scanned_documents_total") == 6 * 60


def test_every_metric_is_there_from_the_start(fresh: Client) -> None:
    response = fresh.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    kinds = dict(line.split()[2:4] for line in response.text.splitlines() if line.startswith("# TYPE gaussearch_"))
    assert kinds == {
        "gaussearch_requests_total": "counter",
        "gaussearch_request_seconds": "histogram",
        "gaussearch_rejected_total": "counter",
        "gaussearch_partial_answers_total": "counter",
        "gaussearch_batch_rows": "histogram",
        "gaussearch_search_seconds": "histogram",
        "gaussearch_encoded_texts": "histogram",
        "gaussearch_encode_seconds": "histogram",
        "gaussearch_scanned_documents_total": "counter",
        "gaussearch_queue_rows": "gauge",
        "gaussearch_index_generation": "gauge",
        "gaussearch_index_documents": "gauge",
        "gaussearch_written_documents_total": "counter",
        "gaussearch_write_seconds": "histogram",
        "gaussearch_writes_together": "histogram",
        "gaussearch_index_reloads_total": "counter",
        "gaussearch_index_reload_failures_total": "counter",
    }
    assert fresh.metric("gaussearch_index_generation") == 1
    assert fresh.metric("gaussearch_index_documents") == 60
    assert fresh.metric("process_resident_memory_bytes") > 0


def test_two_applications_do_not_share_a_number(served: Served, serve: Serve) -> None:
    one, two = serve(served.directory), serve(served.directory)
    one.post("/v1/search", SEARCH)
    assert (answered(one, "/v1/search", 200), answered(two, "/v1/search", 200)) == (1, 0)
