"""Bodies that no honest client sends, over sockets: what is wrong is named with a status of the client's, whatever is
legal is searched, and neither costs others their time or the machine its memory.
"""

import base64
import json
import math
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from service.app import create_app
from service.requests import MAX_ELEMENTS, MAX_FIELDS
from service.settings import ServiceSettings
from tests.serving import Served, listening
from tests.sockets import BODY, Answer, Peer, ask, chunked, request


@pytest.fixture(scope="module")
def port(served: Served) -> Iterator[int]:
    """A service over real sockets with default settings."""
    with listening(create_app(ServiceSettings(index=served.directory.path))) as port:
        yield port


@pytest.fixture(scope="module")
def peer(port: int) -> Iterator[Peer]:
    """One connection for all: whatever it sends, the next request on it is answered too."""
    with Peer(port) as peer:
        yield peer


MEAN, VARIANCE = "[0, 0, 0, 0, 0]", "[1, 1, 1, 1, 1]"
SIMILAR, BATCH = "/v1/documents/d7/similar", "/v1/search/batch"


def text(fields: dict[str, str]) -> bytes:
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}").encode()


def query(**fields: str) -> bytes:
    spread = {} if "logvar" in fields else {"variance": VARIANCE}
    return text({"mean": MEAN, **spread, **fields})


def check(answer: Answer, status: int, code: str) -> None:
    if status == 200:
        results = answer.json()["results"]
        scores = [result["score"] for result in results]
        assert all(math.isfinite(score) and score <= 0 for score in scores)
    else:
        assert (answer.status, answer.problem()) == (status, code)
    assert answer.status == status
    assert len(answer.content) < 10_000


@dataclass(frozen=True)
class Number:
    """A number as JSON has it, and the code with which it is refused in each field; "" where it is searched with."""

    text: str
    mean: str
    variance: str
    logvar: str
    min_score: str
    top_k: str


NO_GAUSSIAN, INVALID, LIMIT, NO_JSON = "invalid_gaussian", "invalid_request", "limit_exceeded", "malformed_json"
NUMBERS = [
    *(Number(value, NO_JSON, NO_JSON, NO_JSON, NO_JSON, NO_JSON) for value in (
        "01", "+1", ".5", "5.", "0x10", "1_000", "1e", "--1", "nan", "-NaN", "inf", "1,", "1 2", "1" + "0" * 5000,
    )),
    *(Number(value, INVALID, INVALID, INVALID, INVALID, INVALID) for value in (
        "true", "false", '"3"', '"NaN"', "[]", "[1]", "{}", '""',
    )),
    *(Number(value, NO_GAUSSIAN, NO_GAUSSIAN, NO_GAUSSIAN, INVALID, INVALID) for value in (
        "1e999", "-1e999", "NaN", "Infinity", "-Infinity",
    )),
    *(Number(value, "", NO_GAUSSIAN, "", "", INVALID) for value in ("0.0", "-0.0", "1e-999", "-1e-999", "1e-46")),
    *(Number(value, NO_GAUSSIAN, NO_GAUSSIAN, NO_GAUSSIAN, "", INVALID) for value in ("1e39", "-1e39", "1.7e308")),
    Number("null", INVALID, INVALID, INVALID, "", INVALID),
    Number("0", "", NO_GAUSSIAN, "", "", INVALID),
    Number("-1", "", NO_GAUSSIAN, "", "", INVALID),
    Number("-0", "", NO_GAUSSIAN, "", "", INVALID),
    Number("1", "", "", "", "", ""),
    Number("1E0", "", "", "", "", INVALID),
    Number("1.0", "", "", "", "", INVALID),
    Number("5e-1", "", "", "", "", INVALID),
    Number("0." + "1" * 5000, "", "", "", "", INVALID),
    Number("1e-45", "", "", "", "", INVALID),
    Number("5e-324", "", NO_GAUSSIAN, "", "", INVALID),
    Number("88.7", "", "", "", "", INVALID),
    Number("88.8", "", "", NO_GAUSSIAN, "", INVALID),
    Number("-103.2", "", NO_GAUSSIAN, "", "", INVALID),
    Number("-104", "", NO_GAUSSIAN, NO_GAUSSIAN, "", INVALID),
    Number("3.4028234e38", NO_GAUSSIAN, "", NO_GAUSSIAN, "", INVALID),
    Number(str(2**31), "", "", NO_GAUSSIAN, "", LIMIT),
    Number(str(2**63), "", "", NO_GAUSSIAN, "", LIMIT),
    Number(str(2**64), "", "", NO_GAUSSIAN, "", LIMIT),
    Number("9" * 400, NO_GAUSSIAN, NO_GAUSSIAN, NO_GAUSSIAN, INVALID, LIMIT),
]  # fmt: skip


@pytest.mark.parametrize("field", ["mean", "variance", "logvar", "min_score", "top_k"])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.text[:12])
def test_numbers(peer: Peer, number: Number, field: str) -> None:
    code = getattr(number, field)
    value = f"[1, {number.text}, 1, 1, 1]" if field in ("mean", "variance", "logvar") else number.text
    status = 200 if not code else 400 if code == NO_JSON else 422
    check(peer.write(request(query(**{field: value}))).read(), status, code)


FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-45, 1e-38, 1.0, 88.0, 89.0, 3.4e38, -3.4e38)
SEARCHED = {
    "mean": lambda value: abs(value) < 1e38,
    "variance": lambda value: 0 < value < math.inf,
    "logvar": lambda value: -103 < value < 88.7,
}


@pytest.mark.parametrize("field", SEARCHED)
@pytest.mark.parametrize("value", FLOATS)
def test_base64_of_any_float_is_what_the_same_number_is(peer: Peer, field: str, value: float) -> None:
    packed = struct.pack("<5f", 1, value, 1, 1, 1)
    forms = (f'"{base64.b64encode(packed).decode()}"', json.dumps(struct.unpack("<5f", packed)))
    answers = [peer.write(request(query(**{field: form}))).read() for form in forms]
    for answer in answers:
        check(answer, 200 if SEARCHED[field](value) else 422, NO_GAUSSIAN)
    assert answers[0].json().get("results") == answers[1].json().get("results")


LARGE = (0, -1, 2**31, 2**32 + 1, 2**63, 2**64, 10**400)


@pytest.mark.parametrize("option", ["top_k", "candidates", "nprobe"])
@pytest.mark.parametrize("value", LARGE, ids=lambda value: f"{value:.3g}" if value < 2**65 else "huge")
@pytest.mark.parametrize("path", ["/v1/search", BATCH, SIMILAR])
def test_counts_out_of_range(peer: Peer, path: str, option: str, value: int) -> None:
    bodies = {"/v1/search": query(**{option: str(value)}), SIMILAR: text({option: str(value)})}
    body = bodies.get(path, text({"queries": f"[{query().decode()}]", option: str(value)}))
    check(peer.write(request(body, path=path)).read(), 422, INVALID if value < 1 else LIMIT)


MALFORMED = {
    "nothing but space": b" \r\n\t",
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "UTF-32": BODY.decode().encode("utf-32"),
    "garbage behind": BODY + b"garbage",
    "another body behind": BODY + BODY,
    "NUL behind": BODY + b"\0",
    "NUL within": BODY.replace(b" ", b"\0", 1),
    "a comment": b"/* */" + BODY,
    "single quotes": BODY.replace(b'"', b"'"),
    "names without quotes": BODY.replace(b'"', b""),
    "a comma at the end": BODY[:-1] + b",}",
    "a comma too many": BODY.replace(b",", b",,", 1),
    "no colon": BODY.replace(b":", b"", 1),
    "half": BODY[: len(BODY) // 2],
    "all but the last byte": BODY[:-1],
    "a bracket of another kind": BODY[:-1] + b"]",
    "invalid UTF-8 in a text": query(mean='"AAAA').replace(b"AAAA", b"\xc3\x28", 1) + b'"}',
    "a surrogate in UTF-8": b'{"\xed\xa0\x80": 1}',
    "overlong UTF-8": b'{"\xc0\xaf": 1}',
    "half a surrogate": b'{"mean": "\\ud800"}',
    "half a surrogate as a name": b'{"\\udfff": 1}',
    "half an escape": b'{"mean": "\\u12"}',
    "an unknown escape": b'{"mean": "\\x41"}',
    "a line break in a text": b'{"mean": "AA\nAA"}',
    "lists without end": b"[" * 100_000,
    "objects without end": b'{"a":' * 25_000,
    "lists nested deeply": b"[" * 50_000 + b"]" * 50_000,
    "a field nested deeply": query(filter="[" * 50_000 + "]" * 50_000),
    "compressed": zlib.compress(BODY),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00",
    "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    "a form": b"mean=0&variance=1",
}  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("path", ["/v1/search", BATCH, SIMILAR])
def test_what_is_no_json(peer: Peer, path: str, body: bytes) -> None:
    check(peer.write(request(body, path=path)).read(), 400, NO_JSON)


ODD: dict[str, tuple[bytes, str]] = {
    "names in escapes": (query().replace(b"mean", b"\\u006dean"), ""),
    "spaces everywhere": (query().replace(b",", b" \n\r\t, "), ""),
    "the last of two fields counts": (query(top_k="3")[:-1] + b', "top_k": 1}', ""),
    "the last of two fields is wrong": (query(top_k="3")[:-1] + b', "top_k": 0}', INVALID),
    "a number": (b"3", INVALID),
    "a text": (b'"mean"', INVALID),
    "a list of queries": (b"[" + query() + b"]", INVALID),
    "a field in capitals": (query().replace(b"mean", b"Mean"), INVALID),
    "a field of a space": (query(**{"mean ": "1"}), INVALID),
    "an empty name": (query(**{"": "1"}), INVALID),
    "a name of NUL": (query(**{"\\u0000": "1"}), INVALID),
    "a name of 100 KB": (query(**{"x" * 100_000: "1"}), INVALID),
    "Python's own": (query(__class__='{"__init__": {"__globals__": 1}}', model_config="{}"), INVALID),
    "k = 0": (query(mean="[]", variance="[]"), NO_GAUSSIAN),
    "k = 0 in base64": (query(mean='""', variance='""'), NO_GAUSSIAN),
    "k = 4": (query(mean="[0, 0, 0, 0]"), NO_GAUSSIAN),
    "k = 6": (query(variance="[1, 1, 1, 1, 1, 1]"), NO_GAUSSIAN),
    "k of a million": (query(mean="[" + "0," * 999_999 + "0]"), NO_GAUSSIAN),
    "a million in base64": (query(mean='"' + "AAAA" * 1_000_000 + '"'), NO_GAUSSIAN),
    "numbers and texts": (query(mean='[0, "0", 0, 0, 0]'), INVALID),
    "an object for a vector": (query(mean='{"0": 0}'), INVALID),
    "a false spread": (query(variance="false"), INVALID),
    "no spread": (text({"mean": MEAN}), INVALID),
    "both spreads": (query(logvar=MEAN, variance=VARIANCE), INVALID),
}  # fmt: skip


@pytest.mark.parametrize(("body", "code"), ODD.values(), ids=ODD)
def test_odd_json(peer: Peer, body: bytes, code: str) -> None:
    check(peer.write(request(body)).read(), 422 if code else 200, code)


@pytest.mark.parametrize("base64_text", ["AAAA AAAA", "AAAAAAA", "====", "AAAA====", "A", "__--", "AAA\\u0000", "é"])
@pytest.mark.parametrize("field", ["mean", "variance", "logvar"])
def test_what_is_no_base64(peer: Peer, field: str, base64_text: str) -> None:
    check(peer.write(request(query(**{field: f'"{base64_text}"'}))).read(), 422, NO_GAUSSIAN)


def test_an_empty_batch_and_one_over_the_limit(peer: Peer) -> None:
    one = query().decode()
    for count, code in ((0, INVALID), (256, ""), (257, LIMIT), (2000, LIMIT)):
        body = text({"queries": "[" + ", ".join([one] * count) + "]", "top_k": "1"})
        answer = peer.write(request(body, path=BATCH)).read()
        assert answer.status == (422 if code else 200)
        assert code in ("", answer.json().get("code"))


FLOODS = {
    "lists in a vector": b'{"mean": [[' + b"[]," * 5_000_000 + b"[]]]}",
    "objects in an unknown field": b'{"zzz": [' + b'{"a":1},' * 2_000_000 + b"{}]}",
    "queries": b'{"queries": [' + b'{"mean":[],"variance":[]},' * 600_000 + b"{}]}",
    "fields": b"{" + b",".join(b'"%d":0' % number for number in range(1_000_000)) + b"}",
    "numbers": b'{"mean": [' + b"0," * 8_000_000 + b"0]}",
    "lists nested without end": b"[" * 16_000_000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_body_of_millions_of_parts_is_not_taken_apart(port: int, name: str) -> None:
    """They become as many objects: up to eleven seconds, all in one step of the event loop, and two gigabytes."""
    body = FLOODS[name]
    tracemalloc.start()
    try:
        answer = ask(port, request(body, path=BATCH))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    check(answer, 422, INVALID)
    (error,) = answer.json()["errors"]
    assert error["field"] == "body"
    assert f"{MAX_ELEMENTS:,}" in error["message"] or f"{MAX_FIELDS:,}" in error["message"]
    # The body in parts, joined, a mask of it, and what the server reads ahead.
    assert peak < 4 * len(body)


def test_a_body_of_nearly_too_many_parts_is_parsed(port: int) -> None:
    fields = (MAX_FIELDS - 8) // 5
    body = b'{"top_k": 1, "queries": [' + b",".join([b'{"mean":[],"variance":[]}'] * fields) + b"]}"
    assert ask(port, request(body, path=BATCH)).problem() == LIMIT
    numbers = b'{"mean": [' + b"0," * (MAX_ELEMENTS - 2) + b'0], "variance": [1]}'
    assert ask(port, request(numbers)).problem() == NO_GAUSSIAN


def test_a_compressed_body_is_refused_before_it_is_read(port: int) -> None:
    """One that inflates a thousandfold is not even asked for."""
    bomb = zlib.compress(b"[" * 10_000_000, 9)
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "x", "identity, gzip"):
        with Peer(port) as peer:
            head = request(b"", f"Content-Encoding: {encoding}", f"Content-Length: {len(bomb)}", declared=False)
            assert peer.write(head).read().problem() == "unsupported_encoding"
            peer.write(bomb)


def oversized(port: int, *parts: bytes) -> Any:
    with Peer(port) as peer:
        for part in parts:
            peer.write(part)
        return peer.read()


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_an_oversized_body_is_refused_and_not_kept(served: Served, declared: bool) -> None:
    limit, part = 100_000, b" " * 50_000
    app = create_app(ServiceSettings(index=served.directory.path, max_body_bytes=limit))
    length = f"Content-Length: {1000 * len(part)}" if declared else "Transfer-Encoding: chunked"
    data = part if declared else chunked(part)
    with listening(app) as port:
        head = request(b"", length, declared=False)
        if declared:
            assert oversized(port, head).problem() == "body_too_large"
        tracemalloc.start()
        try:
            answer = oversized(port, head, *[data] * 400)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        check(answer, 413, "body_too_large")
        # 20 MB were sent.
        assert peak < 4_000_000
        assert ask(port).status == 200
