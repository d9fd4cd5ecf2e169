"""Has a main part with options, signal handlers, prints, and code after the end."""

import argparse
import signal
import sys

from habits import Base, run

parser = argparse.ArgumentParser()
parser.add_argument("--tag", required=True)
parser.add_argument("--record")


def stop(signum, frame):
    sys.exit(0)


class Tagging(Base):
    def point(self, point):
        print("a point", point.time)
        point.tags["tag"] = options.tag
        super().point(point)


if __name__ == "__main__":
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sys.stdin.read() if sys.stdin.closed else None
    run(Tagging)
    if options.record:
        with open(options.record, "a") as record:
            record.write("after the end\n")
    sys.exit(0)
