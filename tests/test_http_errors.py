"""Whatever a client gets wrong is answered as a problem document that says what, and is never a 5xx."""

import asyncio
import base64
import json
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import CorruptIndexError, InvalidOptionError
from service.problems import PROBLEMS
from tests.conftest import Serve
from tests.serving import Client, GatedSearcher, Served

GOOD = {"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1]}
TIMEOUT = "X-Request-Timeout-Ms"
SHORT = base64.b64encode(b"\0" * 16).decode()


@dataclass(frozen=True)
class Case:
    """A request to POST /v1/search, unless it says otherwise, and the problem it must be answered with."""

    name: str
    body: Any
    code: str
    detail: str
    status: int = 422
    path: str = "/v1/search"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def of(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}


def raw(mean: str = "[0, 0, 0, 0, 0]", variance: str = "[1, 1, 1, 1, 1]") -> bytes:
    return f'{{"mean": {mean}, "variance": {variance}}}'.encode()


BATCH = "/v1/search/batch"
CASES = [
    # Bodies
    Case("not json", b"{", "malformed_json", "line 1", status=400),
    Case("a lone surrogate", rb'{"mean": "\ud800"}', "malformed_json", "column", status=400),
    Case("not utf-8", b'{"mean": "\xff"}', "malformed_json", "column", status=400),
    Case("nested without end", b"[" * 100_000, "malformed_json", "recursion", status=400),
    Case("not an object", [], "invalid_request", "body"),
    Case("null", b"null", "invalid_request", "body"),
    Case("no body", b"", "invalid_request", "mean"),
    Case("no mean", of(mean=...), "invalid_request", "mean"),
    Case("no variance", of(variance=...), "invalid_request", "either variance or logvar"),
    Case("both variances", of(logvar=[0] * 5), "invalid_request", "either variance or logvar"),
    Case("unknown field", of(topk=3), "invalid_request", "topk: there is no such field"),
    Case("unknown field of a query", {"queries": [of(top_k=3)]}, "invalid_request", "queries.0.top_k", path=BATCH),
    Case("text for numbers", of(mean=["0"] * 5), "invalid_request", "mean.0"),
    Case("booleans for numbers", of(variance=[1, 1, True, 1, 1]), "invalid_request", "variance.2"),
    Case("a number for a vector", of(mean=3), "invalid_request", "mean"),
    Case("a nested vector", of(mean=[[0] * 5]), "invalid_request", "mean.0"),
    Case("no queries", {"queries": []}, "invalid_request", "queries", path=BATCH),
    Case("queries missing", {}, "invalid_request", "queries", path=BATCH),
    Case("more mistakes than anyone reads", {f"f{i}": 0 for i in range(10_000)}, "invalid_request", "1000"),
    Case("compressed", b"\x1f\x8b", "unsupported_encoding", "gzip", status=415, headers={"content-encoding": "gzip"}),
    # Options
    Case("top_k of 0", of(top_k=0), "invalid_request", "top_k"),
    Case("top_k as text", of(top_k="3"), "invalid_request", "top_k"),
    Case("candidates of 0", of(candidates=0), "invalid_request", "candidates"),
    Case("exact as a number", of(exact=1), "invalid_request", "exact"),
    Case("min_score not a number", raw(variance='[1, 1, 1, 1, 1], "min_score": NaN'), "invalid_request", "min_score"),
    Case("top_k above its limit", of(top_k=1001), "limit_exceeded", "top_k is 1001; the limit is 1000"),
    Case("top_k of 2**31", of(top_k=2**31), "limit_exceeded", "top_k is 2147483648; the limit is 1000"),
    Case("top_k beyond any integer", of(top_k=10**400), "limit_exceeded", "the limit is 1000"),
    Case("candidates above the limit", of(candidates=10_001), "limit_exceeded", "candidates is 10001"),
    Case("257 queries", {"queries": [GOOD] * 257}, "limit_exceeded", "queries is 257; the limit is 256", path=BATCH),
    # Gaussians
    Case("too short", of(mean=[0] * 4), "invalid_gaussian", "mean has 4 numbers; the index holds k = 5"),
    Case("too long", of(variance=[1] * 6), "invalid_gaussian", "variance has 6 numbers"),
    Case("empty", of(mean=[]), "invalid_gaussian", "mean has 0 numbers"),
    Case("empty base64", of(variance=""), "invalid_gaussian", "variance"),
    Case("base64 of 4 numbers", of(mean=SHORT), "invalid_gaussian", "mean has 4 numbers"),
    Case("not base64", of(mean="*" * 8), "invalid_gaussian", "mean is not the base64"),
    Case("base64 that is not ASCII", of(mean="é" * 8), "invalid_gaussian", "mean is not the base64"),
    Case("6 bytes of base64", of(mean="AAAAAAAA"), "invalid_gaussian", "mean is not the base64"),
    Case("mean of NaN", raw(mean="[0, NaN, 0, 0, 0]"), "invalid_gaussian", "row 0, component 1: mean is nan"),
    Case("mean of infinity", raw(mean="[0, 0, 0, 0, -Infinity]"), "invalid_gaussian", "component 4: mean is -inf"),
    Case("mean of 1e400", raw(mean="[1e400, 0, 0, 0, 0]"), "invalid_gaussian", "component 0: mean is inf"),
    Case("variance of NaN", raw(variance="[1, 1, NaN, 1, 1]"), "invalid_gaussian", "component 2: variance is nan"),
    Case("variance of infinity", raw(variance="[1, 1, 1, Infinity, 1]"), "invalid_gaussian", "component 3: variance"),
    Case("variance of 0", of(variance=[1, 0, 1, 1, 1]), "invalid_gaussian", "component 1: variance is 0.0"),
    Case("variance of -0", of(variance=[1, -0.0, 1, 1, 1]), "invalid_gaussian", "component 1: variance"),
    Case("variance below 0", of(variance=[1, 1, 1, 1, -2]), "invalid_gaussian", "component 4: variance is -2.0"),
    Case("denormal of float64", of(variance=[1, 5e-324, 1, 1, 1]), "invalid_gaussian", "component 1: variance"),
    Case("beyond float32", of(mean=[0, 0, 1e39, 0, 0]), "invalid_gaussian", "component 2: mean"),
    Case(
        "logvar too large", of(variance=..., logvar=[0, 0, 800, 0, 0]), "invalid_gaussian", "component 2: logvar is 8"
    ),
    Case("logvar too small", of(variance=..., logvar=[0, -800, 0, 0, 0]), "invalid_gaussian", "component 1: logvar"),
    Case(
        "second query", {"queries": [GOOD, of(variance=[1, 1, 0, 1, 1])]}, "invalid_gaussian", "row 1, com", path=BATCH
    ),
    # Headers and paths
    *(
        Case(f"timeout of {value!r}", GOOD, "invalid_request", "X-Request-Timeout-Ms is", headers={TIMEOUT: value})
        for value in ("", "soon", "0", "-1", "nan", "-inf")
    ),
    *(
        Case(f"timeout of {value}", GOOD, "limit_exceeded", "is 60000", headers={TIMEOUT: value})
        for value in ("60001", "1e9", "inf")
    ),
    Case("no time at all", GOOD, "deadline_exceeded", "deadline", status=504, headers={TIMEOUT: "1e-9"}),
    Case("unknown path", None, "not_found", "/v1/nothing", status=404, path="/v1/nothing"),
    Case("final slash", GOOD, "not_found", "/v1/search/", status=404, path="/v1/search/"),
    Case("wrong method", None, "method_not_allowed", "does not take PUT", status=405, method="PUT"),
    Case("unknown id", None, "document_not_found", "'nobody'", 404, "/v1/documents/nobody", "GET"),
]
SEEN_ELSEWHERE = {
    "unauthorized": "test_http_keys",
    "writes_disabled": "test_keys",
    "forbidden": "test_keys",
    "write_failed": "test_http_writes",
    "idempotency_mismatch": "test_http_writes",
    "compaction_running": "test_http_writes",
    "malformed_http": "test_connections",
    "head_too_large": "test_connections",
    "head_timeout": "test_connections",
    "body_too_large": "below",
    "overloaded": "test_batching",
    "shard_unavailable": "test_cluster_searching",
    "no_model": "test_http_text",
    "not_ready": "below, and test_live_index",
    "internal_error": "below",
    "invalid_option": "below; the request's own limits come first, so only the searcher's are left",
}


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document, whose form is checked."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    document: dict[str, Any] = response.json()
    assert (document["status"], document["code"], document["type"]) == (status, code, "about:blank")
    assert document["title"]
    assert document["request_id"] == response.headers["x-request-id"]
    assert set(document) <= {"type", "title", "status", "code", "detail", "request_id", "errors"}
    return document


def content(body: Any) -> dict[str, Any]:
    return {"content": body} if isinstance(body, bytes) else {"json": body}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_named(client: Client, case: Case) -> None:
    response = client.request(case.method, case.path, headers=case.headers, **content(case.body))
    document = problem(response, case.status, case.code)
    assert case.detail in document["detail"]
    for error in document.get("errors", []):
        assert error["field"]
        assert error["message"]
    assert len(response.content) < 2000


def test_every_code_is_shown_by_a_request() -> None:
    assert {case.code for case in CASES} | set(SEEN_ELSEWHERE) == {kind.code for kind in PROBLEMS}


def test_each_field_error_is_listed(client: Client) -> None:
    document = client.post("/v1/search", {"mean": [0], "top_k": 0, "explain": "yes", "more": 1}).json()
    assert {error["field"] for error in document["errors"]} == {"top_k", "explain", "more"}


def test_a_wrong_method_says_which_are_right(client: Client) -> None:
    assert client.request("PUT", "/v1/search").headers["allow"] == "POST"


def test_a_million_wrong_numbers_are_one_error(client: Client) -> None:
    body = b'{"mean": [' + b",".join([b"{}"] * 1_000_000) + b'], "variance": [1]}'
    response = client.post("/v1/search", content=body)
    assert len(problem(response, 422, "invalid_request")["errors"]) <= 2


def test_denormal_of_float32_is_a_variance_like_any_other(client: Client) -> None:
    assert client.post("/v1/search", of(variance=[1e-45, 1, 1, 1, 1])).status_code == 200


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_a_body_above_the_limit_is_refused_and_one_at_the_limit_is_not(
    served: Served, serve: Serve, declared: bool
) -> None:
    body = json.dumps(GOOD).encode()
    client = serve(served.directory, max_body_bytes=len(body))

    async def in_parts(data: bytes) -> Any:
        for start in range(0, len(data), 7):
            yield data[start : start + 7]

    def send(data: bytes) -> Any:
        return client.post("/v1/search", content=data if declared else in_parts(data))

    assert send(body).status_code == 200
    document = problem(send(body + b" "), 413, "body_too_large")
    assert str(len(body)) in document["detail"]


def test_a_body_that_never_ends_meets_the_deadline(client: Client) -> None:
    async def stalls() -> Any:
        yield b'{"mean": '
        await asyncio.sleep(3600)

    response = client.post("/v1/search", content=stalls(), headers={TIMEOUT: "50"})
    assert "before the body had arrived" in problem(response, 504, "deadline_exceeded")["detail"]


def test_content_length_that_is_no_number_is_ignored(client: Client) -> None:
    headers = [(b"content-length", b"\xb2"), (b"content-type", b"application/json")]
    assert client.request("POST", "/v1/search", content=json.dumps(GOOD).encode(), headers=headers).status_code == 200


INSIDE = "/var/lib/secret.faiss"


@pytest.mark.parametrize("error", [CorruptIndexError(INSIDE), ValueError(INSIDE), MemoryError(INSIDE)])
def test_what_fails_inside_is_logged_and_not_told(
    gated: GatedSearcher, served: Served, serve: Serve, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    client = serve(served.directory)
    gated.error = error
    with caplog.at_level(logging.ERROR, "gaussearch"):
        response = client.post("/v1/search", GOOD)
    document = problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert type(error).__name__ not in response.text
    assert INSIDE in caplog.text
    assert document["request_id"] in caplog.text
    gated.error = None
    assert client.post("/v1/search", GOOD).status_code == 200


def test_a_bug_in_a_route_is_answered_like_any_failure(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError(INSIDE)

    monkeypatch.setattr("service.queries.gaussians_of", broken)
    with caplog.at_level(logging.ERROR, "gaussearch"):
        response = client.post("/v1/search", GOOD)
    document = problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert any(document["request_id"] in line and INSIDE in line for line in caplog.messages)


def test_an_option_that_only_the_searcher_refuses(gated: GatedSearcher, served: Served, serve: Serve) -> None:
    client = serve(served.directory)
    gated.error = InvalidOptionError("candidates is 3; this index takes 4 or more")
    assert "takes 4 or more" in problem(client.post("/v1/search", GOOD), 422, "invalid_option")["detail"]


def test_a_service_that_has_stopped_says_so(served: Served, serve: Serve) -> None:
    client = serve(served.directory)
    client.state.batcher.close()
    problem(client.post("/v1/search", GOOD), 503, "not_ready")
    problem(client.get("/readyz"), 503, "not_ready")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = st.lists(st.floats(width=64), min_size=4, max_size=6) | st.lists(st.floats(0.1, 2), min_size=5, max_size=5)
NAMES = [
    "mean",
    "variance",
    "logvar",
    "top_k",
    "exact",
    "candidates",
    "min_score",
    "with_payload",
    "explain",
    "queries",
]
NEARLY = st.dictionaries(
    st.sampled_from(NAMES), NUMBERS | JSON | st.integers(-1, 70) | st.lists(st.fixed_dictionaries({"mean": NUMBERS}))
)
PLAUSIBLE = st.fixed_dictionaries(
    {"mean": NUMBERS, "variance": NUMBERS},
    optional={"top_k": st.integers(1, 2000), "min_score": st.floats(), "explain": st.booleans()},
)


@settings(max_examples=150)
@given(
    path=st.sampled_from(["/v1/search", BATCH, "/v1/documents/d7/similar"]),
    body=JSON | NEARLY | PLAUSIBLE | PLAUSIBLE.map(lambda query: {"queries": [query]}),
)
def test_no_json_makes_the_service_fail(client: Client, path: str, body: Any) -> None:
    response = client.post(path, content=json.dumps(body).encode())
    if response.status_code != 200:
        assert response.status_code in (400, 422), response.text
        problem(response, response.status_code, response.json()["code"])
    json.loads(response.content, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@settings(max_examples=100)
@given(body=st.binary(max_size=200))
def test_no_bytes_make_the_service_fail(client: Client, body: bytes) -> None:
    assert client.post("/v1/search", content=body).status_code in (400, 422)
