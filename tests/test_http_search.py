"""POST /v1/search and /v1/search/batch give what the searcher gives, in every form that a request can have."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from index import Gaussians, LocalSearcher
from tests.serving import Client, Served

QUERY = Gaussians.from_arrays(
    np.array([[0.3, -1.2, 0.0, 2.5, -0.1]], np.float32), np.array([[0.5, 1.5, 0.04, 2.0, 1.0]], np.float32)
)
BODY = {"mean": QUERY.means[0].tolist(), "variance": QUERY.variances[0].tolist()}
FOUR = Gaussians.from_arrays(
    np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32),
    np.random.default_rng(4).uniform(0.1, 2, size=(4, 5)).astype(np.float32),
)


def base64_of(numbers: torch.Tensor) -> str:
    return base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode()


@pytest.fixture(scope="module")
def searcher(served: Served) -> LocalSearcher:
    return LocalSearcher(served.directory)


def expected(searcher: LocalSearcher, queries: Gaussians, top_k: int) -> list[list[tuple[str, float]]]:
    rankings = searcher.search(queries, top_k)
    return [list(zip(ranking.ids, ranking.scores.tolist(), strict=True)) for ranking in rankings]


def pairs(results: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(result["id"], result["score"]) for result in results]


def search(client: Client, **options: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/search", {**BODY, **options})
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    return results


def test_one_query_answers_as_the_searcher(client: Client, searcher: LocalSearcher) -> None:
    assert pairs(search(client, top_k=7)) == expected(searcher, QUERY, 7)[0]


def test_scores_are_torchs_kl_divergence_of_every_document(client: Client, served: Served) -> None:
    query = Independent(Normal(QUERY.means.double(), QUERY.variances.double().sqrt()), 1)
    documents = Independent(Normal(served.gaussians.means.double(), served.gaussians.variances.double().sqrt()), 1)
    truth = dict(zip(served.ids, (-kl_divergence(query, documents)).tolist(), strict=True))
    found = search(client, top_k=60)
    assert {result["id"]: result["score"] for result in found} == pytest.approx(truth, rel=1e-9)
    assert [result["id"] for result in found] == sorted(truth, key=truth.__getitem__, reverse=True)


@pytest.mark.parametrize("mean", [BODY["mean"], base64_of(QUERY.means[0])], ids=["mean-list", "mean-base64"])
@pytest.mark.parametrize(
    "variance", [BODY["variance"], base64_of(QUERY.variances[0])], ids=["variance-list", "variance-base64"]
)
def test_lists_and_base64_mean_the_same(client: Client, searcher: LocalSearcher, mean: Any, variance: Any) -> None:
    found = pairs(search(client, mean=mean, variance=variance))
    assert found == expected(searcher, QUERY, 10)[0]


@pytest.mark.parametrize("form", [torch.Tensor.tolist, base64_of], ids=["list", "base64"])
def test_logvar_is_the_natural_logarithm_of_the_variance(
    client: Client, searcher: LocalSearcher, form: Callable[[torch.Tensor], Any]
) -> None:
    logvar = QUERY.variances.log()
    response = client.post("/v1/search", {"mean": BODY["mean"], "logvar": form(logvar[0])})
    meant = Gaussians(QUERY.means.double(), torch.from_numpy(np.exp(logvar.double().numpy())))
    assert pairs(response.json()["results"]) == expected(searcher, meant, 10)[0]


def test_query_precision_is_not_lost_to_float32(client: Client, searcher: LocalSearcher) -> None:
    mean = [0.1, 0.2, 0.3, 0.4, 0.5]
    exact = Gaussians(torch.tensor([mean], dtype=torch.float64), QUERY.variances.double())
    assert exact.means.float().double().tolist() != exact.means.tolist()
    assert pairs(search(client, mean=mean)) == expected(searcher, exact, 10)[0]


def test_ten_documents_unless_told_otherwise_and_never_more_than_there_are(client: Client, served: Served) -> None:
    assert len(search(client)) == 10
    assert len(search(client, top_k=1)) == 1
    everything = search(client, top_k=1000)
    assert sorted(result["id"] for result in everything) == sorted(served.ids)


@pytest.mark.parametrize("options", [{"exact": True}, {"exact": False}, {"candidates": 1}, {"candidates": 10_000}])
def test_options_of_effort_do_not_change_an_exact_answer(client: Client, options: dict[str, Any]) -> None:
    assert search(client, **options) == search(client)


def test_min_score_leaves_out_what_is_below_and_keeps_what_is_equal(client: Client) -> None:
    found = pairs(search(client))
    assert pairs(search(client, min_score=found[2][1])) == found[:3]
    assert search(client, min_score=1.0) == []
    assert pairs(search(client, min_score=-1e300)) == found


def test_payload_is_returned_unless_declined(client: Client) -> None:
    assert all(result["payload"] == {"text": f"text of {result['id']}"} for result in search(client))
    assert all(set(result) == {"id", "score"} for result in search(client, with_payload=False))


def test_explanation_parts_are_those_of_the_formula_and_sum_to_the_divergence(client: Client, served: Served) -> None:
    for result in search(client, explain=True):
        document = served.gaussians[torch.tensor([served.ids.index(result["id"])])]
        ratio = QUERY.variances.double() / document.variances.double()
        difference = (QUERY.means.double() - document.means.double()) ** 2 / document.variances.double()
        parts = [-0.5 * ratio.log(), 0.5 * (ratio - 1), 0.5 * difference]
        explanation = result["explanation"]
        shown = [explanation[name] for name in ("log_determinant", "trace", "mahalanobis")]
        assert shown == pytest.approx([float(part.sum()) for part in parts], rel=1e-9)
        assert sum(shown) == pytest.approx(-result["score"], rel=1e-9)
        per_dimension = torch.cat(parts).sum(dim=0)
        order = torch.argsort(per_dimension, descending=True).tolist()
        assert explanation["dimensions"] == order
        assert explanation["contributions"] == pytest.approx(per_dimension[order].tolist(), rel=1e-9)


def test_no_explanation_unless_asked_for(client: Client) -> None:
    assert all("explanation" not in result for result in search(client))


def test_answers_say_which_index_and_how_long(client: Client) -> None:
    for path, body in {"/v1/search": BODY, "/v1/search/batch": {"queries": [BODY]}}.items():
        answer = client.post(path, body).json()
        assert set(answer) == {"results", "took_ms", "index"}
        assert answer["index"] == {"name": "small", "generation": 1}
        assert answer["took_ms"] > 0


def test_a_batch_answers_each_query_in_order(client: Client, searcher: LocalSearcher) -> None:
    queries: list[dict[str, Any]] = [
        {"mean": FOUR.means[0].tolist(), "variance": FOUR.variances[0].tolist()},
        {"mean": base64_of(FOUR.means[1]), "variance": FOUR.variances[1].tolist()},
        {"mean": FOUR.means[2].tolist(), "variance": base64_of(FOUR.variances[2])},
        {"mean": base64_of(FOUR.means[3]), "variance": base64_of(FOUR.variances[3])},
    ]
    response = client.post("/v1/search/batch", {"queries": queries, "top_k": 6})
    found = [pairs(results) for results in response.json()["results"]]
    assert found == expected(searcher, FOUR, 6)
    assert found[0] != found[1]


def test_a_batch_applies_its_options_to_every_query(client: Client) -> None:
    singles = [
        search(client, mean=mean, variance=variance, top_k=5, explain=True, with_payload=False, min_score=-6.0)
        for mean, variance in zip(FOUR.means.tolist(), FOUR.variances.tolist(), strict=True)
    ]
    assert any(len(results) < 5 for results in singles), "min_score must leave something out for this to show"
    queries = [
        {"mean": mean, "variance": variance}
        for mean, variance in zip(FOUR.means.tolist(), FOUR.variances.tolist(), strict=True)
    ]
    body = {"queries": queries, "top_k": 5, "explain": True, "with_payload": False, "min_score": -6.0}
    assert client.post("/v1/search/batch", body).json()["results"] == singles


def test_numbers_and_text_are_what_json_says_they_are(client: Client) -> None:
    """Integers are numbers; the encoding of the answer is UTF-8; ids come back as they were given."""
    response = client.post("/v1/search", {"mean": [0, 1, 0, 2, 0], "variance": [1, 1, 1, 2, 1], "top_k": 60})
    assert response.headers["content-type"] == "application/json"
    assert {"naïve 雪", "wn/00001740", "100%"} <= {result["id"] for result in response.json()["results"]}


def test_concurrent_clients_get_what_serial_ones_get(client: Client) -> None:
    rng = np.random.default_rng(5)
    bodies = [
        {
            "queries": [
                {"mean": rng.normal(size=5).tolist(), "variance": rng.uniform(0.1, 2, 5).tolist()}
                for _ in range(1 + number % 3)
            ],
            "top_k": 1 + number % 12,
        }
        for number in range(64)
    ]
    serial = [client.post("/v1/search/batch", body).json()["results"] for body in bodies]

    async def one_client(number: int) -> list[Any]:
        return [await client.send("/v1/search/batch", body) for body in bodies[number::16]]

    async def all_clients() -> list[list[Any]]:
        return await asyncio.gather(*(one_client(number) for number in range(16)))

    together = client.run(all_clients())
    for number, answers in enumerate(together):
        assert [answer.json()["results"] for answer in answers] == serial[number::16]


EVIDENCE = {"scanned": 60, "candidates": 17, "proven": True, "proof": "bound"}


def test_an_explained_answer_says_what_its_results_rest_on(client: Client) -> None:
    assert client.post("/v1/search", {**BODY, "top_k": 7, "explain": True}).json()["search"] == EVIDENCE
    similar = client.post("/v1/documents/d7/similar", {"top_k": 6, "explain": True}).json()
    assert similar["search"] == EVIDENCE
    batch = client.post("/v1/search/batch", {"queries": [BODY, BODY], "top_k": 7, "explain": True}).json()
    assert batch["search"] == [EVIDENCE, EVIDENCE]
    assert "search" not in client.post("/v1/search", BODY).json()
    everything = client.post("/v1/search", {**BODY, "top_k": 60, "explain": True}).json()["search"]
    assert everything == {**EVIDENCE, "candidates": 60}


def test_an_explanation_has_both_gaussians_where_they_differ_most(client: Client, served: Served) -> None:
    for result in search(client, explain=True):
        document = served.gaussians[torch.tensor([served.ids.index(result["id"])])]
        explanation = result["explanation"]
        telling = explanation["dimensions"]
        for name, gaussian in (("query", QUERY), ("document", document)):
            assert explanation[f"{name}_means"] == gaussian.means[0].double()[telling].tolist()
            assert explanation[f"{name}_variances"] == gaussian.variances[0].double()[telling].tolist()
