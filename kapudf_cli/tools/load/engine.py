"""The run: what is due is sent when it is due, and what comes back is timed, in one thread.

A point's time counts from when it was due and not from when it could be sent: one that
had to wait for those before it shows how long. At full speed everything is due when it
is handed over.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.driver import SETTLE_KEEPALIVES, SETTLE_QUIET_S
from kapudf_cli.protocol.errors import ProtocolError
from kapudf_cli.protocol.udf_pb2 import (
    EndBatch,
    ErrorResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
)
from kapudf_cli.system import processes
from kapudf_cli.tools.load.connection import END, KEEPALIVE, POINT, LoadConnection
from kapudf_cli.tools.load.errors import LoadError
from kapudf_cli.tools.load.exchange import head_bytes
from kapudf_cli.tools.load.interrupts import HeldInterrupt
from kapudf_cli.tools.load.latencies import Latencies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kapudf_cli.client import Connection, Target
    from kapudf_cli.protocol.codec import RequestMessage
    from kapudf_cli.tools.load.work import Unit, Work

#: How many bytes are handed over at once in bulk: as much as a socket takes.
_BULK_BYTES: Final = 64 * 1024
#: How often the processes are looked at, and a live line is shown.
_LOOK_S: Final = 0.25
#: Where answers are not one for one, so often a keepalive is sent to be timed.
_PROBE_S: Final = 0.01
#: A wait for a descriptor overshoots by about as much; from there on it is not waited.
_SPIN_S: Final = 0.0002
#: At full speed, after so many points it is looked for answers.
_UNITS_A_TURN: Final = 32
#: How many points are sent to see what comes back.
_TRIAL_UNITS: Final = 32


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        connections: how many.
        rate: points a second over all connections, None for as many as go.
        duration_s: how long to send, None without end.
        points: how many points to send, None without end.
        bulk: whether frames go out many to a call; else each in two, as from Kapacitor.
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
    """What came of it, up to now or in the end.

    Attributes:
        sent: how many points.
        returned: how many points came back.
        elapsed_s: from the first point to the last answer.
        latencies: of what `timed` says.
        timed: `points`, `batches` or `keepalives`.
        cpu_s: processor time that the UDF's processes used, None where it is not known.
        rss_bytes: the most memory that they had resident at once, None likewise.
        pids: the UDF's processes.
        interrupted: whether it was cut short.
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
    """Puts a load on a UDF, once."""

    def __init__(self, target: Target, work: Work, plan: Plan) -> None:
        """Prepare a run; nothing is connected yet."""
        self._target = target
        self._work = work
        self._plan = plan
        self._look_at = 0.0
        self._heard_s = 0.0
        self._handed_over = 0
        self._cpu_before = 0.0
        self._interrupt = HeldInterrupt()
        self._drains = False
        self.measured = Measured()

    def run(self, watch: Callable[[Measured], None] = lambda _: None) -> Measured:
        """Connect, send, and return what was measured once everything has been dealt with.

        Args:
            watch: told now and then how it goes. KeyboardInterrupt ends the sending early.

        Raises:
            TargetError: the UDF cannot be connected to or started.
            LoadError: it refused the options, failed, hung, or sent what it may not.
        """
        measured = self.measured
        with contextlib.ExitStack() as stack:
            connections = []
            for _ in range(self._plan.connections):
                opened = self._target.open(timeout_s=self._plan.timeout_s)
                connections.append(stack.enter_context(opened))
            for connection in connections:
                self._start(connection)
            self._drains = all(each.drains for each in connections)
            answer = self._answer_of(connections[0])
            lanes = [
                LoadConnection(each, measured.latencies, answer=answer) for each in connections
            ]
            measured.pids = tuple({each.pid for each in connections if each.pid is not None})
            self._cpu_before = processes.cpu_s(processes.tree(measured.pids))
            began_s = time.perf_counter()
            self._look_at = began_s + _LOOK_S
            self._heard_s = began_s
            try:
                with self._interrupt:
                    self._send(lanes, began_s, watch)
            except KeyboardInterrupt:
                measured.interrupted = True
            self._drain(lanes, began_s, watch)
            self._count(lanes, self._heard_s - began_s)
            self._tick()
        return measured

    # --- before ---

    def _start(self, connection: Connection) -> None:
        request = InitRequest(taskID="kapudf-load", nodeID="udf1", options=self._work.options)
        for response in self._exchange(connection, [request], InitResponse):
            if isinstance(response, InitResponse) and not response.success:
                reason = " ".join(response.error.split()) or "no reason given"
                raise LoadError(f"the UDF refused Init: {reason:.300}")

    def _answer_of(self, connection: Connection) -> int:
        """Return what to time: what answers each unit one for one, or else keepalives."""
        messages = self._trial()
        sent = sum(isinstance(message, Point) for message in messages)
        batches = sum(isinstance(message, EndBatch) for message in messages)
        data = [*messages, KeepaliveRequest(time=time.time_ns())]
        came = list(self._exchange(connection, data, KeepaliveResponse))
        came += self._settle(connection)
        if batches:
            one_for_one = sum(isinstance(message, EndBatch) for message in came) == batches
            answer, self.measured.timed = END, "batches"
        else:
            one_for_one = sum(isinstance(message, Point) for message in came) == sent
            answer, self.measured.timed = POINT, "points"
        if not one_for_one:
            answer, self.measured.timed = KEEPALIVE, "keepalives"
        return answer

    def _settle(self, connection: Connection) -> Iterator[object]:
        """Yield what comes until all data is answered: in some UDFs keepalives overtake it."""
        if connection.drains:
            return
        for _ in range(SETTLE_KEEPALIVES):
            keepalive = KeepaliveRequest(time=time.time_ns())
            yield from self._exchange(connection, [keepalive], KeepaliveResponse)
        until_s = time.monotonic() + self._plan.timeout_s
        with contextlib.suppress(TimeoutError), _explained():
            while time.monotonic() < until_s:
                response = connection.side.receive_within(SETTLE_QUIET_S)
                if response is None:
                    raise LoadError("the UDF closed the connection after the first points")
                yield response

    def _trial(self) -> Sequence[RequestMessage]:
        ends = 0
        for number, message in enumerate(self._work.messages, 1):
            ends += isinstance(message, EndBatch)
            if ends or (number == _TRIAL_UNITS and not len(self._work.units[0].frames) > 1):
                return self._work.messages[:number]
        return self._work.messages

    def _exchange(
        self, connection: Connection, requests: Sequence[RequestMessage], last: type
    ) -> Iterator[object]:
        """Send requests and yield what comes, up to the first of a class."""
        side = connection.side
        side.extend(self._plan.timeout_s)
        try:
            with _explained(), side.sending(requests):
                while (response := side.receive()) is not None:
                    if isinstance(response, ErrorResponse):
                        raise LoadError(f"the UDF failed the task: {response.error:.500}")
                    yield response
                    if isinstance(response, last):
                        return
        except TimeoutError as error:
            problem = f"the UDF gave no {last.__name__} within {self._plan.timeout_s:g} s"
            raise LoadError(problem) from error
        ending = connection.ending(self._plan.timeout_s / 10)
        how = f"; it {ending.text}" if ending else ""
        raise LoadError(f"the UDF closed the connection before it sent a {last.__name__}{how}")

    # --- the run ---

    def _send(
        self, lanes: list[LoadConnection], began_s: float, watch: Callable[[Measured], None]
    ) -> None:
        plan = self._plan
        pieces = itertools.cycle(self._pieces())
        turns = itertools.cycle(lanes)
        timed_by_keepalive = self.measured.timed == "keepalives"
        one_each = self.measured.timed == "batches"
        last_probe_s = -_PROBE_S
        sent = 0
        due_s = began_s
        while plan.points is None or sent < plan.points:
            units = next(pieces)
            points = sum(unit.points for unit in units)
            if plan.rate is not None:
                lane = next(turns)
                self._turn_until(due_s, lanes, watch, began_s)
                # What finds no room stays due: it is not handed over, and grows late.
                self._await_room([lane], lanes, watch, began_s)
                due_ns = int(due_s * 1e9)
                due_s += points / plan.rate
            else:
                lane = self._one_with_room(lanes, watch, began_s)
                due_ns = time.perf_counter_ns()
            if plan.duration_s is not None and self._is_over(due_ns / 1e9 - began_s, began_s):
                return
            answers = 0 if timed_by_keepalive else len(units) if one_each else points
            lane.put(self._cut(units), points=points, due_ns=due_ns, answers=answers)
            if timed_by_keepalive and due_ns / 1e9 - last_probe_s >= _PROBE_S:
                last_probe_s = due_ns / 1e9
                lane.keepalive(due_ns, timed=True)
            sent += points

    def _pieces(self) -> list[list[Unit]]:
        """Return what is handed over at once: a unit, or in bulk at full speed many."""
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

    def _cut(self, units: list[Unit]) -> tuple[bytes, ...]:
        """Return the calls in which units are sent."""
        if self._plan.bulk:
            return (b"".join(unit.data for unit in units),) if len(units) > 1 else (units[0].data,)
        calls = []
        for unit in units:
            for frame in unit.frames:
                head = head_bytes(frame)
                calls += [frame[:head], frame[head:]]
        return tuple(calls)

    def _turn_until(
        self,
        due_s: float,
        lanes: list[LoadConnection],
        watch: Callable[[Measured], None],
        began_s: float,
    ) -> None:
        """Take what comes until something is due."""
        while (left_s := due_s - time.perf_counter()) > 0:
            self._turn(lanes, min(left_s - _SPIN_S, _LOOK_S) if left_s > _SPIN_S else 0.0)
            self._watch(lanes, watch, began_s)
        # However late it is, what has come is taken: its time is running.
        self._turn(lanes, 0.0)
        self._watch(lanes, watch, began_s)

    def _one_with_room(
        self, lanes: list[LoadConnection], watch: Callable[[Measured], None], began_s: float
    ) -> LoadConnection:
        """Take what comes until a connection has room."""
        self._handed_over += 1
        if self._handed_over % _UNITS_A_TURN == 0 or self._plan.bulk:
            self._turn(lanes, 0.0)
        return self._await_room(lanes, lanes, watch, began_s)

    def _await_room(
        self,
        wanted: list[LoadConnection],
        lanes: list[LoadConnection],
        watch: Callable[[Measured], None],
        began_s: float,
    ) -> LoadConnection:
        """Take what comes until one of the wanted connections has room, and return it."""
        silent_since: float | None = None
        while True:
            self._watch(lanes, watch, began_s)
            free = [lane for lane in wanted if not lane.waits]
            if free:
                return min(free, key=lambda lane: lane.sent)
            if self._turn(lanes, _LOOK_S) or silent_since is None:
                silent_since = time.perf_counter()
            elif time.perf_counter() - silent_since > self._plan.timeout_s:
                raise LoadError(self._silence(lanes))

    def _is_over(self, due_after_s: float, began_s: float) -> bool:
        """Return whether the duration is over, by what is due or by the clock."""
        after_s = max(due_after_s, time.perf_counter() - began_s)
        return self._plan.duration_s is not None and after_s >= self._plan.duration_s

    def _turn(self, lanes: list[LoadConnection], wait_s: float) -> bool:
        """Push and pull where that is possible, after waiting for it; return whether it was."""
        by_read = {lane.readable: lane for lane in lanes}
        by_write = {lane.writable: lane for lane in lanes if lane.waits}
        readable, writable, _ = select.select(by_read, by_write, (), wait_s)
        for descriptor in readable:
            by_read[descriptor].pull()
        if readable:
            self._heard_s = time.perf_counter()
        for descriptor in writable:
            by_write[descriptor].push()
        return bool(readable or writable)

    # --- after ---

    def _drain(
        self, lanes: list[LoadConnection], began_s: float, watch: Callable[[Measured], None]
    ) -> None:
        """Wait until all is answered, so that closing the connections loses nothing.

        Raises:
            LoadError: the UDF was silent for too long, or failed.
        """
        self._await_keepalives(lanes, began_s, watch)
        all_timed = self.measured.timed != "keepalives" and not any(lane.owed for lane in lanes)
        if self._drains or all_timed:
            return
        for _ in range(SETTLE_KEEPALIVES - 1):
            self._await_keepalives(lanes, began_s, watch)
        until_s = time.perf_counter() + self._plan.timeout_s
        while self._turn(lanes, SETTLE_QUIET_S) and time.perf_counter() < until_s:
            self._watch(lanes, watch, began_s)

    def _await_keepalives(
        self, lanes: list[LoadConnection], began_s: float, watch: Callable[[Measured], None]
    ) -> None:
        """Send a keepalive on each connection, and wait until it is answered."""
        timed = self.measured.timed == "keepalives"
        awaited = {id(lane): lane.came[KEEPALIVE] + 1 for lane in lanes}
        if timed:
            awaited = {id(lane): lane.came[KEEPALIVE] + lane.owed + 1 for lane in lanes}
        for lane in lanes:
            lane.keepalive(time.perf_counter_ns(), timed=False)
        heard_s = time.perf_counter()
        while any(lane.came[KEEPALIVE] < awaited[id(lane)] for lane in lanes):
            if self._turn(lanes, _LOOK_S):
                heard_s = time.perf_counter()
            elif time.perf_counter() - heard_s > self._plan.timeout_s:
                raise LoadError(self._silence(lanes))
            self._watch(lanes, watch, began_s)

    def _silence(self, lanes: list[LoadConnection]) -> str:
        sent = sum(lane.sent for lane in lanes)
        returned = sum(lane.came[POINT] for lane in lanes)
        return (
            f"nothing came from the UDF for {self._plan.timeout_s:g} s, with {returned} points "
            f"back of {sent} sent; is it stuck, or does it not flush what it writes?"
        )

    def _watch(
        self, lanes: list[LoadConnection], watch: Callable[[Measured], None], began_s: float
    ) -> None:
        self._interrupt.check()
        now_s = time.perf_counter()
        if now_s >= self._look_at:
            self._look_at = now_s + _LOOK_S
            self._count(lanes, now_s - began_s)
            self._tick()
            watch(self.measured)

    def _count(self, lanes: list[LoadConnection], elapsed_s: float) -> None:
        self.measured.sent = sum(lane.sent for lane in lanes)
        self.measured.returned = sum(lane.came[POINT] for lane in lanes)
        self.measured.elapsed_s = elapsed_s

    def _tick(self) -> None:
        """Take note of what the UDF's processes cost."""
        if not self.measured.pids:
            return
        pids = processes.tree(self.measured.pids)
        self.measured.cpu_s = max(processes.cpu_s(pids) - self._cpu_before, 0.0)
        resident = sum(map(processes.rss_bytes, pids))
        self.measured.rss_bytes = max(self.measured.rss_bytes or 0, resident)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what goes wrong with a connection into a LoadError; a time-out stays one."""
    try:
        yield
    except TimeoutError:
        raise
    except (ProtocolError, OSError) as error:
        raise LoadError(f"the UDF broke the connection: {error}") from error
