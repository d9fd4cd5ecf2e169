"""Takes the end of its input for an error."""

from __future__ import annotations

import sys

from tests.peers.plain_udf import PlainUdf


class ExitsWith1(PlainUdf):
    """Takes the end of its input for an error."""

    def end(self) -> None:
        super().end()
        sys.exit("unexpected end of file")


if __name__ == "__main__":
    ExitsWith1().run()
