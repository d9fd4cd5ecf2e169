"""Does not take the end of its input for the end."""

from __future__ import annotations

import time

from tests.peers.plain_udf import PlainUdf


class StaysAtTheEnd(PlainUdf):
    """Does not take the end of its input for the end."""

    def end(self) -> None:
        super().end()
        time.sleep(60)


if __name__ == "__main__":
    StaysAtTheEnd().run()
