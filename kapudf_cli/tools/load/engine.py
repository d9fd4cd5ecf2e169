"""A load run: send data when it is due, and time the answers, in one thread.

The latency of a point starts when the point was due, and not when it was sent. So it includes
the time that the point waited for earlier points. At full speed, a point is due as soon as
there is room for it.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from kapudf_cli.client.errors import STUCK, UdfFaultError
from kapudf_cli.client.session import SETTLE_KEEPALIVES, SETTLE_QUIET_S, Session, drain
from kapudf_cli.protocol.udf_pb2 import EndBatch, InitRequest, Point
from kapudf_cli.system import processes
from kapudf_cli.tools.load.connection import END, KEEPALIVE, POINT, Latencies, LoadConnection
from kapudf_cli.tools.load.work import head_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from kapudf_cli.client.target import Connection, Target
    from kapudf_cli.protocol.codec import RequestMessage
    from kapudf_cli.tools.load.work import Unit, Work

#: How many bytes are sent per system call in bulk: as much as a socket takes.
_BULK_BYTES: Final = 64 * 1024
#: How often the processes are measured and the progress is shown.
_TICK_S: Final = 0.25
#: How often a keepalive is sent and timed, if answers are not one for one.
_PROBE_S: Final = 0.01
#: A wait for a descriptor overshoots by about this much; for shorter times, poll.
_SPIN_S: Final = 0.0002
#: How many units are sent between two reads of answers, at full speed.
_UNITS_PER_READ: Final = 32
#: How many points are sent first, to find out how the UDF answers them.
_FIRST_UNITS: Final = 32


@dataclass(frozen=True)
class Plan:
    """The settings of a run.

    Attributes:
        connections: the number of connections.
        rate: points per second over all connections, None for full speed.
        duration_s: how long to send, None for no limit.
        points: the number of points to send, None for no limit.
        bulk: whether to send many frames per system call, and not one frame in two calls, as
            Kapacitor does.
        timeout_s: how long the UDF may be silent while answers are due.
    """

    connections: int = 1
    rate: float | None = None
    duration_s: float | None = None
    points: int | None = None
    bulk: bool = False
    timeout_s: float = 10.0


@dataclass
class Measured:
    """The results so far.

    Attributes:
        sent: the number of points sent.
        returned: the number of points that came back.
        elapsed_s: the time from the first point to the last answer.
        latencies: the latencies of the messages that `timed` names.
        timed: `points`, `batches` or `keepalives`.
        cpu_s: processor time of the UDF's processes, None if unknown.
        rss_bytes: their most resident memory at one time, None if unknown.
        pids: the UDF's processes.
        interrupted: whether Ctrl-C ended the run early.
    """

    sent: int = 0
    returned: int = 0
    elapsed_s: float = 0.0
    latencies: Latencies = field(default_factory=Latencies)
    timed: str = "points"
    cpu_s: float | None = None
    rss_bytes: int | None = None
    pids: tuple[int, ...] = ()
    interrupted: bool = False


class Engine:
    """One load run over a UDF."""

    def __init__(self, target: Target, work: Work, plan: Plan) -> None:
        """Prepare a run; nothing is connected yet."""
        self._target = target
        self._work = work
        self._plan = plan
        self._connections: list[LoadConnection] = []
        self._watch: Callable[[Measured], None] = lambda _: None
        self._began_s = 0.0
        self._next_tick_s = 0.0
        #: When the last answer arrived.
        self._heard_s = 0.0
        self._since_read = 0
        self._cpu_before_s = 0.0
        self._interrupt = _HeldInterrupt()
        self.measured = Measured()

    def run(self, watch: Callable[[Measured], None] = lambda _: None) -> Measured:
        """Connect, send, and return the results once everything is answered.

        Args:
            watch: called periodically with the results so far. KeyboardInterrupt ends the
                sending early.

        Raises:
            TargetError: the UDF cannot be connected to or started.
            UdfFaultError: it refused the options, failed, hung, or sent an invalid message.
        """
        measured = self.measured
        self._watch = watch
        with contextlib.ExitStack() as stack:
            opened = [
                stack.enter_context(self._target.open(timeout_s=self._plan.timeout_s))
                for _ in range(self._plan.connections)
            ]
            answer = self._start(opened)
            self._connections = [
                LoadConnection(each, measured.latencies, answer=answer) for each in opened
            ]
            measured.pids = tuple({each.pid for each in opened if each.pid is not None})
            self._cpu_before_s = processes.cpu_s(processes.tree(measured.pids))
            self._began_s = self._heard_s = time.perf_counter()
            self._next_tick_s = self._began_s + _TICK_S
            try:
                with self._interrupt:
                    self._send()
            except KeyboardInterrupt:
                measured.interrupted = True
            self._await_all(drains=all(each.drains for each in opened))
            self._count(self._heard_s - self._began_s)
            self._measure_processes()
        return measured

    # --- before ---

    def _start(self, opened: Sequence[Connection]) -> int:
        """Start a task on each connection, and return the kind of answer to time.

        These are points or batches if they are answered one for one, or else keepalives.
        """
        sessions = [Session(each, timeout_s=self._plan.timeout_s) for each in opened]
        for session in sessions:
            request = InitRequest(taskID="kapudf-load", nodeID="udf1", options=self._work.options)
            drain(session.start(request))
        messages = self._first_messages()
        received = list(sessions[0].exchange(messages, "a keepalive behind the first points"))
        received += sessions[0].settle()
        kind: type[Point | EndBatch] = Point
        timed, answer = "points", POINT
        if any(isinstance(message, EndBatch) for message in messages):
            kind, timed, answer = EndBatch, "batches", END
        if _number_of(kind, received) != _number_of(kind, messages):
            timed, answer = "keepalives", KEEPALIVE
        self.measured.timed = timed
        return answer

    def _first_messages(self) -> Sequence[RequestMessage]:
        """Return a batch, or some points."""
        messages = self._work.messages
        for number, message in enumerate(messages, 1):
            if isinstance(message, EndBatch):
                return messages[:number]
            if number == _FIRST_UNITS and len(self._work.units[0].frames) == 1:
                return messages[:number]
        return messages

    # --- the run ---

    def _send(self) -> None:
        plan = self._plan
        pieces = itertools.cycle(self._pieces())
        turns = itertools.cycle(self._connections)
        times_keepalives = self.measured.timed == "keepalives"
        times_batches = self.measured.timed == "batches"
        last_probe_s = -_PROBE_S
        sent = 0
        due_s = self._began_s
        while plan.points is None or sent < plan.points:
            units = next(pieces)
            points = sum(unit.points for unit in units)
            if plan.rate is not None:
                connection = next(turns)
                self._step_until(due_s)
                # If there is no room, the data stays due, and its latency grows.
                self._await_room([connection])
                due_ns = int(due_s * 1e9)
                due_s += points / plan.rate
            else:
                connection = self._one_with_room()
                due_ns = time.perf_counter_ns()
            if plan.duration_s is not None:
                after_s = max(due_ns / 1e9, time.perf_counter()) - self._began_s
                if after_s >= plan.duration_s:
                    return
            answers = 0 if times_keepalives else len(units) if times_batches else points
            connection.put(self._calls(units), points=points, due_ns=due_ns, answers=answers)
            if times_keepalives and due_ns / 1e9 - last_probe_s >= _PROBE_S:
                last_probe_s = due_ns / 1e9
                connection.keepalive(due_ns, timed=True)
            sent += points

    def _pieces(self) -> list[list[Unit]]:
        """Return the units to send at once: one unit each, or many in bulk at full speed."""
        units = self._work.units
        if not (self._plan.bulk and self._plan.rate is None):
            return [[unit] for unit in units]
        pieces: list[list[Unit]] = [[]]
        size = 0
        for unit in units:
            if size >= _BULK_BYTES:
                pieces.append([])
                size = 0
            pieces[-1].append(unit)
            size += len(unit.data)
        return pieces

    def _calls(self, units: list[Unit]) -> tuple[bytes, ...]:
        """Return the bytes of each system call that sends these units."""
        if self._plan.bulk:
            return (b"".join(unit.data for unit in units),) if len(units) > 1 else (units[0].data,)
        calls = []
        for unit in units:
            for frame in unit.frames:
                head = head_bytes(frame)
                calls += [frame[:head], frame[head:]]
        return tuple(calls)

    def _step_until(self, due_s: float) -> None:
        """Read answers until this time, or once if it is in the past."""
        while (left_s := due_s - time.perf_counter()) > 0:
            self._step(min(left_s - _SPIN_S, _TICK_S) if left_s > _SPIN_S else 0.0)
            self._tick()
        self._step(0.0)
        self._tick()

    def _one_with_room(self) -> LoadConnection:
        """Return a connection that has room; before that, read answers periodically."""
        self._since_read += 1
        if self._since_read >= _UNITS_PER_READ or self._plan.bulk:
            self._since_read = 0
            self._step(0.0)
        return self._await_room(self._connections)

    def _await_room(self, wanted: list[LoadConnection]) -> LoadConnection:
        """Read answers until one of these connections has room, and return it."""
        silent_since_s: float | None = None
        while True:
            self._tick()
            free = [each for each in wanted if not each.waits]
            if free:
                return min(free, key=lambda each: each.sent)
            if self._step(_TICK_S) or silent_since_s is None:
                silent_since_s = time.perf_counter()
            elif time.perf_counter() - silent_since_s > self._plan.timeout_s:
                raise self._silence()

    def _step(self, wait_s: float) -> bool:
        """Wait until a connection can be read or written, do that, and return whether one could."""
        by_read = {each.readable: each for each in self._connections}
        by_write = {each.writable: each for each in self._connections if each.waits}
        readable, writable, _ = select.select(by_read, by_write, (), wait_s)
        for descriptor in readable:
            by_read[descriptor].pull()
        if readable:
            self._heard_s = time.perf_counter()
        for descriptor in writable:
            by_write[descriptor].push()
        return bool(readable or writable)

    # --- after ---

    def _await_all(self, *, drains: bool) -> None:
        """Wait until everything is answered, so that closing the connections loses nothing."""
        self._await_keepalives()
        times_keepalives = self.measured.timed == "keepalives"
        if drains or not (times_keepalives or any(each.owed for each in self._connections)):
            return
        for _ in range(SETTLE_KEEPALIVES - 1):
            self._await_keepalives()
        until_s = time.perf_counter() + self._plan.timeout_s
        while self._step(SETTLE_QUIET_S) and time.perf_counter() < until_s:
            self._tick()

    def _await_keepalives(self) -> None:
        """Send a keepalive on each connection, and wait until they are answered."""
        times_keepalives = self.measured.timed == "keepalives"
        awaited = []
        for each in self._connections:
            before = each.received[KEEPALIVE] + (each.owed if times_keepalives else 0)
            each.keepalive(time.perf_counter_ns(), timed=False)
            awaited.append((each, before + 1))
        heard_s = time.perf_counter()
        while any(each.received[KEEPALIVE] < count for each, count in awaited):
            if self._step(_TICK_S):
                heard_s = time.perf_counter()
            elif time.perf_counter() - heard_s > self._plan.timeout_s:
                raise self._silence()
            self._tick()

    def _silence(self) -> UdfFaultError:
        self._count(0.0)
        returned, sent = self.measured.returned, self.measured.sent
        problem = (
            f"sent nothing for {self._plan.timeout_s:g} s ({returned} points back of {sent} sent)"
        )
        places = [place for each in self._connections if (place := each.where())]
        if places:
            problem += f"; it is in {places[0]}"
        return UdfFaultError(problem, advice=STUCK)

    def _tick(self) -> None:
        """Raise a held KeyboardInterrupt; periodically measure and report."""
        self._interrupt.check()
        now_s = time.perf_counter()
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + _TICK_S
            self._count(now_s - self._began_s)
            self._measure_processes()
            self._watch(self.measured)

    def _count(self, elapsed_s: float) -> None:
        self.measured.sent = sum(each.sent for each in self._connections)
        self.measured.returned = sum(each.received[POINT] for each in self._connections)
        self.measured.elapsed_s = elapsed_s

    def _measure_processes(self) -> None:
        if not self.measured.pids:
            return
        pids = processes.tree(self.measured.pids)
        self.measured.cpu_s = max(processes.cpu_s(pids) - self._cpu_before_s, 0.0)
        resident = sum(map(processes.rss_bytes, pids))
        self.measured.rss_bytes = max(self.measured.rss_bytes or 0, resident)


def _number_of(kind: type, messages: Sequence[object]) -> int:
    return sum(isinstance(message, kind) for message in messages)


class _HeldInterrupt:
    """Holds the first SIGINT inside the block, until `check`; a second one raises as usual.

    A KeyboardInterrupt in the middle of a send would leave a frame half sent. Where SIGINT does
    not raise, and outside of the main thread, nothing is held.
    """

    def __init__(self) -> None:
        self._came = False
        self._holds = False

    def __enter__(self) -> Self:
        raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if raises and threading.current_thread() is threading.main_thread():
            self._holds = True
            signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        if self._holds:
            self._holds = False
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise the KeyboardInterrupt that was held."""
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _hold(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
