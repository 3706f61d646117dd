"""Filters against a second implementation that looks at one value of one row at a time, and against what is stored."""

import datetime
import itertools
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import find, given, settings

from index import BuildOptions, IndexDirectory, build_index
from index.errors import InvalidOptionError
from index.filters import Filter
from index.generation_files import open_segments
from tests.conftest import random_gaussians

UTC = datetime.UTC
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A column's type, strategies for its values and for those of conditions, and what both are when compared.

    compared: a condition's value as one that orders with `value` of a row's.
    """

    arrow: pa.DataType
    cells: st.SearchStrategy[Any]
    asked: st.SearchStrategy[Any]
    compared: Callable[[Any], Any]
    value: Callable[[Any], Any] = lambda cell: cell
    is_list: bool = False


def rounded(code: str) -> Callable[[Any], float]:
    """To the float that `struct` packs, and as it is where struct finds no float that can hold it."""

    def compared(number: Any) -> float:
        try:
            return float(struct.unpack(code, struct.pack(code, float(number)))[0])
        except OverflowError:
            return float(number)

    return compared


def instant(text: str) -> Fraction:
    """Seconds since 1970."""
    moment = datetime.datetime.fromisoformat(text)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    return Fraction(since // datetime.timedelta(microseconds=1), 10**6)


def clock(text: str) -> Fraction:
    time = datetime.time.fromisoformat(text)
    return Fraction(((time.hour * 60 + time.minute) * 60 + time.second) * 10**6 + time.microsecond, 10**6)


def day(text: str) -> int:
    return (datetime.date.fromisoformat(text) - EPOCH.date()).days


EDGES = [0, 1, -1, 2, 3, 127, 128, -128, -129, 255, 256, 2**31, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63),
         -(2**63) - 1, 2**64 - 1, 2**64, 10**30]  # fmt: skip
FLOATS = [0.0, -0.0, 0.1, 0.5, -0.5, 1.5, 2.5, 1e-320, 65504.0, 65519.0, 65520.0, 3.4028235e38, 3.4028236e38, 1e300]
numbers = st.one_of(
    st.sampled_from(EDGES), st.sampled_from(FLOATS), st.sampled_from(FLOATS).map(lambda value: -value),
    st.sampled_from(EDGES).map(float), st.integers(-4, 4), st.integers(-8, 8).map(lambda n: n / 4),
)  # fmt: skip
texts = st.sampled_from(["", "a", "b", "ab", "é", "e\u0301", "\uffff", "\U0001f600", "A", "\x00", "雪"])
moments = st.one_of(
    st.sampled_from([EPOCH.replace(tzinfo=None), datetime.datetime(2024, 2, 29, 12, 30, 5)]),
    st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
)
extreme = st.sampled_from([datetime.datetime.min, datetime.datetime.max])
zones = st.sampled_from([None, UTC, datetime.timezone(datetime.timedelta(hours=-5, minutes=-30))])
local_texts = (moments | extreme).map(lambda at: at.isoformat())
zoned_texts = st.builds(lambda at, zone: at.replace(tzinfo=zone).isoformat(), moments | extreme, zones)
clocks = st.sampled_from([datetime.time(0), datetime.time(12, 30), datetime.time(12, 30, 0, 1)]) | st.times()
dates = st.sampled_from([datetime.date(2024, 2, 29), datetime.date.min, datetime.date.max]) | st.dates()
decimals = st.sampled_from([Decimal(text) for text in ("0.00", "0.10", "2.50", "-1.00", "9999.99", "-9999.99", "3.00")])


def integer(arrow: pa.DataType) -> Kind:
    limits = np.iinfo(arrow.to_pandas_dtype())
    low, high = int(limits.min), int(limits.max)
    cells = st.sampled_from([edge for edge in EDGES if low <= edge <= high] + [low, high]) | st.integers(
        max(-4, low), 4
    )
    return Kind(arrow, cells, numbers, Fraction)


def floating(arrow: pa.DataType, code: str) -> Kind:
    cells = st.sampled_from([*FLOATS, float("nan"), float("inf"), float("-inf")]) | st.integers(-4, 4).map(float)
    infinite = float("inf")

    def stored(value: float) -> float:
        held = rounded(code)(value)
        largest = float(np.finfo(arrow.to_pandas_dtype()).max)
        return held if abs(held) <= largest or held != held else infinite * held

    return Kind(arrow, cells.map(stored), numbers, rounded(code))


def timestamp(unit: str, zone: str | None) -> Kind:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    cells = moments.map(lambda at: int(instant(at.isoformat()) * per_second // 1))
    return Kind(
        pa.timestamp(unit, zone), cells, local_texts if zone is None else zoned_texts, instant,
        lambda cell: Fraction(cell, per_second),
    )  # fmt: skip


def time(arrow: pa.DataType) -> Kind:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[arrow.unit]
    cells = clocks.map(lambda at: int(clock(at.isoformat()) * per_second // 1))
    return Kind(arrow, cells, clocks.map(str), clock, lambda cell: Fraction(cell, per_second))


def decimal(arrow: pa.DataType) -> Kind:
    return Kind(arrow, decimals, numbers, lambda number: Fraction(repr(number)), Fraction)


def listed(kind: Kind, arrow: pa.DataType, size: int | None = None) -> Kind:
    elements = st.lists(st.none() | kind.cells, min_size=size or 0, max_size=3 if size is None else size)
    return Kind(arrow, elements, kind.asked, kind.compared, kind.value, is_list=True)


TEXT = Kind(pa.string(), texts, texts, str.encode, str.encode)
INT64, FLOAT32 = integer(pa.int64()), floating(pa.float32(), "<f")
KINDS = {
    "bool": Kind(pa.bool_(), st.booleans(), st.booleans(), lambda value: value),
    "int8": integer(pa.int8()),
    "uint8": integer(pa.uint8()),
    "int64": INT64,
    "uint64": integer(pa.uint64()),
    "float16": floating(pa.float16(), "<e"),
    "float32": FLOAT32,
    "float64": floating(pa.float64(), "<d"),
    "decimal32": decimal(pa.decimal32(6, 2)),
    "decimal128": decimal(pa.decimal128(6, 2)),
    "decimal256": decimal(pa.decimal256(50, 4)),
    "string": TEXT,
    "large": Kind(pa.large_string(), texts, texts, str.encode, str.encode),
    "seconds": timestamp("s", None),
    "nanoseconds": timestamp("ns", None),
    "instant": timestamp("us", "UTC"),
    "milliseconds": timestamp("ms", "America/New_York"),
    "date": Kind(pa.date32(), dates.map(lambda at: day(str(at))), dates.map(str), day),
    "date64": Kind(pa.date64(), dates.map(lambda at: day(str(at)) * 86_400_000), dates.map(str), day,
                   lambda cell: cell // 86_400_000),
    "clock": time(pa.time32("s")),
    "fine": time(pa.time64("ns")),
    "null": Kind(pa.null(), st.none(), numbers | texts, lambda value: value),
    "tags": listed(TEXT, pa.list_(pa.string())),
    "numbers": listed(INT64, pa.large_list(pa.int64())),
    "pairs": listed(FLOAT32, pa.list_(pa.float32(), 2), size=2),
    "visits": listed(timestamp("s", "UTC"), pa.list_(pa.timestamp("s", "UTC"))),
}  # fmt: skip


def meets(condition: Any, cell: Any, kind: Kind | None) -> bool:
    """Whether one field meets a condition: the rules as they are told, value by value."""
    if condition is None:
        return cell is None
    if not isinstance(condition, dict):
        condition = {"in": [condition]}
    if "in" in condition and None in condition["in"] and cell is None:
        return True
    if cell is None or kind is None:
        return False
    elements = cell if kind.is_list else [cell]
    return any(compares(condition, kind.value(element), kind) for element in elements if element is not None)


def compares(condition: Row, value: Any, kind: Kind) -> bool:
    if "in" in condition:
        return any(value == kind.compared(asked) for asked in condition["in"] if asked is not None)
    holds = {
        "gt": lambda bound: value > bound,
        "gte": lambda bound: value >= bound,
        "lt": lambda bound: value < bound,
        "lte": lambda bound: value <= bound,
    }
    return all(holds[name](kind.compared(bound)) for name, bound in condition.items())


def holds(value: Row, row: Row) -> bool:
    """Whether a filter holds for a document, given as its id and payload."""
    return all(part_holds(key, item, row) for key, item in value.items())


def part_holds(key: str, item: Any, row: Row) -> bool:
    if key == "and":
        return all(holds(part, row) for part in item)
    if key == "or":
        return any(holds(part, row) for part in item)
    if key == "not":
        return not holds(item, row)
    return meets(item, row.get(key), TEXT if key == "id" else KINDS.get(key))


def conditions(kind: Kind) -> st.SearchStrategy[Any]:
    several = st.lists(kind.asked | st.none(), max_size=4).map(lambda values: {"in": values})
    if kind.arrow == pa.bool_():
        return st.one_of(kind.asked, st.none(), several)
    low = st.none() | st.tuples(st.sampled_from(["gt", "gte"]), kind.asked)
    high = st.none() | st.tuples(st.sampled_from(["lt", "lte"]), kind.asked)
    bounds = st.tuples(low, high).filter(any).map(lambda pair: dict(filter(None, pair)))
    return st.one_of(kind.asked, st.none(), several, bounds, bounds)


names = st.sampled_from([*KINDS, "id", "missing"])
one_field = names.flatmap(lambda name: conditions(KINDS.get(name, TEXT)).map(lambda condition: {name: condition}))
filters = st.recursive(
    one_field,
    lambda inner: st.one_of(
        inner.map(lambda part: {"not": part}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"or": parts}),
        st.tuples(inner, inner).map(lambda parts: {**parts[0], **parts[1]}),
    ),
    max_leaves=5,
)


def fields_of(value: Row) -> set[str]:
    named: set[str] = set()
    for key, item in value.items():
        parts = {"and": item, "or": item, "not": [item]}.get(key)
        named |= {key} - {"id"} if parts is None else set().union(*map(fields_of, parts))
    return named


def chunked(values: list[Any], arrow: pa.DataType, cuts: list[int], whole: bool) -> pa.ChunkedArray:
    """The values as one array that is cut into slices, or as one array a piece."""
    ends = sorted({0, len(values), *(cut % (len(values) + 1) for cut in cuts)})
    array = pa.array(values, arrow)
    pieces = [
        array[start:end] if whole else pa.array(values[start:end], arrow) for start, end in itertools.pairwise(ends)
    ]
    return pa.chunked_array(pieces, arrow)


@st.composite
def documents(draw: st.DrawFn, named: set[str]) -> tuple[list[Row], pa.Table | None, pa.ChunkedArray]:
    """Documents as rows, and as a payload of most of the columns named in some number of chunks, and ids."""
    n = draw(st.integers(0, 8))
    cuts, whole = draw(st.lists(st.integers(0, 8), max_size=3)), draw(st.booleans())
    ids = draw(st.lists(texts, min_size=n, max_size=n))
    columns: dict[str, list[Any]] = {}
    for name in sorted(named & KINDS.keys()):
        if draw(st.integers(0, 9)):
            cells = st.none() | KINDS[name].cells | KINDS[name].cells
            columns[name] = draw(st.lists(cells, min_size=n, max_size=n))
    rows = [{"id": ids[row], **{name: column[row] for name, column in columns.items()}} for row in range(n)]
    arrays = {name: chunked(column, KINDS[name].arrow, cuts, whole) for name, column in columns.items()}
    return rows, pa.table(arrays) if arrays else None, chunked(ids, pa.string(), cuts, whole)


@given(st.data())
@settings(max_examples=500)
def test_every_filter_holds_where_a_look_at_each_row_says_so(data: st.DataObject) -> None:
    value = data.draw(filters)
    rows, payload, ids = data.draw(documents(fields_of(value)))
    parsed = Filter.parse(value)
    assert parsed.mask(payload, ids).tolist() == [holds(value, row) for row in rows]
    assert parsed.fields == fields_of(value)


@pytest.mark.parametrize("name", sorted(KINDS))
@given(data=st.data())
@settings(max_examples=50)
def test_every_condition_on_a_column_of_any_type(name: str, data: st.DataObject) -> None:
    # The same for one column, of more rows: what is asked for is there more often.
    kind = KINDS[name]
    cells = data.draw(st.lists(st.none() | kind.cells, min_size=1, max_size=12))
    condition = data.draw(conditions(kind))
    column = chunked(cells, kind.arrow, data.draw(st.lists(st.integers(0, 12), max_size=2)), data.draw(st.booleans()))
    ids = pa.chunked_array([[str(row) for row in range(len(cells))]])
    expected = [meets(condition, cell, kind) for cell in cells]
    assert Filter.parse({name: condition}).mask(pa.table({name: column}), ids).tolist() == expected
    flipped = Filter.parse({"not": {name: condition}}).mask(pa.table({name: column}), ids).tolist()
    assert flipped == [not met for met in expected]


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"null"}))
@pytest.mark.parametrize("met", [True, False])
def test_conditions_of_these_tests_are_met_and_are_not(name: str, met: bool) -> None:
    # Otherwise the tests above would say little.
    kind = KINDS[name]
    asked = st.tuples(conditions(kind).filter(lambda condition: condition is not None), kind.cells)
    find(
        asked,
        lambda pair: meets(pair[0], pair[1], kind) is met,
        settings=settings(max_examples=1000, database=None, derandomize=True),
    )


@given(st.data())
@settings(max_examples=200)
def test_keys_are_canonical_and_lead_back_to_their_filter(data: st.DataObject) -> None:
    value = data.draw(filters)
    parsed = Filter.parse(value)
    again = Filter.parse(json.loads(parsed.key))
    other = Filter.parse(data.draw(reordered(value)))
    assert again.key == parsed.key == other.key
    assert again == parsed == other
    assert len({again, parsed, other}) == 1
    _, payload, ids = data.draw(documents(fields_of(value)))
    assert again.mask(payload, ids).tolist() == parsed.mask(payload, ids).tolist() == other.mask(payload, ids).tolist()


def reordered(value: Any) -> st.SearchStrategy[Any]:
    """The same JSON with the keys of its objects in any order."""
    if isinstance(value, list):
        return st.tuples(*map(reordered, value)).map(list)
    if not isinstance(value, dict):
        return st.just(value)
    return st.permutations(sorted(value)).flatmap(
        lambda keys: st.tuples(*(reordered(value[key]) for key in keys)).map(
            lambda items: dict(zip(keys, items, strict=True))
        )
    )


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_what_a_float32_shows_finds_it(value: float) -> None:
    number = np.float32(value)
    column = pa.table({"x": pa.array([value, None], pa.float32())})
    ids = pa.chunked_array([["a", "b"]])
    for shown in (json.loads(str(number)), value):
        assert Filter.parse({"x": shown}).mask(column, ids).tolist() == [True, False]
        assert Filter.parse({"x": {"gte": shown, "lte": shown}}).mask(column, ids).tolist() == [True, False]


# What is stored


def spread(n: int) -> tuple[list[Row], pa.Table]:
    """n rows, and the same as a table of several chunks."""
    rows: list[Row] = [
        {
            "lang": ["en", "de", None][row % 3],
            "year": None if row % 7 == 0 else 1990 + row % 30,
            "tags": None if row % 5 == 0 else [f"t{row % 4}", None, f"t{row % 3}"][: row % 4],
            "at": None if row % 6 == 0 else datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=row),
        }
        for row in range(n)
    ]
    schema = pa.schema([("lang", pa.string()), ("year", pa.int32()), ("tags", pa.list_(pa.string())),
                        ("at", pa.timestamp("us"))])  # fmt: skip
    size = n // 4 + 1
    return rows, pa.concat_tables(
        [pa.Table.from_pylist(rows[start : start + size], schema) for start in range(0, n, size)]
    )


ASKED: list[tuple[Row, Callable[[Row], bool]]] = [
    ({"lang": "en"}, lambda row: row["lang"] == "en"),
    ({"lang": {"in": ["de", None]}}, lambda row: row["lang"] in ("de", None)),
    ({"year": {"gte": 2000, "lt": 2010.5}}, lambda row: row["year"] is not None and 2000 <= row["year"] < 2010.5),
    ({"tags": {"in": ["t1", "t3"]}}, lambda row: not {"t1", "t3"}.isdisjoint(row["tags"] or [])),
    ({"not": {"tags": "t2"}}, lambda row: "t2" not in (row["tags"] or [])),
    ({"tags": None}, lambda row: row["tags"] is None),
    ({"at": {"gt": "2020-01-05"}}, lambda row: row["at"] is not None and row["at"] > datetime.datetime(2020, 1, 5)),
    ({"id": {"gte": "d5"}, "lang": "en"}, lambda row: row["id"] >= "d5" and row["lang"] == "en"),
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: json.dumps(asked[0]))
def test_tables_that_are_mapped_from_a_file_in_several_batches(
    tmp_path: Path, asked: tuple[Row, Callable[[Row], bool]]
) -> None:
    value, expected = asked
    rows, table = spread(1000)
    with pa.ipc.new_file(str(tmp_path / "payload.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=64)
    mapped = pa.ipc.open_file(pa.memory_map(str(tmp_path / "payload.arrow"))).read_all()
    assert mapped.column("tags").num_chunks > 10
    names = [f"d{row}" for row in range(1000)]
    # Ids need not be cut where the payload is.
    ids = pa.chunked_array([names[:17], names[17:]])
    wanted = [expected({"id": name, **row}) for name, row in zip(names, rows, strict=True)]
    assert 0 < sum(wanted) < 1000
    parsed = Filter.parse(value)
    assert parsed.mask(mapped, ids).tolist() == wanted
    assert parsed.mask(mapped[100:300], ids[100:300]).tolist() == wanted[100:300]
    assert parsed.mask(mapped.combine_chunks(), ids).tolist() == wanted


@pytest.mark.parametrize("segment_docs", [7, 100])
def test_segments_of_an_index(tmp_path: Path, segment_docs: int) -> None:
    rows, table = spread(40)
    gaussians = random_gaussians(40, 2)
    columns = {
        "id": [f"d{row}" for row in range(40)],
        "mean": list(gaussians.means.numpy()),
        "variance": list(gaussians.variances.numpy()),
    }
    columns |= dict(zip(table.column_names, table.columns, strict=True))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    directory = IndexDirectory(tmp_path / "index")
    build_index([tmp_path / "a.parquet"], directory, BuildOptions(segment_docs=segment_docs))
    segments = open_segments(directory, directory.manifest())
    for value, expected in ASKED:
        parsed = Filter.parse(value)
        found = np.concatenate([parsed.mask(segment.payload, segment.ids) for segment in segments]).tolist()
        assert found == [expected({"id": f"d{number}", **row}) for number, row in enumerate(rows)]


def test_json_lines_are_typed_segment_by_segment(tmp_path: Path) -> None:
    fields: list[Row] = [{}, {"x": None, "tags": []}, {"x": 1, "tags": ["a"]}, {"x": 2.5}, {"x": "2"}, {"x": [1, 3]}]
    # A file each, because one file's rows are typed together.
    files = [tmp_path / f"{number}.jsonl" for number in range(len(fields))]
    for file, row in zip(files, fields, strict=True):
        file.write_text(json.dumps({"id": file.stem, "mean": [0.5], "variance": [1.0], **row}))
    directory = IndexDirectory(tmp_path / "index")
    build_index(files, directory, BuildOptions(segment_docs=1))
    *comparable, text, lists = open_segments(directory, directory.manifest())
    asked: list[tuple[Row, list[bool]]] = [
        ({"x": 1}, [False, False, True, False, True]),
        ({"x": {"gt": 1}}, [False, False, False, True, True]),
        ({"not": {"x": {"gt": 1}}}, [True, True, True, False, False]),
        ({"x": None}, [True, True, False, False, False]),
        ({"tags": "a"}, [False, False, True, False, False]),
        # An empty list is a list.
        ({"not": {"tags": None}}, [False, True, True, False, False]),
    ]
    for value, expected in asked:
        parsed = Filter.parse(value)
        masks = [parsed.mask(segment.payload, segment.ids).tolist() for segment in [*comparable, lists]]
        assert masks == [[holds] for holds in expected]
    assert Filter.parse({"x": "2"}).mask(text.payload, text.ids).tolist() == [True]
    with pytest.raises(
        InvalidOptionError, match=r'^filter\.x is 1, but the column "x" is string, which takes strings$'
    ):
        Filter.parse({"x": 1}).mask(text.payload, text.ids)
