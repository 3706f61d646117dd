"""GET /v1/index, GET /v1/documents/{id} and POST /v1/documents/{id}/similar."""

import datetime
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from index import LocalSearcher
from service.app import create_app
from service.index_responses import Limits
from service.settings import ServiceSettings
from tests.conftest import MakeIndex, Serve, random_gaussians
from tests.serving import Client, Served

ODD_IDS = ["wn/00001740", "naïve 雪", "100%", "a/similar", "q?x=1#y", "%2F"]


def test_index_describes_the_manifest_and_the_machine(client: Client, served: Served) -> None:
    manifest = served.directory.manifest()
    described = client.get("/v1/index").json()
    assert {name: described[name] for name in described if name not in ("limits", "bytes", "version")} == {
        "name": "small",
        "generation": 1,
        "created_at": manifest.created_at,
        "documents": 60,
        "k": 5,
        "encoding": "simplified",
        "kind": "flat",
        "model": None,
        "reads_text": False,
        "reason": None,
        "measured_recall": None,
        "codes": None,
        "segments": 1,
        "shards": 1,
        "deleted_rows": 0,
        "changes": 0,
        "drift": None,
        "rebuild_due": None,
        "compaction": {"running": False, "last_error": None},
        "device": "cpu",
        "precision": "float32",
        "reload": {"failures": 0, "last_error": None},
    }
    assert described["version"] == client.state.version
    segment = served.directory.segments / manifest.segments[0].id
    files = sum(path.stat().st_size for path in segment.iterdir() if path.name != "segment.json")
    assert described["bytes"] == files


def test_every_limit_is_the_setting_of_its_name(served: Served, serve: Serve) -> None:
    changed = {name: 1000 + place for place, name in enumerate(Limits.model_fields)}
    limits = serve(served.directory, **changed).get("/v1/index").json()["limits"]
    assert limits == changed
    # A new limit among the settings has to be shown too.
    assert set(limits) == {
        name
        for name in ServiceSettings.model_fields
        if name.startswith(("max_", "queue_")) or name in ("timeout_ms", "header_seconds", "unread_seconds")
    }


@pytest.mark.parametrize("document_id", [*ODD_IDS, "d7"])
def test_a_document_is_returned_as_it_was_stored(client: Client, served: Served, document_id: str) -> None:
    response = client.get(f"/v1/documents/{quote(document_id, safe='')}")
    assert response.status_code == 200, response.text
    row = served.ids.index(document_id)
    answer = response.json()
    assert answer["id"] == document_id
    assert answer["payload"] == {"text": f"text of {document_id}"}
    # Each number is the shortest decimal that float32 reads back as the stored one.
    for field, stored in (("mean", served.gaussians.means), ("variance", served.gaussians.variances)):
        assert stored[row].tolist() == stored.new_tensor(answer[field]).tolist()


def test_slashes_in_an_id_need_not_be_escaped(client: Client) -> None:
    assert client.get("/v1/documents/wn/00001740").json()["id"] == "wn/00001740"


@pytest.mark.parametrize("document_id", ["d999", "", "d7/", "D7", "雪", "wn"])
def test_an_unknown_document_is_not_found(client: Client, document_id: str) -> None:
    response = client.get(f"/v1/documents/{quote(document_id, safe='')}")
    assert response.status_code == 404
    assert response.json()["code"] == "document_not_found"
    assert repr(document_id) in response.json()["detail"]


@pytest.mark.parametrize("document_id", [*ODD_IDS, "d7"])
def test_similar_searches_with_the_documents_own_gaussian(client: Client, served: Served, document_id: str) -> None:
    searcher = LocalSearcher(served.directory)
    (ranking,) = searcher.search(searcher.document(document_id).gaussian, 6)
    expected = list(zip(ranking.ids, ranking.scores.tolist(), strict=True))
    assert expected[0] == (document_id, 0.0)
    path = f"/v1/documents/{quote(document_id, safe='')}/similar"
    found = {
        include: [
            (result["id"], result["score"])
            for result in client.post(path, {"top_k": 5, "include_self": include}).json()["results"]
        ]
        for include in (True, False)
    }
    assert found == {True: expected[:5], False: expected[1:]}


def test_similar_needs_no_body(client: Client) -> None:
    empty = client.post("/v1/documents/d7/similar")
    assert empty.status_code == 200, empty.text
    spelled_out = client.post("/v1/documents/d7/similar", {"top_k": 10, "include_self": False})
    assert empty.json()["results"] == spelled_out.json()["results"]
    assert len(empty.json()["results"]) == 10
    assert "d7" not in {result["id"] for result in empty.json()["results"]}


def test_similar_takes_every_option_of_a_search(client: Client) -> None:
    def similar(**options: Any) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = client.post("/v1/documents/d7/similar", options).json()["results"]
        return results

    plain = similar(top_k=4)
    assert similar(top_k=4, with_payload=False) == [{"id": r["id"], "score": r["score"]} for r in plain]
    assert similar(top_k=4, min_score=plain[1]["score"]) == plain[:2]
    assert similar(top_k=4, candidates=1, exact=True) == plain
    for result in similar(top_k=4, explain=True, include_self=True):
        explanation = result["explanation"]
        total = explanation["log_determinant"] + explanation["trace"] + explanation["mahalanobis"]
        assert total == pytest.approx(-result["score"], rel=1e-9, abs=1e-12)


def test_similar_to_an_unknown_document_is_not_found(client: Client) -> None:
    response = client.post("/v1/documents/nobody/similar")
    assert (response.status_code, response.json()["code"]) == (404, "document_not_found")


def test_self_is_left_out_even_among_documents_that_score_the_same(make_index: MakeIndex, serve: Serve) -> None:
    one = random_gaussians(1, 3, seed=1)
    twins = type(one)(one.means.repeat(4, 1), one.variances.repeat(4, 1))
    client = serve(make_index(twins, ["a", "b", "c", "d"]))
    response = client.post("/v1/documents/c/similar", {"top_k": 2})
    assert [(r["id"], r["score"]) for r in response.json()["results"]] == [("a", 0.0), ("b", 0.0)]


def test_payload_of_every_arrow_type_becomes_json(make_index: MakeIndex, serve: Serve) -> None:
    when = datetime.datetime(2023, 7, 23, 9, 30, tzinfo=datetime.UTC)
    payload: dict[str, Any] = {
        "nothing": [None],
        "number": [2**53 + 1],
        "raw": [b"\x00\xff"],
        "when": [when],
        "nested": [{"list": [1.5, None], "flag": True}],
        "span": [datetime.timedelta(seconds=90)],
    }
    client = serve(make_index(random_gaussians(1, 2, seed=1), ["only"], **payload))
    assert client.get("/v1/documents/only").json()["payload"] == {
        "nothing": None,
        "number": 2**53 + 1,
        "raw": "AP8=",
        "when": "2023-07-23T09:30:00+00:00",
        "nested": {"list": [1.5, None], "flag": True},
        "span": "0:01:30",
    }


def test_percent_encoding_that_is_not_utf8_is_no_document(listen: Callable[..., int], client: Client) -> None:
    """Over a real socket, because only there the path's bytes reach the server as they are."""
    port = listen(create_app(client.state.settings))
    response = httpx.get(f"http://127.0.0.1:{port}/v1/documents/%FF%FE", trust_env=False, timeout=60)
    assert (response.status_code, response.json()["code"]) == (404, "document_not_found")
