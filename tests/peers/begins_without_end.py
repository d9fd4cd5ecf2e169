"""Begins a batch for each point, and ends one."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch, Point
from tests.peers.plain_udf import PlainUdf


class BeginsWithoutEnd(PlainUdf):
    """Begins a batch for each point, and ends one."""

    edge = BATCH

    def point(self, point: Point) -> None:
        self.write(BeginBatch(name="cpu"))
        self.write(point)


if __name__ == "__main__":
    BeginsWithoutEnd().run()
