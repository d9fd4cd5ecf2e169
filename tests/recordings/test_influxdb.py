"""Queries of InfluxDB: a real one, and a server that fails."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from kapudf_cli import Batch, Point, get_fields
from kapudf_cli.errors import KapudfError
from kapudf_cli.protocol import BATCH, STREAM
from kapudf_cli.tools.errors import QueryError, RecordingError
from kapudf_cli.tools.recordings.influxdb import Database, Range
from kapudf_cli.tools.recordings.line_protocol import write
from kapudf_cli.tools.recordings.sources import Source
from tests.peers import in_thread
from tests.recordings.influxd import InfluxDaemon
from tests.run_kapudf import run_kapudf

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

S = 10**9
#: More than 2**53, where floats are not exact any more.
BIG = 2**53 + 1
START = 1_600_000_000 * S


def read(url: str, query: str, wants: Any = STREAM, **more: Any) -> list[Any]:
    """Return the points or batches of a query."""
    return [record for record, _ in counted(url, query, wants, **more)]


def written(url: str, query: str, **more: Any) -> list[str]:
    """Return the points of a query as line protocol."""
    return [write(point) for point in read(url, query, **more)]


def counted(url: str, query: str, wants: Any = STREAM, **more: Any) -> list[tuple[Any, int]]:
    """Return the points or batches of a query, each with the count of records at that time."""

    def fail(problem: object) -> None:
        raise AssertionError(problem)

    rp = more.pop("retention_policy", None)
    source = Source(url, query=query, **more)
    with source.open(wants, refuse=fail, warn=fail, retention_policy=rp) as recording:
        return [(record, recording.tally.records) for record in recording.records]


# --- a real InfluxDB ---


@pytest.fixture(scope="module")
def influx() -> Iterator[InfluxDaemon]:
    """Give an InfluxDB with a few points, or skip the test."""
    if not InfluxDaemon.is_installed():
        pytest.skip("there is no influxd on PATH (Debian: apt-get install influxdb)")
    with (
        tempfile.TemporaryDirectory(prefix="influxd-") as folder,
        InfluxDaemon(Path(folder)) as daemon,
    ):
        daemon.write(
            f"cpu,host={host} v={second}.0,n={BIG + second}i,ok={second % 2 == 0},"
            f's="{host} {second}" {START + second * S + number}'
            for number, host in enumerate(("a", "b"))
            for second in range(6)
        )
        daemon.write([f"cpu,dc=x v=1.5 {START + 100 * S}"])
        daemon.write([f"clash,t=1 t=2.0 {START}"])
        daemon.write(f"long v={n}i {START + n}" for n in range(12_000))
        yield daemon


def test_points_come_with_their_types_and_tags_in_the_order_of_time(influx: InfluxDaemon) -> None:
    points = read(influx.url, "SELECT * FROM cpu")
    assert [point.time for point in points] == [
        *(START + second * S + host for second in range(6) for host in (0, 1)),
        START + 100 * S,
    ]
    assert dict(points[1].tags) == {"host": "b"}
    fields = get_fields(points[3])
    assert fields == {"v": 1.0, "n": BIG + 1, "ok": False, "s": "b 1"}
    assert {name: type(value) for name, value in fields.items()} == {
        "v": float, "n": int, "ok": bool, "s": str,
    }  # fmt: skip
    assert (points[0].name, points[0].database) == ("cpu", "plant")
    assert (dict(points[-1].tags), get_fields(points[-1])) == ({"dc": "x"}, {"v": 1.5})


@pytest.mark.parametrize("group", ["GROUP BY *", "GROUP BY host, dc", "GROUP BY host"])
def test_series_of_a_grouped_query_are_merged(influx: InfluxDaemon, group: str) -> None:
    grouped = written(influx.url, f"SELECT * FROM cpu {group}")  # noqa: S608 - one of the above
    assert grouped == written(influx.url, "SELECT * FROM cpu")


def test_periods_together_are_the_whole(influx: InfluxDaemon) -> None:
    """The last period may be shorter."""
    query = "SELECT * FROM cpu GROUP BY *"
    cut = written(influx.url, query, start_ns=START, stop_ns=START + 5 * S + 1, every_ns=2 * S)
    assert cut == written(influx.url, "SELECT * FROM cpu")[:11]


def test_a_long_result_comes_in_pieces(influx: InfluxDaemon) -> None:
    result = counted(influx.url, "SELECT * FROM long")
    assert [get_fields(point)["v"] for point, _ in result] == list(range(12_000))
    assert [count for _, count in result] == list(range(1, 12_001))


def test_batches_are_those_of_a_query_node_of_kapacitor(influx: InfluxDaemon) -> None:
    """All numbers are floats, and an incomplete period is left out."""
    query = "SELECT v, n FROM cpu GROUP BY host"
    batches = read(influx.url, query, BATCH, start_ns=START, stop_ns=START + 5 * S, every_ns=2 * S)
    assert [(each.tags["host"], each.tmax_ns, each.group) for each in batches] == [
        (host, START + end * S, f"host={host}") for end in (2, 4) for host in "ab"
    ]
    first = batches[1]
    assert [(p.time, get_fields(p), dict(p.tags), p.group) for p in first.points] == [
        (START + s * S + 1, {"v": s, "n": float(BIG + s)}, {"host": "b"}, "host=b") for s in (0, 1)
    ]
    assert {type(value) for value in get_fields(first.points[0]).values()} == {float}


def test_a_batch_grouped_by_time_ends_with_its_last_point(influx: InfluxDaemon) -> None:
    query = "SELECT mean(v) FROM cpu WHERE host = 'a' OR host = 'b' GROUP BY time(2s), host"
    batches = read(influx.url, query, BATCH, start_ns=START, stop_ns=START + 4 * S, every_ns=4 * S)
    assert [each.tmax_ns for each in batches] == [START + 2 * S] * 2
    assert [get_fields(point) for point in batches[0].points] == [{"mean": 0.5}, {"mean": 2.5}]


def test_a_long_series_is_one_batch(influx: InfluxDaemon) -> None:
    (batch,) = read(
        influx.url, "SELECT v FROM long", BATCH, start_ns=START, stop_ns=START + S, every_ns=S
    )
    assert isinstance(batch, Batch)
    assert len(batch.points) == 12_000


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("SELECT v FROM", "the server answered with 400: error parsing query: found EOF"),
        ("SELECT foo(v) FROM cpu", "the server answered: undefined function foo"),
        ("SELECT * FROM clash", 'a tag and a field named t: add GROUP BY "t"'),
    ],
)
def test_a_query_that_fails_is_an_error_with_its_reason(
    influx: InfluxDaemon, query: str, problem: str
) -> None:
    with pytest.raises(RecordingError, match=r"^influxdb://127") as caught:
        read(influx.url, query)
    assert problem in str(caught.value)
    assert "p@ss" not in str(caught.value)


def test_a_name_of_a_tag_and_a_field_may_be_grouped_by(influx: InfluxDaemon) -> None:
    points = written(influx.url, "SELECT t FROM clash GROUP BY t")
    assert points == [f"clash,t=1 t=2.0 {START}"]


def test_who_may_read(influx: InfluxDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    anonymous = f"influxdb://{influx.address}/plant"
    with pytest.raises(RecordingError, match=r"401.*INFLUX_USERNAME"):
        read(anonymous, "SELECT * FROM cpu")
    user = Database.parse(influx.url)
    monkeypatch.setenv("INFLUX_USERNAME", user.username or "")
    monkeypatch.setenv("INFLUX_PASSWORD", user.password)
    assert len(read(anonymous, "SELECT * FROM cpu")) == 13
    with pytest.raises(RecordingError, match="database not found: other"):
        read(f"influxdb://{influx.address}/other", "SELECT * FROM cpu")


def test_replay_and_load_read_queries(influx: InfluxDaemon) -> None:
    where = ["--query", "SELECT v FROM cpu GROUP BY host", "--start", "2020-09-13T12:26:40Z"]
    end = ["--stop", "2020-09-13T12:26:44Z", "--every", "2s"]
    batches = run_kapudf("replay", influx.url, "--handler", "batch-mirror", *where, *end)
    assert "8 points in 4 batches sent" in batches.stderr
    windowed = ["--handler", "batch-mirror", "--window", "2s", "--group-by", "host"]
    windows = run_kapudf("replay", influx.url, *windowed, *where, *end[:2])
    assert "4 points in 2 batches sent" in windows.stderr
    load = run_kapudf(
        "load", "--handler", "mirror", "--points", "24", "--recording", influx.url, *where
    )
    assert "24 sent, 24 came back" in load.stdout
    assert "p@ss" not in batches.stderr + windows.stderr + load.stdout


# --- a server that fails ---


ONE_ROW = {"columns": ["time", "v"], "values": [[1, 1.5]], "name": "m"}


def answer(**result: Any) -> bytes:
    """Return one message with one result."""
    return msgspec.msgpack.encode({"results": [result]})


def chunks(*bodies: bytes, kind: str = "application/x-msgpack", ends: bool = True) -> bytes:
    """Return an HTTP response with a chunk for each body."""
    parts = [f"{len(body):x}\r\n".encode() + body + b"\r\n" for body in bodies]
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(parts) + (b"0\r\n\r\n" if ends else b"")


def whole(status: str, body: bytes, kind: str = "application/json", *, length: int = 0) -> bytes:
    """Return an HTTP response with a length, which may be wrong."""
    length = length or len(body)
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


#: The first byte of a client that wants TLS.
TLS_HELLO = b"\x16"

ROW = answer(series=[ONE_ROW])
TAGS = chunks(answer(series=[{"columns": ["tagKey"], "values": [["host"]], "name": "m"}]))
FIELDS = chunks(answer(series=[{"columns": ["fieldKey", "fieldType"], "values": [["v", "float"]]}]))


@contextlib.contextmanager
def server(
    responses: Sequence[bytes], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Answer connections with these responses; give the address, and the requests so far."""
    requests: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for response in responses:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), connection:
                    if tls is not None:
                        connection = tls.wrap_socket(connection, server_side=True)
                    request = b""
                    while not request.endswith(b"\r\n\r\n") and request[:1] != TLS_HELLO:
                        data = connection.recv(65536)
                        if not data:
                            break
                        request += data
                    requests.append(request.decode("latin-1"))
                    connection.sendall(response)
                    connection.close()

        served = in_thread(serve)
        yield f"127.0.0.1:{listener.getsockname()[1]}", requests
        if not served.done():
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (chunks(ROW, ends=False), "the connection was cut in the middle"),
        (chunks(ROW, ends=False)[:-9], "the connection was cut in the middle"),
        (whole("200 OK", ROW, "application/x-msgpack", length=999), "the connection was cut"),
        (chunks(answer(series=[{**ONE_ROW, "partial": True}])), "in the middle of the result"),
        (chunks(answer(series=[ONE_ROW], partial=True)), "in the middle of the result"),
        (chunks(ROW, ROW[:-4]), "in the middle of a message"),
        (chunks(ROW, answer(error="timeout")), "the server answered: timeout"),
        (chunks(ROW, msgspec.msgpack.encode({"error": "killed"})), "the server answered: killed"),
        (chunks(ROW, b"\xc1"), "is not valid"),
        (chunks(msgspec.msgpack.encode({"results": [3]})), "is not valid"),
        (chunks(b"{}", kind="application/json"), "application/json and not with MessagePack"),
        (whole("503 Service Unavailable", b"<p>"), "503: Service Unavailable"),
        (whole("403 Forbidden", b'{"error": "not yours"}'), "403: not yours"),
        (whole("400 Bad Request", b"\x81\xa5error\xa2no", "application/x-msgpack"), "400: no"),
        (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        (b"", "the connection failed: Remote end closed"),
        (chunks(answer(series=[{**ONE_ROW, "values": [[1, 2**63]]}])), "fit into 64 bits"),
        (chunks(answer(series=[{**ONE_ROW, "values": [["now", 1]]}])), "not a number of nano"),
    ],
)  # fmt: skip
def test_a_result_that_is_not_complete_is_an_error(response: bytes, problem: str) -> None:
    with (
        server([response, TAGS, FIELDS]) as (address, _),
        pytest.raises(RecordingError) as caught,
    ):
        read(f"influxdb://user:secret@{address}/db", "SELECT v FROM m")
    assert str(caught.value).startswith(f"influxdb://{address}/db: ")
    assert problem in str(caught.value)


def test_points_that_go_back_in_time_are_an_error() -> None:
    back = answer(series=[{**ONE_ROW, "values": [[2, 1.0], [1, 1.0]]}])
    with (
        server([chunks(back), TAGS, FIELDS]) as (address, _),
        pytest.raises(RecordingError, match=r"order of time at 1970-01-01T00:00:00.000000001Z"),
    ):
        read(f"influxdb://{address}/db", "SELECT v FROM m")


def test_a_measurement_of_another_database_is_an_error() -> None:
    """Its tags would be taken for fields."""
    nothing = chunks(answer())
    with (
        server([chunks(ROW), nothing, nothing]) as (address, _),
        pytest.raises(RecordingError, match="name its database in the URL"),
    ):
        read(f"influxdb://{address}/db", 'SELECT v FROM "other".."m"')


def test_what_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLUX_USERNAME", "ignored, because the URL has a user")
    with server([chunks(ROW), TAGS, FIELDS]) as (address, requests):
        (point,) = read(
            f"influxdb://me:a%20b@{address}/my%20db", "SELECT v FROM m", retention_policy="week"
        )
    assert (point.database, point.retentionPolicy) == ("my db", "week")
    query, tags, fields = (parse_qs(urlsplit(text.split()[1]).query) for text in requests)
    assert query == {
        "db": ["my db"], "rp": ["week"], "q": ["SELECT v FROM m"],
        "epoch": ["ns"], "chunked": ["true"], "chunk_size": ["5000"],
    }  # fmt: skip
    assert (tags["q"], fields["q"]) == (['SHOW TAG KEYS FROM "m"'], ['SHOW FIELD KEYS FROM "m"'])
    assert "Authorization: Basic bWU6YSBi" in requests[0]  # me:a b
    assert "Accept: application/x-msgpack" in requests[0]


def test_tls_needs_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-nodes",
         "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with server([b"", chunks(ROW), TAGS, FIELDS], context) as (address, _):
        with pytest.raises(RecordingError, match=r"not trusted.*SSL_CERT_FILE"):
            read(f"influxdbs://{address}/db", "SELECT v FROM m")
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert written(f"influxdbs://{address}/db", "SELECT v FROM m") == ["m v=1.5 1"]
    with (
        server([chunks(ROW)]) as (address, _),
        pytest.raises(RecordingError, match=r"TLS failed.*influxdb://"),
    ):
        read(f"influxdbs://{address}/db", "SELECT v FROM m")


def test_no_server_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RecordingError, match="Connection refused; is InfluxDB running there"):
        read(f"influxdb://127.0.0.1:{port}/db", "SELECT v FROM m")


# --- the arguments ---


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("influxdb://h/d", Database("h", 8086, "d")),
        ("influxdbs://h:1/d%2Fe", Database("h", 1, "d/e", uses_tls=True)),
        ("influxdb://u:p%40@[::1]:99/d", Database("::1", 99, "d", username="u", password="p@")),  # noqa: S106
    ],
)
def test_a_url_names_a_database(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INFLUX_USERNAME", raising=False)
    assert Database.parse(url) == database
    assert "p%40" not in str(database)


@pytest.mark.parametrize(
    ("url", "given", "problem"),
    [
        ("influxdb://u:secret@h", {}, "write the URL as"),
        ("influxdb://u:secret@h:port/d", {}, "port of the URL"),
        ("influxdb://h/d?q=1", {}, "write the URL as"),
        ("influxdb://h/d", {"query": None}, "add a query"),
        ("influxdb://h/d", {"every_ns": 1}, "need --start"),
        ("influxdb://h/d", {"start_ns": 5, "stop_ns": 5}, "is not after --start"),
        ("influxdb://h/d", {"query": "DROP x"}, "begins with SELECT"),
        ("recording.lp", {}, "are for influxdb://"),
    ],
)
def test_what_does_not_fit_is_refused(url: str, given: dict[str, Any], problem: str) -> None:
    with pytest.raises(QueryError) as caught:
        read(url, **{"query": "SELECT v FROM m", **given})
    assert problem in str(caught.value)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, KapudfError)


@pytest.mark.parametrize(
    ("every", "whole_only", "periods"),
    [
        (None, False, [(0, 10)]),
        (4, False, [(0, 4), (4, 8), (8, 10)]),
        (4, True, [(0, 4), (4, 8)]),
        (5, True, [(0, 5), (5, 10)]),
        (20, True, []),
    ],
)
def test_a_range_is_cut_into_periods(
    every: int | None,
    whole_only: bool,  # noqa: FBT001 - of a table
    periods: list[tuple[int, int]],
) -> None:
    assert list(Range(0, 10, every).periods(whole=whole_only)) == periods


def test_a_point_without_a_value_is_left_out() -> None:
    rows = {**ONE_ROW, "values": [[1, None], [2, 1.5]]}
    with server([chunks(answer(series=[rows])), TAGS, FIELDS]) as (address, _):
        (point,) = read(f"influxdb://{address}/db", "SELECT v FROM m")
    assert isinstance(point, Point)
    assert point.time == 2
