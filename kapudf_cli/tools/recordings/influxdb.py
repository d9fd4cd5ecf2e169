"""Read points and batches from InfluxDB 1.x over its HTTP API.

The answers are MessagePack, the only one of InfluxDB's formats that distinguishes integers from
floats. They come in pieces of some thousand rows, so that memory does not grow with the result.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import ssl
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from kapudf_cli.handler.batches import Batch
from kapudf_cli.handler.points import set_field
from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.tools.errors import QueryError, RecordingError
from kapudf_cli.tools.recordings.message_pack import MessageEnd
from kapudf_cli.tools.recordings.notation import group_id, write_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kapudf_cli.tools.recordings.influxql import Query
    from kapudf_cli.tools.recordings.lines import Tally

_SCHEMES: Final = {"influxdb": False, "influxdbs": True}
_PORT: Final = 8086
#: The environment variables of InfluxDB's own command line.
USERNAME_VARIABLE: Final = "INFLUX_USERNAME"
PASSWORD_VARIABLE: Final = "INFLUX_PASSWORD"  # noqa: S105 - a name

#: How long the server may send nothing: an aggregate over much data takes a while.
_SILENCE_S: Final = 300.0
_READ_BYTES: Final = 64 * 1024
#: How many rows the server sends in a piece, and the most bytes of one.
_ROWS_PER_PIECE: Final = 5_000
_MAX_PIECE_BYTES: Final = 256 * 1024 * 1024
#: How many points may be held, to put them in order or into one batch. A point takes about 1 KB.
MAX_HELD_POINTS: Final = 1_000_000

_TIME: Final = "time"
_MESSAGE_PACK: Final = "application/x-msgpack"
_INT64: Final = range(-(2**63), 2**63)

_Value: TypeAlias = "bool | int | float | str | None"


def is_url(path: str) -> bool:
    """Return whether a text names a database of InfluxDB, and not a file."""
    return re.match(r"influxdbs?://", path) is not None


@dataclass(frozen=True)
class Database:
    """A database of a server.

    Attributes:
        host: the name or address of the server.
        port: its port.
        name: the database.
        uses_tls: whether to connect with TLS.
        username: the user, None without authentication.
        password: their password.
    """

    host: str
    port: int
    name: str
    uses_tls: bool = False
    username: str | None = None
    password: str = ""

    @classmethod
    def parse(cls, url: str) -> Database:
        """Return the database of `influxdb://[USER:PASSWORD@]HOST[:PORT]/DATABASE`.

        Without a user in the URL, it is that of $INFLUX_USERNAME and $INFLUX_PASSWORD.

        Raises:
            QueryError: the URL has another form. The message does not show it, as it may have a
                password.
        """
        parts = urllib.parse.urlsplit(url)
        name = urllib.parse.unquote(parts.path.removeprefix("/"))
        try:
            port = parts.port or _PORT
        except ValueError as error:
            raise QueryError("the port of the URL is not a number up to 65535") from error
        if parts.scheme not in _SCHEMES or not (parts.hostname and name) or parts.query:
            raise QueryError("write the URL as influxdb://[USER:PASSWORD@]HOST[:8086]/DATABASE")
        if parts.username:
            username: str | None = urllib.parse.unquote(parts.username)
            password = urllib.parse.unquote(parts.password or "")
        else:
            username = os.environ.get(USERNAME_VARIABLE) or None
            password = os.environ.get(PASSWORD_VARIABLE, "")
        return cls(parts.hostname, port, name, _SCHEMES[parts.scheme], username, password)

    def __str__(self) -> str:
        """Return the URL without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "influxdbs" if self.uses_tls else "influxdb"
        return f"{scheme}://{host}:{self.port}/{self.name}"


@dataclass(frozen=True)
class Range:
    """A range of time, in nanoseconds, cut into periods.

    Attributes:
        start_ns: its first time.
        stop_ns: the time after its last one.
        every_ns: the length of a period; None for one period.
    """

    start_ns: int
    stop_ns: int
    every_ns: int | None = None

    def periods(self, *, whole: bool) -> Iterator[tuple[int, int]]:
        """Yield start and stop of each period; a shorter last one unless only `whole` ones."""
        start = self.start_ns
        length = self.every_ns or self.stop_ns - self.start_ns
        while start < self.stop_ns:
            stop = start + length
            if stop > self.stop_ns:
                if whole:
                    return
                stop = self.stop_ns
            yield start, stop
            start = stop


class _Series(msgspec.Struct):
    columns: list[str]
    values: list[list[_Value]] = []
    name: str = ""
    tags: dict[str, str] = {}
    partial: bool = False


class _Result(msgspec.Struct):
    series: list[_Series] | None = None
    error: str | None = None
    partial: bool = False


class _Answer(msgspec.Struct):
    results: list[_Result] = []
    error: str | None = None


_DECODER = msgspec.msgpack.Decoder(_Answer)


@dataclass(frozen=True)
class Reading:
    """Reads the result of a query, once.

    Attributes:
        database: where the query runs.
        query: the query.
        range: limits the query, if given, and cuts it into one query for each period.
        retention_policy: where measurements are looked up that the query names alone; empty for
            the database's default.
        tally: counts points or batches.
    """

    database: Database
    query: Query
    tally: Tally
    range: Range | None = None
    retention_policy: str = ""

    # --- points of a stream ---

    def points(self) -> Iterator[Point]:
        """Yield the result as points of a stream, in the order of time.

        Tags by which the query groups, and columns that are tags of the measurement, become
        tags of the points. A row without a value is left out.

        Raises:
            RecordingError: the server cannot be reached, refuses the query, or ends too early.
        """
        tag_keys: dict[str, frozenset[str]] = {}
        for text in self._texts():
            rows = self._stream(text, tag_keys)
            yield from (
                self._checked_order(rows) if self.query.has_one_series else self._sorted(rows)
            )

    def _texts(self) -> list[str] | Iterator[str]:
        if self.range is None:
            return [self.query.text]
        return (self.query.between(*period) for period in self.range.periods(whole=False))

    def _stream(self, text: str, tag_keys: dict[str, frozenset[str]]) -> Iterator[Point]:
        for series in self._pieces(text):
            if series.name not in tag_keys:
                tag_keys[series.name] = self._tag_keys(series)
            tag_columns = tag_keys[series.name] - series.tags.keys()
            # InfluxDB shows a missing tag as an empty one.
            series.tags = {tag: value for tag, value in series.tags.items() if value}
            for row in series.values:
                point = _point(series, row, tag_columns, self._refuse)
                if point is None:
                    continue
                point.name = series.name
                point.database = self.database.name
                point.retentionPolicy = self.retention_policy
                self.tally.records += 1
                yield point

    def _checked_order(self, points: Iterator[Point]) -> Iterator[Point]:
        latest = None
        for point in points:
            if latest is not None and point.time < latest:
                raise self._refuse(
                    f"the result is not in the order of time at {write_time(point.time)}; "
                    "cut it into periods with --start, --stop and --every"
                )
            latest = point.time
            yield point

    def _sorted(self, points: Iterator[Point]) -> list[Point]:
        held: list[Point] = []
        for point in points:
            if len(held) == MAX_HELD_POINTS:
                raise self._refuse(
                    f"the result has more than {MAX_HELD_POINTS} points in several series, too "
                    "many to put them in the order of time; choose a shorter --every (with "
                    "--start and --stop), or leave out GROUP BY"
                )
            held.append(point)
        held.sort(key=lambda point: point.time)
        return held

    def _tag_keys(self, series: _Series) -> frozenset[str]:
        """Return the columns that are tags of the measurement.

        Raises:
            RecordingError: a column is the name of a tag and of a field, or the measurement is
                in another database.
        """
        name = '"' + series.name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        columns = set(series.columns) - series.tags.keys()
        keys: list[set[str]] = []
        for what in ("TAG", "FIELD"):
            pieces = self._pieces(f"SHOW {what} KEYS FROM {name}")
            keys.append({str(row[0]) for piece in pieces for row in piece.values})
        tags, fields = keys
        if not tags | fields:
            raise self._refuse(
                f"there is no measurement {series.name} here that would tell which columns are "
                "tags; name its database in the URL"
            )
        if both := sorted(tags & fields & columns):
            raise self._refuse(
                f"{series.name} has a tag and a field named {both[0]}: add GROUP BY "
                f'"{both[0]}" to the query'
            )
        return frozenset(tags)

    # --- batches ---

    def batches(self) -> Iterator[Batch]:
        """Yield the result as batches, as `batch|query()` with `.period()` and `.every()` does.

        Each series of each period is a batch. As in Kapacitor, all numbers are floats, columns
        that are tags are fields unless the query groups by them, and a batch ends with its
        period or, if the query has GROUP BY time(…), with its last point (`doQuery` in
        Kapacitor's batch.go and `ResultToBufferedBatches` in its edge/messages.go).

        Raises:
            RecordingError: as `points`.
        """
        assert self.range is not None, "batches have periods"
        for start_ns, stop_ns in self.range.periods(whole=True):
            batch: Batch | None = None
            goes_on = False
            for series in self._pieces(self.query.between(start_ns, stop_ns)):
                if not goes_on or batch is None:
                    if batch is not None:
                        yield self._finished(batch, stop_ns)
                    tags = series.tags
                    group = group_id(series.name, tags, sorted(tags), by_name=False)
                    batch = Batch(series.name, [], tags, group)
                self._extend(batch, series)
                goes_on = series.partial
            if batch is not None:
                yield self._finished(batch, stop_ns)

    def _extend(self, batch: Batch, series: _Series) -> None:
        if len(batch.points) + len(series.values) > MAX_HELD_POINTS:
            problem = f"a batch of more than {MAX_HELD_POINTS} points; choose a shorter --every"
            raise self._refuse(problem)
        for row in series.values:
            numbers = [float(value) if type(value) is int else value for value in row]
            place = series.columns.index(_TIME)
            numbers[place] = row[place]
            if (point := _point(series, numbers, frozenset(), self._refuse)) is not None:
                point.group = batch.group
                batch.points.append(point)

    def _finished(self, batch: Batch, stop_ns: int) -> Batch:
        self.tally.records += 1
        latest = max((point.time for point in batch.points), default=None)
        ends_with_point = self.query.grouped_by_time and latest is not None
        batch.tmax_ns = latest if ends_with_point else stop_ns
        return batch

    # --- HTTP ---

    def _refuse(self, reason: str) -> RecordingError:
        return RecordingError(str(self.database), reason)

    def _pieces(self, text: str) -> Iterator[_Series]:
        """Run a query and yield its series, long ones in several pieces.

        All but the last piece of a series have `partial` set.

        Raises:
            RecordingError: the server cannot be reached, refuses the query, or ends too early.
        """
        goes_on = False
        with self._request(text) as response:
            for answer in self._answers(response):
                self._check(answer.error)
                for result in answer.results:
                    self._check(result.error)
                    goes_on = result.partial
                    for series in result.series or ():
                        goes_on = series.partial or result.partial
                        yield series
        if goes_on:
            raise self._refuse("the server has ended its answer in the middle of the result")

    def _check(self, error: str | None) -> None:
        if error is not None:
            raise self._refuse(f"the server answered: {error}")

    @contextlib.contextmanager
    def _request(self, text: str) -> Iterator[http.client.HTTPResponse]:
        database = self.database
        kind = http.client.HTTPSConnection if database.uses_tls else http.client.HTTPConnection
        connection = kind(database.host, database.port, timeout=_SILENCE_S)
        parameters = {
            "db": database.name,
            "q": text,
            "epoch": "ns",
            "chunked": "true",
            "chunk_size": str(_ROWS_PER_PIECE),
        }
        if self.retention_policy:
            parameters["rp"] = self.retention_policy
        headers = {"Accept": _MESSAGE_PACK}
        if database.username is not None:
            account = f"{database.username}:{database.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(account).decode()}"
        try:
            with self._network_errors():
                # A server does not change anything for a GET.
                connection.request(
                    "GET", f"/query?{urllib.parse.urlencode(parameters)}", headers=headers
                )
                response = connection.getresponse()
                kind_of_answer = response.headers.get_content_type()
                if response.status != http.HTTPStatus.OK:
                    raise self._refused(response)
                if kind_of_answer != _MESSAGE_PACK:
                    raise self._refuse(
                        f"the server answered with {kind_of_answer} and not with MessagePack; "
                        "is it InfluxDB 1.4 to 1.11?"
                    )
            yield response
        finally:
            connection.close()

    def _refused(self, response: http.client.HTTPResponse) -> RecordingError:
        """Return the error for an answer with a status other than 200."""
        body = response.read(_READ_BYTES)
        try:
            decode = (
                msgspec.msgpack.decode
                if response.headers.get_content_type() == _MESSAGE_PACK
                else msgspec.json.decode
            )
            error = decode(body, type=_Answer).error or response.reason
        except msgspec.DecodeError:
            error = response.reason
        problem = f"the server answered with {response.status}: {error}"
        if response.status == http.HTTPStatus.UNAUTHORIZED:
            problem += (
                "; write the URL as influxdb://USER:PASSWORD@HOST/DATABASE, or set "
                f"{USERNAME_VARIABLE} and {PASSWORD_VARIABLE}"
            )
        return self._refuse(problem)

    def _answers(self, response: http.client.HTTPResponse) -> Iterator[_Answer]:
        """Yield the answers. Each is one message of MessagePack."""
        data = bytearray()
        message = MessageEnd()
        while True:
            with self._network_errors():
                read = response.read1(_READ_BYTES)
                if not read and response.length:
                    raise http.client.IncompleteRead(b"", response.length)
            if not read:
                break
            data += read
            try:
                while (end := message.find(data)) is not None:
                    yield _DECODER.decode(memoryview(data)[:end])
                    del data[:end]
                    message = MessageEnd()
            except (ValueError, msgspec.DecodeError) as error:
                raise self._refuse(f"the server's answer is not valid: {error}") from error
            if len(data) > _MAX_PIECE_BYTES:
                raise self._refuse(f"the server sent {_ROWS_PER_PIECE} rows of over 256 MiB")
        if data:
            raise self._refuse("the server has ended its answer in the middle of a message")

    @contextlib.contextmanager
    def _network_errors(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise self._refuse(
                f"the server's certificate is not trusted: {error.verify_message}; set "
                "SSL_CERT_FILE to a file with the certificate of its authority"
            ) from error
        except ssl.SSLError as error:
            problem = f"TLS failed: {error.reason}; without TLS, the URL begins with influxdb://"
            raise self._refuse(problem) from error
        except http.client.IncompleteRead as error:
            raise self._refuse("the connection was cut in the middle of the result") from error
        except TimeoutError as error:
            raise self._refuse(f"the server sent nothing for {_SILENCE_S:g} s") from error
        except OSError as error:
            advice = "; is InfluxDB running there?" if isinstance(error, ConnectionError) else ""
            raise self._refuse(
                f"the connection failed: {error.strerror or error}{advice}"
            ) from error
        except http.client.HTTPException as error:
            raise self._refuse(
                f"the server does not speak HTTP ({type(error).__name__}); "
                "with TLS, write influxdbs:// and not influxdb://"
            ) from error


def _point(
    series: _Series,
    row: Sequence[_Value],
    tag_columns: frozenset[str],
    refuse: Callable[[str], RecordingError],
) -> Point | None:
    """Return the point of a row, None if it has no fields."""
    point = Point(tags=series.tags)
    has_fields = False
    for column, value in zip(series.columns, row, strict=True):
        if value is None:
            continue
        if column == _TIME:
            if not isinstance(value, int):
                raise refuse(f"the time {value!r:.40} is not a number of nanoseconds")
            point.time = value
        elif column in tag_columns:
            if value:
                point.tags[column] = str(value)
        else:
            if isinstance(value, int) and value not in _INT64:
                raise refuse(f"field {column}: {value} does not fit into 64 bits")
            set_field(point, column, value)
            has_fields = True
    return point if has_fields else None
