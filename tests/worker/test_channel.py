"""The messages between supervisor and worker, and the descriptors sent with them."""

from __future__ import annotations

import os
import resource
import socket
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kapudf_cli.agent.checkpoints import ResumePlan
from kapudf_cli.worker import channel as orders
from kapudf_cli.worker.channel import TEXT_CHARACTERS, Channel
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

texts = st.text(max_size=TEXT_CHARACTERS)
numbers = st.integers(0, 2**53)
messages = st.one_of(
    st.builds(
        orders.Serve, numbers, st.none() | numbers, st.none() | numbers, st.floats(0, 1e9),
        st.none() | st.builds(
            ResumePlan, numbers, st.lists(numbers, max_size=20).map(tuple), st.booleans(),
            st.none() | texts,
        ),
    ),
    st.builds(orders.Resume, numbers), st.builds(orders.Pause, numbers),
    st.builds(orders.Release, numbers), st.just(orders.Stop()), st.just(orders.Abort()),
    st.builds(orders.Ready, texts, st.builds(orders.Code, texts, st.floats(0, 1e12), texts)),
    st.builds(orders.Failed, texts, st.booleans()),
    st.builds(orders.Paused, numbers), st.builds(orders.TakenOver, numbers),
    st.builds(orders.Refused, numbers, texts, st.booleans()), st.builds(orders.Finished, numbers),
)  # fmt: skip


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Give the supervisor's end and the worker's end."""
    ours, theirs = Channel.pair()
    worker = Channel(theirs)
    yield ours, worker
    ours.close()
    worker.close()


@given(st.lists(messages, max_size=5))
def test_messages_arrive_as_they_were_sent(several: list[orders.Order | orders.Report]) -> None:
    ours, theirs = Channel.pair()
    worker = Channel(theirs)
    try:
        for sender, receiver in ((ours, worker), (worker, ours)):
            for message in several:
                sender.send(message)
            for message in several:
                assert receiver.receive() == (message, [])
    finally:
        ours.close()
        worker.close()


def test_descriptors_arrive_with_their_message(ends: tuple[Channel, Channel]) -> None:
    ours, worker = ends
    reading, writing = os.pipe()
    ours.send(orders.Resume(1))
    ours.send(orders.Resume(2), [reading, writing])
    ours.send(orders.Resume(3))
    os.close(reading)
    assert worker.receive() == (orders.Resume(1), [])
    received = worker.receive()
    assert received is not None
    message, (reading, also_writing) = received
    assert message == orders.Resume(2)
    assert worker.receive() == (orders.Resume(3), [])
    assert not os.get_inheritable(reading)
    assert not os.get_inheritable(also_writing)
    os.write(also_writing, b"through")
    assert os.read(reading, 100) == b"through"
    for descriptor in (reading, writing, also_writing):
        os.close(descriptor)


def test_the_end_of_the_other_side_is_noticed(ends: tuple[Channel, Channel]) -> None:
    ours, worker = ends
    worker.send(orders.TakenOver(1))
    worker.close()
    assert ours.receive() == (orders.TakenOver(1), [])
    assert ours.receive() is None
    with pytest.raises(BrokenPipeError):
        ours.send(orders.Stop())


def test_the_end_of_a_side_that_left_messages_unread_is_an_end(
    ends: tuple[Channel, Channel],
) -> None:
    ours, worker = ends
    ours.send(orders.Stop())
    worker.close()
    assert ours.receive() is None


def test_the_supervisor_waits_for_no_worker(ends: tuple[Channel, Channel]) -> None:
    ours, worker = ends
    with pytest.raises(BlockingIOError):
        ours.receive()
    sent = 0

    def send_until_full() -> None:
        nonlocal sent
        while True:
            ours.send(orders.Resume(sent))
            sent += 1

    with pytest.raises(BlockingIOError):
        in_thread(send_until_full).result(PATIENCE_S)
    assert sent > 10
    for number in range(sent):
        assert worker.receive() == (orders.Resume(number), [])


def test_a_worker_waits_for_its_orders(ends: tuple[Channel, Channel]) -> None:
    ours, worker = ends
    receiving = in_thread(worker.receive)
    ours.send(orders.Stop())
    assert receiving.result(PATIENCE_S) == (orders.Stop(), [])


def test_descriptors_that_there_is_no_room_for_do_not_arrive(
    ends: tuple[Channel, Channel],
) -> None:
    ours, worker = ends
    ours.send(orders.Resume(1), [0, 1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    # The first one fits into the socket; there is no room for the second.
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        received = worker.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert received is not None
    message, descriptors = received
    assert message == orders.Resume(1)
    assert len(descriptors) <= 1
    for descriptor in descriptors:
        os.close(descriptor)


def test_the_longest_text_that_is_sent_fits(ends: tuple[Channel, Channel]) -> None:
    ours, worker = ends
    problem = "\N{GRINNING FACE}" * TEXT_CHARACTERS
    worker.send(orders.Failed(problem, is_usage_error=False))
    assert ours.receive() == (orders.Failed(problem, is_usage_error=False), [])
    assert isinstance(ours.fileno(), int)
    assert ours.socket.type == socket.SOCK_SEQPACKET


def test_a_record_has_the_process_and_the_connections_that_finished_last() -> None:
    descriptor = os.memfd_create("record")
    try:
        worker, supervisor = orders.WorkerRecord(descriptor), orders.WorkerRecord(descriptor)
        assert (supervisor.process, supervisor.finished()) == ((0, 0), set())
        supervisor.process = (4711, 123456)
        for number in (7, 2**40):
            worker.add_finished(number)
        assert supervisor.finished() == {7, 2**40}
        for number in range(100, 17_000):
            worker.add_finished(number)
        assert 7 not in supervisor.finished()
        assert set(range(1_000, 17_000)) <= supervisor.finished()
        assert supervisor.process == (4711, 123456)
    finally:
        os.close(descriptor)
