"""Says that a batch has 2**60 points, to be on the safe side."""

from __future__ import annotations

from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch
from tests.peers.plain_udf import PlainUdf


class AbsurdSize(PlainUdf):
    """Says that a batch has 2**60 points, to be on the safe side."""

    edge = BATCH

    def begin(self, begin: BeginBatch) -> None:
        begin.size = 1 << 60
        super().begin(begin)


if __name__ == "__main__":
    AbsurdSize().run()
