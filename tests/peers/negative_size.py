"""Says that a batch has -1 points, and means that it does not know."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch
from tests.peers.plain_udf import PlainUdf


class NegativeSize(PlainUdf):
    """Says that a batch has -1 points, and means that it does not know."""

    edge = BATCH

    def begin(self, begin: BeginBatch) -> None:
        begin.size = -1
        super().begin(begin)


if __name__ == "__main__":
    NegativeSize().run()
