"""The OpenAPI document: complete, consistent, and true of the service that publishes it."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import jsonschema_rs
import numpy as np
import pyarrow.parquet as pq
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from index import IndexDirectory, build_index
from index.formats.columnar import MODEL_KEY
from service import index_responses, responses
from service.problems import PROBLEMS
from tests.conftest import random_gaussians, write_corpus
from tests.serving import Client, open_client
from tests.word_encoder import WordEncoder

PROBLEM = {"$ref": "#/components/schemas/ProblemResponse"}
ADMIN = "an-admin-key-of-enough-letters"
HEADERS = {"X-API-Key": ADMIN}
ACCEPTED = {"POST /v1/index/compact": 202}
"""What is answered where nothing is wrong, if it is not 200."""
OPERATIONS = {
    "POST /v1/search": {400, 401, 413, 415, 422, 429, 500, 503, 504},
    "POST /v1/search/batch": {400, 401, 413, 415, 422, 429, 500, 503, 504},
    "POST /v1/encode": {400, 401, 413, 415, 422, 429, 500, 503, 504},
    "POST /v1/documents/{document_id}/similar": {400, 401, 404, 413, 415, 422, 429, 500, 503, 504},
    "POST /v1/documents": {400, 401, 403, 413, 415, 422, 429, 500, 503, 504},
    "POST /v1/documents/delete": {400, 401, 403, 413, 415, 422, 429, 500, 503, 504},
    "DELETE /v1/documents/{document_id}": {401, 403, 404, 422, 429, 500, 503, 504},
    "POST /v1/index/compact": {400, 401, 403, 409, 413, 415, 422, 500, 503, 504},
    "GET /v1/documents/{document_id}": {401, 404, 503},
    "GET /v1/index": {401, 503},
    "GET /livez": {503},
    "GET /readyz": {503},
    "GET /metrics": set(),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service over an index of the width that the examples have, with the document that they name."""
    folder = tmp_path_factory.mktemp("openapi")
    ids = ["n00002452", *(f"d{row}" for row in range(19))]
    texts = ["thing: a separate entity"] * 20
    corpus = write_corpus(folder / "corpus.parquet", random_gaussians(20, 3, seed=2), ids, text=texts)
    encoder = WordEncoder(k=3)
    table = pq.read_table(corpus).replace_schema_metadata({MODEL_KEY: encoder.record.model_dump_json()})
    pq.write_table(table, corpus)
    build_index([corpus], IndexDirectory(folder / "wordnet"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.encoding.load_encoder", lambda *_, **__: encoder)
        opened = open_client(IndexDirectory(folder / "wordnet"), admin_key=ADMIN, model="given")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def document(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def every(node: Any, key: str) -> Iterator[Any]:
    """Every value of `key`, at any depth."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        for value in node.values():
            yield from every(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from every(value, key)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def resolve(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_every_operation_has_a_summary_a_description_and_its_errors(document: dict[str, Any]) -> None:
    found = operations(document)
    assert set(found) == set(OPERATIONS)
    for name, operation in found.items():
        assert operation["summary"]
        assert operation["description"]
        done = str(ACCEPTED.get(name, 200))
        errors = {int(status): answer for status, answer in operation["responses"].items() if status != done}
        assert set(errors) == OPERATIONS[name]
        for answer in errors.values():
            assert answer["content"] == {"application/problem+json": {"schema": PROBLEM}}
            assert answer["description"]


def test_declared_errors_are_those_of_the_table(document: dict[str, Any]) -> None:
    declared = {int(status) for operation in operations(document).values() for status in operation["responses"]}
    # 405 is what a path answers to a method that OpenAPI does not list, 408 and 431 what is no request is answered.
    assert declared - {200, 202} == {problem.status.value for problem in PROBLEMS.values()} - {405, 408, 431}


def test_every_reference_resolves_and_nothing_is_left_over(document: dict[str, Any]) -> None:
    references = set(every(document, "$ref"))
    assert all(resolve(document, reference) is not None for reference in references)
    assert {f"#/components/schemas/{name}" for name in document["components"]["schemas"]} == references


def test_every_schema_is_a_schema(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_every_field_of_a_request_is_described(document: dict[str, Any]) -> None:
    for name in ("SearchRequest", "BatchSearchRequest", "SimilarRequest"):
        schema = document["components"]["schemas"][name]
        assert schema["additionalProperties"] is False
        for field, declared in schema["properties"].items():
            assert declared.get("description") or "description" in json.dumps(declared) or field == "queries"


def test_every_body_and_answer_has_an_example_that_its_schema_allows(document: dict[str, Any]) -> None:
    checked = 0
    for name, operation in operations(document).items():
        bodies = [operation.get("requestBody"), operation["responses"][str(ACCEPTED.get(name, 200))]]
        for content in (body["content"] for body in bodies if body):
            for media_type, body in content.items():
                if media_type == "text/plain":
                    assert body["example"]
                    continue
                schema = resolve(document, body["schema"]["$ref"])
                assert schema["examples"]
                for example in schema["examples"]:
                    validator(document, body["schema"]).validate(example)
                    checked += 1
    assert checked == 19


def test_models_and_examples_agree() -> None:
    for name in ("SearchResponse", "BatchSearchResponse", "DocumentResponse", "IndexResponse", "ProblemResponse"):
        model = getattr(index_responses if name == "IndexResponse" else responses, name)
        for example in model.model_json_schema()["examples"]:
            shown = model.model_validate(example).model_dump(exclude_unset=True)
            assert shown == example


def test_both_examples_of_a_vector_are_the_same_vector(document: dict[str, Any]) -> None:
    ((numbers, text),) = every(document["components"]["schemas"]["SearchRequest"]["properties"]["mean"], "examples")
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == pytest.approx(numbers, rel=1e-6)


def test_every_example_of_a_request_works_and_its_answer_is_what_is_declared(
    client: Client, document: dict[str, Any]
) -> None:
    tried = 0
    # What deletes the document that the examples name comes last.
    for name, operation in sorted(operations(document).items(), key=lambda each: "delete" in each[0]):
        method, path = name.split(" ")
        bodies = [None]
        if "requestBody" in operation:
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            bodies = resolve(document, reference)["examples"]
        for body in bodies:
            path = path.replace("{document_id}", "d18" if method == "DELETE" else "n00002452")
            response = client.request(method, path, json=body, headers=HEADERS)
            done = ACCEPTED.get(name, 200)
            assert response.status_code == done, response.text
            (declared,) = operation["responses"][str(done)]["content"]
            assert response.headers["content-type"].split(";")[0] == declared
            if declared == "application/json":
                schema = operation["responses"][str(done)]["content"][declared]["schema"]
                validator(document, schema).validate(response.json())
            tried += 1
    assert tried == len(OPERATIONS)


def test_a_body_is_required_where_it_must_be(client: Client, document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        if "requestBody" in operation:
            method, path = name.split(" ")
            status = client.request(method, path.replace("{document_id}", "d1"), headers=HEADERS).status_code
            assert status == (422 if operation["requestBody"]["required"] else ACCEPTED.get(name, 200))


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


# What takes neither a body nor a parameter cannot be asked wrongly, and a compaction is not asked for twice.
MODES = [
    (name, mode)
    for name in OPERATIONS
    for mode in GenerationMode
    if "compact" not in name and (mode is GenerationMode.POSITIVE or not name.startswith("GET"))
]


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize(("name", "mode"), MODES, ids=lambda part: str(getattr(part, "value", part)))
def test_generated_requests_get_only_declared_answers(
    client: Client, document: dict[str, Any], name: str, mode: GenerationMode
) -> None:
    """schemathesis sends what the document allows and what it does not, and compares the answers with it."""
    method, path = name.split(" ")
    operation = schemathesis.openapi.from_dict(document)[path][method]
    checks = CHECKS + ([negative_data_rejection] if mode is GenerationMode.NEGATIVE else [])

    @hypothesis.settings(
        max_examples=15, suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate]
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case[Any]) -> None:
        made = case.as_transport_kwargs(base_url="http://127.0.0.1")
        options: dict[str, Any] = {name: made[name] for name in ("headers", "params", "json") if name in made}
        if "data" in made:
            options["content"] = made["data"]
        # A key of its own making is answered 401, and says nothing about the rest.
        options["headers"] = {**options.get("headers", {}), **HEADERS}
        options["headers"].pop("Authorization", None)
        for name, value in options.get("headers", {}).items():
            # A deadline that has passed is answered 504, as it should be, and says nothing about the rest.
            if name.lower() == "x-request-timeout-ms" and is_short_time(value):
                options["headers"][name] = "60000"
        case.validate_response(client.request(made["method"], made["url"], **options), checks=checks)

    send()


def is_short_time(header: object) -> bool:
    """Whether it is a number of milliseconds that the service would wait for."""
    try:
        return 0 < float(str(header)) < 60_000
    except ValueError:
        return False
