"""Counters of connections: of one, and of all that a function has had."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import msgspec

from kapudf_cli.transport.meter import BOUNDS_NS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kapudf_cli.supervisor.connection import SupervisedConnection


@dataclass
class Counters:
    """What one or more connections have done. No counter ever decreases.

    Attributes:
        points_in, points_out, batches_in, batches_out, bytes_in, bytes_out, failures, restarts,
            dropped_points: see `ConnectionStats`.
        takeovers: how often another worker took a connection over after a death.
        takeover_pause_s: how long no worker handled its input meanwhile, in seconds.
        handovers: how often a connection was handed over, by a reload or to share the work.
        handover_pause_s: how long it was paused meanwhile, in seconds.
        handler_s: how long handlers were busy, in seconds.
        kapacitor_wait_s: how long output has waited until Kapacitor read, in seconds.
        handler_buckets: how many points took how long; see `Meter.buckets`.
    """

    points_in: int = 0
    points_out: int = 0
    batches_in: int = 0
    batches_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    failures: int = 0
    restarts: int = 0
    dropped_points: int = 0
    takeovers: int = 0
    takeover_pause_s: float = 0.0
    handovers: int = 0
    handover_pause_s: float = 0.0
    handler_s: float = 0.0
    kapacitor_wait_s: float = 0.0
    handler_buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_NS) + 1))

    @classmethod
    def of(cls, connection: SupervisedConnection) -> Self:
        """Return the counters of a connection."""
        stats, meter = connection.header.record.stats, connection.meter
        takeovers, takeover_pause_s = meter.takeovers
        handovers, handover_pause_s = meter.handovers
        return cls(
            points_in=stats.points_in,
            points_out=stats.points_out,
            batches_in=stats.batches_in,
            batches_out=stats.batches_out,
            bytes_in=connection.header.received,
            bytes_out=stats.bytes_out,
            failures=stats.failures,
            restarts=stats.restarts,
            dropped_points=stats.dropped_points,
            takeovers=takeovers,
            takeover_pause_s=takeover_pause_s,
            handovers=handovers,
            handover_pause_s=handover_pause_s,
            handler_s=meter.handler_s,
            kapacitor_wait_s=meter.wait_s,
            handler_buckets=meter.buckets,
        )

    def add(self, other: Counters) -> None:
        """Add the counters of other connections."""
        for name, more in vars(other).items():
            own = getattr(self, name)
            is_list = isinstance(more, list)
            total = [sum(each) for each in zip(own, more, strict=True)] if is_list else own + more
            setattr(self, name, total)

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as a JSON object."""
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in dataclasses.asdict(self).items()
        }


@dataclass
class History:
    """What a function counts apart from the connections that it has.

    The next supervisor goes on with it; see `encode` and `decode`.

    Attributes:
        ended: the counters of its connections that have ended.
        ends: how many of them ended for which reason; see `END_REASONS`.
        worker_starts: how many workers were started.
        worker_deaths: how many workers have died unexpectedly, by cause; see `WorkerDeath.cause`.
        counted: the numbers of connections that are in `ended` already, and may still be in the
            store: so the next supervisor does not count them again.
    """

    ended: Counters = field(default_factory=Counters)
    ends: dict[str, int] = field(default_factory=dict)
    worker_starts: int = 0
    worker_deaths: dict[str, int] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)

    def add_ended(self, connection: SupervisedConnection) -> None:
        """Add a connection that has ended, unless it was added before."""
        if connection.number in self.counted:
            return
        self.counted.add(connection.number)
        self.ended.add(Counters.of(connection))
        reason = connection.meter.end or "lost"
        self.ends[reason] = self.ends.get(reason, 0) + 1

    def add_death(self, cause: str) -> None:
        """Add a worker that has died unexpectedly."""
        self.worker_deaths[cause] = self.worker_deaths.get(cause, 0) + 1


def encode(histories: Mapping[str, History]) -> bytes:
    """Return the histories of functions, by name, for the next supervisor."""
    return msgspec.json.encode(histories)


def decode(data: bytes) -> dict[str, History]:
    """Return the histories that an earlier supervisor has left; none if they cannot be read."""
    try:
        return msgspec.json.decode(data, type=dict[str, History])
    except msgspec.DecodeError:
        return {}
