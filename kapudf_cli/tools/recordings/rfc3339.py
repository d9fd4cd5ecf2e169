"""Times as text, exact to the nanosecond, which `datetime` would cut off at microseconds."""

from __future__ import annotations

import datetime as dt
import re

from kapudf_cli.handler.points import time_ns

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def read_time(text: str) -> int:
    """Return a time as nanoseconds since the epoch.

    Raises:
        ValueError: it is no time of RFC 3339.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        message = f"'{text:.40}' is not a time such as 2020-09-13T12:27:40Z"
        raise ValueError(message)
    date, time, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone
    whole = time_ns(dt.datetime.fromisoformat(f"{date}T{time}{zone}"))
    return whole + int((fraction or "").ljust(9, "0"))


def write_time(nanoseconds: int) -> str:
    """Return nanoseconds since the epoch as a time in UTC, without zeros at the fraction's end."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    whole = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)  # noqa: DTZ001 - it is UTC
    decimals = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{whole.isoformat()}{decimals}Z"
