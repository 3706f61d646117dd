"""Headers of responses: what every one carries, and what scripts of other web pages are allowed, if anything."""

from typing import Any

import pytest

from service.settings import ServiceSettings
from tests.conftest import Serve
from tests.serving import Client, Served

SEARCH = {"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1]}
PAGE, OTHER_PAGE = "https://search.example", "http://localhost:3000"
SENT = ["Authorization", "X-API-Key", "Content-Type", "X-Request-Id", "X-Request-Timeout-Ms", "Idempotency-Key"]
REQUESTS: list[tuple[str, str, Any, int]] = [
    ("POST", "/v1/search", SEARCH, 200),
    ("POST", "/v1/search", {}, 422),
    ("GET", "/v1/documents/d7", None, 200),
    ("GET", "/v1/documents/nobody", None, 404),
    ("GET", "/v1/index", None, 200),
    ("GET", "/nowhere", None, 404),
    ("PUT", "/v1/search", None, 405),
    ("GET", "/livez", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/docs", None, 200),
    ("GET", "/openapi.json", None, 200),
]


def preflight(client: Client, origin: str, method: str = "POST", headers: list[str] | None = None) -> Any:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    if headers is not None:
        asked["Access-Control-Request-Headers"] = ", ".join(headers)
    return client.request("OPTIONS", "/v1/search", headers=asked)


def cors(response: Any) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize(("method", "path", "body", "status"), REQUESTS)
def test_no_answer_is_stored_or_taken_for_something_else(
    client: Client, method: str, path: str, body: Any, status: int
) -> None:
    response = client.request(method, path, json=body)
    assert response.status_code == status
    assert response.headers.get_list("cache-control") == ["no-store"]
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]
    assert "server" not in response.headers


def test_neither_is_what_answers_a_bug(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError

    monkeypatch.setattr("service.queries.gaussians_of", broken)
    response = client.post("/v1/search", SEARCH)
    assert response.status_code == 500
    assert (response.headers["cache-control"], response.headers["x-content-type-options"]) == ("no-store", "nosniff")


def test_without_a_setting_no_other_page_may_read_anything(client: Client) -> None:
    for method, path, body, status in REQUESTS:
        response = client.request(method, path, json=body, headers={"Origin": PAGE})
        assert (response.status_code, cors(response)) == (status, {})
    response = preflight(client, PAGE)
    assert (response.status_code, cors(response)) == (405, {})


@pytest.fixture
def shared(served: Served, serve: Serve) -> Client:
    return serve(served.directory, cors_origins=f"{PAGE}, {OTHER_PAGE}", api_key="key")


@pytest.mark.parametrize("origin", [PAGE, OTHER_PAGE])
def test_a_page_that_is_named_may_ask_with_every_header_and_read(shared: Client, origin: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        response = preflight(shared, origin, method, SENT)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
        assert method in response.headers["access-control-allow-methods"].split(", ")
        allowed = {name.lower() for name in response.headers["access-control-allow-headers"].split(", ")}
        assert {name.lower() for name in SENT} <= allowed
        assert "access-control-allow-credentials" not in response.headers
    for headers, status in (({"X-API-Key": "key"}, 200), ({}, 401)):
        response = shared.post("/v1/search", SEARCH, headers={"Origin": origin, **headers})
        assert response.status_code == status, "a preflight needs no key, and what follows does"
        assert cors(response) == {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "X-Request-Id, Retry-After, Idempotency-Replayed",
        }
        assert response.headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://other.example", "http://search.example", f"{PAGE}:8443", "null"])
def test_any_other_page_may_not(shared: Client, origin: str) -> None:
    response = preflight(shared, origin)
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers
    answered = shared.post("/v1/search", SEARCH, headers={"Origin": origin, "X-API-Key": "key"})
    assert answered.status_code == 200
    assert "access-control-allow-origin" not in answered.headers


def test_a_page_may_not_send_what_we_do_not_read(shared: Client) -> None:
    assert preflight(shared, PAGE, headers=["X-Anything"]).status_code == 400
    assert preflight(shared, PAGE, method="PUT").status_code == 400


def test_every_page_may_where_that_is_set(served: Served, serve: Serve) -> None:
    client = serve(served.directory, cors_origins="*")
    assert preflight(client, "https://any.example").headers["access-control-allow-origin"] == "*"
    response = client.post("/v1/search", SEARCH, headers={"Origin": "https://any.example"})
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "origins",
    ["", ",", "search.example", "https://", f"{PAGE}/", f"{PAGE}/page", f"{PAGE},*", "https://*.example", "null"],
)
def test_what_is_no_origin_is_refused(served: Served, origins: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        ServiceSettings(index=served.directory.path, cors_origins=origins)
