"""Provides batches, and sends points outside of any."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch
from tests.peers.plain_udf import PlainUdf


class PointsWithoutBatch(PlainUdf):
    """Provides batches, and sends points outside of any."""

    edge = BATCH

    def begin(self, begin: BeginBatch) -> None:
        """Forget it."""


if __name__ == "__main__":
    PointsWithoutBatch().run()
