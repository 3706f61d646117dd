"""schemathesis over everything that the OpenAPI document describes, over sockets: what is on the edge of what it allows
and beyond, then anything. No answer is a 5xx, and each is one that the document declares.
"""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from service.app import create_app
from service.settings import ServiceSettings
from tests.serving import Served, listening
from tests.test_openapi import OPERATIONS, is_short_time

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]
NAMES = sorted(name for name, errors in OPERATIONS.items() if 403 not in errors)
"""All that changes nothing: the rest is tried with a key, over an index of its own, in test_openapi and
test_write_faults."""


class Api:
    """The document as schemathesis reads it, and a connection to the service that publishes it."""

    def __init__(self, port: int) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        self.schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        found = [each.ok() for each in self.schema.get_all_operations() if isinstance(each, Ok)]
        self.operations = {operation.label: operation for operation in found}

    def check(self, case: schemathesis.Case[Any]) -> None:
        """Sends a request and compares the answer with the document."""
        for name, value in case.headers.items():
            # A deadline that has passed is answered 504, as it should be, and says nothing about the rest.
            if name.lower() == "x-request-timeout-ms" and is_short_time(value):
                case.headers[name] = "60000"
        case.call_and_validate(session=self.session, checks=CHECKS)


@pytest.fixture(scope="module")
def api(served: Served) -> Iterator[Api]:
    with listening(create_app(ServiceSettings(index=served.directory.path))) as port:
        opened = Api(port)
        yield opened
        opened.session.close()


def test_all_that_is_described_is_tried(api: Api) -> None:
    assert sorted(api.operations) == sorted(OPERATIONS)


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("name", NAMES)
def test_the_edges_of_what_is_allowed(api: Api, name: str) -> None:
    """Least and largest values, each field missing, of every other type and beyond its limits; methods that are not."""
    operation = api.operations[name]
    tried = 0
    for case in api.schema.iter_coverage_cases(
        operation,
        generation_modes=list(GenerationMode),
        generation_config=api.schema.config.generation_for(operation=operation),
    ):
        api.check(case)
        tried += 1
    # A text and a role have fewer edges than a Gaussian and the options of a search.
    assert tried >= (40 if name == "POST /v1/encode" else 80 if name.startswith("POST") else 8)


# Any text may be an id, so that nothing but a body can be wrong.
MODES = [(name, mode) for name in NAMES for mode in GenerationMode if mode.is_positive or name.startswith("POST")]


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize(("name", "mode"), MODES, ids=[f"{name}, {mode.value}" for name, mode in MODES])
def test_anything(api: Api, name: str, mode: GenerationMode) -> None:
    @hypothesis.settings(
        max_examples=25,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=api.operations[name].as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case[Any]) -> None:
        api.check(case)

    send()
