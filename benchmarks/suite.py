"""The cases, each run for every contender in turn, in several rounds."""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks import contenders, traffic
from benchmarks.traffic import Connection, bulk, ping_pong
from kapudf_cli.protocol.udf_pb2 import DOUBLE, INT, STRING, Option, OptionValue
from kapudf_cli.tools.load.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass
class Result:
    """The results of one contender in one case, one value per round."""

    case: str
    contender: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Contender:
    """A UDF to measure: its name, its socket or command, and the data to send."""

    name: str
    path: str
    work: Work
    echo: bool = False
    is_command: bool = False

    def connect(self) -> Connection:
        """Open a connection that is ready for data; start the command, if it is one."""
        return Connection(self.path, self.work, echo=self.echo, is_command=self.is_command)


def string(value: str) -> OptionValue:
    """Return a string as an option's value."""
    return OptionValue(type=STRING, stringValue=value)


FIELD = Option(
    name="field", values=[string("mycustom_field"), OptionValue(type=DOUBLE, doubleValue=42.0)]
)
AVERAGE = [
    Option(name="field", values=[string("usage_idle")]),
    Option(name="size", values=[OptionValue(type=INT, intValue=10)]),
]
OUTLIERS = [Option(name="field", values=[string("usage_idle")])]

CPU = "CPU s per 1 M points"

_POINTS = traffic.telegraf_points(1000)
STREAM = Work(_POINTS)
CAPTURED = Work(traffic.captured_points())
BATCHES = Work(traffic.batch(_POINTS))


def _each(
    chosen: list[Contender], measure: Callable[[Contender], float]
) -> list[tuple[str, Callable[[], float]]]:
    """Return the name and the measurement of each contender, for `_rounds_of`."""
    return [(each.name, functools.partial(measure, each)) for each in chosen]


class Suite:
    """Runs the cases and collects the results."""

    def __init__(self, *, rounds: int, seconds: float, say: Callable[[str], None]) -> None:
        """Run each case `rounds` times, for about `seconds` each."""
        self.results: list[Result] = []
        self._rounds = rounds
        self._seconds = seconds
        self._say = say

    def _rounds_of(
        self, case: str, unit: str, measured: list[tuple[str, Callable[[], float]]]
    ) -> None:
        """Run contenders in turn, so that noise of the machine affects all of them."""
        results = [Result(case, name, unit) for name, _ in measured]
        self.results += results
        for number in range(self._rounds):
            self._say(f"{case}: round {number + 1} of {self._rounds}")
            for result, (_, measure) in zip(results, measured, strict=True):
                result.values.append(measure())

    def throughput(self, case: str, chosen: list[Contender], connections: int = 1) -> None:
        """Measure points per second over all connections, at full speed.

        Also measure CPU time, which noise affects less, and the CPU share of the load generator.
        """
        used = {each.name: Result(f"{case}, CPU", each.name, CPU) for each in chosen}
        driving = {
            each.name: Result(f"{case}, load generator", each.name, "processors") for each in chosen
        }

        def measure(contender: Contender) -> float:
            sides = [contender.connect() for _ in range(connections)]
            try:
                elapsed = bulk(sides, 1)
                blocks = max(1, round(self._seconds / elapsed))
                points = contender.work.points * blocks * connections
                pid = contenders.pid_of(sides[0])
                before, own_before = contenders.cpu_s(pid), time.process_time()
                elapsed = bulk(sides, blocks)
                own = (time.process_time() - own_before) / elapsed
                driving[contender.name].values.append(own)
                used[contender.name].values.append((contenders.cpu_s(pid) - before) / points * 1e6)
            finally:
                for side in sides:
                    side.close()
            return points / elapsed

        self._rounds_of(case, "points/s", _each(chosen, measure))
        self.results += (*used.values(), *driving.values())

    def latency(self, case: str, chosen: list[Contender], points_per_s: int = 0) -> None:
        """Measure microseconds from when a point was sent, or due, until it is back."""
        samples: dict[str, list[list[float]]] = {contender.name: [] for contender in chosen}

        def measure(contender: Contender) -> float:
            side = contender.connect()
            interval_s = 1 / points_per_s if points_per_s else 0.0
            count = int(self._seconds * points_per_s) if points_per_s else 4000
            try:
                times = ping_pong(side, count, interval_s)
            finally:
                side.close()
            times.sort()
            samples[contender.name].append(times)
            return times[len(times) // 2] * 1e6

        self._rounds_of(f"{case} p50", "µs", _each(chosen, measure))
        for name, share in (("p99", 0.99), ("p99.9", 0.999)):
            for contender in chosen:
                values = [times[int(len(times) * share)] * 1e6 for times in samples[contender.name]]
                self.results.append(Result(f"{case} {name}", contender.name, "µs", values))

    def cpu(self, case: str, chosen: list[Contender], points_per_s: int) -> None:
        """Measure the UDF's CPU seconds per million points, at a rate, sent as Kapacitor sends."""

        def measure(contender: Contender) -> float:
            side = contender.connect()
            try:
                pid = contenders.pid_of(side)
                before = contenders.cpu_s(pid)
                sent = traffic.at_a_rate(side, points_per_s, self._seconds * 2)
                return (contenders.cpu_s(pid) - before) / sent * 1e6
            finally:
                side.close()

        self._rounds_of(case, CPU, _each(chosen, measure))

    def start_up(self, folder: Path) -> None:
        """Measure seconds until a probe is answered, and until help is shown."""
        self._rounds_of(
            "start until probe answers", "s", [("kapudf", lambda: contenders.start_up_s(folder))]
        )
        self._rounds_of("kapudf --help", "s", [("kapudf", contenders.help_s)])

    def idle_connections(self, chosen: list[Contender], count: int) -> None:
        """Measure kilobytes of resident memory per idle connection after Init."""

        def measure(contender: Contender) -> float:
            first = contender.connect()
            pid = contenders.pid_of(first)
            before = contenders.rss_mb(pid)
            sides = [contender.connect() for _ in range(count)]
            grown = contenders.rss_mb(pid) - before
            for side in (first, *sides):
                side.close()
            return grown * 1000 / count

        self._rounds_of("idle connection", "KB", _each(chosen, measure))

    def memory(self, contender: Contender, millions: int) -> list[tuple[float, float]]:
        """Return pairs of million points sent and MB resident, over one connection."""
        side = contender.connect()
        pid = contenders.pid_of(side)
        readings = []
        blocks = 1_000_000 // contender.work.points
        for million in range(1, millions + 1):
            self._say(f"memory: {million} of {millions} million points")
            bulk([side], blocks)
            readings.append(
                (million * blocks * contender.work.points / 1e6, contenders.rss_mb(pid))
            )
        side.close()
        result = Result("memory growth", contender.name, "MB")
        result.values = [readings[-1][1] - readings[0][1]]
        self.results.append(result)
        return readings
