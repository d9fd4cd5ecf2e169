"""Read batches from Kapacitor's batch recordings: a JSON object in each line.

They are read as Kapacitor does (`UnmarshalJSON` of a batch in its edge/messages.go and
`replayBatchFromChan` in its replay.go): a number is a float, as JSON does not tell integers
apart; a point without tags has those of the batch; the group is computed from the tags; a
batch without points is left out; and a batch ends with its last point, if not later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kapudf_cli.handler.batches import Batch
from kapudf_cli.handler.points import set_field
from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.tools.recordings.notation import group_id, read_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.tools.recordings.lines import LineReader

_INT64 = range(-(2**63), 2**63)


class _Point(msgspec.Struct):
    fields: dict[str, bool | float | str | None]
    time: str
    tags: dict[str, str] | None = None


class _Batch(msgspec.Struct):
    points: list[_Point] = []
    name: str = ""
    tmax: str | None = None
    byname: bool = False
    tags: dict[str, str] | None = None
    # What a point of a stream has, and a batch has not.
    fields: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_Batch)


def read_batches(lines: LineReader) -> Iterator[Batch]:
    """Yield the batches, except those without points."""
    while (line := lines.read()) is not None:
        if line.is_blank:
            lines.pass_over()
            continue
        try:
            if line.problem is not None:
                raise ValueError(line.problem)
            batch = _batch(_DECODER.decode(line.text))
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            lines.refuse(line, _reason(error))
            continue
        if batch.points:
            lines.accept()
            yield batch
        else:
            lines.accept_empty_batch()


def _batch(content: _Batch) -> Batch:
    if content.fields is not msgspec.UNSET:
        message = "this is a point, and not a batch"
        raise ValueError(message)
    if not (content.points or content.name or content.tags or content.tmax):
        message = "this is not a batch: it has neither points nor a name"
        raise ValueError(message)
    tags = content.tags or {}
    group = group_id(content.name, tags, sorted(tags), by_name=content.byname)
    points = [_point(each, tags, group) for each in content.points]
    batch = Batch(content.name, points, tags, group, by_name=content.byname)
    if points:
        ended = [] if content.tmax is None else [read_time(content.tmax)]
        batch.tmax_ns = max([*ended, points[-1].time])
        if batch.tmax_ns not in _INT64:
            message = f"tmax {content.tmax} is out of range"
            raise ValueError(message)
    return batch


def _point(content: _Point, tags: dict[str, str], group: str) -> Point:
    time = read_time(content.time)
    if time not in _INT64:
        message = f"the time {content.time} is out of range"
        raise ValueError(message)
    point = Point(time=time, group=group, tags=content.tags or tags)
    for name, value in content.fields.items():
        if value is None:
            message = f"field '{name}' is null, on which Kapacitor panics"
            raise ValueError(message)
        set_field(point, name, value)
    return point


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "this is not a batch: brackets or braces are nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return f"this is not a batch: {error}"
    if isinstance(error, msgspec.DecodeError):
        return f"this is not JSON: {error}"
    return str(error)
