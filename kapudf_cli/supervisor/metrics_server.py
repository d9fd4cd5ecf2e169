"""The HTTP endpoint for Prometheus.

Threads read the requests and write the answers, so that a slow client never holds the supervisor's
loop up. The loop only supplies the status of all functions, when a thread asks for it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import socketserver
import threading
import wsgiref.simple_server
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Self

from kapudf_cli.errors import MissingExtraError
from kapudf_cli.supervisor import metrics
from kapudf_cli.supervisor.errors import MetricsAddressError

try:
    from prometheus_client import CollectorRegistry, make_wsgi_app
    from prometheus_client.metrics_core import Metric as Exposed
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtraError("--metrics", "prometheus-client", "metrics") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from structlog.stdlib import BoundLogger

#: How many requests are answered at once; others wait, for a limited time.
_MAX_REQUESTS: Final = 4
_ROOM_TIMEOUT_S: Final = 1.0
#: How long a client may take to send its request, and to read the answer.
_CLIENT_TIMEOUT_S: Final = 10.0
#: How long the loop may take to supply the status.
_STATUS_TIMEOUT_S: Final = 5.0
#: How long the end of the thread may take, at most.
_POLL_S: Final = 0.05


class MetricsServer:
    """Answers HTTP requests with the metrics of all functions.

    The loop waits for `fileno` to become readable, and then calls `supply`.
    """

    def __init__(self, address: tuple[str, int], log: BoundLogger) -> None:
        """Bind an address.

        Args:
            address: the host and the port; port 0 is any free one.
            log: where the address is logged, and requests that fail.

        Raises:
            MetricsAddressError: it cannot be bound.
        """
        self._log = log
        self._waiting: queue.SimpleQueue[Future[list[metrics.Row]]] = queue.SimpleQueue()
        registry = CollectorRegistry()
        registry.register(_Metrics(self._statuses))
        host, port = address
        try:
            self._server = _Server(address)
        except OSError as error:
            reason = error.strerror or error
            problem = f"metrics: {host}:{port} cannot be bound: {reason}"
            raise MetricsAddressError(problem) from error
        self._server.set_app(self._guarded(make_wsgi_app(registry)))
        self._notice = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True
        )

    def __enter__(self) -> Self:
        """Begin to answer."""
        host, port = self._server.server_address[:2]
        self._log.info("metrics are served", host=host, port=port)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Answer no more requests."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fileno(self) -> int:
        """Return the descriptor that is readable while a request waits for the status."""
        return self._notice

    def supply(self, statuses: Callable[[], list[metrics.Row]]) -> None:
        """Supply the status of all functions to the requests that wait for it."""
        os.eventfd_read(self._notice)
        waiting = []
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._waiting.get_nowait())
        found = statuses()
        for each in waiting:
            each.set_result(found)

    def _statuses(self) -> list[metrics.Row]:
        """Return the status of all functions, in a thread that answers a request."""
        future: Future[list[metrics.Row]] = Future()
        self._waiting.put(future)
        os.eventfd_write(self._notice, 1)
        return future.result(_STATUS_TIMEOUT_S)

    def _guarded(self, app: Any) -> Any:
        """Return a WSGI application that answers with status 503 if the loop does not."""

        def guarded(environ: Any, start_response: Any) -> Iterable[bytes]:
            try:
                answer: Iterable[bytes] = app(environ, start_response)
            except TimeoutError:
                start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
                return [b"the supervisor does not answer\n"]
            return answer

        return guarded


class _Metrics(Collector):
    """Collects the metrics for each request."""

    def __init__(self, statuses: Callable[[], list[metrics.Row]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Exposed]:
        """Yield the metrics as prometheus_client has them."""
        for family in metrics.families(self._statuses()):
            metric = family.metric
            exposed = Exposed(metric.name.removesuffix("_total"), metric.help, metric.kind)
            for name, labels, value in family.samples:
                exposed.add_sample(name, labels, value)
            yield exposed


class _Requests(wsgiref.simple_server.WSGIRequestHandler):
    """Reads a request, and logs nothing."""

    timeout = _CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its signature
        """Do nothing: scrapes are no events."""


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    """Answers each request in a thread, a few at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._room = threading.BoundedSemaphore(_MAX_REQUESTS)
        super().__init__(address, _Requests)

    def server_bind(self) -> None:
        """Bind the address; unlike the base class, do not look its name up."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a request in a new thread, or close it if there is no room for long."""
        if not self._room.acquire(timeout=_ROOM_TIMEOUT_S):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Do nothing: the client has gone, or was too slow."""
