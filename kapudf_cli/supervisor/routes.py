"""The states of connections and workers, and the orders that a router returns."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.worker.channel import Pause, Release, Resume, Stop


class ConnectionState(enum.Enum):
    """How a connection is served."""

    #: No worker has it.
    WAITING = "waiting"
    #: A worker serves it.
    SERVED = "served"
    #: Its worker was told to pause, so that another one can take it over.
    PAUSING = "pausing"
    #: Its worker has paused, and the other one restores the handler's state.
    MOVING = "moving"
    #: A worker serves it, and another one could not take it over.
    PINNED = "pinned"


class WorkerState(enum.Enum):
    """What a worker does."""

    #: It loads the handler.
    STARTING = "starting"
    #: It is ready, and waits: a spare for the death of another worker, a new worker of a reload
    #: for the other new ones.
    STANDBY = "standby"
    #: It serves connections.
    SERVING = "serving"
    #: It hands its connections over, and exits without them.
    RETIRING = "retiring"
    #: It was killed before it served, because it is not needed any more.
    DISMISSED = "dismissed"
    #: It has ended, or could not load the handler and is about to end.
    DEAD = "dead"


class Step(enum.Enum):
    """What changes the state of a connection or a worker."""

    GIVE = enum.auto()
    LOSE = enum.auto()
    MOVE = enum.auto()
    PAUSE = enum.auto()
    COMPLETE = enum.auto()
    GO_BACK = enum.auto()
    REFUSE = enum.auto()
    UNPIN = enum.auto()
    STAND_BY = enum.auto()
    SERVE = enum.auto()
    RETIRE = enum.auto()
    DISMISS = enum.auto()
    DIE = enum.auto()


#: The only changes of state that there are.
_CONNECTION_STEPS: Final = {
    (ConnectionState.WAITING, Step.GIVE): ConnectionState.SERVED,
    (ConnectionState.SERVED, Step.MOVE): ConnectionState.PAUSING,
    (ConnectionState.PAUSING, Step.PAUSE): ConnectionState.MOVING,
    (ConnectionState.MOVING, Step.COMPLETE): ConnectionState.SERVED,
    (ConnectionState.PAUSING, Step.GO_BACK): ConnectionState.SERVED,
    (ConnectionState.MOVING, Step.GO_BACK): ConnectionState.SERVED,
    (ConnectionState.MOVING, Step.REFUSE): ConnectionState.PINNED,
    (ConnectionState.PINNED, Step.UNPIN): ConnectionState.SERVED,
    (ConnectionState.SERVED, Step.LOSE): ConnectionState.WAITING,
    (ConnectionState.PINNED, Step.LOSE): ConnectionState.WAITING,
}
_WORKER_STEPS: Final = {
    (WorkerState.STARTING, Step.STAND_BY): WorkerState.STANDBY,
    (WorkerState.STARTING, Step.SERVE): WorkerState.SERVING,
    (WorkerState.STANDBY, Step.SERVE): WorkerState.SERVING,
    (WorkerState.STARTING, Step.RETIRE): WorkerState.RETIRING,
    (WorkerState.STANDBY, Step.RETIRE): WorkerState.RETIRING,
    (WorkerState.SERVING, Step.RETIRE): WorkerState.RETIRING,
    (WorkerState.STARTING, Step.DISMISS): WorkerState.DISMISSED,
    (WorkerState.STANDBY, Step.DISMISS): WorkerState.DISMISSED,
    **{(state, Step.DIE): WorkerState.DEAD for state in WorkerState},
}


@dataclass(eq=False)
class RoutedConnection:
    """A connection as the router knows it; only the router changes it.

    Attributes:
        number: its name in the log.
        state: how it is served.
        worker: the number of the worker that serves it, None while it waits.
        target: the worker that is to take it over, None unless it is pausing or moving.
        was_served: whether any worker was told to serve it.
        is_isolated: whether it must not share a worker with another isolated connection, so that
            the next death shows which of them is the cause.
        is_careful: whether its worker handles one frame at a time, because one killed the last
            worker.
        is_movable: whether another worker could take it over now.
        move_began_s: when its worker was last told to pause, of the monotonic clock.
    """

    number: int
    state: ConnectionState = ConnectionState.WAITING
    worker: int | None = None
    target: int | None = None
    was_served: bool = False
    is_isolated: bool = False
    is_careful: bool = False
    is_movable: bool = True
    move_began_s: float = 0.0

    def change(self, step: Step) -> None:
        """Change the state; KeyError if the table has no such change."""
        self.state = _CONNECTION_STEPS[self.state, step]


@dataclass(eq=False)
class RoutedWorker:
    """A worker as the router knows it; only the router changes it.

    Attributes:
        number: its name in the log.
        state: what it does.
        is_spare: whether it is to serve only in place of another worker.
        connections: the numbers of those that it serves, or is to take over.
        is_frozen: whether it does nothing although it has work.
    """

    number: int
    state: WorkerState = WorkerState.STARTING
    is_spare: bool = False
    connections: set[int] = dataclasses.field(default_factory=set)
    is_frozen: bool = False

    def change(self, step: Step) -> None:
        """Change the state; KeyError if the table has no such change."""
        self.state = _WORKER_STEPS[self.state, step]


class Reason(enum.Enum):
    """Why workers are replaced."""

    #: All of them, for new code or settings.
    RELOAD = "reload"
    #: One that has reached `max_points` or `max_rss_mb`.
    RECYCLING = "recycling"
    #: Those that have died, or were never started.
    DEATH = "death"
    #: None: a spare is started, to replace a worker later.
    STANDBY = "standby"


@dataclass(frozen=True)
class Replacement:
    """Who is replaced by whom, and why.

    Workers that replace dead ones serve as soon as each is ready. Otherwise all new workers must
    be ready first; if one fails, the others are dismissed, and the old ones go on.

    Attributes:
        reason: why.
        new: the numbers of the new workers.
        old: the workers that retire once the new ones are ready.
        settings: of the function once they serve, for a reload.
    """

    reason: Reason
    new: tuple[int, ...]
    old: tuple[int, ...] = ()
    settings: FunctionSettings | None = None


@dataclass(frozen=True)
class Tell:
    """Order: send a worker a message."""

    worker: int
    message: Pause | Resume | Release | Stop


@dataclass(frozen=True)
class Give:
    """Order: have a worker serve a connection; if it cannot be sent, call `on_unsent`.

    Attributes:
        worker: who gets it.
        connection: its number.
        takes_over: whether another worker has served it.
        waits: whether that worker is paused and could go on, so that the new one must not read
            before it is resumed.
    """

    worker: int
    connection: int
    takes_over: bool = False
    waits: bool = False


@dataclass(frozen=True)
class Assign:
    """Order: note that a handover is complete, and `worker` serves the connection from now on."""

    worker: int
    connection: int


@dataclass(frozen=True)
class Kill:
    """Order: kill a worker that has never served."""

    worker: int


@dataclass(frozen=True)
class Promote:
    """Order: note that a spare serves in place of a worker that has died."""

    worker: int


@dataclass(frozen=True)
class Switch:
    """Order: note that the new workers of a replacement serve instead of the old ones."""

    replacement: Replacement


Order: TypeAlias = Tell | Give | Assign | Kill | Promote | Switch
