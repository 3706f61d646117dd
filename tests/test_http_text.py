"""Words over HTTP: searched for, written and encoded by the service's model, in batches and a queue of their own."""

import asyncio
import gc
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from index import Gaussians, IndexDirectory, build_index
from index.errors import ModelError
from index.text import Role
from service.app import create_app
from service.encoding import _Job
from service.settings import ServiceSettings
from tests.conftest import MakeIndex, Serve, random_gaussians
from tests.serving import Client, wait_until
from tests.word_encoder import WordEncoder

ADMIN = {"Authorization": "Bearer a-key-of-at-least-32-bytes-or-so-it-is"}


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    """What every service made after this loads as its model."""
    made = WordEncoder()
    monkeypatch.setattr("service.encoding.load_encoder", lambda *_, **__: made)
    return made


@pytest.fixture
def texts(tmp_path: Path) -> IndexDirectory:
    """An index of forty texts."""
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(f'{{"_id": "d{row}", "text": "text {row}"}}\n' for row in range(40)))
    directory = IndexDirectory(tmp_path / "texts")
    build_index([source], directory, encoder=WordEncoder())
    return directory


@pytest.fixture
def client(encoder: WordEncoder, texts: IndexDirectory, serve: Serve) -> Client:
    opened = serve(texts, model="given", admin_key=ADMIN["Authorization"].removeprefix("Bearer "))
    # What it tried itself on is not what a test looks at.
    encoder.together.clear()
    encoder.read.clear()
    return opened


def problem(response: httpx.Response, status: int, code: str) -> str:
    document = response.json()
    assert (response.status_code, document["code"]) == (status, code), document
    return str(document["detail"])


def gaussian(encoder: WordEncoder, text: str) -> dict[str, Any]:
    mean, variance = encoder.numbers(text, Role.QUERY).astype(np.float32).tolist()
    return {"mean": mean, "variance": variance}


def uncertainty(encoder: WordEncoder, text: str) -> dict[str, Any]:
    variance = encoder.numbers(text, Role.QUERY)[1].astype(np.float32).astype(float)
    return {"log_determinant": pytest.approx(np.log(variance).sum()), "mean_variance": pytest.approx(variance.mean())}


def test_words_find_what_their_gaussian_finds(client: Client, encoder: WordEncoder) -> None:
    worded = client.post("/v1/search", {"text": "text 7", "top_k": 5, "explain": True}).json()
    given = client.post("/v1/search", {**gaussian(encoder, "text 7"), "top_k": 5, "explain": True}).json()
    assert worded["results"] == given["results"]
    assert worded["uncertainty"] == uncertainty(encoder, "text 7")
    assert "uncertainty" not in given
    assert encoder.read == [("text 7", Role.QUERY)]


def test_many_queries_some_of_them_in_words(client: Client, encoder: WordEncoder) -> None:
    queries = [{"text": "text 1"}, gaussian(encoder, "text 2"), {"text": "text 3"}]
    worded = client.post("/v1/search/batch", {"queries": queries, "top_k": 3}).json()
    given = client.post(
        "/v1/search/batch", {"queries": [gaussian(encoder, f"text {row}") for row in (1, 2, 3)], "top_k": 3}
    )
    assert worded["results"] == given.json()["results"]
    assert worded["uncertainty"] == [uncertainty(encoder, "text 1"), None, uncertainty(encoder, "text 3")]
    assert "uncertainty" not in given.json()


def test_texts_are_encoded_for_whoever_asks(client: Client, encoder: WordEncoder) -> None:
    answer = client.post("/v1/encode", {"texts": ["a", "b"], "role": "document"}).json()
    assert answer["model"] == encoder.record.model_dump()
    for text, made in zip("ab", answer["gaussians"], strict=True):
        mean, variance = encoder.numbers(text, Role.DOCUMENT)
        assert made["mean"] == pytest.approx(mean)
        assert made["variance"] == pytest.approx(variance)
        assert made["log_determinant"] == pytest.approx(np.log(variance).sum())
        assert made["mean_variance"] == pytest.approx(variance.mean())
    client.post("/v1/encode", {"texts": ["a"]})
    assert encoder.read[-1] == ("a", Role.QUERY)


def test_documents_are_written_in_words(client: Client, encoder: WordEncoder) -> None:
    documents = [
        {"id": "new", "text": "a new text"},
        {"id": "d3", "text": "another", "payload": {"text": "what is shown"}},
        {"id": "given", **gaussian(encoder, "x")},
    ]
    written = client.post("/v1/documents", {"documents": documents}, headers=ADMIN)
    assert written.json()["written"] == 3
    assert [text for text, role in encoder.read if role is Role.DOCUMENT] == ["a new text", "another"]
    stored = client.get("/v1/documents/new").json()
    assert stored["payload"] == {"text": "a new text"}
    assert stored["mean"] == pytest.approx(encoder.numbers("a new text", Role.DOCUMENT)[0])
    assert client.get("/v1/documents/d3").json()["payload"] == {"text": "what is shown"}
    # What failed in words has written nothing.
    documents = [{"id": "one", "text": "fine"}, {"id": "two", "text": WordEncoder.POISON}]
    problem(client.post("/v1/documents", {"documents": documents}, headers=ADMIN), 422, "invalid_gaussian")
    assert client.get("/v1/documents/one").status_code == 404


def test_a_write_that_is_sent_again_is_not_encoded_again(client: Client, encoder: WordEncoder) -> None:
    headers = {**ADMIN, "Idempotency-Key": "k"}
    body = {"documents": [{"id": "new", "text": "a new text"}]}
    first = client.post("/v1/documents", body, headers=headers)
    again = client.post("/v1/documents", body, headers=headers)
    assert (first.status_code, first.headers.get("Idempotency-Replayed")) == (200, None)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
    assert {**again.json(), "took_ms": 0} == {**first.json(), "took_ms": 0}
    other = {"documents": [{"id": "new", "text": "another text"}]}
    problem(client.post("/v1/documents", other, headers=headers), 422, "idempotency_mismatch")
    assert encoder.read == [("a new text", Role.DOCUMENT)]


def test_what_is_served_says_which_model_and_whether_words_are_read(
    client: Client, encoder: WordEncoder, texts: IndexDirectory, serve: Serve
) -> None:
    described = client.get("/v1/index").json()
    assert (described["model"], described["reads_text"]) == (encoder.record.model_dump(), True)
    without = serve(texts).get("/v1/index").json()
    assert (without["model"], without["reads_text"]) == (encoder.record.model_dump(), False)


def test_a_service_without_a_model_says_so(served: Any, serve: Serve) -> None:
    plain = serve(served.directory, admin_key=ADMIN["Authorization"].removeprefix("Bearer "))
    for path, body in (
        ("/v1/search", {"text": "a"}),
        ("/v1/search/batch", {"queries": [{"text": "a"}]}),
        ("/v1/encode", {"texts": ["a"]}),
        ("/v1/documents", {"documents": [{"id": "a", "text": "a"}]}),
    ):
        detail = problem(plain.post(path, body, headers=ADMIN), 422, "no_model")
        assert "start it with --model, or send mean and variance" in detail
    assert plain.get("/v1/index").json()["model"] is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text": ""}, "text: the text is empty: send the words that the model is to read"),
        ({"text": " \n"}, "text: the text is empty: send the words that the model is to read"),
        ({"text": 7}, "text"),
        ({"text": "a", "mean": [1.0]}, "give either text or mean"),
        ({"text": "a", "logvar": [1.0]}, "give either text or logvar"),
        ({"mean": [1.0] * 5}, "give either variance or logvar"),
        ({}, "give mean and variance, mean and logvar, or text"),
    ],
)
def test_a_query_is_a_gaussian_or_a_text(body: dict[str, Any], message: str, client: Client) -> None:
    assert message in problem(client.post("/v1/search", body), 422, "invalid_request")


def test_an_empty_text_among_others_is_named(client: Client) -> None:
    for path, body, field in (
        ("/v1/encode", {"texts": ["a", ""]}, "texts.1"),
        ("/v1/search/batch", {"queries": [{"text": "a"}, {"text": "\t"}]}, "queries.1.text"),
        ("/v1/documents", {"documents": [{"id": "a", "text": " "}]}, "documents.0.text"),
    ):
        detail = problem(client.post(path, body, headers=ADMIN), 422, "invalid_request")
        assert detail == f"{field}: the text is empty: send the words that the model is to read"


def test_limits_of_texts(encoder: WordEncoder, texts: IndexDirectory, serve: Serve) -> None:
    short = serve(texts, model="given", max_text_letters=5, max_queries=2)
    assert short.post("/v1/search", {"text": "12345"}).status_code == 200
    encoder.read.clear()
    detail = problem(short.post("/v1/search", {"text": "123456"}), 422, "limit_exceeded")
    assert detail == "a text has 6 letters; the limit is 5"
    detail = problem(short.post("/v1/encode", {"texts": ["a"] * 3}), 422, "limit_exceeded")
    assert detail == "texts is 3; the limit is 2"
    # A request with a Gaussian that is none does not cost the model's time.
    queries = [{"text": "a"}, {"mean": [1.0], "variance": [1.0]}]
    problem(short.post("/v1/search/batch", {"queries": queries}), 422, "invalid_gaussian")
    assert encoder.read == []
    assert short.get("/v1/index").json()["limits"]["max_text_letters"] == 5


async def together(client: Client, bodies: list[dict[str, Any]], path: str = "/v1/encode") -> list[httpx.Response]:
    return await asyncio.gather(*(client.send(path, body) for body in bodies))


def asked_at_once(client: Client, encoder: WordEncoder, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """The answers to requests that have all come before the first of them is encoded."""
    encoder.gate.clear()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.extend(client.run(together(client, bodies))))
    asking.start()
    texts = sum(len(body["texts"]) for body in bodies)
    wait_until(lambda: sum(job.rows for job in list(client.state.encoding._jobs)) + sum(encoder.together) == texts)
    encoder.gate.set()
    asking.join(60)
    return answers


def test_texts_that_wait_are_encoded_together_and_each_gets_its_own(client: Client, encoder: WordEncoder) -> None:
    bodies = [{"texts": [f"text {row}"] * (1 + row % 3)} for row in range(20)]
    answers = asked_at_once(client, encoder, bodies)
    # The first comes alone; those that wait then come by 32.
    assert max(encoder.together) <= 32
    assert len(encoder.together) <= 4
    assert client.metric("gaussearch_encoded_texts_sum") == 39
    for row, answer in enumerate(answers):
        for made in answer.json()["gaussians"]:
            assert made["mean"] == pytest.approx(encoder.numbers(f"text {row}", Role.QUERY)[0])


def test_a_text_that_no_gaussian_comes_of_fails_alone(client: Client, encoder: WordEncoder) -> None:
    bodies = [{"texts": ["fine"]}, {"texts": ["fine"]}, {"texts": [WordEncoder.POISON]}, {"texts": ["fine"]}]
    answers = asked_at_once(client, encoder, bodies)
    assert [answer.status_code for answer in answers] == [200, 200, 422, 200]


def test_a_bug_over_one_text_fails_no_other(
    client: Client, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.encode

    def encode(texts: Sequence[str], role: Role) -> Gaussians:
        made = whole(texts, role)
        if "bug" in texts:
            raise RuntimeError("a bug")
        return made

    monkeypatch.setattr(encoder, "encode", encode)
    bodies = [{"texts": ["fine"]}, {"texts": ["fine"]}, {"texts": ["bug"]}, {"texts": ["fine"]}]
    answers = asked_at_once(client, encoder, bodies)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]


def test_a_text_or_gaussian_that_is_none_is_named_by_its_place(client: Client, encoder: WordEncoder) -> None:
    fine, bad = gaussian(encoder, "a"), {"mean": [0.0] * 5, "variance": [1.0, 1.0, -1.0, 1.0, 1.0]}
    for queries, place in (
        ([{"text": "a"}, fine, bad], "row 2, component 2: variance"),
        ([fine, {"text": "a"}, {"text": WordEncoder.POISON}], "row 2: no Gaussian"),
        ([*[{"text": "a"}] * 40, fine, {"text": WordEncoder.POISON}], "row 41: no Gaussian"),
    ):
        detail = problem(client.post("/v1/search/batch", {"queries": queries, "top_k": 1}), 422, "invalid_gaussian")
        assert detail.startswith(place)


def test_a_request_of_many_texts_does_not_keep_others(client: Client, encoder: WordEncoder) -> None:
    encoder.gate.clear()
    order: list[str] = []

    async def ask(name: str, count: int) -> None:
        await client.send("/v1/encode", {"texts": [name] * count})
        order.append(name)

    async def all_of_them() -> None:
        many = asyncio.create_task(ask("many", 200))
        await asyncio.to_thread(wait_until, lambda: encoder.together)
        few = [asyncio.create_task(ask(f"few {row}", 2)) for row in range(3)]
        await asyncio.to_thread(wait_until, lambda: len(client.state.encoding._jobs) == 4)
        encoder.gate.set()
        await asyncio.gather(many, *few)

    client.run(all_of_them())
    assert sorted(order[:3]) == ["few 0", "few 1", "few 2"]
    assert order[3] == "many"
    assert sum(encoder.together) == 206
    assert max(encoder.together) == 32


def test_texts_that_have_been_encoded_are_not_kept_while_nothing_comes(client: Client) -> None:
    assert client.post("/v1/encode", {"texts": ["a"] * 3}).status_code == 200
    wait_until(lambda: not any(type(each) is _Job for each in gc.get_objects()))


def test_no_more_of_a_request_is_encoded_than_somebody_waits_for(client: Client, encoder: WordEncoder) -> None:
    encoder.gate.clear()
    late = threading.Thread(
        target=lambda: client.post("/v1/encode", {"texts": ["a"] * 200}, headers={"X-Request-Timeout-Ms": "100"})
    )
    late.start()
    late.join(60)
    encoder.gate.set()
    assert client.post("/v1/encode", {"texts": ["b"]}).status_code == 200
    assert encoder.together == [32, 1]


def test_those_who_have_given_up_make_room(busy: Client, encoder: WordEncoder) -> None:
    async def give_up() -> None:
        waiting = [busy.state.encoding.submit(["a", "b"], Role.QUERY, time.monotonic() + 60) for _ in range(2)]
        for each in waiting:
            each.cancel()

    busy.run(give_up())
    encoder.gate.set()
    assert busy.post("/v1/search", {"text": "e"}).status_code == 200


def test_what_is_refused_costs_no_time_of_the_model(client: Client, encoder: WordEncoder) -> None:
    text = {"text": "a"}
    document = {"id": "a", "text": "a"}
    for path, body in (
        ("/v1/search", {**text, "top_k": 10**6}),
        ("/v1/search", {**text, "candidates": 10**6}),
        ("/v1/search", {**text, "nprobe": 1}),
        ("/v1/search/batch", {"queries": [text] * 200, "top_k": 1000}),
        ("/v1/documents", {"documents": [document, document]}),
        ("/v1/documents", {"documents": [{**document, "id": "x" * 600}]}),
    ):
        assert client.post(path, body, headers=ADMIN).status_code == 422
    bad_key = {**ADMIN, "Idempotency-Key": "with spaces"}
    assert client.post("/v1/documents", {"documents": [document]}, headers=bad_key).status_code == 422
    assert encoder.read == []


def test_a_title_is_read_with_its_text_as_a_build_reads_it(client: Client, encoder: WordEncoder) -> None:
    document = {"id": "a", "text": "body", "payload": {"title": "Head"}}
    assert client.post("/v1/documents", {"documents": [document]}, headers=ADMIN).status_code == 200
    assert encoder.read == [("Head body", Role.DOCUMENT)]


def test_a_write_over_an_index_of_another_model_says_why(client: Client, texts: IndexDirectory, tmp_path: Path) -> None:
    build_index([tmp_path / "texts.jsonl"], texts, encoder=WordEncoder("another"))
    answer = client.post("/v1/documents", {"documents": [{"id": "a", "text": "a"}]}, headers=ADMIN)
    assert "'another'" in problem(answer, 503, "write_failed")


@pytest.fixture
def busy(encoder: WordEncoder, texts: IndexDirectory, serve: Serve) -> Iterator[Client]:
    """A service whose model is busy, with room for four texts."""
    opened = serve(texts, model="given", queue_rows=4, max_batch_rows=4)
    encoder.gate.clear()
    encoder.together.clear()
    first = threading.Thread(target=lambda: opened.post("/v1/encode", {"texts": ["first"]}))
    first.start()
    wait_until(lambda: encoder.together == [1])
    yield opened
    encoder.gate.set()
    first.join(60)


def test_more_texts_than_may_wait_are_turned_away(busy: Client, encoder: WordEncoder) -> None:
    answers: list[httpx.Response] = []
    bodies = [{"texts": ["a", "b"]}, {"texts": ["c", "d"]}]
    asking = threading.Thread(target=lambda: answers.extend(busy.run(together(busy, bodies))))
    asking.start()
    wait_until(lambda: len(busy.state.encoding._jobs) == 2)
    refused = busy.post("/v1/search", {"text": "e"})
    assert "4 texts are waiting and 4 may" in problem(refused, 429, "overloaded")
    assert int(refused.headers["Retry-After"]) >= 1
    # Gaussians do not wait for the model.
    assert busy.post("/v1/search", gaussian(encoder, "e")).status_code == 200
    encoder.gate.set()
    asking.join(60)
    assert [answer.status_code for answer in answers] == [200, 200]


def test_texts_whose_deadline_passes_are_not_encoded(busy: Client, encoder: WordEncoder) -> None:
    late = busy.post("/v1/search", {"text": "late"}, headers={"X-Request-Timeout-Ms": "50"})
    problem(late, 504, "deadline_exceeded")
    encoder.gate.set()
    assert busy.post("/v1/search", {"text": "soon"}).status_code == 200
    assert ("late", Role.QUERY) not in encoder.read
    assert busy.metric("gaussearch_rejected_total", reason="deadline") == 1


def test_a_bug_of_the_model_fails_a_request_and_not_the_service(
    client: Client, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode", broken)
        problem(client.post("/v1/search", {"text": "a"}), 500, "internal_error")
    assert client.post("/v1/search", {"text": "a"}).status_code == 200
    assert client.get("/livez").status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_encoding_thread_is_told_by_livez(
    client: Client, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(encoder, "encode", die)
    problem(client.post("/v1/search", {"text": "a"}), 503, "not_ready")
    wait_until(lambda: client.get("/livez").status_code == 503)
    problem(client.post("/v1/search", {"text": "a"}), 503, "not_ready")


def test_an_index_of_another_model_is_not_served(
    encoder: WordEncoder, texts: IndexDirectory, make_index: MakeIndex, serve: Serve, tmp_path: Path
) -> None:
    client = serve(texts, model="given", reload_seconds=0.01)
    build_index([tmp_path / "texts.jsonl"], texts, encoder=WordEncoder("another"))
    wait_until(lambda: client.metric("gaussearch_index_reload_failures_total") == 1)
    described = client.get("/v1/index").json()
    assert described["generation"] == 1
    assert "'words'" in described["reload"]["last_error"]
    assert client.post("/v1/search", {"text": "text 1"}).json()["results"][0]["id"] == "d1"
    failures: list[Exception] = []
    for directory, message in (
        (texts, "'another'"),
        (make_index(random_gaussians(3, 5)), "does not say which model its Gaussians are of"),
    ):
        opened = Client(create_app(ServiceSettings(index=directory.path, model="given"), failures.append))
        wait_until(lambda: failures)
        opened.close()
        error = failures.pop()
        assert isinstance(error, ModelError)
        assert message in str(error)
    assert encoder.record.name == "words"


def test_a_model_that_cannot_be_loaded_ends_the_service(texts: IndexDirectory) -> None:
    failures: list[Exception] = []
    opened = Client(create_app(ServiceSettings(index=texts.path, model="nowhere"), failures.append))
    wait_until(lambda: failures)
    problem(opened.post("/v1/search", {"text": "a"}), 503, "not_ready")
    opened.close()
    assert "nowhere: there is no such folder" in str(failures[0])


def test_answers_are_json(client: Client) -> None:
    assert json.loads(client.post("/v1/search", {"text": "naïve 雪"}).content)["uncertainty"]
