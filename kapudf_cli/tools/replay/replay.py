"""Send data through a UDF on one connection, from Init to the end."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.client.session import Session
from kapudf_cli.client.target import EXIT_S
from kapudf_cli.protocol.codec import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from kapudf_cli.client.target import Connection, Counts
    from kapudf_cli.protocol.codec import DataMessage, RequestMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType, InitRequest

#: How long a UDF that answers keepalives may take to answer a snapshot request, in timeouts.
_SNAPSHOT_TIMEOUTS: Final = 6
#: How many bytes of requests may be queued.
_BUFFER_BYTES: Final = 64 * 1024


class Replay:
    """Sends data through a UDF, once.

    Attributes:
        snapshot: the snapshot of the UDF, None if none was requested.
    """

    def __init__(self, connection: Connection, *, provides: EdgeType, timeout_s: float) -> None:
        """Use a fresh connection.

        Args:
            connection: the connection to the UDF; the caller closes it.
            provides: the edge that the UDF has declared.
            timeout_s: how long the UDF may be silent, as `timeout` in kapacitor.conf.
        """
        self.snapshot: bytes | None = None
        self._timeout_s = timeout_s
        self._session = Session(connection, provides=provides, timeout_s=timeout_s, keepalives=True)

    @property
    def counts(self) -> Counts:
        """The number of messages so far; any thread may read it."""
        return self._session.counts

    @property
    def settled(self) -> bool:
        """False if the UDF was still sending when its input ended; see `Session`."""
        return self._session.settled

    def keep_alive(self) -> None:
        """Send a keepalive if one is due; see `Session`."""
        self._session.keep_alive()

    def run(
        self,
        init: InitRequest,
        data: Iterable[RequestMessage],
        *,
        restore: bytes | None = None,
        take_snapshot: bool = False,
    ) -> Generator[DataMessage, None, None]:
        """Send everything and yield the points and batches that come back, until the UDF closes.

        To end early, close the generator before the connection: it then reads what the UDF
        still sends.

        Args:
            init: the first request of the task.
            data: iterated over in another thread, because it may block. If it raises, the data
                before the error is sent to the end; then the error is raised here.
            restore: a snapshot to restore after Init. An empty one is not sent, as Kapacitor
                does not store empty snapshots.
            take_snapshot: whether to request a snapshot after the last data.

        Raises:
            UdfFaultError: the UDF failed, hung, or sent an invalid message.
        """
        session = self._session
        feeder = _Feeder(data, session.counts)
        try:
            yield from session.start(init)
            if restore:
                yield from session.restore(restore)
            feeder.start()
            yield from session.stream(feeder)
            if take_snapshot and feeder.error is None:
                limit_s = _SNAPSHOT_TIMEOUTS * self._timeout_s
                self.snapshot = yield from session.snapshot(at_most_s=limit_s)
            yield from session.finish()
            ending = session.ending(EXIT_S)
            if ending is not None and not ending.clean:
                raise UdfFaultError(f"ended badly, with {session.counts}; it {ending}")
        except BaseException:
            # The UDF made a mistake, the caller stopped early, or Ctrl-C was pressed.
            session.part()
            raise
        finally:
            feeder.close()
        if feeder.error is not None:
            raise feeder.error


class _Feeder:
    """A `Source` that iterates over requests in another thread.

    The pipe contains a byte while `take` has something to return.

    Attributes:
        descriptor: see `Source`.
        error: the exception of the iteration.
    """

    def __init__(self, data: Iterable[RequestMessage], counts: Counts) -> None:
        self.descriptor: int | None = None
        self.error: BaseException | None = None
        self._data = data
        self._counts = counts
        self._changed = threading.Condition()
        self._frames = bytearray()
        self._ended = False
        self._closed = False
        self._pipe: tuple[int, ...] = ()

    def start(self) -> None:
        self._pipe = os.pipe()
        self.descriptor = self._pipe[0]
        threading.Thread(target=self._run, name="feeder", daemon=True).start()

    def take(self) -> bytes | None:
        with self._changed:
            if not self._frames:
                return None if self._ended else b""
            frames = bytes(self._frames)
            self._frames.clear()
            if not self._ended:
                os.read(self._pipe[0], 1)
            self._changed.notify()
            return frames

    def close(self) -> None:
        """End the thread at its next request. The iteration may block until then."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            for descriptor in self._pipe:
                os.close(descriptor)

    def _run(self) -> None:
        try:
            for request in self._data:
                # Count it first: its answer may arrive before this thread continues.
                self._counts.sent(request)
                if not self._put(REQUESTS.encode(request)):
                    return
        except BaseException as error:  # noqa: BLE001 - `Replay.run` raises it
            self.error = error
        self._put(b"", ended=True)

    def _put(self, frame: bytes, *, ended: bool = False) -> bool:
        """Add a frame, or the end; return False once the feeder is closed."""
        with self._changed:
            while len(self._frames) >= _BUFFER_BYTES and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            if not self._frames:
                os.write(self._pipe[1], b"\0")
            self._frames += frame
            self._ended = ended
        return True
