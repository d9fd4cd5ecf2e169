"""Open what a command reads points from: a file, standard input, or a query of InfluxDB."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.udf_pb2 import BATCH, EdgeType, Point
from kapudf_cli.tools.errors import QueryError
from kapudf_cli.tools.recordings.influxdb import Database, Range, Reading, is_url
from kapudf_cli.tools.recordings.influxql import Query
from kapudf_cli.tools.recordings.line_protocol import PRECISIONS
from kapudf_cli.tools.recordings.lines import Tally
from kapudf_cli.tools.recordings.notation import write_time
from kapudf_cli.tools.recordings.recording import Kind, Recording, open_recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.tools.recordings.lines import Refuse

#: Times before 1990 are probably in another unit if they are in this range in one:
#: from 2000 to 2100.
_TOO_EARLY_NS: Final = 631_152_000 * 10**9
_PLAUSIBLE_NS: Final = range(946_684_800 * 10**9, 4_102_444_800 * 10**9)


@dataclass(frozen=True)
class Source:
    """What a command was told to read.

    Attributes:
        path: a file, `-` for standard input, or a URL of InfluxDB.
        kind: the format of a file; None to detect it.
        precision: the unit of timestamps in line protocol.
        query: what to read from InfluxDB.
        start_ns: the first time to read from InfluxDB.
        stop_ns: the time after the last one; needs `start_ns`.
        every_ns: the length of the periods that are read one by one; needs `start_ns`.
    """

    path: str
    kind: Kind | None = None
    precision: str = "ns"
    query: str | None = None
    start_ns: int | None = None
    stop_ns: int | None = None
    every_ns: int | None = None

    @contextlib.contextmanager
    def open(
        self,
        wants: EdgeType,
        *,
        refuse: Refuse,
        warn: Callable[[str], None],
        retention_policy: str | None = None,
    ) -> Iterator[Recording]:
        """Open it for a UDF that wants this edge.

        Args:
            wants: the edge; periods of a query become batches only for a UDF that wants them.
            refuse: called with the error for each ill-formed record of a file.
            warn: called, from any thread, with what is probably wrong.
            retention_policy: the default for measurements of a query.

        Raises:
            RecordingError: see `open_recording`.
            QueryError: the query or its range cannot be replayed, or they are not given with
                InfluxDB.
        """
        if is_url(self.path):
            yield self._result(wants, retention_policy or "")
            return
        if (self.query, self.start_ns, self.stop_ns, self.every_ns) != (None,) * 4:
            raise QueryError(
                "--query, --start, --stop and --every are for influxdb://HOST:8086/DATABASE"
            )
        opened = open_recording(self.path, precision=self.precision, refuse=refuse, kind=self.kind)
        with opened as recording:
            records = _checked_precision(recording.records, self.precision, warn)
            yield dataclasses.replace(recording, records=records)

    def _result(self, wants: EdgeType, retention_policy: str) -> Recording:
        """Return the result of the query as a recording; it is not requested yet."""
        database = Database.parse(self.path)
        if self.query is None:
            raise QueryError("add a query: --query 'SELECT * FROM measurement'")
        if self.kind is not None:
            raise QueryError("--input-format is the format of a file, not of a query's result")
        query = Query(self.query)
        tally = Tally()
        reading = Reading(database, query, tally, self._range(query), retention_policy)
        in_batches = wants == BATCH and self.every_ns is not None
        records: Iterator[Point | Batch] = reading.batches() if in_batches else reading.points()
        kind = Kind.QUERIED_BATCHES if in_batches else Kind.QUERIED_POINTS
        return Recording(str(database), kind, None, tally, records, None)

    def _range(self, query: Query) -> Range | None:
        if self.start_ns is None:
            if self.stop_ns is not None or self.every_ns is not None:
                raise QueryError("--stop and --every need --start")
            return None
        assert self.stop_ns is not None, "the command sets a default"
        if self.stop_ns <= self.start_ns:
            start, stop = write_time(self.start_ns), write_time(self.stop_ns)
            raise QueryError(f"--stop {stop} is not after --start {start}")
        query.between(self.start_ns, self.stop_ns)
        return Range(self.start_ns, self.stop_ns, self.every_ns)


def _checked_precision(
    records: Iterator[Point | Batch], precision: str, warn: Callable[[str], None]
) -> Iterator[Point | Batch]:
    """Yield the records; warn if the time of the first point is probably in another unit."""
    for first in itertools.islice(records, 1):
        if isinstance(first, Point) and (unit := probable_precision(first.time, precision)):
            warn(
                f"the first time, {write_time(first.time)}, is probably wrong: "
                f"with --precision {unit} it is "
                f"{write_time(first.time // PRECISIONS[precision] * PRECISIONS[unit])}"
            )
        yield first
    yield from records


def probable_precision(time_ns: int, precision: str) -> str | None:
    """Return the unit in which a time was probably written, None if `precision` may be right.

    Args:
        time_ns: a time that was read with `precision`.
        precision: one of PRECISIONS.
    """
    if time_ns >= _TOO_EARLY_NS:
        return None
    count = time_ns // PRECISIONS[precision]
    units = (unit for unit, length_ns in PRECISIONS.items() if count * length_ns in _PLAUSIBLE_NS)
    return next(units, None)
