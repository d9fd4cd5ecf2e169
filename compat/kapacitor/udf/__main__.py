"""Run a script that imports the agent without its package, as `from agent import Agent`.

    python -u -m kapacitor.udf script.py [arguments]

Other scripts do not need this: `python -u script.py` is enough.
"""

import runpy
import sys
from pathlib import Path

from kapacitor.udf import agent, udf_pb2
from kapudf_cli.influx_scripts import environment, recognition


def main() -> None:
    """Run the script that the first argument names."""
    if len(sys.argv) == 1:
        sys.exit("usage: python -u -m kapacitor.udf script.py [arguments]")
    del sys.argv[0]
    path = Path(sys.argv[0])
    sys.path[0] = str(path.resolve().parent)
    environment.provide(recognition.packages_of(path), agent, udf_pb2)
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
