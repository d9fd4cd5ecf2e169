"""`make bench-kapacitor`: measure mirror UDFs behind a real kapacitord.

KAPACITORD=/usr/bin/kapacitord KAPACITOR=/usr/bin/kapacitor python -m benchmarks.kapacitor
python -m benchmarks.kapacitor --against go=/tmp/go-mirror.sock

Points are written to kapacitord over HTTP as fast as it takes them. A stream task gives them to
one UDF at a time. All tasks take turns in each round, so that noise of the machine affects all
of them.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from benchmarks import contenders, report
from benchmarks.suite import CPU, Result
from tests.kapacitor.daemon import Binaries, KapacitorDaemon, find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

_CASE: Final = "behind kapacitord"
_UDF_CPU: Final = f"{_CASE}, CPU of the UDF"
#: The task without a UDF: the most that kapacitord itself can do.
_NONE: Final = "no UDF"
#: One write holds as many points as telegraf's does at most, as a rule.
_POINTS_PER_WRITE: Final = 5_000
_EPOCH_NS: Final = 1_700_000_000_000_000_000
_HOSTS: Final = 10
#: How often kapacitord is asked how many points have come back.
_POLL_S: Final = 0.05


@dataclass(frozen=True)
class _Udf:
    """A UDF to measure: its name, and the process that serves it; None for the task without."""

    name: str
    pid: int | None = None

    @property
    def function(self) -> str:
        """The name of the function in kapacitord's configuration."""
        return "udf" + "".join(letter for letter in self.name if letter.isalnum())

    @property
    def script(self) -> str:
        """A task that counts what comes back."""
        call = "" if self.pid is None else f"    @{self.function}()\n"
        return f"stream\n    |from()\n        .measurement('cpu')\n{call}    |where(lambda: TRUE)\n"

    @property
    def node(self) -> str:
        """The node that takes what comes back."""
        return "where2" if self.pid is None else "where3"


def _lines(first: int, count: int) -> list[str]:
    """Return points of telegraf's `cpu` in line protocol: 2 tags, 10 fields, about 360 bytes."""
    names = ("user", "system", "idle", "nice", "iowait", "irq", "softirq", "steal", "guest", "sum")
    found = []
    for number in range(first, first + count):
        fields = ",".join(
            f"usage_{name}={(number * 7919 + place * 104729) % 100_000 / 1000}"
            for place, name in enumerate(names)
        )
        host = f"server{number % _HOSTS:02}"
        found.append(f"cpu,cpu=cpu-total,host={host} {fields} {_EPOCH_NS + number * 1_000_000}")
    return found


class _Bench:
    """Runs the task of each UDF in turn, and collects the results."""

    def __init__(self, daemon: KapacitorDaemon, udfs: list[_Udf], *, seconds: float) -> None:
        self._daemon = daemon
        self._udfs = udfs
        self._seconds = seconds
        self._lines = _lines(0, _POINTS_PER_WRITE)
        self._writes = dict.fromkeys(udfs, 2)
        self._throughput = [Result(_CASE, each.name, "points/s") for each in udfs]
        self._udf_cpu = [Result(_UDF_CPU, each.name, CPU) for each in udfs]
        self._cpu = [Result(f"{_CASE}, CPU of kapacitord", each.name, CPU) for each in udfs]
        for each in udfs:
            daemon.define(each.function, each.script)

    @property
    def results(self) -> list[Result]:
        """What was measured so far."""
        measured = [each for each in self._udf_cpu if each.values]
        return [*self._throughput, *measured, *self._cpu]

    def round(self) -> None:
        """Measure each UDF once."""
        for place, udf in enumerate(self._udfs):
            # A run sets the length of the next one.
            points = self._writes[udf] * _POINTS_PER_WRITE
            pids = [self._daemon.pid, *([] if udf.pid is None else [udf.pid])]
            with self._enabled(udf):
                before = [contenders.cpu_s(pid) for pid in pids]
                elapsed_s = self._write(udf, self._writes[udf])
                used = [contenders.cpu_s(pid) - old for pid, old in zip(pids, before, strict=True)]
            self._throughput[place].values.append(points / elapsed_s)
            self._cpu[place].values.append(used[0] / points * 1e6)
            if udf.pid is not None:
                self._udf_cpu[place].values.append(used[1] / points * 1e6)
            per_write_s = elapsed_s / self._writes[udf]
            self._writes[udf] = max(2, round(self._seconds / per_write_s))

    def forget(self) -> None:
        """Forget the rounds so far, which only found out how much to write."""
        for result in (*self._throughput, *self._udf_cpu, *self._cpu):
            result.values.clear()

    @contextlib.contextmanager
    def _enabled(self, udf: _Udf) -> Iterator[None]:
        self._daemon.enable(udf.function)
        try:
            yield
        finally:
            # It counts from 0 when it is enabled again.
            self._daemon.disable(udf.function)

    def _write(self, udf: _Udf, writes: int) -> float:
        """Write so many times; return after how many seconds all points have come back."""
        began_s = time.perf_counter()
        for _ in range(writes):
            self._daemon.write(*self._lines)
        expected = writes * _POINTS_PER_WRITE
        while self._daemon.taken(udf.function, udf.node) < expected:
            if not self._daemon.alive:
                message = "kapacitord has ended"
                raise RuntimeError(message)
            time.sleep(_POLL_S)
        return time.perf_counter() - began_s


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Rounds, each with all UDFs.")
@click.option("--seconds", default=4.0, show_default=True, help="Approximate length of a run.")
@click.option(
    "--against",
    multiple=True,
    metavar="NAME=PATH",
    help="Also measure the mirror UDF at this socket.",
)
@click.option(
    "--kapudf",
    "variants",
    multiple=True,
    metavar="NAME=OPTIONS",
    help="Also measure kapudf with these options of `kapudf serve`.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("build/bench"),
    show_default=True,
    help="Folder for kapacitor.json and kapacitor.svg.",
)
def main(
    *, rounds: int, seconds: float, against: tuple[str, ...], variants: tuple[str, ...], out: Path
) -> None:
    """Measure mirror UDFs behind the kapacitord that KAPACITORD names or that is on PATH."""
    kapacitord, kapacitor = find_program("kapacitord"), find_program("kapacitor")
    if kapacitord is None or kapacitor is None:
        problem = "there is no kapacitord: name both programs with KAPACITORD and KAPACITOR"
        raise click.ClickException(problem)
    with contextlib.ExitStack() as processes, tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        paths = {"kapudf": processes.enter_context(contenders.kapudf(folder, "mirror"))}
        for variant, _, flags in (each.partition("=") for each in variants):
            started = contenders.kapudf(folder, "mirror", *flags.split())
            paths[variant] = processes.enter_context(started)
        paths |= {other: path for other, _, path in (each.partition("=") for each in against)}
        served = [_Udf(each, contenders.listener(path)) for each, path in paths.items()]
        section = "[udf.functions]\n" + "".join(
            f'[udf.functions.{each.function}]\n  socket = "{paths[each.name]}"\n  timeout = "10s"\n'
            for each in served
        )
        binaries = Binaries(kapacitord, kapacitor)
        daemon = processes.enter_context(
            KapacitorDaemon(binaries, folder, section, snapshot_interval="1m")
        )
        bench = _Bench(daemon, [_Udf(_NONE), *served], seconds=seconds)
        for number in range(-1, rounds):
            click.echo(f"round {number + 1} of {rounds} ...", err=True)
            bench.round()
            if number == -1:
                bench.forget()
        results = bench.results
    out.mkdir(parents=True, exist_ok=True)
    report.write_json(out / "kapacitor.json", results, ())
    used = [each for each in results if each.case == _UDF_CPU]
    report.write_bars(
        out / "kapacitor.svg",
        "Processor time of the UDF behind kapacitord, µs per point",
        [(each.contender, each.median) for each in used],
        grey=[each.contender != "kapudf" for each in used],
    )
    for line in report.table(results):
        click.echo(line)
    click.echo(f"\nwritten: {out / 'kapacitor.json'}, {out / 'kapacitor.svg'}")


if __name__ == "__main__":
    sys.exit(main())
