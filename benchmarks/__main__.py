"""`make bench`: measure kapudf, a raw echo and a plain agent in one run.

python -m benchmarks --quick
python -m benchmarks --against go=/tmp/go-mirror.sock --against-average go=/tmp/go-moving-avg
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import tempfile
from pathlib import Path

import click

from benchmarks import contenders, report
from benchmarks.suite import AVERAGE, BATCHES, CAPTURED, FIELD, OUTLIERS, STREAM, Contender, Suite
from kapudf_cli.tools.load.work import Work

_LONG_MILLIONS = 20


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds of each case.")
@click.option("--seconds", default=1.0, show_default=True, help="Approximate length of a round.")
@click.option("--quick", is_flag=True, help="Two short rounds, without the long memory run.")
@click.option(
    "--against",
    multiple=True,
    metavar="NAME=PATH",
    help="Also measure the mirror UDF at this socket.",
)
@click.option(
    "--against-average",
    multiple=True,
    metavar="NAME=COMMAND",
    help="Also measure this process UDF, which averages with the options of moving-average.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True,
    help="Folder for results.json and throughput.svg.",
)  # fmt: skip
def main(
    *,
    rounds: int,
    seconds: float,
    quick: bool,
    against: tuple[str, ...],
    against_average: tuple[str, ...],
    out: Path,
) -> None:
    """Measure kapudf, the yardsticks, and any other mirror UDF, in one run."""
    if quick:
        rounds, seconds = 2, 0.3
    suite = Suite(
        rounds=rounds, seconds=seconds, say=lambda text: click.echo(f"{text} ...", err=True)
    )
    memory: list[tuple[float, float]] = []
    with contextlib.ExitStack() as processes, tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        start = processes.enter_context
        mirror = start(contenders.kapudf(folder, "mirror"))
        eager = start(contenders.kapudf(folder, "mirror", "--linger-ms", "0"))
        alone = start(contenders.kapudf(folder, "mirror", "--workers", "0"))
        average = start(contenders.kapudf(folder, "moving-average"))
        averages = start(contenders.kapudf(folder, "moving-average", "--workers", "2"))
        outliers = start(contenders.kapudf(folder, "outliers"))
        echo = Contender("echo", start(contenders.yardstick(folder, "echo")), STREAM, echo=True)
        plain_path = start(contenders.yardstick(folder, "plain_agent"))
        plain = Contender("plain", plain_path, STREAM)
        kapudf = Contender("kapudf", mirror, STREAM)
        one_process = Contender("kapudf, one process", alone, STREAM)
        unmoderated = Contender("kapudf, no linger", eager, STREAM)
        others = [Contender(n, path, STREAM) for n, _, path in (a.partition("=") for a in against)]

        suite.throughput("mirror", [echo, plain, kapudf, one_process, *others])
        suite.throughput(
            "mirror, captured points",
            [Contender("plain", plain_path, CAPTURED), Contender("kapudf", mirror, CAPTURED)],
        )
        suite.throughput(
            "mirror, field option", [Contender("kapudf", mirror, Work(STREAM.messages, [FIELD]))]
        )
        averaging = Work(STREAM.messages, AVERAGE)
        suite.throughput("moving-average", [Contender("kapudf", average, averaging)])
        commands = {"kapudf": shlex.join(contenders.exec_command("moving-average"))}
        commands |= {
            name: command for name, _, command in (a.partition("=") for a in against_average)
        }
        suite.throughput(
            "moving-average, as processes",
            [
                Contender(name, command, averaging, is_command=True)
                for name, command in commands.items()
            ],
        )
        suite.throughput(
            "moving-average, 8 connections",
            [
                Contender("kapudf", average, averaging),
                Contender("kapudf, 2 workers", averages, averaging),
            ],
            8,
        )
        suite.throughput(
            "outliers, batches of 1,000",
            [
                Contender("plain mirror", plain_path, BATCHES),
                Contender("kapudf", outliers, Work(BATCHES.messages, OUTLIERS)),
            ],
        )
        for connections in (2, 8, 64):
            suite.throughput(
                f"mirror, {connections} connections", [plain, kapudf, *others], connections
            )
        suite.latency("ping-pong at rest", [echo, plain, kapudf, one_process, unmoderated, *others])
        suite.latency(
            "ping-pong at 1,000 points/s", [echo, plain, kapudf, unmoderated, *others], 1000
        )
        suite.cpu("CPU at 20,000 points/s", [plain, kapudf, unmoderated, *others], 20_000)
        suite.start_up(folder)
        suite.idle_connections([plain, kapudf], 50)
        if not quick:
            memory = suite.memory(kapudf, _LONG_MILLIONS)
    out.mkdir(parents=True, exist_ok=True)
    report.write_json(out / "results.json", suite.results, memory)
    report.write_throughput(out / "throughput.svg", suite.results)
    for line in (*report.table(suite.results), "", *report.ratios(suite.results)):
        click.echo(line)
    click.echo(f"\nwritten: {out / 'results.json'}, {out / 'throughput.svg'}")


if __name__ == "__main__":
    sys.exit(main())
