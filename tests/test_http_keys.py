"""API keys: what they open, how they are sent, and that they show nowhere."""

import contextlib
import hmac
import json
import logging
from typing import Any

import pytest
from starlette.requests import Request

from service.keys import Keys
from service.problems import ForbiddenError
from service.requests import require_admin
from service.settings import ServiceSettings
from tests.conftest import Serve
from tests.serving import Client, Served

KEYS = "first-key, second-key,Schlüssel"
ADMIN_KEY = "an-admin-key-of-some-length"
SEARCH = {"mean": [0, 0, 0, 0, 0], "variance": [1, 1, 1, 1, 1]}
ROUTES = [
    ("POST", "/v1/search", SEARCH),
    ("POST", "/v1/search/batch", {"queries": [SEARCH]}),
    ("POST", "/v1/documents/d7/similar", {}),
    ("GET", "/v1/documents/d7", None),
    ("GET", "/v1/index", None),
]


@pytest.fixture
def locked(served: Served, serve: Serve) -> Client:
    return serve(served.directory, api_key=KEYS)


def bearer(key: str, scheme: str = "Bearer") -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"{scheme} {key}".encode())]


def x_api_key(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-api-key", key.encode())]


def refused(response: Any) -> None:
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=lambda value: value if isinstance(value, str) else "")
def test_without_a_setting_everything_is_open_and_with_one_nothing_of_v1_is(
    client: Client, locked: Client, method: str, path: str, body: Any
) -> None:
    assert client.request(method, path, json=body).status_code == 200
    refused(locked.request(method, path, json=body))
    assert locked.request(method, path, json=body, headers=bearer("first-key")).status_code == 200


@pytest.mark.parametrize("key", ["first-key", "second-key", "Schlüssel"])
def test_each_key_opens_by_either_header(locked: Client, key: str) -> None:
    for headers in (bearer(key), bearer(key, "bearer"), x_api_key(key), x_api_key(f" {key} ")):
        assert locked.post("/v1/search", SEARCH, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer("third-key"),
        bearer(""),
        bearer("first-key", "Basic"),
        bearer("first-key, second-key"),
        bearer(KEYS),
        x_api_key(""),
        x_api_key("first-ke"),
        x_api_key("first-keyy"),
        x_api_key("FIRST-KEY"),
        [(b"x-api-key", b"\xff")],
        [(b"authorization", b"first-key")],
        [*bearer("wrong"), *x_api_key("first-key")],
    ],
)
def test_anything_else_is_refused(locked: Client, headers: list[tuple[bytes, bytes]]) -> None:
    refused(locked.post("/v1/search", SEARCH, headers=headers))


def test_the_key_is_asked_for_before_the_body_is_read(locked: Client) -> None:
    refused(locked.post("/v1/search", content=b"not json"))
    refused(locked.get("/v1/documents/nobody"))


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_probes_metrics_and_documentation_need_no_key(locked: Client, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_keys_are_compared_in_constant_time_and_all_of_them(locked: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def spy(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return compare(given, key)

    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", spy)
    assert locked.post("/v1/search", SEARCH, headers=x_api_key("first-key")).status_code == 200
    keys = [b"first-key", b"second-key", "Schlüssel".encode()]
    assert compared == [(b"first-key", key) for key in keys]

    compared.clear()
    both = Keys(search=(b"first-key", b"second-key"), admin=(b"admin",))
    for sent in ("admin", "first-key"):
        request = Request({"type": "http", "headers": x_api_key(sent)})
        with contextlib.suppress(ForbiddenError):
            require_admin(request, both)
    assert compared == [(sent, key) for sent in (b"admin", b"first-key") for key in (*both.admin, *both.search)]


def test_keys_show_nowhere(served: Served, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        locked = serve(served.directory, api_key=KEYS, admin_key=ADMIN_KEY)
        answers = [
            locked.get("/v1/index", headers=bearer(ADMIN_KEY)),
            locked.post("/v1/search", SEARCH, headers=bearer("first-key")),
            locked.post("/v1/search", SEARCH, headers=bearer("wrong-key")),
            locked.post("/v1/search", {"mean": "first-key"}, headers=x_api_key("first-key")),
            locked.get("/v1/index", headers=bearer("first-key")),
            locked.get("/metrics"),
            locked.get("/openapi.json"),
        ]
    settings = locked.state.settings
    shown = [caplog.text, repr(settings), str(settings), settings.model_dump_json(), repr(locked.state)]
    shown += [answer.text + str(answer.headers) for answer in answers]
    assert caplog.records
    for text in shown:
        assert not any(key in text for key in ("first-key", "second-key", "Schlüssel", "wrong-key", ADMIN_KEY))
    dumped = json.loads(settings.model_dump_json())
    assert (dumped["api_key"], dumped["admin_key"]) == ("**********", "**********")


@pytest.mark.parametrize("keys", ["", " ", "a,", ",a", "a,,b"])
def test_an_empty_key_is_no_setting(served: Served, keys: str) -> None:
    for setting in ("api_key", "admin_key"):
        with pytest.raises(ValueError, match="empty key"):
            ServiceSettings.model_validate({"index": served.directory.path, setting: keys})


@pytest.mark.parametrize("key", ["correct-horse-voilà", "sixteen-bytes-Å", "with a space inside"])
@pytest.mark.parametrize("send", [bearer, x_api_key])
def test_keys_of_any_letters_open(served: Served, serve: Serve, key: str, send: Any) -> None:
    """Some bytes of UTF-8 are spaces in Latin-1, and spaces around a key are none of it."""
    client = serve(served.directory, api_key=key)
    for padded in (key, f" {key}\t"):
        assert client.request("GET", "/v1/index", headers=send(padded)).status_code == 200
