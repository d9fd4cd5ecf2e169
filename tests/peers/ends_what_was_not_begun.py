"""Sends the end of each batch alone."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch, Point
from tests.peers.plain_udf import PlainUdf


class EndsWhatWasNotBegun(PlainUdf):
    """Sends the end of each batch alone."""

    edge = BATCH

    def begin(self, begin: BeginBatch) -> None:
        """Forget it."""

    def point(self, point: Point) -> None:
        """Forget it."""


if __name__ == "__main__":
    EndsWhatWasNotBegun().run()
