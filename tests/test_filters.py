"""Filters: what parses and what does not, what each condition holds for by hand, and their keys."""

import datetime
import gc
import json
import weakref
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from index.errors import InvalidOptionError
from index.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_TEXT, MAX_VALUES, Filter

INF = float("inf")
NAN = float("nan")
MAX32 = float(np.finfo(np.float32).max)


def held(value: Any, column: pa.Array | pa.ChunkedArray | list[Any], name: str = "x") -> list[int]:
    """The rows of a payload of one column for which a filter holds, after it has been to JSON and back."""
    parsed = Filter.parse(json.loads(json.dumps(value)))
    payload = pa.table({name: column})
    mask = parsed.mask(payload, ids_of(len(payload)))
    assert (mask.dtype, mask.shape) == (np.dtype(np.bool_), (len(payload),))
    return list(np.flatnonzero(mask).tolist())


def ids_of(n: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([f"d{row}" for row in range(n)], pa.string())])


def message(value: Any, column: pa.Array | None = None) -> str:
    """What is said of a filter that does not parse, or not go with a column."""
    if column is None:
        with pytest.raises(InvalidOptionError) as caught:
            Filter.parse(value)
    else:
        parsed = Filter.parse(value)
        with pytest.raises(InvalidOptionError) as caught:
            parsed.mask(pa.table({"x": column}), ids_of(len(column)))
    return str(caught.value)


# What holds


@pytest.mark.parametrize(("condition", "rows"), [
    ("b", [1]),
    ("", [3]),
    (None, [2]),
    ({"in": ["a", "é", "z"]}, [0, 4]),
    ({"in": ["a", None]}, [0, 2]),
    ({"in": [None]}, [2]),
    ({"in": []}, []),
    ({"gte": "b"}, [1, 4, 5]),
    ({"gt": "b"}, [4, 5]),
    ({"lt": "b"}, [0, 3]),
    ({"lte": "b", "gt": ""}, [0, 1]),
    ({"gt": "\uffff"}, [5]),
])  # fmt: skip
@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large_string", "string_view", "dictionary"],
)
def test_strings_are_ordered_by_their_bytes(kind: pa.DataType, condition: Any, rows: list[int]) -> None:
    # In UTF-16 the last would come before U+FFFF.
    assert held({"x": condition}, pa.array(["a", "b", None, "", "é", "\U0001f600"], kind)) == rows


def test_runs_of_equal_values_are_a_column_like_any_other() -> None:
    runs = pa.RunEndEncodedArray.from_arrays([2, 3, 5], ["a", None, "b"])
    assert held({"x": "b"}, runs) == [3, 4]
    assert held({"x": None}, runs) == [2]


@pytest.mark.parametrize(("condition", "rows"), [
    (True, [0]), (False, [1]), (None, [2]), ({"in": [True, False]}, [0, 1]), ({"in": [False, None]}, [1, 2]),
])  # fmt: skip
def test_booleans(condition: Any, rows: list[int]) -> None:
    assert held({"x": condition}, [True, False, None]) == rows


INTEGERS: list[int | None] = [-(2**63), -3, 0, 2, 3, None, 2**53, 2**53 + 1, 2**63 - 1]


@pytest.mark.parametrize(("condition", "rows"), [
    (2, [3]),
    (2.0, [3]),
    (-0.0, [2]),
    (2.5, []),
    (2**53, [6]),
    (2**53 + 1, [7]),
    (float(2**53), [6]),
    (2**63, []),
    (-(2**63), [0]),
    (-(2**63) - 1, []),
    (1e300, []),
    (10**300, []),
    ({"in": [2, 2.0, 2.5, 3, 2**64, -1e300]}, [3, 4]),
    ({"in": [2.5, 2**64]}, []),
    ({"gte": 2.5}, [4, 6, 7, 8]),
    ({"gt": 2.5}, [4, 6, 7, 8]),
    ({"gt": 2}, [4, 6, 7, 8]),
    ({"gte": 2, "lte": 3}, [3, 4]),
    ({"gt": 2, "lt": 3}, []),
    ({"gt": 1.5, "lt": 2.5}, [3]),
    ({"lte": 2.5}, [0, 1, 2, 3]),
    ({"lt": 2.5}, [0, 1, 2, 3]),
    ({"lte": -2.5}, [0, 1]),
    ({"lt": -2.5}, [0, 1]),
    ({"lt": -3}, [0]),
    ({"gt": 2**53}, [7, 8]),
    ({"lt": 2**53 + 1, "gt": 3}, [6]),
    ({"gt": 2**63 - 1}, []),
    ({"gte": 2**63 - 1}, [8]),
    ({"lt": -(2**63)}, []),
    ({"lt": 2**63}, [0, 1, 2, 3, 4, 6, 7, 8]),
    ({"gt": -1e300}, [0, 1, 2, 3, 4, 6, 7, 8]),
    ({"gt": -1e300, "lt": 10**300}, [0, 1, 2, 3, 4, 6, 7, 8]),
    ({"gt": 1e300}, []),
    ({"lt": -1e300}, []),
    ({"gte": 3, "lte": 2}, []),
])  # fmt: skip
def test_integers_are_compared_exactly(condition: Any, rows: list[int]) -> None:
    assert held({"x": condition}, pa.array(INTEGERS, pa.int64())) == rows
    # "not" of a range is what lies outside of it, and null.
    assert held({"not": {"x": condition}}, pa.array(INTEGERS, pa.int64())) == [
        row for row in range(len(INTEGERS)) if row not in rows
    ]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(),
                                  pa.uint64()])  # fmt: skip
def test_the_ends_of_every_integer_type(kind: pa.DataType) -> None:
    limits = np.iinfo(kind.to_pandas_dtype())
    low, high = int(limits.min), int(limits.max)
    column = pa.array([low, 1, high, None], kind)
    for value, equal in ((low, [0]), (high, [2]), (low - 1, []), (high + 1, [])):
        assert held({"x": value}, column) == equal
        assert held({"x": {"in": [value, 1]}}, column) == sorted([*equal, 1])
    assert held({"x": {"gt": low}}, column) == [1, 2]
    assert held({"x": {"gte": low - 1}}, column) == [0, 1, 2]
    assert held({"x": {"lt": high}}, column) == [0, 1]
    assert held({"x": {"lte": high + 1}}, column) == [0, 1, 2]
    assert held({"x": {"gt": high}}, column) == held({"x": {"lt": low}}, column) == []


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_floats_are_compared_with_the_value_rounded_to_their_type(kind: pa.DataType) -> None:
    column = pa.array([0.1, 0.5, -0.0, 0.0, None, NAN, INF, -INF], pa.float64()).cast(kind)
    assert held({"x": 0.1}, column) == [0]
    assert held({"x": {"in": [0.1, 0.5]}}, column) == [0, 1]
    assert held({"x": {"gte": 0.1}}, column) == [0, 1, 6]
    assert held({"x": {"gt": 0.1}}, column) == [1, 6]
    assert held({"x": {"lte": 0.1}}, column) == [0, 2, 3, 7]
    assert held({"x": {"lt": 0.1}}, column) == [2, 3, 7]
    # What a float32 column shows is the float64 nearest to it, which is it again.
    assert held({"x": column[0].as_py()}, column) == [0]


def test_both_zeros_are_zero() -> None:
    for zero in (0, 0.0, -0.0):
        assert held({"x": zero}, [0.0, -0.0, 1.0]) == [0, 1]
        assert held({"x": {"in": [zero, 5.0]}}, [0.0, -0.0, 1.0]) == [0, 1]
        assert held({"x": {"gt": zero}}, [0.0, -0.0, 1.0]) == [2]


def test_nan_compares_with_nothing_and_is_not_null() -> None:
    column = pa.array([NAN, None, 1.0])
    for condition in (1, {"in": [1, 2]}, {"gte": -1e308}, {"lte": 1e308}, {"gt": -1e308, "lt": 1e308}):
        assert held({"x": condition}, column) == [2]
        assert held({"not": {"x": condition}}, column) == [0, 1]
    assert held({"x": None}, column) == [1]
    assert held({"x": {"in": [None, 0]}}, column) == [1]


@pytest.mark.parametrize(("kind", "beyond"), [(pa.float16(), 7e4), (pa.float32(), 1e39), (pa.float32(), 10**39)])
def test_infinities_lie_beyond_what_a_type_of_float_cannot_hold(kind: pa.DataType, beyond: float) -> None:
    largest = float(np.finfo(kind.to_pandas_dtype()).max)
    column = pa.array([-INF, -largest, 0.0, largest, INF, NAN, None], pa.float64()).cast(kind)
    assert held({"x": beyond}, column) == held({"x": {"in": [beyond, -beyond]}}, column) == []
    for name, above, below in (("gt", [4], [1, 2, 3, 4]), ("lt", [0, 1, 2, 3], [0])):
        assert held({"x": {name: beyond}}, column) == held({"x": {f"{name}e": beyond}}, column) == above
        assert held({"x": {name: -beyond}}, column) == held({"x": {f"{name}e": -beyond}}, column) == below


@pytest.mark.parametrize("kind", [pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(20, 2), pa.decimal256(60, 2)])
def test_decimals_are_compared_with_a_fraction_as_json_writes_it(kind: pa.DataType) -> None:
    column = pa.array([Decimal(text) for text in ("0.10", "0.11", "2.00", "-3.50", "999.99")] + [None], kind)
    assert held({"x": 0.1}, column) == [0]
    assert held({"x": 0.10000001}, column) == []
    assert held({"x": 2}, column) == [2]
    assert held({"x": {"in": [0.1, -3.5, 0.105, 1e300]}}, column) == [0, 3]
    assert held({"x": {"gte": 0.105}}, column) == [1, 2, 4]
    assert held({"x": {"gt": 0.11}}, column) == [2, 4]
    assert held({"x": {"lt": 0.11, "gt": -3.5}}, column) == [0]
    assert held({"x": {"lte": 1e-300}}, column) == [3]
    assert held({"x": {"gt": 1e300}}, column) == held({"x": {"lt": -(10**300)}}, column) == []
    assert held({"x": {"lt": 1e300}}, column) == [0, 1, 2, 3, 4]


def test_numbers_of_numpy_that_are_floats_are_floats() -> None:
    parsed = Filter.parse({"x": np.float64(0.1)})
    assert parsed.key == '{"x":0.1}'
    assert parsed.mask(pa.table({"x": [Decimal("0.1"), Decimal("0.2")]}), ids_of(2)).tolist() == [True, False]


def test_decimals_of_more_digits_than_pythons_context_has() -> None:
    whole = 10**37 + 1
    for kind in (pa.decimal128(38, 0), pa.decimal256(76, 38)):
        column = pa.array([Decimal(whole), Decimal(whole - 1), None], kind)
        assert held({"x": whole}, column) == [0]
        assert held({"x": {"in": [whole, whole + 1]}}, column) == [0]
        assert held({"x": {"gte": whole}}, column) == [0]
        assert held({"x": {"lt": whole}}, column) == [1]


def test_decimals_of_whole_hundreds() -> None:
    column = pa.array([Decimal(100), Decimal(300), None], pa.decimal128(5, -2))
    assert held({"x": 100}, column) == [0]
    assert held({"x": {"gt": 100.5}}, column) == [1]
    most = pa.array([Decimal(10**37 + 1), Decimal(10**37)], pa.decimal128(38, 0)).view(pa.decimal128(38, -2))
    assert held({"x": 10**39 + 100}, most) == held({"x": {"gt": 10**39}}, most) == [0]
    assert message({"x": 100}, pa.nulls(1, pa.decimal128(38, -50))) == (
        'filter.x is 100, but the column "x" is decimal128(38, -50), which takes null only'
    )


SECOND = datetime.datetime(2024, 2, 29, 12, 30, 5)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_are_compared_by_value_whatever_their_unit(unit: str) -> None:
    column = pa.array([SECOND, datetime.datetime(1969, 12, 31, 23, 59, 59), None], pa.timestamp(unit))
    for text in ("2024-02-29T12:30:05", "2024-02-29 12:30:05", "2024-02-29T12:30:05.000000000"):
        assert held({"x": text}, column) == [0]
    # A fraction that the unit does not have is between two of it.
    assert held({"x": {"lt": "2024-02-29T12:30:05.000000001"}}, column) == [0, 1]
    assert held({"x": {"gte": "2024-02-29T12:30:04.999999999"}}, column) == [0]
    assert held({"x": {"gt": "1969-12-31T23:59:58.5", "lt": "1969-12-31T23:59:59.5"}}, column) == [1]
    assert held({"x": "1969-12-31T23:59:59.5"}, column) == []
    assert held({"x": {"gte": "2024-02-29", "lt": "2024-03-01"}}, column) == [0]
    assert held({"x": "2024-02-29"}, column) == []
    assert held({"x": {"in": ["2024-02-29T12:30:05", "9999-12-31T23:59:59.5", None]}}, column) == [0, 2]
    # Beyond what 64 bits of nanoseconds hold, in either direction.
    assert held({"x": {"lt": "9999-12-31T23:59:59"}}, column) == [0, 1]
    assert held({"x": {"gt": "0001-01-01"}}, column) == [0, 1]
    assert held({"x": {"lt": "0001-01-01"}}, column) == held({"x": "9999-12-31"}, column) == []


def test_a_nanosecond_is_found() -> None:
    column = pa.array([1, 2, -1], pa.timestamp("ns", "UTC"))
    assert held({"x": "1970-01-01 00:00:00.000000001Z"}, column) == [0]
    assert held({"x": {"gt": "1970-01-01T00:00:00.000000001"}}, column) == [1]
    assert held({"x": "1969-12-31T23:59:59.999999999Z"}, column) == [2]


def test_a_time_without_a_zone_is_in_utc_where_the_column_has_one() -> None:
    column = pa.array([SECOND.replace(tzinfo=datetime.UTC), None], pa.timestamp("us", "Europe/Berlin"))
    for text in ("2024-02-29T12:30:05", "2024-02-29T12:30:05Z", "2024-02-29T13:30:05+01:00", "2024-02-29T07:00:05-0530",
                 "2024-02-29T14:30:05+02"):  # fmt: skip
        assert held({"x": text}, column) == [0]
    assert held({"x": "2024-02-29T13:30:05"}, column) == []
    assert held({"x": {"gte": "2024-02-29T13:30:06+01:00"}}, column) == []


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_dates(kind: pa.DataType) -> None:
    column = pa.array([datetime.date(2024, 2, 29), datetime.date(1969, 12, 31), None], kind)
    assert held({"x": "2024-02-29"}, column) == [0]
    assert held({"x": {"in": ["1969-12-31", "2024-02-28"]}}, column) == [1]
    assert held({"x": {"lt": "2024-02-29"}}, column) == [1]
    assert held({"x": {"gte": "2024-02-29", "lte": "9999-12-31"}}, column) == [0]


@pytest.mark.parametrize("kind", [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")])
def test_times_of_day(kind: pa.DataType) -> None:
    column = pa.array([datetime.time(12, 30), datetime.time(23, 59, 59), None], kind)
    assert held({"x": "12:30"}, column) == held({"x": "12:30:00.0"}, column) == [0]
    assert held({"x": {"gt": "12:30:00.000000001"}}, column) == [1]
    assert held({"x": {"lte": "23:59:59.5"}}, column) == [0, 1]
    assert held({"x": {"in": ["12:30:00", "23:59:59.5"]}}, column) == [0]


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64())])
def test_a_list_meets_a_condition_if_an_element_does(kind: pa.DataType) -> None:
    column = pa.array([[1, 2], [], None, [None], [3, None, 9], [2]], kind)
    assert held({"x": 2}, column) == [0, 5]
    assert held({"x": {"in": [1, 9]}}, column) == [0, 4]
    # One element must keep both bounds: 3 and 9 are not in between together.
    assert held({"x": {"gt": 3, "lt": 9}}, column) == []
    assert held({"x": {"gte": 3, "lt": 9}}, column) == [4]
    assert held({"x": None}, column) == [2]
    assert held({"x": {"in": [None, 1]}}, column) == [0, 2]
    assert held({"not": {"x": 2}}, column) == [1, 2, 3, 4]
    assert held({"x": 2}, pa.chunked_array([column[:0], column[1:3], column[5:], column[:1]])) == [2, 3]
    assert held({"x": 2}, pa.chunked_array([], kind)) == held({"x": 2}, pa.array([], kind)) == []


def test_lists_of_a_fixed_size() -> None:
    column = pa.array([[1.0, 2.0], None, [NAN, None], [2.0, 0.1]], pa.list_(pa.float32(), 2))
    assert held({"x": 2}, column) == [0, 3]
    assert held({"x": 0.1}, column[2:]) == [1]
    assert held({"x": {"lt": 5}}, column[1:3]) == []
    assert held({"x": None}, column) == [1]
    assert held({"x": 1}, pa.array([[], None], pa.list_(pa.float32(), 0))) == []


def test_elements_behind_a_list_that_is_null_do_not_count() -> None:
    mask = pa.array([False, True, False])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), pa.array([7, 7, 7]), mask=mask)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array([7, 7, 7]), 1, mask=mask)
    assert held({"x": 7}, lists) == held({"x": 7}, fixed) == [0, 2]


def test_lists_of_every_type_that_is_compared() -> None:
    columns = {
        "a": pa.array([["a", "b"]], pa.list_(pa.string())),
        True: pa.array([[True, False]]),
        0.1: pa.array([[0.1, 5]], pa.list_(pa.float32())),
        0.5: pa.array([[0.5, 1]], pa.list_(pa.float64())).cast(pa.list_(pa.float16())),
        1.25: pa.array([[Decimal("1.25")]], pa.list_(pa.decimal128(5, 2))),
        "2024-02-29": pa.array([[datetime.date(2024, 2, 29)]]),
        "2024-02-29T12:30:05": pa.array([[SECOND]]),
        "12:00": pa.array([[datetime.time(12)]]),
        "y": pa.array([["y", "x"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        "z": pa.array([["z", "x"]], pa.list_(pa.string_view())),
    }
    for value, column in columns.items():
        assert held({"x": value}, column) == [0]
        assert held({"x": {"in": [value, value]}}, column) == [0]
        if value is not True:
            assert held({"x": {"gte": value, "lte": value}}, column) == [0]
            assert held({"x": {"gt": value, "lt": value}}, column) == []


def test_many_values_are_looked_for_in_lists_of_encoded_strings() -> None:
    for kind in (pa.dictionary(pa.int8(), pa.string()), pa.string_view()):
        assert held({"x": {"in": ["a", "z"]}}, pa.array([["y", "z"], ["y"]], pa.list_(kind))) == [0]


def test_columns_of_nothing_are_as_if_they_were_not_there() -> None:
    comparisons: list[Any] = [1, "a", True, {"in": [1, "a"]}, {"gt": 1, "lt": "a"}, {"in": []}]
    missing: list[Any] = [None, {"in": [1, None]}]
    for column in (pa.nulls(2), pa.chunked_array([], pa.null())):
        everything = list(range(len(column)))
        for condition in comparisons:
            assert held({"x": condition}, column) == []
            assert held({"x": condition}, [1] * len(column), name="y") == []
            assert held({"not": {"x": condition}}, column) == everything
        for condition in missing:
            assert held({"x": condition}, column) == everything
            assert held({"x": condition}, [1] * len(column), name="y") == everything
    # JSON Lines in which a key has empty lists alone.
    lists = pa.array([[], None, [None]], pa.list_(pa.null()))
    assert held({"x": 1}, lists) == held({"x": {"gt": "a"}}, lists) == []
    assert held({"x": None}, lists) == [1]


@pytest.mark.parametrize("column", [
    pa.array([{"a": 1}, None]), pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())), pa.array([b"x", None]),
    pa.array([1, None], pa.duration("s")), pa.array([[[1]], None]), pa.array([[{"a": 1}], None]),
    pa.array([b"x" * 16, None], pa.uuid()), pa.array([[1], None], pa.list_view(pa.int8())),
])  # fmt: skip
def test_columns_of_other_types_can_be_asked_for_null_alone(column: pa.Array) -> None:
    assert held({"x": None}, column) == held({"x": {"in": [None]}}, column) == [1]
    assert held({"not": {"x": None}}, column) == [0]
    assert held({"x": {"in": []}}, column) == []
    for condition, place in ((1, ""), ({"in": [None, 1]}, ".in.1"), ({"lt": 1}, ".lt")):
        expected = f'filter.x{place} is 1, but the column "x" is {column.type}, which takes null only'
        assert message({"x": condition}, column) == expected


def test_a_long_type_is_cut_in_messages() -> None:
    column = pa.array([{f"a{number}": 1 for number in range(1000)}])
    assert message({"x": 1}, column) == (
        f'filter.x is 1, but the column "x" is {str(column.type)[:77]}..., which takes null only'
    )


def test_ids_are_strings_given_apart_from_the_payload() -> None:
    ids = pa.chunked_array([["a", "b"], ["c"]])
    for payload in (None, pa.table({"y": [1, 2, 3]}), pa.table({"id": ["c", "c", "c"]})):
        assert Filter.parse({"id": "b"}).mask(payload, ids).tolist() == [False, True, False]
        assert Filter.parse({"id": {"gt": "a"}}).mask(payload, ids).tolist() == [False, True, True]
        assert Filter.parse({"not": {"id": {"in": ["a", "x"]}}}).mask(payload, ids).tolist() == [False, True, True]
        assert Filter.parse({"id": None}).mask(payload, ids).tolist() == [False] * 3
    with pytest.raises(InvalidOptionError, match=r'^filter\.id is 5, but the column "id" is string, .* strings$'):
        Filter.parse({"id": 5}).mask(None, ids)


def test_a_segment_without_payload_lacks_every_column() -> None:
    ids = ids_of(2)
    assert Filter.parse({"x": 1}).mask(None, ids).tolist() == [False, False]
    assert Filter.parse({"x": {"gt": 1}}).mask(None, ids).tolist() == [False, False]
    assert Filter.parse({"not": {"x": {"in": [1]}}}).mask(None, ids).tolist() == [True, True]
    assert Filter.parse({"x": {"in": [None]}}).mask(None, ids).tolist() == [True, True]
    assert Filter.parse({"x": None}).mask(None, pa.chunked_array([], pa.string())).tolist() == []


@pytest.mark.parametrize(("value", "rows"), [
    ({"x": 1, "y": "b"}, [1]),
    ({"and": [{"x": 1}, {"y": "b"}]}, [1]),
    ({"or": [{"x": 2}, {"y": "b"}]}, [1, 2, 3]),
    ({"or": [{"x": 2}, {"x": 1, "y": "a"}]}, [0, 2]),
    ({"not": {"x": 1, "y": "b"}}, [0, 2, 3, 4]),
    ({"x": 1, "not": {"y": "b"}}, [0]),
    ({"x": 1, "or": [{"y": "a"}, {"y": None}]}, [0]),
    ({"or": [{"y": "a"}, {"y": None}], "and": [{"not": {"x": 1}}]}, [4]),
    ({"not": {"not": {"x": 1}}}, [0, 1]),
    ({"not": {"or": [{"x": 1}, {"x": 2}]}}, [3, 4]),
    ({"or": [{"x": 1}]}, [0, 1]),
    ({"or": [{"x": 9}, {"x": {"lt": 9}}, {"x": 9}]}, [0, 1, 2]),
    ({"and": [{"x": {"lt": 9}}, {"x": {"gt": 1}}, {"x": {"lt": 3}}]}, [2]),
])  # fmt: skip
def test_logic_has_two_values(value: Any, rows: list[int]) -> None:
    payload = pa.table({"x": [1, 1, 2, None, None], "y": ["a", "b", "c", "b", None]})
    assert np.flatnonzero(Filter.parse(value).mask(payload, ids_of(5))).tolist() == rows


def test_a_column_may_have_any_name_but_the_three_of_logic() -> None:
    for name in ("", "in", "gte", "a.b", "And", "naïve 雪", "x" * 4096, "a\nb"):
        assert held({name: 1}, [1, 2], name=name) == [0]
        assert Filter.parse({name: 1}).fields == {name}


def test_columns_may_differ_in_type_from_segment_to_segment() -> None:
    number = Filter.parse({"x": {"gte": 2}})
    for column in ([1, 2], [1.5, 2.5], [Decimal(1), Decimal(2)], pa.array([0, 2], pa.uint8()), [None, [1, 2]]):
        assert number.mask(pa.table({"x": column}), ids_of(2)).tolist() == [False, True]
    assert number.mask(pa.table({"x": [None, None]}), ids_of(2)).tolist() == [False, False]
    with pytest.raises(InvalidOptionError):
        number.mask(pa.table({"x": ["1", "2"]}), ids_of(2))


# What does not go together, or is no filter


NUMBERS = "which takes numbers"
MOMENTS = "which takes ISO 8601 dates and times without a zone, such as 2024-02-29T12:30:00"
ZONED = "which takes ISO 8601 dates and times, in UTC unless they name a zone, such as 2024-02-29T12:30:00+01:00"
DATES = "which takes ISO 8601 dates, such as 2024-02-29"
TIMES = "which takes ISO 8601 times without a zone, such as 12:30:00"


@pytest.mark.parametrize(("value", "column", "expected"), [
    ({"x": "2"}, pa.array([1]), f'filter.x is "2", but the column "x" is int64, {NUMBERS}'),
    ({"x": True}, pa.array([1]), f'filter.x is true, but the column "x" is int64, {NUMBERS}'),
    ({"x": False}, pa.array([0.5]), f'filter.x is false, but the column "x" is double, {NUMBERS}'),
    ({"x": {"in": [1, None, "2", "3"]}}, pa.array([1]),
     f'filter.x.in.2 is "2", but the column "x" is int64, {NUMBERS}'),
    ({"and": [{"x": 1}, {"x": {"gt": 0, "lte": "é"}}]}, pa.array([1]),
     f'filter.and.1.x.lte is "é", but the column "x" is int64, {NUMBERS}'),
    ({"x": "a"}, pa.array([Decimal("0.1")]), f'filter.x is "a", but the column "x" is decimal128(1, 1), {NUMBERS}'),
    ({"x": 1}, pa.array(["1"]), 'filter.x is 1, but the column "x" is string, which takes strings'),
    ({"not": {"x": {"gte": 0.5}}}, pa.array(["1"]),
     'filter.not.x.gte is 0.5, but the column "x" is string, which takes strings'),
    ({"x": 1}, pa.array([True]), 'filter.x is 1, but the column "x" is bool, which takes true and false'),
    ({"x": {"lt": 1}}, pa.array([True]), 'filter.x.lt is 1, but the column "x" is bool, which takes true and false'),
    ({"x": "true"}, pa.array([True]), 'filter.x is "true", but the column "x" is bool, which takes true and false'),
    ({"x": 1}, pa.array([["1"]]), 'filter.x is 1, but the column "x" is list<item: string>, which takes strings'),
    ({"x": 5}, pa.array([SECOND]), f'filter.x is 5, but the column "x" is timestamp[us], {MOMENTS}'),
    ({"x": "2024-02-29T12:30:05Z"}, pa.array([SECOND]),
     f'filter.x is "2024-02-29T12:30:05Z", but the column "x" is timestamp[us], {MOMENTS}'),
    ({"x": "yesterday"}, pa.array([SECOND], pa.timestamp("s", "UTC")),
     f'filter.x is "yesterday", but the column "x" is timestamp[s, tz=UTC], {ZONED}'),
    ({"x": "2024-02-29T12:00"}, pa.array([SECOND.date()]),
     f'filter.x is "2024-02-29T12:00", but the column "x" is date32[day], {DATES}'),
    ({"x": "2023-02-29"}, pa.array([SECOND.date()]),
     f'filter.x is "2023-02-29", but the column "x" is date32[day], {DATES}'),
    ({"x": "12:00Z"}, pa.array([SECOND.time()]), f'filter.x is "12:00Z", but the column "x" is time64[us], {TIMES}'),
    ({"x": "a" * 100}, pa.array([1]), f'filter.x is "{"a" * 76}..., but the column "x" is int64, {NUMBERS}'),
])  # fmt: skip
def test_a_value_that_its_column_does_not_take_is_refused(value: Any, column: pa.Array, expected: str) -> None:
    assert message(value, column) == expected
    # Whatever rows there are: a filter is right or wrong for a segment, and not for its documents.
    assert message(value, column[:0]) == expected
    assert message(value, pa.nulls(3, column.type)) == expected


def test_no_part_of_a_filter_is_passed_over_because_others_decide() -> None:
    for value in ({"y": 1, "x": "a"}, {"or": [{"y": None}, {"x": "a"}]}):
        assert message(value, pa.array([1])).startswith("filter.")


TAKEN = "a string, a number, true, false, null, or an object with in, gt, gte, lt or lte"
HINT = f'a condition is {TAKEN}. "not" goes around a filter'


@pytest.mark.parametrize(("value", "expected"), [
    (None, "filter is null; it must be an object of fields and their conditions"),
    ("x", 'filter is "x"; it must be an object of fields and their conditions'),
    ([{"x": 1}], "filter is a list; it must be an object of fields and their conditions"),
    ({}, "filter is empty; name a field, or leave it out to have every document"),
    ({1: 2}, "filter has a key that is 1; keys are names of fields"),
    ({"not": {}}, "filter.not is empty; name a field, or leave it out to have every document"),
    ({"not": [{"x": 1}]}, "filter.not is a list; it must be an object of fields and their conditions"),
    ({"and": []}, "filter.and is empty; it must be a list of filters, at least one"),
    ({"or": {"x": 1}}, "filter.or is an object; it must be a list of filters, at least one"),
    ({"or": None}, "filter.or is null; it must be a list of filters, at least one"),
    ({"and": [{"x": 1}, 5]}, "filter.and.1 is 5; it must be an object of fields and their conditions"),
    ({"or": [{"not": {"and": [{}]}}]},
     "filter.or.0.not.and.0 is empty; name a field, or leave it out to have every document"),
    ({"x": [1, 2]}, f"filter.x is a list; it must be {TAKEN}"),
    ({"x": Decimal(1)}, f"filter.x is of type Decimal; it must be {TAKEN}"),
    ({"x": {}}, f"filter.x is empty; {HINT}"),
    ({"x": {"ne": 1}}, f'filter.x has "ne"; {HINT}'),
    ({"x": {"gt": 1, "not": 2}}, f'filter.x has "not"; {HINT}'),
    ({"x": {1: 1}}, f"filter.x has 1; {HINT}"),
    ({"x": {None: 1}}, f"filter.x has null; {HINT}"),
    ({"x": {"in": 5}}, "filter.x.in is 5; it must be a list of values"),
    ({"x": {"in": {"a": 1}}}, "filter.x.in is an object; it must be a list of values"),
    ({"x": {"in": [1], "gt": 0}}, 'filter.x.in stands beside gt; put the two into filters of an "and"'),
    ({"x": {"in": [1, [2]]}}, "filter.x.in.1 is a list; it must be a string, a number, true, false or null"),
    ({"x": {"gt": 1, "gte": 1}}, "filter.x has both gt and gte; leave one of them out"),
    ({"x": {"lte": 1, "gt": 0, "lt": 1}}, "filter.x has both lt and lte; leave one of them out"),
    ({"and": [{"year": 1}, {"year": {"gte": True}}]}, "filter.and.1.year.gte is true; it must be a string or a number"),
    ({"x": {"lt": None}}, "filter.x.lt is null; it must be a string or a number"),
    ({"x": {"lt": [1]}}, "filter.x.lt is a list; it must be a string or a number"),
    ({"x": NAN}, "filter.x is NaN; numbers must be finite in float64"),
    ({"x": {"in": [1.5, INF]}}, "filter.x.in.1 is Infinity; numbers must be finite in float64"),
    ({"x": {"gt": -INF}}, "filter.x.gt is -Infinity; numbers must be finite in float64"),
    ({"x": 10**309}, "filter.x is a number beyond float64; numbers must be finite in float64"),
    ({"x": "a\ud800"}, "filter.x is not text: it has a surrogate at character 1"),
    ({"\ud800": 1}, 'the name of filter."?" is not text: it has a surrogate at character 0'),
    ({"a\nb": []}, f'filter."a\\nb" is a list; it must be {TAKEN}'),
])  # fmt: skip
def test_what_is_no_filter_is_refused_by_its_place(value: Any, expected: str) -> None:
    assert message(value) == expected


def test_integers_of_more_digits_than_python_writes_are_refused() -> None:
    huge = 10**5000
    assert message({"x": {"lt": -huge}}) == "filter.x.lt is a number beyond float64; numbers must be finite in float64"
    for value in (huge, {huge: 1}, {"x": {huge: 1}}, {"x": {"in": huge}}, {"and": huge}):
        assert "a number beyond float64" in message(value)


def nested(levels: int) -> Any:
    """A filter of so many filters within each other."""
    value: Any = {"x": 1}
    for level in range(levels - 1):
        value = {"not": value} if level % 2 else {"or": [value]}
    return value


def test_filters_within_filters_are_limited() -> None:
    assert Filter.parse(nested(MAX_DEPTH)).fields == {"x"}
    assert message(nested(MAX_DEPTH + 1)).endswith(f" is {MAX_DEPTH + 1} filters deep; the limit is {MAX_DEPTH}")


def test_conditions_are_limited_in_all_filters_together() -> None:
    most: Any = {"or": [{"x": 1, "y": 2}] * (MAX_CONDITIONS // 2)}
    assert Filter.parse(most).fields == {"x", "y"}
    last = MAX_CONDITIONS // 2
    assert message({"or": [*most["or"], {"z": 1}]}) == (
        f"filter.or.{last}.z is one condition more than the {MAX_CONDITIONS} that a filter may have"
    )


def test_values_are_limited_in_all_lists_together() -> None:
    half = MAX_VALUES // 2
    lists: Any = {"x": {"in": [1] * half}, "y": {"in": list(range(half))}}
    assert Filter.parse(lists).fields == {"x", "y"}
    assert message({**lists, "z": {"in": [None]}}) == (
        f"filter.z.in has 1 values, which makes {MAX_VALUES + 1} in the filter; the limit is {MAX_VALUES}"
    )


def test_text_is_limited() -> None:
    assert held({"x": "雪" * MAX_TEXT}, ["雪" * MAX_TEXT]) == [0]
    assert message({"x": {"in": ["雪" * (MAX_TEXT + 1)]}}) == (
        f"filter.x.in.0 has {MAX_TEXT + 1} characters; the limit is {MAX_TEXT}"
    )
    assert message({"x" * (MAX_TEXT + 1): 1}) == (
        f'the name of filter."{"x" * 76}... has {MAX_TEXT + 1} characters; the limit is {MAX_TEXT}'
    )


@pytest.mark.parametrize("wrap", [
    lambda inner: {"not": inner}, lambda inner: {"and": [inner]}, lambda inner: {"x": inner}, lambda inner: [inner],
    lambda inner: {"or": [{"x": 1}, inner]},
], ids=["not", "and", "object", "list", "or"])  # fmt: skip
def test_nesting_that_would_exhaust_the_stack_is_refused(wrap: Any) -> None:
    value: Any = 1
    for _ in range(100_000):
        value = wrap(value)
    for hostile in (value, {"x": value}, {"x": {"in": [value]}}, {"x": {"in": value}}, {"x": {"gt": value}},
                    {"not": value}, {"and": [value]}):  # fmt: skip
        with pytest.raises(InvalidOptionError):
            Filter.parse(hostile)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["and", "or", "not", "in", "gt", "gte", "lt", "lte", "x", "id"]), inner, max_size=3
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_whatever_is_given_is_a_filter_or_refused(value: Any) -> None:
    payload = pa.table({"x": [[1, 2], None]})
    try:
        mask = Filter.parse(value).mask(payload, ids_of(2))
    except InvalidOptionError as error:
        mask = np.zeros(2, dtype=np.bool_)
        refusal = str(error)
    else:
        refusal = ""
    refusal.encode()
    assert len(refusal) < 1000
    assert (mask.dtype, mask.shape) == (np.dtype(np.bool_), (2,))


# Filters as values


def test_the_key_is_the_same_whatever_the_order_of_keys() -> None:
    one = Filter.parse({"b": {"gte": 1, "lt": 2.5}, "a": "é", "and": [{"y": None, "x": {"in": [True, 1]}}]})
    other = Filter.parse({"and": [{"x": {"in": [True, 1]}, "y": None}], "a": "é", "b": {"lt": 2.5, "gte": 1}})
    assert one.key == other.key == '{"a":"é","and":[{"x":{"in":[true,1]},"y":null}],"b":{"gte":1,"lt":2.5}}'
    assert one == other
    assert len({one, other}) == 1
    assert one.fields == {"a", "b", "x", "y"}


def test_filters_that_differ_in_more_have_other_keys() -> None:
    values: list[Any] = [
        {"x": 1}, {"x": True}, {"x": "1"}, {"x": None}, {"x": {"in": [1]}}, {"x": {"in": [1, 2]}}, {"y": 1},
        {"x": {"in": [2, 1]}}, {"x": {"gt": 1}}, {"x": {"gte": 1}}, {"not": {"x": 1}}, {"and": [{"x": 1}]},
        {"and": [{"x": 1}, {"y": 1}]}, {"and": [{"y": 1}, {"x": 1}]}, {"or": [{"x": 1}]}, {"x": 2**53},
        {"x": 2**53 + 1}, {"id": "1"},
    ]  # fmt: skip
    assert len({Filter.parse(value) for value in values}) == len({Filter.parse(value).key for value in values})
    assert len({Filter.parse(value).key for value in values}) == len(values)


def test_fields_are_columns_of_the_payload() -> None:
    assert Filter.parse({"id": "a"}).fields == frozenset()
    assert Filter.parse({"id": "a", "or": [{"x": 1}, {"not": {"y": None}}]}).fields == frozenset({"x", "y"})


def test_a_filter_cannot_be_changed() -> None:
    value: Any = {"x": {"in": [1, 2]}}
    parsed = Filter.parse(value)
    value["x"]["in"].append(3)
    value["y"] = 1
    assert parsed.mask(pa.table({"x": [1, 3]}), ids_of(2)).tolist() == [True, False]
    assert parsed.key == '{"x":{"in":[1,2]}}'
    with pytest.raises(AttributeError):
        parsed.key = "other"  # type: ignore[misc]


def test_a_filter_holds_on_to_no_table() -> None:
    parsed = Filter.parse({"x": {"in": ["a", "b"]}, "y": {"gt": 1}, "id": {"gt": ""}, "z": "a"})
    payload = pa.table({"x": ["a", "c"], "y": [1, 2], "z": [["a"], []]})
    ids = ids_of(2)
    mask = parsed.mask(payload, ids)
    gone = [weakref.ref(payload), weakref.ref(ids)]
    del payload, ids
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert mask.tolist() == [False, False]


def test_a_mask_belongs_to_its_caller() -> None:
    payload, ids = pa.table({"x": [True, False], "y": [[1], [2]], "n": pa.nulls(2)}), ids_of(2)
    for value in ({"x": True}, {"y": 1}, {"not": {"x": False}}, {"n": None}, {"id": "d0"}, {"x": {"in": [True, None]}}):
        parsed = Filter.parse(value)
        expected = parsed.mask(payload, ids).tolist()
        mask = parsed.mask(payload, ids)
        mask[:] = ~mask
        assert parsed.mask(payload, ids).tolist() == expected
