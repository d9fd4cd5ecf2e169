"""Process UDFs that each do one thing wrong: `python -m tests.peers.broken_udfs NAME`."""

from __future__ import annotations

import os
import sys
import time

from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
)
from tests.peers.plain_udf import PlainUdf

#: Longer than any timeout in the tests.
HANG_S = 60

# --- Info ---


class HangsAtInfo(PlainUdf):
    """Never answers Info."""

    def info(self) -> None:
        time.sleep(HANG_S)


class Garbage(PlainUdf):
    """Answers Info with text."""

    def info(self) -> None:
        self.write_bytes(b"This is a UDF that mirrors points.\n")


class AnnouncesTerabytes(PlainUdf):
    """Announces a frame of four terabytes."""

    def info(self) -> None:
        self.write_bytes(b"\x80\x80\x80\x80\x80\x80\x01")  # 1 << 42 as a varint


class AnswersWithAnother(PlainUdf):
    """Answers Info with an InitResponse."""

    def info(self) -> None:
        self.write(InitResponse(success=True))


class KeepalivesForEver(PlainUdf):
    """Answers Info with an endless series of keepalives."""

    def info(self) -> None:
        while True:
            self.write(KeepaliveResponse(time=1))
            self.flush()


class DeclaresNoName(PlainUdf):
    """Declares an option that no TICKscript can call."""

    def info(self) -> None:
        self.declare("my-field")


class ChangesItsMind(PlainUdf):
    """Declares another option in each process."""

    def info(self) -> None:
        self.declare(f"option{os.getpid()}")


# --- Init ---


class AnswersInitTwice(PlainUdf):
    """Answers Init twice."""

    def init(self, request: InitRequest) -> None:
        super().init(request)
        super().init(request)


class RefusesInSilence(PlainUdf):
    """Refuses Init without its option, and gives no reason."""

    def info(self) -> None:
        self.declare("field")

    def init(self, request: InitRequest) -> None:
        self.write(InitResponse(success=bool(request.options)))


class DiesOfAnOption(PlainUdf):
    """Raises at an option that it does not know."""

    def init(self, request: InitRequest) -> None:
        fields = {"field": 1}
        for option in request.options:
            fields[option.name] += 1
        super().init(request)


# --- keepalives ---


class AnswersKeepalivesLate(PlainUdf):
    """Answers a keepalive long after Kapacitor's timeout."""

    def keepalive(self, request: KeepaliveRequest) -> None:
        time.sleep(HANG_S)
        super().keepalive(request)


class NeverFlushes(PlainUdf):
    """Buffers its output until a keepalive or a snapshot flushes it."""

    def rest(self) -> None:
        if self.count == 0:
            self.flush()


# --- snapshots ---


class DiesAtSnapshot(PlainUdf):
    """Exits when it is asked for a snapshot."""

    def snapshot(self) -> None:
        print("snapshots are not implemented", file=sys.stderr)  # noqa: T201 - as a script does
        sys.exit(3)


class EmptySnapshot(PlainUdf):
    """Refuses its own snapshot if it was taken before any data."""

    def restore(self, request: RestoreRequest) -> None:
        if int.from_bytes(request.snapshot) == 0:
            self.write(RestoreResponse(success=False, error="the snapshot is empty"))
        else:
            super().restore(request)


class ForgetsItsState(PlainUdf):
    """Answers Restore with success, and ignores the snapshot."""

    def restore(self, request: RestoreRequest) -> None:
        del request
        self.write(RestoreResponse(success=True))


# --- points ---


class EmptyResponse(PlainUdf):
    """Answers each point with a Response in which nothing is set."""

    def point(self, point: Point) -> None:
        del point
        self.write_bytes(b"\x00")


class Prints(PlainUdf):
    """Prints text to stdout at each point."""

    def point(self, point: Point) -> None:
        self.write_bytes(b"now taking a point\n")
        super().point(point)


class BatchesIntoAStream(PlainUdf):
    """Declares that it provides a stream, and sends batches."""

    def point(self, point: Point) -> None:
        self.write(BeginBatch(name="cpu", size=1))
        self.write(point)
        self.write(EndBatch(name="cpu"))


class FailsWithoutField(PlainUdf):
    """Fails the task at a point that lacks its field."""

    def point(self, point: Point) -> None:
        if "value" not in point.fieldsDouble:
            self.write(ErrorResponse(error="KeyError: 'value'"))
        else:
            super().point(point)


# --- batches ---


class EndsWhatWasNotBegun(PlainUdf):
    """Sends only the end of each batch."""

    edge = BATCH

    def begin(self, begin: BeginBatch) -> None:
        """Send nothing."""

    def point(self, point: Point) -> None:
        """Send nothing."""


class BeginsWithoutEnd(PlainUdf):
    """Begins a batch for each point, and ends only the last one."""

    edge = BATCH

    def point(self, point: Point) -> None:
        self.write(BeginBatch(name="cpu"))
        self.write(point)


class PointsWithoutBatch(PlainUdf):
    """Declares that it provides batches, and sends points without a BeginBatch."""

    edge = BATCH

    def begin(self, begin: BeginBatch) -> None:
        """Send nothing."""


class NegativeSize(PlainUdf):
    """Sends -1 as the size of a batch whose size it does not know."""

    edge = BATCH

    def begin(self, begin: BeginBatch) -> None:
        begin.size = -1
        super().begin(begin)


class AbsurdSize(PlainUdf):
    """Sends 2**60 as the size of a batch."""

    edge = BATCH

    def begin(self, begin: BeginBatch) -> None:
        begin.size = 1 << 60
        super().begin(begin)


# --- the end of the input ---


class StaysAtTheEnd(PlainUdf):
    """Does not exit at the end of its input."""

    def end(self) -> None:
        super().end()
        time.sleep(HANG_S)


class SwallowsTheEnd(PlainUdf):
    """Sends points in groups of 13, and drops an incomplete group at the end of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Point] = []

    def point(self, point: Point) -> None:
        self.kept.append(point)
        if len(self.kept) == 13:
            self.release()

    def keepalive(self, request: KeepaliveRequest) -> None:
        self.release()
        super().keepalive(request)

    def release(self) -> None:
        for point in self.kept:
            self.write(point)
        self.kept.clear()


class ExitsWith1(PlainUdf):
    """Exits with an error at the end of its input."""

    def end(self) -> None:
        super().end()
        sys.exit("unexpected end of file")


BROKEN_UDFS = {
    kind.__name__: kind for kind in PlainUdf.__subclasses__() if kind.__module__ == __name__
}

if __name__ == "__main__":
    BROKEN_UDFS[sys.argv[1]]().run()
