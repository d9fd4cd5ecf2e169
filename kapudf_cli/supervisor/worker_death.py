"""Workers that hang or die: where their threads were, and which connection is to blame."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kapudf_cli.supervisor.routes import WorkerState
from kapudf_cli.supervisor.worker_process import UNKNOWN_END
from kapudf_cli.system.processes import is_stopped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.stdlib import BoundLogger

    from kapudf_cli.supervisor.connection import SupervisedConnection
    from kapudf_cli.supervisor.worker_process import WorkerProcess

#: How long a worker that hangs has to write where it hangs.
_DUMP_PAUSE_S: Final = 0.3
#: After this time without any Python code, one thread must be holding the interpreter.
_INTERPRETER_HELD_S: Final = 3.0
#: Why a worker is killed.
_HUNG: Final = "a handler hung"
_FROZEN: Final = "it was frozen"
#: The names of these causes in metrics; for others, the supervisor could not tell it anything.
_CAUSES: Final = {_HUNG: "hung", _FROZEN: "frozen"}
_OTHER_CAUSE: Final = "unresponsive"
#: Causes that metrics show before they occur for the first time, so that a first one is a change.
USUAL_CAUSES: Final = ("SIGKILL", "SIGSEGV", "exit", *_CAUSES.values(), _OTHER_CAUSE)
#: How a worker ends that has finished its work.
_DONE: Final = "exit status 0"
#: How many lines of stacks are logged.
_LINES: Final = 60
#: How many calls of a thread are named, innermost first.
_CALLS: Final = 5
#: How faulthandler writes a call.
_CALL: Final = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
#: How faulthandler names the thread that caused a fault.
_FAULTY_THREAD: Final = re.compile(r"^Current thread 0x([0-9a-f]+) ", re.MULTILINE)


class HungWorkers:
    """Workers that were asked to write where they hang, and are then killed."""

    def __init__(self) -> None:
        """Begin with none."""
        # When each was asked, and why it is killed.
        self._asked: dict[WorkerProcess, tuple[float, str]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether none is to be killed."""
        return not self._asked

    def note(
        self,
        connection: SupervisedConnection,
        worker: WorkerProcess,
        now_s: float,
        log: BoundLogger,
    ) -> None:
        """Note that a handler hangs; its worker writes where, and is then killed.

        Args:
            connection: the connection whose handler hangs; each is logged once.
            worker: the worker that serves it.
            now_s: a monotonic clock's time, in seconds.
            log: where events go.
        """
        # A worker may have been stopped after it took input and before it gave it to the handler.
        is_idle = connection.is_neglected or not connection.is_at_work
        if is_idle or is_stopped(worker.pid):
            self.note_frozen(connection, worker, now_s, log)
            return
        if connection.is_hanging:
            return
        connection.is_hanging = True
        self._ask(worker, now_s, _HUNG)
        task_id, node_id = connection.header.task
        log.error(
            "handler hangs, its worker is replaced",
            connection=connection.number,
            task_id=task_id,
            node_id=node_id,
            worker=worker.number,
            pid=worker.pid,
            busy_s=round(connection.watch.busy_s, 1),
        )

    def note_frozen(
        self,
        connection: SupervisedConnection,
        worker: WorkerProcess,
        now_s: float,
        log: BoundLogger,
    ) -> None:
        """Note that a worker does nothing although it has work, and have it killed.

        It was stopped, or another thread of its process holds the interpreter. No frame of this
        connection is the cause.

        Args:
            connection: the connection that shows it.
            worker: the worker that serves it.
            now_s: a monotonic clock's time, in seconds.
            log: where events go.
        """
        if worker in self._asked:
            return
        self._ask(worker, now_s, _FROZEN)
        log.error(
            "worker is frozen, it is replaced",
            connection=connection.number,
            worker=worker.number,
            pid=worker.pid,
            not_reading_s=round(connection.watch.busy_s, 1),
        )

    def _ask(self, worker: WorkerProcess, now_s: float, reason: str) -> None:
        if worker not in self._asked:
            worker.ask_for_stacks()
        asked_s, _ = self._asked.get(worker, (now_s, reason))
        self._asked[worker] = (asked_s, reason)

    def kill_due(self, now_s: float) -> None:
        """Kill those that have had the time to write where they hang."""
        for worker, (asked_s, reason) in list(self._asked.items()):
            if now_s - asked_s >= _DUMP_PAUSE_S:
                del self._asked[worker]
                worker.kill(reason)

    def forget(self, worker: WorkerProcess) -> None:
        """Forget a worker that has died."""
        self._asked.pop(worker, None)


@dataclass(frozen=True)
class WorkerDeath:
    """How a worker ended.

    Attributes:
        worker: its number.
        pid: that of the process, 0 if its template has not forked it.
        state: what it did when it ended.
        how: the exit status or the signal.
        stacks: what faulthandler wrote of its threads, after a fault or when it was asked to.
        reason: why the supervisor killed it, if it did and the log does not say so already.
        was_overdue: whether it was killed only because its exit took too long.
    """

    worker: int
    pid: int
    state: WorkerState
    how: str
    stacks: str
    reason: str | None = None
    was_overdue: bool = False

    @classmethod
    def of(cls, worker: WorkerProcess, state: WorkerState) -> WorkerDeath:
        """Return how a worker ended that was in a state, and close what is left of it."""
        how = worker.reap()
        stacks = worker.stacks()
        worker.close()
        return cls(
            worker.number,
            worker.pid,
            state,
            how,
            stacks,
            reason=worker.killed_for,
            was_overdue=worker.exit_overdue,
        )

    def is_expected(self, *, stopping: bool) -> bool:
        """Return whether it ended as it was told to, or while it served nothing.

        Args:
            stopping: whether every worker was told to end.
        """
        if self.state is WorkerState.DISMISSED or not self.pid:
            return True
        if stopping and self.state is WorkerState.STARTING:
            return True
        is_told = stopping or self.state in {WorkerState.RETIRING, WorkerState.DEAD}
        return is_told and (self.how in {_DONE, UNKNOWN_END} or self.was_overdue)

    @property
    def cause(self) -> str:
        """Why it died, in one of few words: why it was killed, the signal, or `exit`."""
        if self.reason is not None:
            return _CAUSES.get(self.reason, _OTHER_CAUSE)
        return self.how if self.how.startswith(("SIG", "signal")) else "exit"

    def log(self, log: BoundLogger, *, connections: int) -> None:
        """Log an unexpected death.

        Args:
            log: where.
            connections: how many connections need another worker.
        """
        log.error(
            "worker died",
            worker=self.worker,
            pid=self.pid,
            how=self.how,
            connections=connections,
            **self._causes(),
        )

    def log_template(self, log: BoundLogger) -> None:
        """Log the unexpected death of a template."""
        log.error("template died", pid=self.pid, how=self.how, **self._causes())

    def _causes(self) -> dict[str, str]:
        """Return what is known of why it died, for the log."""
        causes = {"reason": self.reason or "", "stacks": beginning(self.stacks)}
        return {name: text for name, text in causes.items() if text}

    def accusations(self, orphans: Sequence[SupervisedConnection]) -> dict[int, bool | None]:
        """Return for each connection whether its own thread caused the death, None if unknown.

        Args:
            orphans: the connections that the worker served.
        """
        hung = any(each.is_hanging for each in orphans)
        thread = None if hung else faulty_thread(self.stacks)
        # A worker that has not written its stacks was stopped: no handler is to blame. Where one
        # handler holds the interpreter, others that were busy look as if they hung too.
        is_held = any(each.is_silent(_INTERPRETER_HELD_S) for each in orphans)
        busy = sum(
            each.header.busy_since_ns != 0 and not each.header.waits_for_turn for each in orphans
        )
        is_clear = bool(self.stacks) and not (is_held and busy > 1)
        accused: dict[int, bool | None] = {}
        for each in orphans:
            accused[each.number] = None
            if not each.header.thread or each.header.waits_for_turn:
                accused[each.number] = False  # The worker had not begun with it, or did not run it.
            elif hung:
                accused[each.number] = each.is_hanging if is_clear else None
            elif thread is not None and any(one.header.thread == thread for one in orphans):
                accused[each.number] = each.header.thread == thread
        return accused

    def in_words(self, connection: SupervisedConnection) -> str:
        """Return what happened to the worker, for the error of one of its connections."""
        if not connection.is_hanging:
            return f"died by {self.how}"
        place = where(self.stacks, connection.header.thread)
        return f"hung for {connection.watch.busy_s:.0f} s" + (f" in {place}" if place else "")


# --- what faulthandler writes -----------------------------------------------------


def beginning(stacks: str) -> str:
    """Return the lines that are logged."""
    return "\n".join(stacks.splitlines()[:_LINES])


def faulty_thread(stacks: str) -> int | None:
    """Return the identifier of the thread that caused a fault, None if it is not named."""
    found = _FAULTY_THREAD.search(stacks)
    return None if found is None else int(found[1], 16)


def where(stacks: str, thread: int) -> str:
    """Return the innermost calls of a thread in one line, "" if they are unknown."""
    calls: list[str] = []
    is_ours = False
    for line in stacks.splitlines():
        found = _CALL.match(line)
        if found is None:
            is_ours = f"hread 0x{thread:016x} " in line
        elif is_ours and len(calls) < _CALLS:
            file, number, name = found.groups()
            calls.append(f"{name} ({file}:{number})")
    return " < ".join(calls)
