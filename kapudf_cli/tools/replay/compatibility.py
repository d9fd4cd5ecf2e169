"""Whether a UDF, a recording and what is asked for go together, found out before Init."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.client.driver import ask_info
from kapudf_cli.client.errors import ProbeError
from kapudf_cli.protocol.udf_pb2 import BATCH, STREAM
from kapudf_cli.tickscript.snippets import edge_name
from kapudf_cli.tools.recordings import Kind
from kapudf_cli.tools.replay.errors import MisfitError

if TYPE_CHECKING:
    from kapudf_cli.client import Target
    from kapudf_cli.protocol.udf_pb2 import EdgeType, InfoResponse
    from kapudf_cli.tools.replay.feed import Feed


def info_of(target: Target, *, timeout_s: float) -> InfoResponse:
    """Ask a UDF what it is, on a connection of its own, as Kapacitor does at its start.

    Raises:
        TargetError: it cannot be connected to or started.
        ProbeError: it did not answer as it should.
    """
    with target.open(timeout_s=timeout_s) as connection:
        try:
            return ask_info(connection.side)
        except TimeoutError as error:
            problem = f"{target.name}: no answer to Info within {timeout_s:g} s; is the UDF stuck?"
            raise ProbeError(problem) from error
        except (ProbeError, OSError) as error:
            ending = connection.ending(0.5)
            how = "" if ending is None or ending.clean else f" ({ending.text})"
            if ending is not None and ending.text.removeprefix("ended: ") in str(error):
                how = ""  # A handler's exception is what the UDF has answered with.
            last = f": {ending.cause}" if ending and how and ending.cause else ""
            raise ProbeError(f"{target.name}: {error}{how}{last}") from error


def check_fit(wants: EdgeType, kind: Kind, feed: Feed) -> None:
    """Check that a UDF which wants this edge can be sent such a recording.

    Raises:
        MisfitError: it cannot; the message says what to change.
    """
    if wants not in {STREAM, BATCH}:
        raise MisfitError(f"the UDF wants an {edge_name(wants)}; it must be STREAM or BATCH")
    if kind is Kind.BATCH:
        grouping = feed.grouping
        if feed.windows is not None or grouping.tags != () or grouping.by_name:
            raise MisfitError(f"this is {kind.value}, which has its groups and is cut already")
        if feed.selection.database is not None or feed.selection.retention_policy is not None:
            raise MisfitError(f"this is {kind.value}, which does not name databases")
        if wants == STREAM:
            raise MisfitError(f"the UDF wants a stream, and this is {kind.value}")
    elif wants == BATCH and feed.windows is None:
        raise MisfitError(
            f"the UDF wants batches, and this is {kind.value}; cut it with --window 10s"
        )
    elif wants == STREAM and feed.windows is not None:
        raise MisfitError("the UDF wants a stream; leave --window out")
