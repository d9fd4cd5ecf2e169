"""Shows kapudf at work: starts `kapudf serve`, plays real Kapacitor traffic, prints what came back.

The traffic is what a kapacitord sent to a UDF, as it is kept for the tests;
only the options are the demo's own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from kapudf_cli import DOUBLE, STRING, InitRequest, Option, OptionValue, Point
from kapudf_cli.errors import ProbeError
from kapudf_cli.kapacitor import KapacitorSide, probe
from kapudf_cli.tickscript import signatures
from kapudf_cli.wire.codec import REQUESTS
from kapudf_cli.wire.framing import FrameReader, frame_body

CAPTURE = Path(__file__).parent.parent / "tests" / "captures" / "stream-01.bin"
PATIENCE_S = 20.0
SHOWN = 4


def main() -> int:
    """Run the demo; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="kapudf-demo-") as folder:
        path = str(Path(folder) / "mirror.sock")
        command = ["kapudf", "serve", "--socket", path, "--handler", "mirror"]
        print("$", *command)
        server = subprocess.Popen([sys.executable, "-m", "kapudf_cli", *command[1:]])
        try:
            wait_until_served(path, server)
            print(f"\nThe UDF says it takes: {' '.join(signatures(probe(path, timeout_s=5).info))}")
            print("Playing a task that calls  @mirror().field('mycustom_field', 42.0)\n")
            sent, received = play(path, CAPTURE.read_bytes())
            report(sent, received)
        finally:
            server.terminate()
            status = server.wait(PATIENCE_S)
    print(f"\nkapudf stopped with exit status {status}.")
    return 0 if status == 0 and len(received) == len(sent) else 1


def wait_until_served(path: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    listening = threading.Event()
    for _ in range(200):
        try:
            probe(path, timeout_s=PATIENCE_S)
        except ProbeError:
            if server.poll() is not None:
                raise
            listening.wait(0.05)
        else:
            return
    message = f"nothing serves {path}"
    raise SystemExit(message)


def play(path: str, capture: bytes) -> tuple[list[Point], list[Point]]:
    """Play a capture as Kapacitor would; return the points sent and the points that came back."""
    requests = [REQUESTS.decode(frame) for frame in FrameReader(frame_body).feed(capture)]
    values = [
        OptionValue(type=STRING, stringValue="mycustom_field"),
        OptionValue(type=DOUBLE, doubleValue=42.0),
    ]
    init = InitRequest(
        taskID="demo", nodeID="mirror2", options=[Option(name="field", values=values)]
    )
    rest = [request for request in requests if not isinstance(request, InitRequest)]
    with KapacitorSide.connect(path, timeout_s=PATIENCE_S) as side:
        responses = list(side.play([init, *rest]))
    return (
        [request for request in requests if isinstance(request, Point)],
        [response for response in responses if isinstance(response, Point)],
    )


def report(sent: list[Point], received: list[Point]) -> None:
    """Print some points as they went and as they came back."""
    for before, after in list(zip(sent, received, strict=False))[:SHOWN]:
        print(f"  sent      {line(before)}")
        print(f"  came back {line(after)}")
    print(f"  ... {len(sent)} points sent, {len(received)} came back.\n")


def line(point: Point) -> str:
    """Return a point in a form close to line protocol."""
    tags = "".join(f",{name}={value}" for name, value in sorted(point.tags.items()))
    fields = {
        **{name: f"{value:.4g}" for name, value in point.fieldsDouble.items()},
        **{name: f"{value}i" for name, value in point.fieldsInt.items()},
        **{name: f'"{value}"' for name, value in point.fieldsString.items()},
        **{name: str(value).lower() for name, value in point.fieldsBool.items()},
    }
    return f"{point.name}{tags} " + ",".join(f"{name}={fields[name]}" for name in sorted(fields))


if __name__ == "__main__":
    sys.exit(main())
