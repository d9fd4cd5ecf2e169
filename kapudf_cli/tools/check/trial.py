"""What every check of a run works with: the UDF, what is known of it, and the time it is given."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kapudf_cli.client import SocketTarget
from kapudf_cli.client.driver import ask_info
from kapudf_cli.client.errors import ProbeError, TargetError
from kapudf_cli.protocol.udf_pb2 import BATCH, STREAM
from kapudf_cli.tickscript.snippets import edge_name
from kapudf_cli.tools.check.conversation import Conversation
from kapudf_cli.tools.check.data import HOSTS, batches, points
from kapudf_cli.tools.check.errors import NotApplicableError, RuleBrokenError
from kapudf_cli.tools.check.options import generated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.client import Target
    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType, InfoResponse, Option


@dataclass
class Trial:
    """One run over one UDF.

    Attributes:
        target: the UDF.
        timeout_s: how long it may take for each answer, as in kapacitor.conf.
        may_cut: whether to run checks that end connections the UDF still writes to.
        given_options: what the user says to call at Init, None to generate it.
        info: what the UDF said that it is; None until the first check has asked.
        options: what is called at Init; None until a check has found what is taken.
    """

    target: Target
    timeout_s: float
    given_options: Sequence[Option] | None = None
    may_cut: bool = True
    info: InfoResponse | None = None
    options: Sequence[Option] | None = field(default=None)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Conversation]:
        """Open a connection."""
        provides = None if self.info is None else self.info.provides
        with self.target.open(timeout_s=self.timeout_s) as connection:
            conversation = Conversation(
                connection,
                timeout_s=self.timeout_s,
                provides=provides,
                sees_end=not isinstance(self.target, SocketTarget),
            )
            yield conversation
            conversation.settle()
            # Only the checks that are about it close a connection at once.
            conversation.part()

    @contextlib.contextmanager
    def started(self) -> Iterator[Conversation]:
        """Open a connection and start a task on it.

        Raises:
            NotApplicableError: an earlier check found that this cannot be done.
        """
        self.needs_task()
        with self.connected() as conversation:
            self.start(conversation)
            yield conversation

    def is_gone(self) -> bool:
        """Return whether what served the socket before serves it no longer."""
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

    def start(self, conversation: Conversation) -> None:
        """Start a task on a connection, with the options that were taken before."""
        response = conversation.init(self.options or ())
        if not response.success:
            problem = f"refused options that it had taken before: {response.error or 'no reason'}"
            raise RuleBrokenError(problem)

    def data(self, count: int) -> list[DataMessage]:
        """Return so many ordinary points, in batches of several groups if it wants batches."""
        options = self.options or ()
        if self.known().wants == STREAM:
            return list(points(count, options))
        return list(batches(HOSTS, count // HOSTS, options))

    def known(self) -> InfoResponse:
        """Return what the UDF is.

        Raises:
            NotApplicableError: it did not say.
        """
        if self.info is None:
            raise NotApplicableError("it did not say what it is; see info")
        return self.info

    def needs_task(self) -> None:
        """Raise NotApplicableError for a UDF that took no options."""
        if self.options is None:
            raise NotApplicableError("no task can be started on it; see init")

    def needs(self, edge: EdgeType) -> None:
        """Raise NotApplicableError for a UDF that wants the other edge."""
        wants = self.known().wants
        if wants != edge:
            raise NotApplicableError(f"it wants a {edge_name(wants)}")

    def needs_stream(self) -> None:
        """Raise NotApplicableError for a UDF that wants batches."""
        self.needs(STREAM)

    def needs_batches(self) -> None:
        """Raise NotApplicableError for a UDF that wants points."""
        self.needs(BATCH)

    def candidates(self) -> list[Sequence[Option]]:
        """Return what to try at Init, best first."""
        if self.given_options is not None:
            return [self.given_options]
        info = self.known()
        return [*generated(info), ()] if info.options else [()]
