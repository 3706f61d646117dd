"""ISO 8601 as filters read it: to the nanosecond, and what is none."""

import datetime

import hypothesis.strategies as st
import pytest
from hypothesis import given

from index.iso8601 import read_date, read_moment, read_time

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MINUTE = 60 * 10**9
ZONES = st.none() | st.integers(-1439, 1439).map(lambda at: datetime.timezone(datetime.timedelta(minutes=at)))


@pytest.mark.parametrize(("text", "expected"), [
    ("1970-01-01", (0, False)),
    ("1970-01-02T00:01", (1441 * MINUTE, False)),
    ("1970-01-01 00:01:00Z", (MINUTE, True)),
    ("1970-01-01T00:00:00.1", (10**8, False)),
    ("1970-01-01T00:00:00,000000001", (1, False)),
    ("1969-12-31T23:59:59.999999999Z", (-1, True)),
    ("1970-01-01T01:00+01:00", (0, True)),
    ("1970-01-01T01:00+0100", (0, True)),
    ("1970-01-01T01:00+01", (0, True)),
    ("1969-12-31T18:30:00-05:30", (0, True)),
    ("1970-01-01T00:00-00:00", (0, True)),
    ("0001-01-01T00:00+23:59", ((-719_162 * 1440 - 1439) * MINUTE, True)),
    ("9999-12-31T23:59:59.999999999-23:59", ((2_932_897 * 1440 + 1439) * MINUTE - 1, True)),
])  # fmt: skip
def test_moments(text: str, expected: tuple[int, bool]) -> None:
    assert read_moment(text) == expected


@pytest.mark.parametrize("text", [
    "", "1970", "1970-01", "19700101", "1970-1-1", "1970-W01-1", "1970-001", "1970-02-29", "1970-13-01", "1970-00-01",
    "0000-01-01", "10000-01-01", "-001-01-01", "1970-01-01T", "1970-01-01T00", "1970-01-01T24:00", "1970-01-01T23:60",
    "1970-01-01T23:59:60", "1970-01-01T00:00.5", "1970-01-01T00:00:00.", "1970-01-01T00:00:00.0000000001",
    "1970-01-01Z", "1970-01-01T00:00z", "1970-01-01t00:00", "1970-01-01T00:00+24:00", "1970-01-01T00:00+01:60",
    "1970-01-01T00:00+1", "1970-01-01T00:00 Z", " 1970-01-01", "1970-01-01\n", "1970-01-01T00:00Z\n", "1970-01-0\u0661",
    "1970-01-01T00:00:00.\u0661",
    "12:30", "now",
])  # fmt: skip
def test_what_is_no_moment(text: str) -> None:
    assert read_moment(text) is None
    assert read_date(text) is None


@given(st.datetimes(timezones=ZONES), st.sampled_from(["T", " "]), st.sampled_from(["auto", "microseconds"]))
def test_moments_as_python_writes_them(moment: datetime.datetime, separator: str, timespec: str) -> None:
    read = read_moment(moment.isoformat(separator, timespec))
    since = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)) - EPOCH
    assert read == (since // datetime.timedelta(microseconds=1) * 1000, moment.tzinfo is not None)


@given(st.dates())
def test_dates(date: datetime.date) -> None:
    assert read_date(str(date)) == (date - EPOCH.date()).days
    assert read_moment(str(date)) == ((date - EPOCH.date()).days * 1440 * MINUTE, False)


@pytest.mark.parametrize(("text", "expected"), [
    ("00:00", 0), ("12:30", 750 * MINUTE), ("23:59:59", 1440 * MINUTE - 10**9), ("00:00:00.25", 25 * 10**7),
    ("00:00:00,000000001", 1), ("24:00", None), ("12", None), ("12:60", None), ("12:30:60", None), ("12:30.5", None),
    ("12:30Z", None), ("12:30+01:00", None), ("1:30", None), ("T12:30", None), ("12:30\n", None), ("", None),
    ("12:30:00.0000000000", None), ("1\u0662:30", None),
])  # fmt: skip
def test_times(text: str, expected: int | None) -> None:
    assert read_time(text) == expected
