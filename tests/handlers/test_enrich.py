"""The handler `enrich`, with a web service on the loopback address."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.server
import json
import logging
import threading
import urllib.parse
from functools import partial
from typing import TYPE_CHECKING

import pytest
from kapudf_handlers.enrich import Enrich, EnrichOptions

from kapudf_cli import Point, get_fields
from kapudf_cli.testing import StartTask, TaskFailedError, lines
from tests.peers import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: What the service has, by the host.
HOSTS: dict[str, object] = {
    "a": {"owner": "ops", "rack": 7, "limit": 90, "spare": False, "note": "old"},
    "b": {"owner": "web", "limit": 80.5, "other": [1, 2]},
    "c/d e?ä{}": {"owner": "", "rack": None, "limit": "high"},
    "huge": {"owner": {"name": "ops"}, "limit": 10**400},
    "list": ["owner", "ops"],
    "text": "owner",
    "long": {"owner": "x" * 65_536},
}


class Service(http.server.ThreadingHTTPServer):
    """Answers GET /HOST with what HOSTS has, or as `answer` says."""

    daemon_threads = True
    #: The connections of handlers that wait for one another must not be refused.
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str] = []
        self.answer: Callable[[str], tuple[int, bytes]] = known

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{{}}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        host = urllib.parse.unquote(self.path.removeprefix("/"))
        self.server.asked.append(host)
        status, body = self.server.answer(host)
        # The handler may not wait any longer.
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def known(host: str) -> tuple[int, bytes]:
    if host == "broken":
        return 200, b'{"owner": '
    if host == "deep":
        return 200, b"[" * 60_000
    return (200, json.dumps(HOSTS[host]).encode()) if host in HOSTS else (404, b"")


def owned(owner: str, _: str) -> tuple[int, bytes]:
    return 200, json.dumps({"owner": owner}).encode()


def down(_: str) -> tuple[int, bytes]:
    return 503, b""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        in_thread(partial(server.serve_forever, 0.01))
        yield server
        server.shutdown()


def options(service: Service, **other: object) -> EnrichOptions:
    chosen: dict[str, object] = {"by": "host", "url": service.url, "tag": ["owner"], **other}
    return EnrichOptions(**chosen)  # type: ignore[arg-type]


def points(hosts: Sequence[str]) -> list[Point]:
    return [
        Point(name="cpu", time=number, tags={"host": host}, fieldsInt={"limit": 1})
        for number, host in enumerate(hosts)
    ]


def owners(found: Sequence[Point]) -> list[str]:
    return [point.tags.get("owner", "-") for point in found]


def expected(host: str) -> tuple[dict[str, str], dict[str, object]]:
    """Return the tags and fields that a host's point has, computed directly."""
    entry = HOSTS.get(host)
    tags, fields = {"host": host}, dict[str, object](limit=1)
    if isinstance(entry, dict) and len(json.dumps(entry)) <= 65_536:
        for name in ("owner", "rack", "spare"):
            value = entry.get(name)
            if value not in {None, ""} if isinstance(value, str | int | None) else False:
                tags[name] = value if isinstance(value, str) else json.dumps(value)
        for name in ("limit", "spare", "note"):
            value = entry.get(name)
            if isinstance(value, str | bool):
                fields[name] = value
            elif isinstance(value, int | float) and value < 1e308:
                fields[name] = float(value)
    return tags, fields


def test_points_get_what_the_service_has_for_their_host(service: Service, udf: StartTask) -> None:
    hosts = [*HOSTS, "unknown", "broken", "deep", *HOSTS]
    chosen = options(service, tag=["owner", "rack", "spare"], field=["limit", "spare", "note"])
    out = udf(Enrich, chosen).send(*points(hosts)).points
    assert [(dict(point.tags), get_fields(point)) for point in out] == [
        expected(host) for host in hosts
    ]
    assert expected("a")[0] == {"host": "a", "owner": "ops", "rack": "7", "spare": "false"}
    assert expected("a")[1] == {"limit": 90.0, "spare": False, "note": "old"}
    assert sorted(service.asked) == sorted({*HOSTS, "unknown", "broken", "deep"})


def test_a_point_without_the_tag_is_not_looked_up(service: Service, udf: StartTask) -> None:
    sent = lines("cpu usage=1 1", "cpu,dc=x usage=2 2")
    assert udf(Enrich, options(service)).send(*sent).points == sent
    assert service.asked == []


def test_points_of_one_host_share_a_request(service: Service, udf: StartTask) -> None:
    """The service answers when a point of the other host was asked for: both are in flight."""
    both = threading.Barrier(2)

    def when_both_wait(host: str) -> tuple[int, bytes]:
        both.wait(30)
        return known(host)

    service.answer = when_both_wait
    out = udf(Enrich, options(service, timeout=dt.timedelta(seconds=60))).send(*points("aababba"))
    assert owners(out.points) == ["ops", "ops", "web", "ops", "web", "web", "ops"]
    assert sorted(service.asked) == ["a", "b"]


def test_an_answer_is_used_until_it_is_out_of_date(service: Service, udf: StartTask) -> None:
    task = udf(Enrich, options(service))
    always = udf(Enrich, options(service, ttl=dt.timedelta(0)))
    for owner in ("ops", "new"):
        service.answer = partial(owned, owner)
        assert owners(task.send(*points("a")).points) == ["ops"]
        assert owners(always.send(*points("a")).points) == [owner]
    assert len(service.asked) == 3


def test_the_least_recently_used_host_is_forgotten(service: Service, udf: StartTask) -> None:
    task = udf(Enrich, options(service, keys=2))
    for host in ["a", "b", "a", "unknown", "a", "b"]:
        task.send(*points([host]))
    assert service.asked == ["a", "b", "unknown", "b"]


def test_old_answers_are_used_while_the_service_is_down(
    service: Service, udf: StartTask, caplog: pytest.LogCaptureFixture
) -> None:
    task = udf(Enrich, options(service, ttl=dt.timedelta(0)))
    assert owners(task.send(*points("ab")).points) == ["ops", "web"]
    service.answer = down
    with caplog.at_level(logging.WARNING):
        assert owners(task.send(*points("a")).points) == ["ops"]
        # No request is made for a while, for no host.
        assert owners(task.send(*points(["b", "new", "a"])).points) == ["web", "-", "ops"]
    assert service.asked[2:] == ["a"]
    (record,) = caplog.records
    said = "failed requests: 1, the last for 'a': HTTP Error 503: Service Unavailable"
    assert record.getMessage() == said


def test_few_requests_are_made_to_a_service_that_fails(service: Service, udf: StartTask) -> None:
    service.answer = down
    hosts = [f"host{number}" for number in range(60)]
    assert owners(udf(Enrich, options(service)).send(*points(hosts)).points) == ["-"] * 60
    assert 1 <= len(service.asked) <= 16


def test_a_wrong_answer_for_one_host_does_not_stop_others(service: Service, udf: StartTask) -> None:
    task = udf(Enrich, options(service))
    assert owners(task.send(*points(["broken"])).points) == ["-"]
    assert owners(task.send(*points(["a", "broken"])).points) == ["ops", "-"]
    assert service.asked == ["broken", "a"]


def test_a_service_that_does_not_answer_delays_a_point_by_the_timeout(
    service: Service, udf: StartTask
) -> None:
    released = threading.Event()

    def late(host: str) -> tuple[int, bytes]:
        released.wait(60)
        return known(host)

    service.answer = late
    task = udf(Enrich, options(service, timeout=dt.timedelta(milliseconds=100)))
    assert owners(task.send(*points("aab")).points) == ["-", "-", "-"]
    released.set()


def test_a_service_that_does_not_run_changes_nothing(service: Service, udf: StartTask) -> None:
    chosen = options(service)
    service.server_close()
    assert owners(udf(Enrich, chosen).send(*points("ab")).points) == ["-", "-"]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"url": "http://localhost/hosts"}, "with {} for the tag's value, got 'http://localhost/"),
        ({"url": "file:///etc/{}"}, ".url() expects a URL such as"),
        ({"url": "http://{}/"}, ".url() expects a URL such as"),
        ({"tag": []}, "call .tag() or .field() with a name"),
        ({"ttl": dt.timedelta(seconds=-1)}, ".ttl() expects a duration of 0s or more"),
        ({"timeout": dt.timedelta(0)}, ".timeout() one above 0s"),
    ],
)
def test_options_that_cannot_work_are_refused(
    service: Service, udf: StartTask, other: dict[str, object], sentence: str
) -> None:
    with pytest.raises(TaskFailedError) as refused:
        udf(Enrich, options(service, **other))
    assert sentence in str(refused.value)
