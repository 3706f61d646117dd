"""Payload: the other columns of a corpus, of whatever type, come back as they went in."""

import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest

from index import BuildOptions, IndexDirectory, LocalSearcher, build_index
from index.errors import SourceError
from tests.conftest import random_gaussians, write_corpus

N = 6
UTC = datetime.UTC
DAY = datetime.datetime(1969, 1, 1)


def build(tmp_path: Path, *corpus: Path, **options: Any) -> list[dict[str, Any]]:
    """The payload of every document, in the corpus's order."""
    directory = IndexDirectory(tmp_path / "index")
    build_index(corpus, directory, BuildOptions.model_validate(options))
    searcher = LocalSearcher(directory)
    return searcher.payloads(np.arange(len(searcher)))


def arrow(path: Path, name: str, column: pa.Array, n: int = N) -> Path:
    gaussians = random_gaussians(n, 2)
    columns = {"id": [f"{path.stem}{row}" for row in range(n)], "mean": list(gaussians.means.numpy())}
    table = pa.table({**columns, "variance": list(gaussians.variances.numpy()), name: column})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


CASES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "bool": (pa.bool_(), [True, False, None]),
    "integer": (pa.int64(), [-(2**63), 2**63 - 1, None]),
    "unsigned": (pa.uint64(), [0, 2**64 - 1, None]),
    "half": (pa.float16(), [0.5, -2.0, None]),
    "double": (pa.float64(), [0.1, float("inf"), None]),
    "decimal": (pa.decimal128(10, 2), [decimal.Decimal("1.25"), decimal.Decimal("-3.00"), None]),
    "string": (pa.string(), ["", "é\U0001f600", None]),
    "large string": (pa.large_string(), ["", "x" * 1000, None]),
    "string view": (pa.string_view(), ["short", "x" * 100, None]),
    "binary": (pa.binary(), [b"", b"\xff\x00", None]),
    "fixed binary": (pa.binary(2), [b"ab", b"\xff\x00", None]),
    "binary view": (pa.binary_view(), [b"short", b"\xff" * 100, None]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["a", "b", None]),
    "date": (pa.date32(), [datetime.date(1, 1, 1), datetime.date(9999, 12, 31), None]),
    "time": (pa.time64("us"), [datetime.time(0), datetime.time(23, 59, 59, 999_999), None]),
    "timestamp": (pa.timestamp("ns"), [datetime.datetime(2020, 2, 29, 1, 2, 3, 4), DAY, None]),
    "timestamp, UTC": (pa.timestamp("ms", "UTC"), [datetime.datetime(2020, 1, 1, tzinfo=UTC), None, None]),
    "duration": (pa.duration("ns"), [datetime.timedelta(days=1, microseconds=5), datetime.timedelta(0), None]),
    "list": (pa.list_(pa.int32()), [[], [1, None], None]),
    "list of structs": (pa.list_(pa.struct([("a", pa.string())])), [[{"a": "x"}, None], [{"a": None}], None]),
    "list of times": (pa.list_(pa.timestamp("ns")), [[DAY], [None], None]),
    "fixed list": (pa.list_(pa.date32(), 2), [[datetime.date(2020, 1, 1), None], [None, None], None]),
    "struct": (pa.struct([("t", pa.time64("ns"))]), [{"t": datetime.time(1)}, {"t": None}, None]),
    "map": (pa.map_(pa.string(), pa.timestamp("ns")), [[("k", DAY)], [], None]),
    "uuid": (pa.uuid(), [uuid.UUID(int=7), uuid.UUID(int=2**128 - 1), None]),
    "null": (pa.null(), [None, None, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_of_every_type_come_back(tmp_path: Path, name: str) -> None:
    kind, values = CASES[name]
    column = pa.array([value.bytes if isinstance(value, uuid.UUID) else value for value in values * 2], kind)
    found = build(tmp_path, arrow(tmp_path / "a.arrow", name, column), segment_docs=5)
    assert found == [{name: value} for value in values * 2]
    assert all(type(row[name]) is type(value) for row, value in zip(found, values * 2, strict=True))


@pytest.mark.parametrize(("kind", "number", "text"), [
    (pa.timestamp("ns"), 1, "1970-01-01 00:00:00.000000001"),
    (pa.timestamp("ns", "UTC"), 1, "1970-01-01 00:00:00.000000001Z"),
    (pa.time64("ns"), 1, "00:00:00.000000001"),
    (pa.date32(), 10**7, "29349-01-26"),
    (pa.duration("ns"), 1, "1"),
    (pa.list_(pa.timestamp("ns")), [1], ["1970-01-01 00:00:00.000000001"]),
    (pa.struct([("at", pa.timestamp("ns"))]), {"at": 1}, {"at": "1970-01-01 00:00:00.000000001"}),
])  # fmt: skip
def test_times_that_python_cannot_hold_come_back_as_text(
    tmp_path: Path, kind: pa.DataType, number: Any, text: Any
) -> None:
    found = build(tmp_path, arrow(tmp_path / "a.arrow", "at", pa.array([number, None] * 3, kind)))
    assert found == [{"at": text}, {"at": None}] * 3


def test_run_lengths_are_written_out(tmp_path: Path) -> None:
    column = pa.RunEndEncodedArray.from_arrays([1, 5, N], ["a", "b", "c"])
    assert [row["run"] for row in build(tmp_path, arrow(tmp_path / "a.arrow", "run", column))] == list("abbbbc")


def test_a_type_that_rows_cannot_be_taken_from_is_refused_when_the_index_is_built(tmp_path: Path) -> None:
    corpus = arrow(tmp_path / "a.arrow", "views", pa.array([["x"]] * N, pa.list_(pa.string_view())))
    with pytest.raises(SourceError, match=rf"{corpus}: column 'views' is list<.*string_view>, which cannot be payload"):
        build(tmp_path, corpus)


def write_lines(path: Path, *columns: dict[str, Any]) -> Path:
    rows = [
        {"id": f"{path.stem}{row}", "mean": [0.5], "variance": [1.0], **column} for row, column in enumerate(columns)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_types_of_json_lines_may_widen_from_batch_to_batch(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = (
        [{"a": None, "b": 1}] * 5000 + [{"a": 2, "c": [1]}] * 5000 + [{"a": 0.5, "c": None}] * 5000
    )
    found = build(tmp_path, write_lines(tmp_path / "a.jsonl", *rows))
    for row in (0, 4999, 5000, 9999, 10_000, 14_999):
        assert {name: value for name, value in found[row].items() if value is not None} == {
            name: value for name, value in rows[row].items() if value is not None
        }
    assert len(found) == 15_000


def test_types_that_do_not_go_together_are_refused_by_the_file(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "a.jsonl", {"a": 1})
    other = write_lines(tmp_path / "b.jsonl", {"a": "text"})
    with pytest.raises(SourceError, match=rf"payload columns between {one} and {other} .* Give the column one type"):
        build(tmp_path, one, other)
    write_lines(other, {"a": 2})
    assert build(tmp_path, one, other) == [{"a": 1}, {"a": 2}]


def test_segments_may_have_types_that_do_not_go_together(tmp_path: Path) -> None:
    corpus = [write_lines(tmp_path / "a.jsonl", {"a": 1}), write_lines(tmp_path / "b.jsonl", {"a": "text"})]
    assert build(tmp_path, *corpus, segment_docs=1) == [{"a": 1}, {"a": "text"}]


@pytest.mark.parametrize("segment_docs", [100, 5, 3])
def test_files_of_different_formats_and_columns_make_one_index(tmp_path: Path, segment_docs: int) -> None:
    gaussians = random_gaussians(4, 2)
    parquet = write_corpus(tmp_path / "p.parquet", gaussians, ["p0", "p1", "p2", "p3"], title=["t"] * 4, n=[1, 2, 3, 4])
    lines = tmp_path / "j.jsonl"
    fields: list[dict[str, Any]] = [{"title": "u", "tags": ["x"]}, {"n": 2.5}]
    rows = [{"id": f"j{row}", "mean": [0.0, 1.0], "variance": [1.0, 1.0], **field} for row, field in enumerate(fields)]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = tmp_path / "z.npz"
    np.savez(plain, id=np.array(["z0", "z1"]), mean=np.zeros((2, 2)), variance=np.ones((2, 2)))
    found = build(tmp_path, parquet, lines, plain, segment_docs=segment_docs)
    present = [{name: value for name, value in row.items() if value is not None} for row in found]
    assert present == [*({"title": "t", "n": n} for n in (1, 2, 3, 4)), *fields, {}, {}]


def test_dictionaries_that_differ_from_file_to_file_are_one_column(tmp_path: Path) -> None:
    corpus = [
        arrow(tmp_path / f"{name}.arrow", "kind", pa.array([name, "both"] * 3).dictionary_encode())
        for name in ("a", "b")
    ]
    assert [row["kind"] for row in build(tmp_path, *corpus)] == ["a", "both"] * 3 + ["b", "both"] * 3


def test_a_corpus_without_other_columns_has_no_payload_file(tmp_path: Path) -> None:
    found = build(tmp_path, write_corpus(tmp_path / "a.parquet", random_gaussians(3, 2)))
    assert found == [{}, {}, {}]
    assert list((tmp_path / "index").glob("segments/*/payload.arrow")) == []


@pytest.mark.parametrize("nested", [False, True])
def test_times_of_a_zone_that_nobody_knows_are_refused_when_the_index_is_built(tmp_path: Path, nested: bool) -> None:
    kind = pa.timestamp("ns", "Nowhere/Atlantis")
    column = pa.array([[None]] * N, pa.list_(kind)) if nested else pa.array([0] * N, kind)
    corpus = arrow(tmp_path / "a.arrow", "at", column)
    with pytest.raises(SourceError, match=rf"{corpus}: column 'at' has times of 'Nowhere/Atlantis'"):
        build(tmp_path, corpus)
