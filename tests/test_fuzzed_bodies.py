"""Bodies made out of good ones by chance, and out of nothing: whatever they are, the answer is one that the OpenAPI
document declares, an error is a problem document, and the connection goes on.
"""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.settings import ServiceSettings
from tests.serving import Served, listening
from tests.sockets import Peer, ask, request

MEAN, VARIANCE = [0.5, -1, 0, 2e-3, 1], [1, 0.25, 3, 1e-2, 1]
BASE64 = "AACAPwAAgD8AAIA/AACAPwAAgD8="
OPTIONS: dict[str, Any] = {
    "top_k": 3,
    "exact": False,
    "candidates": 20,
    "min_score": -100.5,
    "with_payload": True,
    "explain": True,
}
GOOD: dict[str, list[Any]] = {
    "/v1/search": [
        {"mean": MEAN, "variance": VARIANCE, **OPTIONS},
        {"mean": BASE64, "logvar": [0.1, -3, 0, 1, 2]},
    ],
    "/v1/search/batch": [
        {"queries": [{"mean": MEAN, "variance": BASE64}, {"mean": BASE64, "logvar": MEAN}], **OPTIONS},
    ],
    "/v1/documents/d7/similar": [{**OPTIONS, "include_self": True}, {}],
}
TEMPLATES = {"/v1/documents/d7/similar": "/v1/documents/{document_id}/similar"}


class Service:
    """A connection to a service, and the statuses that its document declares for each path."""

    def __init__(self, port: int) -> None:
        document = ask(port, request(b"", path="/openapi.json", method="GET", declared=False)).json()
        self.declared = {
            path: {int(status) for status in document["paths"][TEMPLATES.get(path, path)]["post"]["responses"]}
            for path in GOOD
        }
        self.peer = Peer(port)

    def answer(self, path: str, body: bytes) -> int:
        """The status of the answer, which is checked; the same connection is used again."""
        answer = self.peer.write(request(body, path=path)).read()
        assert answer.status in self.declared[path]
        # Nothing here is late or too much, so that only the client can be at fault.
        assert answer.status in (200, 400, 422)
        if answer.status == 200:
            assert answer.headers["content-type"] == "application/json"
            # What the results rest on is there where it was asked for.
            assert set(answer.json()) - {"search"} == {"results", "took_ms", "index"}
        else:
            assert answer.problem()
        assert len(answer.content) < 100_000
        return answer.status


@pytest.fixture(scope="module")
def service(served: Served) -> Iterator[Service]:
    with listening(create_app(ServiceSettings(index=served.directory.path))) as port:
        opened = Service(port)
        yield opened
        opened.peer.close()


PATHS = st.sampled_from(list(GOOD))
ODD_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63), 10**25]),
    st.sampled_from([1e308, 5e-324, 1e39, math.nan, math.inf, -math.inf, -0.0]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", BASE64, BASE64[:-1], "AAAA", "mean", "__proto__"]),
    st.lists(st.floats(-10, 10), max_size=6),
    st.recursive(
        st.integers(0, 9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ),
)
NAMES = st.sampled_from(["mean", "variance", "logvar", "queries", "nprobe", "topk", "", *OPTIONS, "include_self"])


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or positions."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, Any]:
    """A good body with up to four of its values replaced, removed, doubled, renamed or put where they do not belong."""
    path = draw(PATHS)
    body = copy.deepcopy(draw(st.sampled_from(GOOD[path])))
    for _ in range(draw(st.integers(1, 4))):
        found = places(body)
        if not found:
            body[draw(NAMES)] = draw(ODD_VALUES)
            continue
        container, key = draw(st.sampled_from(found))
        how = draw(st.sampled_from(["replace", "replace", "remove", "double", "rename", "wrap", "move"]))
        if how == "replace":
            container[key] = draw(ODD_VALUES)
        elif how == "remove":
            del container[key]
        elif how == "double" and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif how == "wrap":
            container[key] = [container[key]]
        elif how == "move":
            other, place = draw(st.sampled_from(found))
            other[place] = copy.deepcopy(container[key])
        elif isinstance(container, dict):
            container[draw(NAMES)] = container[key]
    return path, body


SIGNS = st.sampled_from([*(bytes([sign]) for sign in b'[]{},:"\\-+e0.'), b"NaN", b"true", b"\xff", b"\xef\xbb\xbf"])


@st.composite
def cut(draw: st.DrawFn) -> tuple[str, bytes]:
    """The bytes of a good body, some of them changed, left out, doubled or put in between."""
    path = draw(PATHS)
    data = bytearray(json.dumps(draw(st.sampled_from(GOOD[path]))).encode())
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 8)))
        filling = draw(st.sampled_from(["nothing", "bytes", "signs", "double"]))
        inserted = {
            "nothing": b"",
            "bytes": draw(st.binary(max_size=3)),
            "signs": draw(SIGNS),
            "double": bytes(data[start:end]) * 2,
        }[filling]
        data[start:end] = inserted
    return path, bytes(data)


@settings(max_examples=250)
@given(made=mutated())
@example(made=("/v1/search", {"mean": MEAN, "variance": VARIANCE, "nprobe": 3}))
def test_values_changed_by_chance(service: Service, made: tuple[str, Any]) -> None:
    path, body = made
    try:
        data = json.dumps(body).encode()
    except (ValueError, RecursionError):
        # Moved into itself.
        return
    service.answer(path, data)


@settings(max_examples=250)
@given(made=cut())
def test_bytes_changed_by_chance(service: Service, made: tuple[str, bytes]) -> None:
    service.answer(*made)


@settings(max_examples=100)
@given(path=PATHS, data=st.binary(max_size=300))
def test_bytes_out_of_nothing(service: Service, path: str, data: bytes) -> None:
    service.answer(path, data)


@settings(max_examples=100)
@given(path=PATHS, data=st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_text_out_of_nothing(service: Service, path: str, data: bytes) -> None:
    service.answer(path, data)


def test_good_bodies_are_good(service: Service) -> None:
    """Or what is made out of them would be refused for what they have in common."""
    for path, bodies in GOOD.items():
        for body in bodies:
            assert service.answer(path, json.dumps(body).encode()) == 200
