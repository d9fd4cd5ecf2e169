"""The base of all checks: `Check` and `Result`, and `Trial`, which has the UDF and connects."""

from __future__ import annotations

import contextlib
import enum
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from kapudf_cli.client.driver import ask_info
from kapudf_cli.client.errors import ProbeError, TargetError, UdfFaultError
from kapudf_cli.client.session import Session, drain
from kapudf_cli.client.target import SocketTarget
from kapudf_cli.errors import KapudfError
from kapudf_cli.protocol.udf_pb2 import (
    STREAM,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
)
from kapudf_cli.tickscript.snippets import edge_name
from kapudf_cli.tools.check.data import FIELD, HOSTS, batches, points
from kapudf_cli.tools.options import generated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kapudf_cli.client.target import Target
    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType, Option

#: The time limit of a check on one connection, in timeouts. Without it, a UDF that never stops
#: sending keepalives would block the run.
_MAX_TIMEOUTS: Final = 12
#: The longest check sends 20,000 points. No known UDF answers each of them with a hundred.
_MAX_MESSAGES: Final = 2_000_000


class NotApplicableError(KapudfError):
    """A rule does not apply to this UDF; the message gives the reason."""


class Outcome(enum.StrEnum):
    """The result of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Check:
    """One rule, and how it is tested.

    Attributes:
        name: short, unique, of words with hyphens.
        rule: what a UDF must do, in a sentence.
        source: the source of the rule.
        run: tests the rule; raises UdfFaultError if the UDF breaks it, and NotApplicableError
            if the rule does not apply.
        cuts: whether the check ends connections that the UDF still writes to, as Kapacitor
            does when a task is disabled. The server of a UDF that cannot handle this may exit.
    """

    name: str
    rule: str
    source: str
    run: Callable[[Trial], None]
    cuts: bool = False


@dataclass(frozen=True)
class Result:
    """The result of one check.

    Attributes:
        check: the check.
        outcome: whether it passed.
        reason: why it failed or does not apply; empty if it passed.
        duration_s: how long it took.
        error: what the UDF did, if the check failed by that.
    """

    check: Check
    outcome: Outcome
    reason: str
    duration_s: float
    error: UdfFaultError | None = None


@dataclass
class Trial:
    """A run of checks on one UDF. Use it as a context manager.

    Attributes:
        target: the UDF.
        timeout_s: how long each answer may take, as in kapacitor.conf.
        may_cut: whether to run checks with `cuts`.
        given_options: the user's options for Init, None to generate them.
        info: the UDF's answer to Info, None until the first check has asked.
        options: the options for Init, None until a check has found options that are accepted.
    """

    target: Target
    timeout_s: float
    given_options: Sequence[Option] | None = None
    may_cut: bool = True
    info: InfoResponse | None = None
    options: Sequence[Option] | None = None
    _shared: tuple[Session, contextlib.ExitStack] | None = field(default=None, init=False)
    _snapshots: tuple[bytes, bytes] | None = field(default=None, init=False)
    _failed_on_used: bool = field(default=False, init=False)

    def __enter__(self) -> Self:
        """Return the trial itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection that checks share."""
        self.close_shared()

    # --- connections ---

    @contextlib.contextmanager
    def connected(self) -> Iterator[Session]:
        """Open a connection; afterwards, end it without checking how the UDF ends it."""
        with self.target.open(timeout_s=self.timeout_s) as connection:
            session = Session(
                connection,
                timeout_s=self.timeout_s,
                provides=None if self.info is None else self.info.provides,
                limit_s=self.timeout_s * _MAX_TIMEOUTS,
                limit_messages=_MAX_MESSAGES,
                settle_limit_s=self.timeout_s,
            )
            yield session
            drain(session.settle())
            # Read to the end: only the checks of cuts close a connection at once.
            session.part()

    @contextlib.contextmanager
    def started(self) -> Iterator[Session]:
        """Open a connection and start a task on it.

        Raises:
            NotApplicableError: an earlier check found that this cannot be done.
        """
        self.needs_task()
        with self.connected() as session:
            self.start(session)
            yield session

    @contextlib.contextmanager
    def shared(self) -> Iterator[Session]:
        """Yield a connection with a task that several checks use, one after the other.

        Starting a process for each check would take most of the time of a run. A connection
        on which a check failed is not used again.
        """
        is_new = self._shared is None
        if self._shared is None:
            stack = contextlib.ExitStack()
            self._shared = stack.enter_context(self.started()), stack
        session, stack = self._shared
        session.restart_limit()
        try:
            yield session
            # Answers that are still to come belong to this check.
            drain(session.settle())
        except BaseException:
            self._failed_on_used = not is_new
            self._shared = None
            stack.__exit__(*sys.exc_info())
            raise

    @contextlib.contextmanager
    def take_shared(self) -> Iterator[Session]:
        """Yield the shared connection, or a new one, to a check that ends it."""
        shared, self._shared = self._shared, None
        if shared is None:
            with self.started() as session:
                yield session
            return
        session, stack = shared
        session.restart_limit()
        with stack:
            yield session

    def close_shared(self) -> None:
        """Close the shared connection, if there is one."""
        if self._shared is not None:
            (_, stack), self._shared = self._shared, None
            with contextlib.suppress(UdfFaultError):
                stack.close()

    def run(self, check: Check) -> None:
        """Run a check; raises as its `run` does.

        A check that fails on a connection with the data of earlier checks is run again on a
        new connection, so that it is not blamed for them.
        """
        self._failed_on_used = False
        try:
            check.run(self)
        except UdfFaultError as first:
            if not self._failed_on_used:
                raise
            check.run(self)
            problem = f"{first.problem}; this did not happen without the data of earlier checks"
            raise UdfFaultError(problem) from first

    def is_gone(self) -> bool:
        """Return whether the server at the socket has exited."""
        if not isinstance(self.target, SocketTarget):
            # A process or a handler is started for each connection.
            return False
        try:
            with self.target.open(timeout_s=self.timeout_s) as connection:
                ask_info(connection.side)
        except TimeoutError:
            return False
        except (TargetError, ProbeError, OSError):
            return True
        return False

    @property
    def sees_endings(self) -> bool:
        """Whether the end of a process or a handler can be seen."""
        return not isinstance(self.target, SocketTarget)

    # --- what is sent ---

    def ask_info(self, session: Session) -> InfoResponse:
        """Send Info and return the answer."""
        return drain(session.ask(InfoRequest(), InfoResponse, "Info"))

    def init(self, session: Session, options: Sequence[Option]) -> InitResponse:
        """Send Init and return the answer."""
        request = InitRequest(taskID="kapudf-check", nodeID="udf1", options=options)
        return drain(session.ask(request, InitResponse, "Init"))

    def start(self, session: Session) -> None:
        """Start a task with the options that were accepted before."""
        response = self.init(session, self.options or ())
        if not response.success:
            problem = (
                f"refused options that it had accepted before: {response.error or 'no reason'}"
            )
            raise UdfFaultError(problem)

    def data(self, count: int) -> list[DataMessage]:
        """Return `count` ordinary points, in batches of several groups if the UDF wants batches."""
        options = self.options or ()
        if self.known().wants == STREAM:
            return list(points(count, options))
        return list(batches(HOSTS, count // HOSTS, options))

    def snapshots(self, count: int) -> tuple[bytes, bytes]:
        """Return two snapshots: one from before any data and one from after `count` points."""
        if self._snapshots is None:
            with self.started() as session:
                unused = drain(session.snapshot())
                drain(session.exchange(self.data(count), f"a keepalive behind {count} points"))
                self._snapshots = unused, drain(session.snapshot())
        return self._snapshots

    # --- what is known ---

    def known(self) -> InfoResponse:
        """Return the UDF's answer to Info.

        Raises:
            NotApplicableError: it did not answer.
        """
        if self.info is None:
            raise NotApplicableError("it did not answer Info; see info")
        return self.info

    def needs_task(self) -> None:
        """Raise NotApplicableError for a UDF that accepted no options."""
        if self.options is None:
            raise NotApplicableError("no task can be started on it; see init")

    def needs(self, edge: EdgeType) -> None:
        """Raise NotApplicableError for a UDF that wants the other edge."""
        wants = self.known().wants
        if wants != edge:
            raise NotApplicableError(f"it wants a {edge_name(wants)}")

    def candidates(self) -> list[Sequence[Option]]:
        """Return the options to try at Init, best first."""
        if self.given_options is not None:
            return [self.given_options]
        info = self.known()
        return [*generated(info, FIELD), ()] if info.options else [()]
