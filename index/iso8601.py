"""Dates and times as ISO 8601 writes them, read to the nanosecond.

Python's own readers end at microseconds and drop the digits after them; they read all the rest.
"""

import datetime
import re
from typing import Final

__all__ = ["read_date", "read_moment", "read_time"]

_DAY: Final = r"\d{4}-\d\d-\d\d"
_TIME: Final = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?"
_FRACTION: Final = r"(?:(?<=:\d\d:\d\d)[.,](\d{1,9}))?"
_ZONE: Final = r"(Z|[+-]\d\d(?::?[0-5]\d)?)?"
_READ_TIME: Final = re.compile(f"({_TIME}){_FRACTION}", re.ASCII)
_READ_MOMENT: Final = re.compile(f"({_DAY})(?:[T ]({_TIME}){_FRACTION}{_ZONE})?", re.ASCII)

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def read_date(text: str) -> int | None:
    """Days since 1970-01-01 of "2024-02-29", or None where it is no such date."""
    if not re.fullmatch(_DAY, text, re.ASCII):
        return None
    try:
        return datetime.date.fromisoformat(text).toordinal() - _EPOCH.toordinal()
    except ValueError:
        return None


def read_time(text: str) -> int | None:
    """Nanoseconds since midnight of "12:30", "12:30:05" or "12:30:05.25", or None where it is no such time."""
    found = _READ_TIME.fullmatch(text)
    if found is None:
        return None
    time = datetime.time.fromisoformat(found[1])
    return (time.hour * 3600 + time.minute * 60 + time.second) * 10**9 + _nanoseconds(found[2])


def read_moment(text: str) -> tuple[int, bool] | None:
    """Nanoseconds since 1970 of "2024-02-29", which is its midnight, or of "2024-02-29T12:30:05.25+01:00", and whether
    it names a zone, without which it is taken to be in UTC. None where it is no such time.

    A space may stand for the T, and "Z" for the zone of UTC; zone, fraction and seconds may be left out.
    """
    found = _READ_MOMENT.fullmatch(text)
    if found is None:
        return None
    day, time, fraction, zone = found.groups()
    try:
        moment = datetime.datetime.fromisoformat(f"{day}T{time or '00:00'}{zone or 'Z'}")
    except ValueError:
        return None
    seconds = (moment - _EPOCH) // datetime.timedelta(seconds=1)
    return seconds * 10**9 + _nanoseconds(fraction), zone is not None


def _nanoseconds(fraction: str | None) -> int:
    return int((fraction or "").ljust(9, "0"))
