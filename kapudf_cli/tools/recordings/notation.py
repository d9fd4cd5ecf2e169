"""Groups, batches and times as Kapacitor writes them."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.handler.batches import batch_messages
from kapudf_cli.handler.points import time_ns
from kapudf_cli.protocol.udf_pb2 import EndBatch, Point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.codec import DataMessage

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def group_id(
    name: str, tags: Mapping[str, str], dimensions: Sequence[str], *, by_name: bool
) -> str:
    """Return Kapacitor's name of a group (`ToGroupID` in its models/point.go).

    Args:
        name: the measurement.
        tags: the tags of a point; a missing tag counts as empty.
        dimensions: the tags to group by, in order.
        by_name: whether to group by measurement as well.
    """
    values = ",".join(f"{tag}={tags.get(tag, '')}" for tag in dimensions)
    if not by_name:
        return values
    return f"{name}\n{values}" if dimensions else name


@dataclass(frozen=True)
class Grouping:
    """The grouping of a stream, as by `|groupBy('host')`, `|groupBy(*)` and `.byMeasurement()`.

    Attributes:
        tags: the tags to group by; None for all tags of each point.
        by_name: whether to group by measurement as well.
    """

    tags: tuple[str, ...] | None = ()
    by_name: bool = False

    def apply(self, point: Point) -> None:
        """Put a point into its group."""
        tags = dict(point.tags)
        dimensions = sorted(tags if self.tags is None else self.tags)
        del point.dimensions[:]
        point.dimensions.extend(dimensions)
        point.byName = self.by_name
        point.group = group_id(point.name, tags, dimensions, by_name=self.by_name)


def in_batch(point: Point, group: str) -> Point:
    """Return a copy of a point for a batch of a group: with time, group, tags and fields only."""
    bare = Point()
    bare.CopyFrom(point)
    for name in ("name", "database", "retentionPolicy", "dimensions", "byName"):
        bare.ClearField(name)
    bare.group = group
    return bare


def messages_of(batch: Batch) -> Iterator[DataMessage]:
    """Yield the messages of a batch as Kapacitor sends them, without `byName` in the EndBatch.

    See `writeEndBatch` in Kapacitor's udf/server.go.
    """
    for message in batch_messages(batch):
        if isinstance(message, EndBatch):
            message.ClearField("byName")
        yield message


def read_time(text: str) -> int:
    """Return a time in RFC 3339 as nanoseconds since the epoch; `datetime` would truncate it.

    Raises:
        ValueError: the text is not a time in RFC 3339.
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
    """Return nanoseconds since the epoch as a time in UTC, without trailing zeros."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    whole = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)  # noqa: DTZ001 - it is UTC
    decimals = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{whole.isoformat()}{decimals}Z"
