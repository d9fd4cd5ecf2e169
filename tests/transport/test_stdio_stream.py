"""The stream of a process UDF, over real pipes."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.transport import StdioStream
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Far more than a pipe holds, so that writing it must wait for a reader.
TOO_MUCH = b"x" * (4 << 20)


@dataclass
class Kapacitor:
    """The other ends of both pipes."""

    to_udf: int
    from_udf: int

    def end_input(self) -> None:
        os.close(self.to_udf)
        self.to_udf = -1

    def stop_reading(self) -> None:
        os.close(self.from_udf)
        self.from_udf = -1

    def close(self) -> None:
        for descriptor in (self.to_udf, self.from_udf):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def ends() -> Iterator[tuple[StdioStream, Kapacitor]]:
    """Return a stream, and Kapacitor's ends of it."""
    requests, to_udf = os.pipe()
    from_udf, responses = os.pipe()
    stream = StdioStream(requests, responses)
    kapacitor = Kapacitor(to_udf, from_udf)
    yield stream, kapacitor
    stream.abort()
    stream.close()
    kapacitor.close()


def read_all(descriptor: int) -> bytes:
    data = b""
    while piece := os.read(descriptor, 1 << 20):
        data += piece
    return data


def test_input_from_kapacitor_is_read(ends: tuple[StdioStream, Kapacitor]) -> None:
    stream, kapacitor = ends
    os.write(kapacitor.to_udf, b"one")
    assert stream.read() == b"one"
    os.write(kapacitor.to_udf, b"two")
    kapacitor.end_input()
    assert [stream.read(), stream.read(), stream.read()] == [b"two", b"", b""]


def test_all_of_a_write_is_written(ends: tuple[StdioStream, Kapacitor]) -> None:
    stream, kapacitor = ends
    reading = in_thread(lambda: read_all(kapacitor.from_udf))
    stream.write(TOO_MUCH)
    stream.close()
    assert reading.result(PATIENCE_S) == TOO_MUCH


def test_writing_without_a_reader_raises(ends: tuple[StdioStream, Kapacitor]) -> None:
    stream, kapacitor = ends
    kapacitor.stop_reading()
    with pytest.raises(BrokenPipeError):
        stream.write(b"x")


def test_an_interrupted_reader_gets_what_had_arrived_and_then_the_end(
    ends: tuple[StdioStream, Kapacitor],
) -> None:
    stream, kapacitor = ends
    os.write(kapacitor.to_udf, b"before")
    stream.interrupt()
    assert stream.read() == b"before"
    os.write(kapacitor.to_udf, b"after")
    assert stream.read() == b""
    stream.write(b"answer")
    assert os.read(kapacitor.from_udf, 100) == b"answer"
    assert stream.close() == len(b"after")


@pytest.mark.parametrize("how", ["interrupt", "abort"])
def test_a_reader_that_waits_is_woken(ends: tuple[StdioStream, Kapacitor], how: str) -> None:
    stream, kapacitor = ends
    one_read = threading.Event()

    def read() -> bytes:
        assert stream.read() == b"first"
        one_read.set()
        return stream.read()

    reading = in_thread(read)
    os.write(kapacitor.to_udf, b"first")
    assert one_read.wait(PATIENCE_S)
    getattr(stream, how)()
    assert reading.result(PATIENCE_S) == b""


def test_an_abort_ends_a_blocked_write(ends: tuple[StdioStream, Kapacitor]) -> None:
    stream, kapacitor = ends
    writing = in_thread(lambda: stream.write(TOO_MUCH))
    assert os.read(kapacitor.from_udf, 1) == b"x"
    stream.abort()
    with pytest.raises(BrokenPipeError):
        writing.result(PATIENCE_S)


def test_a_write_that_waits_lets_kapacitor_write(ends: tuple[StdioStream, Kapacitor]) -> None:
    stream, kapacitor = ends
    writing = in_thread(lambda: stream.write(TOO_MUCH))
    # Far more than the pipe holds: this returns only if it is read meanwhile.
    sending = in_thread(lambda: os.write(kapacitor.to_udf, b"y" * (1 << 17)))
    assert sending.result(PATIENCE_S) == 1 << 17
    assert not writing.done()
    kapacitor.stop_reading()
    with pytest.raises(BrokenPipeError):
        writing.result(PATIENCE_S)
    kapacitor.end_input()
    got = b""
    while piece := stream.read():
        got += piece
    assert got == b"y" * (1 << 17)


def test_a_stream_settles_once_kapacitor_has_read_everything(
    ends: tuple[StdioStream, Kapacitor],
) -> None:
    stream, kapacitor = ends
    stream.write(b"answer")
    settling = in_thread(lambda: stream.settle(PATIENCE_S))
    os.write(kapacitor.to_udf, b"late")
    assert os.read(kapacitor.from_udf, 100) == b"answer"
    assert settling.result(PATIENCE_S) == len(b"late")


@pytest.mark.parametrize("gone", [True, False], ids=["nobody there", "never read"])
def test_settling_has_a_timeout(ends: tuple[StdioStream, Kapacitor], *, gone: bool) -> None:
    stream, kapacitor = ends
    stream.write(b"answer")
    if gone:
        kapacitor.stop_reading()
    settling = in_thread(lambda: stream.settle(PATIENCE_S if gone else 0.05))
    assert settling.result(PATIENCE_S) == 0


def test_the_descriptors_are_restored() -> None:
    requests, to_udf = os.pipe()
    from_udf, responses = os.pipe()
    shared = os.dup(requests), os.dup(responses)
    before = len(os.listdir("/proc/self/fd"))
    stream = StdioStream(requests, responses)
    assert not any(map(os.get_blocking, shared))
    stream.close()
    assert all(map(os.get_blocking, shared))
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert stream.close() == 0
    stream.interrupt()
    stream.abort()
    for descriptor in (*shared, to_udf, from_udf):
        os.close(descriptor)


def test_regular_files_can_be_used(tmp_path: os.PathLike[str]) -> None:
    folder = os.fspath(tmp_path)
    with open(f"{folder}/in", "wb") as file:
        file.write(b"requests")
    stream = StdioStream(
        os.open(f"{folder}/in", os.O_RDONLY),
        os.open(f"{folder}/out", os.O_WRONLY | os.O_CREAT, 0o600),
    )
    assert stream.read() == b"requests"
    assert stream.read() == b""
    stream.write(b"responses")
    with contextlib.closing(stream):
        assert stream.settle(PATIENCE_S) == 0
    with open(f"{folder}/out", "rb") as file:
        assert file.read() == b"responses"
