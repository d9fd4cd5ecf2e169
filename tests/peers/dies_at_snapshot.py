"""Has no snapshot, and exits when it is asked for one."""

from __future__ import annotations

import sys

from tests.peers.plain_udf import PlainUdf


class DiesAtSnapshot(PlainUdf):
    """Has no snapshot, and exits when it is asked for one."""

    def snapshot(self) -> None:
        print("snapshots are not implemented", file=sys.stderr)  # noqa: T201 - as a script does
        sys.exit(3)


if __name__ == "__main__":
    DiesAtSnapshot().run()
