"""Handlers that take their time: Kapacitor is told, and one that hangs is replaced."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.wire.codec import REQUESTS, RESPONSES
from kapudf_cli.wire.framing import DEFAULT_MAX_FRAME_BYTES, HEARTBEAT_TIME, FrameReader
from kapudf_cli.wire.udf_pb2 import InitRequest, InitResponse, KeepaliveRequest, KeepaliveResponse, Point
from tests.conftest import plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.wire.codec import ResponseMessage
    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]

#: Kapacitor's time-out, as the peer here has it.
TIMEOUT_S = 2.0


class StrictKapacitor:
    """A peer that gives up, as Kapacitor does, where nothing comes within its time-out."""

    def __init__(self, path: str) -> None:
        """Connect and get through Init; from then on a keepalive is asked for now and then."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._frames = FrameReader(RESPONSES.decode_in, DEFAULT_MAX_FRAME_BYTES)
        self._ends = threading.Event()
        self._keepalives = threading.Thread(target=self._ask, daemon=True)
        self.asked = 0
        self.send(InitRequest(taskID="task", nodeID="node"))
        assert next(self.responses()) == InitResponse(success=True)
        self._keepalives.start()

    def send(self, message: InitRequest | Point | KeepaliveRequest) -> None:
        """Send a request."""
        self._socket.sendall(REQUESTS.encode(message))

    def responses(self) -> Iterator[ResponseMessage]:
        """Yield what comes.

        Raises:
            TimeoutError: nothing came in time.
        """
        self._socket.settimeout(TIMEOUT_S)
        while data := self._socket.recv(65536):
            yield from self._frames.feed(data)

    def close(self) -> None:
        """End the connection."""
        self._ends.set()
        self._keepalives.join()
        self._socket.close()

    def _ask(self) -> None:
        while not self._ends.wait(TIMEOUT_S / 2):
            self.asked += 1
            self.send(KeepaliveRequest(time=self.asked))


@pytest.mark.parametrize("workers", ["1", "0"])
@pytest.mark.parametrize("how", ["python", "holding the interpreter"])
def test_kapacitor_never_waits_as_long_as_its_time_out(
    serve: Serve, socket_path: str, how: str, workers: str
) -> None:
    """While a handler is busy three times as long; and each keepalive is answered in the end."""
    if workers == "0" and how != "python":
        pytest.skip("in one process, whoever holds the interpreter holds up everything")
    serve(plugin("laden.py:Busy"), "--workers", workers)
    peer = StrictKapacitor(socket_path)
    busy = Point(time=1, fieldsInt={"s": round(3 * TIMEOUT_S)}, tags={"how": how})
    peer.send(busy)
    heartbeats, answers = 0, []
    for response in peer.responses():
        if response == KeepaliveResponse(time=HEARTBEAT_TIME):
            heartbeats += 1
        elif response == busy:
            break
        else:
            answers.append(response)
    # Neither left out, nor one for each moment.
    assert 3 <= heartbeats <= 50
    assert answers == []
    for response in peer.responses():
        answers.append(response)
        if response == KeepaliveResponse(time=peer.asked):
            break
    assert answers[:5] == [KeepaliveResponse(time=number) for number in range(1, 6)]
    peer.close()


def test_a_handler_that_hangs_while_it_holds_the_interpreter_is_replaced(
    serve: Serve, socket_path: str
) -> None:
    """The supervisor needs nothing of the worker for that; the log has where it hung."""
    process = serve(plugin("laden.py:Busy"), "--busy-limit", "1", "--on-error", "skip")
    peer = StrictKapacitor(socket_path)
    peer.send(Point(time=1, fieldsInt={"s": 600}, tags={"how": "holding the interpreter"}))
    short = Point(time=2, fieldsInt={"s": 0}, tags={"how": "python"})
    peer.send(short)
    points = (each for each in peer.responses() if isinstance(each, Point))
    assert next(points) == short
    hangs = process.event("handler hangs, its worker is replaced")
    assert (hangs["task_id"], hangs["node_id"]) == ("task", "node")
    assert "laden.py" in process.event("worker died", how="SIGKILL")["stacks"]
    process.event("dropped what killed the worker")
    peer.close()
    assert process.event("connection finished", task_id="task")["failures"] == 1
