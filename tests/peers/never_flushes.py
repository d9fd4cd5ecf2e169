"""Leaves what it sends in a buffer, until a keepalive or a snapshot flushes it."""

from __future__ import annotations

from tests.peers.plain_udf import PlainUdf


class NeverFlushes(PlainUdf):
    """Leaves what it sends in a buffer, until a keepalive or a snapshot flushes it."""

    def rest(self) -> None:
        if self.count == 0:
            self.flush()


if __name__ == "__main__":
    NeverFlushes().run()
